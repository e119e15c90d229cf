"""The part of a cell's config.yaml that its model computes with."""

from __future__ import annotations

from halos.models.settings import Attention, Precision, Quantization
from halos.settings import Slice


class ReferenceSlice(Slice, extra="ignore"):
    """How a cell's model computes, from its config.yaml; the training settings beside it are not read."""

    attention: Attention
    precision: Precision
    liger: bool = False
    compile: bool = False
    quantization: Quantization | None = None
