"""Generation by vLLM, on one GPU, several, or the CPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

from halos.errors import HalosError
from halos.pretrained import trusts
from halos.sample.backends import LOADS, Backend, Request, ranked
from halos.sample.settings import SamplerSlice

FITS = -1
"""As the longest that vLLM is to have room for: as many tokens as the model has positions and the device memory."""


def prepare_vllm(tensor_parallel: int) -> None:
    """Set the environment variables that vLLM reads when it is imported, unless the user has set them.

    Raises:
        HalosError: vLLM is not installed in this environment, or there are too few GPUs.
    """
    import torch

    if importlib.util.find_spec("vllm") is None:
        raise HalosError(
            "vLLM is not installed in this environment: `make env-vllm` makes one for CPUs and `snakemake --sdm conda` "
            "one for GPUs (envs/sample.yaml); or set `sampler: transformers` in the model's resources"
        )
    if tensor_parallel > max(1, gpus := torch.cuda.device_count()):
        raise HalosError(f"a model cannot be split over {tensor_parallel} GPUs where there are {gpus}; lower "
                         "tensor_parallel in its resources")  # fmt: skip
    # the scheduler in this process: its order is then the same in every run, and it ends with this process
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM would reserve most of the machine's memory
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


class Vllm(Backend):
    """vLLM (Kwon et al. 2023, arXiv 2309.06180), which forms its own batches, on one GPU, several, or the CPU.

    Each response has its own seed, so its text does not depend on the batch, up to rounding: of two tokens with almost
    equal probability, either may be drawn.

    Args:
        longest: as for `Backend`, or FITS.
        tensor_parallel: GPUs over which each layer is split.
        context: tokens of the context of the tasks that the same engine is to run; None where it only samples.

    Raises:
        HalosError: vLLM is not installed here, or there are too few GPUs.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        settings: SamplerSlice,
        batch: int,
        longest: int,
        tensor_parallel: int,
        context: int | None = None,
    ) -> None:
        prepare_vllm(tensor_parallel)
        super().__init__(folder, tokenizer, settings, batch, longest)
        self.tensor_parallel, self.context = tensor_parallel, context

    @property
    def chunk(self) -> int:
        # it answers hundreds of requests side by side, and idles while the last of a chunk are answered
        return 16 * self.batch

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "vllm"}

    @property
    def loaded(self) -> Any:
        return self.llm

    @property
    def room(self) -> int:
        return int(self.llm.model_config.max_model_len)

    @property
    def engine(self) -> Any:
        """The engine below `llm`, which takes requests one by one."""
        return self.llm.llm_engine

    @cached_property
    def llm(self) -> Any:
        """vLLM's model, as lm-eval runs it too.

        Raises:
            HalosError: vLLM does not support the model, or has too little memory for it.
        """
        import torch
        from vllm import LLM  # type: ignore[import-not-found]

        print(LOADS.format(self.folder), file=sys.stderr)
        try:
            return LLM(
                model=str(self.folder),
                skip_tokenizer_init=self.context is None,  # samples are decoded here; tasks have texts that end them
                generation_config="vllm" if self.context is None else "auto",  # "vllm" ignores the saved one
                dtype=self.precision,
                max_model_len=max(self.longest, self.context or self.longest),
                tensor_parallel_size=self.tensor_parallel,
                trust_remote_code=trusts(self.folder),
                enforce_eager=not torch.cuda.is_available(),  # compiling takes longer than most CPU runs
                seed=self.settings.seed,
            )
        except ValueError as error:
            why = shorten(str(error), 300)
            raise HalosError(f"vLLM cannot run the model in {self.folder} ({why}); correct that or set `sampler: "
                             "transformers` in its resources") from error  # fmt: skip

    def generate(
        self, requests: list[Request], temperature: float, top_p: float, seed: int, update: Callable[[int], Any]
    ) -> list[list[int]]:
        asked = [
            {
                "temperature": temperature,
                "top_p": top_p,
                "seed": request.seed,
                "max_tokens": request.limit,
                "stop_token_ids": self.ends,
                "ignore_eos": True,  # else an engine with a tokenizer also stops at that one's
            }
            for request in requests
        ]
        responses: dict[int, list[int]] = {}
        for number, output in self._outputs([request.ids for request in requests], asked):
            stops, tokens = requests[number].stops, output.outputs[0].token_ids
            if not output.finished and not (stops and stops.reached(tokens)):
                continue
            if not output.finished:
                self.engine.abort_request([output.request_id])
            responses[number] = list(tokens)
            update(1)
        return [responses[number] for number in range(len(requests))]

    def first_logprobs(self, prompts: list[list[int]], of: Sequence[int] | int) -> list[dict[int, float]]:
        asked = {"logprobs": of} if isinstance(of, int) else {"logprob_token_ids": [*of]}
        rows: dict[int, dict[int, float]] = {}
        for number, output in self._outputs(prompts, [{"temperature": 0.0, "max_tokens": 1, **asked}] * len(prompts)):
            (found,) = output.outputs[0].logprobs  # with that of the sampled token, whether or not it was asked for
            rows[number] = ranked((token, found[token].logprob) for token in (found if isinstance(of, int) else of))
        return [rows[number] for number in range(len(prompts))]

    def _outputs(self, prompts: list[list[int]], asked: list[dict[str, Any]]) -> Iterator[tuple[int, Any]]:
        """What the engine has of the answer to each prompt after each step, with the number of the prompt.

        Args:
            asked: vLLM's sampling parameters of each prompt.
        """
        engine = self.engine
        from vllm import SamplingParams  # after the engine, which sets what this import reads

        for number, (ids, how) in enumerate(zip(prompts, asked, strict=True)):
            engine.add_request(str(number), {"prompt_token_ids": ids}, SamplingParams(detokenize=False, **how))
        while engine.has_unfinished_requests():
            for output in engine.step():
                yield int(output.request_id), output
