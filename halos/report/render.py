"""A table as Markdown and as LaTeX: the same texts, numbers and bold ones in both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate  # type: ignore[import-untyped]

from halos.report.lazy import pd

NOTHING = "–"
MINUS = "\N{MINUS SIGN}"
LEFT = ("Dataset", "Model", "Method", "Against", "Judge", "What", "Train", "Judged", "Settings")
"""Columns of text."""
ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", NOTHING: "--",
    MINUS: "$-$", "±": r"$\pm$", "×": r"$\times$", "λ": r"$\lambda$", "β": r"$\beta$",
}  # fmt: skip


class Bold(str):
    """Text of a cell in bold."""


@dataclass(frozen=True)
class Table:
    """A table as a reader sees it.

    Attributes:
        caption: plain text.
        lines: {title: text} of each row, with the same titles; a title's spaces at its end are dropped.
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

    @property
    def rows(self) -> list[list[str]]:
        """The texts, row by row."""
        return [[line.get(title, NOTHING) for title in self.titles] for line in self.lines]


# ---- Markdown ----------------------------------------------------------------------------------------------------


def markdown_page(title: str, tables: Sequence[Table | str]) -> str:
    """A heading, then each table below its caption; a string is a paragraph."""
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
    return markdown_table(table.titles, table.rows, [title in LEFT for title in table.titles])


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[bool]) -> str:
    """A Markdown table.

    Args:
        left: of each column, whether it is text, and not a number.
    """
    align = ["left" if text else "right" for text in left]
    cells = [[_marked(text) for text in row] for row in rows]
    return str(tabulate(cells, [t.strip() for t in titles], "pipe", colalign=align, disable_numparse=True))


def _marked(text: str) -> str:
    plain = text.replace("|", r"\|")
    return f"**{plain}**" if isinstance(text, Bold) else plain


# ---- LaTeX -------------------------------------------------------------------------------------------------------


def latex_page(name: str, tables: Sequence[Table | str]) -> str:
    """One `table` environment for each table, to be read by `\\input`; a string is a paragraph.

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
    frame = pd.DataFrame([[_typeset(text) for text in row] for row in table.rows], columns=titles)
    columns = "".join("l" if title in LEFT else "r" for title in titles)
    shown = frame.style.hide(axis="index").format_index(lambda title: escape(str(title).strip()), axis="columns")
    tabular = shown.to_latex(hrules=True, column_format=f"@{{}}{columns}@{{}}").strip()
    caption = ". ".join(filter(None, (table.title, table.caption)))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            tabular + "}",
            r"\end{table}",
        ]
    )


def _typeset(text: str) -> str:
    # a cell that begins with [ would be taken for the length of the row break before it
    plain = "{}" * text.startswith("[") + escape(text)
    return rf"\textbf{{{plain}}}" if isinstance(text, Bold) else plain


def escape(text: str) -> str:
    """Plain text as LaTeX; pandas knows no dashes, minus signs and Greek letters."""
    return "".join(ESCAPES.get(character, character) for character in text)


# ---- numbers -----------------------------------------------------------------------------------------------------


def interval(mean: float | None, low: float | None, high: float | None, sign: bool = False) -> str:
    """`0.812 [0.790, 0.834]`; the mean alone where the limits are unknown."""
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
