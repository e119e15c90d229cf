"""Layers in 4 and 8 bits."""

from __future__ import annotations

import pytest
import torch

from halos.models.quantised import NF4, Int8


@pytest.mark.parametrize("shape", [(64, 32), (16, 32), (7, 64), (31, 34), (3, 5), (128, 344)])
def test_a_weight_of_any_shape_is_rounded_by_as_much_as_its_bits_allow(shape: tuple[int, int]) -> None:
    """Rows shorter than a block of 64, of odd lengths, and that end within a block."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for kind, least, most in ((NF4, 0.04, 0.2), (Int8, 0.001, 0.02)):
        error = (kind.of(weight, None).dequantised() - weight).std() / weight.std()
        assert least < float(error) < most
