"""The partitions of Slurm, and the accounts of this user."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from halos.errors import HalosError
from halos.models.settings import Resources

PATIENCE = 10
"""Seconds for Slurm to answer."""
UNUSABLE = ("down", "drain", "fail", "unknown", "inval", "maint")


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike, and not down or drained."""

    number: int
    cpus: int
    mem_mb: int
    gpus: int

    def __str__(self) -> str:
        gpus = f" and {self.gpus} GPUs" if self.gpus else ""
        return f"{self.number} nodes with {self.cpus} cores, {self.mem_mb / 1000:.0f} GB{gpus}"


@dataclass(frozen=True)
class Partition:
    """A partition, its limit of time in minutes (infinite where it has none), and its nodes."""

    name: str
    minutes: float
    nodes: tuple[Nodes, ...]

    def lacks(self, resources: Resources) -> Iterator[str]:
        """What a job asks for and the partition does not have."""
        if resources.runtime > self.minutes:
            yield f"a runtime of {resources.runtime} minutes, and the limit is {self.minutes:g}"
        if not self.nodes:
            yield "nodes, and none is up"
            return
        for what, wanted, most in (
            ("gpus", resources.gpus, max(node.gpus for node in self.nodes)),
            ("cpus", resources.cpus, max(node.cpus for node in self.nodes)),
            ("mem_gb", resources.mem_gb, max(node.mem_mb for node in self.nodes) / 1000),
            ("nodes", resources.nodes, sum(node.number for node in self.nodes)),
        ):
            if wanted > most:
                yield f"{what}: {wanted}, and the most is {most:g}"


def said(*command: str) -> str:
    """What a command of Slurm prints.

    Raises:
        HalosError: it fails or does not answer.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SINFO_")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise HalosError(f"{command[0]} does not answer within {PATIENCE} seconds: see whether Slurm is up") from None
    if done.returncode:
        why = next(iter(done.stderr.strip().splitlines()), f"code {done.returncode}")
        raise HalosError(f"{command[0]} fails: {why.removeprefix(f'{command[0]}: ')}")
    return done.stdout


def minutes(limit: str) -> float:
    """Minutes of a limit of Slurm: `infinite`, [days-]hours:minutes:seconds, or minutes:seconds."""
    if not limit[:1].isdigit():
        return math.inf
    days, _, time = limit.rpartition("-")
    parts = [*map(int, time.split(":"))]
    hours, whole, seconds = [0] * (3 - len(parts)) + parts
    return 1440 * int(days or 0) + 60 * hours + whole + seconds / 60


def partitions() -> dict[str, Partition]:
    """The partitions that Slurm shows to this account.

    Raises:
        HalosError: Slurm does not answer.
    """
    found: dict[str, Partition] = {}
    for line in said("sinfo", "--noheader", "--exact", "--format=%R|%l|%D|%c|%m|%G|%a|%T").splitlines():
        name, limit, number, cpus, memory, gres, up, state = (part.strip() for part in line.split("|"))
        gpus = sum(map(int, re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres)))
        here = found.setdefault(name, Partition(name, minutes(limit), ()))
        if up == "up" and not state.lower().startswith(UNUSABLE):
            nodes = Nodes(int(number), int(cpus.rstrip("+")), int(memory.rstrip("+")), gpus)
            found[name] = Partition(name, here.minutes, (*here.nodes, nodes))
    return found


def accounts() -> set[str]:
    """The accounts of this user; none where Slurm keeps none, or does not answer."""
    if shutil.which("sacctmgr") is None:
        return set()
    try:
        user = said("id", "--user", "--name").strip()
        return set(
            said(
                "sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=account"
            ).split()
        )
    except HalosError:
        return set()
