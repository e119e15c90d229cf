"""Launcher of a verb of `python -m halos` on GPUs of its own, with one process for each.

    python -m halos.distributed.launch --nodes N --gpus G --parallel ddp|fsdp --cpus C VERB ...
    python -m halos.distributed.launch --one-process --gpus G VERB ...

On one node it first waits for GPUs that no other job has. A single process runs the verb directly. Several processes of
one node are started by accelerate. For several nodes, srun starts this module again on each node, which then starts
accelerate. That works in a batch job and, by hand, in the shell of `salloc` or on any node of a job. Each step replaces
its own process (exec), so that signals to the job reach the program that runs, and the exit code is the verb's. A node
without GPUs gets one process.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import randrange
from typing import Any, NoReturn

from halos.distributed import devices
from halos.errors import HalosError

MODULE = "halos.distributed.launch"
PROCESSES = "HALOS_PROCESSES"
"""Environment variable that tells each process how many processes were launched."""
PROFILES = Path(__file__).resolve().parents[2] / "profiles/accelerate"
PATIENCE = 600
"""Seconds that processes have to write a checkpoint after a signal, unless the scheduler gives them less. By default
torch's launcher kills them after 30, too soon for the weights and optimiser state of a large model."""


@dataclass(frozen=True)
class Launch:
    """The processes to start.

    Attributes:
        nodes: number of nodes.
        gpus: GPUs of each node; 0 for one process on its CPU.
        parallel: `ddp` if each process holds all weights, `fsdp` if it holds a shard.
        cpus: CPU cores of each node.
        verb: a verb of `python -m halos`, and its options.
        head: host at which the processes of several nodes meet; None for the first node of srun's step.
        port: port on that host; None before srun has started this module on each node.
        one_process: whether a node has one process, which uses all its GPUs.
        offload: whether shards are kept in main memory, of a single process, too.
    """

    nodes: int
    gpus: int
    parallel: str
    cpus: int
    verb: tuple[str, ...]
    head: str | None = None
    port: int | None = None
    one_process: bool = False
    offload: bool = False

    @property
    def per_node(self) -> int:
        """Number of processes of each node."""
        return 1 if self.one_process else max(self.gpus, 1)

    @property
    def processes(self) -> int:
        """Number of processes of all nodes."""
        return self.nodes * self.per_node

    @property
    def _is_alone(self) -> bool:
        return self.processes == 1 and not self.offload

    def command(self, environment: Mapping[str, str]) -> list[str]:
        """The command that replaces this process.

        Args:
            environment: environment variables of this process.

        Raises:
            HalosError: several nodes, but this is no Slurm job.
        """
        if self._is_alone:
            return [sys.executable, "-m", "halos", *self.verb]
        if self.nodes == 1:
            return self._accelerate("localhost", hold_port(), rank=0)
        if self.port is not None:
            head = self.head or first_host(environment["SLURM_STEP_NODELIST"])
            return self._accelerate(head, self.port, rank=int(environment["SLURM_NODEID"]))
        if "SLURM_JOB_ID" not in environment or shutil.which("srun") is None:
            raise HalosError(needs_slurm(self.nodes))
        nodes = environment.get("SLURM_JOB_NUM_NODES")
        if nodes is not None and int(nodes) < self.nodes:
            raise HalosError(f"the Slurm job {environment['SLURM_JOB_ID']} has {nodes} nodes, and {self.nodes} are "
                             "asked for: ask for as many, or start a job with more")  # fmt: skip
        return self._srun(environment)

    def _accelerate(self, head: str, port: int, rank: int) -> list[str]:
        options = {
            "config_file": PROFILES / f"{self.parallel}.yaml",
            "num_machines": self.nodes,
            "machine_rank": rank,
            "num_processes": self.processes,
            "num_cpu_threads_per_process": max(1, self.cpus // self.per_node),
            "main_process_ip": head,
            "main_process_port": port,
            **({"fsdp_offload_params": "true"} if self.offload else {}),
        }
        return [sys.executable, "-m", "accelerate.commands.launch", *_words(options), "-m", "halos", *self.verb]

    def _is_head(self, environment: Mapping[str, str]) -> bool:
        """Whether task 0 of the step will run on this host, as it does where a batch script runs."""
        nodes = environment.get("SLURM_JOB_NODELIST")
        if nodes is None:  # Snakemake takes it from the script of a job
            return True
        names = (environment.get("SLURMD_NODENAME"), socket.gethostname().partition(".")[0])
        return first_host(nodes) in names and environment.get("SLURM_JOB_NUM_NODES") == str(self.nodes)

    def _srun(self, environment: Mapping[str, str]) -> list[str]:
        """The srun command. Where this host is not the head, the tasks find out which one is; its port can be held by
        nobody there, and is drawn from those that systems give to nobody who asks for any."""
        here = self._is_head(environment)
        meeting = {"head": socket.gethostname(), "port": hold_port()} if here else {"port": randrange(20000, 30000)}
        step = {
            "nodes": self.nodes,
            "ntasks": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.cpus,
            "kill-on-bad-exit": 1,
        }
        same = {name: getattr(self, name) for name in ("nodes", "gpus", "parallel", "cpus")}
        options = {**same, **meeting}
        # a step within a step, such as that of `srun --pty bash`, would wait for the end of the outer one
        overlap = ["--overlap"] if "SLURM_STEP_ID" in environment else []
        flags = ["--offload"] if self.offload else []
        return ["srun", *_words(step), *overlap, sys.executable, "-m", MODULE, *_words(options), *flags, *self.verb]

    def variables(self) -> dict[str, str]:
        """The environment variables to set for the command."""
        if self._is_alone:
            return {PROCESSES: "1"}
        on_cpu = {} if self.gpus else {"ACCELERATE_USE_CPU": "true"}
        return {PROCESSES: str(self.processes), "PET_SHUTDOWN_TIMEOUT": str(PATIENCE), **on_cpu}


def needs_slurm(nodes: int) -> str:
    """What to do where a job over several nodes is started outside of a Slurm job."""
    return (
        f"a job on {nodes} nodes has to be a Slurm job: run `snakemake --profile slurm`, or this within "
        f"`salloc --nodes {nodes}`, or set `nodes: 1` in the model's resources"
    )


def _words(options: Mapping[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm writes it: `n03` of `n[03-05,7],m1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^-,\]]+)[^\]]*\]", r"\1", first[0] if first else nodes)


def hold_port() -> int:
    """A free port of this host, reserved until the command that replaces this process listens on it.

    The socket that reserves it stays open in that command. It never listens and allows reuse of its address, so that
    the command can bind the port, while the system gives it to nobody who asks for any free port.
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def parse(argv: list[str] | None = None) -> Launch:
    """The launch that a command line asks for."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description="Run a verb of `python -m halos` in one process for each GPU."
    )
    parser.add_argument("--nodes", type=_count, default=1, help="number of nodes; several need a Slurm job")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each node; 0 for one process on its CPU")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp", help="all weights or a shard in each")
    parser.add_argument("--offload", action="store_true", help="with fsdp: keep shards in main memory")
    parser.add_argument("--cpus", type=_count, default=1, help="CPU cores of each node")
    parser.add_argument("--one-process", action="store_true", help="one process for all GPUs of the one node")
    parser.add_argument("--head", help="host at which processes of several nodes meet (default: the first)")
    parser.add_argument("--port", type=int, help="port on that host")
    parser.add_argument("verb", nargs=argparse.REMAINDER, metavar="VERB ...", help="see `python -m halos --help`")
    arguments = parser.parse_args(argv)
    if not arguments.verb:
        parser.error("a verb of `python -m halos` is missing")
    if arguments.one_process and arguments.nodes > 1:
        parser.error("--one-process is for one node")
    return Launch(**{**vars(arguments), "verb": tuple(arguments.verb)})


def main(argv: list[str] | None = None) -> NoReturn:
    """Replace this process by the command, or exit with an error message."""
    launch = parse(argv)
    try:
        taken = devices.take(launch.gpus) if launch.nodes == 1 else {}
        command = launch.command(os.environ)
    except HalosError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # while it waits for GPUs
        sys.exit(130)
    os.environ.update(launch.variables() | taken)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
