"""The config and the tokenizer of a model folder, and the code that comes with a model: refused, or run where the
model's entry says `trust_remote_code: true`.

A model folder of the results tree whose code was accepted says so in a file, so that whatever reads the folder, or a
model that was trained from it, knows it. The file holds the hashes of the code: other code is not run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.files import hash_file, read_json, write_json

TRUSTED = "trusted_code.json"
"""{name: sha256} of the files of code in a model folder that are run."""
CODE = "*.py"


def own_code(folder: Path) -> list[str]:
    """The classes that a model folder brings code of: `modeling_mine.Model`, by its config and its tokenizer's."""
    found: set[str] = set()
    for name in ("config.json", "tokenizer_config.json"):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        for classes in (content.get("auto_map") or {}).values():
            found |= {str(item) for item in (classes if isinstance(classes, list) else [classes]) if item}
    return sorted(found)


def check_code(folder: Path) -> None:
    """Check that the code that a model brings is in its folder, before any of it is run.

    Raises:
        HalosError: the model brings no code, or names code in another repository, which no commit of its own pins.
    """
    classes = own_code(folder)
    if not classes:
        raise HalosError(f"trust_remote_code is set, and the model in {folder} brings no code: take it out")
    if other := next((name for name in classes if "--" in name), None):
        repository, _, name = other.partition("--")
        raise HalosError(
            f"the model in {folder} takes {name} from another repository, {repository}, at whatever commit it has: put "
            "that file beside the model, and name it in auto_map without the repository"
        )


def keep_code(origin: Path, folder: Path) -> None:
    """Copy the code that a model brings into its folder, to be run from there on.

    Args:
        origin: the folder that the model came in.
        folder: the model folder to write to.
    """
    files = sorted(origin.glob(CODE))
    for file in files:
        shutil.copyfile(file, folder / file.name)
    write_json(folder / TRUSTED, {file.name: hash_file(file) for file in files})


def trusts(folder: Path) -> bool:
    """Whether the code that a model folder brings is run.

    Raises:
        HalosError: it was accepted, and is another now.
    """
    if not (folder / TRUSTED).is_file():
        return False
    for name, accepted in read_json(folder / TRUSTED).items():
        if not (folder / name).is_file() or hash_file(folder / name) != accepted:
            raise HalosError(f"{folder / name} is other code than the model's entry accepted: make the model again")
    return True


def read_config(folder: Path, trusted: bool | None = None) -> Any:
    """The transformers config of a model folder.

    Args:
        folder: the folder.
        trusted: whether its code is run; None for what the folder says.

    Raises:
        HalosError: transformers cannot read it, or its code cannot be run.
    """
    from transformers import AutoConfig

    trusted = trusts(folder) if trusted is None else trusted
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    except Exception as error:  # transformers' classes and code of others raise whatever they like
        why = " ".join(str(error).split())
        raise HalosError(
            f"the code that the model in {folder} brings cannot be run ({why})" if trusted else
            f"there is no config in {folder} that transformers can read ({why})"
        ) from error  # fmt: skip


def read_tokenizer(folder: Path, trusted: bool | None = None, **options: Any) -> Any:
    """The tokenizer of a model folder, with options of transformers.

    Args:
        folder: the folder.
        trusted: whether its code is run; None for what the folder says. Code that is not is never asked about.
        options: arguments of transformers' `from_pretrained`.

    Raises:
        HalosError: there is none that transformers can read, or its code cannot be run.
    """
    from transformers import AutoTokenizer

    trusted = trusts(folder) if trusted is None else trusted
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted, **options)
    except Exception as error:  # as of a config
        why = " ".join(str(error).split())
        raise HalosError(f"there is no tokenizer in {folder} that transformers can read ({why})") from error


def remote_classes(config: Any) -> dict[str, Any]:
    """{auto class: class} of a config whose own class is code that came with a model; empty for transformers' own."""
    is_remote = not type(config).__module__.startswith("transformers.")
    return dict(getattr(config, "auto_map", None) or {}) if is_remote else {}
