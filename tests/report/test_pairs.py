"""Every pair of methods: the matrix of a judge that scored, by hand, and of one that was asked; table and figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml

from halos.report import figures, tables
from halos.report.results import WIN, Results
from halos.report.subjects.pairs import NOT_LINKED, STRENGTH, Pairs
from tests.report.conftest import judgement


@pytest.fixture
def made(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    tables.make(config, results=results, output=tmp_path / "tables")
    return tmp_path / "tables"


def settings(config, **changes):
    """The grid's slice with other pairs or another margin of the judge `toy`."""
    content = yaml.safe_load(config.read_text())
    content["compared"]["toy"] |= changes
    config.write_text(yaml.safe_dump(content))


def test_scores_that_were_given_are_compared_without_another_judgement(made):
    """The tree's methods get so many of 8 prompts right, from the first: base 0 and 0, sft 2 and 4, sft-kto 6 and 7,
    dpo 1 and 3, with seed 1 and with seed 2. Where both are right or both wrong it is a tie, half a win."""
    pairs = pd.read_csv(made / "pairs.csv").set_index(["method", "against"])
    rates = pairs.loc[pairs["measure"] == WIN, "mean"]
    assert rates.to_dict() == {
        ("base", "sft"): 0.5 - 3 / 16, ("base", "sft-kto"): 0.5 - 6.5 / 16, ("base", "dpo"): 0.5 - 2 / 16,
        ("sft", "sft-kto"): 0.5 - 3.5 / 16, ("sft", "dpo"): 0.5 + 1 / 16, ("sft-kto", "dpo"): 0.5 + 4.5 / 16,
    }  # fmt: skip
    strength = pairs.loc[pairs["measure"] == STRENGTH]
    assert list(strength.index) == [(method, "all") for method in ("base", "sft", "sft-kto", "dpo")]
    assert strength["mean"].sum() == pytest.approx(0, abs=1e-9)
    assert list(strength.sort_values("mean").index.get_level_values(0)) == ["base", "dpo", "sft", "sft-kto"]
    assert set(pairs["seeds"]) == {2}
    assert set(pairs["prompts"]) == {8}
    assert ((pairs["low"] <= pairs["mean"]) & (pairs["mean"] <= pairs["high"])).all()


def test_the_page_ranks_methods_and_shows_the_matrix_from_both_sides(made):
    text = (made / "pairs.md").read_text()
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:6]] == ["SFT + KTO", "SFT", "DPO (0.1)", "Base"]
    matrix = rows[6:]
    assert matrix[0] == ["Method", "Base", "SFT", "SFT + KTO", "DPO (0.1)"]
    assert matrix[2][1:] == ["–", "0.31", "0.09", "0.38"]
    assert [row[1] for row in matrix[2:]] == ["–", "0.69", "0.91", "0.62"]
    assert "a tie counting half" in text
    assert r"\label{tab:pairs-2}" in (made / "pairs.tex").read_text()


def test_scores_within_the_margin_are_a_tie(tmp_path, write_tree):
    config, results = write_tree(tmp_path, score=lambda method, seed, prompt: 0.4 if method == "sft" else 0.3)
    settings(config, tie_margin=0.1)
    values = Results(config, results).pair_values("toy", "toy", "tiny")
    assert values.shape == (6, 2, 9)
    assert np.isnan(values[:, :, 8]).all()  # of the ninth response the judge could not give a score
    assert (values[:, :, :8] == 0.5).all()
    settings(config, tie_margin=0.05)
    values = Results(config, results).pair_values("toy", "toy", "tiny")
    assert [np.nanmean(values[k]) for k in range(6)] == [0.0, 0.5, 0.5, 1.0, 1.0, 0.5]


def test_pairs_that_are_named_are_compared_alone(tmp_path, write_tree):
    config, results = write_tree(tmp_path, compare=[["sft-kto", "sft"], ["sft", "sft-dpo"]])
    frame = Pairs().frame(Results(config, results))
    assert list(frame["method"]) == ["sft-kto", "sft", "sft-kto"]  # a pair, and the strengths of both; no sft-dpo here
    assert frame.loc[0, "mean"] == 0.5 + 3.5 / 16


def test_methods_that_no_pair_links_have_win_rates_and_no_strengths(tmp_path, write_tree):
    config, results = write_tree(tmp_path, compare=[["sft-kto", "sft"], ["dpo", "base"]])
    tables.make(config, results=results, output=tmp_path / "tables")
    assert set(pd.read_csv(tmp_path / "tables/pairs.csv")["measure"]) == {WIN}
    assert NOT_LINKED in (tmp_path / "tables/pairs.md").read_text()
    figures.make(config, results=results, output=tmp_path / "figures", only=["pairs"])


def test_samples_are_compared_one_by_one_and_averaged_by_prompt(tmp_path, write_tree):
    """A method's best of two samples is not compared with the other's worst."""
    config, results = write_tree(tmp_path, methods=("sft", "dpo"), seeds=(1,))
    for method, scores in (("sft", (1.0, 0.0)), ("dpo", (0.5, 0.5))):
        rows = [{"prompt_id": "p", "sample": k, "candidate_score": s, "preference": 1.5} for k, s in enumerate(scores)]
        path = results / f"runs/toy/tiny/{method}/seed1/judged/toy.json"
        judgement("verifier", rows, n=2, wins=0, losses=0, ties=2, win_rate=0.5).write(path)
    assert Results(config, results).pair_values("toy", "toy", "tiny").tolist() == [[[0.5]]]


def asked(win, n=8):
    """A judgement of a judge that was asked about two methods, which prefers the first by so much on each prompt."""
    rows = [{"prompt_id": f"p{i}", "preference": None if win(i) is None else 1 + win(i)} for i in range(n)]
    return judgement("openai", rows, n=n, wins=0, losses=0, ties=0, win_rate=0.5, ties_as="neither")


def test_a_judge_that_was_asked_about_pairs_is_read_from_their_files(tmp_path, write_tree):
    config, results = write_tree(tmp_path, counts=lambda model, method: (4, 3, 1), methods=("sft", "dpo"), seeds=(1, 2))
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(content | {"compared": {"toy": {"pairs": "all"}}}))
    for seed in (1, 2):
        file = results / f"runs/toy/tiny/sft/seed{seed}/judged/toy/against/dpo.json"
        # won with seed 1 on the first six prompts, with seed 2 on the first two; one tie, and one without an answer
        asked(lambda i, s=seed: None if i == 7 else 0.5 if i == 6 else float(i < (6, 2)[s - 1])).write(file)
    frame = Pairs().frame(Results(config, results))
    assert list(frame["measure"]) == [WIN, STRENGTH, STRENGTH]
    # a tie is half a win here although the judge says neither
    assert frame.loc[0, "mean"] == pytest.approx((6 + 2 + 1) / 14)
    assert frame.loc[0, "prompts"] == 7


def test_the_figure_draws_the_numbers_of_its_csv(tmp_path, write_tree):
    results = Results(*write_tree(tmp_path))
    frame = Pairs().frame(results)
    left, right, *_ = Pairs().draw(results, frame).axes
    image = left.images[0].get_array()
    assert image[1, 2] == 0.5 - 3.5 / 16
    assert image[2, 1] == 0.5 + 3.5 / 16
    assert np.isnan(np.diag(image.filled(np.nan))).all()
    assert [t.get_text() for t in left.get_yticklabels()] == ["Base", "SFT", "SFT + KTO", "DPO (0.1)"]
    drawn = sorted(
        tuple(line.get_xdata()) for line in right.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0]
    )
    strength = frame[frame["measure"] == STRENGTH]
    assert drawn == sorted(zip(strength["low"], strength["high"], strict=True))


def test_many_methods_have_a_matrix_in_the_figure_and_the_csv_alone(tmp_path, write_tree):
    methods = ("base", *(f"m{i}" for i in range(16)))
    config, results = write_tree(tmp_path, methods=methods, seeds=(1,), tasks=(),
                                 score=lambda method, seed, prompt: float(len(method) + prompt > 6))  # fmt: skip
    grid = Results(config, results)
    frame = Pairs().frame(grid)
    assert (frame["measure"] == WIN).sum() == 17 * 16 / 2
    assert len(Pairs().page(grid, frame)) == 1
    assert not Pairs().draw(grid, frame).axes[0].texts
