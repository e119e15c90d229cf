"""Generation: token ids in, token ids out, by transformers or by vLLM (halos/sample/vllm.py).

Both sample by temperature and top_p, and end a response at its length limit, at a stop string, or at an end-of-sequence
id of the model's saved generation config. Neither applies anything else of that config, such as a repetition penalty.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from halos.forward.grouping import Grouping, forget_lengths, scales_positions
from halos.models.generation import read_generation_config
from halos.models.load import load
from halos.sample.settings import SamplerSlice
from halos.sample.stops import Stops
from halos.tokens.positions import Positions

LOADS = "loading the model in {}"
"""A line of the log, for each time that weights are read."""


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
                rows[k] = ranked(zip(tokens.tolist(), row[tokens].tolist(), strict=True))
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


def ranked(logprobs: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Tokens with their log-probabilities, the highest first."""
    return dict(sorted(logprobs, key=lambda pair: -pair[1]))
