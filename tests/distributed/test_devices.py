"""GPUs of one machine: which a job may have, and that no two jobs have the same one."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from halos.cli import main
from halos.distributed import devices
from halos.distributed.devices import FOLDER, HELD, KNOWN, VISIBLE, Gpu, chosen, take, usable, visible
from halos.errors import HalosError
from tests.distributed.nvml import nvml

ROOT = Path(__file__).parents[2]
FOUR = [Gpu("", 0, 0, (), uuid, index, str(index)) for index, uuid in enumerate(("GPU-aa", "GPU-ab", "GPU-b", "GPU-c"))]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with four GPUs, and its folder of locks."""
    for name in (VISIBLE, HELD, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(KNOWN, ",".join(gpu.uuid for gpu in FOUR))
    monkeypatch.setenv(FOLDER, str(tmp_path / "locks"))
    return tmp_path / "locks"


# ---- which there are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "indices"),
    [
        ("0,1,2,3", [0, 1, 2, 3]),
        ("3, 1", [3, 1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,7,1", [0]),  # nothing that comes after one that is not there
        ("1,1,2", [1]),
        ("GPU-b,0", [2, 0]),
        ("GPU-ab,GPU-aa", [1, 0]),
        ("GPU-a,0", []),  # the beginning of two
        ("GPU-c,3,0", [3]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    listed: str, indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [gpu.index for gpu in chosen(listed, FOUR)] == indices
    monkeypatch.setenv(VISIBLE, listed)
    assert visible() == [FOUR[index] for index in indices]


def with_driver(monkeypatch: pytest.MonkeyPatch, *models: str, **more: Any) -> None:
    monkeypatch.delenv(KNOWN)
    monkeypatch.setitem(sys.modules, "pynvml", nvml(*models, **more) if models else None)


def test_gpus_are_those_of_the_driver_and_without_one_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, "H100", "H100")
    assert [(gpu.uuid, gpu.index, gpu.name) for gpu in visible()] == [("GPU-0aa", 0, "0"), ("GPU-1aa", 1, "1")]
    monkeypatch.setenv(VISIBLE, "GPU-1")
    assert [gpu.index for gpu in visible()] == [1]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert visible() == []


def test_gpus_that_are_kept_from_this_process_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, "", "H100", "", "H100")
    assert [(gpu.uuid, gpu.name) for gpu in visible()] == [("GPU-1aa", "0"), ("GPU-3aa", "1")]


def test_a_part_of_a_gpu_is_for_jobs_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, "H100", "H100", "H100", parts=(0, 2, 0))
    assert [gpu.uuid for gpu in usable(1)] == ["GPU-0aa", "MIG-10", "MIG-11", "GPU-2aa"]
    assert [gpu.uuid for gpu in usable(2)] == ["GPU-0aa", "GPU-2aa"]
    # by number, nobody could name a part
    assert [gpu.name for gpu in usable(2)] == ["GPU-0aa", "GPU-2aa"]
    monkeypatch.setenv(VISIBLE, "1,MIG-11")
    assert [gpu.uuid for gpu in visible()] == ["MIG-10", "MIG-11"]


# ---- taking them ---------------------------------------------------------------------------------------------------


def test_nothing_is_locked_where_none_is_wanted_or_known(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert take(0) == {}
    monkeypatch.setenv(KNOWN, "")
    assert take(2) == {}
    assert not machine.exists()


def test_more_than_there_are_is_one_sentence_outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HalosError, match=r"^5 GPUs wanted, and there are 4 on this machine: change `gpus` in "):
        take(5)
    monkeypatch.setenv(VISIBLE, "1")
    with pytest.raises(HalosError, match=r"^2 GPUs wanted, and there is 1 on .* \(CUDA_VISIBLE_DEVICES is '1'"):
        take(2)
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # Slurm knows what it gave to the job
    assert take(2) == {}


def test_gpus_with_more_free_memory_are_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, "H100", "H100", "H100", free=(10, 80, 79))
    assert taken_by(monkeypatch, 2) == "1,2"


def taken_by(monkeypatch: pytest.MonkeyPatch, count: int) -> str:
    """What `take` sets; the locks go with what it opened."""
    opened: list[int] = []
    real = devices._open
    monkeypatch.setattr(devices, "_open", lambda name: opened.append(real(name)) or opened[-1])
    try:
        return take(count)[VISIBLE]
    finally:
        for descriptor in opened:
            try:
                os.close(descriptor)
            except OSError:  # closed already
                continue


# ---- in processes --------------------------------------------------------------------------------------------------


class Job:
    """A process that takes GPUs, says which, and gets another command in its place that ends with its input."""

    def __init__(self, count: int, environment: dict[str, str] | None = None, command: str = "input()") -> None:
        code = (
            "import os, sys; from halos.distributed.devices import take\n"
            f"os.environ.update(take({count})); print(os.environ['{VISIBLE}'], flush=True)\n"
            f"os.execv(sys.executable, [sys.executable, '-c', {command!r}])"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, **pipes)

    @property
    def gpus(self) -> set[str]:
        """What it has, once it has it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        return set(line.strip().split(","))

    def says(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def end(self) -> None:
        self.process.communicate("\n", timeout=60)


@pytest.fixture
def job() -> Iterator[Callable[..., Job]]:
    """Start jobs, of which none outlives the test."""
    started: list[Job] = []

    def start(*arguments: Any, **more: Any) -> Job:
        started.append(Job(*arguments, **more))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_jobs_have_different_gpus_and_one_that_has_to_wait_says_for_whom(job: Callable[..., Job]) -> None:
    first, second = job(2), job(1)
    assert not first.gpus & second.gpus
    third = job(2)
    line = third.says()
    assert line.startswith("waiting for 1 more GPUs of 2; taken: ")
    assert line.count("by process ") == 3
    assert all(str(one.process.pid) in line for one in (first, second))
    second.end()
    assert len(third.gpus) == 2


def test_locks_go_with_a_job_that_is_killed(job: Callable[..., Job]) -> None:
    first = job(4)
    assert len(first.gpus) == 4
    second = job(4)
    assert "waiting for 4 more" in second.says()
    first.process.kill()
    assert len(second.gpus) == 4


def test_a_job_of_all_gpus_is_not_overtaken_by_small_ones(job: Callable[..., Job]) -> None:
    small = [job(1), job(1)]
    assert len(small[0].gpus | small[1].gpus) == 2
    large = job(4)
    assert "waiting for 2 more GPUs of 4" in large.says()
    late = job(1)
    assert f"process {large.process.pid} came first" in late.says()
    for one in small:
        one.end()
    assert len(large.gpus) == 4
    large.end()
    assert len(late.gpus) == 1


def test_jobs_that_have_no_gpu_in_common_do_not_wait_for_each_other(job: Callable[..., Job]) -> None:
    first = job(2, {VISIBLE: "0,1"})
    assert first.gpus == {"0", "1"}
    second = job(1, {VISIBLE: "0,1"})
    assert "waiting for 1 more GPUs of 1" in second.says()
    assert job(2, {VISIBLE: "GPU-b,3"}).gpus == {"2", "3"}


HOLD = (
    "import os, subprocess, sys; print(os.getpid(), flush=True)\n"
    "code = 'from halos.distributed.devices import hold; hold(); print(1, flush=True); input()'\n"
    "subprocess.run([sys.executable, '-c', code])"
)
"""A launcher whose one process joins the job; subprocess hands no file on to it, locks included."""


def test_gpus_stay_with_the_processes_of_a_job_whose_launcher_was_killed(job: Callable[..., Job]) -> None:
    first = job(4, command=HOLD)
    assert len(first.gpus) == 4
    assert first.process.stdout is not None
    assert [first.process.stdout.readline() for _ in range(2)] == [f"{first.process.pid}\n", "1\n"]
    [worker] = psutil.Process(first.process.pid).children()
    first.process.kill()
    second = job(1)
    assert "waiting for 1 more" in second.says()
    assert not select.select([second.process.stdout], [], [], 3 * devices.PAUSE)[0]
    worker.kill()
    assert len(second.gpus) == 1


def test_a_verb_of_a_job_whose_gpus_another_one_took_does_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = devices._open("GPU-c")
    fcntl.flock(theirs, fcntl.LOCK_EX)
    monkeypatch.setenv(HELD, "GPU-c")
    assert main(["schema"]) == 1
    assert capsys.readouterr().err.startswith("error: another job has the GPU GPU-c, because the launcher of this one ")
    os.close(theirs)
    assert main(["schema"]) == 0


# ---- several users -------------------------------------------------------------------------------------------------


def test_the_files_of_locks_are_for_every_user(machine: Path, job: Callable[..., Job]) -> None:
    mask = os.umask(0o077)
    try:
        assert len(job(1).gpus) == 1
    finally:
        os.umask(mask)
    assert machine.stat().st_mode & 0o7777 == 0o1777
    assert {file.stat().st_mode & 0o777 for file in machine.iterdir()} == {0o666}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_users_wait_for_each_others_locks(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os; from halos.distributed.devices import HELD, take; os.setuid(65534)\n"
        "print(take(1)[HELD], flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)  # as /tmp is; the folders of pytest are for one user
        monkeypatch.setenv(FOLDER, f"{folder}/locks")
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as theirs:
            assert theirs.stdout is not None
            assert theirs.stdout.readline() == "GPU-aa\n"
            assert Path(folder, "locks").stat().st_uid == 65534
            ours = job(4)
            assert f"GPU-aa by process {theirs.pid}" in ours.says()
            theirs.communicate("\n", timeout=60)
            assert len(ours.gpus) == 4
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as theirs:
            assert theirs.stdout is not None
            ours.end()
            assert theirs.stdout.readline() == "GPU-aa\n"
            theirs.communicate("\n", timeout=60)


def test_a_lock_is_no_link_to_somewhere_else(machine: Path, tmp_path: Path) -> None:
    machine.mkdir()
    (tmp_path / "precious").write_text("content")
    (machine / "GPU-aa").symlink_to(tmp_path / "precious")
    with pytest.raises(HalosError, match=r"jobs lock their GPUs in .*, which does not work \("):
        take(1)
    assert (tmp_path / "precious").read_text() == "content"
