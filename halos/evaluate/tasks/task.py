"""Benchmarks: lm-eval runs one of its own tasks, or a local one made from held-out feedback, on a model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from halos.errors import HalosError
from halos.evaluate.tasks.lm_eval import (
    check_data,
    check_metric,
    quicken_records,
    start_backend,
    task_manager,
    tokenised_apart,
    transformers_backend,
    vllm_backend,
)
from halos.evaluate.tasks.local import make_documents, render_documents, task_config
from halos.evaluate.tasks.result import TaskResult, plain
from halos.evaluate.tasks.settings import TaskSlice
from halos.hub import read_fetched

BOOTSTRAP = 1000
"""Bootstrap draws for the standard error of metrics that are no mean, such as f1. For a mean, lm-eval uses the closed
form whenever this is above 0."""


def evaluate(
    config: Path,
    model: Path,
    output: Path,
    feedback: Path | None = None,
    fetched: Sequence[Path] = (),
    backend: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel: int = 1,
) -> None:
    """Run a task of lm-eval, or a local one, on a model.

    The output is lm-eval's own, with the number that tables show under `halos` (TaskResult).

    lm-eval's own tasks are rendered by lm-eval's chat-template path, if the model's tokenizer has a template. That path
    would put all turns of a local task into one user turn, so its prompts are rendered here, turn by turn, and prompt
    and choice are tokenised apart, as in training and sampling. A local document that does not fit the model's context
    with each of its choices is left out and counted in `too_long`; `limit` counts documents before that.

    Args:
        config: config.yaml of the task.
        model: model folder.
        output: result to write, JSON.
        feedback: validation or test split, parquet, for a local task.
        fetched: fetched.json of the task, for a task of lm-eval; other data than it names is refused.
        backend: library that runs the model; in float32 both give the same scores up to rounding.
        tensor_parallel: GPUs over which vLLM splits each layer.

    Raises:
        HalosError: the task, its metric or its data is unknown, no document is left to evaluate, or vLLM cannot run
            the model.
    """
    if not (model / "config.json").is_file():
        raise HalosError(f"there is no model in {model}; train it or name another")
    run_task(TaskSlice.read(config), model, output, feedback, fetched, backend, tensor_parallel)


def run_task(
    settings: TaskSlice,
    model: Path,
    output: Path,
    feedback: Path | None,
    fetched: Sequence[Path],
    backend: str,
    tensor_parallel: int = 1,
    loaded: Any = None,
) -> None:
    """Run a task on a model folder, or on the model of it that is loaded.

    Args:
        settings: slice of the task.
        model, output, feedback, fetched, backend, tensor_parallel: as of `evaluate`.
        loaded: the network (transformers) or the LLM (vLLM), which then runs in its own type; None to load it.

    Raises:
        HalosError: as `evaluate`.
    """
    local, name = settings.local, settings.name
    documents = [] if local is None else make_documents(local, settings.num_fewshot, settings.limit, feedback)

    import lm_eval

    def check(loaded: dict[str, Any]) -> None:
        check_metric(name, settings.metric, loaded)
        check_data(name, read_fetched(fetched), loaded)

    manager = task_manager(name, local is None, check)
    batch_size = "auto" if backend == "vllm" else settings.batch_size  # vLLM forms its own batches
    if backend == "vllm":
        base, arguments = vllm_backend(model, tensor_parallel, loaded)
    else:
        base, arguments = transformers_backend(model, loaded)
    lm = start_backend(base if local is None else tokenised_apart(base), {**arguments, "batch_size": batch_size})
    templated = bool(lm.tokenizer.chat_template)
    if templated:
        lm.add_bos_token = False  # the template writes the special tokens it wants, and training adds none to it
    too_long = 0
    with tempfile.TemporaryDirectory() as folder:
        task: Any = name
        if local is not None:
            rendered = render_documents(documents, lm.tokenizer, lm.max_length - 1)  # vLLM generates a token after them
            too_long = len(documents) - len(rendered)
            if not rendered:
                raise HalosError(
                    f"no document of {feedback} fits the model's context of {lm.max_length} tokens; choose a dataset "
                    "with shorter prompts"
                )
            task = task_config(name, rendered, Path(folder))
        quicken_records()
        results = lm_eval.simple_evaluate(
            model=lm,
            model_args=arguments,  # for the record
            tasks=[task],
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            batch_size=batch_size,
            limit=settings.limit,
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
            apply_chat_template=templated and local is None,
        )
    assert results is not None
    content = plain(results)
    result = TaskResult.of(content, name, settings.metric, task_id=settings.task_id, backend=backend, too_long=too_long)
    result.write(output, content)
    left_out = f", {too_long} too long for the model, or not shown by its template, were left out" if too_long else ""
    print(f"{name}: {result.metric} {result.value}, {result.n} documents{left_out}")
