"""A table as Markdown and as LaTeX: the same texts, numbers and bold ones in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

NOTHING = "–"
MINUS = "\N{MINUS SIGN}"
LEFT = ("Dataset", "Model", "Method", "Against", "Judge", "What")
"""Columns of text."""
ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", NOTHING: "--",
    MINUS: "$-$", "±": r"$\pm$", "×": r"$\times$", "λ": r"$\lambda$", "β": r"$\beta$",
}  # fmt: skip


class Bold(str):
    """Text of a cell that stands out."""


@dataclass(frozen=True)
class Table:
    """What a reader sees of a table.

    Attributes:
        caption: what the numbers are; plain text.
        lines: {title: text}, with the same titles in each; a title's spaces at its end are dropped.
        header: the titles, when there are no lines.
        title: a heading above it, if any.
    """

    caption: str
    lines: Sequence[dict[str, str]]
    header: Sequence[str] = ()
    title: str = ""

    @property
    def titles(self) -> list[str]:
        return list(dict.fromkeys(t for line in self.lines for t in line)) if self.lines else list(self.header)


def markdown_page(title: str, tables: Sequence[Table | str]) -> str:
    """A heading, then each table below its caption; what is no table is a paragraph."""
    parts = [f"# {title}"]
    for table in tables:
        if isinstance(table, str):
            parts.append(table)
            continue
        parts += [f"## {table.title}"] * bool(table.title)
        parts += [table.caption] * bool(table.caption) + [markdown(table)]
    return "\n\n".join(parts) + "\n"


def markdown(table: Table) -> str:
    """A table of aligned columns: text to the left, numbers to the right."""
    titles = table.titles
    rows = [
        [t.strip() for t in titles],
        *([_marked(line.get(t, NOTHING)) for t in titles] for line in table.lines),
    ]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(titles))]
    left = [title in LEFT for title in titles]
    body = [[t.ljust(w) if x else t.rjust(w) for t, w, x in zip(row, widths, left, strict=True)] for row in rows]
    rule = ["-" * w if x else "-" * (w - 1) + ":" for w, x in zip(widths, left, strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [body[0], rule, *body[1:]])


def _marked(text: str) -> str:
    plain = text.replace("|", r"\|")
    return f"**{plain}**" if isinstance(text, Bold) else plain


def latex_page(name: str, tables: Sequence[Table | str]) -> str:
    """One `table` environment for each table, to be read by `\\input`; what is no table is a paragraph.

    Args:
        name: of the file; labels are `tab:{name}`, `tab:{name}-2`, ...
    """
    parts = [r"% needs \usepackage{booktabs} and \usepackage{graphicx}"]
    number = 0
    for table in tables:
        if isinstance(table, str):
            parts.append(escape(table))
            continue
        number += 1
        parts.append(latex(table, f"tab:{name}" + (f"-{number}" if number > 1 else "")))
    return "\n\n".join(parts) + "\n"


def latex(table: Table, label: str) -> str:
    """A `table` of booktabs, made smaller only where it is wider than the text."""
    titles = table.titles
    rows = [" & ".join(_typeset(line.get(t, NOTHING)) for t in titles) + r" \\" for line in table.lines]
    caption = ". ".join(filter(None, (table.title, table.caption)))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{@{{}}{''.join('l' if t in LEFT else 'r' for t in titles)}@{{}}}}",
            r"\toprule",
            " & ".join(escape(t.strip()) for t in titles) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )


def _typeset(text: str) -> str:
    # a cell that begins with [ would be taken for the length of the row break before it
    plain = "{}" * text.startswith("[") + escape(text)
    return rf"\textbf{{{plain}}}" if isinstance(text, Bold) else plain


def escape(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text)


def interval(mean: float | None, low: float | None, high: float | None, sign: bool = False) -> str:
    if pd.isna(mean):
        return NOTHING
    return number(mean, sign=sign) + ("" if pd.isna(low) else f" [{number(low, sign=sign)}, {number(high, sign=sign)}]")


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    if value is None or pd.isna(value):
        return NOTHING
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)


def percent(value: float | None) -> str:
    return NOTHING if value is None or pd.isna(value) else f"{100 * value:.0f} %"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
