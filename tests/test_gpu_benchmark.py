"""The benchmark of a GPU, without one: that it runs, and says what it could not do. No time is asserted."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.throughput.flops import Shape
from halos.forward.operations import Operations


@pytest.mark.slow
def test_both_sides_train_alike_and_each_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "gpu.csv"
    gpu.main(["--device", "cpu", "--cases", "tiny-dpo", "--threads", "1", "--output", str(output)])
    with output.open() as file:
        ours, theirs = csv.DictReader(file)
    assert tuple(ours) == gpu.COLUMNS
    assert [(row["case"], row["side"]) for row in (ours, theirs)] == [("tiny-dpo", "halos"), ("tiny-dpo", "trl")]
    assert ours["problem"] == theirs["problem"] == ""
    for row in (ours, theirs):
        assert float(row["loss_first"]) == pytest.approx(math.log(2), abs=1e-5)  # the reference is the model itself
        assert float(row["tokens_per_s"]) > float(row["examples_per_s"]) > 0
        assert (row["steps"], row["mfu"], row["device"]) == (str(gpu.STEPS), "", "cpu")
    assert float(ours["loss_last"]) == pytest.approx(float(theirs["loss_last"]), abs=1e-4)
    assert float(ours["loss_last"]) < math.log(2)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["tiny-dpo", "halos"], ["tiny-dpo", "trl"]
    ]  # fmt: skip


def test_a_case_without_time_is_a_line_that_says_so(tmp_path: Path) -> None:
    rows = list(gpu.run({"1b-dpo": gpu.CASES["1b-dpo"]}, tmp_path, time.monotonic() + gpu.LEAST - 1, threads=1))
    assert [(row["side"], row["problem"]) for row in rows] == [(side, "no time was left") for side in ("halos", "trl")]


def test_without_a_gpu_it_says_how_it_is_tried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is no GPU here; `--device cpu"):
        gpu.main(["--output", str(tmp_path / "gpu.csv")])
    assert not (tmp_path / "gpu.csv").exists()


@pytest.mark.parametrize(("name", "billions"), [("1b", 1.24), ("8b", 8.03)])
def test_the_shapes_are_those_of_llama(name: str, billions: float) -> None:
    """Parameters as published; the operations of attention and matrices are those of the benchmark beside TRL."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(gpu.SHAPES[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)
    assert Operations.of(model) == Shape.of(gpu.SHAPES[name]).operations
