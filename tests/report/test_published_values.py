"""Published values stand beside the grid's own of the same model, losses and measure."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml

from halos.errors import HalosError
from halos.report import tables
from halos.report.subjects import published
from halos.report.subjects.published_values import TASKS, TITLES
from halos.study.settings import PUBLISHED, PUBLISHED_IN, PUBLISHED_VALUES
from tests.report.conftest import judgement

ALPACA = {"kind": "openai", "openai": {"annotator": "weighted_alpaca_eval_gpt4_turbo"}, "prompts": "p",
          "baseline": {"file": "gpt4.json"}, "length_control": "alpaca_eval"}  # fmt: skip


def table(folder, write_tree, name, model, tasks=(), judges=(), methods=("base", "dpo", "kto"), **judge):
    config, results = write_tree(folder, models=(model,), methods=methods, seeds=(1,), judges=judges, tasks=tasks,
                                 score=lambda *_: 0.0, compare=None, published=name)  # fmt: skip
    for task in tasks:
        place = results / "tasks" / task / "config.yaml"
        place.parent.mkdir(parents=True)
        place.write_text(yaml.safe_dump({"task_id": task, "task": {"maths": "gsm8k_cot"}.get(task, task)}))
    for one in judges:
        place = results / "judges" / one / "config.yaml"
        place.write_text(yaml.safe_dump({"judge": one, **ALPACA, **judge}))
        for method in methods:
            rows = [{"prompt_id": f"p{i}", "preference": 1.0 + i % 2} for i in range(8)]
            said = judgement("openai", rows, n=8, wins=4, losses=4, ties=0, win_rate=0.5,
                             length_controlled_win_rate=0.45, length_controlled_standard_error=0.02)  # fmt: skip
            said.write(results / f"runs/toy/{model}/{method}/seed1/judged/{one}.json")
    tables.make(config, folder / "tables", results)
    return pd.read_csv(folder / "tables/published_values.csv").set_index(["method", "measure"])


def test_benchmarks_of_the_same_model_and_loss_stand_side_by_side(tmp_path, write_tree):
    found = table(tmp_path, write_tree, "zephyr", "zephyr-7b-sft-full", tasks=("maths", "mmlu"))
    assert len(found) == 3 * 4
    gsm8k = found.loc[("dpo", "gsm8k")]
    assert (gsm8k["ours_by"], gsm8k["ours"], gsm8k["published"]) == ("maths", 0.26, 0.4)
    assert gsm8k["difference"] == pytest.approx(-0.14)
    assert gsm8k["low"] < 0.26 < gsm8k["high"]
    assert found.loc[("base", "mmlu"), ["ours", "published"]].tolist() == [0.25, 0.572]
    assert found.loc[("kto", "bbh"), ["ours", "published"]].isna().tolist() == [True, False]
    page = (tmp_path / "tables/published_values.md").read_text()
    assert "| GSM8K " in page
    assert "−0.140" in page
    assert not (tmp_path / "tables/published.md").exists()


def test_alpaca_eval_is_compared_where_the_judge_asks_its_question(tmp_path, write_tree):
    model, methods = "meta-llama-3-8b-instruct", ("base", "dpo", "simpo")
    found = table(tmp_path / "1", write_tree, "simpo", model, judges=("mine",), methods=methods)
    assert found.loc[("simpo", "alpaca_eval_2"), ["ours", "published"]].tolist() == pytest.approx([0.5, 0.475])
    controlled = found.loc[("dpo", "alpaca_eval_2_lc")]
    assert controlled[["ours", "published"]].tolist() == pytest.approx([0.45, 0.482])
    assert controlled["low"] == pytest.approx(0.45 - 1.96 * 0.02, abs=1e-4)
    assert "base" not in found.index
    other = {"openai": {**ALPACA["openai"], "model": "gpt-4.1"}}
    found = table(tmp_path / "2", write_tree, "simpo", model, judges=("mine",), methods=methods, **other)
    assert found["ours"].isna().all()


def test_published_rows_that_are_copies_of_each_other_are_called_that(tmp_path, write_tree):
    model, methods = "meta-llama-3-8b-instruct", ("base", "simpo")
    found = table(tmp_path, write_tree, "simpo_v01", model, judges=("mine",), methods=methods)
    assert found.loc[("base", "alpaca_eval_2"), ["ours", "published"]].tolist() == pytest.approx([0.5, 0.253])
    page = (tmp_path / "tables/published_values.md").read_text()
    assert page.count("may be a copy") == 1
    assert f"The published values of CPO and KTO from {model} are equal in every measure" in page


def test_another_model_has_no_published_values(tmp_path, write_tree):
    assert table(tmp_path, write_tree, "zephyr", "tiny").empty
    assert "No method of this grid" in (tmp_path / "tables/published_values.md").read_text()


def test_every_published_measure_is_known_and_every_file_has_its_source():
    assert PUBLISHED == ["archangel", "simpo", "simpo_v01", "zephyr"]
    readme = (published.FOLDER / "README.md").read_text()
    for name in PUBLISHED_IN[PUBLISHED_VALUES]:
        values = pd.read_csv(published.FOLDER / f"{name}{PUBLISHED_VALUES}")
        assert set(values["measure"]) <= set(TITLES)
        assert values["value"].between(0, 100).all()
        assert not values.duplicated(["models", "method", "measure"]).any()
        assert f"`{name}{PUBLISHED_VALUES}`" in readme
    assert set(TASKS) <= set(TITLES)
    with pytest.raises(HalosError, match="no published results called 'simpo'"):
        published.load("simpo")
