"""Trial of a model before it samples: which prompts may be answered side by side, padded on the left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halos.errors import HalosError
from halos.forward.grouping import ALONE, EQUAL_LENGTHS, Grouping
from halos.forward.packable import check_finite, trial_ids

STEPS = 4
"""Tokens that are generated in the trial."""
LENGTHS = (9, 9, 5)
"""Tokens of its prompts."""
TOLERANCE = 1e-3
"""Largest difference of a logit between a prompt in a batch and alone, over the one that another context makes."""
ROUNDING = 4
"""Largest difference by rounding: so many times the precision of the model's type, over the size of the logits."""


def side_by_side(network: Any, padding: int, longest: int) -> Grouping:
    """Which prompts are answered side by side so that each has the tokens that it has alone.

    Models differ whose states run through the padding, whose attention depends on it, or that scale rotary positions by
    the longest sequence. Three short prompts are tried out, greedily. What they cannot show is read from the config.

    Args:
        network: the model, on its device.
        padding: id of the padding token.
        longest: most tokens of a prompt and its response.

    Raises:
        HalosError: the model cannot generate, or its logits are not finite.
    """
    ids = trial_ids(network)
    prompts = [ids[k : k + length] for k, length in enumerate(LENGTHS)]
    other = np.concatenate([ids[-LENGTHS[0] + 1 :], prompts[0][-1:]])
    try:
        alone = [_greedy(network, [prompt], padding)[0] for prompt in prompts]
        changed = _greedy(network, [other], padding)[0]
    except Exception as error:  # any error that a model's own code raises
        why = " ".join(str(error).split()) or type(error).__name__
        raise HalosError(f"{type(network).__name__} cannot generate: {why}; take another model") from error
    logits = torch.stack([answer.logits for answer in alone])
    check_finite(network, {"logits": logits})
    context = float((changed.logits[0] - alone[0].logits[0]).abs().max())
    rounding = ROUNDING * torch.finfo(network.dtype).eps * float(logits.abs().max())
    tolerance = max(TOLERANCE * context, rounding)
    scaled = Grouping.of(network, longest)
    if scaled.because is None and _same(network, prompts, padding, alone, tolerance):
        return Grouping()
    return EQUAL_LENGTHS if _same(network, prompts[:2], padding, alone[:2], tolerance) else ALONE


@dataclass(frozen=True)
class _Answer:
    """The STEPS tokens that follow a prompt greedily, and the (STEPS, V) float32 logits that they have."""

    tokens: Tensor
    logits: Tensor


def _greedy(network: Any, prompts: list[np.ndarray], padding: int) -> list[_Answer]:
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), padding)
    mask = torch.zeros_like(ids)
    for row, shown, prompt in zip(ids, mask, prompts, strict=True):
        row[width - len(prompt) :] = torch.from_numpy(prompt)
        shown[width - len(prompt) :] = 1
    config = GenerationConfig(max_new_tokens=STEPS, do_sample=False, pad_token_id=padding,
                              output_logits=True, return_dict_in_generate=True)  # fmt: skip
    ids, mask = ids.to(network.device), mask.to(network.device)
    with torch.inference_mode():
        out = network.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    logits = torch.stack(out.logits, 1).float()
    return [_Answer(*answer) for answer in zip(out.sequences[:, width:], logits, strict=True)]


def _same(network: Any, prompts: list[np.ndarray], padding: int, alone: list[_Answer], tolerance: float) -> bool:
    """Whether prompts are answered side by side as alone, up to the first token that differs: of two equally good ones
    either may be taken, and what follows is then another text."""
    try:
        together = _greedy(network, prompts, padding)
    except Exception:  # a model that answers one prompt at a time
        return False
    for one, other in zip(together, alone, strict=True):
        differs = (one.tokens != other.tokens).nonzero()
        steps = int(differs[0, 0]) + 1 if len(differs) else STEPS
        if not float((one.logits - other.logits)[:steps].abs().max()) <= tolerance:
            return False
    return True
