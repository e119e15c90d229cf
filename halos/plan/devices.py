"""Assumptions about devices: what of their memory and of their peak a job can have."""

from __future__ import annotations

import math

from halos.distributed.peaks import Device

GB = 1e9
FLOAT, HALF = 4, 2
"""Bytes of a float32 and of a bfloat16 number."""


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
