"""A grid's responses on one page to read: those of all methods and seeds to a prompt side by side, with the verdicts.

The page is one file that needs no other, no server and no network. The responses of a view are JSON, compressed by gzip
and written in base64, which the page's script decodes when the view is chosen.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from halos.errors import HalosError
from halos.evaluate.judging.settings import FromCell
from halos.files import whole, write_text
from halos.publish.views import DURING, Prompt, View, parents, views
from halos.report.results import Results

MEGABYTE = 1_000_000
ROOM = 0.98
"""What prompts are made to fill of a limit, as they differ in size."""


def make(config: Path, output: Path, results: Path = Path("results"), megabytes: float = 20.0) -> None:
    """Write a grid's responses as a page to read: by prompt, side by side, with verdicts, filters and permanent links.

    Where the page would become larger than it may be, it has as many prompts of each set as it has room for: those that
    are most disputed or most improved, then others in the order of a hash, the same for all models. All are then in the
    pages of the folder beside it, which it links to.

    Args:
        config: the grid's config.yaml: `python -m halos config FOLDER` writes one.
        output: page to write, HTML; beside it a folder of its name, which is empty where the page has all responses.
        results: the results folder.
        megabytes: the most that a page may have, in millions of bytes.

    Raises:
        HalosError: a file of samples or judgements is missing, or the pages are to have no room.
    """
    if not megabytes > 0:
        raise HalosError(f"--megabytes is {megabytes:g}: a page needs room, give a number above 0")
    grid = Results(config, results)
    found = list(views(grid))
    # what a page has besides the responses
    limit = max(1.0, megabytes * MEGABYTE - len(page(grid, [(view, "", 0, []) for view in found]).encode()))
    packed = [pack(view.prompts) for view in found]
    sizes = [(view, len(data)) for view, data in zip(found, packed, strict=True)]
    number = max((len(view.prompts) for view in found), default=0)
    while (size := sum(map(len, packed))) > limit and number > 1:
        number = max(1, min(number - 1, int(number * ROOM * limit / size)))
        packed = [pack(view.prompts[:number]) for view in found]
    with whole(output.with_suffix("")) as folder:
        folder.mkdir()
        shown = []
        for (view, size), data in zip(sizes, packed, strict=True):
            files = [] if number >= len(view.prompts) else _write_parts(grid, view, size, limit, folder, output)
            shown.append((view, data, min(number, len(view.prompts)), files))
    write_text(output, page(grid, shown))


def _write_parts(grid: Results, view: View, size: int, limit: float, folder: Path, home: Path) -> list[str]:
    """Write pages of all prompts of a view, and return the links to them."""
    links = []
    for index, prompts in enumerate(parts(view.prompts, size, limit), 1):
        place = Path(view.dataset, view.model, f"{view.name.replace(' ', '_')}_{index}.html")
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        text = page(grid, [(view, pack(prompts), len(prompts), [])], f"../../../{home.name}")
        (folder / place).write_text(text)
        links.append(f"{home.stem}/{place.as_posix()}")
    return links


def pack(prompts: list[Prompt]) -> str:
    """Prompts with their responses, as base64 of gzip of JSON. What is empty is left out."""

    def fields(part: Any) -> dict[str, Any]:
        return {name: value for name, value in vars(part).items() if value not in (None, [], ())}

    text = json.dumps(prompts, default=fields, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def parts(prompts: list[Prompt], size: int, limit: float) -> list[list[Prompt]]:
    """Prompts in parts of about equal number, each of which has room on a page.

    Args:
        size: of all of them, packed.
        limit: of a page.
    """
    count = math.ceil(size / (ROOM * limit))
    while True:
        each = math.ceil(len(prompts) / count)
        cut = [prompts[start : start + each] for start in range(0, len(prompts), each)]
        if each == 1 or max(len(pack(part)) for part in cut) <= limit:
            return cut
        count += 1


def page(grid: Results, shown: list[tuple[View, str, int, list[str]]], home: str | None = None) -> str:
    """The HTML.

    Args:
        shown: views, each with its packed prompts, their number, and links to the pages that have all of them.
        home: link to the page of the whole grid, on another one.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    of_parents = parents(grid)
    about = {
        "methods": [{"id": m, "label": grid.method_label(m), "parent": of_parents[m]} for m in grid.methods],
        "seeds": grid.seeds,
        "judges": {name: _judge(grid, name) for name in grid.judges},
        "home": home,
        "views": [
            {
                "id": f"{view.dataset}/{view.model}/{view.name}",
                "label": ", ".join(filter(None, (grid.panel_label(view.dataset, view.model), _set(view)))),
                "judges": view.judges,
                "shown": number,
                "total": len(view.prompts),
                "disputed": view.disputed,
                "improved": view.improved,
                "files": files,
            }
            for view, _, number, files in shown
        ],
    }
    title = f"{grid.label('grids', grid.grid)}: responses"
    packed = [data for _, data, _, _ in shown]
    return environment.get_template("responses.html.jinja").render(title=title, about=about, packed=packed)


def _set(view: View) -> str:
    return view.name if view.name == DURING else f"prompts {view.name}"


def _judge(grid: Results, name: str) -> dict[str, Any]:
    baseline = grid.judge_settings[name].baseline
    if isinstance(baseline, FromCell):
        text = grid.method_label(baseline.method) + ("" if baseline.seed == "same" else f", seed {baseline.seed}")
    else:
        text = "the dataset's target" if baseline == "target" else Path(baseline.file).name
    scores = any(judgement.scores for (_, judge), judgement in grid.judged.items() if judge == name)
    return {"label": grid.label("judges", name), "baseline": text, "scores": scores, "criteria": grid.criteria(name)}
