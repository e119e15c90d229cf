"""Keep what grids have made: `python -m docs.studies GRID...` copies it from results/ to docs/studies/GRID.

With --make, the grids are made first; without GRID, all of them.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from halos.errors import HalosError
from halos.files import hash_file
from halos.publish.examples import examples
from halos.report.results import Results
from halos.study.cells import Cell

HERE = Path(__file__).parent
WORDS = "responses.md"
RUNS = "runs.csv"


class Kept(BaseModel):
    """What is kept of a grid.

    Attributes:
        catalogue: the files that define it.
        tables, figures: their names; each table as CSV and Markdown.
        drawn: figures whose numbers are kept, too, as CSV.
        responses: prompts whose responses by all methods are kept, the first by a hash of their ids.
        runs: whether the hashes of all trainings are kept.
        choices: whether the choices between trials are kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    catalogue: tuple[str, ...]
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    responses: int = 0
    runs: bool = True
    choices: bool = False


def studies() -> dict[str, Kept]:
    """{grid: what is kept of it}."""
    content = yaml.safe_load((HERE / "studies.yaml").read_text())
    return {grid: Kept.model_validate(entry) for grid, entry in content.items()}


def snakemake(name: str) -> list[str]:
    """The command that makes a grid."""
    return ["snakemake", "--configfile", *studies()[name].catalogue, "--config", f"grid={name}", "--", "all"]


def keep(name: str, results: Path, folder: Path) -> None:
    """Copy what is kept of a finished grid to a folder, which then holds nothing else.

    Raises:
        HalosError: a file of the grid is missing.
    """
    kept, config = studies()[name], results / f"grids/{name}/config.yaml"
    if not config.exists():
        raise HalosError(f"{config} is missing: make the grid first, `{' '.join(snakemake(name))}`")
    grid = Results(config, results)
    files = [results / f"tables/{name}/{table}.{form}" for table in kept.tables for form in ("csv", "md")]
    files += [results / f"figures/{name}/{figure}.png" for figure in kept.figures]
    files += [results / f"figures/{name}/{figure}.csv" for figure in kept.drawn]
    if missing := [file for file in files if not file.exists()]:
        raise HalosError(f"{missing[0]} is missing: the grid {name} is not finished")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    if kept.responses:
        (folder / WORDS).write_text("\n".join(responses(grid, kept.responses)))
    if kept.choices:
        (folder / "choices").mkdir()
        for dataset, model, method in grid.sweeps:
            choice = grid.paths.choice(Cell(dataset, model, method, 0)).choice
            shutil.copy(choice, folder / f"choices/{method}.json")
    if kept.runs:
        with (folder / RUNS).open("w", newline="") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(["run", "weights", "manifest"])
            writer.writerows(runs(grid, results))


def runs(grid: Results, results: Path) -> Iterator[tuple[str, str, str]]:
    """Of each training its run, and the SHA-256 of its weights and of its manifest."""
    for cell in grid.trained:
        manifest = grid.paths.run(cell).manifest
        yield str(manifest.parent.relative_to(results)), grid.manifest(cell).weights, hash_file(manifest)


def responses(grid: Results, prompts: int) -> Iterator[str]:
    """A page of the responses of all methods, with the verdicts."""
    yield f"# Responses: {grid.label('grids', grid.grid)}\n"
    yield "Of the first seed, to the first prompts by a hash of their ids, whatever the verdicts; long ones are cut."
    for example in examples(grid, prompts):
        yield f"\n## {' '.join(example.prompt.split())}\n"
        yield f"| method | {example.judge} | response |\n|---|---|---|"
        for method, response, verdict in example.rows:
            text = response.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
            yield f"| {method} | {verdict} | {text} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grids", nargs="*", metavar="GRID", help=", ".join(studies()))
    parser.add_argument("--make", action="store_true", help="make the grid first")
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    if unknown := [name for name in given.grids if name not in studies()]:
        raise HalosError(f"{unknown[0]} is not in docs/studies/studies.yaml, which has {', '.join(studies())}")
    for name in given.grids or studies():
        if given.make:
            subprocess.run(snakemake(name), check=True)
        keep(name, given.results, HERE / name)
        print(f"kept: {(HERE / name).relative_to(HERE.parents[1])}")


if __name__ == "__main__":
    try:
        main()
    except HalosError as error:
        sys.exit(f"error: {error}")
