"""Files that are whole or absent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from halos.files import whole


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0o644), (0o750, 0o640), (0o700, 0o600)])
def test_weights_have_the_readers_of_the_folder_they_are_in(folder: int, file: int, tmp_path: Path) -> None:
    """safetensors writes files that only their owner may read; others of a group could not use a model."""
    results = tmp_path / "results"
    results.mkdir()
    results.chmod(folder)
    with whole(results / "model") as temporary:
        temporary.mkdir()
        save_file({"w": np.zeros(2)}, temporary / "model.safetensors")
    with whole(results / "cache.safetensors") as temporary:
        save_file({"w": np.zeros(2)}, temporary)
    assert mode(results / "model/model.safetensors") == mode(results / "cache.safetensors") == file


def test_a_link_to_a_file_for_its_owner_alone_stays_so(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.touch(0o600)
    with whole(tmp_path / "model") as temporary:
        temporary.mkdir()
        os.link(private, temporary / "weights")
    assert mode(private) == 0o600
