"""Lists of what plugins bring."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from halos.forward.own import Forward
from halos.registry import FORWARDS, LOSSES
from halos.study.listing import aligned, table
from tests.study.test_named_reference import load


@dataclass(frozen=True)
class Noise(Forward):
    """Noise on the embeddings."""

    alpha: float
    layers: tuple[int, ...] = field(default_factory=tuple)
    seed: int = 3

    def __call__(self, network: Any, batch: Any) -> Any: ...


@pytest.mark.usefixtures("plugins_forgotten")
def test_options_are_listed_with_their_defaults_and_those_without_by_name(tmp_path: Path) -> None:
    FORWARDS.register("noise")(Noise)
    FORWARDS.register("bare")(object)  # refused where a stage names it
    *_, bare, noise = table(load(), "forwards", None, tmp_path).splitlines()
    assert bare.split()[0] == "bare"
    assert " ".join(noise.split()) == "noise alpha, layers (), seed 3 Noise on the embeddings."


def test_long_cells_have_several_lines_and_no_name_is_cut(tmp_path: Path) -> None:
    catalogue = load()
    text = table(catalogue, "losses", None, tmp_path)
    assert max(map(len, text.splitlines())) < 130
    assert len(text.splitlines()) > len(list(LOSSES)) + 2
    assert {f"sft-{'x' * 50}"} <= set(aligned([{"methods": f"base, sft-{'x' * 50}"}]).split())
