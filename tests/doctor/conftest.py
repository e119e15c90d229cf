"""A doctor for a small grid, with answers given in place of probes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.doctor.lines import Check, Line
from halos.doctor.setup import Setup
from tests.conftest import CATALOGUE


@dataclass
class Answered:
    """What a probe would say."""

    found: dict[str, Any]

    def answers(self) -> dict[str, Any]:
        return dict(self.found)

    def end(self) -> None:
        pass


Make = Callable[..., Setup]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A setup of the small grid; `resources` and `model` change its model, other keywords are probes' answers."""

    def made(
        resources: dict[str, Any] | None = None, model: dict[str, Any] | None = None, more: Any = None, **said: Any
    ) -> Setup:
        catalogue = copy.deepcopy(CATALOGUE)
        catalogue["models"]["m"] |= {"resources": resources or {}, **(model or {})}
        for kind, entries in (more or {}).items():
            catalogue.setdefault(kind, {}).update(entries)
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(catalogue))
        probes: Any = {(None, name): Answered(found) for name, found in said.items()}
        return Setup(config, "g", tmp_path / "results", probes=probes)

    return made


def lines(check: Check, setup: Setup) -> list[tuple[str, str, str]]:
    return [(line.about, line.state, line.text) for line in check(setup)]


def only(found: Iterable[Line]) -> Line:
    [line] = found
    return line
