"""The kinds of GPU that are known by the names that torch gives them."""

from __future__ import annotations

import pytest

from halos.distributed.peaks import GPUS, known


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("A100-SXM4-80GB", "a100-80gb"),  # by older drivers
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA L40S", "l40s-48gb"),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, kind: str) -> None:
    assert known(name) is GPUS[kind]


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA L40", "T4", ""])
def test_a_slower_one_of_a_known_name_is_not_taken_for_it(name: str) -> None:
    assert known(name) is None
