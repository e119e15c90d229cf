"""Published counts, taken as if they were a grid's own, give the published numbers to the digit."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from halos.errors import HalosError
from halos.report import tables
from halos.report.results import Results
from halos.report.subjects import published
from halos.report.subjects.size import Size
from tests.report.conftest import write

RUNS = published.load("archangel")
STUDY = RUNS[RUNS["run"].str.startswith("archangel_")]


def digits(values):
    return [f"{value:.4f}" for value in values]


def test_every_published_rate_and_interval_comes_of_its_counts():
    assert len(RUNS) == 102
    for ours, printed in (("win_rate", "printed_win_rate"), ("low", "printed_low"), ("high", "printed_high")):
        assert digits(RUNS[ours]) == digits(RUNS[printed])
    assert (RUNS["wins"] + RUNS["losses"] + RUNS["ties"]).tolist() == RUNS["n"].tolist()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A grid with the counts of the study of the paper: 7 models and 12 methods."""
    at = STUDY.set_index(["model", "method"])
    models, methods = (tuple(dict.fromkeys(STUDY[key])) for key in ("model", "method"))

    def counts(model, method):
        return tuple(int(at.loc[(model, method), key]) for key in ("wins", "losses", "ties"))

    whole = {"keep_desirable": 1.0, "keep_undesirable": 1.0, "one_per_prompt": False}
    stages = dict.fromkeys(("csft", "ppo"), whole)
    stages["kto"] = {**whole, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    root = tmp_path_factory.mktemp("study")
    config, results = write(root, models=models, methods=methods, seeds=(1,), tasks=(), counts=counts,
                            published="archangel", stages=stages, parameters=None)  # fmt: skip
    tables.make(config, results=results, output=root / "tables")
    return Results(config, results), root / "tables"


def test_tables_made_of_the_published_counts_hold_the_published_numbers(study):
    cells = pd.read_csv(study[1] / "cells.csv").merge(STUDY, on=["model", "method"])
    assert len(cells) == 84
    assert digits(cells["toy.win_rate"]) == digits(cells["printed_win_rate"])
    assert digits(cells["toy.wins_of_all"]) == digits(cells["printed_win_rate"])
    assert digits(cells["toy.wins_of_all_low90"]) == digits(cells["printed_low"])
    assert digits(cells["toy.wins_of_all_high90"]) == digits(cells["printed_high"])


def test_ours_stands_beside_the_published_with_the_difference(study):
    beside = pd.read_csv(study[1] / "published.csv").merge(STUDY, on=["model", "method", "run"])
    assert len(beside) == 84
    assert digits(beside["ours"]) == digits(beside["published"]) == digits(beside["printed_win_rate"])
    assert digits(beside["published_low"]) == digits(beside["printed_low"])
    assert np.allclose(beside["difference"], 0)
    assert (beside["difference_low"] < -0.01).all()
    assert (beside["difference_high"] > 0.01).all()
    text = (study[1] / "published.md").read_text()
    assert re.search(r"llama-7b +\| SFT \+ KTO +\| 0\.480 \[0\.437, 0\.524\] \| 0\.480 \[0\.443, 0\.518\] \|", text)


def test_the_figure_of_the_paper_shows_what_it_says(study):
    """On the Llamas KTO after SFT wins more than DPO after SFT; on the Pythias it gains nothing over SFT alone."""
    frame = Size().frame(study[0])
    rate = frame.set_index(["model", "method"])["mean"]
    assert frame["family"].unique().tolist() == ["pythia", "llama"]
    for model in ("llama-7b", "llama-13b", "llama-30b"):
        assert rate[model, "sft-kto"] > rate[model, "sft-dpo"]
    assert np.mean([rate[m, "sft"] - rate[m, "sft-kto"] for m in ("pythia-1.4b", "pythia-2.8b", "pythia-6.9b")]) > 0


def test_published_win_rates_are_drawn_by_one_verb(tmp_path):
    published.draw(tmp_path / "figure")
    drawn = pd.read_csv(tmp_path / "figure.csv")
    assert sorted(drawn["run"]) == sorted(STUDY["run"])
    svg = (tmp_path / "figure.svg").read_text()
    assert all(text in svg for text in ("Pythia", "Llama", "SFT + KTO", "6.9B", "30B"))
    with pytest.raises(HalosError, match="no published results called 'archangle'; did you mean 'archangel'"):
        published.draw(tmp_path / "figure", "archangle")


@pytest.mark.parametrize(
    ("model", "losses", "settings", "run"),
    [
        ("huggyllama/llama-13b", ["sft", "dpo"], {}, "archangel_sft+dpo_llama13b"),
        ("EleutherAI/pythia-1.4b", [], {}, "archangel_unaligned_pythia1-4b"),
        ("llama-7b", ["sft", "orpo"], {}, None),
        ("my-llama", ["sft"], {}, None),
    ],
)
def test_a_cell_is_found_by_its_model_and_losses(model, losses, settings, run):
    found = published.match(RUNS, model, losses, settings)
    assert (found and found["run"]) == run


def test_a_run_with_other_settings_is_no_match():
    kto = {"keep_desirable": 1.0, "keep_undesirable": 1.0, "desirable_weight": 1.0, "undesirable_weight": 1.0,
           "one_per_prompt": False}  # fmt: skip

    def run(**changed):
        found = published.match(RUNS, "llama-7b", ["kto"], {**kto, **changed})
        return found and found["run"]

    assert run() == "archangel_kto_llama7b"
    assert run(desirable_weight=1.33) == "fracdata_kto_llama7b_FD1.0_WD1.33_FU1.0_WU1.0"
    assert run(keep_undesirable=0.05, undesirable_weight=15.04) == "fracdata_kto_llama7b_FD1.0_WD1.0_FU0.05_WU15.04"
    assert run(keep_undesirable=0.05) is None
    assert run(desirable_weight=1.1) is None


@pytest.mark.parametrize(
    ("stages", "rows"),
    [
        ({"dpo": {"sft_weight": 0.0, "humanline": False}, "slic": {"sft_weight": 0.1}}, {"dpo", "slic", "slic-dpo"}),
        ({"dpo": {"sft_weight": 0.5}}, {"slic"}),
        ({"dpo": {"humanline": True}}, {"slic"}),
        ({"slic": {"margin_weight": 1.0}}, {"dpo"}),
        ({"dpo": {"sync_reference": 8}}, {"slic"}),
    ],
)
def test_a_stage_that_trains_something_beside_its_loss_is_not_published(stages, rows, tmp_path):
    """DPO with sft_weight is RPO; SLiC's own is a part of it. What a parent trained counts as well."""
    methods = ("dpo", "slic", "slic-dpo")
    config, results = write(tmp_path, models=("llama-7b",), methods=methods, seeds=(1,), tasks=(), score=lambda *_: 1.0,
                            published="archangel", stages=stages, parameters=None)  # fmt: skip
    runs = pd.concat([RUNS, RUNS[RUNS["method"] == "sft-dpo"].assign(method="slic-dpo")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load", lambda name: runs)
        frame = published.Published().frame(Results(config, results))
    assert set(frame["method"]) == rows
