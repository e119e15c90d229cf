"""The grid itself: whether it can be read, and what its jobs ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator

from halos.doctor.lines import ABSENT, OK, TO_DO, Line, check
from halos.doctor.setup import Setup
from halos.errors import HalosError
from halos.study.checks import (
    check_classifiers,
    check_files,
    check_keys,
    check_splits,
    check_views,
    check_weights,
    servers,
)


@check("grid")
def grid(setup: Setup) -> Iterator[Line]:
    """The grid, by the checks that the workflow makes at its start."""
    study = setup.read()
    if study is None:
        yield Line("grid", ABSENT, f"no {setup.config} here, so nothing is known of what a grid needs; run from the "
                   "project's folder, or name one by --config")  # fmt: skip
        return
    found = []
    for wanted in (check_files, check_splits, check_views, check_weights, check_classifiers):
        try:
            wanted(study)
        except HalosError as error:
            found.append(Line("grid", TO_DO, str(error)))
    yield from found
    if not found:
        nodes = max(resources.nodes for resources in setup.resources.values())
        where = f"ask for up to {setup.gpus} GPUs" if setup.gpus else "run on the CPU"
        where += f", on {nodes} nodes" if nodes > 1 else ""
        cells = len(study.cells) + len(study.reward_models)
        yield Line("grid", OK, f"{study.grid}: {cells} cells; its jobs {where}")


@check("API keys")
def keys(setup: Setup) -> Iterator[Line]:
    """The keys of the servers that judge and label, which are never printed."""
    if setup.study is None:
        return
    asked = servers(setup.study)
    if not asked:
        yield Line("API keys", ABSENT, "no judge or labeller of the grid asks a server")
        return
    check_keys(setup.study)
    words = {True: "is set", False: "is not set, which a server of your own may allow"}
    found = [f"{where}: {s.key_variable} {words[bool(os.environ.get(s.key_variable))]}" for where, s in asked.items()]
    yield Line("API keys", OK, "; ".join(found))
