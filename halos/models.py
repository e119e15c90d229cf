"""Models: make a base model's folder, load a policy, wrap it with LoRA, save it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.config import read_slice
from halos.data.feedback import ROLES, read
from halos.data.template import Template, read_template
from halos.errors import HalosError
from halos.hub import read_fetched, remedy
from halos.launch import PROCESSES
from halos.provenance import hash_content, hash_each, weights_of, write_json

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from halos.losses import Loss

PAD, END = "<|pad|>", "<|end|>"
ADAPTERS = "adapter_config.json"


def make(config: Path, feedback: list[Path], output: Path, fetched: Sequence[Path] = ()) -> None:
    """The verb: make the folder of a base model, with its tokenizer, chat template and generation config.

    An `architecture` gets random weights from its seed and a tokenizer trained on `feedback`; the weights of a hub or
    local model are linked, not copied; a local folder of LoRA adapters is merged with the model it belongs to.

    Args:
        config: slice of the model's entry.
        feedback: splits to train a tokenizer on, for an `architecture`; else empty.
        output: results/models/{model}; `model/` and `manifest.json` are written there.
        fetched: what `fetch` wrote, if it did: its commits are taken, and not what the revision means today.
    """
    from transformers import AutoTokenizer, GenerationConfig

    settings = read_slice(config)
    folder = output / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if settings["architecture"] is not None:
        if not feedback:
            raise HalosError(f"model {settings['model']} trains its tokenizer on a dataset: give --feedback")
        tokenizer = _train_tokenizer(feedback, settings["tokenizer"]["vocab_size"])
        _initialise(settings, len(tokenizer), tokenizer).save_pretrained(folder)
        revision = None
    else:
        found = read_fetched(fetched)
        origin, revision = _find(settings, found)
        if (origin / ADAPTERS).is_file():
            _merge(origin, _base(settings, origin, found.get("base", {})), folder)
        else:
            _link(origin, folder)
        tokenizer = AutoTokenizer.from_pretrained(origin)
    if settings["template"] is not None:
        tokenizer.chat_template = read_template(settings["template"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else None
    generation = generation or GenerationConfig()
    known = generation.eos_token_id
    ends = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id, Template(tokenizer).end}
    generation.eos_token_id = sorted(i for i in ends if i is not None)
    generation.pad_token_id = tokenizer.pad_token_id
    generation.do_sample = generation.temperature = generation.top_p = generation.top_k = None  # the prompt set says
    generation.save_pretrained(folder)
    files = hash_each(folder)
    hashes = {"weights": weights_of(files), "files": files}
    write_json(output / "manifest.json", {**settings, "revision": revision, **hashes, "parents": []})


def _train_tokenizer(feedback: list[Path], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of the feedback's text, with tokens for roles, padding and the end of a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def texts() -> Iterator[str]:
        for record in chain.from_iterable(map(read, feedback)):
            yield from (turn["content"] for turn in record.prompt)
            yield from record.responses

    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def _initialise(settings: dict[str, Any], vocab_size: int, tokenizer: Any) -> PreTrainedModel:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(settings["architecture"])
    model_type = fields.pop("model_type")
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    try:
        config = AutoConfig.for_model(model_type, vocab_size=vocab_size, **ids, **fields)
        torch.manual_seed(settings["seed"])
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        message = " ".join(str(error).split())
        raise HalosError(f"models.{settings['model']}.architecture: {message}") from error
    return model


def download(settings: dict[str, Any]) -> dict[str, Any]:
    """Get what a model has on the hub, for `fetch`, which says what it returns; empty where there is nothing."""
    found: dict[str, Any] = {}
    origin = None if settings["path"] is None else Path(settings["path"])
    if settings["hub"] is not None:
        origin = _snapshot(settings["model"], settings["hub"], settings["revision"])
        found = {"hub": settings["hub"], "revision": settings["revision"], "commit": origin.name}
    if origin is not None and (base := base_on_hub(origin)) is not None:
        found["base"] = {**base, "commit": _snapshot(settings["model"], **base).name}
    return found


def base_on_hub(folder: Path) -> dict[str, str] | None:
    """The model {hub, revision} to which a folder's LoRA adapters belong, unless it is a folder itself."""
    if not (folder / ADAPTERS).is_file():
        return None
    config = json.loads((folder / ADAPTERS).read_text())
    base = config["base_model_name_or_path"]
    return None if Path(base).is_dir() else {"hub": base, "revision": config.get("revision") or "main"}


def _find(settings: dict[str, Any], found: dict[str, Any]) -> tuple[Path, str | None]:
    """The folder of a hub or local model, and the hub commit."""
    name = settings["model"]
    if settings["path"] is not None:
        path = Path(settings["path"])
        if not is_model(path):
            raise HalosError(f"models.{name}: there is no model in {path} (no config.json); put one there")
        return path, None
    path = _snapshot(name, settings["hub"], found.get("commit", settings["revision"]))
    return path, path.name


def _base(settings: dict[str, Any], adapters: Path, found: dict[str, str]) -> Path:
    """The folder of the model to which LoRA adapters belong."""
    base = base_on_hub(adapters)
    if base is None:
        return Path(json.loads((adapters / ADAPTERS).read_text())["base_model_name_or_path"])
    return _snapshot(settings["model"], base["hub"], found.get("commit", base["revision"]))


def _snapshot(name: str, hub: str, revision: str) -> Path:
    """The folder of a hub model in the cache, called by its commit; downloaded where that is allowed.

    Raises:
        HalosError: it cannot be had, or has no safetensors.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    other = ["*/*", "consolidated*"]  # the same weights once more, in the layouts of other programs
    try:
        path = Path(snapshot_download(hub, revision=revision, allow_patterns=wanted, ignore_patterns=other))
    except Exception as error:  # of the hub, of its HTTP library, or of the disk: all mean the same here
        raise HalosError(
            f"models.{name}: cannot get {hub} at {revision} from the Hugging Face hub ({type(error).__name__}); "
            f"{remedy()}, or give a local `path:`"
        ) from error
    _weights(path)
    return path


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or LoRA adapters that name the model they belong to."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTERS))


def is_reward_model(folder: Path) -> bool:
    """Whether a folder's model scores sequences instead of predicting tokens."""
    kinds = json.loads((folder / "config.json").read_text()).get("architectures") or []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def _merge(adapters: Path, base: Path, folder: Path) -> None:
    """Write the model that LoRA adapters and their base model are together."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    tokens = len(AutoTokenizer.from_pretrained(adapters))
    if tokens > model.get_input_embeddings().num_embeddings:  # adapters may bring tokens of their own
        model.resize_token_embeddings(tokens)
    merged: Any = PeftModel.from_pretrained(model, adapters)
    merged.merge_and_unload().save_pretrained(folder)


def _weights(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise HalosError(f"{folder} holds no safetensors weights; convert the model to safetensors first")
    return found


def _link(origin: Path, folder: Path) -> None:
    """Link the weights, copy the configs."""
    for path in _weights(origin):
        (folder / path.name).symlink_to(path.resolve())
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)


def accelerator_for(precision: str) -> Accelerator:
    """An accelerator for the processes and devices at hand; on the CPU it also cures the slowness of denormals, and of
    memory that each operation gets anew from the system.

    Weights are float32. With bf16, single processes and DDP compute under autocast; FSDP2 computes on bfloat16 copies
    of its shards, but reduces gradients, and gives its outputs, in float32.

    Raises:
        HalosError: launched in a way that is not supported, or processes did not find each other.
    """
    import torch
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    torch.set_flush_denormal(True)
    if not torch.accelerator.is_available():
        _keep_freed_memory()
    # without `cpu=True`, processes on a machine without an accelerator would not find each other
    more: dict[str, Any] = {"cpu": not torch.accelerator.is_available()}
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if precision == "bf16" and sharded:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        more["fsdp_plugin"] = FullyShardedDataParallelPlugin(mixed_precision_policy=policy)
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", **more)
    kind = accelerator.distributed_type
    others = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if kind in others or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise HalosError("launch several processes with profiles/accelerate/ddp.yaml or fsdp.yaml, not otherwise")
    if sharded and not accelerator.is_fsdp2:  # accelerate would quietly be DDP
        raise HalosError("weights are sharded over GPUs, and there are none here: leave out `parallel: fsdp`")
    check_processes(accelerator.num_processes)
    return accelerator


def freeze(network: PreTrainedModel, precision: str) -> None:
    """Make a model that is only read take less memory: no gradients and, where matrix products are in bfloat16 anyway,
    the weights of linear layers in it. Autocast would round them in the same way, so that nothing comes out otherwise;
    but it keeps its copies beside the float32 weights as long as these could be trained."""
    import torch
    from torch import nn

    network.requires_grad_(False)
    if precision != "bf16":
        return
    shared = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    for module in network.modules():
        if type(module) is nn.Linear and id(module.weight) not in shared:
            module.to(torch.bfloat16)


def check_processes(found: int) -> None:
    """Processes that work alone without knowing it would all write the same files.

    Raises:
        HalosError: not as many found each other as were launched.
    """
    wanted = int(os.environ.get(PROCESSES) or os.environ.get("WORLD_SIZE", "1"))
    if found != wanted:
        raise HalosError(f"{wanted} processes were launched but {found} found each other: start the job again")


def _keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones: page by page from the system, it costs as much time as what
    is computed in it."""
    import ctypes

    trim_threshold, mmap_max = -1, -4  # of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def load(folder: Path, attention: str, score: bool = False) -> PreTrainedModel:
    """A causal language model with float32 weights, from safetensors only.

    Args:
        folder: the model's folder.
        attention: attention implementation.
        score: give it one score for each sequence instead of its output layer; a language model gets a fresh one.

    Raises:
        HalosError: the folder holds no such model, or its attention implementation is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if not (folder / "config.json").is_file():
        raise HalosError(f"there is no model in {folder}")
    if is_reward_model(folder) and not score:
        raise HalosError(f"the model in {folder} is a reward model: it has scores, and no log-probabilities")
    kind, more = (AutoModelForSequenceClassification, {"num_labels": 1}) if score else (AutoModelForCausalLM, {})
    try:
        model: PreTrainedModel = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention, use_safetensors=True, **more
        )
    except ImportError as error:
        raise HalosError(f"attention {attention} is not installed here; set `attention: sdpa` ({error})") from error
    return model


def begin(
    parent: Path, attention: str, loss: Loss, lora: dict[str, Any] | None
) -> tuple[Any, PreTrainedTokenizerBase | None, dict[str, int]]:
    """What a training starts from.

    Args:
        parent: the parent's model folder.
        attention: attention implementation.
        loss: its traits say whether the model scores sequences, and which tokens it wants before responses.
        lora: settings of LoRA, or None to train all weights.

    Returns:
        The model; its tokenizer, if it is not the parent's any more; role -> id of the token before that role's
        responses.
    """
    from transformers import AutoTokenizer

    model: Any = load(parent, attention, score=loss.head == "score")
    tokenizer = AutoTokenizer.from_pretrained(parent)
    if loss.head == "score":
        _pad_apart(tokenizer)
        model.config.pad_token_id = tokenizer.pad_token_id
    control = {role: _add_token(tokenizer, token) for role, token in loss.control.items()}
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if control:  # sampling asks for what the first role holds
        asked = next(iter(loss.control.values()))
        ending = "{% if add_generation_prompt %}{{ " + json.dumps(asked) + " }}{% endif %}"
        tokenizer.chat_template = tokenizer.chat_template.removesuffix("\n") + ending
    if lora is not None:
        model = with_lora(model, lora, scores=loss.head == "score", tokens=sorted(control.values()))
    return model, tokenizer if control or loss.head == "score" else None, control


def _add_token(tokenizer: Any, token: str) -> int:
    """The id of a special token, which is added if the tokenizer does not have it."""
    if token not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False)
    return int(tokenizer.convert_tokens_to_ids(token))


def _pad_apart(tokenizer: Any) -> None:
    """Give a tokenizer a padding token that ends no turn: a reward model's score is read off the last token that is not
    padding, and with the two the same it would be read one token early by some programs, and not by others.

    Raises:
        HalosError: it has no other special token.
    """
    end = Template(tokenizer).end
    if tokenizer.pad_token_id not in (None, end):
        return
    special = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special and i != end}
    named = sorted(special, key=lambda i: ("pad" not in special[i].lower(), special[i] != tokenizer.unk_token, i))
    if not named:
        raise HalosError("a reward model needs a padding token that does not end a turn: add one to the tokenizer")
    tokenizer.pad_token = special[named[0]]


def with_lora(model: Any, settings: dict[str, Any], scores: bool = False, tokens: Sequence[int] = ()) -> Any:
    """The model with LoRA adapters (peft), its own weights frozen.

    Args:
        model: the model.
        settings: those of the stage's `lora`; with a `path`, the adapters saved there go on being trained.
        scores: whether it is a reward model, whose fresh score layer is trained as well.
        tokens: tokens whose embeddings are trained as well, because they are new.

    Raises:
        HalosError: there are no adapters in `path`.
    """
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

    if settings.get("path") is not None:
        path = Path(settings["path"])
        if not (path / "adapter_model.safetensors").is_file():
            raise HalosError(f"lora.path: there are no adapters in {path} (no adapter_model.safetensors)")
        saved = PeftConfig.from_pretrained(str(path))
        has = sorted(saved.trainable_token_indices or ())
        if (saved.task_type == "SEQ_CLS") != scores or has != sorted(tokens):
            raise HalosError(f"lora.path: the adapters in {path} are of another kind of loss; leave out `path`")
        return PeftModel.from_pretrained(model, path, is_trainable=True)
    targets = settings["target_modules"]
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
        trainable_token_indices=list(tokens) or None,
    )
    return get_peft_model(model, config)


def save(
    model: Any,
    state: dict[str, torch.Tensor],
    parent: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    merge: bool = True,
) -> None:
    """Write a trained model's folder: its weights, LoRA merged, and the tokenizer, template and settings.

    Args:
        model: the unwrapped model.
        state: its full state dict.
        parent: the parent's model folder, whose other files it inherits.
        folder: written under a temporary name and renamed when whole.
        tokenizer: the model's own, where it is not the parent's.
        merge: whether LoRA is merged; else the folder holds adapters only, as peft writes them.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    adapted = hasattr(model, "merge_and_unload")
    if adapted and merge:
        model.load_state_dict(state)
        model = model.merge_and_unload()
        state = model.state_dict()
    model.save_pretrained(temporary, state_dict=state)
    written = {"config.json", "README.md"}
    for path in parent.iterdir():
        if path.name not in written and not path.name.startswith(".") and "safetensors" not in path.name:
            shutil.copyfile(path, temporary / path.name)
    if tokenizer is not None:
        tokenizer.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(folder)


def fingerprint(config: dict[str, Any], inputs: dict[str, str]) -> str:
    """What a checkpoint belongs to: the run's slice of the config, and the hashes of its inputs."""
    return hash_content([json.loads(json.dumps(config)), inputs])
