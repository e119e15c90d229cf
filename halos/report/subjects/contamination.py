"""Contamination: what a grid was trained on that recurs among the prompts it is judged on."""

from __future__ import annotations

from collections.abc import Iterator

from halos.data.normal import SIMILAR
from halos.data.report import Overlap, shortened
from halos.report.lazy import pd
from halos.report.render import Table, number
from halos.report.results import Results
from halos.report.subject import Subject, subject
from halos.report.words import Page, records

COUNTS = ["records", "prompts", "prompts_found", "equal", "begins", "continues", "near"]
KINDS = {
    "equal": "is equal to",
    "begins": "is the beginning of",
    "continues": "goes on from",
    "near": "is nearly equal to",
}

SHOWN = 160
"""Characters of an example in the table; the reports of the data have more."""


@subject
class Contamination(Subject):
    table = "contamination"
    title = "Contamination"

    def frame(self, results: Results) -> pd.DataFrame:
        """One row per dataset and file of prompts: its own other splits, then those of other datasets."""
        rows = [
            {"dataset": dataset, "against": against, "split": split, **{name: getattr(found, name) for name in COUNTS}}
            for dataset, against, split, found in _overlaps(results)
        ]
        return pd.DataFrame(rows, columns=["dataset", "against", "split", *COUNTS])

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        """The counts, then a table of examples for each row that has some."""
        if frame.empty:
            return ["The data of this grid is not described."]
        titles = {
            "records": "Train records", "prompts": "Prompts", "prompts_found": "Found", "equal": "Equal",
            "begins": "Begin", "continues": "Go on", "near": "Nearly equal",
        }  # fmt: skip
        lines = [
            {"Dataset": results.label("datasets", row["dataset"])}
            | {"Against": _against(results, row["against"], row["split"])}
            | {title: number(row[key], 0) for key, title in titles.items()}
            for row in records(frame)
        ]
        caption = (
            "Records of the train split whose prompt is equal to one that is held out or judged, is the beginning of "
            "its conversation, goes on from it, or has nearly its words (Jaccard similarity of three-word shingles of "
            f"at least {SIMILAR}, estimated by MinHash); each is counted once, by the first of these that holds. "
            "Found: distinct prompts that recur. Case, punctuation at the ends and system turns are not compared. "
            "Prompts equal to one of the own validation or test split were dropped from train."
        )
        return [Table(caption, lines), *_examples(results)]


def _overlaps(results: Results) -> Iterator[tuple[str, str, str, Overlap]]:
    """(dataset, dataset of the prompts, split, what recurs)."""
    for dataset in results.datasets:
        if (report := results.data_report(dataset)) is not None:
            yield from ((dataset, dataset, split, found) for split, found in report.overlaps.items())
    for dataset, other, split in results.overlaps:
        yield dataset, other, split, results.overlap(dataset, other, split)


def _examples(results: Results) -> Iterator[Table]:
    for dataset, against, split, found in _overlaps(results):
        lines = [
            {
                "What": KINDS[example.kind],
                "Train": shortened(example.first, SHOWN),
                "Held out": shortened(example.second, SHOWN),
            }
            | {"Similarity": number(example.similarity, 2)}
            for example in found.examples
        ]
        if lines:
            names = results.label("datasets", dataset), _against(results, against, split)
            yield Table("The first of each kind, shortened.", lines, title="Examples: {}, {}".format(*names))


def _against(results: Results, dataset: str, split: str) -> str:
    return f"{results.label('datasets', dataset)} ({split})"
