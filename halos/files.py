"""Files that are whole or absent, JSON files as types, and hashes of contents."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from halos.errors import HalosError

NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than is allowed (`ulimit -f`)",
}
"""Why a file system takes no more, by the number of its error."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes to `path`, or below it. Other errors than those of a full disk pass through.

    Libraries raise these in types of their own, such as safetensors and tokenizers do; all give the number in the text.

    Raises:
        HalosError: the file system takes no more.
    """
    try:
        yield
    except Exception as error:
        numbers = {int(number) for number in re.findall(r"(?:\[errno |\(os error )(\d+)", str(error), re.IGNORECASE)}
        reason = next((NO_SPACE[number] for number in numbers if number in NO_SPACE), None)
        if reason is None or isinstance(error, HalosError):
            raise
        folder = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(folder).free
        raise HalosError(
            f"{reason}: {path} cannot be written, and {folder} has {free / 1e9:.3g} GB free; make room and run the "
            f"same command again, which goes on from what is complete (a training from its last checkpoint)"
        ) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, to write a file or a folder to. It is renamed to `path` when the
    block ends, and removed when the block fails: `path` is then as it was. Parent folders are made. What
    a library writes for its owner alone, as safetensors does, gets the readers of the parent folder.

    Raises:
        HalosError: as `writing`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial.{os.getpid()}.{path.name}")
    _remove(temporary)
    try:
        with writing(path):
            yield temporary
            _share(temporary)
            if temporary.is_dir():
                _remove(path)
            temporary.replace(path)
    finally:
        _remove(temporary)


def _share(path: Path) -> None:
    """Give the files that only their owner may read, of a path or below it, the readers of the folder it is in."""
    readers = path.parent.stat().st_mode & 0o044
    for file in (path, *path.rglob("*")):
        status = file.lstat()
        if status.st_mode == stat.S_IFREG | 0o600 and status.st_nlink == 1:  # a link may be to a file of the user's
            file.chmod(0o600 | readers)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Record(BaseModel):
    """A part of a JSON file: it refuses fields that it does not know, and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JsonFile(Record):
    """A JSON file that one stage writes and others read: one type, one `read`, one `write`."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """
        Raises:
            HalosError: the file is missing, or is not of this type.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise HalosError(f"there is no {path}; run `snakemake {path}` to make it") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "its content"
            raise HalosError(
                f"{path} is not what this version writes ({where}: {first['msg']}); delete it and run "
                f"`snakemake {path}` to make it again"
            ) from None

    def write(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))


def link(source: str, target: str) -> None:
    """Make a file anew as a hard link to another; as a copy, where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_folder(source: Path, target: Path) -> None:
    """Make a folder anew of hard links to the files of another. Snakemake's time stamp of a folder that a job made is
    left out: it would be that of both."""
    shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns(".snakemake_timestamp"))


def hash_files(paths: Iterable[Path]) -> str:
    """sha256 of the files' names and contents, whatever their order."""
    return hash_content({path.name: hash_file(path) for path in paths})


def hash_file(path: Path) -> str:
    """sha256 of a file's content, as the program sha256sum gives it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_each(folder: Path) -> dict[str, str]:
    """{name: sha256} of a folder's files."""
    return {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def hash_weights(model: Path) -> str:
    """sha256 of the names and contents of a model folder's safetensors files."""
    return hash_files(model.glob("*.safetensors"))


def weights_of(files: dict[str, str]) -> str:
    """The hash that `hash_weights` gives, from the hashes of a model folder's files."""
    return hash_content({name: digest for name, digest in files.items() if name.endswith(".safetensors")})


def hash_content(content: Any) -> str:
    """sha256 of something JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of someone else's, such as a model's config.json.

    Raises:
        HalosError: it is no JSON, or no object of keys and values.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON and of the encoding
        raise HalosError(f"{path} is not valid JSON ({error}): put it there again") from None
    if not isinstance(content, dict):
        raise HalosError(f"{path} must hold keys and values, not a {type(content).__name__}: put it there again")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole or not at all.

    Raises:
        ValueError: it holds a number that is not finite.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text)
