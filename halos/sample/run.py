"""Sampling: a model's responses to prompt sets, with its own saved chat template."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from tqdm import tqdm

from halos.data.feedback import Feedback, select_prompts
from halos.errors import HalosError
from halos.files import hash_content, whole, write_text
from halos.models.architectures import check_known
from halos.pretrained import TRUSTED, trusts
from halos.sample.backends import Backend, Transformers
from halos.sample.by_hand import read_prompts
from halos.sample.prompter import Prompter, PromptSet
from halos.sample.samples import Sample, write_samples
from halos.sample.settings import PromptsSlice, SamplerSlice
from halos.sample.stops import Stops
from halos.sample.vllm import Vllm
from halos.seeds import derive
from halos.tokens.report import StoreMeta
from halos.tokens.template import Template


def sample(
    config: Path | None,
    prompts: Sequence[Path],
    feedback: Sequence[Path] | None,
    model: Path,
    store: Path | None,
    output: Sequence[Path],
    batch: int = 64,
    backend: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel: int = 1,
    n: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    seed: int | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Sample a model's responses to one prompt set or several: `--model FOLDER --prompts FILE --output FILE`.

    By hand, prompts are files of any origin: texts, turns, or objects with a field `prompt`, `messages` or
    `instruction`. A rule gives config, feedback and store, and prompt sets in place of such files.

    Prompts of similar length are answered together, a chunk at a time, each chunk from its own seed: a stopped run goes
    on after its last whole chunk and ends with the same text. An output is whole or absent: it grows under a hidden
    name.

    Args:
        config: config.yaml of the cell; by hand none, and the options from n on instead.
        prompts: files of prompts: JSON, JSON lines, CSV or parquet; with a config, config.yaml of each prompt set.
        feedback: with a config, feedback records whose prompts are answered, a file for each prompt set.
        model: model folder.
        store: with a config, sequence store of the cell, whose limit on the length of prompts applies here too.
        output: samples to write for each, JSON lines, or one JSON list where it ends in .json.
        batch: responses generated side by side.
        backend: library that generates.
        tensor_parallel: GPUs over which vLLM splits each layer.
        n: responses to each prompt (by hand; default 1).
        temperature: of sampling, 0 is greedy (by hand; default 0.7).
        top_p: probability mass of the tokens that are drawn from (by hand; default 0.95).
        max_new_tokens: token limit of a response (by hand; default 2048).
        limit: the most prompts of a file, from its start (by hand; default all).
        seed: of the draws (by hand; default 0).
        trust_remote_code: run the code that comes with the model, which this workflow has kept beside it (by hand).

    Raises:
        HalosError: prompt sets, feedback files and outputs differ in number, a set is empty, the backend cannot run
            here, or options of both ways are mixed.
    """
    how = {"samples": n, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "limit": limit}
    given = {name: value for name, value in how.items() if value is not None}
    if config is None:
        if feedback or store is not None or len(prompts) != len(output):
            raise HalosError("give --config with --feedback and --store, or none of them; and as many --output as "
                             "--prompts")  # fmt: skip
        _check_by_hand(model, trust_remote_code)
        settings = SamplerSlice(seed=seed or 0, attention="auto", precision="bf16")
        asked = [_by_hand({"limit": None, **given})] * len(prompts)
        records = [read_prompts(file, limit) for file in prompts]
        max_prompt_length, split_special_tokens = sys.maxsize, True
    else:
        given |= {} if seed is None else {"seed": seed}
        given |= {"trust_remote_code": True} if trust_remote_code else {}
        if given:
            named = ", ".join(f"--{'n' if name == 'samples' else name.replace('_', '-')}" for name in given)
            raise HalosError(f"{named}: with --config, the prompt sets and the cell say this: leave it out")
        if store is None or not len(prompts) == len(feedback or ()) == len(output):
            raise HalosError("with --config, give --store, and as many --feedback and --output as --prompts")
        settings, meta = SamplerSlice.read(config), StoreMeta.read(store / "meta.json")
        asked = [PromptsSlice.read(file) for file in prompts]
        records = [read_records(*pair) for pair in zip(asked, feedback or (), strict=True)]
        max_prompt_length, split_special_tokens = meta.max_prompt_length, meta.split_special_tokens
    prompter = Prompter(model, settings.seed, max_prompt_length, split_special_tokens, by_hand=config is None)
    sets = [prompter.prepare(*pair) for pair in zip(asked, records, strict=True)]
    arguments = (model, prompter.tokenizer, settings, batch, max((s.longest for s in sets), default=1))
    engine = Vllm(*arguments, tensor_parallel=tensor_parallel) if backend == "vllm" else Transformers(*arguments)
    if config is None:  # a model from elsewhere may not say that it ends a response as its template does
        engine.ends = sorted({*engine.ends, prompter.template.end})
    for prompt_set, path in zip(sets, output, strict=True):
        respond(prompt_set, engine, prompter.template, path)


def read_records(settings: PromptsSlice, feedback: Path) -> list[Feedback]:
    """The feedback records whose prompts a prompt set asks for.

    Raises:
        HalosError: the file has no prompts, or no more than are skipped.
    """
    return select_prompts(feedback, settings.limit, settings.skip, settings.shuffle)


def _check_by_hand(model: Path, trusted: bool) -> None:
    """Check that a folder of any origin holds a model, and that code that comes with it is run on request alone.

    The folder may say that its code was accepted, but by whom is not known: it may have been copied from elsewhere.

    Raises:
        HalosError: it holds none, or the code is not to be run.
    """
    if not (model / "config.json").is_file():
        raise HalosError(f"there is no model in {model} (no config.json): name a model's folder")
    if (model / TRUSTED).is_file() and not trusted:
        raise HalosError(f"the model in {model} brings code of its own, which is not run: give --trust-remote-code if "
                         "you have read and trust it")  # fmt: skip
    check_known(model, trusts(model))


def _by_hand(given: dict[str, Any]) -> PromptsSlice:
    """A prompt set of options of the command line."""
    try:
        return PromptsSlice.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        option = "n" if name == "samples" else name.replace("_", "-")
        raise HalosError(f"--{option}: {first['msg']}") from None


def respond(prompt_set: PromptSet, backend: Backend, template: Template, output: Path) -> None:
    """Generate the responses to a prompt set and write them.

    A stopped run goes on after its last whole chunk, which is kept beside the output under a hidden name.
    """
    seed = backend.settings.seed
    jobs = prompt_set.jobs
    chunks = [jobs[start : start + backend.chunk] for start in range(0, len(jobs), backend.chunk)]
    parameters = prompt_set.settings.model_dump(include={"temperature", "top_p", "max_new_tokens", "stop"})
    # what earlier lines must agree with; the weights by their files' dates, as hashing large ones takes minutes
    weights = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(backend.folder.glob("*.safetensors"))]
    prompt_ids = [record.prompt_id for record in prompt_set.records]
    inputs = hash_content([prompt_ids, prompt_set.ids, prompt_set.settings.samples, weights])
    template_hash = template.hash
    identity = {"seed": seed, "inputs": inputs, "template": template_hash, **backend.identity, **parameters}

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(output)
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
                record = prompt_set.records[job.record]
                answer = _answered(tokens, backend.ends, job.request.stops, template)
                sample = Sample(
                    prompt_id=record.prompt_id,
                    prompt=record.prompt,
                    tools=record.tools,
                    response=answer.text,
                    sample=job.sample,
                    finish_reason=answer.reason,
                    prompt_tokens=len(job.request.ids),
                    response_tokens=answer.tokens,
                    seed=seed,
                    response_ids=answer.ids,
                    template=template_hash,
                    **parameters,
                )
                file.write(sample.line())
            file.flush()
    samples = [Sample.model_validate_json(line) for line in partial.read_text().split("\n")[1:-1]]
    order = {prompt_id: number for number, prompt_id in enumerate(prompt_ids)}
    samples.sort(key=lambda sample: (order[sample.prompt_id], sample.sample))
    with whole(output) as temporary:
        write_samples(samples, temporary, as_list=output.suffix == ".json")
    partial.unlink()


def partial_of(output: Path) -> Path:
    """What a stopped run has of an output."""
    return output.with_name(f".{output.name}.partial")


@dataclass(frozen=True)
class _Answer:
    """A response as a sample holds it; `tokens` is its length with the token that ends it."""

    text: str
    ids: list[int] | None
    tokens: int
    reason: Literal["stop", "length"]


def _answered(tokens: list[int], ends: list[int], stops: Stops | None, template: Template) -> _Answer:
    """A response up to the id that ended it, or up to a stop string. In place of that stands the template's end of a
    turn, so that it is learned as any other that is finished."""
    end = next((index for index, token in enumerate(tokens) if token in ends), None)
    kept = stops.cut(tokens[:end]) if stops else None
    if kept is not None:
        ids = None if kept.ids is None else [*kept.ids, template.end]
        return _Answer(_turn(kept.text, template), ids, kept.tokens + 1, "stop")
    text = _turn(template.tokenizer.decode(tokens[:end], skip_special_tokens=True), template)
    if end is None:
        return _Answer(text, tokens, len(tokens), "length")
    return _Answer(text, tokens[: end + 1], end + 1, "stop")


def _turn(text: str, template: Template) -> str:
    """The text of a response, as an assistant turn that the template would write so.

    It is without what the template writes before a response, and begins with the beginning of reasoning that a prompt
    may end with.
    """
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
