"""The cells of a grid."""

from __future__ import annotations

from itertools import product

from halos.online.settings import Labeller
from halos.study.catalogue import Config
from halos.study.cells import Cell
from halos.study.slices import entry


def cells(config: Config, grid: str | None = None, rewards: bool = False) -> list[Cell]:
    """The cells of a grid, in the config's order: its policies, or its reward models. (Parents that it does not name
    are made, but not tabulated.)"""
    g = entry(config, "grids", grid or config.grid)
    return [Cell(*parts) for parts in product(g.datasets, g.models, g.reward_models if rewards else g.methods, g.seeds)]


def labellers(config: Config, grid: str | None = None) -> dict[str, Labeller]:
    """Those that label the rounds of a grid's online stages, by their ids."""
    every = [c for cell in cells(config, grid) for c in cell.lineage() if c.stage is not None]
    stages = [config.stage(str(cell.stage), cell.model) for cell in every]
    names = sorted({stage.online.label for stage in stages if stage.online})
    return {name: config.labellers[name] for name in names}
