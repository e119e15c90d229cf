"""`python -m halos VERB`."""

from __future__ import annotations

import sys

from halos.cli import main

code = main()


# a process that exits without it may abort while others still talk to it; vLLM does so itself, and fails after this
if "torch" in sys.modules and "vllm" not in sys.modules:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


sys.exit(code)
