"""Every loss: packed rows, padded rows and plain transformers give one loss and gradient, by each attention."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halos.errors import HalosError
from halos.models.attention import check_here
from tests.conftest import World
from tests.gpu.gradients import assert_same, gradient, on_its_device, trainer_of
from tests.train.runs import CASES, weights
from tests.train.test_invariance import plain_gradient

pytestmark = pytest.mark.usefixtures("_fresh")
FLASH = ("flash_attention_2", "flash_attention_3", *filter(None, [os.environ.get("HALOS_ATTENTION_KERNEL")]))
WAYS = [
    *((attention, precision) for attention in ("sdpa", "flex_attention") for precision in ("fp32", "bf16")),
    *((attention, "bf16") for attention in FLASH),  # flash attention has half precision alone
]


@pytest.fixture(scope="module")
def better(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights other than the reference's."""
    return weights(world.train(tmp_path_factory.mktemp("better"), "sft", changes={"lr": 1e-3, "examples": 80}))


def available(attention: str) -> None:
    """Leave a test out, or fail it, where an attention cannot be had: what is not installed is left out."""
    try:
        check_here(attention)
    except HalosError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("attention", "precision"), WAYS, ids=["-".join(way) for way in WAYS])
def test_packed_rows_padded_rows_and_plain_sequences_have_one_gradient(
    attention: str, precision: str, case: str, world: World, better: dict[str, Tensor], tmp_path: Path
) -> None:
    available(attention)
    how = {"precision": precision, "computes": {"attention": attention}}
    trainer = trainer_of(world, tmp_path / "run", case, better, **how)
    loss, found = plain_gradient(trainer, world, on_its_device)
    expected = {name: grad.cpu() for name, grad in found.items() if grad is not None}
    assert trainer.examples.packed
    for packed, budget in ((True, 10**6), (True, 250), (False, 250)):
        if not packed:
            for network in filter(None, (trainer.policy, trainer.live)):
                trainer.accelerator.unwrap_model(network).model.set_attn_implementation(attention)
        trainer.budget, trainer.examples.packed = budget, packed
        assert_same(gradient(trainer), (loss, expected), precision)


FASTER = {
    "liger": ({"liger": True}, False),
    "compile": ({"compile": True}, False),
    "compile, checkpointed": ({"compile": True}, True),
    "liger and compile": ({"liger": True, "compile": True}, False),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", FASTER)
@pytest.mark.parametrize("case", ["dpo", "kto", "ppo", "humanline_grpo", "bradley_terry"])
def test_faster_layers_have_the_gradient_of_plain_ones(
    case: str, name: str, precision: str, world: World, better: dict[str, Tensor], tmp_path: Path
) -> None:
    computes, checkpointing = FASTER[name]
    if "liger" in computes:
        pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    torch.compiler.reset()
    plain = gradient(trainer_of(world, tmp_path / "plain", case, better, precision=precision))
    how = {"precision": precision, "computes": computes, "checkpointing": checkpointing}
    assert_same(gradient(trainer_of(world, tmp_path / "faster", case, better, **how)), plain, precision)
