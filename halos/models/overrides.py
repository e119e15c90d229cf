"""Changes of a base model's transformers config that a user asks for, such as longer rotary positions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.errors import HalosError
from halos.models.architectures import check_causal, check_fields, language_class
from halos.pretrained import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROPE = "rope_parameters"
WITHIN_ROPE = ("rope_theta", "partial_rotary_factor")
"""Fields that transformers keeps in `rope_parameters`, and reads from nowhere else once they are there."""


def override(folder: Path, changes: dict[str, Any]) -> None:
    """Change fields in the config.json of a model folder; what the fields hold is merged with what was there.

    Args:
        folder: the model folder, changed in place.
        changes: values of the fields, by the names of the class or of older config.json files (`rope_scaling`).

    Raises:
        HalosError: the class knows no such field, refuses its value, or the weights would not fit.
    """
    from huggingface_hub.errors import StrictDataclassError

    config = read_config(folder)
    if "model_type" in changes:
        raise HalosError("config: the model_type is that of the weights: take it out")
    check_fields(config.model_type, changes, type(config), "config: ")
    before = config.to_dict()
    renamed = _renamed(before, changes)
    try:
        changed = type(config).from_dict(_merged(before, renamed))
        check_causal(changed)
        _check_shapes(config, changed)
    except HalosError as error:
        raise HalosError(f"config: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise HalosError(f"config: {' '.join(str(error).split())}") from error
    _check_taken(changed.to_dict(), renamed)
    changed.save_pretrained(folder)


def _renamed(before: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes by today's names of the rotary positions' fields, where the config has them."""
    renamed = {
        name: _renamed(before[name], value) if isinstance(value, dict) and isinstance(before.get(name), dict) else value
        for name, value in changes.items()
    }
    if before.get(ROPE) is None:
        return renamed
    rope = {**(renamed.pop("rope_scaling", None) or {}), **renamed.pop(ROPE, {})}
    rope |= {name: renamed.pop(name) for name in WITHIN_ROPE if name in renamed}
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    return {**renamed, ROPE: rope} if rope else renamed


def _merged(before: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {**before, **changes}
    return {
        name: _merged(before[name], value) if isinstance(value, dict) and isinstance(before.get(name), dict) else value
        for name, value in both.items()
    }


def _check_shapes(before: PreTrainedConfig, after: PreTrainedConfig) -> None:
    """Refuse a config whose model has other weights than those that are saved."""
    import torch

    with torch.device("meta"):
        old, new = (
            {name: tuple(value.shape) for name, value in language_class(c).from_config(c).state_dict().items()}
            for c in (before, after)
        )
    if other := [name for name in {**old, **new} if old.get(name) != new.get(name)]:
        raise HalosError(
            f"the saved weights would not fit: {other[0]} has the shape {old.get(other[0])} and would have "
            f"{new.get(other[0])}; take out what changes the size of the model"
        )


def _check_taken(after: dict[str, Any], changes: dict[str, Any], where: str = "config: ") -> None:
    """Refuse a change that the class did not keep, because it sets the field from others."""
    for name, value in changes.items():
        kept = after.get(name)
        if isinstance(value, dict) and isinstance(kept, dict):
            _check_taken(kept, value, f"{where}{name}.")
        elif name in after and kept != value and not (isinstance(kept, tuple) and [*kept] == value):
            raise HalosError(f"{where}{name} stays {kept!r} whatever it is set to: take it out")
