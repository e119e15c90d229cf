"""Sampling: responses of one model to prompt sets, with its own saved chat template."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from halos.data.feedback import Feedback, select_prompts
from halos.errors import HalosError
from halos.files import hash_content
from halos.sample.backends import Backend, Request, Transformers, Vllm
from halos.settings import read_slice
from halos.tokens.template import Template


def sample(
    config: Path,
    prompts: list[Path],
    feedback: list[Path],
    model: Path,
    store: Path,
    output: list[Path],
    batch: int = 64,
    backend: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel: int = 1,
) -> None:
    """The verb: sample responses to one prompt set or several, one after the other.

    Prompts of similar length are answered together, a share at a time, each from its own seed; so a stopped run goes on
    at a share and ends with the same text. Each output is whole or absent: it grows under a hidden name.

    Args:
        config: slice of the cell (`seed`, `attention`, `precision`).
        prompts: slice of each prompt set.
        feedback: the parquet file whose prompts are answered, for each set.
        model: the model's folder.
        store: the cell's sequence store, whose prompt length limit holds here too.
        output: for each set, JSON lines: prompt_id, prompt, response, sample, finish_reason (`stop` or `length`), token
            counts and the sampling parameters.
        batch: responses generated side by side.
        backend: `transformers` or `vllm`.
        tensor_parallel: GPUs over which vLLM splits each layer.

    Raises:
        HalosError: the sets, files and outputs differ in number, a set is empty, or the backend cannot run here.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not len(prompts) == len(feedback) == len(output):
        raise HalosError("give as many --feedback and --output as --prompts")
    settings = read_slice(config)
    limit = json.loads((store / "meta.json").read_text())["max_prompt_length"]
    positions = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None)
    tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
    template = Template(tokenizer)
    sets = [
        _prepare(read_slice(how), file, template, limit, positions, settings["seed"])
        for how, file in zip(prompts, feedback, strict=True)
    ]
    longest = max((len(job.request.ids) + job.request.limit for found in sets for job in found.jobs), default=1)
    what = (model, tokenizer, settings, batch, longest)
    engine = Vllm(*what, tensor_parallel=tensor_parallel) if backend == "vllm" else Transformers(*what)
    for found, path in zip(sets, output, strict=True):
        _answer(found, engine, template, path)


@dataclass(frozen=True)
class _Job:
    """A response that is wanted: to which record, the how manieth of it, and what is asked of the model."""

    record: int
    sample: int
    request: Request


@dataclass(frozen=True)
class _PromptSet:
    """A prompt set in token ids; its jobs are sorted by the length of the prompt, the longest first."""

    how: dict[str, Any]
    records: list[Feedback]
    ids: list[list[int] | None]
    jobs: list[_Job]


def _prepare(
    how: dict[str, Any], feedback: Path, template: Template, limit: int, positions: int | None, seed: int
) -> _PromptSet:
    """Template and tokenise the prompts of a set. A response ends where the model's positions do, if not before."""
    records = select_prompts(feedback, how["limit"], how["skip"], how.get("shuffle"))
    if positions is not None:
        limit = min(limit, positions - template.control - 1)  # so that there is room for a token
    ids = [p.ids for p in template.prompts([r.prompt for r in records], limit)]
    if too_long := sum(i is None for i in ids):
        print(f"{too_long} prompts are left out: their last user turn alone is longer than {limit} tokens")
    wanted: int = how["max_new_tokens"]
    room = [wanted if positions is None or i is None else min(wanted, positions - len(i)) for i in ids]
    if short := sum(r < wanted for r in room):
        print(f"after {short} prompts, the model's {positions} positions leave no room for {wanted} tokens; responses "
              "to them end there")  # fmt: skip
    jobs = [
        _Job(number, k, Request(found, room[number], _seed(seed, records[number].prompt_id, k)))
        for number, found in enumerate(ids)
        if found is not None
        for k in range(how["samples"])
    ]
    jobs.sort(key=lambda job: -len(job.request.ids))
    return _PromptSet(how, records, ids, jobs)


def _seed(seed: int, prompt_id: str, sample: int) -> int:
    """A seed for one response, whatever else is answered beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt_id} {sample}".encode()).digest()[:6])


def _answer(found: _PromptSet, backend: Backend, template: Template, output: Path) -> None:
    """Write the responses to a prompt set."""
    seed: int = backend.settings["seed"]
    shares = [found.jobs[start : start + backend.share] for start in range(0, len(found.jobs), backend.share)]
    parameters = {k: found.how[k] for k in ("temperature", "top_p", "max_new_tokens")}
    # what earlier lines must agree with; the weights by their files' dates, as hashing large ones takes minutes
    weights = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(backend.folder.glob("*.safetensors"))]
    inputs = hash_content([[r.prompt_id for r in found.records], found.ids, found.how["samples"], weights])
    identity = {"seed": seed, "inputs": inputs, **backend.identity, **parameters}

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    lines = _resumed(partial, identity, list(map(len, shares)))
    skip = len(lines)
    with (
        partial.open("a") as file,
        tqdm(total=len(found.jobs), initial=skip, desc="sample", unit=" responses", mininterval=1) as bar,
    ):
        if not lines:
            file.write(json.dumps(identity) + "\n")
        for number, share in enumerate(shares):
            if skip >= len(share):
                skip -= len(share)
                continue
            generated = backend.generate(
                [job.request for job in share],
                parameters["temperature"],
                parameters["top_p"],
                seed * 1_000_003 + number,
                bar.update,
            )
            for job, tokens in zip(share, generated, strict=True):
                text, count, reason = _read(tokens, backend.ends, template)
                record = found.records[job.record]
                line = {
                    "prompt_id": record.prompt_id,
                    "prompt": record.prompt,
                    "response": text,
                    "sample": job.sample,
                    "finish_reason": reason,
                    "prompt_tokens": len(job.request.ids),
                    "response_tokens": count,
                    "seed": seed,
                    **parameters,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    done = [json.loads(line) for line in partial.read_text().split("\n")[1:-1]]
    order = {record.prompt_id: i for i, record in enumerate(found.records)}
    done.sort(key=lambda line: (order[line["prompt_id"]], line["sample"]))
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in done))
    partial.replace(output)


def _read(tokens: list[int], ends: list[int], template: Template) -> tuple[str, int, str]:
    """(text, tokens with the end of turn, finish reason) of a generated response."""
    end = next((t for t, token in enumerate(tokens) if token in ends), None)
    text = template.tokenizer.decode(tokens[:end], skip_special_tokens=True).removeprefix(template.lead)
    return (text, len(tokens), "length") if end is None else (text, end + 1, "stop")


def _resumed(partial: Path, identity: dict[str, Any], shares: list[int]) -> list[str]:
    """The lines of whole shares (so many responses each) that an earlier attempt with the same settings wrote; the file
    is cut back to them."""
    if not partial.is_file():
        return []
    lines = partial.read_text().split("\n")[:-1]  # not splitlines: text may hold other line ends
    keep = 0
    if lines and lines[0] == json.dumps(identity):
        for size in shares:
            if keep + size > len(lines) - 1:
                break
            keep += size
    kept = lines[1 : keep + 1]
    partial.write_text("".join(line + "\n" for line in [json.dumps(identity), *kept]) if kept else "")
    return kept
