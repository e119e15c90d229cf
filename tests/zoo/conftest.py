"""Fixtures of the zoo, whose slow part runs only where it is asked for: `pytest -m zoo`."""

from __future__ import annotations

import pytest

from tests.conftest import World
from tests.zoo.trial import shared


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "zoo" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("zoo")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The data and the tokenizer that all types share."""
    return shared(tmp_path_factory.mktemp("zoo"))
