"""lm-eval's record of the machine: found out once, and the text that it would be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
from torch.utils import collect_env
before = collect_env.get_pretty_env_info()
from halos.evaluate.tasks.lm_eval import quicken_records
quicken_records()
collect_env.run_and_read_all = None  # pip would be started by it, and all else of it is asked for before
first = vars(collect_env)["get_pip_packages"](None)
print(first == ("pip3", before.partition("[pip3] ")[2].partition("[conda]")[0].rstrip().replace("[pip3] ", "")))
print(collect_env.get_pretty_env_info.cache_info().misses)
"""


def test_the_packages_are_those_that_pip_lists_though_it_is_not_started() -> None:
    """In a process of its own, as it replaces functions of torch."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["True", "0"], done.stderr
