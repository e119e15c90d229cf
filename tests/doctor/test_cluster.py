"""Lines about Slurm, by a `sinfo` that says what is written here; tests/slurm has a real one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from halos.doctor.checks import cluster
from halos.doctor.partitions import accounts, minutes
from tests.doctor.conftest import Make, lines

NODE = "gpu|2-00:00:00|2|64|1031000|gpu:a100:4(S:0-1)|up|idle\n"
OTHERS = "gpu|2-00:00:00|1|64|515000|gpu:a100:8|up|drained*\ncpu|infinite|10|32|250000|(null)|up|mixed\n"
Says = Callable[..., None]


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Put programs of Slurm into an otherwise empty PATH: `sinfo` with this text."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    def write(text: str, name: str = "sinfo", script: str | None = None) -> None:
        body = f"/bin/cat <<'END'\n{text}END" if script is None else script
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)

    return write


def profile(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    (folder / "profiles/slurm").mkdir(parents=True)
    (folder / cluster.PROFILE).write_text(text)
    monkeypatch.setattr(cluster, "ROOT", folder)


GOOD = (
    "default-resources: {slurm_partition: gpu, slurm_account: default}\nresources: {mem_mb: 1000000, runtime: 2880}\n"
)


def test_without_slurm_only_several_nodes_are_to_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert lines(cluster.slurm, make()) == [("Slurm", "-", "not here")]
    [(_, state, text)] = lines(cluster.slurm, make({"gpus": 1, "nodes": 2}))
    assert state == "to do"
    assert "nodes: 1" in text


def test_a_slurm_that_fails_is_its_first_line(make: Make, says: Says) -> None:
    says("", script="echo 'sinfo: error: no controller' >&2; echo more >&2; exit 1")
    assert lines(cluster.slurm, make()) == [("Slurm", "-", "sinfo fails: error: no controller")]


def test_a_slurm_that_hangs_is_left(make: Make, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    says("", script="exec /bin/sleep 60")
    monkeypatch.setattr("halos.doctor.partitions.PATIENCE", 0.5)
    [(_, state, text)] = lines(cluster.slurm, make({"gpus": 1, "nodes": 2}))
    assert state == "to do"
    assert "does not answer within 0.5 seconds" in text


def test_partitions_show_their_limits_and_usable_nodes(make: Make, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    says(NODE + OTHERS)
    profile(monkeypatch, Path(os.environ["PATH"]), GOOD)
    assert lines(cluster.slurm, make({"gpus": 4, "cpus": 64, "mem_gb": 1000})) == [
        ("Slurm", "ok", "partition gpu: 2880 minutes; 2 nodes with 64 cores, 1031 GB and 4 GPUs"),
        ("Slurm", "ok", "partition cpu: no limit of time; 10 nodes with 32 cores, 250 GB"),
        ("Slurm profile", "ok", "gpu has what the grid's jobs ask for"),
    ]


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        ({"gpus": 8}, "m asks for gpus: 8, and the most is 4"),
        ({"gpus": 1, "cpus": 65}, "m asks for cpus: 65, and the most is 64"),
        ({"gpus": 1, "mem_gb": 1032}, "m asks for mem_gb: 1032, and the most is 1031"),
        ({"gpus": 1, "nodes": 3}, "m asks for nodes: 3, and the most is 2"),
        ({"gpus": 1, "runtime": 3000}, "m asks for a runtime of 3000 minutes, and the limit is 2880"),
    ],
)
def test_what_no_node_of_the_partition_has_is_to_do(
    make: Make, says: Says, monkeypatch: pytest.MonkeyPatch, resources: dict[str, int], text: str
) -> None:
    says(NODE + OTHERS)
    profile(monkeypatch, Path(os.environ["PATH"]), GOOD)
    *_, (about, state, sentence) = lines(cluster.slurm, make(resources))
    assert (about, state) == ("Slurm profile", "to do")
    assert text in sentence


def test_a_partition_without_a_node_that_is_up_is_to_do(
    make: Make, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(NODE.replace("idle", "down*"))
    profile(monkeypatch, Path(os.environ["PATH"]), GOOD)
    *_, (_, state, sentence) = lines(cluster.slurm, make({"gpus": 1}))
    assert state == "to do"
    assert "none is up" in sentence


def test_a_profile_of_another_partition_is_to_do(make: Make, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    says("a100" + NODE.removeprefix("gpu"))
    profile(monkeypatch, Path(os.environ["PATH"]), GOOD)
    *_, (_, state, sentence) = lines(cluster.slurm, make({"gpus": 1}))
    assert state == "to do"
    assert "no partition 'gpu': set slurm_partition in profiles/slurm/config.yaml to one of a100" in sentence
    *_, (_, state, _) = lines(cluster.slurm, make())
    assert state == "-"


def test_limits_and_account_of_the_profile_are_held_against_slurms(
    make: Make, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(NODE)
    says("me\n", "id")
    says("ours\ntheirs\n", "sacctmgr")
    profile(monkeypatch, Path(os.environ["PATH"]), GOOD.replace("2880", "9999"))
    *_, account, limits = lines(cluster.slurm, make({"gpus": 1}))
    assert account[:2] == ("Slurm profile", "to do")
    assert "'default', and yours are ours, theirs" in account[2]
    assert limits[:2] == ("Slurm profile", "-")
    assert "a retry may ask for a runtime of 9999 minutes" in limits[2]


def test_limits_of_time_are_minutes() -> None:
    assert minutes("infinite") == math.inf
    assert (minutes("2-00:00:00"), minutes("1:30:00"), minutes("45:30")) == (2880, 90, 45.5)


def test_there_are_no_accounts_without_accounting(says: Says) -> None:
    assert accounts() == set()
