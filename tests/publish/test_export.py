"""A grid's samples and results, written as other programs read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from halos.data.sources.local import local
from halos.errors import HalosError
from halos.publish.export import export
from halos.sample.samples import Sample
from halos.settings import dump
from tests.report.conftest import METHODS, write

TALK = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]


def study(folder: Path, samples: int = 1, **tree: Any) -> tuple[Path, Path]:
    """A finished grid whose judge has prompts of their own dataset."""
    config, results = write(folder, **tree)
    judge = {"judge": "toy", "kind": "verifier", "verifier": "toy", "prompts": "held_out"}
    for name, content in {"judges/toy": judge, "prompts/held_out": {"prompts": "held_out", "dataset": "other"}}.items():
        (results / name).mkdir(parents=True, exist_ok=True)
        (results / name / "config.yaml").write_text(dump(content))
    for method in METHODS:
        for seed in (1, 2):
            path = results / f"runs/toy/tiny/{method}/seed{seed}/samples/held_out.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                Sample(prompt_id=f"p{n}", prompt=prompt, response=f"{method} {seed} {n} {k}", sample=k).line()
                for n, prompt in enumerate(([{"role": "user", "content": "Ça va?"}], TALK))
                for k in range(samples)
            ]
            path.write_text("".join(lines))
    return config, results


def test_samples_are_written_as_alpaca_eval_reads_them(tmp_path: Path) -> None:
    config, results = study(tmp_path)
    export(config, tmp_path / "out", results)
    path = tmp_path / "out/model_outputs/toy/tiny/sft-kto/seed2/held_out.json"
    rows = json.loads(path.read_text())
    common = {"generator": "toy/tiny/sft-kto/seed2", "dataset": "other"}
    assert rows[0] == {"instruction": "Ça va?", "output": "sft-kto 2 0 0", **common}
    assert rows[1]["instruction"].endswith("Why?")
    assert len(list((tmp_path / "out/model_outputs").rglob("*.json"))) == len(METHODS) * 2
    from alpaca_eval.utils import load_or_convert_to_dataframe

    assert list(load_or_convert_to_dataframe(path)) == ["instruction", "output", "generator", "dataset"]
    [record, _] = local("train", path={"train": str(path), "test": str(path)})  # and read back
    assert (record.prompt[0]["content"], record.responses) == ("Ça va?", ["sft-kto 2 0 0"])  # type: ignore[union-attr]


def test_each_sample_of_a_prompt_has_a_file(tmp_path: Path) -> None:
    config, results = study(tmp_path, samples=2)
    export(config, tmp_path / "out", results)
    folder = tmp_path / "out/model_outputs/toy/tiny/base/seed1"
    outputs = {path.name: [row["output"] for row in json.loads(path.read_text())] for path in folder.iterdir()}
    assert outputs == {f"held_out-{k}.json": [f"base 1 0 {k}", f"base 1 1 {k}"] for k in (0, 1)}


def test_results_are_one_row_a_cell_with_the_average_of_what_can_be_averaged(tmp_path: Path) -> None:
    config, results = study(tmp_path, tasks=("arc", "gsm", "perplexity"))
    for path in results.rglob("tasks/perplexity.json"):
        content = json.loads(path.read_text())
        content["halos"]["value"], content["halos"]["stderr"] = 12.5, None
        content["higher_is_better"] = {"perplexity": {"acc": False}}
        path.write_text(json.dumps(content))
    gsm = results / "runs/toy/tiny/dpo/seed1/tasks/gsm.json"
    gsm.write_text(gsm.read_text().replace("0.26", "0.5"))
    export(config, tmp_path / "out", results)
    table = pd.read_csv(tmp_path / "out/results.csv").set_index(["method", "seed"])
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert len(rows) == len(table) == len(METHODS) * 2
    row = table.loc[("dpo", 1)]
    assert (row["arc"], row["gsm"], row["perplexity"], row["arc.stderr"], row["arc.n"]) == (0.26, 0.5, 12.5, 0.03, 200)
    assert row["average"] == pytest.approx(0.38)
    assert row["toy.win_rate"] == pytest.approx(1.5 / 8)
    assert row["toy.score.right"] == pytest.approx(1 / 8)
    [same] = [r for r in rows if (r["method"], r["seed"]) == ("dpo", 1)]
    assert same["average"] == pytest.approx(0.38)
    assert same["perplexity.stderr"] is None
    assert list(same) == list(pd.read_csv(tmp_path / "out/results.csv"))


def test_results_of_tasks_are_lm_evals_own(tmp_path: Path) -> None:
    config, results = study(tmp_path)
    export(config, tmp_path / "out", results)
    copy, own = (folder / "toy/tiny/sft/seed1" for folder in (tmp_path / "out/lm_eval", results / "runs"))
    assert (copy / "arc.json").read_text() == (own / "tasks/arc.json").read_text()


def test_a_grid_that_is_not_finished_is_one_sentence(tmp_path: Path) -> None:
    config, results = study(tmp_path)
    (results / "runs/toy/tiny/dpo/seed2/samples/held_out.jsonl").unlink()
    with pytest.raises(HalosError, match=r"there is no samples file \S+dpo/seed2/samples/held_out.jsonl"):
        export(config, tmp_path / "out", results)
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**content, "judges": [], "tasks": ["none"]}))
    with pytest.raises(HalosError, match=r"there is no \S+/tasks/none.json"):
        export(config, tmp_path / "out", results)
