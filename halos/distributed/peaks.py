"""Kinds of GPU: their memory and speeds, by their data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A kind of GPU.

    Attributes:
        memory: bytes, as torch reports them.
        bf16, fp32: floating-point operations per second in dense matrix products.
        bandwidth: bytes per second read from memory.
        names: pattern of the names that torch gives it; none matches the empty one.
    """

    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    names: str = ""

    def peak(self, precision: str) -> float:
        """Floating-point operations per second in a compute type, `bf16` or `fp32`."""
        return self.bf16 if precision == "bf16" else self.fp32


GPUS = {
    "a100-40gb": Device(39.4 * GIB, 312e12, 19.5e12, 1.555e12, r"A100-\w+-40GB"),
    "a100-80gb": Device(79.1 * GIB, 312e12, 19.5e12, 2.039e12, r"A100-\w+-80GB|A100 80GB PCIe"),
    "h100-80gb": Device(79.1 * GIB, 989e12, 67e12, 3.35e12, r"H100 80GB HBM3"),
    "h200-141gb": Device(139.8 * GIB, 989e12, 67e12, 4.8e12, r"H200"),
    "l40s-48gb": Device(44.4 * GIB, 362e12, 91.6e12, 0.864e12, r"L40S"),
}
"""Speeds are those of NVIDIA's data sheets, without sparsity; float32 is without TF32, as torch computes it. H100 and
H200 are those with SXM; others of that name are slower."""


def known(name: str) -> Device | None:
    """The kind of a GPU by the name that torch gives it; None for one that is not in GPUS."""
    return next((gpu for gpu in GPUS.values() if re.fullmatch(rf"(NVIDIA )?({gpu.names})", name)), None)
