"""`python -m halos.launch --nodes N --gpus G --parallel ddp|fsdp --cpus C VERB ...`: a verb, one process for each GPU.

A single process is the verb itself. Several of one node are started by accelerate. For several nodes, srun starts this
module again on each of them, where it goes on to accelerate. Each step takes the place of the one before (exec), so
that a signal to the job finds what runs, and the exit code is that of the verb. A node without GPUs gets one process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from halos.errors import HalosError

PROCESSES = "HALOS_PROCESSES"
"""Tells each process in its environment how many there have to be."""
PROFILES = Path(__file__).resolve().parents[2] / "profiles/accelerate"
PATIENCE = 600
"""Seconds to write a checkpoint after a signal. Torch's launcher would kill after 30, which the weights and optimiser
state of a large model may need; what the scheduler grants still holds."""


@dataclass(frozen=True)
class Launch:
    """What to start.

    Attributes:
        nodes: how many nodes.
        gpus: GPUs of each node; 0 for one process on its CPU.
        parallel: whether each process holds all weights (ddp) or its shard (fsdp).
        cpus: cores of each node.
        verb: a verb of `python -m halos`, and its options.
        head: host on which processes meet, where several nodes have been told to start.
        port: where on that host.
    """

    nodes: int
    gpus: int
    parallel: str
    cpus: int
    verb: tuple[str, ...]
    head: str | None = None
    port: int | None = None

    @property
    def of_a_node(self) -> int:
        """Processes of each node."""
        return max(self.gpus, 1)

    @property
    def processes(self) -> int:
        return self.nodes * self.of_a_node

    def command(self, environment: Mapping[str, str]) -> list[str]:
        """The command that takes the place of this one.

        Raises:
            HalosError: several nodes are wanted outside of a Slurm job.
        """
        if self.processes == 1:
            return [sys.executable, "-m", "halos", *self.verb]
        if self.nodes == 1:
            return self._accelerate("localhost", hold_port(), rank=0)
        if self.head is not None and self.port is not None:
            return self._accelerate(self.head, self.port, rank=int(environment["SLURM_NODEID"]))
        if "SLURM_JOB_ID" not in environment or shutil.which("srun") is None:
            raise HalosError(
                f"a training on {self.nodes} nodes has to be a Slurm job: run `snakemake --profile slurm`, or set "
                "`nodes: 1` in the resources of the model"
            )
        return self._srun(socket.gethostname(), hold_port())

    def _accelerate(self, head: str, port: int, rank: int) -> list[str]:
        options = {
            "config_file": PROFILES / f"{self.parallel}.yaml",
            "num_machines": self.nodes,
            "machine_rank": rank,
            "num_processes": self.processes,
            "num_cpu_threads_per_process": max(1, self.cpus // self.of_a_node),
            "main_process_ip": head,
            "main_process_port": port,
        }
        return [sys.executable, "-m", "accelerate.commands.launch", *_words(options), "-m", "halos", *self.verb]

    def _srun(self, head: str, port: int) -> list[str]:
        """A batch script runs on the first node of its job, as the first of the tasks does: this host is the head."""
        step = {
            "nodes": self.nodes,
            "ntasks": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.cpus,
            "kill-on-bad-exit": 1,
        }
        again = {name: getattr(self, name) for name in ("nodes", "gpus", "parallel", "cpus")}
        launch = [sys.executable, "-m", "halos.launch", *_words({**again, "head": head, "port": port}), *self.verb]
        return ["srun", *_words(step), *launch]

    def variables(self) -> dict[str, str]:
        """What the command's environment has beside what is there."""
        if self.processes == 1:
            return {PROCESSES: "1"}
        on_cpu = {} if self.gpus else {"ACCELERATE_USE_CPU": "true"}
        return {PROCESSES: str(self.processes), "PET_SHUTDOWN_TIMEOUT": str(PATIENCE), **on_cpu}


def _words(options: Mapping[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def hold_port() -> int:
    """A free port of this host, which nothing else is given before the command that follows listens on it.

    The socket stays open in that command. It never listens, and both allow reuse, so that it is in nobody's way but
    that of those who ask for any port.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    held.set_inheritable(True)
    port: int = held.getsockname()[1]
    held.detach()
    return port


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return int(text)


def parse(argv: list[str] | None = None) -> Launch:
    parser = argparse.ArgumentParser(
        prog="python -m halos.launch", description="Run a verb of `python -m halos` in one process for each GPU."
    )
    parser.add_argument("--nodes", type=_count, default=1, help="nodes; several have to be those of a Slurm job")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each node; 0 for one process on its CPU")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp", help="all weights in each, or its shard")
    parser.add_argument("--cpus", type=_count, default=1, help="cores of each node")
    parser.add_argument("--head", help="host on which processes of several nodes meet; this one, where none is given")
    parser.add_argument("--port", type=int, help="its port")
    parser.add_argument("verb", nargs=argparse.REMAINDER, metavar="VERB ...", help="see `python -m halos --help`")
    arguments = parser.parse_args(argv)
    if not arguments.verb:
        parser.error("a verb of `python -m halos` is missing")
    return Launch(**{**vars(arguments), "verb": tuple(arguments.verb)})


def main(argv: list[str] | None = None) -> NoReturn:
    """Becomes the command, or ends with the reason why not."""
    launch = parse(argv)
    try:
        command = launch.command(os.environ)
    except HalosError as error:
        sys.exit(f"error: {error}")
    os.environ.update(launch.variables())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
