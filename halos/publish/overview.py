"""A grid on one page: the main figure and tables, a few responses, and the methods in words."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from halos.files import write_text
from halos.publish.examples import examples
from halos.publish.methods import methods
from halos.report.results import Results

PICTURES = ("win_rate.svg", "training.svg")
TABLES = ("main.md", "benchmarks.md", "comparisons.md")
TUNING_PICTURES = ("tuning.svg",)
TUNING_TABLES = ("tuned.md", "trials.md")
"""Of a grid with sweeps."""


def make(config: Path, output: Path, results: Path = Path("results")) -> None:
    """Put a grid's figures, tables, a few responses and its methods on one page.

    Args:
        config: the grid's config.yaml: `python -m halos config FOLDER` writes one.
        output: folder to write to: overview.html, which needs no other file, and methods.md, the methods section.
        results: the results folder, with the grid's tables and figures.

    Raises:
        HalosError: a run of the grid is not finished.
    """
    grid = Results(config, results)
    text = methods(grid)
    write_text(output / "methods.md", f"# Methods: {grid.label('grids', grid.grid)}\n\n{text}")
    tables, figures = grid.paths.tables(grid.grid), grid.paths.figures(grid.grid)
    pictures = (*PICTURES, *(TUNING_PICTURES if grid.sweeps else ()))
    shown = (*TABLES, *(TUNING_TABLES if grid.sweeps else ()))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("overview.html.jinja").render(
        title=grid.label("grids", grid.grid),
        facts=facts(grid),
        pictures=[(Path(name).stem, _embedded(figures / name)) for name in pictures if (figures / name).is_file()],
        examples=examples(grid),
        tables=[_html((tables / name).read_text().replace("# ", "## ", 1)) for name in shown],
        methods=_html(text),
    )
    write_text(output / "overview.html", page)


def facts(grid: Results) -> list[str]:
    """The size of the study, and the commits of the code that trained it."""
    counts: dict[str, list[str] | list[int]] = {
        "model": grid.models,
        "dataset": grid.datasets,
        "method": grid.methods,
        "seed": grid.seeds,
    }
    sizes = [f"{len(ids)} {name}{'' if len(ids) == 1 else 's'}" for name, ids in counts.items()]
    commits = sorted({(grid.manifest(cell).commit or "no commit")[:12] for cell in grid.trained})
    return [*sizes, f"trained by commit {', '.join(commits)}"] if commits else sizes


def _embedded(picture: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture.read_bytes()).decode()


def _html(text: str) -> Markup:
    """Markdown as HTML; HTML in it stays text."""
    from markdown_it import MarkdownIt

    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
