"""Previews: greedy responses of the policy to a few validation prompts while it is trained, in previews.jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halos.forward.grouping import forget_lengths
from halos.models.generation import read_generation_config
from halos.pretrained import read_tokenizer
from halos.tokens.positions import Positions
from halos.train.batches import Examples
from halos.train.log import Preview


class Previews:
    """A few prompts, and the responses that a policy gives to them.

    Prompts are answered one by one, so that no model sees padding. Nothing that the training reads is changed: not
    the random numbers, nor what a model remembers of the sequences that it has seen.

    Args:
        model: the policy's model, without wrappers of devices and adapters.
        folder: the parent's model folder, whose generation config says which ids end a response.
        tokenizer: the policy's, where it is not the parent's.
        examples: the held-out examples.
        control: role -> id of the token before that role's responses; those of the first role are asked for.
        prompts: number of prompts: the first ones of the examples.
        max_new_tokens: most tokens of a response.
        autocast: makes the context of the training's compute type.
    """

    def __init__(
        self,
        model: Any,
        folder: Path,
        tokenizer: Any,
        examples: Examples,
        control: dict[str, int],
        prompts: int,
        max_new_tokens: int,
        autocast: Any,
    ) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer or read_tokenizer(folder), max_new_tokens
        self.autocast = autocast
        saved = read_generation_config(folder)
        self.ends: Any = saved.eos_token_id
        self.padding = self.tokenizer.pad_token_id if saved.pad_token_id is None else saved.pad_token_id
        rows = next(iter(examples.rows.values()))
        of_rows = examples.store.prompt_of(rows)
        first = np.sort(np.unique(of_rows, return_index=True)[1])[:prompts]
        asked = list(control.values())[:1]
        self.prompts = {int(of_rows[k]): [*examples.store.sequence(rows[k])[0].tolist(), *asked] for k in first}

    @torch.no_grad()
    def sample(self, step: int) -> list[Preview]:
        """A line of the file for each prompt, after `step` steps. The policy is in evaluation mode."""
        limit = Positions.of(self.model.config).limit
        lines = []
        with unchanged(self.model), self.autocast():
            for row, ids in self.prompts.items():
                room = self.max_new_tokens if limit is None else min(self.max_new_tokens, limit - len(ids))
                response = self._answer(ids, room) if room > 0 else []
                text = self.tokenizer.decode(response, skip_special_tokens=True)
                prompt = self.tokenizer.decode(ids)
                lines.append(Preview(step=step, prompt_row=row, prompt=prompt, response=text, tokens=len(response)))
        return lines

    def _answer(self, ids: list[int], room: int) -> list[int]:
        from transformers import GenerationConfig

        forget_lengths(self.model)
        config = GenerationConfig(
            max_new_tokens=room, do_sample=False, use_cache=True, eos_token_id=self.ends, pad_token_id=self.padding
        )
        prompt = torch.tensor([ids], device=self.model.device)
        out: Tensor = self.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config
        )
        response: list[int] = out[0, len(ids) :].tolist()
        return response


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """A block that generates with a model in training, which is afterwards as it was.

    Attention is plain instead of that of packed rows. Compiled layers run as they are written: texts of every length
    would have them compiled again and again, up to the limit from which on the training's would not be, either.
    """
    from transformers import GenerationConfig

    saved, attention = model.generation_config, model.config._attn_implementation
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    numbers = [(vars(module), _numbers(module)) for module in model.modules()]
    devices = [model.device] if model.device.type == "cuda" else []
    model.generation_config = GenerationConfig()  # else `generate` fills gaps from it
    if attention not in ("sdpa", "eager"):
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.generation_config = saved
        model.set_attn_implementation(attention)
        for attributes, before in numbers:
            attributes.update(before)
        for name, (buffer, values) in buffers.items():
            owner, _, leaf = name.rpartition(".")
            buffer.copy_(values)
            model.get_submodule(owner)._buffers[leaf] = buffer


def _numbers(module: nn.Module) -> dict[str, Any]:
    """The numbers that a module holds, such as the longest sequence that rotary positions were scaled for."""
    return {name: value for name, value in vars(module).items() if isinstance(value, int | float)}
