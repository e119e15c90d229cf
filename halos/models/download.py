"""Models on the Hugging Face hub: their files in its cache, at a known commit."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from halos.errors import HalosError
from halos.files import JsonFile, Record, read_json
from halos.hub import Unavailable, remedy
from halos.models.attention import is_kernel
from halos.models.settings import ModelIdentity
from halos.pretrained import CODE

ADAPTERS = "adapter_config.json"
SMALL = ("*.json", "*.model", "*.txt")
PATTERNS = (*SMALL, "*.safetensors")
"""Files of a model in the layout of transformers: weights, configs, tokenizer."""
PICKLES = ("pytorch_model.bin", "adapter_model.bin")
"""Weights in PyTorch's own format, which are read by `convert` alone."""
PICKLED = "*_model*.bin"
"""These, or their parts."""
TEMPLATES = "*.jinja"
"""Chat templates; all but one are in a folder of their own."""


class OnHub(Record):
    """A model on the hub, and the commit that `revision` meant when it was fetched."""

    hub: str
    revision: str
    commit: str


class FetchedModel(JsonFile):
    """fetched.json of a base model: the commits of all that it reads from the hub.

    Attributes:
        hub, revision, commit: the model, where it is on the hub itself.
        base: the model to which its LoRA adapters belong, where that one is on the hub.
        tokenizer: the model whose tokenizer it has, where its entry names one on the hub.
        kernel: the prebuilt kernel that computes its attention, where its entry names one.
    """

    hub: str | None = None
    revision: str | None = None
    commit: str | None = None
    base: OnHub | None = None
    tokenizer: OnHub | None = None
    kernel: OnHub | None = None


def download(name: str, model: ModelIdentity) -> FetchedModel | None:
    """Download a base model, the model to which its LoRA adapters belong, and the other model's tokenizer and the
    attention kernel that its entry names; None if none is on the hub.

    Args:
        name: the model's id in the catalogue, for messages.
        model: where it comes from.

    Raises:
        HalosError: a model or kernel cannot be downloaded, or a model has no safetensors weights.
    """
    folder = None if model.path is None else Path(model.path)
    origin: dict[str, str] = {}
    if model.hub is not None:
        folder = snapshot(name, model.hub, model.revision, model.trust_remote_code)
        origin = {"hub": model.hub, "revision": model.revision, "commit": folder.name}
    parts: dict[str, OnHub] = {}
    if (base := None if folder is None else base_on_hub(folder)) is not None:
        parts["base"] = OnHub(**base, commit=snapshot(name, base["hub"], base["revision"]).name)
    if (hub := tokenizer_on_hub(model)) is not None:
        parts["tokenizer"] = OnHub(hub=hub, revision="main", commit=snapshot(name, hub, "main", weights=False).name)
    if is_kernel(model.attention):
        download_kernel(name, model.attention)
        hub, _, commit = model.attention.partition("@")
        parts["kernel"] = OnHub(hub=hub, revision=commit, commit=commit)
    return FetchedModel(**origin, **parts) if origin or parts else None


def download_kernel(name: str, attention: str) -> None:
    """Download a prebuilt attention kernel for the torch of this environment, unless this process is offline.

    The publisher has to be one whose kernels the package `kernels` runs without being asked to trust them.

    Args:
        name: the model's id in the catalogue, for messages.
        attention: OWNER/NAME@COMMIT.

    Raises:
        HalosError: the package is missing, or the kernel cannot be downloaded or has no build for this torch.
    """
    if find_spec("kernels") is None:
        raise HalosError(
            f"models.{name}: attention {attention} is fetched by the package kernels, which is not installed here: "
            "install it, or set `attention: auto`"
        )
    from huggingface_hub import is_offline_mode
    from kernels import install_kernel

    hub, _, commit = attention.partition("@")
    try:
        install_kernel(hub, revision=commit, local_files_only=is_offline_mode())
    except Exception as error:  # of the hub, of its HTTP library, or of the disk
        why = " ".join(str(error).split())
        raise Unavailable(
            f"kernels/{hub}",
            f"models.{name}: cannot get the attention kernel {attention} from the Hugging Face hub "
            f"({type(error).__name__}: {why}); {remedy()}, or set `attention: auto`",
        ) from error


def tokenizer_on_hub(model: ModelIdentity) -> str | None:
    """The model on the hub whose tokenizer a model has; None if it has its own, or that of a local one."""
    name = model.tokenizer.of_model if model.tokenizer else None
    return name if name is not None and name.count("/") == 1 and not Path(name).is_dir() else None


def base_on_hub(folder: Path) -> dict[str, str] | None:
    """{hub, revision} of the model to which a folder's LoRA adapters belong; None without adapters, or if that model
    is a local folder."""
    if not (folder / ADAPTERS).is_file():
        return None
    if local_base(folder) is not None:
        return None
    config = read_json(folder / ADAPTERS)
    return {"hub": config["base_model_name_or_path"], "revision": config.get("revision") or "main"}


def local_base(adapters: Path) -> Path | None:
    """The local folder of the model to which a folder's LoRA adapters belong; None if it is on the hub.

    Raises:
        HalosError: the adapters do not say to which model they belong.
    """
    base = read_json(adapters / ADAPTERS).get("base_model_name_or_path")
    if not base:
        raise HalosError(
            f"the adapters in {adapters} do not say which model they belong to: set base_model_name_or_path in their "
            f"{ADAPTERS}"
        )
    return Path(base) if Path(base).is_dir() else None


def model_files(folder: Path) -> list[Path]:
    """The files that make the model or the adapters in a folder."""
    files = {*chain.from_iterable(map(folder.glob, PATTERNS)), *folder.rglob(TEMPLATES)}
    return sorted(path for path in files if path.is_file())


def snapshot(name: str, hub: str, revision: str, code: bool = False, weights: bool = True) -> Path:
    """The folder of a model in the hub's cache, named after its commit; downloaded unless this process is offline.

    Args:
        name: the model's id in the catalogue, for messages.
        hub: its id on the hub.
        revision: branch, tag or commit.
        code: whether code that comes with it is downloaded, too.
        weights: whether its weights are wanted, or its small files alone.

    Raises:
        HalosError: it cannot be downloaded or is not in the cache, or has no safetensors weights.
    """
    from huggingface_hub import snapshot_download

    patterns = [*(PATTERNS if weights else SMALL), TEMPLATES, *([CODE] if code else [])]
    duplicates = [*(f"*/{pattern}" for pattern in (*PATTERNS, CODE)), "consolidated*"]  # in other programs' layouts
    try:
        folder = Path(snapshot_download(hub, revision=revision, allow_patterns=patterns, ignore_patterns=duplicates))
    except Exception as error:  # of the hub, of its HTTP library, or of the disk: all mean the same here
        raise Unavailable(
            f"models/{hub}",
            f"models.{name}: cannot get {hub} at {revision} from the Hugging Face hub ({type(error).__name__}); "
            f"{remedy()}, or give a local `path:`",
        ) from error
    if weights and not any(folder.glob("*.safetensors")):
        raise HalosError(
            f"models.{name}: {hub} at {revision} holds no safetensors weights; `hf download {hub} --local-dir FOLDER` "
            "gets all of it, `python -m halos convert --source FOLDER --output models/NAME` makes them of its "
            "pytorch_model.bin; then give models/NAME as `path:`"
        )
    return folder


def without_safetensors(folder: Path) -> str:
    """What to do about a folder that holds no safetensors."""
    if any(folder.glob(PICKLED)):
        return f"`python -m halos convert --source {folder} --output models/NAME` makes them of its pickles"
    return "put them there or name another folder"


def check_not_pickled(folder: Path) -> None:
    """Refuse a folder whose weights are pickles alone.

    Raises:
        HalosError: naming the command that makes safetensors of them.
    """
    if any(folder.glob(PICKLED)):
        weight_files(folder)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        HalosError: there are none, or one is a link to a file that is gone.
    """
    files = sorted(folder.glob("*.safetensors"))
    if gone := [path for path in files if not path.is_file()]:
        raise HalosError(f"{gone[0]} is a link to {gone[0].readlink()}, which is gone: put the weights there again")
    if not files:
        raise HalosError(f"{folder} holds no safetensors weights; {without_safetensors(folder)}")
    return files
