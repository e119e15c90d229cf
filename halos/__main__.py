"""`python -m halos VERB`."""

from __future__ import annotations

import sys

from halos.cli import main

code = main()


if "torch" in sys.modules:  # processes that just exit may abort while others still talk to them
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


sys.exit(code)
