"""Generation: token ids in, token ids out, by transformers or by vLLM.

Both answer the same requests by the same rule: temperature and top_p, the end-of-sequence ids of the saved generation
config, and a length limit. Nothing else of that config (a repetition penalty, say) is applied, by either.
"""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from typing import Any

from halos.errors import HalosError


@dataclass(frozen=True)
class Request:
    """A prompt that is to be answered once.

    Attributes:
        ids: token ids of the prompt.
        limit: the most tokens of the response, so that both fit the model's positions.
        seed: of this response.
    """

    ids: list[int]
    limit: int
    seed: int


class Backend(ABC):
    """A model that answers requests; its weights are read when the first are due.

    Args:
        folder: the model's folder, with its generation config.
        tokenizer: the model's, padding on the left.
        settings: slice of the cell (`seed`, `attention`, `precision`).
        batch: responses generated side by side.
        longest: tokens of prompt and response together, which no request exceeds.
    """

    def __init__(self, folder: Path, tokenizer: Any, settings: dict[str, Any], batch: int, longest: int) -> None:
        from transformers import GenerationConfig

        self.folder, self.tokenizer, self.settings, self.batch = folder, tokenizer, settings, batch
        self.longest = longest
        saved = GenerationConfig.from_pretrained(folder)
        found = saved.eos_token_id if isinstance(saved.eos_token_id, list) else [saved.eos_token_id]
        self.ends: list[int] = [i for i in found if i is not None]
        self.padding: int = tokenizer.pad_token_id if saved.pad_token_id is None else saved.pad_token_id

    @property
    def precision(self) -> str:
        """The compute type by torch's name: bfloat16 on a GPU where the model's entry says bf16, else float32."""
        import torch

        return "bfloat16" if torch.cuda.is_available() and self.settings["precision"] == "bf16" else "float32"

    @property
    @abstractmethod
    def share(self) -> int:
        """Requests that it is handed at a time; after each share, what was generated is kept."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the text depends on beside the model, the requests and their decoding."""

    @abstractmethod
    def generate(
        self, requests: list[Request], temperature: float, top_p: float, seed: int, update: Callable[[int], Any]
    ) -> list[list[int]]:
        """Token ids of a response to each request; the id that ends it, if one did, and maybe padding, come last.

        Args:
            temperature: 0 takes the likeliest token each time.
            seed: of this share, for a backend that cannot seed a response by itself.
            update: is told how many responses are done, as they are.
        """


class Transformers(Backend):
    """`generate` of transformers, on one device: batches of padded prompts, each from a seed of its own."""

    @property
    def share(self) -> int:
        return self.batch

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "transformers", "batch": self.batch}

    @cached_property
    def network(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        device = "cuda" if torch.cuda.is_available() else "cpu"
        network: Any = AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype=getattr(torch, self.precision),
            attn_implementation=self.settings["attention"],
            use_safetensors=True,
        )
        network.generation_config = GenerationConfig()  # what a request leaves open would be taken from the saved one
        return network.to(device).eval()

    def generate(
        self, requests: list[Request], temperature: float, top_p: float, seed: int, update: Callable[[int], Any]
    ) -> list[list[int]]:
        import torch

        torch.manual_seed(seed)
        # Rotary positions may run on in rows that are done; learned ones end, so there all rows must end together.
        rotary = getattr(self.network.config.get_text_config(), "rope_parameters", None) is not None
        parts = [requests] if rotary else [list(part) for _, part in groupby(requests, lambda request: request.limit)]
        tokens = [response for part in parts for response in self._run(part, temperature, top_p)]
        update(len(requests))
        return [response[: request.limit] for request, response in zip(requests, tokens, strict=True)]

    def _run(self, requests: list[Request], temperature: float, top_p: float) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig

        drawn: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        generation = GenerationConfig(
            max_new_tokens=max(request.limit for request in requests),
            eos_token_id=self.ends or None,
            pad_token_id=self.padding,
            **drawn,
        )
        inputs = self.tokenizer.pad({"input_ids": [r.ids for r in requests]}, return_tensors="pt")
        inputs = inputs.to(self.network.device)
        with torch.inference_mode():
            out = self.network.generate(**inputs, generation_config=generation)
        tokens: list[list[int]] = out[:, inputs["input_ids"].shape[1] :].tolist()
        return tokens


def prepare_vllm(tensor_parallel: int) -> None:
    """Set what vLLM reads of the environment when it is imported, where the user has not.

    Raises:
        HalosError: vLLM is not installed here, or there are too few GPUs.
    """
    import torch

    if importlib.util.find_spec("vllm") is None:
        raise HalosError(
            "vLLM is not installed in this environment: `make env-vllm` makes one for CPUs and `snakemake --sdm conda` "
            "one for GPUs (envs/sample.yaml); or say `sampler: transformers` in the model's resources"
        )
    if tensor_parallel > max(1, gpus := torch.cuda.device_count()):
        raise HalosError(f"a model cannot be split over {tensor_parallel} GPUs where there are {gpus}; lower "
                         "tensor_parallel in its resources")  # fmt: skip
    # the scheduler in this process: its order is then the same each time, and it ends when this process does
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM would take most of the machine's memory
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


class Vllm(Backend):
    """vLLM (Kwon et al. 2023, arXiv 2309.06180), which forms its batches itself, on one GPU, several, or the CPU.

    A response has a seed of its own, so it is the same in any batch and any order, up to rounding: two tokens that are
    all but equally likely may change places.

    Args:
        tensor_parallel: GPUs over which each layer is split.

    Raises:
        HalosError: vLLM is not installed here, or there are too few GPUs.
    """

    def __init__(
        self, folder: Path, tokenizer: Any, settings: dict[str, Any], batch: int, longest: int, tensor_parallel: int
    ) -> None:
        prepare_vllm(tensor_parallel)
        super().__init__(folder, tokenizer, settings, batch, longest)
        self.tensor_parallel = tensor_parallel

    @property
    def share(self) -> int:
        # it answers some hundreds side by side, and idles while the last of a share are answered
        return 16 * self.batch

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "vllm"}

    @cached_property
    def engine(self) -> Any:
        """vLLM's engine.

        Raises:
            HalosError: it does not know such a model, or has too little memory for it.
        """
        import torch
        from vllm import EngineArgs, LLMEngine  # type: ignore[import-not-found]

        arguments = EngineArgs(
            model=str(self.folder),
            skip_tokenizer_init=True,
            generation_config="vllm",  # none but ours
            dtype=self.precision,
            max_model_len=self.longest,
            tensor_parallel_size=self.tensor_parallel,
            enforce_eager=not torch.cuda.is_available(),  # compiling takes longer than most CPU runs
            seed=self.settings["seed"],
        )
        try:
            return LLMEngine.from_engine_args(arguments)
        except ValueError as error:
            why = shorten(str(error), 300)
            raise HalosError(f"vLLM cannot run the model in {self.folder} ({why}); put that right or say `sampler: "
                             "transformers` in its resources") from error  # fmt: skip

    def generate(
        self, requests: list[Request], temperature: float, top_p: float, seed: int, update: Callable[[int], Any]
    ) -> list[list[int]]:
        engine = self.engine
        from vllm import SamplingParams  # after the engine, whose settings are read on import

        for number, request in enumerate(requests):
            parameters = SamplingParams(
                temperature=temperature,
                top_p=top_p,
                seed=request.seed,
                max_tokens=request.limit,
                stop_token_ids=self.ends,
                detokenize=False,
            )
            engine.add_request(str(number), {"prompt_token_ids": request.ids}, parameters)
        found: dict[int, list[int]] = {}
        while engine.has_unfinished_requests():
            done = [output for output in engine.step() if output.finished]
            found |= {int(output.request_id): list(output.outputs[0].token_ids) for output in done}
            update(len(done))
        return [found[number] for number in range(len(requests))]
