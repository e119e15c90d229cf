"""People as a judge of the workflow: it waits for votes, counts them, and counts again when there are more."""

from __future__ import annotations

import json

from halos.annotate.ballot import open_ballot
from halos.evaluate.judging.votes import Vote, add_vote
from halos.study.catalogue import load
from halos.study.paths import Paths
from halos.study.study import Study
from tests.workflow.conftest import CATALOGUE, Project


def test_the_workflow_waits_for_votes_and_counts_new_ones(quick: Project) -> None:
    quick.edit({
        "judges.people": {"kind": "human", "prompts": "p", "human": {"limit": 3}},
        "grids.both": {**CATALOGUE["grids"]["both"], "methods": ["base"], "judges": ["people"], "tasks": []},
    })  # fmt: skip
    said = quick.snakemake("judged").failed().output
    assert "run `python -m halos annotate --judge people`, and then the same command again" in said
    ballot = open_ballot(Study(load(quick.path / "config.yaml")), Paths(quick.results), "people")
    assert len(ballot.comparisons) == 3
    files = [quick.path / "annotations/people" / f"{name}.jsonl" for name in ("ann", "bob", "eve")]
    for key in ballot.comparisons:
        add_vote(files[0], Vote(comparison=key, vote="tie"))
    run = quick.snakemake("judged", "results/reports/both/methods.md").ok()
    assert run.rules["ask"] == 1
    file = quick.results / "runs/d/m/base/seed1/judged/people.json"
    assert [json.loads(file.read_text())[name] for name in ("n", "ties")] == [3, 3]
    assert "the majority of people's votes" in (quick.results / "reports/both/methods.md").read_text()
    assert not quick.dry("judged").jobs
    for key in ballot.comparisons:
        for other in files[1:]:
            add_vote(other, Vote(comparison=key, vote="1"))
    assert quick.snakemake("judged").ok().rules["ask"] == 1
    assert json.loads(file.read_text())["ties"] == 0
