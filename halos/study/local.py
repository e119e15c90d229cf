"""Local files and model folders that the config names, known by their content: a replaced one makes another slice.

A slice holds their hashes, so that whatever is put in their place is noticed, also an older file, and one that is only
touched makes nothing again. The hash of a large file is remembered beside the results, as long as the file system says
that the file is the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from halos.errors import HalosError
from halos.files import hash_content, hash_file, write_json
from halos.models.download import ADAPTERS, local_base, model_files
from halos.study.cells import RESULTS

KNOWN = Path(RESULTS) / ".hashes.json"
"""Hashes of large files, by what identifies a file's content on its file system."""
LARGE = 2**24
"""Bytes from which a file's hash is remembered between commands; a smaller one takes milliseconds."""
SETTLED = 2.0
"""Seconds after which another change of a file is sure to give it another time."""


def contents(paths: Iterable[str | Path]) -> dict[str, str]:
    """{path: sha256} of local files and folders of models or adapters; those that do not exist are left out.

    Adapters bring the local model that they belong to. A file of the results tree is known by the rule that makes it.
    """
    found: dict[str, str] = {}
    for path in map(Path, paths):
        if path.is_file() and not path.is_relative_to(RESULTS):
            found[str(path)] = _hash(path)
        elif path.is_dir():
            found[str(path)] = hash_content({str(file.relative_to(path)): _hash(file) for file in model_files(path)})
            if (path / ADAPTERS).is_file() and (base := local_base(path)) is not None and base != path:
                found |= contents([base])
    return found


def _hash(path: Path) -> str:
    """sha256 of a file's content, computed once for each state of the file."""
    state = path.stat()
    # the time of the last change of content or name, which no program can set back, beside what `cp -p` keeps
    return _hash_of(path.resolve(), (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev))


@cache
def _hash_of(path: Path, state: tuple[int, ...]) -> str:
    size, _, changed, *_ = state
    if size < LARGE:
        return hash_file(path)
    key = " ".join(map(str, (path, *state)))
    known = _known()
    if key not in known:
        settled = time.time() - changed / 1e9 > SETTLED
        digest = hash_file(path)
        if not settled:
            return digest
        known = {k: v for k, v in _known().items() if not k.startswith(f"{path} ")} | {key: digest}
        with suppress(HalosError, OSError):  # they are computed again where there is no room for them
            write_json(KNOWN, known)
    return known[key]


def _known() -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads(KNOWN.read_text())
    except (OSError, ValueError):
        return {}
    return known
