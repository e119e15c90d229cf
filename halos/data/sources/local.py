"""The source `local`: feedback from files of your own, in any of the shapes of halos.data.layouts.shapes."""

from __future__ import annotations

from halos.data.layouts.own import OnInvalid, Own
from halos.data.layouts.parse import Layout
from halos.data.paths import SPLITS, Paths, by_split
from halos.data.rows import Records, locate
from halos.registry import SOURCES


@SOURCES.register("local")
def local(
    split: str,
    *,
    path: Paths,
    test_fraction: float = 0.1,
    limit: int | None = None,
    columns: dict[str, str | None] | None = None,
    roles: dict[str, str] | None = None,
    invalid: OnInvalid = "refuse",
    every_turn: bool = False,
    group: str | None = None,
    category: str | None = None,
) -> Records:
    """Feedback of your own, in the files and layouts of docs/data.md. Each row tells its shape by its fields:

    - records: prompt, responses, and any other field of halos.data.feedback.Feedback;
    - files of the HALOs repository: `type: sample` (output or response, optional reward), `binary_feedback` (output,
      label), `scalar_feedback` (output, reward), `pairwise_feedback` (output_A, output_B, label: 1 where A is
      preferred); the samples of `python -m halos sample` are such rows, too;
    - TRL's formats: preference (chosen, rejected, optional prompt), unpaired (prompt, completion, label),
      prompt-completion (prompt, completion) and messages, whose last turn is the response;
    - Alpaca's instructions, ShareGPT's conversations, OpenAI's files.

    A prompt or a response is a text or turns; a preference without a prompt has it at the beginning of both texts.
    Neighboring rows of one shape on one prompt become one record. Its target is the best-scored (or first) of the
    desirable responses. Samples and scalar feedback may repeat, as in a group of samples, and all are kept; of other
    shapes, a row that repeats a neighbor is dropped. Records, prompt-completion, Alpaca's and messages are not joined.
    A response without text is dropped, and so are a pair of equal responses and a row whose label has no value.

    The files are checked whole before the first record is given.

    Args:
        split: "train", "validation" or "test". A row's `split` field decides, where it has one.
        path: a file, a list of files, a pattern or a folder; or these for each split.
        test_fraction: fraction of the conversations without a `split` field that is the test split, where the files
            hold all splits; 0 for no test split.
        limit: the number of records to read; None for all.
        columns: field that is read -> column of the file that it is in; null for a column that is not to be read.
        roles: role as the files write it -> system, developer, user, assistant or tool.
        invalid: `refuse` files with a row that cannot be used, or `drop` such rows, counted by reason.
        every_turn: a record for every assistant turn of `messages`, with what precedes it as the prompt.
        group: the column that decides the split, so that rows of one group stay together.
        category: the column of what a row is about, which the record has as its `source`: results on preference sets
            are tabulated by it. Neighboring rows are joined within one category alone.

    Raises:
        HalosError: a file is missing, has rows of no known shape or that do not make a sound record, or an option is
            wrong.
    """
    path = by_split(path)
    files = locate("local", path, split, test_fraction)
    layout = Layout(columns or {}, roles or {}, every_turn)
    fraction = None if isinstance(path, dict) else test_fraction
    return Own("local", files, fraction, layout, invalid, group, category).records(split, limit)


local.splits = SPLITS  # type: ignore[attr-defined]
