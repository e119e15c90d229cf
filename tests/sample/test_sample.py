"""Sampling: the same text for the same seed, however it was interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer, GenerationConfig

from halos.data import feedback as F
from halos.errors import HalosError
from halos.forward.grouping import Grouping
from halos.models.settings import Resources
from halos.online.settings import Online
from halos.sample import padding
from halos.sample.backends import Request, Transformers
from halos.sample.run import sample
from halos.sample.samples import Sample, read_samples
from halos.sample.settings import PromptsSlice, SamplerSlice
from halos.seeds import derive
from halos.settings import dump, read_slice
from halos.tokens.report import StoreMeta
from halos.tokens.template import Template
from tests.conftest import World
from tests.online.thinking import model_of
from tests.workflow.bound import Workflow

GREEDY: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0}


def run(world: World, output: Path, seed: int = 1, batch: int = 4, **changes: Any) -> list[dict[str, Any]]:
    """Sample from the base model to the test prompts, or to `feedback`."""
    feedback = changes.pop("feedback", world.results / "data/d/test.parquet")
    model = changes.pop("model", world.base / "model")
    prompts = {"skip": 0, "limit": 6, "samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, **changes}
    output.parent.mkdir(parents=True, exist_ok=True)
    (output.parent / "prompts.yaml").write_text(dump(prompts))
    config = world.slice(f"runs/d/m/base/seed{seed}")
    sample(config, [output.parent / "prompts.yaml"], [feedback], model, world.store, [output], batch)
    return [json.loads(line) for line in output.read_text().split("\n")[:-1]]


def texts(lines: list[dict[str, Any]]) -> list[str]:
    return [line["response"] for line in lines]


def test_the_same_seed_gives_the_same_text_and_another_seed_another(world: World, tmp_path: Path) -> None:
    first = run(world, tmp_path / "a.jsonl")
    assert run(world, tmp_path / "b.jsonl") == first
    assert texts(run(world, tmp_path / "c.jsonl", seed=2)) != texts(first)


def test_the_samples_of_a_prompt_and_of_batches_differ(world: World, tmp_path: Path) -> None:
    found = texts(run(world, tmp_path / "a.jsonl", batch=3))
    assert len(set(found)) == len(found)


def test_greedy_text_does_not_depend_on_the_batch(world: World, tmp_path: Path) -> None:
    one, four = (run(world, tmp_path / f"{b}.jsonl", batch=b, samples=1, **GREEDY) for b in (1, 4))
    assert one == four
    assert len({line["prompt_tokens"] for line in one}) > 1  # so that there was padding


def test_lines_are_in_the_order_of_prompts_and_samples_and_say_how_they_were_made(world: World, tmp_path: Path) -> None:
    lines = run(world, tmp_path / "a.jsonl", batch=5)
    records = F.select_prompts(world.results / "data/d/test.parquet", 6)
    assert [(line["prompt_id"], line["sample"]) for line in lines] == [
        (r.prompt_id, k) for r in records for k in (0, 1)
    ]
    for line, record in zip(lines[::2], records, strict=True):
        assert line["prompt"] == record.prompt
        assert {k: line[k] for k in ("seed", "temperature", "top_p", "max_new_tokens")} == {
            "seed": 1, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8
        }  # fmt: skip


def test_a_file_of_samples_reads_back_as_what_was_written(world: World, tmp_path: Path) -> None:
    lines = run(world, tmp_path / "a.jsonl", batch=5)
    assert list(lines[0]) == list(Sample.model_fields)
    samples = read_samples(tmp_path / "a.jsonl")
    assert [sample.model_dump() for sample in samples] == lines
    assert "".join(sample.line() for sample in samples) == (tmp_path / "a.jsonl").read_text()


def test_samples_made_elsewhere_need_three_fields_and_may_have_more(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt_id": "p", "response": "x", "sample": 0, "model": "gpt"}\n')
    assert read_samples(tmp_path / "a.jsonl") == [Sample(prompt_id="p", response="x", sample=0)]


def test_a_slice_of_the_wrong_kind_is_one_sentence(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"prompts.yaml: lr: Extra inputs are not permitted; write it again with"):
        run(world, tmp_path / "a.jsonl", lr=1e-3)


@pytest.mark.parametrize("folder", ["prompts/p", "runs/d/m/kto/seed1"])
def test_the_slices_of_the_catalogue_are_those_that_sampling_reads(folder: str, world: World) -> None:
    path = world.slice(folder)
    content = read_slice(path)
    if folder.startswith("prompts"):
        assert PromptsSlice.read(path).model_dump(exclude_unset=True) == content
    else:
        assert SamplerSlice.read(path).model_dump(exclude_unset=True).items() <= content.items()


def test_the_fresh_prompts_of_a_round_are_a_slice() -> None:
    online = Online(rounds=2, prompts_per_round=3, label="l")
    for split in ("train", "test"):
        content = online.prompts(split, 2, 7)
        assert PromptsSlice.model_validate(content).model_dump(include=set(content)) == content


def test_a_prompt_is_answered_once_and_the_limit_counts_prompts_that_differ(world: World, tmp_path: Path) -> None:
    records = [F.Feedback([{"role": "user", "content": text}], ["x"], "s") for text in "aabbccdd"]
    F.write(records, tmp_path / "data.parquet")
    lines = run(world, tmp_path / "a.jsonl", feedback=tmp_path / "data.parquet", limit=3)
    by_id = sorted("abcd", key=lambda text: F.prompt_id([{"role": "user", "content": text}]))
    assert [line["prompt"][0]["content"] for line in lines] == [text for text in by_id[:3] for _ in range(2)]
    lines = run(world, tmp_path / "b.jsonl", feedback=tmp_path / "data.parquet", limit=None, samples=1)
    assert [line["prompt"][0]["content"] for line in lines] == by_id
    lines = run(world, tmp_path / "c.jsonl", feedback=tmp_path / "data.parquet", skip=1, limit=2, samples=1)
    assert [line["prompt"][0]["content"] for line in lines] == by_id[1:3]


def test_several_prompt_sets_are_answered_by_the_model_that_is_loaded_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    alone = [run(world, tmp_path / f"{skip}.jsonl", skip=skip, limit=3) for skip in (0, 3)]
    load, loads = AutoModelForCausalLM.from_pretrained, []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k))
    how = {"limit": 3, "samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}
    for skip in (0, 3):
        (tmp_path / f"{skip}.yaml").write_text(dump({**how, "skip": skip}))
    outputs = [tmp_path / "both/a.jsonl", tmp_path / "both/b.jsonl"]
    data = world.results / "data/d/test.parquet"
    sample(world.slice("runs/d/m/base/seed1"), [tmp_path / "0.yaml", tmp_path / "3.yaml"], [data, data],
           world.base / "model", world.store, outputs, 4)  # fmt: skip
    assert [[json.loads(line) for line in path.open()] for path in outputs] == alone
    assert len(loads) == 1
    with pytest.raises(HalosError, match="as many --feedback and --output as --prompts"):
        sample(world.slice("runs/d/m/base/seed1"), [tmp_path / "0.yaml"], [data, data], world.base / "model",
               world.store, outputs, 4)  # fmt: skip


class Killed(BaseException):
    pass


def interrupted(world: World, output: Path, monkeypatch: pytest.MonkeyPatch, after: int, **changes: Any) -> Path:
    """Sample, killed after so many batches; returns the hidden partial file."""
    from transformers import LlamaForCausalLM

    generate, calls = LlamaForCausalLM.generate, 0

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Killed
        return generate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "generate", counting)
        patch.setattr(padding, "side_by_side", lambda *_: Grouping())
        with pytest.raises(Killed):
            run(world, output, **changes)
    assert not output.exists()
    return output.with_name(f".{output.name}.partial")


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_killed_run_goes_on_at_a_batch_and_ends_with_the_same_text(
    cut: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    expected = run(world, tmp_path / "whole.jsonl")
    partial = interrupted(world, tmp_path / "killed.jsonl", monkeypatch, after=2)
    content = partial.read_bytes()
    partial.write_bytes(content[: len(content) - cut])  # within the last line
    generate, calls = LlamaForCausalLM.generate, []

    def counting(self: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return generate(self, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "generate", counting)
    monkeypatch.setattr(padding, "side_by_side", lambda *_: Grouping())
    assert run(world, tmp_path / "killed.jsonl") == expected
    assert len(calls) == (1 if cut == 0 else 2)  # of 3 batches
    assert not partial.exists()


@pytest.mark.parametrize("change", [{"seed": 2}, {"temperature": 0.5}, {"batch": 3}, {"samples": 1}, {"limit": 5}])
def test_a_partial_file_of_other_settings_is_not_gone_on_with(
    change: dict[str, Any], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(world, tmp_path / "whole.jsonl", **change)
    interrupted(world, tmp_path / "killed.jsonl", monkeypatch, after=1)
    assert run(world, tmp_path / "killed.jsonl", **change) == expected


def test_a_partial_file_of_a_model_trained_anew_is_not_gone_on_with(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(world.base / "model", model)
    interrupted(world, tmp_path / "killed.jsonl", monkeypatch, after=2, model=model)
    weights = load_file(model / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, model / "model.safetensors", {"format": "pt"})
    expected = run(world, tmp_path / "whole.jsonl", model=model)
    assert run(world, tmp_path / "killed.jsonl", model=model) == expected


def scripted(monkeypatch: pytest.MonkeyPatch, responses: list[list[int]]) -> None:
    """Make the model say these token ids, one list to each sequence of its only batch, padded on the right."""
    import torch
    from transformers import LlamaForCausalLM

    def generate(self: Any, input_ids: Any, **kwargs: Any) -> Any:
        width = max(map(len, responses))
        pad = kwargs["generation_config"].pad_token_id
        rows = torch.tensor([[*r, *[pad] * (width - len(r))] for r in responses])
        return torch.cat([input_ids, rows], dim=1)

    monkeypatch.setattr(LlamaForCausalLM, "generate", generate)
    monkeypatch.setattr(padding, "side_by_side", lambda *_: Grouping())


def test_the_finish_reason_and_the_number_of_tokens_are_right(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")
    end: Any = tokenizer.convert_tokens_to_ids("<|end|>")
    word: list[int] = tokenizer("Yes", add_special_tokens=False)["input_ids"]
    full = (word * 8)[:8]
    scripted(monkeypatch, [[*word, end], full, [end], [*full[:7], end]])
    lines = run(world, tmp_path / "a.jsonl", limit=2)
    found = {(line["finish_reason"], line["response_tokens"]) for line in lines}
    assert found == {("stop", len(word) + 1), ("length", 8), ("stop", 1), ("stop", 8)}
    by_count = {line["response_tokens"]: line["response"] for line in lines if line["finish_reason"] == "stop"}
    assert by_count[len(word) + 1] == "Yes"
    assert by_count[1] == ""


def test_text_with_unusual_line_ends_survives(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")
    said = ["a\u2028b", "c\u0085d\x0c", "e\r\nf\rg\n", "  h\u2029 "]
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in said]
    end: Any = tokenizer.convert_tokens_to_ids("<|end|>")
    scripted(monkeypatch, [[*i, end] for i in ids])
    lines = run(world, tmp_path / "a.jsonl", limit=2)
    assert sorted(texts(lines)) == sorted(said)


def test_a_prompt_beyond_the_stores_limit_is_left_out(world: World, tmp_path: Path) -> None:
    records = [F.Feedback([{"role": "user", "content": text}], ["x"], "s") for text in ("word " * 100, "Short?")]
    F.write(records, tmp_path / "data.parquet")
    lines = run(world, tmp_path / "a.jsonl", feedback=tmp_path / "data.parquet", samples=1)
    assert [line["prompt"][0]["content"] for line in lines] == ["Short?"]


def test_no_prompt_at_all_is_refused(world: World, tmp_path: Path) -> None:
    F.write([], tmp_path / "data.parquet")
    with pytest.raises(HalosError, match="has no prompts, as its dataset was made without this split"):
        run(world, tmp_path / "a.jsonl", feedback=tmp_path / "data.parquet")


def of_positions(world: World, folder: Path, kind: str) -> Path:
    """An untrained model that has room for 64 tokens and answers with one id only: it never ends a response."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(world.base / "model", folder)
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, max_position_embeddings=64, **sizes)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    model.generation_config = GenerationConfig.from_pretrained(folder)
    model.generation_config.eos_token_id = [1]  # and all ids are as likely, so id 0 is the answer
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_response_ends_where_the_models_positions_do(kind: str, world: World, tmp_path: Path) -> None:
    """Rotary positions, which could run on, and learned ones, which could not."""
    model = of_positions(world, tmp_path / "model", kind)
    lines = run(world, tmp_path / "a.jsonl", model=model, limit=8, samples=1, max_new_tokens=1000, batch=8, **GREEDY)
    assert len({line["prompt_tokens"] for line in lines}) > 1
    assert {line["prompt_tokens"] + line["response_tokens"] for line in lines} == {64}
    assert {line["finish_reason"] for line in lines} == {"length"}


def test_a_prompt_that_fills_the_models_positions_loses_turns_or_is_left_out(world: World, tmp_path: Path) -> None:
    model = of_positions(world, tmp_path / "model", "llama")
    store = tmp_path / "store"
    store.mkdir()
    StoreMeta.read(world.store / "meta.json").model_copy(update={"max_prompt_length": 1000}).write(store / "meta.json")
    long = {"role": "user", "content": "word " * 100}
    history = [long, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Short?"}]
    F.write([F.Feedback(turns, ["x"], "s") for turns in ([long], history)], tmp_path / "data.parquet")
    (tmp_path / "p.yaml").write_text(dump({"skip": 0, "limit": 2, "samples": 1, "max_new_tokens": 8, **GREEDY}))
    sample(world.slice("runs/d/m/base/seed1"), [tmp_path / "p.yaml"], [tmp_path / "data.parquet"], model, store,
           [tmp_path / "a.jsonl"], 4)  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [history]
    assert lines[0]["prompt_tokens"] < 64


def test_of_the_saved_generation_config_only_the_ends_are_used(world: World, tmp_path: Path) -> None:
    plain = run(world, tmp_path / "a.jsonl", **GREEDY)
    model = tmp_path / "model"
    shutil.copytree(world.base / "model", model)
    saved = GenerationConfig.from_pretrained(model)
    saved.update(repetition_penalty=5.0, min_new_tokens=8, no_repeat_ngram_size=1)
    saved.save_pretrained(model)
    assert run(world, tmp_path / "b.jsonl", model=model, **GREEDY) == plain
    saved.update(eos_token_id=list(range(512)))
    saved.save_pretrained(model)
    lines = run(world, tmp_path / "c.jsonl", model=model, **GREEDY)
    assert {(line["finish_reason"], line["response_tokens"]) for line in lines} == {("stop", 1)}


def test_every_response_and_every_batch_has_a_seed_of_its_own(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, calls = Transformers.generate, []

    def recording(self: Any, requests: list[Request], temperature: float, top_p: float, seed: int, update: Any) -> Any:
        calls.append((seed, [request.seed for request in requests]))
        return generate(self, requests, temperature, top_p, seed, update)

    monkeypatch.setattr(Transformers, "generate", recording)
    run(world, tmp_path / "a.jsonl", seed=3)
    ids = [r.prompt_id for r in F.select_prompts(world.results / "data/d/test.parquet", 6)]
    assert [seed for seed, _ in calls] == [derive(3, "batch", number) for number in range(3)]
    seeds = [seed for _, chunk in calls for seed in chunk]
    assert sorted(seeds) == sorted(derive(3, "response", prompt_id, index) for prompt_id in ids for index in (0, 1))
    assert len(set(seeds)) == 12


def test_vllm_where_it_is_not_installed_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(dump({"skip": 0, "limit": 2, "samples": 1, "max_new_tokens": 8, **GREEDY}))
    with pytest.raises(HalosError, match="vLLM is not installed in this environment: `make env-vllm`"):
        sample(world.slice("runs/d/m/base/seed1"), [tmp_path / "p.yaml"], [world.results / "data/d/test.parquet"],
               world.base / "model", world.store, [tmp_path / "a.jsonl"], 4, "vllm")  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "sampler", "gres"),
    [
        ({}, "transformers", ""),
        ({"gpus": 4}, "vllm", "gpu:1"),
        ({"gpus": 4, "tensor_parallel": 2}, "vllm", "gpu:2"),
        ({"gpus": 4, "sampler": "transformers"}, "transformers", "gpu:1"),
        ({"sampler": "vllm"}, "vllm", ""),
    ],
)
def test_the_backend_and_its_gpus_are_those_of_the_models_entry(
    resources: dict[str, Any], sampler: str, gres: str, world: World
) -> None:
    model = world.config.models["m"].model_copy(update={"resources": Resources(**resources)})
    workflow = Workflow(world.config.model_copy(update={"models": {"m": model}}))
    wildcards = SimpleNamespace(model="m")
    assert (workflow.resources.backend(wildcards), workflow.resources.sampling_gres(wildcards)) == (sampler, gres)


@pytest.mark.parametrize(
    ("resources", "why"),
    [
        ({"gpus": 2, "tensor_parallel": 4}, r"tensor_parallel 4 is above gpus \(2\)"),
        ({"gpus": 2, "tensor_parallel": 2, "sampler": "transformers"}, "transformers samples on one GPU"),
    ],
)
def test_a_model_split_over_gpus_that_it_has_not_is_refused(resources: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Resources(**resources)


def test_the_ids_of_a_sample_are_those_that_were_generated_without_the_padding(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")
    end: Any = tokenizer.convert_tokens_to_ids("<|end|>")
    user: Any = tokenizer.convert_tokens_to_ids("<|user|>")  # a special token, which the text does not show
    said = [[65, user, 66, end], [65, 66, 67, 68, 69, 70, 71, 72], [end], [user, 65, 65, end]]
    scripted(monkeypatch, said)
    lines = run(world, tmp_path / "a.jsonl", limit=2)
    assert sorted(line["response_ids"] for line in lines) == sorted(said)
    assert {line["template"] for line in lines} == {Template(tokenizer).hash}


def test_tools_of_a_prompt_stay_with_its_samples(world: World, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    record = F.Feedback([{"role": "user", "content": "What?"}], ["x"], "s", tools=tools)
    F.write([record], tmp_path / "data.parquet")
    model, meta = model_of(world, tmp_path / "model", "qwen3"), world.store / "meta.json"
    store = tmp_path / "store"  # with room for the tools in a prompt
    store.mkdir()
    (store / "meta.json").write_text(json.dumps({**json.loads(meta.read_text()), "max_prompt_length": 1000}))
    prompts = {"skip": 0, "limit": 1, "samples": 1, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}
    (tmp_path / "p.yaml").write_text(dump(prompts))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1000}))
    sample(world.slice("runs/d/m/base/seed1"), [tmp_path / "p.yaml"], [tmp_path / "data.parquet"], model, store,
           [tmp_path / "a.jsonl"], 4)  # fmt: skip
    [line] = map(json.loads, (tmp_path / "a.jsonl").open())
    assert line["prompt_tokens"] > 100  # the tools are in it
    assert (line["tools"], line["prompt_id"]) == (tools, F.prompt_id(record.prompt, tools))
