"""Tables hold what the results tree says, checked by hand against the tree of conftest.py."""

from __future__ import annotations

import json
from itertools import pairwise

import pandas as pd
import pytest

from halos.errors import HalosError
from halos.report import estimates, statistics, tables
from halos.report.results import Results


@pytest.fixture
def made(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    tables.make(config, results, tmp_path / "tables")
    return tmp_path / "tables"


def read(folder, name, index=("method",)):
    return pd.read_csv(folder / f"{name}.csv").set_index(list(index))


def test_main_has_a_row_per_method_in_the_grids_order(made):
    main = read(made, "main")
    assert list(main.index) == ["base", "sft", "sft-kto", "dpo"]
    # 2 and 4 of 8 right; won as many and half of one tie
    assert main.loc["sft", ["toy.score", "toy.score.right", "toy.win_rate"]].tolist() == [0.375, 0.375, 0.4375]
    assert main.loc["sft-kto", ["toy.score", "toy.win_rate"]].tolist() == [0.8125, 0.875]
    columns = ["seeds", "toy.prompts", "toy.n", "toy.wins", "toy.ties", "toy.failures", "toy.not_judged"]
    assert main.loc["sft", columns].tolist() == [2, 8, 16, 6, 2, 2, 4]
    columns = ["toy.length_candidate", "toy.length_baseline", "toy.cut"]
    assert main.loc["sft", columns].tolist() == pytest.approx([15, 30, 2 / 9])
    assert main.loc["sft", ["eval_loss", "toy.score_baseline"]].tolist() == [1.0, 0.5]
    assert main.loc["sft-kto", "eval_reward_accuracy"] == 0.75
    assert pd.isna(main.loc["sft", "eval_reward_accuracy"])
    assert pd.isna(main.loc["base", "eval_loss"])


def test_intervals_are_those_of_the_statistics(made):
    main = read(made, "main")
    right = [[float(p < k) for p in range(8)] for k in (6, 7)]
    e = statistics.estimate(right, bounded=True)
    assert main.loc["sft-kto", ["toy.score_low", "toy.score_high"]].tolist() == pytest.approx([e.low, e.high])
    # base wins nothing but its tie: nothing to resample in its score, and yet no certainty
    assert main.loc["base", "toy.score_high"] == pytest.approx(statistics.wilson(0, 8)[1])


def test_main_text_names_what_its_numbers_are(made):
    text = (made / "main.md").read_text()
    assert text.startswith("# Main results: A small grid\n")
    assert "Judge: Toy verifier (verifier), against the dataset's target, which itself scores 0.500" in text
    assert "n = 8 prompts, 2 seeds" in text
    assert "8 failed and 16 unjudged" in text
    line = next(line for line in text.splitlines() if line.startswith("| SFT + KTO"))
    cells = [c.strip() for c in line.strip("|").split("|")]
    main = read(made, "main").loc["sft-kto"]
    assert cells[1] == f"0.812 [{main['toy.score_low']:.3f}, {main['toy.score_high']:.3f}]"
    assert cells[-6:] == ["22 %", "15 / 30", "1.000", "0.750", "2", "8"]
    assert "| DPO (0.1) " in text
    assert "| Base " in text


def test_markdown_is_aligned(made):
    for name in ("main", "benchmarks", "comparisons"):
        lines = [line for line in (made / f"{name}.md").read_text().splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) == 1


def test_comparisons_are_with_the_parent_and_with_sft(made):
    d = read(made, "comparisons", ("method", "against", "measure"))
    assert [(m, a) for m, a, measure in d.index if measure == "score"] == [
        ("sft", "base"),
        ("sft-kto", "sft"),
        ("dpo", "base"),
        ("dpo", "sft"),
    ]
    row = d.loc[("sft-kto", "sft", "score")]
    right = {k: [float(p < k) for p in range(8)] for k in (2, 4, 6, 7)}
    expected = statistics.difference([right[6], right[7]], [right[2], right[4]])
    assert row[["difference", "low", "high", "p"]].tolist() == pytest.approx(
        [0.4375, expected.low, expected.high, expected.p]
    )
    assert row[["seeds", "prompts"]].tolist() == [2, 8]
    scores = d.xs("score", level="measure")
    assert scores["p_holm"].tolist() == pytest.approx(statistics.holm(scores["p"]).tolist())


def test_comparisons_use_common_prompts_only(tmp_path, write_tree):
    config, results = write_tree(tmp_path, methods=("base", "sft"), seeds=(1,))
    path = results / "runs/toy/tiny/sft/seed1/judged/toy.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][1:5]  # right once, on prompt 1; base never
    path.write_text(json.dumps(content))
    row = estimates.comparisons(Results(config, results)).set_index("measure").loc["score"]
    assert (row["difference"], row["prompts"]) == (0.25, 4)


def test_samples_of_a_prompt_are_averaged_before_prompts_are(tmp_path, write_tree):
    """Prompt 0 answered three times, right once: it counts as one prompt of score 1/3."""
    config, results = write_tree(tmp_path, methods=("sft",), seeds=(1,))
    path = results / "runs/toy/tiny/sft/seed1/judged/toy.json"
    content = json.loads(path.read_text())
    first = content["annotations"][0]
    content["annotations"] += [{**first, "sample": k, "candidate_score": 0.0, "preference": 1.0} for k in (1, 2)]
    path.write_text(json.dumps(content))
    values = Results(config, results).values("toy", "toy", "tiny", "sft", "score")
    assert values["p0"].tolist() == pytest.approx([1 / 3])
    assert values.shape == (1, 8)


def test_benchmarks_share_items_over_seeds(made):
    row = read(made, "benchmarks").loc["sft"]
    e = statistics.over_seeds([0.5, 0.52], [0.03, 0.03])
    assert row[["arc", "arc_low", "arc_high", "arc_n"]].tolist() == pytest.approx([0.51, e.low, e.high, 200])
    text = (made / "benchmarks.md").read_text()
    assert "ARC (acc)" in text
    assert "items: ARC 200" in text


def test_training_has_the_last_value_of_each_metric_and_the_cost(made):
    training = read(made, "training", ("method", "seed"))
    assert len(training) == 6  # base is not trained
    row = training.loc[("sft-kto", 2)]
    assert row[["train.step", "train.examples", "train.loss", "train.kl"]].tolist() == [10, 40, 1.0, 10.0]
    assert row[["eval.loss", "eval.rewards/margin", "eval.examples"]].tolist() == [1.0, 2.0, 40]
    assert row[["seconds", "tokens", "steps", "peak_memory_gb"]].tolist() == [12.5, 123456789, 10, 1.5]
    assert pd.isna(training.loc[("sft", 1), "eval.rewards/margin"])


def test_cells_have_all_raw_numbers(made):
    cells = read(made, "cells", ("method", "seed"))
    assert len(cells) == 8
    row = cells.loc[("sft-kto", 1)]
    assert row[["toy.wins", "toy.losses", "toy.ties", "toy.win_rate"]].tolist() == [6, 1, 1, 0.8125]
    low, high = statistics.wilson(6.5, 8)
    assert row[["toy.win_rate_low", "toy.win_rate_high"]].tolist() == pytest.approx([low, high])
    assert row[["toy.score.candidate.right", "toy.length.candidate", "arc.value", "arc.stderr"]].tolist() == [
        0.75,
        10.0,
        0.6,
        0.03,
    ]
    assert row["tokens"] == 123456789


@pytest.mark.parametrize(
    "path",
    ["sft-kto/seed2/judged/toy.json", "base/seed1/tasks/arc.json", "dpo/seed1/train.jsonl", "sft/seed2/manifest.json"],
)
def test_a_missing_file_is_named_with_what_to_do(tmp_path, write_tree, path):
    config, results = write_tree(tmp_path)
    (results / "runs/toy/tiny" / path).unlink()
    with pytest.raises(HalosError, match=rf"there is no .*{path}; run `snakemake`"):
        tables.make(config, results, tmp_path / "tables")


def test_a_broken_file_is_named(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    (results / "runs/toy/tiny/sft/seed1/tasks/arc.json").write_text("{")
    with pytest.raises(HalosError, match=r"sft/seed1/tasks/arc\.json is not JSON"):
        tables.make(config, results, tmp_path / "tables")


def test_without_judges_and_tasks_every_file_is_written_and_says_so(tmp_path, write_tree):
    config, results = write_tree(tmp_path, judges=(), tasks=())
    out = tmp_path / "tables"
    tables.make(config, results, out)
    names = {f"{n}.{e}" for n in ("main", "benchmarks", "comparisons") for e in ("csv", "md")}
    assert {p.name for p in out.iterdir()} == names | {"cells.csv", "training.csv", "reward_models.csv"}
    assert "No judge in this grid" in (out / "main.md").read_text()
    assert "No judge in this grid" in (out / "comparisons.md").read_text()
    assert "No task in this grid" in (out / "benchmarks.md").read_text()
    assert pd.read_csv(out / "comparisons.csv").empty
    assert pd.read_csv(out / "benchmarks.csv").empty
    main = read(out, "main")
    assert list(main.columns) == ["dataset", "model", "seeds", "eval_loss", "eval_reward_accuracy"]
    assert main.loc["sft-kto", "eval_loss"] == 1.0


def test_a_grid_of_base_models_needs_no_training(tmp_path, write_tree):
    config, results = write_tree(tmp_path, methods=("base",), seeds=(1,))
    out = tmp_path / "tables"
    tables.make(config, results, out)
    assert pd.read_csv(out / "training.csv").empty
    assert "nothing to compare" in (out / "comparisons.md").read_text()
    assert "says nothing about other seeds" in (out / "main.md").read_text()


def test_a_judge_without_scores_has_win_rates_only(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    for path in results.glob("runs/*/*/*/*/judged/toy.json"):
        content = json.loads(path.read_text())
        content |= {"kind": "openai", "scores": {"candidate": {"mean": None}, "baseline": {"mean": None}}}
        for a in content["annotations"]:
            a |= {"candidate_score": None, "baseline_score": None, "criteria": {}}
        path.write_text(json.dumps(content))
    out = tmp_path / "tables"
    tables.make(config, results, out)
    assert read(out, "main").loc["sft", "toy.win_rate"] == 0.4375
    assert "Score" not in (out / "main.md").read_text()
    assert "which itself scores" not in (out / "main.md").read_text()
    assert "Score difference" not in (out / "comparisons.md").read_text()


def test_models_and_datasets_are_columns_only_where_there_are_several(tmp_path, write_tree):
    config, results = write_tree(tmp_path, models=("tiny", "small"), methods=("sft",))
    out = tmp_path / "tables"
    tables.make(config, results, out)
    rows = [line for line in (out / "main.md").read_text().splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["Model", "----------", "Tiny Llama", "small"]


def test_method_labels(tmp_path, write_tree):
    r = Results(*write_tree(tmp_path))
    names = ["base", "sft", "sft-kto", "sft-kto_b05", "dpo-kto"]
    assert [r.method_label(n) for n in names] == ["Base", "SFT", "SFT + KTO", "SFT + KTO B05", "DPO (0.1) + KTO"]


def test_numbers_as_a_paper_prints_them():
    assert tables.interval(0.8123, 0.79, 0.834) == "0.812 [0.790, 0.834]"
    assert tables.interval(-0.05, -0.1, 0.00001, sign=True) == "−0.050 [−0.100, 0.000]"
    assert tables.interval(0.5, None, None) == "0.500"
    assert tables.interval(float("nan"), 0.1, 0.2) == "–"
    assert tables.p_value(0.0002) == "< 0.001"
    assert tables.markdown([{"Method": "a|b", "n": "1"}]).splitlines()[-1] == r"| a\|b   |   1 |"


# ---- reward models ------------------------------------------------------------------------------------------------


def test_reward_models_are_tabulated_by_themselves(tmp_path, write_tree):
    config, results = write_tree(tmp_path, reward_models=("sft-rm",))
    out = tmp_path / "tables"
    tables.make(config, results, out)
    row = read(out, "reward_models").loc["sft-rm"]
    # both seeds rank 75 % of the 48 pairs right: the seeds do not differ, and the pairs do
    half = 1.959964 * (0.75 * 0.25 / 48) ** 0.5
    columns = ["accuracy", "accuracy_low", "accuracy_high", "margin", "loss", "pairs", "seeds"]
    assert row[columns].tolist() == pytest.approx([0.75, 0.75 - half, 0.75 + half, 1.5, 1.0, 48, 2])
    text = (out / "main.md").read_text()
    section = text[text.index("## Reward models") :]
    assert section.splitlines()[-1].split("|")[1:-1] == [
        " SFT + RM ", " 0.750 [0.628, 0.872] ", "  1.500 ", " 1.000 ", "    48 ", "     2 "
    ]  # fmt: skip
    assert "SFT + RM" not in text[: text.index("## Reward models")]
    assert list(read(out, "main").index) == ["base", "sft", "sft-kto", "dpo"]
    assert "sft-rm" not in read(out, "cells").index
    training = read(out, "training", ("method", "seed"))
    assert training.loc[("sft-rm", 2), ["eval.rewards/margin", "eval.loss", "steps"]].tolist() == [2, 1, 10]
    assert len(training) == 8


def test_a_grid_without_reward_models_says_nothing_of_them(made):
    assert "Reward model" not in (made / "main.md").read_text()
    assert pd.read_csv(made / "reward_models.csv").empty


def test_reward_models_without_policies_or_a_known_number_of_pairs(tmp_path, write_tree):
    config, results = write_tree(tmp_path, methods=("base",), reward_models=("rm",), seeds=(1,), judges=(), tasks=())
    (results / "tokens/toy/tiny/report.json").unlink()
    tables.make(config, results, tmp_path / "tables")
    line = (tmp_path / "tables/main.md").read_text().splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["RM", "0.750", "1.000", "1.000", "–", "1"]


def test_rewards_are_called_so_and_lie_where_they_lie(tmp_path, write_tree):
    """A reward is 2 * score - 4 here: between -4 and -2."""
    config, results = write_tree(tmp_path, judges=("toy", "rm"))
    out = tmp_path / "tables"
    tables.make(config, results, out)
    main = read(out, "main")
    scores, rewards = (main[[f"{judge}.score{end}" for end in ("", "_low", "_high")]] for judge in ("toy", "rm"))
    inner = ["sft", "sft-kto"]  # whose intervals are within the bounds of a score
    assert rewards.loc[inner].to_numpy() == pytest.approx(2 * scores.loc[inner].to_numpy() - 4)
    assert scores.loc["dpo", "toy.score_low"] == 0
    assert rewards.loc["dpo", "rm.score_low"] < -4
    assert main["rm.win_rate"].tolist() == main["toy.win_rate"].tolist()
    assert not [column for column in main if column.startswith("rm.score.")]
    before, after = (out / "main.md").read_text().split("Judge: rm (reward model)")
    assert "Rewards have no scale" not in before
    assert after.startswith(", against the dataset's target, which itself scores −3.000; n = 8")
    assert "Rewards have no scale" in after
    for text, titles in ((before, ["Score", "Right", "Win rate"]), (after, ["Reward", "Win rate", "Ties"])):
        header = next(line for line in text.splitlines() if line.startswith("|"))
        assert [title.strip() for title in header.split("|")][2:5] == titles
    first, second = (out / "comparisons.md").read_text().split("Judge: rm")
    assert ("Score difference" in first, "Reward difference" in first) == (True, False)
    assert ("Score difference" in second, "Reward difference" in second) == (False, True)


def test_what_the_baseline_scores_is_told_from_the_lowest_to_the_highest(tmp_path, write_tree):
    config, results = write_tree(tmp_path, judges=("rm",))
    for path in results.glob("runs/*/*/*/*/judged/rm.json"):
        content = json.loads(path.read_text())
        content["scores"]["baseline"]["mean"] = 1.5 if "/dpo/" in str(path) else -10.0 if "/sft/" in str(path) else -3.0
        path.write_text(json.dumps(content))
    tables.make(config, results, tmp_path / "tables")
    assert "which itself scores −10.000 to 1.500;" in (tmp_path / "tables/main.md").read_text()


def test_two_runs_write_the_same_bytes(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    for name in ("a", "b"):
        tables.make(config, results, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_resumed_log_counts_each_step_once(tmp_path, write_tree):
    config, results = write_tree(tmp_path, methods=("sft",), seeds=(1,))
    log = results / "runs/toy/tiny/sft/seed1/train.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:8] + lines[4:]) + "\n")
    steps = Results(config, results).training.query("split == 'train'")["step"].tolist()
    assert all(a < b for a, b in pairwise(steps))
    assert steps == list(range(1, 11))
