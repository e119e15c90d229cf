"""The table of docs/architectures.md: what becomes of each model type.

`python -m tests.zoo.table` tries all types, which takes about ten minutes on one core, and writes it anew;
`python -m tests.zoo.table llama gpt2` tries these, and keeps the other rows.
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from tests.conftest import World
from tests.zoo.architectures import CAUSAL, IMPOSSIBLE, SHELLS, VARIANTS
from tests.zoo.trial import COLUMNS, Trial, shared

PAGE = Path(__file__).parents[2] / "docs/architectures.md"
TYPES = (*(name for name in sorted([*CAUSAL, *VARIANTS, *SHELLS]) if name not in IMPOSSIBLE),)
"""Everything that is tried."""
SECONDS = 300
"""The longest that a type may take."""
HEAD = f"""| type | {" | ".join(COLUMNS[1:])} | notes |
|{"---|" * (len(COLUMNS) + 1)}"""


class Late(BaseException):
    """A type takes too long; no `except Exception` stops it."""


def outcomes_of(name: str, world: World, folder: Path) -> dict[str, str]:
    """column -> outcome of one type; it is stopped where it takes too long."""

    def late(*_: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    folder.mkdir()
    try:
        return Trial(name, world, folder).run()
    except Late:
        return {"base": f"fails: not done after {SECONDS} s"}
    finally:
        signal.alarm(0)
        shutil.rmtree(folder)


def row(outcomes: dict[str, str]) -> str:
    """A line of the table, less the names: a word for each column, and the reasons of what is not plainly yes.

    What differs does so by numbers, which are another machine's own: they are left out.
    """
    words, reasons = [], {}
    for column in COLUMNS[1:]:
        kind, _, reason = outcomes.get(column, outcomes["base"]).partition(": ")
        share = re.fullmatch(r"yes, (\d+)% of matrices", kind)
        words.append(f"{share[1]} %" if share else kind)
        if reason and kind != "differs":
            reasons.setdefault(reason.replace("|", "\\|"), column)
    base = outcomes["base"].partition(": ")[2]
    notes = [base] if base else [f"{column}: {reason}" for reason, column in reasons.items()]
    return " | ".join([*words, "; ".join(notes)])


def read(page: str) -> dict[str, str]:
    """name -> its line of the table in a page."""
    lines = page.partition(HEAD)[2].splitlines()
    cells = [line.removeprefix("| ").removesuffix(" |").partition(" | ") for line in lines if line.startswith("| `")]
    return {name.strip("`"): rest for names, _, rest in cells for name in names.split(", ")}


def write(rows: dict[str, str]) -> str:
    """The table. Types of which all is the same share a line."""
    names: dict[str, list[str]] = {}
    for name in sorted(rows):
        names.setdefault(rows[name], []).append(f"`{name}`")
    return "\n".join([HEAD, *(f"| {', '.join(some)} | {line} |" for line, some in names.items())]) + "\n"


def main(names: Iterable[str]) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    page = PAGE.read_text()
    rows = {name: line for name, line in read(page).items() if name in TYPES}
    with tempfile.TemporaryDirectory() as folder:
        world = shared(Path(folder) / "shared")
        for name in list(names) or TYPES:
            outcomes = outcomes_of(name, world, Path(folder) / "trial")
            rows[name] = row(outcomes)
            print(name, *(f"{k}: {v}" for k, v in outcomes.items()), sep="\n  ", flush=True)
            PAGE.write_text(page.partition(HEAD)[0] + write(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
