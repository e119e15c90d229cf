"""Feedback of your own, from files: the package's own records, what HALOs samples and labels, and TRL's formats."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from typing_extensions import TypedDict

from halos.data import feedback
from halos.data.feedback import Feedback, Turn, labels_of_pairs
from halos.data.rows import Drop, in_split, json_rows, limited, locate
from halos.errors import HalosError
from halos.registry import SOURCES


class _Turn(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    role: str
    content: str


def _spoken_by(role: str) -> BeforeValidator:
    """A text in place of turns is one turn of this role."""
    return BeforeValidator(lambda value: [{"role": role, "content": value}] if isinstance(value, str) else value)


Prompt = Annotated[list[_Turn], _spoken_by("user")]
Completion = Annotated[list[_Turn], _spoken_by("assistant"), Field(min_length=1)]
Label = Annotated[bool, BeforeValidator(lambda value: bool(value) if value in (0, 1) else value)]
EMPTY = "empty response"
"""What someone may well have said: the row is dropped, where any other problem is the file's."""


class _Row(BaseModel, ABC):
    """One row of a file. Fields of other names are the user's own notes."""

    model_config = ConfigDict(extra="ignore", strict=True)
    joins: ClassVar[bool] = True
    """Whether neighbours on one prompt become one record."""
    repeats: ClassVar[bool] = False
    """Whether a row that says what its neighbour says counts once more."""

    split: Literal["train", "test"] | None = None

    @abstractmethod
    def record(self) -> Feedback:
        """Raises ValueError when the fields do not go together."""


class _Record(_Row):
    model_config = ConfigDict(extra="forbid", strict=True)
    joins = False

    prompt: list[_Turn]
    responses: list[str]
    prompt_id: str | None = None
    source: str | None = None
    scores: list[FiniteFloat] | None = None
    pairs: list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = None
    desirable: list[bool | None] | None = None
    target: int | None = None
    cut: list[bool] | None = None

    def record(self) -> Feedback:
        return feedback.from_row({name: value for name, value in self if name != "split"})


class _Sample(_Row):
    repeats = True

    prompt: Prompt
    output: Completion = Field(validation_alias=AliasChoices("output", "response"))
    reward: FiniteFloat | None = None
    finish_reason: str | None = None

    def record(self) -> Feedback:
        cut = [True] if self.finish_reason == "length" else []
        return replace(_single(self.prompt, self.output, self.reward), cut=cut)


class _Scalar(_Sample):
    reward: FiniteFloat


class _Binary(_Row):
    prompt: Prompt
    output: Completion = Field(validation_alias=AliasChoices("output", "completion"))
    label: Label
    reward: FiniteFloat | None = None

    def record(self) -> Feedback:
        return replace(_single(self.prompt, self.output, self.reward), desirable=[self.label])


class _Pairwise(_Row):
    prompt: Prompt
    output_A: Completion
    output_B: Completion
    label: Label
    reward_A: FiniteFloat | None = None
    reward_B: FiniteFloat | None = None

    def record(self) -> Feedback:
        ours = _single(self.prompt, self.output_A, self.reward_A), _single(self.prompt, self.output_B, self.reward_B)
        return _pair(*(ours if self.label else ours[::-1]))


class _Preference(_Row):
    prompt: Prompt = []
    chosen: Completion
    rejected: Completion

    def record(self) -> Feedback:
        whole = [completion[0] for completion in (self.chosen, self.rejected)]
        if not self.prompt and all(turn["role"] == "assistant" for turn in whole):
            prompt = _shared_text(*(turn["content"] for turn in whole))
            turns = [{"role": "user", "content": prompt}]
            return _pair(*(_single(turns, _assistant(turn["content"][len(prompt) :])) for turn in whole))
        return _pair(_single(self.prompt, self.chosen), _single(self.prompt, self.rejected))


class _PromptCompletion(_Row):
    joins = False  # each completion is a target of its own

    prompt: Prompt
    completion: Completion

    def record(self) -> Feedback:
        return _single(self.prompt, self.completion)


class _Messages(_Row):
    joins = False

    messages: list[_Turn] = Field(min_length=2)

    def record(self) -> Feedback:
        return _single([], self.messages)


SHAPES: dict[str, tuple[type[_Row], frozenset[str]]] = {
    name: (shape, frozenset(fields.split()))
    for name, shape, fields in (
        ("record", _Record, "prompt responses"),
        ("pairwise_feedback", _Pairwise, "prompt output_A output_B label"),
        ("binary_feedback", _Binary, "prompt output label"),
        ("scalar_feedback", _Scalar, "prompt output reward"),
        ("sample", _Sample, "prompt response"),
        ("preference", _Preference, "chosen rejected"),
        ("unpaired", _Binary, "prompt completion label"),
        ("prompt-completion", _PromptCompletion, "prompt completion"),
        ("messages", _Messages, "messages"),
    )
}
"""name -> (model, the fields that tell it). A row has the shape that its `type` names, else the first that fits."""
NO_SHAPE = "of no known shape"


def _assistant(text: str) -> list[Turn]:
    return [{"role": "assistant", "content": text}]


def _single(prompt: list[Any], completion: list[Any], score: float | None = None) -> Feedback:
    """One response. A completion that begins with another turn than the assistant's holds its prompt, too."""
    turns = [*prompt, *completion] if completion[0]["role"] == "assistant" else completion
    if turns[-1]["role"] != "assistant":
        raise ValueError("the conversation does not end in an assistant turn")
    return Feedback(turns[:-1], [turns[-1]["content"]], "local", [] if score is None else [score], target=0)


def _pair(winner: Feedback, loser: Feedback) -> Feedback:
    if winner.prompt != loser.prompt:
        raise ValueError("the two responses follow different prompts")
    scores = winner.scores + loser.scores
    if len(scores) == 1:
        raise ValueError("only one of the two responses has a reward")
    return replace(winner, responses=winner.responses + loser.responses, scores=scores, pairs=[(0, 1)])


def _shared_text(chosen: str, rejected: str) -> str:
    """The words that two texts begin with: their prompt, where none is given."""
    if chosen.lstrip().startswith("Human:"):
        raise ValueError("this is the layout of Anthropic's HH, which the source hh reads")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    shared = re.match(r".*\S(?=\s)", chosen[:same], re.DOTALL)
    if shared is None:
        raise ValueError("there is no prompt, and chosen and rejected do not begin with the same words")
    return shared[0]


def _parsed(row: Any) -> tuple[_Row, Feedback] | str:
    """A row of a file and its record, or what is wrong with it."""
    if not isinstance(row, dict):
        return f"not an object with fields but {json.dumps(row)[:40]}"
    row = {name: value for name, value in row.items() if value is not None}
    named = SHAPES.get(row["type"]) if isinstance(row.get("type"), str) else None
    found = named or next(((shape, fields) for shape, fields in SHAPES.values() if fields <= row.keys()), None)
    if found is None:
        return f"{NO_SHAPE} (fields: {', '.join(row)})"
    try:
        parsed = found[0].model_validate(row)
        record = parsed.record()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"field {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        return str(error)
    problem = record.problem()
    empty = problem == EMPTY and not isinstance(parsed, _Record)
    return (parsed, record) if problem is None or empty else problem


def _rows(file: Path) -> Iterator[tuple[int, tuple[_Row, Feedback] | str]]:
    """(row number from 1, what `_parsed` makes of it)."""
    if file.suffix == ".parquet":
        try:
            with pq.ParquetFile(file, pre_buffer=False) as parquet:  # else it keeps what was read
                contents = (row for batch in parquet.iter_batches(1_000) for row in batch.to_pylist())
                yield from enumerate(map(_parsed, contents), 1)
        except (OSError, pa.ArrowException) as error:
            raise HalosError(f"{file} cannot be read ({error}); it must be a parquet file") from None
        return
    for number, text in json_rows(file):
        try:
            content = json.loads(text)
        except ValueError as error:
            yield number, f"no JSON: {error}"
        else:
            yield number, _parsed(content)


@lru_cache(maxsize=16)
def _check(file: Path, *_: int) -> None:
    """Raises HalosError unless every row of a file is sound; both splits of one file need it once."""
    count, failed = 0, 0
    first: list[str] = []
    for number, found in _rows(file):
        count += 1
        if isinstance(found, str):
            failed += 1
            if len(first) < 3:
                first.append(f"row {number}, {found}")
    if first:
        message = f"source local: correct {file}, of whose {count} rows {failed} cannot be used: {'; '.join(first)}"
        if NO_SHAPE in message:
            known = " · ".join(f"{name} ({', '.join(sorted(fields))})" for name, (_, fields) in SHAPES.items())
            message += f"; the shapes and the fields that tell them are {known}"
        raise HalosError(message)


def _joined(rows: Iterable[tuple[_Row, Feedback] | Drop]) -> Iterator[Feedback | Drop]:
    """One record of all neighbours on one prompt, if their shape is one that joins; memory holds those of a prompt."""
    run: list[tuple[_Row, Feedback]] = []
    for row in rows:
        if isinstance(row, Drop):
            yield row
            continue
        if run and not _alike(run[-1], row):
            yield from _join(run)
            run = []
        run.append(row)
    if run:
        yield from _join(run)


def _alike(one: tuple[_Row, Feedback], other: tuple[_Row, Feedback]) -> bool:
    (row, record), (next_row, next_record) = one, other
    same = type(row) is type(next_row) and bool(record.scores) == bool(next_record.scores)
    return row.joins and same and record.prompt == next_record.prompt


def _join(run: list[tuple[_Row, Feedback]]) -> Iterator[Feedback | Drop]:
    """One record of several on one prompt, and a Drop for each that adds nothing to it."""
    shape, first = run[0]
    if not shape.joins:
        yield first
        return
    places: dict[tuple[Any, ...], int] = {}  # one for each (text, score, label), and one each time if that counts
    pairs: dict[tuple[int, int], None] = {}
    for number, (_, record) in enumerate(run):
        if reason := _empty_handed(record):
            yield Drop(reason)
            continue
        columns: list[list[Any]] = [record.responses, record.scores, record.desirable, record.cut]
        facts = zip(*(column or [None] * len(record.responses) for column in columns), strict=True)
        before = len(places), len(pairs)
        place = [places.setdefault((*fact, number * shape.repeats), len(places)) for fact in facts]
        pairs.update(((place[winner], place[loser]), None) for winner, loser in record.pairs)
        if (len(places), len(pairs)) == before:
            yield Drop("repeats another row of the same prompt")
    if places:
        texts, scores, labels, cut, _ = map(list, zip(*places, strict=True))
        desirable = labels_of_pairs(len(texts), pairs) if pairs else labels if first.desirable else []
        scores = scores if first.scores else []
        cut = list(map(bool, cut)) if any(cut) else []
        joined = replace(first, responses=texts, scores=scores, pairs=list(pairs), desirable=desirable, cut=cut)
        yield _with_target(joined)


def _empty_handed(record: Feedback) -> str | None:
    """Why a sound row has nothing to learn from, if it has not."""
    if record.pairs and record.responses[0] == record.responses[1]:
        return "chosen and rejected are equal"
    return record.problem()


def _with_target(record: Feedback) -> Feedback:
    """SFT imitates the best-scored, or the first, of what is desirable; nothing where all is undesirable."""
    good = [i for i, label in enumerate(record.desirable) if label]
    if not record.desirable:
        good = list(range(len(record.responses)))
    elif not good:  # each winner may lose another pair
        good = [winner for winner, _ in record.pairs]
    best = max(good, key=lambda i: record.scores[i] if record.scores else 0, default=None)
    return replace(record, target=best)


@SOURCES.register("local")
def local(
    split: str, *, path: str | dict[str, str], test_fraction: float = 0.1, limit: int | None = None
) -> Iterator[Feedback | Drop]:
    """Feedback of your own in JSON, JSON Lines (either as .gz, too) or parquet. Each row tells its shape by its fields:

    - prompt, responses, and what else a record has (halos.data.feedback);
    - HALOs' files: `type: sample` (output or response, maybe reward), `binary_feedback` (output, label),
      `scalar_feedback` (output, reward), `pairwise_feedback` (output_A, output_B, label: 1 where A is preferred);
      so are samples of `python -m halos sample`;
    - TRL's: preference (chosen, rejected, maybe prompt), unpaired (prompt, completion, label), prompt-completion
      (prompt, completion) and messages, whose last turn is the response.

    A prompt or a response is a text or turns; a preference without prompt has it at the beginning of both texts.
    Neighbouring rows of one shape on one prompt become one record, of which SFT imitates the best-scored (or first) of
    the desirable responses. Of these, samples and scalar feedback keep equal responses, as a group of samples may have
    them; of the others, a row that repeats a neighbour is dropped. Prompt-completion and messages stay as they are.
    A response without text is dropped, and so is a pair of equal ones.

    The whole file is checked before the first record is given.

    Args:
        split: "train" or "test". A row's own `split` decides, where it has one.
        path: one file, or one a split.
        test_fraction: share of the prompts without a `split` that are the test split of a single file.
        limit: the first so many records.

    Raises:
        HalosError: a file is missing, or has rows of no known shape or that make no sound record.
    """
    file = locate("local", path, split, test_fraction)
    stat = file.stat()
    _check(file, stat.st_mtime_ns, stat.st_size)
    return limited(_joined(_split(file, split, None if isinstance(path, dict) else test_fraction)), limit)


def _split(file: Path, split: str, test_fraction: float | None) -> Iterator[tuple[_Row, Feedback] | Drop]:
    """The rows of a split; with no fraction to go by, all that are not marked as another's."""
    for _, found in _rows(file):
        assert not isinstance(found, str), "the file has changed since it was checked"
        row, record = found
        if row.split is not None:
            mine = row.split == split
        else:
            mine = test_fraction is None or in_split(record.prompt_id, split, test_fraction)
        if mine:
            yield found
        elif test_fraction is None:  # no other call will give it
            yield Drop("marked as of the other split")
