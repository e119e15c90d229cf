"""Tests that need a GPU: `pytest -m gpu`. Without one each counts as skipped.

Whatever attention is installed is tried; HALOS_ATTENTION_KERNEL names a prebuilt kernel (OWNER/NAME@COMMIT) that is in
the hub's cache, and HALOS_VLLM_PYTHON the interpreter of an environment with vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU, and there is none here")


@pytest.fixture
def _fresh() -> Iterator[None]:
    """accelerate keeps one state for a process, its precision included."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
