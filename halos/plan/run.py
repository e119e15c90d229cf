"""Print what a grid will cost, before anything is run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from halos.plan.plan import Plan
from halos.plan.questions import questions
from halos.plan.text import rows, text, totals
from halos.study.catalogue import load


def _write(path: Path, lines: list[Any]) -> None:
    """A CSV file of dataclasses, whose fields are its columns."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(lines[0])))
        writer.writeheader()
        writer.writerows(map(asdict, lines))


def plan(
    config: Sequence[Path] = (Path("config.yaml"),),
    grid: str | None = None,
    gpu: str = "a100-80gb",
    results: Path = Path("results"),
    utilisation: float = 0.4,
    output: Path | None = None,
) -> None:
    """Print what a grid will cost: memory, GPU-hours, disk space, and the questions to judges that are asked.

    Args:
        config: the catalogue, and files that are laid over it, as Snakemake's --configfile.
        grid: id of the grid; by default the config's own.
        gpu: kind of GPU: a100-40gb, a100-80gb, h100-80gb or l40s-48gb.
        results: the results folder; sizes, lengths and times that are known are read from it.
        utilisation: fraction of a GPU's peak that training reaches.
        output: folder to write plan.md, jobs.csv, totals.csv and judges.csv to as well.

    Raises:
        HalosError: an unknown grid or GPU, or a model whose size is unknown.
    """
    catalogue = load(*config)
    planned = Plan(catalogue, grid or catalogue.grid, gpu, results, utilisation)
    report = text(planned)
    print(report)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "plan.md").write_text(report + "\n")
        _write(output / "jobs.csv", rows(planned))
        _write(output / "totals.csv", totals(planned))
        if asked := questions(planned):
            _write(output / "judges.csv", asked)
