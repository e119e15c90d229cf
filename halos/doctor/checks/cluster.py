"""Slurm: its partitions beside the profile's and what the grid's jobs ask for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml

from halos.doctor.lines import ABSENT, OK, Line, check, unless
from halos.doctor.packages import ROOT
from halos.doctor.partitions import Partition, accounts
from halos.doctor.setup import Setup
from halos.errors import HalosError
from halos.models.settings import Resources

ABOUT = "Slurm profile"
PROFILE = "profiles/slurm/config.yaml"


@check("Slurm")
def slurm(setup: Setup) -> Iterator[Line]:
    """The partitions, and whether the grid's jobs fit the one that the profile names."""
    needed = any(resources.nodes > 1 for resources in setup.resources.values())
    found = setup.partitions
    if found is None:
        text = "not here" + ("; models of the grid train on several nodes: run on a cluster's login node, or set "
                             "`nodes: 1`" if needed else "")  # fmt: skip
        yield Line("Slurm", unless(needed), text)
        return
    if isinstance(found, HalosError):
        yield Line("Slurm", unless(needed), str(found))
        return
    for partition in found.values():
        limit = "no limit of time" if math.isinf(partition.minutes) else f"{partition.minutes:g} minutes"
        yield Line(
            "Slurm", OK, f"partition {partition.name}: {limit}; {'; '.join(map(str, partition.nodes)) or 'no node up'}"
        )
    yield from _profile(setup, found)


def _profile(setup: Setup, found: dict[str, Partition]) -> Iterator[Line]:
    """The profile's partition, account and limits, and the jobs of the grid in it."""
    file = ROOT / PROFILE
    if not file.is_file():
        yield Line(ABOUT, ABSENT, f"there is no {PROFILE}")
        return
    profile: dict[str, Any] = yaml.safe_load(file.read_text())
    state = unless(setup.gpus > 0 or any(resources.nodes > 1 for resources in setup.resources.values()))
    defaults, limits = profile.get("default-resources", {}), profile.get("resources", {})
    name = str(defaults.get("slurm_partition"))
    if name not in found:
        names = ", ".join(found)
        yield Line(ABOUT, state, f"there is no partition {name!r}: set slurm_partition in {PROFILE} to one of {names}")
        return
    partition = found[name]
    problems = [f"{model} asks for {lacking}: change the model's resources, or slurm_partition"
                for model, resources in setup.resources.items() for lacking in partition.lacks(resources)]  # fmt: skip
    account, own = str(defaults.get("slurm_account")), accounts()
    if own and account not in own:
        problems.append(f"slurm_account is {account!r}, and yours are {', '.join(sorted(own))}: set it")
    yield from (Line(ABOUT, state, f"{name}: {problem}") for problem in problems)
    retry = Resources(mem_gb=max(1, int(limits.get("mem_mb", 1000)) // 1000), runtime=int(limits.get("runtime", 1)))
    beyond = [*partition.lacks(retry)] if partition.nodes else []
    if beyond:
        asked = " and ".join(beyond)
        yield Line(ABOUT, ABSENT, f"{name}: a retry may ask for {asked}: lower `resources:` in {PROFILE}")
    if not problems and not beyond:
        yield Line(ABOUT, OK, f"{name} has what the grid's jobs ask for")
