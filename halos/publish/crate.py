"""An RO-Crate of a finished grid: one zip with all that a reader needs to check it, and machine-readable provenance.

The format is RO-Crate (https://w3id.org/ro/crate) after its Workflow Run profile: the workflow is the main entity,
and each training is an action with its inputs and outputs. Weights stay outside; their hashes are inside.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from halos import __version__
from halos.errors import HalosError
from halos.files import hash_file, whole
from halos.report.results import Results
from halos.study.cells import Cell

ROOT = Path(__file__).parents[2]
"""The checkout: where the Snakefile is."""
WORKFLOW = ("Snakefile", "rules/**/*", "config.yaml", "envs/*.yaml", "profiles/**/*.yaml", "requirements*.lock",
            "LICENSE", "CITATION.cff")  # fmt: skip
OF_RUN = ("config.yaml", "manifest.json", "train.jsonl", "samples/*.jsonl", "judged/*.json",
          "judged/*/against/*.json", "tasks/*.json", "divergence/*/*.json", "rewards/*.json",
          "model/README.md")  # fmt: skip
FORMATS = {".json": "application/json", ".jsonl": "application/jsonl", ".md": "text/markdown", ".csv": "text/csv",
           ".svg": "image/svg+xml", ".png": "image/png", ".tex": "application/x-tex", ".yaml": "application/yaml",
           ".html": "text/html", ".pdf": "application/pdf"}  # fmt: skip


def make(config: Path, output: Path, results: Path = Path("results")) -> None:
    """Put a finished grid into an RO-Crate, without its weights.

    It holds the workflow, the grid's tables and figures, the reports of its datasets, and of each run the settings,
    log, samples, judgements, task results, card and manifest.

    Args:
        config: the grid's config.yaml: `python -m halos config FOLDER` writes one.
        output: zip to write.
        results: the results folder.

    Raises:
        HalosError: a run of the grid is not finished, or this is no checkout of the workflow.
    """
    from rocrate.rocrate import ROCrate

    grid = Results(config, results)
    if not (ROOT / "Snakefile").is_file():
        raise HalosError(f"there is no Snakefile in {ROOT}: make the crate from a checkout of the workflow")
    crate = ROCrate()
    title = grid.label("grids", grid.grid)
    crate.name, crate.license = f"Results of the grid {title}", "Apache-2.0"
    crate.description = (
        f"{len(grid.cells)} cells ({len(grid.models)} models, {len(grid.datasets)} datasets, {len(grid.methods)} "
        f"methods, {len(grid.seeds)} seeds) trained and evaluated by halos {__version__}. Weights are not included; "
        f"each manifest.json has their sha256."
    )
    workflow = crate.add_workflow(ROOT / "Snakefile", "Snakefile", main=True, lang="snakemake",
                                  properties={"name": "halos", "version": __version__})  # fmt: skip
    for path in _matching(ROOT, WORKFLOW):
        if path.name != "Snakefile":
            _add(crate, path, path.relative_to(ROOT))
    reports = (grid.paths.data(dataset).folder for dataset in grid.datasets)
    for folder in (grid.paths.tables(grid.grid), grid.paths.figures(grid.grid), *reports):
        for path in _matching(folder, ("*.csv", "*.md", "*.tex", "*.svg", "*.png", "report.json")):
            _add(crate, path, path.relative_to(results.parent))
    for cell in grid.choices:
        path = grid.paths.choice(cell).choice
        _add(crate, path, path.relative_to(results.parent))
    made: dict[Cell, Any] = {}
    for cell in _made(grid):
        _add_run(crate, workflow, grid, cell, made)
    with whole(output) as partial:
        crate.write_zip(partial)


def _made(grid: Results) -> list[Cell]:
    """Every run that the grid has or was made from, parents first."""
    return list(dict.fromkeys(c for cell in (*grid.cells, *grid.trained) for c in reversed(list(cell.lineage()))))


def _add_run(crate: Any, workflow: Any, grid: Results, cell: Cell, made: dict[Cell, Any]) -> None:
    """The files of a run, and the action that trained it; a base model was not trained."""
    folder = grid.paths.run(cell).folder
    files = {path.relative_to(folder).as_posix(): _add(crate, path, path.relative_to(grid.paths.results.parent))
             for path in _matching(folder, OF_RUN)}  # fmt: skip
    if cell.stage is None:
        return
    manifest, made[cell] = grid.manifest(cell), files["manifest.json"]
    read = [files["config.yaml"], *([made[cell.parent]] if cell.parent in made else [])]
    finished = datetime.fromtimestamp((folder / "manifest.json").stat().st_mtime, UTC)
    crate.add_action(
        workflow,
        identifier=f"#train/{cell.folder.removeprefix('runs/')}",
        object=read,
        result=[files["train.jsonl"], files["manifest.json"]],
        properties={
            "@type": "CreateAction",
            "name": f"Training of {grid.method_label(cell.method)}, {grid.label('models', cell.model)}, "
            f"{grid.label('datasets', cell.dataset)}, seed {cell.seed}",
            "endTime": finished.isoformat(timespec="seconds"),
            "description": f"{manifest.steps} steps, {manifest.seconds:.0f} s, weights {manifest.weights}",
        },
    )


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _add(crate: Any, path: Path, place: Path) -> Any:
    properties = {"sha256": hash_file(path), "contentSize": str(path.stat().st_size)}
    if path.suffix in FORMATS:
        properties["encodingFormat"] = FORMATS[path.suffix]
    return crate.add_file(path, place.as_posix(), properties=properties)
