"""Model FLOPs utilisation: the operations of a step, against a count by example and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.throughput.flops import Example, Shape, useful_flops
from halos.distributed.peaks import GPUS
from halos.forward.operations import Operations
from halos.models.lora import with_lora
from halos.train.trainer import Trainer
from halos.train.utilisation import Utilisation
from tests.conftest import CATALOGUE, World
from tests.train.runs import setup

SHAPE = Shape.of({**CATALOGUE["models"]["m"]["architecture"], "vocab_size": 512})


def examples(trainer: Trainer, world: World) -> list[Example]:
    """The first global batch of pairs, or of single responses with the mismatched ones of KTO, as the data has it."""
    found, store = [], trainer.inputs.store
    for row in store.view("train", trainer.stage.reads).take(trainer.batches[0]).to_pylist():
        rows = [row[role] for role in ("chosen", "rejected", "sequence") if role in row]
        scored = [row["mismatched"]] if "mismatched" in row else []
        trained, other = (tuple(int(store.lengths[k, 1]) for k in of) for of in (rows, scored))
        found.append(Example(int(store.lengths[rows[0], 0]), trained, other))
    return found


def needed(trainer: Trainer) -> float:
    utilisation = Utilisation(Operations.of(trainer.policy.model), peak=1.0, passes=1)
    return utilisation.needed(trainer._prepare(trainer.examples, trainer.batches[0]))


@pytest.mark.parametrize("budget", [10**6, 150])
def test_a_step_needs_what_its_examples_do_however_it_is_cut(budget: int, world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "dpo", budget=budget)
    assert trainer.examples.packed
    found = examples(trainer, world)
    assert {len(example.trained) for example in found} == {2}
    assert Operations.of(trainer.policy.model) == SHAPE.operations
    assert needed(trainer) == pytest.approx(useful_flops(SHAPE.operations, found, shared=True), rel=1e-12)


def test_passes_for_a_statistic_count_forward(world: World, tmp_path: Path) -> None:
    """KTO's mismatched responses, behind the others: each runs the last token of its prompt once more."""
    trainer = setup(world, tmp_path, "kto", budget=10**6)
    found = examples(trainer, world)
    assert any(example.scored for example in found)
    again = SHAPE.operations.forward(len(found), sum(example.prompt for example in found), 0)
    assert needed(trainer) == pytest.approx(useful_flops(SHAPE.operations, found, shared=True) + again, rel=1e-12)


def test_an_example_of_lora_worked_by_hand() -> None:
    """A layer with hidden 4, 2 heads of 2, MLP 8: matrices of 4 x 4 x 4 + 3 x 4 x 8 = 160; an output layer of 4 x 10.

    Adapters of rank 1 on the queries alone add 4 + 4, and are all that is trained. 3 positions attend to 6 pairs, and 2
    are read: forward 2 x 168 x 3 + 2 x 40 x 2 + 4 x 4 x 6; backward 2 x (168 + 8) x 3 + 2 x 40 x 2 + 8 x 4 x 6.
    """
    config = AutoConfig.for_model("llama", hidden_size=4, intermediate_size=8, num_hidden_layers=1, vocab_size=10,
                                  num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    adapted: Any = with_lora(model, {"r": 1, "alpha": 1, "dropout": 0.0, "target_modules": ["q_proj"]})
    operations = Operations.of(adapted)
    assert operations == Operations(matrices=168, output=40, attention=4, trained=8, trained_output=0)
    assert operations.forward(3, 6, 2) == 1008 + 160 + 96
    assert operations.backward(3, 6, 2) == 1056 + 160 + 192


def test_of_experts_those_count_that_a_token_is_sent_to() -> None:
    fields = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 20,
              "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip

    def operations(**more: Any) -> Operations | None:
        config = AutoConfig.for_model("mixtral", **fields, **more)
        return Operations.of(AutoModelForCausalLM.from_config(config))

    one, two = (operations(num_local_experts=4, num_experts_per_tok=chosen) for chosen in (1, 2))
    assert one is not None
    assert two is not None
    assert two.matrices - one.matrices == 2 * 3 * 8 * 16  # an expert more in each of two layers
    assert one.matrices == 2 * (4 * 8 * 8 + 4 * 8 + 3 * 8 * 16)  # attention, router, expert


def test_the_log_has_it_on_a_gpu_whose_peak_is_known(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = setup(world, tmp_path, "dpo", precision="fp32")
    assert trainer.utilisation is None  # on a CPU
    assert "mfu" not in trainer.step(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    found = Utilisation.of(trainer.policy, "fp32", live=False)
    assert found == Utilisation(SHAPE.operations, GPUS["h100-80gb"].fp32, 1)
    assert Utilisation.of(trainer.policy, "bf16", live=True) == replace(found, peak=GPUS["h100-80gb"].bf16, passes=2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert Utilisation.of(trainer.policy, "fp32", live=False) is None
    monkeypatch.undo()
    trainer.utilisation = found
    metrics = trainer.step(1)
    batch = trainer._prepare(trainer.examples, trainer.batches[1])
    assert metrics["mfu"] == pytest.approx(found.needed(batch) / (67e12 * metrics["seconds"]))
