"""Benchmarks: a task of lm-eval by name, or a local one made from held-out feedback. All are run by lm-eval, on
transformers or on vLLM."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from halos.errors import HalosError
from halos.evaluate.tasks.lm_eval import (
    check_data,
    start_backend,
    task_manager,
    tokenised_apart,
    transformers_backend,
    vllm_backend,
)
from halos.evaluate.tasks.local import documents_of, local_task, render_documents
from halos.files import write_json
from halos.hub import read_fetched
from halos.settings import read_slice

BOOTSTRAP = 1000
"""Draws for the standard error of metrics that are no mean, such as f1. That of a mean has a closed form, which lm-eval
uses whenever this is above 0."""


def evaluate(
    config: Path,
    model: Path,
    output: Path,
    feedback: Path | None = None,
    fetched: Sequence[Path] = (),
    backend: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel: int = 1,
) -> None:
    """Run a task and write lm-eval's whole result, with what tables read of it under `halos`: {task_id, backend,
    metric, value, stderr, n, too_long}.

    lm-eval's own tasks get its chat-template path, if the model's tokenizer has a template. For a local task that path
    would put all turns into one user turn, so its prompts are rendered here, by the model's template, turn by turn; and
    prompt and choice are tokenised apart, as in training and sampling. A document that does not fit the model's context
    with all its choices is left out and counted in `too_long`; `limit` is of the documents before that.

    Args:
        config: the task's slice of the config.
        model: folder with the weights, the tokenizer and its chat template.
        feedback: parquet of held-out records; local tasks only.
        output: a JSON file.
        fetched: what `fetch` wrote, for a task of lm-eval: other data than that is refused.
        backend: transformers or vllm, in the environment that has it. Both score the same documents, and in float32
            their scores are equal up to rounding.
        tensor_parallel: GPUs over which vLLM splits the model.

    Raises:
        HalosError: an unknown task or metric, task data that cannot be had, no document to evaluate, or a model that
            vLLM cannot run.
    """
    content = read_slice(config)
    if not (model / "config.json").is_file():
        raise HalosError(f"there is no model in {model}; train it or name another")
    documents = documents_of(content, feedback) if content["local"] else []

    import lm_eval

    def check(loaded: dict[str, Any]) -> None:
        _check_metric(name, content["metric"], loaded)
        check_data(name, read_fetched(fetched), loaded)

    name = content["task"] or content["local"]
    manager = task_manager(name, content["local"] is None, check)

    batch_size = "auto" if backend == "vllm" else content["batch_size"]  # vLLM forms its batches itself
    base, arguments = vllm_backend(model, tensor_parallel) if backend == "vllm" else transformers_backend(model)
    lm = start_backend(tokenised_apart(base) if content["local"] else base, {**arguments, "batch_size": batch_size})
    templated = bool(lm.tokenizer.chat_template)
    if templated:
        lm.add_bos_token = False  # the template writes what special tokens it wants, and training adds none to it
    too_long = 0
    with tempfile.TemporaryDirectory() as folder:
        task: Any = name
        if content["local"]:
            rendered = render_documents(documents, lm.tokenizer, lm.max_length - 1)  # vLLM generates a token after them
            too_long = len(documents) - len(rendered)
            if not rendered:
                raise HalosError(f"no document of {feedback} fits the model's context of {lm.max_length} tokens")
            task = local_task(name, rendered, Path(folder))
        results = lm_eval.simple_evaluate(
            model=lm,
            model_args=arguments,  # for the record
            tasks=[task],
            task_manager=manager,
            num_fewshot=content["num_fewshot"],
            batch_size=batch_size,
            limit=content["limit"],
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
            apply_chat_template=templated and not content["local"],
        )
    assert results is not None
    plain = _plain(results)
    scores = _summary(plain, name, content["metric"])
    summary = {"task_id": content["task_id"], "backend": backend, **scores, "too_long": too_long}
    write_json(output, {**plain, "halos": summary})
    left_out = f", {too_long} too long for the model were left out" if too_long else ""
    print(f"{name}: {summary['metric']} {summary['value']}, {summary['n']} documents{left_out}")


def _check_metric(name: str, metric: str, loaded: dict[str, Any]) -> None:
    """Refuse a metric that the task, or its group as a whole, does not give."""
    if name in loaded["tasks"]:
        known = set(loaded["tasks"][name].aggregation())
    elif name in loaded["groups"]:
        known = {m.metric for m in loaded["groups"][name].aggregate_metric_list or ()}
    else:
        known = set()
    if not known:
        raise HalosError(f"lm-eval gives {name} no score as a whole; list its tasks one by one")
    if metric.split(",")[0] not in known:
        raise HalosError(f"task {name} has no metric {metric!r}; it has {', '.join(sorted(map(str, known)))}")


def _summary(results: dict[str, Any], name: str, metric: str) -> dict[str, Any]:
    """The one number of a result. lm-eval's names are metric,filter; without a filter, its first one is meant."""
    scores = results["results"][name]
    keys = [k for k in scores if "," in k and metric in (k, k.split(",")[0])]
    if not keys:
        raise HalosError(f"task {name} has no metric {metric!r}; it has {', '.join(k for k in scores if ',' in k)}")
    stderr = scores.get(keys[0].replace(",", "_stderr,", 1))
    return {
        "metric": keys[0],
        "value": scores[keys[0]],
        "stderr": stderr if isinstance(stderr, float) else None,  # "N/A" where lm-eval has none
        "n": scores["sample_len"],
    }


def _plain(value: Any) -> Any:
    """The same in JSON's types: numpy numbers as Python's, what is not finite as None, other objects as text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
