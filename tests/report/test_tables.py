"""Tables hold what the results tree says, checked by hand against the tree of conftest.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise

import pandas as pd
import pytest

from halos.errors import HalosError
from halos.report import proportions, render, statistics, tables
from halos.report.results import Results
from halos.report.subjects.benchmarks import Benchmarks
from halos.report.subjects.comparisons import Comparisons
from tests.report.conftest import SCORES, data_report, tokens_report


@pytest.fixture
def made(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    tables.make(config, results=results, output=tmp_path / "tables")
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
    right = {method: [[float(p < k) for p in range(8)] for k in scores] for method, scores in SCORES.items()}
    seeds = statistics.pooled([right[method] for method in ("sft", "sft-kto", "dpo")], bounded=True)
    e = statistics.estimate(right["sft-kto"], bounded=True, seeds=seeds)
    assert main.loc["sft-kto", ["toy.score_low", "toy.score_high"]].tolist() == pytest.approx([e.low, e.high])
    # base wins nothing but its tie: nothing to resample in its score, and yet no certainty
    assert main.loc["base", "toy.score_high"] == pytest.approx(proportions.wilson(0, 8)[1])


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
    assert cells[-1] == "15 / 30"
    assert "| DPO (0.1) " in text
    assert "| Base " in text


def test_markdown_is_aligned(made):
    for name in ("main", "benchmarks", "comparisons", "lengths", "cost", "data"):
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
    ours, theirs = [right[6], right[7]], [right[2], right[4]]
    seeds = statistics.pooled([theirs, ours, [[float(p < k) for p in range(8)] for k in SCORES["dpo"]]], bounded=True)
    expected = statistics.difference(ours, theirs, seeds=seeds, bounded=True)
    assert row[["difference", "low", "high", "p"]].tolist() == pytest.approx(
        [0.4375, expected.low, expected.high, expected.p]
    )
    assert row[["seeds", "prompts"]].tolist() == [2, 8]
    # of 16 pairs of responses sft-kto's is better in 7, and the others are ties
    assert row["improvement"] == pytest.approx((7 + 9 / 2) / 16)
    assert row["improvement_low"] < row["improvement"] < row["improvement_high"]
    scores = d.xs("score", level="measure")
    assert scores["p_holm"].tolist() == pytest.approx(statistics.holm(scores["p"]).tolist())


def test_comparisons_use_common_prompts_only(tmp_path, write_tree):
    config, results = write_tree(tmp_path, methods=("base", "sft"), seeds=(1,))
    path = results / "runs/toy/tiny/sft/seed1/judged/toy.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][1:5]  # right once, on prompt 1; base never
    path.write_text(json.dumps(content))
    row = Comparisons().frame(Results(config, results)).set_index("measure").loc["score"]
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
    seeds = [statistics.seeds_of_means([v, v + 0.02], [0.03, 0.03]) for v in (0.5, 0.6, 0.26)]
    e = statistics.over_seeds([0.5, 0.52], [0.03, 0.03], statistics.mean_of(seeds))
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
    low, high = proportions.wilson(6.5, 8)
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
    with pytest.raises(HalosError, match=rf"there is no .*{path}; run `snakemake .*{path}`"):
        tables.make(config, results=results, output=tmp_path / "tables")


def test_a_broken_file_is_named(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    (results / "runs/toy/tiny/sft/seed1/tasks/arc.json").write_text("{")
    with pytest.raises(HalosError, match=r"sft/seed1/tasks/arc\.json is not the result of a task"):
        tables.make(config, results=results, output=tmp_path / "tables")


def test_without_judges_and_tasks_every_file_is_written_and_says_so(tmp_path, write_tree):
    config, results = write_tree(tmp_path, judges=(), tasks=())
    out = tmp_path / "tables"
    tables.make(config, results=results, output=out)
    names = {f"{n}.{e}" for n in ("main", "benchmarks", "comparisons", "lengths", "cost", "data", "contamination",
                                        "text")
             for e in ("csv", "md", "tex")}  # fmt: skip
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
    tables.make(config, results=results, output=out)
    assert pd.read_csv(out / "training.csv").empty
    assert "nothing to compare" in (out / "comparisons.md").read_text()
    assert "says nothing about other seeds" in (out / "main.md").read_text()


def test_a_judge_without_scores_has_win_rates_only(tmp_path, write_tree):
    config, results = write_tree(tmp_path, compare=None)
    for path in results.glob("runs/*/*/*/*/judged/toy.json"):
        content = json.loads(path.read_text())
        content |= {"kind": "openai", "scores": {"candidate": {"mean": None}, "baseline": {"mean": None}}}
        for a in content["annotations"]:
            a |= {"candidate_score": None, "baseline_score": None, "criteria": {}}
        path.write_text(json.dumps(content))
    out = tmp_path / "tables"
    tables.make(config, results=results, output=out)
    assert read(out, "main").loc["sft", "toy.win_rate"] == 0.4375
    assert "Score" not in (out / "main.md").read_text()
    assert "which itself scores" not in (out / "main.md").read_text()
    assert "Score difference" not in (out / "comparisons.md").read_text()


def test_models_and_datasets_are_columns_only_where_there_are_several(tmp_path, write_tree):
    config, results = write_tree(tmp_path, models=("tiny", "small"), methods=("sft",))
    out = tmp_path / "tables"
    tables.make(config, results=results, output=out)
    rows = [line for line in (out / "main.md").read_text().splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0].split("|")[1:-1]] == ["Method", "Tiny Llama", "small"]
    assert len(rows) == 2 * 3  # a table of scores and one of win rates
    long = [line for line in (out / "lengths.md").read_text().splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in long] == ["Model", ":-----------", "Tiny Llama", "small"]


def test_method_labels(tmp_path, write_tree):
    r = Results(*write_tree(tmp_path))
    names = ["base", "sft", "sft-kto", "sft-kto_b05", "dpo-kto"]
    assert [r.method_label(n) for n in names] == ["Base", "SFT", "SFT + KTO", "SFT + KTO B05", "DPO (0.1) + KTO"]


def test_numbers_as_a_paper_prints_them():
    assert render.interval(0.8123, 0.79, 0.834) == "0.812 [0.790, 0.834]"
    assert render.interval(-0.05, -0.1, 0.00001, sign=True) == "−0.050 [−0.100, 0.000]"
    assert render.interval(0.5, None, None) == "0.500"
    assert render.interval(float("nan"), 0.1, 0.2) == "–"
    assert render.p_value(0.0002) == "< 0.001"
    assert render.markdown(render.Table("", [{"Method": "a|b", "n": "1"}])).splitlines()[-1] == r"| a\|b     |   1 |"


# ---- reward models ------------------------------------------------------------------------------------------------


def test_reward_models_are_tabulated_by_themselves(tmp_path, write_tree):
    config, results = write_tree(tmp_path, reward_models=("sft-rm",))
    out = tmp_path / "tables"
    tables.make(config, results=results, output=out)
    row = read(out, "reward_models").loc["sft-rm"]
    # both seeds rank 75 % of the 48 pairs right: the seeds do not differ, and the pairs do
    half = 1.959964 * (0.75 * 0.25 / 48) ** 0.5
    columns = ["accuracy", "accuracy_low", "accuracy_high", "margin", "loss", "pairs", "seeds"]
    assert row[columns].tolist() == pytest.approx([0.75, 0.75 - half, 0.75 + half, 1.5, 1.0, 48, 2])
    text = (out / "main.md").read_text()
    section = text[text.index("## Reward models") :]
    cells = [cell.strip() for cell in section.splitlines()[-1].split("|")[1:-1]]
    assert cells == ["SFT + RM", "0.750 [0.628, 0.872]", "1.500", "1.000", "48", "2"]
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
    tables.make(config, results=results, output=tmp_path / "tables")
    line = (tmp_path / "tables/main.md").read_text().splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["RM", "0.750", "1.000", "1.000", "–", "1"]


def test_rewards_are_called_so_and_lie_where_they_lie(tmp_path, write_tree):
    """A reward is 2 * score - 4 here: between -4 and -2."""
    config, results = write_tree(tmp_path, judges=("toy", "rm"))
    out = tmp_path / "tables"
    tables.make(config, results=results, output=out)
    main = read(out, "main")
    scores, rewards = (main[[f"{judge}.score{end}" for end in ("", "_low", "_high")]] for judge in ("toy", "rm"))
    assert rewards["rm.score"].tolist() == pytest.approx((2 * scores["toy.score"] - 4).tolist())
    assert (scores["toy.score_low"] >= 0).all()  # a score's interval keeps to its bounds, and a reward has none
    assert rewards.loc["dpo", "rm.score_low"] < -4
    assert main["rm.win_rate"].tolist() == main["toy.win_rate"].tolist()
    assert not [column for column in main if column.startswith("rm.score.")]
    before, after = (out / "main.md").read_text().split("Judge: rm (reward model)")
    assert "Rewards have no scale" not in before
    assert after.startswith(", against the dataset's target, which itself scores −3.000; n = 8")
    assert "Rewards have no scale" in after
    for text, titles in ((before, ["Score", "Right", "Win rate"]), (after, ["Reward", "Win rate", "Length"])):
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
    tables.make(config, results=results, output=tmp_path / "tables")
    assert "which itself scores −10.000 to 1.500;" in (tmp_path / "tables/main.md").read_text()


def test_two_runs_write_the_same_bytes(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    for name in ("a", "b"):
        tables.make(config, results=results, output=tmp_path / name)
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


# ---- LaTeX, bold numbers, lengths, cost, data -------------------------------------------------------------------

NAMES = ("main", "comparisons", "benchmarks", "lengths", "cost", "data")


def test_latex_has_the_numbers_of_markdown_in_balanced_tables(made):
    for name in NAMES:
        text, page = (made / f"{name}.tex").read_text(), (made / f"{name}.md").read_text()
        numbers = [re.findall(r"\d[\d.,]*\d|\d", part) for part in (_body(text), _rows(page))]
        assert numbers[0] == numbers[1]
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") > 0
        assert text.count("{") == text.count("}")
        for row in re.findall(r"\\midrule\n(.*?)\n\\bottomrule", text, re.DOTALL)[0].splitlines():
            columns = re.findall(r"tabular}{@{}([lr]+)@{}}", text)[0]
            assert len(re.split(r"(?<!\\)&", row)) == len(columns)
            assert row.endswith(r" \\")


def _body(text):
    """The rows of LaTeX, without numbers of the markup."""
    return "\n".join(re.findall(r"\\midrule\n(.*?)\n\\bottomrule", text, re.DOTALL))


def _rows(page):
    lines = [line for line in page.splitlines() if line.startswith("|")]
    rules = [i for i, line in enumerate(lines) if set(line) <= set("|-: ")]
    return "\n".join(line for i, line in enumerate(lines) if i not in rules and i + 1 not in rules)


def test_what_latex_would_take_for_markup_is_text():
    assert render.escape("50 % of a_b & {c}") == r"50 \% of a\_b \& \{c\}"
    assert render.latex(render.Table("", [{"Method": "x", "n": "[1]"}]), "tab:t").count("{}[1]") == 1
    assert r"\textbf{0.5}" in render.latex(render.Table("", [{"Method": "x", "n": render.Bold("0.5")}]), "tab:t")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(made):
    files = "".join(rf"\input{{{name}}}" for name in NAMES)
    document = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{files}\end{{document}}"
    (made / "all.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    run = subprocess.run(command, cwd=made, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:]


def test_bold_is_the_method_that_is_better_than_all_others(tmp_path, write_tree, monkeypatch):
    """Of 60 prompts, one method gets nearly all right and the others about half; then two get nearly all right."""
    monkeypatch.setattr("tests.report.conftest.PROMPTS", 60)

    def right(best):
        return lambda method, seed, prompt: float(prompt % 12 > 0 if method in best else (prompt + len(method)) % 2)

    for best in (("sft-kto",), ("sft-kto", "dpo")):
        folder = tmp_path / str(len(best))
        config, results = write_tree(
            folder, score=right(best), seeds=(1, 2, 3), methods=("base", "sft", "sft-kto", "dpo")
        )
        tables.make(config, results=results, output=folder / "tables")
        main = read(folder / "tables", "main")
        wanted = {"sft-kto"} if len(best) == 1 else set()
        for measure in ("score", "win_rate"):
            assert set(main.index[main[f"toy.{measure}_best"]]) == wanted
        assert (folder / "tables/main.md").read_text().count("**") == 4 * len(wanted)


def test_lengths_ties_and_the_win_rate_at_equal_length_are_told(tmp_path, write_tree):
    config, results = write_tree(tmp_path, seeds=(1,))
    for path in results.glob("runs/*/*/*/*/judged/toy.json"):
        content = json.loads(path.read_text())
        more = {"length_controlled_win_rate": 0.3, "length_controlled_standard_error": 0.05}
        path.write_text(json.dumps({**content, **more}))
    tables.make(config, results=results, output=tmp_path / "tables")
    row = read(tmp_path / "tables", "lengths").loc["sft"]
    assert row[["length", "baseline_length", "cut", "ties", "failures"]].tolist() == [
        10,
        30,
        pytest.approx(2 / 9),
        1,
        1,
    ]
    assert row[["controlled", "controlled_low"]].tolist() == pytest.approx([0.3, 0.3 - 1.959964 * 0.05])
    line = next(line for line in (tmp_path / "tables/lengths.md").read_text().splitlines() if "| SFT + KTO" in line)
    assert "0.300 [0.202, 0.398]" in line
    assert "22 %" in line


def test_ties_count_for_neither_where_the_judge_says_so(tmp_path, write_tree):
    """Of 10 prompts 4 are won and 2 tied: .4 for the judge of the paper, .5 where a tie is half a win."""
    config, results = write_tree(tmp_path, methods=("sft",), seeds=(1,), counts=lambda *_: (4, 4, 2))
    r = Results(config, results)
    assert r.values("toy", "toy", "tiny", "sft", "win_rate").mean(axis=1).tolist() == [0.4]
    tables.make(config, results=results, output=tmp_path / "tables")
    assert "A tie is a win of neither" in (tmp_path / "tables/main.md").read_text()
    path = results / "runs/toy/tiny/sft/seed1/judged/toy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ties_as": "half"}))
    half = Results(config, results)
    assert half.values("toy", "toy", "tiny", "sft", "win_rate").mean(axis=1).tolist() == [0.5]
    assert half.values("toy", "toy", "tiny", "sft", "wins_of_all").mean(axis=1).tolist() == [0.4]


def test_cost_is_of_one_cell_and_all_together(made):
    row = read(made, "cost").loc["sft-kto"]
    columns = ["cells", "parameters", "seconds", "gpu_hours", "peak_memory_gb", "processes", "tokens_per_second"]
    assert row[columns].tolist() == [2, 500_000, 12.5, 0.25, 1.5, 2, 1000]
    assert row[["eval_loss", "eval_reward_accuracy"]].tolist() == [1.0, 0.75]
    # six cells of a quarter of an hour
    assert "1.5 GPU hours" in (made / "cost.md").read_text()


def test_data_is_counted_by_split(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    split = {"rows_out": 90, "responses": 180, "pairs": 90, "desirable": 90, "undesirable": 90, "drops": {"empty": 7}}
    data_report(split, {"rows_out": 10}).write(results / "data/toy/report.json")
    lengths = {"prompt": {"0.5": 12}, "response": {"0.5": 34}}
    tokens = tokens_report(truncated_responses=3, dropped={"too long": 2}, length_quantiles=lengths)
    tokens.write(results / "tokens/toy/tiny/report.json")
    tables.make(config, results=results, output=tmp_path / "tables")
    row = read(tmp_path / "tables", "data", ("split",)).loc["train"]
    columns = ["prompts", "responses", "dropped", "truncated", "prompt_tokens", "response_tokens"]
    assert row[columns].tolist() == [90, 180, 9, 3, 12, 34]


def test_significance_of_benchmarks_is_corrected_for_all_of_them(tmp_path, write_tree):
    """A change of 2.2 standard errors is significant by itself, and not among six."""
    tasks = tuple(f"t{i}" for i in range(6))
    config, results = write_tree(tmp_path, methods=("base", "sft"), seeds=(1,), tasks=tasks)
    for i, path in enumerate(sorted(results.glob("runs/toy/tiny/sft/seed1/tasks/*.json"))):
        content = json.loads(path.read_text())
        content["halos"] |= {"value": 0.25 + 0.03 * 2**0.5 * (2.2 if i == 0 else 0.1)}
        path.write_text(json.dumps(content))
    many = Benchmarks().frame(Results(config, results))
    assert not many["clear"].any()
    config.write_text(config.read_text().replace("- t1\n- t2\n- t3\n- t4\n- t5\n", ""))
    one = Benchmarks().frame(Results(config, results))
    assert one["clear"].tolist() == [False, True]
