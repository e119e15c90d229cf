"""Generation: token ids in, token ids out, by transformers or by vLLM.

Both sample by temperature and top_p, and end a response at its length limit, at a stop string, or at an end-of-sequence
id of the model's saved generation config. Neither applies anything else of that config, such as a repetition penalty.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from halos.errors import HalosError
from halos.forward.grouping import Grouping, forget_lengths, scales_positions
from halos.models.generation import read_generation_config
from halos.models.load import load
from halos.pretrained import trusts
from halos.sample.settings import SamplerSlice
from halos.sample.stops import Stops
from halos.tokens.positions import Positions

LOADS = "loading the model in {}"
"""A line of the log, for each time that weights are read."""
FITS = -1
"""As the longest that vLLM is to have room for: as many tokens as the model has positions and the device memory."""


@dataclass(frozen=True)
class Request:
    """A prompt to answer once.

    Attributes:
        ids: token ids of the prompt.
        limit: most tokens of the response; prompt and response fit the model's positions.
        seed: seed of this response.
        stops: what may end it besides.
    """

    ids: list[int]
    limit: int
    seed: int
    stops: Stops | None = None


class Backend(ABC):
    """A model that answers requests. Its weights are loaded when the first request comes.

    Args:
        folder: model folder, with its generation config.
        tokenizer: tokenizer of the model, padding on the left.
        settings: seed, attention and precision of the cell.
        batch: responses generated side by side.
        longest: most tokens of prompt and response together, over all requests.

    Attributes:
        ends: ids that end a response.
    """

    def __init__(self, folder: Path, tokenizer: Any, settings: SamplerSlice, batch: int, longest: int) -> None:
        self.folder, self.tokenizer, self.settings, self.batch = folder, tokenizer, settings, batch
        self.longest = longest
        saved = read_generation_config(folder)
        ends = saved.eos_token_id if isinstance(saved.eos_token_id, list) else [saved.eos_token_id]
        self.ends: list[int] = [end for end in ends if end is not None]
        self.padding: int = tokenizer.pad_token_id if saved.pad_token_id is None else saved.pad_token_id

    @property
    def precision(self) -> str:
        """The compute type by torch's name: bfloat16 on a GPU if the cell's precision is bf16, else float32."""
        import torch

        return "bfloat16" if torch.cuda.is_available() and self.settings.precision == "bf16" else "float32"

    @property
    @abstractmethod
    def loaded(self) -> Any:
        """The model in the library's own type: transformers' network, or vLLM's LLM. Asking for it loads it."""

    @property
    def room(self) -> int | None:
        """Most tokens of prompt and response together; None where the model's positions alone say."""
        return None

    def expect(self, longest: int) -> None:  # noqa: B027  # not every backend has something to do
        """Get ready for another prompt set.

        Args:
            longest: most tokens of prompt and response together, over its requests.
        """

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Requests per call of `generate`. A run that is stopped loses at most one chunk."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Settings of the backend that change the text."""

    @abstractmethod
    def generate(
        self, requests: list[Request], temperature: float, top_p: float, seed: int, update: Callable[[int], Any]
    ) -> list[list[int]]:
        """Generate a response to each request.

        Args:
            temperature: 0 is greedy.
            seed: seed of this chunk, for a backend that cannot seed single responses.
            update: called with the number of responses that are newly done.

        Returns:
            Token ids of each response. The id or the stop string that ended it, if one did, is among them, and padding
            may follow.
        """

    @abstractmethod
    def first_logprobs(self, prompts: list[list[int]], of: Sequence[int] | int) -> list[dict[int, float]]:
        """Log-probabilities of the token that follows each prompt.

        Args:
            prompts: token ids.
            of: ids of tokens, or how many of the likeliest.

        Returns:
            {id: log-probability} for each prompt, the highest first.
        """


class Transformers(Backend):
    """`generate` of transformers on one device: batches of padded prompts, each batch with a seed of its own."""

    @property
    def chunk(self) -> int:
        return self.batch

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "transformers", "batch": self.batch}

    @cached_property
    def network(self) -> Any:
        import torch
        from transformers import GenerationConfig

        device = "cuda" if torch.cuda.is_available() else "cpu"
        print(LOADS.format(self.folder), file=sys.stderr)
        network: Any = load(self.folder, self.settings.attention, dtype=self.precision)
        network.generation_config = GenerationConfig()  # else `generate` fills gaps from the saved one
        for config in (network.config, network.config.get_text_config()):
            config.use_cache = True
            for output in ("output_router_logits", "output_attentions", "output_hidden_states"):
                if getattr(config, output, False):  # saved by a training; of use there alone
                    setattr(config, output, False)
        return network.to(device).eval()

    @cached_property
    def grouping(self) -> Grouping:
        """Which prompts are answered side by side; said in the log where not all of them are."""
        from halos.sample.padding import side_by_side

        grouping = side_by_side(self.network, self.padding, self.longest)
        if grouping.because is not None:
            how = "one by one" if grouping.alone else "in batches of equal length"
            print(f"prompts are answered {how}: beside others, this model would answer otherwise", file=sys.stderr)
        return grouping

    @property
    def loaded(self) -> Any:
        return self.network

    def expect(self, longest: int) -> None:
        if longest != self.longest:
            self.longest = longest
            self.__dict__.pop("grouping", None)

    def generate(
        self, requests: list[Request], temperature: float, top_p: float, seed: int, update: Callable[[int], Any]
    ) -> list[list[int]]:
        import torch

        groups = self.grouping.groups(np.array([len(request.ids) for request in requests]))
        torch.manual_seed(seed)
        # A row that is done keeps getting positions until the last row is done. Rotary positions have no end; learned
        # ones do, and some scale those of all rows, so there a batch holds requests of one limit.
        if Positions.of(self.network.config).fixed or scales_positions(self.network):
            groups = [
                np.array(list(part))
                for group in groups
                for _, part in groupby(group.tolist(), lambda k: requests[k].limit)
            ]
        responses: dict[int, list[int]] = {}
        for group in groups:
            if self.grouping.because is not None:
                forget_lengths(self.network)
            batch = [requests[k] for k in group]
            responses |= zip(group.tolist(), self._run(batch, temperature, top_p), strict=True)
        update(len(requests))
        return [responses[k][: request.limit] for k, request in enumerate(requests)]

    def first_logprobs(self, prompts: list[list[int]], of: Sequence[int] | int) -> list[dict[int, float]]:
        import torch
        from transformers import GenerationConfig

        generation = GenerationConfig(
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=self.padding,
            output_logits=True,
            return_dict_in_generate=True,
        )
        rows: dict[int, dict[int, float]] = {}
        for group in self.grouping.groups(np.array([len(ids) for ids in prompts])):
            if self.grouping.because is not None:
                forget_lengths(self.network)
            inputs = self.tokenizer.pad({"input_ids": [prompts[k] for k in group]}, return_tensors="pt")
            with torch.inference_mode():
                out = self.network.generate(**inputs.to(self.network.device), generation_config=generation)
            for k, row in zip(group.tolist(), out.logits[0].float().log_softmax(-1).cpu(), strict=True):
                tokens = row.topk(of).indices if isinstance(of, int) else torch.tensor([*of])
                rows[k] = _ranked(zip(tokens.tolist(), row[tokens].tolist(), strict=True))
        return [rows[k] for k in range(len(prompts))]

    def _run(self, requests: list[Request], temperature: float, top_p: float) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig

        decoding: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            decoding = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        generation = GenerationConfig(
            max_new_tokens=max(request.limit for request in requests),
            eos_token_id=self.ends or None,
            pad_token_id=self.padding,
            **decoding,
        )
        inputs = self.tokenizer.pad({"input_ids": [r.ids for r in requests]}, return_tensors="pt")
        inputs = inputs.to(self.network.device)
        start, stops = inputs["input_ids"].shape[1], [request.stops for request in requests]

        def stopped(ids: Any, *_: Any, **__: Any) -> Any:
            rows = zip(ids[:, start:].tolist(), stops, strict=True)
            return torch.tensor([stop is not None and stop.reached(row) for row, stop in rows], device=ids.device)

        criteria = {"stopping_criteria": [stopped]} if any(stops) else {}
        with torch.inference_mode():
            out = self.network.generate(**inputs, generation_config=generation, **criteria)
        tokens: list[list[int]] = out[:, start:].tolist()
        return tokens


def _ranked(logprobs: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Tokens with their log-probabilities, the highest first."""
    return dict(sorted(logprobs, key=lambda pair: -pair[1]))


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
            rows[number] = _ranked((token, found[token].logprob) for token in (found if isinstance(of, int) else of))
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
