"""Control tokens: from the loss that wants them to the prompts that its model is sampled with."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
)

from halos.data.feedback import Feedback, read, select_prompts
from halos.models.load import load
from halos.models.policy import begin, save
from halos.registry import LOSSES
from halos.settings import dump
from halos.tokens.store import Store
from halos.tokens.template import Template
from halos.train.batches import Examples
from halos.views import VIEWS
from tests.conftest import World
from tests.forward.test_layout import ids_of
from tests.tokens.test_template import SHAPES, turn

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
CSFT, REWARD, DPO = (LOSSES[name]() for name in ("csft", "bradley_terry", "dpo"))
ROLES = ("chosen", "rejected")


CONVERSATIONS = [
    [turn("user", "Which is the largest ocean?")],
    [turn("user", "Hello."), turn("assistant", "Good day."), turn("user", "Say more.")],
    [turn("system", "Be brief."), turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
]


@pytest.fixture(params=SHAPES)
def parent(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Path:
    """The base model with one of several chat templates."""
    return templated(world, tmp_path / "parent", SHAPES[request.param])


def templated(world: World, folder: Path, template: str | None = None) -> Path:
    shutil.copytree(world.base / "model", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


def child_of(parent: Path, folder: Path, loss: Any = CSFT) -> tuple[Path, dict[str, int]]:
    """A model as a training without any step leaves it."""
    model, tokenizer, control = begin(parent, "sdpa", loss, None)
    save(model, model.state_dict(), parent, folder, tokenizer)
    return folder, control


def template_of(folder: Path) -> Template:
    return Template(AutoTokenizer.from_pretrained(folder))


def test_a_saved_childs_prompts_are_its_parents_and_then_the_chosen_token(parent: Path, tmp_path: Path) -> None:
    """So no turn of the history has one, and neither has a prompt without a response to come."""
    child, control = child_of(parent, tmp_path / "child")
    before, after = template_of(parent), template_of(child)
    prompts, longer = before.prompts(CONVERSATIONS, 100), after.prompts(CONVERSATIONS, 101)
    assert [p.ids for p in longer] == [[*(p.ids or ()), control["chosen"]] for p in prompts]
    assert not {id for p in prompts for id in p.ids or ()} & set(control.values())
    without = [after.tokenizer.apply_chat_template(c, tokenize=False) for c in CONVERSATIONS[:2]]
    assert without == [before.tokenizer.apply_chat_template(c, tokenize=False) for c in CONVERSATIONS[:2]]


def test_a_saved_childs_responses_are_its_parents(parent: Path, tmp_path: Path) -> None:
    child, control = child_of(parent, tmp_path / "child")
    before, after = template_of(parent), template_of(child)
    texts = ["Yes.", "  indented\n"]
    assert (after.lead, after.end) == (before.lead, before.end)
    assert after.responses(texts) == before.responses(texts)
    sampled = [[control["chosen"], *after.responses([text])[0].ids] for text in texts]
    found = [after.tokenizer.decode(ids, skip_special_tokens=True).removeprefix(after.lead) for ids in sampled]
    assert found == texts


def test_long_prompts_lose_the_same_turns_with_a_control_token(parent: Path, tmp_path: Path) -> None:
    child, control = child_of(parent, tmp_path / "child")
    long = [[turn("user", "one " * 20), turn("assistant", "two " * 20), turn("user", "three?")]]
    [before], [after] = template_of(parent).prompts(long, 30), template_of(child).prompts(long, 31)
    assert before.dropped_turns == after.dropped_turns == 2
    assert after.ids == [*(before.ids or ()), control["chosen"]]


def test_control_tokens_are_added_to_tokenizer_and_embeddings(world: World, tmp_path: Path) -> None:
    child, control = child_of(world.base / "model", tmp_path / "child")
    old, new = (AutoTokenizer.from_pretrained(f) for f in (world.base / "model", child))
    assert control == {"chosen": len(old), "rejected": len(old) + 1}
    assert len(new) == len(old) + 2
    assert new.convert_ids_to_tokens(list(control.values())) == ["<|good|>", "<|bad|>"]
    assert new("<|good|><|bad|>", add_special_tokens=False)["input_ids"] == list(control.values())
    assert (new.pad_token, new.eos_token) == (old.pad_token, old.eos_token)
    assert {*old.all_special_tokens, "<|good|>", "<|bad|>"} == set(new.all_special_tokens)
    before, after = load(world.base / "model", "sdpa"), load(child, "sdpa")
    assert after.get_input_embeddings().num_embeddings == after.config.vocab_size == len(new)
    weights = before.get_input_embeddings().weight
    assert torch.equal(after.get_input_embeddings().weight[: len(old)], weights)
    rows = after.get_input_embeddings().weight[len(old) :]
    assert not torch.equal(rows[0], rows[1])


def test_control_tokens_that_the_parent_has_are_not_added_again(world: World, tmp_path: Path) -> None:
    child, control = child_of(world.base / "model", tmp_path / "child")
    tokenizer = AutoTokenizer.from_pretrained(child)
    tokenizer.chat_template = AutoTokenizer.from_pretrained(world.base / "model").chat_template
    tokenizer.save_pretrained(child)
    model, again, same = begin(child, "sdpa", CSFT, None)
    assert same == control
    assert again is not None
    assert again.get_vocab() == tokenizer.get_vocab()
    start = load(child, "sdpa").state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())


def test_one_token_of_two_is_added_where_the_parent_has_the_other(world: World, tmp_path: Path) -> None:
    child, first = child_of(world.base / "model", tmp_path / "child")
    loss = LOSSES["csft"](rejected_token="<|worse|>")
    _, tokenizer, control = begin(child, "sdpa", loss, None)
    assert control == {"chosen": first["chosen"], "rejected": first["rejected"] + 1}
    assert tokenizer is not None
    assert {"<|good|>", "<|bad|>", "<|worse|>"} <= set(tokenizer.all_special_tokens)


def test_embeddings_with_spare_rows_are_not_resized(world: World, tmp_path: Path) -> None:
    """Many models have more rows than tokens."""
    spare = templated(world, tmp_path / "spare")
    model: Any = load(spare, "sdpa")
    model.resize_token_embeddings(528, mean_resizing=False)
    model.save_pretrained(spare)
    model, tokenizer, control = begin(spare, "sdpa", CSFT, None)
    assert model.get_input_embeddings().num_embeddings == 528
    assert tokenizer is not None
    assert max(control.values()) < len(tokenizer) < 528


def test_new_rows_are_the_same_for_the_same_seed_only(world: World) -> None:
    rows = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        rows.append(begin(world.base / "model", "sdpa", CSFT, None)[0].get_input_embeddings().weight[-2:])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_other_losses_leave_the_parents_tokenizer_alone(world: World) -> None:
    model, tokenizer, control = begin(world.base / "model", "sdpa", DPO, None)
    assert (tokenizer, control) == (None, {})
    start = load(world.base / "model", "sdpa").state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())


def test_training_sees_a_prompt_its_control_token_and_its_response(world: World, tmp_path: Path) -> None:
    """The prompts of chosen responses are those that sampling will have."""
    child, control = child_of(world.base / "model", tmp_path / "child")
    before, after = template_of(world.base / "model"), template_of(child)
    store = Store(world.store)
    examples = Examples(store, store.view("train", "paired"), VIEWS["paired"], control=control)
    records: list[Feedback] = [r for r in read(world.results / "data/d/train.parquet") if r.pairs][:12]
    expected = Counter[tuple[int, ...]]()
    for record in records:
        [prompt], [asked] = before.prompts([record.prompt], 60), after.prompts([record.prompt], 61)
        responses = [response.ids or [] for response in before.responses(record.responses)]
        for winner, loser in record.pairs:
            chosen = (*(prompt.ids or ()), control["chosen"], *responses[winner])
            assert chosen[: -len(responses[winner])] == tuple(asked.ids or ())
            expected[chosen[:101]] += 1
            expected[(*(prompt.ids or ()), control["rejected"], *responses[loser])[:101]] += 1
    seen = Counter[tuple[int, ...]]()
    for batch in examples.microbatches(np.arange(expected.total() // 2), ROLES, 4096):
        seen.update(ids_of(batch.layout))
    assert seen == expected


def test_a_child_is_sampled_with_the_chosen_token_and_answers_without_it(world: World, tmp_path: Path) -> None:
    from halos.sample.run import sample

    child, control = child_of(world.base / "model", tmp_path / "child")
    model: Any = load(child, "sdpa")
    with torch.no_grad():  # whatever it reads, it says the chosen token first
        model.lm_head.weight.zero_()
        model.model.embed_tokens.weight[control["chosen"]] = 5.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight[control["chosen"]] = 1.0
        assert model(torch.tensor([[control["chosen"]]])).logits.argmax() == control["chosen"]
    model.save_pretrained(child)
    (tmp_path / "prompts.yaml").write_text(
        dump({"skip": 0, "limit": 3, "samples": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4})
    )
    feedback = world.results / "data/d/test.parquet"
    sample(world.slice("runs/d/m/csft/seed1"), [tmp_path / "prompts.yaml"], [feedback], child, world.store,
           [tmp_path / "samples.jsonl"], 2)  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    records = select_prompts(feedback, 3)
    prompts = template_of(world.base / "model").prompts([r.prompt for r in records], 60)
    assert [line["prompt_tokens"] for line in lines] == [len(p.ids or ()) + 1 for p in prompts]
    assert {(line["response"], line["response_tokens"]) for line in lines} == {("", 4)}
