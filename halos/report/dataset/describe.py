"""The data report: the outcome of a dataset's rows, the lengths of its texts, and examples as one model sees them."""

from __future__ import annotations

from pathlib import Path

from halos.data.report import DataReport
from halos.errors import HalosError
from halos.files import write_json, write_text
from halos.pretrained import read_tokenizer
from halos.report.dataset.charts import draw_lengths, draw_rows
from halos.report.dataset.counts import lengths_table, report, rows_table
from halos.report.dataset.examples import Chooser, page
from halos.report.dataset.split import open_splits
from halos.report.style import save, styled
from halos.tokens.report import TokensReport
from halos.tokens.store import SPLITS, Store
from halos.tokens.template import Template


def describe(data: Path, tokens: Path, store: Path, model: Path, output: Path) -> None:
    """Report on a dataset as a model sees it.

    Args:
        data: report of prepare, JSON, with the splits' feedback records beside it.
        tokens: report of tokenize, JSON.
        store: sequence store.
        model: model folder, for its tokenizer.
        output: folder to write to: report.json, rows and lengths (.svg, .png, .csv), and examples.html.

    Raises:
        HalosError: the inputs do not belong together, or the store is empty.
    """
    prepared, tokenized = DataReport.read(data), TokensReport.read(tokens)
    opened = Store(store)
    template = Template(read_tokenizer(model), opened.meta.split_special_tokens)
    _check(prepared, tokenized, opened, template)
    splits = open_splits(opened, tokenized, template.end)
    rows, lengths = rows_table(prepared, tokenized), lengths_table(splits)
    feedback = {name: data.with_name(f"{name}.parquet") for name in SPLITS}
    examples = Chooser(opened, template, splits, prepared, tokenized, feedback).examples()
    write_json(output / "report.json", report(prepared, tokenized, splits, rows))
    write_text(output / "examples.html", page(tokenized, examples))
    with styled():
        save(draw_rows(rows), rows, output / "rows")
        save(draw_lengths(lengths, tokenized), lengths, output / "lengths")


def _check(data: DataReport, tokens: TokensReport, store: Store, template: Template) -> None:
    """Refuse reports, a store and a model that were not made from each other."""
    if tokens.hash != store.hash:
        raise HalosError(f"the report of tokenize is not that of {store.folder}; run `tokenize` again to make both")
    if tokens.template != template.hash:
        raise HalosError(f"{store.folder} was made with another tokenizer or chat template; give the model it is of")
    if data.dataset != tokens.dataset or data.train.rows_out != tokens.train.records:
        raise HalosError(f"{store.folder} was made from other data than the report of prepare; run both again")
    if not store.n_responses:
        raise HalosError(f"{store.folder} holds no response: every row was dropped; give `max_prompt_length` more room")
