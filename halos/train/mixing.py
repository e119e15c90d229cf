"""The setting `loss` of a stage: the name of one, or a mixture, name -> its weight and hyperparameters."""

from __future__ import annotations

import math
from typing import Any

from halos.losses.mixture import leading
from halos.settings import numbers

SFT = "sft"
SFT_WEIGHT = "sft_weight"
"""The weight of the chosen response's negative log-likelihood, by token, beside any loss of pairs. A loss with a
hyperparameter of that name, such as slic, has its own."""


def is_weight(value: Any) -> bool:
    """Whether a setting is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def mixture(value: Any) -> Any:
    """A setting of `loss`: a name as it is, a mixture as name -> hyperparameters and `weight`, in order of names.

    Raises:
        ValueError: it is neither.
    """
    example = "name a loss, or weigh several: {a: 0.8, b: {weight: 0.2, beta: 0.1}}"
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{value!r} is no loss: {example}")
    if len(value) < 2:
        raise ValueError(f"a mixture is of two losses at least: {example}")
    parts = {name: part if isinstance(part, dict) else {"weight": part} for name, part in numbers(value).items()}
    for name, part in parts.items():
        weight = part.get("weight")
        if not is_weight(weight) or weight == 0:
            raise ValueError(f"the weight of {name!r} must be a number above 0, not {weight!r}: {example}")
    return {name: {**parts[name], "weight": float(parts[name]["weight"])} for name in sorted(parts)}


def loss_text(loss: Any) -> str:
    """The loss of a stage, as it is in the config, in words: `dpo`, or `0.8 dpo + 0.2 bco (beta 0.1)`."""
    if isinstance(loss, str):
        return loss
    terms = []
    for name, part in loss.items():
        own = ", ".join(f"{key} {value}" for key, value in part.items() if key != "weight")
        terms.append(f"{part['weight']:g} {name}" + (f" ({own})" if own else ""))
    return " + ".join(terms)


def loss_names(loss: Any) -> list[str]:
    """The names of the losses of a stage, as they are in the config."""
    return [loss] if isinstance(loss, str) else list(loss)


def leading_loss(loss: Any) -> str:
    """The name of the loss of a stage, as it is in the config; of a mixture that of its leading part."""
    return loss if isinstance(loss, str) else leading(loss)
