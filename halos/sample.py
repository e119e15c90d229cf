"""Sampling: responses of one model to a prompt set, with its own saved chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from halos.config import read_slice
from halos.data.feedback import Feedback, read
from halos.errors import HalosError
from halos.provenance import hash_content


def sample(config: Path, prompts: Path, feedback: Path, model: Path, store: Path, output: Path, batch: int) -> None:
    """The verb: sample responses with transformers.

    Prompts of similar length are answered together, each batch from its own seed, so a stopped run goes on at a batch
    and ends with the same text. The output is whole or absent: it grows under a hidden name.

    Args:
        config: slice of the cell (`seed`, `attention`, `precision`).
        prompts: slice of the prompt set.
        feedback: parquet file whose prompts are answered.
        model: the model's folder.
        store: the cell's sequence store, whose prompt length limit holds here too.
        output: JSON lines: prompt_id, prompt, response, sample, finish_reason (`stop` or `length`), token counts and
            the sampling parameters.
        batch: responses generated side by side.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from halos.data.template import Template

    settings, how = read_slice(config), read_slice(prompts)
    records = list(_unique(read(feedback), how["limit"]))
    if not records:
        raise HalosError(f"{feedback} holds no prompts to sample for")
    limit = json.loads((store / "meta.json").read_text())["max_prompt_length"]
    tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
    template = Template(tokenizer)
    ids = [p.ids for p in template.prompts([r.prompt for r in records], limit)]
    if too_long := sum(i is None for i in ids):
        print(f"{too_long} prompts are left out: their last user turn alone is longer than max_prompt_length ({limit})")
    jobs = [(i, k) for i in range(len(records)) if ids[i] is not None for k in range(how["samples"])]
    jobs.sort(key=lambda job: -len(ids[job[0]] or ()))
    batches = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
    parameters = {k: how[k] for k in ("temperature", "top_p", "max_new_tokens")}
    # what earlier lines must agree with; the weights by their files' dates, as hashing large ones takes minutes
    weights = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(model.glob("*.safetensors"))]
    inputs = hash_content([[r.prompt_id for r in records], ids, how["samples"], weights])
    identity = {"seed": settings["seed"], "inputs": inputs, "batch": batch, **parameters}

    partial = output.with_name(f".{output.name}.partial")
    lines = _resumed(partial, identity, batches)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and settings["precision"] == "bf16" else torch.float32
    network: Any = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, attn_implementation=settings["attention"], use_safetensors=True
    )
    network = network.to(device).eval()
    greedy = how["temperature"] == 0
    chosen = {"do_sample": False} if greedy else {"do_sample": True, **{k: how[k] for k in ("temperature", "top_p")}}
    generation = GenerationConfig.from_pretrained(model, max_new_tokens=how["max_new_tokens"], **chosen)
    generation.top_k = None if greedy else 0
    ends = set(generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id])
    output.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a") as file, torch.inference_mode():
        if not lines:
            file.write(json.dumps(identity) + "\n")
        skip = len(lines)
        for number, part in enumerate(tqdm(batches, desc="sample", unit="batch", mininterval=1)):
            if skip >= len(part):
                skip -= len(part)
                continue
            inputs = tokenizer.pad({"input_ids": [ids[i] for i, _ in part]}, return_tensors="pt").to(device)
            torch.manual_seed(settings["seed"] * 1_000_003 + number)
            out = network.generate(**inputs, generation_config=generation)[:, inputs["input_ids"].shape[1] :].tolist()
            for (i, k), tokens in zip(part, out, strict=True):
                end = next((t for t, token in enumerate(tokens) if token in ends), None)
                line = {
                    "prompt_id": records[i].prompt_id,
                    "prompt": records[i].prompt,
                    "response": tokenizer.decode(tokens[:end], skip_special_tokens=True).removeprefix(template.lead),
                    "sample": k,
                    "finish_reason": "length" if end is None else "stop",
                    "prompt_tokens": len(ids[i] or ()),
                    "response_tokens": len(tokens) if end is None else end + 1,
                    "seed": settings["seed"],
                    **parameters,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    done = [json.loads(line) for line in partial.read_text().split("\n")[1:-1]]
    order = {record.prompt_id: i for i, record in enumerate(records)}
    done.sort(key=lambda line: (order[line["prompt_id"]], line["sample"]))
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in done))
    partial.replace(output)


def _unique(records: Iterator[Feedback], limit: int | None) -> Iterator[Feedback]:
    """The first `limit` records with prompts that differ."""
    seen: set[str] = set()
    for record in records:
        if limit is not None and len(seen) == limit:
            return
        if record.prompt_id not in seen:
            seen.add(record.prompt_id)
            yield record


def _resumed(partial: Path, identity: dict[str, Any], batches: list[list[tuple[int, int]]]) -> list[str]:
    """The lines of whole batches that an earlier attempt with the same settings wrote; the file is cut back to them."""
    if not partial.is_file():
        return []
    lines = partial.read_text().split("\n")[:-1]  # not splitlines: text may hold other line ends
    keep = 0
    if lines and lines[0] == json.dumps(identity):
        for part in batches:
            if keep + len(part) > len(lines) - 1:
                break
            keep += len(part)
    kept = lines[1 : keep + 1]
    partial.write_text("".join(line + "\n" for line in [json.dumps(identity), *kept]) if kept else "")
    return kept
