"""Say what a grid will cost, before anything is run."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from halos.plan.jobs import Plan
from halos.plan.text import rows, text, totals
from halos.study.catalogue import load


def _write(path: Path, found: list[Any]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(found[0])))
        writer.writeheader()
        writer.writerows(map(asdict, found))


def plan(
    config: Path = Path("config.yaml"),
    grid: str | None = None,
    gpu: str = "a100-80gb",
    results: Path = Path("results"),
    utilisation: float = 0.4,
    output: Path | None = None,
) -> None:
    """The verb: print what a grid will cost.

    Args:
        config: the catalogue.
        grid: its id; None for the config's own.
        gpu: a key of GPUS.
        results: folder of what is made already: sizes, lengths and times are read from it.
        utilisation: share of the peak that training reaches.
        output: folder to write plan.md, jobs.csv and totals.csv to as well.

    Raises:
        HalosError: an unknown grid or GPU, or a model that nothing says the size of.
    """
    catalogue = load(config)
    found = Plan(catalogue, grid or catalogue.grid, gpu, results, utilisation)
    report = text(found)
    print(report)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "plan.md").write_text(report + "\n")
        _write(output / "jobs.csv", rows(found))
        _write(output / "totals.csv", totals(found))
