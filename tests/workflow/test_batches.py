"""What a command asks for of each cell, and so what is answered together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.paths import Paths
from halos.study.study import Study
from halos.workflow.batches import Batches
from tests.conftest import CATALOGUE

DPO, BASE = Cell("d", "m", "sft-dpo", 1), Cell("d", "m", "base", 1)
FOLDER = f"results/{DPO.folder}"


def batches(tmp_path: Path, *targets: str) -> Batches:
    """Those of a command, in a results tree where nothing is made."""
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["prompts"] |= {"q": {"limit": 2}, "r": {"limit": 3}}
    content["tasks"]["u"] = {"local": "best_response"}
    content["judges"]["k"] = {"kind": "verifier", "verifier": "toy", "prompts": "r", "baseline": {"method": "base"}}
    content["grids"]["g"] |= {"methods": ["sft-dpo"], "prompts": ["q"], "judges": ["j", "k"], "tasks": ["t", "u"]}
    settings = SimpleNamespace(targets=frozenset(targets), forcerun=(), forcetargets=False, forceall=False)
    workflow: Any = SimpleNamespace(dag_settings=settings)
    return Batches(Study(C.load(content)), Paths(tmp_path), workflow if targets else None)


def together(found: Batches, cell: Cell, kind: str, name: str) -> dict[str, set[str]]:
    """What is answered with an item, by kind."""
    return {
        kind: set(entries) for kind, entries in found.content(found.config(cell, found.key(cell, kind, name))).items()
    }


@pytest.mark.parametrize(
    ("targets", "prompts", "tasks"),
    [
        ((), {"p", "q", "r"}, {"t", "u"}),
        (("all",), {"p", "q", "r"}, {"t", "u"}),
        (("results/crates/g.zip",), {"p", "q", "r"}, {"t", "u"}),
        (("tables",), {"p", "q", "r"}, {"t", "u"}),
        (("results/figures/g/win_rate.svg",), {"p", "r"}, {"t", "u"}),
        (("samples",), {"p", "q", "r"}, None),
        (("judged",), {"p", "r"}, None),
        (("judged", "tasks"), {"p", "r"}, {"t", "u"}),
        ((f"{FOLDER}/judged/j.json", f"{FOLDER}/tasks/u.json"), {"p"}, {"u"}),
        ((f"{FOLDER}/samples/p.jsonl",), {"p"}, None),
        (("train",), {"p"}, None),
    ],
)
def test_a_batch_has_what_the_command_asks_for(
    tmp_path: Path, targets: tuple[str, ...], prompts: set[str], tasks: set[str] | None
) -> None:
    wanted = {"prompts": prompts, **({} if tasks is None else {"tasks": tasks})}
    assert together(batches(tmp_path, *targets), DPO, "prompts", "p") == wanted


def test_a_baseline_is_asked_for_the_prompts_that_it_is_compared_on(tmp_path: Path) -> None:
    assert together(batches(tmp_path, "all"), BASE, "prompts", "r") == {"prompts": {"r"}}


def test_what_nobody_asks_for_is_a_batch_of_its_own(tmp_path: Path) -> None:
    found = batches(tmp_path, "tasks")
    assert together(found, DPO, "prompts", "q") == {"prompts": {"q"}}
    assert together(found, DPO, "tasks", "t") == {"tasks": {"t", "u"}}


def test_the_key_of_a_batch_goes_by_its_settings(tmp_path: Path) -> None:
    one, other = batches(tmp_path, "all"), batches(tmp_path, "all")
    assert one.key(DPO, "tasks", "t") == one.key(DPO, "prompts", "q") == other.key(DPO, "tasks", "t")
    assert one.key(DPO, "tasks", "t") != batches(tmp_path, "tasks").key(DPO, "tasks", "t")
