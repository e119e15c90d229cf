"""A model of random weights with the published chat template of a thinking model, and an online round of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from halos.data import feedback as F
from halos.online.label import label
from halos.registry import VERIFIERS
from halos.settings import dump
from halos.tokens.store import Store
from halos.tokens.tokenize import tokenize
from tests.conftest import World

TEMPLATES = {"qwen3": "<|im_end|>", "deepseek_r1_distill": "<｜end▁of▁sentence｜>", "qwen3_5_think": "<|im_end|>"}
"""Chat template of TRL's package -> the token that ends a turn."""
TOKEN = re.compile(r"<[|｜/]?[A-Za-z_▁]+[|｜]?>")
PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Added tokens that are not special in these families: their text is shown."""
ENDS = tuple(range(300, 330))
"""More ids that end a response, so that many responses of random weights end."""
SETTINGS = {"dataset": "d", "model": "m", "max_length": 200, "max_prompt_length": 120, "eval_examples": 100}
DRAWN = {"skip": 0, "limit": 12, "samples": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 20}


@VERIFIERS.register("length")
def length(prompt: list[F.Turn], response: str) -> dict[str, float]:
    """A score of every response that has text."""
    return {"length": float(len(response))}


def model_of(world: World, folder: Path, name: str) -> Path:
    """A small Llama with the template, and the tokens that it writes in its vocabulary."""
    text = (Path(trl.__file__).parent / f"chat_templates/{name}.jinja").read_text()
    written = sorted(set(TOKEN.findall(text)) | set(PLAIN))
    tokenizer: Any = AutoTokenizer.from_pretrained(world.base / "model")
    tokenizer.add_tokens(list(PLAIN))
    special = [token for token in written if not re.fullmatch(r"</?[a-zA-Z_]+>", token)]
    tokenizer.add_special_tokens({"additional_special_tokens": special, "eos_token": TEMPLATES[name]})
    tokenizer.chat_template = text
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3}  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(tokenizer), **sizes))
    end = tokenizer.convert_tokens_to_ids(TEMPLATES[name])
    model.generation_config = GenerationConfig(eos_token_id=[end, *ENDS], pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Round:
    """What a round's stages wrote.

    Attributes:
        samples: the lines of the samples of its train prompts.
        records: the labelled records.
        store: the round's sequence store.
        report: that of tokenize.
    """

    samples: list[dict[str, Any]]
    records: list[F.Feedback]
    store: Store
    report: dict[str, Any]

    def learned(self) -> dict[tuple[str, str], list[tuple[list[int], list[int]]]]:
        """(prompt id, response's text) -> the (prompt, response) ids that are learned, of the train split."""
        found: dict[tuple[str, str], list[tuple[list[int], list[int]]]] = {}
        row = 0
        for record in self.records:
            for text in record.responses:
                prompt, response = self.store.sequence(row)
                found.setdefault((record.prompt_id, text), []).append((prompt.tolist(), response.tolist()))
                row += 1
        return found


def play(world: World, folder: Path, name: str, sample: Callable[..., Any]) -> Round:
    """Sample, label and tokenize, as the rules of an online round do; `sample` has the arguments of the verb."""
    model = model_of(world, folder / "model", name)
    splits = [world.results / f"data/d/{split}.parquet" for split in ("train", "validation")]
    (folder / "tokens.yaml").write_text(dump(SETTINGS))
    tokenize(folder / "tokens.yaml", splits[0], splits[1], model, folder / "store", folder / "tokens.json")
    for split in ("train", "validation"):
        (folder / f"{split}.yaml").write_text(dump(DRAWN))
    outputs = [folder / f"{split}.jsonl" for split in ("train", "validation")]
    sample(world.slice("runs/d/m/base/seed1"), [folder / "train.yaml", folder / "validation.yaml"], splits, model,
           folder / "store", outputs)  # fmt: skip
    content = {"labeller": "l", "kind": "verifier", "verifier": "length", "feedback": "binary"}
    (folder / "labeller.yaml").write_text(dump(content))
    labelled = [path.with_suffix(".parquet") for path in outputs]
    label(folder / "labeller.yaml", outputs, labelled, folder / "labels.json")
    tokenize(folder / "tokens.yaml", *labelled, model, folder / "round", folder / "round.json")
    shutil.rmtree(model)  # nothing below may need it
    return Round(
        [json.loads(line) for line in outputs[0].open()], list(F.read(labelled[0])), Store(folder / "round"),
        json.loads((folder / "round.json").read_text()),
    )  # fmt: skip


def check_round(done: Round, prompts: Callable[[list[dict[str, Any]]], list[list[int]]] | None = None) -> None:
    """Every sample with text is learned as the ids that were sampled, after the prompt that they were sampled from."""
    learned, seen = done.learned(), 0
    for line in done.samples:
        assert len(line["response_ids"]) == line["response_tokens"]
        if not line["response"].strip():
            continue
        pairs = learned[line["prompt_id"], line["response"]]
        assert line["response_ids"] in [response for _, response in pairs]
        assert {len(prompt) for prompt, _ in pairs} == {line["prompt_tokens"]}
        seen += 1
    counts = done.report["train"]
    assert seen == counts["sampled_responses"] == counts["sequences"] > 20
    assert counts["sampled_with_another_template"] == 0
    assert {line["finish_reason"] for line in done.samples} == {"stop", "length"}
