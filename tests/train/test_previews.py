"""Previews: responses to validation prompts while a policy is trained, which change nothing of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from halos.study import catalogue as C
from halos.tokens.store import Store
from halos.train.log import PREVIEWS
from halos.train.previews import unchanged
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import assert_equal, log, setup

PREVIEWED = {"preview_prompts": 3, "preview_tokens": 10}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}


def previews(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / PREVIEWS).read_text().splitlines()]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("dpo", {"dropout": 0.0}),
        ("lora", {}),
        ("csft", {"average": {"kind": "ema", "decay": 0.5}}),
        ("ppo", {}),
        ("kto", {"humanline": True}),
    ],
)
def test_a_training_is_the_same_with_previews(
    stage: str, changes: dict[str, Any], world: World, tmp_path: Path
) -> None:
    changes = {**changes, "eval_every": 3}
    plain = world.train(tmp_path / "plain", stage, changes=changes)
    run = world.train(tmp_path / "run", stage, changes={**changes, **PREVIEWED})
    assert_equal(plain, run)
    assert log(plain) == log(run)
    assert not (plain / PREVIEWS).exists()
    lines = previews(run)
    assert [line["step"] for line in lines] == [step for step in (0, 3, 6, 8) for _ in range(3)]
    assert len({line["prompt_row"] for line in lines}) == 3
    assert all(0 < line["tokens"] <= 10 for line in lines)


def test_the_last_previews_are_what_the_published_model_answers(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path, "csft", changes=PREVIEWED)
    model, tokenizer = (kind.from_pretrained(run / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    of_rows = {int(row): k for k, row in enumerate(Store(world.store).prompt_of(range(len(Store(world.store)))))}
    for line in previews(run)[-3:]:
        prompt, _ = Store(world.store).sequence(of_rows[line["prompt_row"]])
        assert line["prompt"] == tokenizer.decode(prompt) + "<|good|>"
        ids = torch.tensor([[*prompt, tokenizer.convert_tokens_to_ids("<|good|>")]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10)
        assert line["response"] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_run_that_goes_on_has_each_preview_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt ends after the previews of the fourth step, and goes on from the third."""
    changes, step = {"eval_every": 2, "checkpoint_every": 3, **PREVIEWED}, Trainer.step

    def ended(trainer: Trainer, done: int) -> dict[str, Any]:
        if done == 4:
            raise InterruptedError
        return step(trainer, done)

    monkeypatch.setattr(Trainer, "step", ended)
    with pytest.raises(InterruptedError):
        world.train(tmp_path / "run", "dpo", changes=changes)
    monkeypatch.setattr(Trainer, "step", step)
    run = world.train(tmp_path / "run", "dpo", changes=changes)
    assert previews(run) == previews(world.train(tmp_path / "whole", "dpo", changes=changes))
    world.train(tmp_path / "run", "dpo", changes={"examples": 8})  # another training in its place
    assert not (run / PREVIEWS).exists()


def test_a_model_is_as_it_was_after_it_has_answered(world: World, tmp_path: Path) -> None:
    """Dynamic rotary positions are scaled by a text that is longer than those that the model was trained on."""
    trainer = setup(world, tmp_path, "dpo", **PREVIEWED)
    model = trainer.accelerator.unwrap_model(trainer.policy).model
    plain = AutoModelForCausalLM.from_pretrained(world.base / "model", rope_scaling=None, rope_parameters=DYNAMIC)
    for network in (model, plain):
        short, long = torch.arange(20)[None], torch.arange(300)[None]
        attention, drawn = network.config._attn_implementation, torch.random.get_rng_state()
        frequencies = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with torch.no_grad():
            if network is plain:
                before = network(short).logits
            with unchanged(network):
                network(long)
                torch.rand(3)
                changed = [n for n, b in network.named_buffers() if not torch.equal(b, frequencies[n])]
                assert bool(changed) == (network is plain)
            if network is plain:
                assert torch.equal(network(short).logits, before)
        assert network.config._attn_implementation == attention
        assert torch.equal(torch.random.get_rng_state(), drawn)
        assert all(torch.equal(buffer, frequencies[name]) for name, buffer in network.named_buffers())


def test_a_reward_model_answers_no_prompts() -> None:
    with pytest.raises(ValidationError, match="answers no prompts: take out preview_prompts"):
        C.Stage(loss="bradley_terry", preview_prompts=2)
