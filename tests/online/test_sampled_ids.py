"""A policy's own samples, read back by an online round: what is learned is, token for token, what was sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from halos.sample.run import sample
from halos.tokens.template import Template
from tests.conftest import World
from tests.online.thinking import TEMPLATES, check_round, play


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_round_learns_the_ids_that_were_sampled(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts too: those of the store are the very ids that the model was given."""
    given: list[list[int]] = []
    generate = LlamaForCausalLM.generate

    def recorded(self: Any, input_ids: Any, attention_mask: Any, **more: Any) -> Any:
        rows = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
        given.extend([token for token, real in zip(*row, strict=True) if real] for row in rows)
        return generate(self, input_ids=input_ids, attention_mask=attention_mask, **more)

    monkeypatch.setattr(LlamaForCausalLM, "generate", recorded)
    done = play(world, tmp_path / "a", name, sample)
    check_round(done)
    prompts = {tuple(done.store.sequence(row)[0].tolist()) for row in range(len(done.store))}
    assert prompts <= {tuple(ids) for ids in given}
    assert len(prompts) == 24


def test_the_text_alone_would_not_give_the_ids_back(world: World, tmp_path: Path) -> None:
    """So that the test above cannot pass by tokenizing texts."""
    from transformers import AutoTokenizer

    from tests.online.thinking import model_of

    done = play(world, tmp_path / "a", "qwen3", sample)
    template = Template(AutoTokenizer.from_pretrained(model_of(world, tmp_path / "again", "qwen3")))
    again = template.responses([line["response"] for line in done.samples])
    differing = sum(r.ids != line["response_ids"] for r, line in zip(again, done.samples, strict=True))
    assert differing > len(done.samples) / 2
