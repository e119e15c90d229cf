"""The Hugging Face hub: whether it answers, and what of the grid is in its cache or may be downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from halos.doctor.answers import REFUSED
from halos.doctor.lines import ABSENT, OK, TO_DO, Line, check, unless
from halos.doctor.probe import FAILURE
from halos.doctor.setup import Setup

PATIENCE = 15.0
"""Seconds for the hub to answer about everything."""


def offline_by() -> str | None:
    """The environment variable that sets the hub's libraries to offline, if one does."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def cached(setup: Setup) -> dict[str, Any]:
    """What the grid reads from the hub (halos.doctor.answers.cached)."""
    probe = setup.hub_cache()
    return {} if probe is None else probe.answers()


@check("hub")
def hub(setup: Setup) -> Iterator[Line]:
    """The hub, the token, and each model and dataset of the grid on it."""
    entries = cached(setup)
    failure = entries.pop(FAILURE, None)
    missing = {repository for repository, state, _ in entries.values() if state == "missing"}
    said: dict[str, Any] = {}
    if variable := "--offline" if setup.offline else offline_by():
        yield Line("hub", unless(bool(missing)), f"not asked ({variable})")
    else:
        online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
        said = setup.probe("hub", *sorted(missing), seconds=PATIENCE, **online).answers()
        if "reached" in said:
            yield Line("hub", OK, f"{said['reached']} answers")
            yield _token(said, bool(missing))
        else:
            remedy = ": see that this machine has a network, and HTTPS_PROXY if it needs one" if missing else ""
            yield Line("hub", unless(bool(missing)), f"it does not answer ({said.get(FAILURE)}){remedy}")
    if failure is not None:
        yield Line("hub", ABSENT, f"what the grid reads from it could not be found out: {failure}")
    for where, (repository, state, sentence) in entries.items():
        if state == "broken":
            yield Line(where, TO_DO, sentence)
        else:
            yield Line(where, *_access(repository, state == "cached", said))
    if setup.study is not None and not entries and failure is None:
        yield Line("hub", ABSENT, "the grid's models and datasets are not on it")


def _token(said: dict[str, Any], needed: bool) -> Line:
    if "token" not in said:
        return Line("hub token", ABSENT, "none; gated models and datasets need one in HF_TOKEN, or `hf auth login`")
    if said["token"] is None:
        return Line("hub token", OK, "there, and the hub knows it")
    if said["token"] == REFUSED:
        return Line("hub token", unless(needed), "there, but the hub does not know it: set HF_TOKEN again")
    return Line("hub token", ABSENT, f"there, but the hub could not be asked about it ({said['token']})")


def _access(repository: str, in_cache: bool, said: dict[str, Any]) -> tuple[str, str]:
    """State and text of one model or dataset of the grid."""
    name = repository.split("/", 1)[1]
    if in_cache:
        return OK, f"{name} is in the cache"
    if repository not in said:
        return TO_DO, (f"{name} is not in the cache (HF_HOME), and the hub was not asked: start where there is a "
                       "network, or copy the cache of a machine that has one")  # fmt: skip
    refusal = said[repository]
    if refusal is None:
        return OK, f"{name} may be read, and will be downloaded"
    page = f"{said['reached']}/{repository.removeprefix('models/')}"
    if refusal.startswith("GatedRepoError"):
        return TO_DO, f"{name} is gated and this account may not read it: ask for access at {page}, and set HF_TOKEN"
    if refusal.startswith("RepositoryNotFoundError"):
        return TO_DO, f"there is no {name} on the hub, or it is private: check the name and HF_TOKEN"
    return TO_DO, f"{name} is not in the cache, and cannot be asked for: {refusal}"
