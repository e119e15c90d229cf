"""A cell's samples and task results, by one process that loads its model once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from halos.answer.settings import AnswerSlice
from halos.errors import HalosError
from halos.evaluate.tasks.lm_eval import context_of
from halos.evaluate.tasks.task import run_task
from halos.files import hash_file, whole
from halos.sample.backends import Transformers
from halos.sample.prompter import Prompter, PromptSet
from halos.sample.run import partial_of, read_records, respond
from halos.sample.settings import SamplerSlice
from halos.sample.vllm import Vllm, prepare_vllm
from halos.settings import identity
from halos.together import Failures, Item
from halos.tokens.report import StoreMeta


def answer(
    config: Path,
    cell: Path,
    model: Path,
    manifest: Path,
    store: Path,
    output: Path,
    kept: Path,
    earlier: Sequence[Path] = (),
    feedback: Sequence[Path] = (),
    local: Sequence[Path] = (),
    fetched: Sequence[Path] = (),
    batch: int = 64,
    backend: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel: int = 1,
) -> None:
    """Answer prompt sets and tasks by one load of a cell's model, in the same words and with the same scores as the
    verbs `sample` and `task`.

    One that fails stops none of the others: in place of its answers, the output has the reason. What is finished is
    kept until the output is whole, so that a run that is stopped loses no more than the chunk of samples, or the task,
    that it is at.

    The tasks compute as the samples do: in the cell's precision and attention, where `task` takes the type of the saved
    weights. In float32, and where those are one type, that is the same.

    Args:
        config: the prompt sets and tasks, with their settings.
        cell: config.yaml of the cell.
        model: model folder.
        manifest: its manifest.
        store: sequence store of the cell, whose limit on the length of prompts applies here too.
        output: folder to write: samples/NAME.jsonl for a prompt set, tasks/NAME.json for a task, and in place of one
            that failed a file that ends in .failed.
        kept: folder of what a stopped run has finished, of this batch alone.
        earlier: the same of other batches, whose runs may not have ended: what they have finished is copied.
        feedback: feedback records whose prompts are answered, a file for each prompt set, in their order.
        local: feedback records that a local task is made of, a file for each, in their order.
        fetched: fetched.json of each task of lm-eval, in their order.
        batch: responses generated side by side, on transformers.
        backend: library that runs the model.
        tensor_parallel: GPUs over which vLLM splits each layer.

    Raises:
        HalosError: files are missing, the backend cannot run the model, or nothing could be answered.
    """
    if not (model / "config.json").is_file():
        raise HalosError(f"there is no model in {model}; train it or name another")
    asked, settings, meta = AnswerSlice.read(config), SamplerSlice.read(cell), StoreMeta.read(store / "meta.json")
    own = [name for name, task in asked.tasks.items() if task.local is None]
    ours = [name for name in asked.tasks if name not in own]
    if [*map(len, (feedback, fetched, local))] != [*map(len, (asked.prompts, own, ours))]:
        raise HalosError(
            f"{config} wants a --feedback for each prompt set ({len(asked.prompts)}), a --fetched for each task of "
            f"lm-eval ({len(own)}), and a --local for each local one ({len(ours)})"
        )
    same = [*map(hash_file, (manifest, cell, store / "meta.json")), backend]

    def hashed(file: Path) -> str | None:
        return hash_file(file) if file.is_file() else None  # then the item alone fails

    prompts = {
        Item.of(f"samples/{name}.jsonl", kept, [identity(how), hashed(file), batch, *same]): (how, file)
        for (name, how), file in zip(asked.prompts.items(), feedback, strict=True)
    }
    theirs = dict(zip([*own, *ours], [*fetched, *local], strict=True))
    tasks = {
        Item.of(f"tasks/{name}.json", kept, [identity(task), hashed(theirs[name]), *same]): (task, theirs[name])
        for name, task in asked.tasks.items()
    }
    items, failures = [*prompts, *tasks], Failures()
    for item in items:
        take(item, earlier)
    for item in items:
        if item.done:
            print(f"{item.place}: finished by an earlier attempt")
    if not all(item.done for item in items):
        prompter = Prompter(model, settings.seed, meta.max_prompt_length, meta.split_special_tokens)
        sets: dict[Item, PromptSet] = {}
        for item, (how, file) in prompts.items():
            if not item.done:
                with failures.of(item):
                    sets[item] = prompter.prepare(how, read_records(how, file))
        waiting = {item: of for item, of in tasks.items() if not item.done}
        longest = max((prompt_set.longest for prompt_set in sets.values()), default=1)
        arguments = (model, prompter.tokenizer, settings, batch, longest)
        engine: Transformers | Vllm
        if backend == "vllm":
            prepare_vllm(tensor_parallel)
            engine = Vllm(*arguments, tensor_parallel, context_of(model) if waiting else None)
        else:
            engine = Transformers(*arguments)
        if sets or waiting:
            loaded = engine.loaded  # if it cannot be loaded, nothing can be answered
        for item, prompt_set in sets.items():
            with failures.of(item):
                engine.expect(prompt_set.longest)
                respond(prompt_set, engine, prompter.template, item.kept)
                print(f"{item.place}: {len(prompt_set.jobs)} responses")
        for item, (task, file) in waiting.items():
            with failures.of(item):
                files: tuple[Path | None, list[Path]] = (None, [file]) if task.local is None else (file, [])
                run_task(task, model, item.kept, *files, backend, tensor_parallel, loaded)
    failures.publish(items, output, kept)


def take(item: Item, folders: Sequence[Path]) -> None:
    """Copy what another batch has finished or begun of an item, if it has. Its run may not have ended: a file that
    grows is read up to its last whole line."""
    for path in (item.kept, partial_of(item.kept)):
        for folder in folders:
            if not item.done and not path.is_file():
                with suppress(FileNotFoundError):
                    content = (folder / path.relative_to(item.kept.parents[1])).read_bytes()
                    with whole(path) as temporary:
                        temporary.write_bytes(content)
