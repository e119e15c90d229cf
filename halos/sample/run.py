"""Sampling: a model's responses to prompt sets, with its own saved chat template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from halos.data.feedback import Feedback, select_prompts
from halos.errors import HalosError
from halos.files import hash_content, whole, write_text
from halos.pretrained import read_tokenizer
from halos.sample.backends import Backend, Request, Transformers, Vllm
from halos.sample.samples import Sample
from halos.sample.settings import PromptsSlice, SamplerSlice
from halos.seeds import derive
from halos.tokens.positions import Positions
from halos.tokens.report import StoreMeta
from halos.tokens.template import TOO_LONG, Template


def sample(
    config: Path,
    prompts: Sequence[Path],
    feedback: Sequence[Path],
    model: Path,
    store: Path,
    output: Sequence[Path],
    batch: int = 64,
    backend: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel: int = 1,
) -> None:
    """Sample a model's responses to one prompt set or several.

    Prompts of similar length are answered together, a chunk at a time, each chunk from its own seed: a stopped run goes
    on after its last whole chunk and ends with the same text. An output is whole or absent: it grows under a hidden
    name.

    Args:
        config: config.yaml of the cell.
        prompts: config.yaml of each prompt set.
        feedback: feedback records whose prompts are answered, a parquet file for each prompt set.
        model: model folder.
        store: sequence store of the cell, whose limit on the length of prompts applies here too.
        output: samples to write, a JSON lines file for each prompt set.
        batch: responses generated side by side.
        backend: library that generates.
        tensor_parallel: GPUs over which vLLM splits each layer.

    Raises:
        HalosError: prompt sets, feedback files and outputs differ in number, a set is empty, or the backend cannot run
            here.
    """
    if not len(prompts) == len(feedback) == len(output):
        raise HalosError("give as many --feedback and --output as --prompts")
    settings = SamplerSlice.read(config)
    meta, positions = StoreMeta.read(store / "meta.json"), Positions.read(model)
    tokenizer: Any = read_tokenizer(model, padding_side="left")
    template = Template(tokenizer, meta.split_special_tokens)
    limit = positions.prompt_limit(meta.max_prompt_length, template.control)
    sets = [
        _prepare(PromptsSlice.read(file), records, template, limit, positions.limit, settings.seed)
        for file, records in zip(prompts, feedback, strict=True)
    ]
    longest = max(
        (len(job.request.ids) + job.request.limit for prompt_set in sets for job in prompt_set.jobs), default=1
    )
    arguments = (model, tokenizer, settings, batch, longest)
    engine = Vllm(*arguments, tensor_parallel=tensor_parallel) if backend == "vllm" else Transformers(*arguments)
    for prompt_set, path in zip(sets, output, strict=True):
        _answer(prompt_set, engine, template, path)


@dataclass(frozen=True)
class _Job:
    """One response to generate: its record, its index among the record's samples, and the request."""

    record: int
    sample: int
    request: Request


@dataclass(frozen=True)
class _PromptSet:
    """A prompt set in token ids. Jobs are sorted by the length of their prompt, longest first.

    Attributes:
        ids: prompt of each record in token ids; None where it is too long.
    """

    settings: PromptsSlice
    records: list[Feedback]
    ids: list[list[int] | None]
    jobs: list[_Job]


def _prepare(
    settings: PromptsSlice, feedback: Path, template: Template, limit: int, positions: int | None, seed: int
) -> _PromptSet:
    """Template and tokenise the prompts of a set, and plan the responses.

    Args:
        limit: most tokens of a prompt, a control token not counted.
        positions: most tokens of prompt and response together; None for a model without a limit.
    """
    records = select_prompts(feedback, settings.limit, settings.skip, settings.shuffle)
    templated = template.prompts([r.prompt for r in records], limit, [r.tools for r in records])
    prompts = [p.ids for p in templated]
    for problem, number in Counter(p.problem for p in templated if p.problem is not None).items():
        print(f"{number} prompts are left out: {problem}" + (f" ({limit} tokens)" if problem == TOO_LONG else ""))
    wanted = settings.max_new_tokens
    room = [wanted if positions is None or ids is None else min(wanted, positions - len(ids)) for ids in prompts]
    if short := sum(tokens < wanted for tokens in room):
        print(f"after {short} prompts, the model's {positions} positions leave less than {wanted} tokens; responses to "
              "them end there")  # fmt: skip
    jobs = [
        _Job(record, index, Request(ids, room[record], derive(seed, "response", records[record].prompt_id, index)))
        for record, ids in enumerate(prompts)
        if ids is not None
        for index in range(settings.samples)
    ]
    jobs.sort(key=lambda job: -len(job.request.ids))
    return _PromptSet(settings, records, prompts, jobs)


def _answer(prompt_set: _PromptSet, backend: Backend, template: Template, output: Path) -> None:
    """Generate the responses to a prompt set and write them."""
    seed = backend.settings.seed
    jobs = prompt_set.jobs
    chunks = [jobs[start : start + backend.chunk] for start in range(0, len(jobs), backend.chunk)]
    parameters = prompt_set.settings.model_dump(include={"temperature", "top_p", "max_new_tokens"})
    # what earlier lines must agree with; the weights by their files' dates, as hashing large ones takes minutes
    weights = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(backend.folder.glob("*.safetensors"))]
    prompt_ids = [record.prompt_id for record in prompt_set.records]
    inputs = hash_content([prompt_ids, prompt_set.ids, prompt_set.settings.samples, weights])
    template_hash = template.hash
    identity = {"seed": seed, "inputs": inputs, "template": template_hash, **backend.identity, **parameters}

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    done = _resume(partial, identity, list(map(len, chunks)))
    with (
        partial.open("a") as file,
        tqdm(total=len(jobs), initial=done, desc="sample", unit=" responses", mininterval=1) as bar,
    ):
        if not done:
            file.write(json.dumps(identity) + "\n")
        for number, chunk in enumerate(chunks):
            if done >= len(chunk):
                done -= len(chunk)
                continue
            generated = backend.generate(
                [job.request for job in chunk],
                prompt_set.settings.temperature,
                prompt_set.settings.top_p,
                derive(seed, "batch", number),
                bar.update,
            )
            for job, tokens in zip(chunk, generated, strict=True):
                ids, reason = _ended(tokens, backend.ends)
                record = prompt_set.records[job.record]
                sample = Sample(
                    prompt_id=record.prompt_id,
                    prompt=record.prompt,
                    tools=record.tools,
                    response=_text(ids, reason, template),
                    sample=job.sample,
                    finish_reason=reason,
                    prompt_tokens=len(job.request.ids),
                    response_tokens=len(ids),
                    seed=seed,
                    response_ids=ids,
                    template=template_hash,
                    **parameters,
                )
                file.write(sample.line())
            file.flush()
    samples = [Sample.model_validate_json(line) for line in partial.read_text().split("\n")[1:-1]]
    order = {prompt_id: number for number, prompt_id in enumerate(prompt_ids)}
    samples.sort(key=lambda sample: (order[sample.prompt_id], sample.sample))
    with whole(output) as temporary:
        temporary.write_text("".join(sample.line() for sample in samples))
    partial.unlink()


def _ended(tokens: list[int], ends: list[int]) -> tuple[list[int], Literal["stop", "length"]]:
    """The ids of a generated response up to the one that ended it, less the padding behind, and its finish reason."""
    end = next((index for index, token in enumerate(tokens) if token in ends), None)
    return (tokens, "length") if end is None else (tokens[: end + 1], "stop")


def _text(ids: list[int], reason: Literal["stop", "length"], template: Template) -> str:
    """The text of a response, as an assistant turn that the template would write so.

    It is without the id that ended it and without what the template writes before a response, and begins with the
    beginning of reasoning that a prompt may end with.
    """
    text: str = template.tokenizer.decode(ids[:-1] if reason == "stop" else ids, skip_special_tokens=True)
    return template.thought * bool(text.strip()) + text.removeprefix(template.lead)


def _resume(partial: Path, identity: dict[str, Any], chunks: list[int]) -> int:
    """The number of samples that an earlier attempt with the same identity left in whole chunks.

    The file is cut back to these samples; without any it is emptied.

    Args:
        chunks: samples of each chunk.
    """
    if not partial.is_file():
        return 0
    lines = partial.read_text().split("\n")[:-1]  # splitlines would also split at line ends within a text
    keep = 0
    if lines and lines[0] == json.dumps(identity):
        for size in chunks:
            if keep + size > len(lines) - 1:
                break
            keep += size
    write_text(partial, "".join(line + "\n" for line in lines[: keep + 1]) if keep else "")
    return keep
