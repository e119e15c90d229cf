"""Kinds of GPU, and assumptions about their utilisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

GB = 1e9
GIB = 2**30
FLOAT, HALF = 4, 2
"""Bytes of a float32 and of a bfloat16 number."""


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        memory: bytes, as torch reports them.
        bf16, fp32: floating-point operations per second in dense matrix products.
        bandwidth: bytes per second read from memory.
    """

    memory: float
    bf16: float
    fp32: float
    bandwidth: float


GPUS = {
    "a100-40gb": Device(39.4 * GIB, 312e12, 19.5e12, 1.555e12),
    "a100-80gb": Device(79.1 * GIB, 312e12, 19.5e12, 2.039e12),
    "h100-80gb": Device(79.1 * GIB, 989e12, 67e12, 3.35e12),
    "l40s-48gb": Device(44.4 * GIB, 362e12, 91.6e12, 0.864e12),
}
"""Speeds are those of NVIDIA's data sheets, without sparsity; float32 is without TF32, as torch computes it."""
CORE = Device(math.inf, 5e10, 5e10, 1e10)
"""A CPU core, for models without GPUs: the order of magnitude of a server's core. Its memory is main memory."""
UTILISATION = 0.4
"""Fraction of a GPU's peak that training and reference passes reach, after communication, attention and padding."""
DECODING = 0.4
"""Fraction of the memory bandwidth that generation reaches."""
RESERVE = 0.03
"""Fraction of a GPU's memory that is lost to fragmentation."""
CONTEXT = 1.5 * GB
"""Bytes of a GPU's memory that CUDA, NCCL and cuBLAS take."""
PROCESS = 1.0 * GB
"""Bytes of main memory that a process takes before it holds any tensor."""
