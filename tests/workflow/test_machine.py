"""What jobs of one machine share where no scheduler gives it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halos.workflow import machine


def test_within_a_slurm_job_nothing_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its GPUs may be on other nodes than this process, as in the shell of salloc."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    anything: Any = None
    assert list(machine.share(anything, anything)) == []


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups that limit nothing."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    return tmp_path / "cgroup"


def limit(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_memory_is_the_machines_or_the_least_that_a_group_around_this_process_may_take(groups: Path) -> None:
    whole = machine.memory()
    assert whole > 2e9
    limit(groups / "memory.max", "max\n")
    assert machine.memory() == whole
    (groups.parent / "own").write_text("0::/system.slice/job_7/step_0\n")
    limit(groups / "system.slice/job_7/memory.max", "2000000000\n")
    limit(groups / "system.slice/job_8/memory.max", "1\n")
    assert machine.memory() == 2e9
    limit(groups / "memory.max", "1000000000\n")
    assert machine.memory() == 1e9


def test_memory_is_limited_by_groups_of_version_1_as_well(groups: Path) -> None:
    whole = machine.memory()
    (groups.parent / "own").write_text("9:cpu,cpuacct:/a\n4:memory:/docker/one\n0::/\n")
    limit(groups / "memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")  # what stands for no limit
    assert machine.memory() == whole
    limit(groups / "memory/docker/one/memory.limit_in_bytes", "3000000000\n")
    assert machine.memory() == 3e9
