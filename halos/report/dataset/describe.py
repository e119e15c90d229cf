"""The data report: what became of a dataset's rows, how long its texts are, and examples as one model sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

from halos.errors import HalosError
from halos.files import write_json, write_text
from halos.report.dataset.charts import draw_lengths, draw_rows
from halos.report.dataset.counts import lengths_table, report, rows_table
from halos.report.dataset.examples import Chooser, page
from halos.report.dataset.split import open_splits
from halos.report.style import STYLE, save
from halos.tokens.store import SPLITS, Store
from halos.tokens.template import Template


def describe(data: Path, tokens: Path, store: Path, model: Path, output: Path) -> None:
    """The verb: report on a dataset as one model sees it.

    Args:
        data: the report of `prepare`, with the splits' feedback beside it (read where prompts lost turns).
        tokens: the report of `tokenize`.
        store: the sequence store.
        model: model folder, for its tokenizer.
        output: folder for report.json, rows and lengths (.svg, .png, .csv), and examples.html.

    Raises:
        HalosError: the inputs do not belong together, or the store is empty.
    """
    from transformers import AutoTokenizer

    prepared, tokenized = (json.loads(Path(path).read_text()) for path in (data, tokens))
    opened = Store(store)
    template = Template(AutoTokenizer.from_pretrained(model))
    _check(prepared, tokenized, opened, template)
    splits = open_splits(opened, tokenized, template.end)
    rows, lengths = rows_table(prepared, tokenized), lengths_table(splits)
    feedback = {name: Path(data).with_name(f"{name}.parquet") for name in SPLITS}
    examples = Chooser(opened, template, splits, prepared, tokenized, feedback).examples()
    write_json(output / "report.json", report(prepared, tokenized, splits, rows))
    write_text(output / "examples.html", page(prepared["dataset"], tokenized, examples))
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        save(draw_rows(rows), rows, output / "rows")
        save(draw_lengths(lengths, tokenized), lengths, output / "lengths")


def _check(prepared: dict[str, Any], tokenized: dict[str, Any], store: Store, template: Template) -> None:
    """Refuse reports, a store and a model that were not made from each other."""
    if tokenized["hash"] != store.hash:
        raise HalosError(f"the report of tokenize is not that of {store.folder}; run `tokenize` again to make both")
    if tokenized["template"] != template.hash:
        raise HalosError(f"{store.folder} was made with another tokenizer or chat template; give the model it is of")
    if prepared["dataset"] != tokenized["dataset"] or prepared["train"]["rows_out"] != tokenized["train"]["records"]:
        raise HalosError(f"{store.folder} was made of other data than the report of prepare tells of; run both again")
    if not store.n_responses:
        raise HalosError(f"{store.folder} holds no response: every row was dropped; give `max_prompt_length` more room")
