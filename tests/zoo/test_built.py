"""A model that is built without its weights, by a process that is then handed them, is the one that is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from halos.distributed.loading import put, tensors_of
from halos.models.architectures import language_class
from halos.models.load import built
from halos.pretrained import read_config
from tests.zoo.architectures import tiny
from tests.zoo.table import TYPES
from tests.zoo.test_zoo import ALWAYS


def check(name: str, folder: Path) -> None:
    """Assert that a type's weights have the same places in both, and that nothing else is without values."""
    fields = tiny(name, 512)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    language_class(config).from_config(config).save_pretrained(folder)
    loaded = language_class(config).from_pretrained(folder, dtype=torch.float32).eval()
    empty = built(read_config(folder))
    weights = dict(tensors_of(loaded))
    assert type(empty) is type(loaded)
    assert dict(tensors_of(empty)).keys() == weights.keys()
    for key, tensor in weights.items():
        put(empty, key, tensor)
    others = [value for module in empty.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert not any(value.is_meta for value in others)
    ids = torch.arange(3, 15)[None]
    one, other = (_logits(model, ids) for model in (loaded, empty))
    assert (one is None) == (other is None)
    assert one is None or other is None or torch.equal(one, other)


@torch.no_grad()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor | None:
    try:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    except Exception:  # whatever a class raises that does not read text alone
        return None
    return logits


@pytest.mark.parametrize("name", ALWAYS)
def test_a_family_is_built_as_it_is_loaded(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.zoo
@pytest.mark.parametrize("name", [name for name in TYPES if name not in ALWAYS])
def test_a_type_is_built_as_it_is_loaded(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
