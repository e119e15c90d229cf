"""A policy's own samples, read back by an online round: what is learned is, token for token, what was sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from halos.errors import HalosError
from halos.sample.run import sample
from halos.tokens.store import Store, check
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


def test_a_store_without_responses_that_fit_the_template_can_be_sampled_from_and_not_trained_on(
    world: World, tmp_path: Path
) -> None:
    """Prompts that end in the beginning of reasoning, which the data's responses do not have."""
    done = play(world, tmp_path / "a", "deepseek_r1_distill", sample)
    assert {line["response"][:8] for line in done.samples if line["response"].strip()} == {"<think>\n"}
    store = Store(tmp_path / "a/store")
    assert (store.n_responses, len(store)) == (0, 0)
    with pytest.raises(HalosError, match=r"no rows for the paired view in its train split \(it has none\): .*records "
                       r"were dropped: the response does not begin with <think>"):  # fmt: skip
        check(store.folder, ["paired"], tmp_path / "checked.json")
    check(store.folder, [], tmp_path / "checked.json")


def test_the_text_alone_would_not_give_the_ids_back(world: World, tmp_path: Path) -> None:
    """So that the test above cannot pass by tokenizing texts."""
    from transformers import AutoTokenizer

    from tests.online.thinking import model_of

    done = play(world, tmp_path / "a", "qwen3", sample)
    template = Template(AutoTokenizer.from_pretrained(model_of(world, tmp_path / "again", "qwen3")))
    again = template.responses([line["response"] for line in done.samples])
    differing = sum(r.ids != line["response_ids"] for r, line in zip(again, done.samples, strict=True))
    assert differing > len(done.samples) / 2
