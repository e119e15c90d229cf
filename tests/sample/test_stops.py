"""Stop strings: a response is kept up to the first of them, by whatever backend, and learned as a finished one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from halos.data import feedback as F
from halos.forward.grouping import Grouping
from halos.online.settings import Online
from halos.sample import padding, vllm
from halos.sample.backends import Request
from halos.sample.settings import Prompts, PromptsSlice, SamplerSlice
from halos.sample.stops import Kept, Stops
from halos.sample.vllm import Vllm
from halos.settings import identity
from halos.tokens.template import Template
from tests.conftest import World
from tests.sample.test_sample import GREEDY, run, texts


@pytest.fixture(scope="module")
def tokenizer(world: World) -> Any:
    return AutoTokenizer.from_pretrained(world.base / "model")


def ids_of(tokenizer: Any, *pieces: str) -> list[int]:
    """The ids of pieces of text that are tokenised apart."""
    return [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def test_a_response_is_kept_up_to_the_first_of_the_strings(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "It is so.", "\nHuman", ": why?", "\nHuman: no")
    stops = Stops((" why", "\nHuman:"), tokenizer)
    assert stops.cut(ids) == Kept("It is so.", ids_of(tokenizer, "It is so."), len(ids_of(tokenizer, "It is so.")))
    assert Stops(("\nUser:",), tokenizer).cut(ids) is None
    assert Stops(("It",), tokenizer).cut(ids) == Kept("", [], 0)


def test_a_string_that_begins_within_a_token_leaves_the_text_alone(tokenizer: Any) -> None:
    token, id = next((text, id) for text, id in tokenizer.get_vocab().items() if text.isascii() and len(text) > 3)
    ids = [*ids_of(tokenizer, "So"), id]
    kept = Stops((token[2:],), tokenizer).cut(ids)
    assert kept == Kept("So" + token[:2], None, len(ids))


def test_special_tokens_can_be_stopped_at_and_are_not_in_the_text(tokenizer: Any) -> None:
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    ids = [user, *ids_of(tokenizer, "Yes"), user, *ids_of(tokenizer, "No")]
    stops = Stops(("<|user|>No",), tokenizer)
    assert stops.cut(ids) == Kept("Yes", ids[: len(ids_of(tokenizer, "Yes")) + 1], len(ids_of(tokenizer, "Yes")) + 1)


def test_what_a_response_is_stopped_at_does_not_depend_on_how_much_is_written_after_it(tokenizer: Any) -> None:
    """So that a backend which stops later gives the same; characters of several tokens included."""
    ids = ids_of(tokenizer, "Ça va? \U0001f600 d’accord", "…\U0001f600", "…\nfin \U0001f600…")
    for string in ("\nfin", "…", "\U0001f600 d", "’a", "…\U0001f600…", "?"):
        stops = Stops((string,), tokenizer)
        first = next(n for n in range(1, len(ids) + 1) if stops.reached(ids[:n]))
        assert stops.cut(ids[: first - 1]) is None
        [kept] = {repr(stops.cut(ids[:n])) for n in range(first, len(ids) + 1)}
        text = tokenizer.decode(ids)
        assert f"text={text[: text.index(string)]!r}" in kept


def test_the_samples_stop_where_the_whole_responses_have_the_string(world: World, tmp_path: Path) -> None:
    whole = run(world, tmp_path / "a.jsonl", max_new_tokens=24, **GREEDY)
    text = max(texts(whole), key=len)
    stop = [text[len(text) // 2 : len(text) // 2 + 2], "\nHuman:"]
    lines = run(world, tmp_path / "b.jsonl", max_new_tokens=24, stop=stop, **GREEDY)
    assert texts(lines) == [response.split(stop[0])[0] for response in texts(whole)] != texts(whole)
    template = Template(AutoTokenizer.from_pretrained(world.base / "model"))
    stopped = 0
    for line, full in zip(lines, whole, strict=True):
        if line["response"] == full["response"]:
            assert line == full
            continue
        stopped += 1
        assert line["finish_reason"] == "stop"
        assert line["response_tokens"] <= full["response_tokens"] + 1
        if line["response_ids"] is not None:
            assert line["response_ids"] == [*full["response_ids"][: line["response_tokens"] - 1], template.end]
            assert template.tokenizer.decode(line["response_ids"][:-1], skip_special_tokens=True) == line["response"]
    assert stopped
    assert run(world, tmp_path / "c.jsonl", max_new_tokens=24, stop=stop, batch=1, **GREEDY) == lines


def test_transformers_stops_to_generate(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    generate, widths = LlamaForCausalLM.generate, []

    def counting(self: Any, input_ids: Any, **more: Any) -> Any:
        out = generate(self, input_ids=input_ids, **more)
        widths.append(out.shape[1] - input_ids.shape[1])
        return out

    alone = {"limit": 1, "samples": 1, "max_new_tokens": 40, **GREEDY}
    [whole] = texts(run(world, tmp_path / "a.jsonl", **alone))
    monkeypatch.setattr(LlamaForCausalLM, "generate", counting)
    monkeypatch.setattr(padding, "side_by_side", lambda *_: Grouping())
    run(world, tmp_path / "b.jsonl", stop=[whole[3:5]], **alone)
    assert widths[-1] < 20


class Engine:
    """The part of vLLM's engine that the backend calls; it writes one token of each response a step."""

    def __init__(self, says: dict[str, list[int]]) -> None:
        self.says, self.running, self.aborted = says, dict.fromkeys(says, 0), []

    def add_request(self, number: str, prompt: Any, parameters: Any) -> None:
        assert number in self.says

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def abort_request(self, numbers: list[str]) -> None:
        self.aborted += numbers
        for number in numbers:
            del self.running[number]

    def step(self) -> list[Any]:
        outputs = []
        for number, n in list(self.running.items()):
            ids, finished = self.says[number][: n + 1], n + 1 == len(self.says[number])
            output = SimpleNamespace(token_ids=ids)
            outputs.append(SimpleNamespace(request_id=number, finished=finished, outputs=[output]))
            self.running[number] = n + 1
            if finished:
                del self.running[number]
        return outputs


def test_vllm_is_told_to_leave_a_response_at_its_stop_string(
    world: World, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With vLLM's engine replaced; tests/test_vllm.py compares the real one with transformers."""
    import sys

    monkeypatch.setattr(vllm, "prepare_vllm", lambda *_: None)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    settings = SamplerSlice(seed=1, attention="auto", precision="fp32")
    backend = Vllm(world.base / "model", tokenizer, settings, 4, 64, tensor_parallel=1)
    said = ids_of(tokenizer, "One.", "\nHuman:", " and more")
    monkeypatch.setattr(Vllm, "engine", Engine({"0": said, "1": said, "2": said[:3]}))
    stops = Stops(("\nHuman:",), tokenizer)
    done: list[int] = []
    requests = [Request([1], 64, 1, stops), Request([1], 64, 1), Request([1], 64, 1, stops)]
    found = backend.generate(requests, 0.0, 1.0, 0, done.append)
    assert found == [ids_of(tokenizer, "One.", "\nHuman:"), said, said[:3]]
    assert (backend.engine.aborted, sum(done)) == (["0"], 3)


def test_a_partial_file_without_the_strings_is_not_gone_on_with(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.sample.test_sample import interrupted

    expected = run(world, tmp_path / "whole.jsonl", stop=["e"])
    interrupted(world, tmp_path / "killed.jsonl", monkeypatch, after=1)
    assert run(world, tmp_path / "killed.jsonl", stop=["e"]) == expected


def test_the_strings_are_part_of_a_prompt_sets_identity_only_where_there_are_some() -> None:
    assert "stop" not in identity(Prompts())
    assert identity(Prompts(stop="\nHuman:"))["stop"] == ["\nHuman:"]  # type: ignore[arg-type]
    online = Online(rounds=1, prompts_per_round=2, label="l", stop=("a", "b"))
    content = online.prompts("train", 1, 1)
    assert PromptsSlice.model_validate(json.loads(json.dumps(content))).stop == ("a", "b")
    assert "stop" not in Online(rounds=1, prompts_per_round=2, label="l").prompts("train", 1, 1)
    with pytest.raises(ValidationError, match="at least 1 character"):
        Prompts(stop=("",))


def test_a_stopped_response_is_learned_with_the_end_of_a_turn(world: World, tmp_path: Path) -> None:
    """From its ids where they spell it, and from its text where they do not."""
    from dataclasses import replace

    from halos.settings import dump
    from halos.tokens.store import Store
    from halos.tokens.tokenize import tokenize

    lines = run(world, tmp_path / "a.jsonl", max_new_tokens=24, stop=["e", "."], temperature=1.0, samples=4)
    stopped = [line for line in lines if line["finish_reason"] == "stop" and line["response"].strip()]
    assert {line["response_ids"] is None for line in stopped} == {True, False}
    base = F.Feedback(stopped[0]["prompt"], [], "s", template=stopped[0]["template"])
    records = [
        replace(base, prompt=line["prompt"], responses=[line["response"]], response_ids=[ids], target=0)
        for line in stopped
        for ids in [line["response_ids"]]
    ]
    F.write(records, tmp_path / "d.parquet")
    settings = {"dataset": "d", "model": "m", "max_length": 200, "max_prompt_length": 120, "eval_examples": 100}
    (tmp_path / "t.yaml").write_text(dump(settings))
    tokenize(tmp_path / "t.yaml", tmp_path / "d.parquet", world.results / "data/d/validation.parquet",
             world.base / "model", tmp_path / "store", tmp_path / "r.json")  # fmt: skip
    template = Template(AutoTokenizer.from_pretrained(world.base / "model"))
    store = Store(tmp_path / "store")
    for row, line in enumerate(stopped):
        ids = store.sequence(row)[1].tolist()
        assert ids[-1] == template.end
        assert template.tokenizer.decode(ids[:-1], skip_special_tokens=True) == line["response"]
        assert line["response_ids"] in (None, ids)
