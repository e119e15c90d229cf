"""One way to start a verb: in one process, in several of a node, on several nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import _filter_args
from torch.distributed.run import get_args_parser

from halos.distributed.accelerator import accelerator_for, check_processes
from halos.distributed.launch import PATIENCE, PROCESSES, first_host, hold_port, parse
from halos.errors import HalosError
from halos.settings import read_slice
from halos.study import catalogue as C
from tests.conftest import World
from tests.train.runs import PLAIN, log
from tests.train.test_invariance import assert_close

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
"""Of a machine without GPUs, where processes are as many as a node with GPUs would have."""
TWO = ("--gpus", "2", "--cpus", "2", "train")
IN_A_JOB = {"SLURM_JOB_ID": "7"}


def options(words: list[str]) -> dict[str, str]:
    pairs = (word.removeprefix("--").partition("=") for word in words if word.startswith("--") and "=" in word)
    return {name: value for name, _, value in pairs}


def command(*arguments: str, **environment: str) -> list[str]:
    return parse(list(arguments)).command(environment)


def launched(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "halos.distributed.launch", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **{**pipes, **more})


# ---- what is started -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--gpus", "1"], ["--parallel", "fsdp", "--cpus", "4"]])
def test_one_process_is_the_verb_itself(arguments: list[str]) -> None:
    assert command(*arguments, "train", "--output", "o") == [sys.executable, "-m", "halos", "train", "--output", "o"]
    assert parse([*arguments, "train"]).variables() == {PROCESSES: "1"}


def test_several_gpus_of_a_node_are_a_process_each_that_share_its_cores() -> None:
    words = command("--gpus", "4", "--parallel", "fsdp", "--cpus", "14", "train", "--output", "o")
    assert words[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert words[-5:] == ["-m", "halos", "train", "--output", "o"]
    found = options(words)
    assert (found["num_processes"], found["num_machines"], found["machine_rank"]) == ("4", "1", "0")
    assert found["num_cpu_threads_per_process"] == "3"
    assert Path(found["config_file"]).is_file()
    assert Path(found["config_file"]).name == "fsdp.yaml"
    variables = parse(["--gpus", "4", "train"]).variables()
    assert variables[PROCESSES] == "4"
    assert "ACCELERATE_USE_CPU" not in variables


def test_torchs_launcher_waits_for_a_checkpoint_longer_than_it_would_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes have half a minute by default, and are killed then."""
    launch = parse(["--gpus", "2", "train", "--output", "o"])
    for name, value in launch.variables().items():
        monkeypatch.setenv(name, value)
    arguments = launch_command_parser().parse_args(launch.command({})[3:])
    script = ["--training_script", arguments.training_script]
    assert _filter_args(arguments, get_args_parser(), script).shutdown_timeout == PATIENCE > 300


@pytest.mark.parametrize(("gpus", "processes", "on_cpu"), [("8", "24", False), ("0", "3", True)])
def test_several_nodes_are_a_task_each_that_meet_on_the_first(
    gpus: str, processes: str, on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    verb = ["train", "--output", "o", "--nodes"]  # an option of the verb is not the launcher's
    words = command("--nodes", "3", "--gpus", gpus, "--cpus", "16", *verb, **IN_A_JOB)
    launcher = words.index(sys.executable)
    assert words[:launcher] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=16",
                                "--kill-on-bad-exit=1"]  # fmt: skip
    assert words[launcher : launcher + 3] == [sys.executable, "-m", "halos.distributed.launch"]
    tasks = [parse(words[launcher + 3 :]).command({**IN_A_JOB, "SLURM_NODEID": str(rank)}) for rank in range(3)]
    found = [options(task) for task in tasks]
    assert [each["machine_rank"] for each in found] == ["0", "1", "2"]
    assert {each["main_process_ip"] for each in found} == {socket.gethostname()}
    assert len({each["main_process_port"] for each in found}) == 1
    assert {(each["num_machines"], each["num_processes"]) for each in found} == {("3", processes)}
    assert all(task[-len(verb) - 2 :] == ["-m", "halos", *verb] for task in tasks)
    assert ("ACCELERATE_USE_CPU" in parse(words[launcher + 3 :]).variables()) == on_cpu


IN_SALLOC = {**IN_A_JOB, "SLURM_JOB_NODELIST": "gpu[07-08],x1", "SLURM_JOB_NUM_NODES": "3"}
FIRST = {**IN_SALLOC, "SLURMD_NODENAME": "gpu07"}
PLACES: dict[str, tuple[dict[str, str], bool, bool]] = {
    "the script of a job": (IN_A_JOB, True, False),
    "the shell of salloc, on a login node": (IN_SALLOC, False, False),
    "the first node": (FIRST, True, False),
    "a step on the first node": ({**FIRST, "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu07"}, True, True),
    "a step on another": ({**IN_SALLOC, "SLURMD_NODENAME": "x1", "SLURM_STEP_ID": "0"}, False, True),
    "a job of more nodes": ({**FIRST, "SLURM_JOB_NUM_NODES": "4"}, False, False),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_processes_of_a_job_meet_on_the_first_node_of_their_step_wherever_they_are_started(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    environment, here, overlaps = PLACES[place]
    words = command("--nodes", "3", "--gpus", "2", "train", **environment)
    launcher = words.index(sys.executable)
    assert ("--overlap" in words[:launcher]) == overlaps
    step = {"SLURM_STEP_NODELIST": "gpu[07-08],x1"}
    inner = parse(words[launcher + 3 :])
    tasks = [options(inner.command({**environment, **step, "SLURM_NODEID": str(rank)})) for rank in range(3)]
    assert {task["main_process_ip"] for task in tasks} == {socket.gethostname() if here else "gpu07"}
    assert len({task["main_process_port"] for task in tasks}) == 1
    assert [task["machine_rank"] for task in tasks] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("b[003-010,12],a1", "b003"), ("r[1-2]c[4,6]", "r1c4"), ("a-1,a-2", "a-1"),
     ("x,y[1-2]", "x"), ("n[7].cluster", "n7.cluster")],
)  # fmt: skip
def test_the_first_host_of_a_list_as_slurm_writes_it(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_more_nodes_than_the_job_has_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HalosError, match=r"^the Slurm job 7 has 3 nodes, and 4 are asked for: "):
        command("--nodes", "4", "train", **IN_SALLOC)


def test_several_nodes_outside_of_a_slurm_job_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    process = launched("--nodes", 2, "train")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.startswith("error: a job on 2 nodes has to be a Slurm job: ")
    assert output.count("\n") == 1


def test_the_launcher_imports_nothing_heavy() -> None:
    code = (
        "import sys, halos.distributed.launch; print([m for m in sys.modules if m.partition('.')[0] in sys.argv[1:]])"
    )
    heavy = ["torch", "accelerate", "numpy", "pydantic", "yaml"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_held_port_is_given_to_nobody_else_and_the_one_who_is_told_can_listen_on_it() -> None:
    ports = [hold_port() for _ in range(50)]
    assert len(set(ports)) == 50
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", ports[0]))
    with socket.create_server(("", ports[0])), socket.create_connection(("localhost", ports[0])):
        pass


def test_a_port_stays_held_by_the_command_that_takes_the_place_of_the_launcher() -> None:
    code = (
        "import os, sys; from halos.distributed.launch import hold_port\n"
        "print(hold_port(), flush=True); os.execv(sys.executable, [sys.executable, '-c', 'print(1, input())'])"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process, socket.socket() as other:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        wait(lambda: "print(1, input())" in psutil.Process(process.pid).cmdline())
        with pytest.raises(OSError, match="in use"):
            other.bind(("", port))
        process.communicate("go on", timeout=60)


def test_processes_that_were_launched_and_did_not_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate is known to start one process only, without a word, and then there is no WORLD_SIZE to tell."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(PROCESSES, "16")
    check_processes(16)
    with pytest.raises(HalosError, match="16 processes were launched but 8 found each other"):
        check_processes(8)


@pytest.fixture
def _fresh() -> Iterator[None]:
    """accelerate keeps one state for a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_fresh")
def test_shards_that_would_quietly_be_copies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate shards on GPUs alone; elsewhere each process would hold all weights, and nobody would know."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(HalosError, match="sharded over GPUs, and there are none here: leave out `parallel: fsdp`"):
        accelerator_for("fp32")


# ---- real processes, on the CPU ------------------------------------------------------------------------------------


def training(world: World, folder: Path, stage: str, **changes: Any) -> list[str]:
    """The options of `train`; what it makes is below `folder`."""
    config = folder.with_suffix(".yaml")
    config.write_text(world.slice(f"runs/d/m/{stage}/seed1", **changes).read_text())
    reference = world.parts(C.Stage(**read_slice(config)["stage"]))
    words = ["--config", config, "--parent", world.base, "--store", world.store, "--output", folder,
             "--tokens-per-microbatch", 400, "--reference", *reference]  # fmt: skip
    return list(map(str, words))


SHORT = {**PLAIN, "batch_size": 7, "examples": 14}


@pytest.mark.slow
def test_two_jobs_at_the_same_time_train_in_two_processes_each_as_in_one(world: World, tmp_path: Path) -> None:
    """They start together, and do not meet on a port."""
    jobs = {stage: launched(*TWO, *training(world, tmp_path / stage, stage, **SHORT)) for stage in ("kto", "dpo")}
    for stage, job in jobs.items():
        output, _ = job.communicate(timeout=240)
        assert job.returncode == 0, output[-3000:]
        one = world.train(tmp_path / "one" / stage, stage, changes=SHORT)
        two = tmp_path / stage
        assert json.loads((two / "manifest.json").read_text())["processes"] == 2
        for a, b in zip(log(one), log(two), strict=True):
            for key in {"loss", "grad_norm"} & a.keys():
                assert b[key] == pytest.approx(a[key], rel=1e-5), key
        assert_close(one, two, world.base)


LONG = {**PLAIN, "batch_size": 8, "examples": 100_000, "epochs": 1000, "checkpoint_every": 100_000}


@pytest.fixture
def running(world: World, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process], Path]]:
    """A training in two processes that would take hours, past its first step; its processes; its folder."""
    with (tmp_path / "output").open("w") as file:
        job = launched(*TWO, *training(world, tmp_path / "run", "dpo", **LONG), stdout=file)
        try:
            wait(lambda: job.poll() is not None or has_begun(tmp_path / "run"), (tmp_path / "output").read_text)
            assert job.poll() is None, (tmp_path / "output").read_text()
            yield job, trainers(job), tmp_path
        finally:
            for process in psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []:
                process.kill()
            job.kill()
            job.wait(30)


def has_begun(run: Path) -> bool:
    """Whether a step is done."""
    file = run / "checkpoints/train.jsonl"
    return file.exists() and '"train"' in file.read_text()


def wait(happened: Callable[[], bool], explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


def trainers(job: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(job.pid).children() if "halos" in child.cmdline()]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_job_fails(
    running: tuple[subprocess.Popen[str], list[psutil.Process], Path],
) -> None:
    job, processes, _ = running
    assert len(processes) == 2
    processes[1].kill()
    assert job.wait(120) != 0
    assert not any(process.is_running() for process in processes)


@pytest.mark.slow
def test_a_signal_reaches_every_process_and_they_leave_a_checkpoint(
    running: tuple[subprocess.Popen[str], list[psutil.Process], Path],
) -> None:
    job, processes, folder = running
    assert not list((folder / "run/checkpoints").glob("step*"))
    job.send_signal(signal.SIGTERM)
    assert job.wait(120) != 0
    assert not any(process.is_running() for process in processes)
    steps = log(folder / "run")[-1]["step"]
    assert f"stopped by a signal after step {steps} of" in (folder / "output").read_text()
    assert [path.name for path in (folder / "run/checkpoints").glob("step*")] == [f"step{steps}"]
