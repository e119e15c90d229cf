"""A real Slurm on one machine: a controller and two nodes with GPUs that are not there.

Files, processes, network and host name are the cluster's own (Linux namespaces). The first process in there is this
file run as a script; it ends when its standard input closes, as it does however the tests end, and the kernel then ends
all the others. Needs root, and Debian's munge, slurmctld, slurmd, slurm-client and iproute2.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

HOST = "head"
NODES = ("n1", "n2")
GPUS, CPUS, MEM_MB = 4, 8, 32_000
"""Of each node; more cores than the machine may have, so that jobs run side by side."""

NAMESPACES = ("--mount", "--pid", "--net", "--uts")
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "ip", "unshare", "nsenter")
TIMEOUT = 60

KEY = Path("/run/munge/key")
MUNGED = ("munged", "--foreground", f"--key-file={KEY}", "--seed-file=/run/munge/seed", "--log-file=/run/munge/log")

CONF = f"""\
ClusterName=test
SlurmctldHost={HOST}
SlurmUser=root
# a job may be started again once its old credential has expired: after seconds instead of two minutes
AuthInfo=cred_expire=10
StateSaveLocation={{folder}}/state
SlurmdSpoolDir={{folder}}/%n
SlurmctldPidFile={{folder}}/slurmctld.pid
SlurmdPidFile={{folder}}/%n.pid
# control groups need systemd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
# take the cores and memory below for granted
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
# a node that does not answer is down after seconds, and back as soon as it answers
SlurmdTimeout=10
# a minute's grace: a busy machine may take as long to start a job as the shortest limit there is
OverTimeLimit=1
ReturnToService=2
# finished jobs can be looked at
MinJobAge=3600
NodeName=DEFAULT CPUs={CPUS} CoresPerSocket={CPUS} RealMemory={MEM_MB} Gres=gpu:{GPUS}
NodeName={NODES[0]} NodeHostname={HOST} Port=7001
NodeName={NODES[1]} NodeHostname={HOST} Port=7002
PartitionName=gpu Nodes=ALL Default=YES
"""


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the Slurm cluster of the tests needs root on Linux"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"the Slurm cluster of the tests needs {', '.join(absent)}: .ci/run installs it"
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, text=True, timeout=TIMEOUT)
    return f"namespaces may not be made here: {tried.stderr.strip()}" if tried.returncode else None


# ---- seen from the tests ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Args:
        init: the id of the first process of its namespaces.
    """

    init: int

    def command(self, command: list[str], cwd: Path) -> list[str]:
        """The command that runs `command` on the cluster's head, in the folder `cwd`."""
        enter = ["nsenter", f"--target={self.init}", *NAMESPACES, "--"]
        return [*enter, "env", f"--chdir={cwd}", *command]

    def run(self, command: list[str], cwd: Path = Path("/"), timeout: float = TIMEOUT) -> str:
        """What a command prints on the cluster's head.

        Raises:
            AssertionError: it fails.
        """
        done = subprocess.run(self.command(command, cwd), capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.init).children(recursive=True)

    def kill_node(self, node: str) -> None:
        """What a power cut does: the node's daemon and everything that its jobs run are gone."""
        lost = [process for process in self.processes() if _node(process) == node]
        daemons = [process for process in lost if process.name() == "slurmd"]
        steps = {p for process in lost if (p := process.parent()) and p.name() == "slurmstepd"}
        for process in (*daemons, *steps, *lost):  # so ordered, nobody is left to report that another has ended
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def start_node(self, node: str) -> None:
        self.run(["slurmd", "-N", node])


def _node(process: psutil.Process) -> str | None:
    """The node that a process belongs to, as its daemon or as a part of a job."""
    try:
        command = process.cmdline()
        return command[-1] if command[:1] == ["slurmd"] else process.environ().get("SLURMD_NODENAME")
    except psutil.Error:
        return None


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """A cluster that keeps its state and logs in `folder`.

    Raises:
        AssertionError: it does not come up; with the ends of its logs.
    """
    with (folder / "init.log").open("wb") as log:
        outer = subprocess.Popen(
            ["unshare", *NAMESPACES, "--fork", "--mount-proc", "--kill-child", sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    assert outer.stdin is not None
    assert outer.stdout is not None
    try:
        said = outer.stdout.readline()
        assert said == "ready\n", "\n".join(f"{p.name}\n{p.read_text()[-2000:]}" for p in sorted(folder.glob("*.log")))
        yield Cluster(psutil.Process(outer.pid).children()[0].pid)
    finally:
        outer.stdin.close()
        outer.wait(TIMEOUT)
        outer.stdout.close()


# ---- inside -------------------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    """Start the cluster, say `ready`, and stay until nobody listens any more."""
    _configure(folder)
    daemons = (MUNGED, ("slurmctld", "-D"), *(("slurmd", "-D", "-N", node) for node in NODES))
    for number, daemon in enumerate(daemons):
        with (folder / f"{daemon[0]}{number}.log").open("wb") as log:
            subprocess.Popen(daemon, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    wanted = [f"{node} idle" for node in NODES]
    for _ in range(4 * TIMEOUT):
        seen = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%N %T"], capture_output=True, text=True)
        if seen.stdout.splitlines() == wanted:
            print("ready", flush=True)
            break
        time.sleep(0.25)
    else:
        sys.exit(f"the nodes are not ready: {seen.stdout}{seen.stderr}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whatever loses its parent ends up here, and is to leave no zombie
    sys.stdin.read()


def _configure(folder: Path) -> None:
    """Network, host name and files, none of which anyone outside sees."""
    socket.sethostname(HOST)
    _do("ip", "link", "set", "lo", "up")
    _do("ip", "address", "add", "10.0.0.1/32", "dev", "lo")  # with 127.0.0.1 alone, Slurm resolves no name
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {HOST} {' '.join(NODES)}\n")
    _do("mount", "--bind", str(hosts), "/etc/hosts")
    # where programs look by themselves: a job of Snakemake loses the variable that would name another place
    for place in ("/etc/slurm", "/run"):
        _do("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)
    Path("/run/munge").mkdir()
    KEY.touch(mode=0o600)
    KEY.write_bytes(os.urandom(128))
    for name in ("state", *NODES):
        (folder / name).mkdir()
    for number in range(GPUS):
        (folder / f"gpu{number}").symlink_to("/dev/null")  # a GPU is a device file to Slurm
    Path("/etc/slurm/slurm.conf").write_text(CONF.format(folder=folder))
    Path("/etc/slurm/gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")


def _do(*command: str) -> None:
    subprocess.run(command, check=True, timeout=TIMEOUT, stdout=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
