"""The verbs that show what there is and change nothing: list, config, verify, schema."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from halos.settings import dump
from halos.study.catalogue import load, schema
from halos.study.checks import overridden
from halos.study.listing import table
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.study.verify import verify


def show_entries(
    what: Literal[
        "models", "datasets", "sources", "views", "stages", "losses", "forwards", "prompts", "labellers", "judges",
        "verifiers", "tasks", "grids", "cells",
    ],
    /,
    grid: str | None = None,
    results: Path = Path("results"),
    config: Sequence[Path] = (Path("config.yaml"),),
) -> None:  # fmt: skip
    """Print a table of the entries of one kind.

    Args:
        what: the kind of entries to print.
        grid: id of the grid whose cells to print; by default the config's own.
        results: the results folder, which tells what of a cell is done.
        config: the catalogue, and files that are laid over it, as Snakemake's --configfile.
    """
    catalogue = load(*config)
    print(table(catalogue, what, grid, results))
    if what == "cells" and (line := overridden(Study(catalogue, grid))) is not None:
        print(line, file=sys.stderr)


def show_slice(folder: str, /, config: Sequence[Path] = (Path("config.yaml"),)) -> None:
    """Print the config.yaml of one results folder: the part of the catalogue that makes it.

    Args:
        folder: a results folder, for example data/toy or runs/toy/tiny/sft-kto/seed1.
        config: the catalogue, and files that are laid over it, as Snakemake's --configfile.
    """
    print(dump(config_slice(load(*config), folder.removeprefix("results/"))), end="")


def show_changes(run: Path, /, config: Sequence[Path] = (Path("config.yaml"),)) -> None:
    """Print what changed since a run was made: its weights, config, data or parents.

    Args:
        run: folder of the run, for example results/runs/toy/tiny/sft-kto/seed1.
        config: the catalogue, and files that are laid over it, as Snakemake's --configfile.
    """
    verify(run, load(*config))


def show_schema() -> None:
    """Print the JSON schema of config.yaml."""
    print(json.dumps(schema(), indent=1))
