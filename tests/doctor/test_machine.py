"""Disk, memory, cores, and file systems that do not do what they should."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from halos.doctor.checks import machine
from halos.doctor.lines import Line
from tests.doctor.conftest import Answered, Make, lines

Usage = namedtuple("Usage", "total used free")


def with_free(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr("halos.doctor.checks.machine.shutil.disk_usage", lambda path: Usage(10**12, 0, free))


def in_cache(setup: Any, entries: dict[str, Any]) -> Any:
    setup.probes[None, "cached", str(setup.config), "g"] = Answered(entries)
    return setup


def test_the_disk_is_held_against_the_plan(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = in_cache(make(), {})
    takes = sum(job.disk for job in setup.plan.jobs)  # type: ignore[union-attr]
    assert takes > 0
    for free, state in ((2 * takes, "ok"), (takes / 2, "to do")):
        with_free(monkeypatch, free)
        (about, found, text), _ = lines(machine.disk, setup)
        assert (about, found) == ("disk of results", state)
        assert f"{takes / 1e9:.1f} GB" in text


def test_a_finished_training_takes_no_more_disk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = in_cache(make(), {})
    assert setup.plan is not None
    with_free(monkeypatch, 1)
    for job in setup.plan.jobs:  # type: ignore[union-attr]
        if job.cell.stage is not None:
            manifest = setup.results / job.cell.folder / "manifest.json"
            manifest.parent.mkdir(parents=True, exist_ok=True)
            manifest.touch()
    kept = [job.disk for job in setup.plan.jobs if job.kind != job.cell.stage]  # type: ignore[union-attr]
    with_free(monkeypatch, sum(kept))
    assert [state for _, state, _ in lines(machine.disk, setup)] == ["ok", "ok"]


def test_models_to_download_count_on_the_disk_of_the_cache(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"parameters": 10**9, "layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
    setup = make(model={"architecture": None, "tokenizer": None, "hub": "some/model", "size": size})
    in_cache(setup, {"models.m": ["models/some/model", "missing", ""]})
    with_free(monkeypatch, 1.9e9)
    _, (about, state, text) = lines(machine.disk, setup)
    assert (about, state) == ("disk of the cache", "to do")
    assert "some 2.0 GB at two bytes a weight" in text


def test_memory_is_that_of_the_container(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("halos.doctor.setup.shutil.which", lambda name: None)
    monkeypatch.setattr("halos.workflow.machine.CGROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("2000000000\n")
    (_, state, text), _ = lines(machine.main_memory, make({"mem_gb": 3}))
    assert state == "to do"
    assert text.startswith("2.0 GB, and the largest job (m) asks for 3 GB: ")


def test_fewer_cores_than_a_job_asks_for_are_said(make: Make) -> None:
    _, (_, state, text) = lines(machine.main_memory, make({"cpus": 10_000, "mem_gb": 1}))
    assert state == "-"
    assert "asks for 10000" in text


# ---- file systems


def tried(folder: Path) -> list[Line]:
    return list(machine._tried("files", folder, "move them"))


def test_this_file_system_works_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    assert [line.state for line in tried(tmp_path)] == ["ok"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_to_do() -> None:
    [line] = tried(Path("/proc"))
    assert line.state == "to do"
    assert line.text.startswith("nothing can be written there (")


def test_a_file_system_without_locks_is_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("halos.doctor.checks.machine.fcntl.flock", unsupported)
    [line] = tried(tmp_path)
    assert line.state == "to do"
    assert line.text == "locks (flock): OSError: [Errno 37] No locks available; move them"


def test_locks_that_lock_nobody_out_are_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halos.doctor.checks.machine.fcntl.flock", lambda *_: None)
    assert [(line.state, line.text.split(";")[0]) for line in tried(tmp_path)] == [
        ("to do", "locks (flock): they do not do what they should")
    ]


def test_a_rename_that_copies_is_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(old: Path, new: Path) -> None:
        new.write_text(old.read_text())  # a reader that has it open sees the new content
        old.unlink()

    monkeypatch.setattr("halos.doctor.checks.machine.os.rename", copy)
    [line] = tried(tmp_path)
    assert (line.state, line.text.split(":")[0]) == ("to do", "replacing a file by a rename")


def test_a_file_system_without_symbolic_links_is_to_do_and_without_hard_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("halos.doctor.checks.machine.os.link", unsupported)
    assert [(line.state, line.text.split(":")[0]) for line in tried(tmp_path)] == [("-", "hard links")]
    monkeypatch.setattr(os, "symlink", unsupported)
    assert [line.state for line in tried(tmp_path)] == ["to do", "-"]


def test_results_that_do_not_exist_are_tried_in_the_folder_that_they_will_be_in(make: Make, tmp_path: Path) -> None:
    setup = make()
    setup.results = tmp_path / "not/yet/there"
    assert next(iter(machine.file_systems(setup))).state == "ok"
    assert not (tmp_path / "not").exists()
