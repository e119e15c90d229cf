"""Shapes of the rows that the source `local` reads: one model for each, and how it becomes a record."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from typing_extensions import TypedDict

from halos.data.feedback import Feedback, Turn, from_row


class _Turn(TypedDict):
    """A turn with these two fields and no other."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    role: str
    content: str


def _spoken_by(role: str) -> BeforeValidator:
    """Validator that reads a text in place of turns as one turn of this role."""
    return BeforeValidator(lambda value: [{"role": role, "content": value}] if isinstance(value, str) else value)


Prompt = Annotated[list[_Turn], _spoken_by("user")]
Completion = Annotated[list[_Turn], _spoken_by("assistant"), Field(min_length=1)]
Label = Annotated[bool, BeforeValidator(lambda value: bool(value) if value in (0, 1) else value)]
EMPTY = "empty response"
"""Empty responses occur in real data and are dropped; any other problem means the file is wrong and is an error."""


class Row(BaseModel, ABC):
    """One row of a file. Fields of other names are notes of the user's, and ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)
    joins: ClassVar[bool] = True
    """Whether neighboring rows on one prompt become one record."""
    repeats: ClassVar[bool] = False
    """Whether a row equal to its neighbor counts again, as in a group of samples, instead of being dropped."""

    split: Literal["train", "test"] | None = None

    @abstractmethod
    def record(self) -> Feedback:
        """The record of this row alone.

        Raises:
            ValueError: the fields contradict each other.
        """


class _Record(Row):
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
        return from_row({name: value for name, value in self if name != "split"})


class _Sample(Row):
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


class _Binary(Row):
    prompt: Prompt
    output: Completion = Field(validation_alias=AliasChoices("output", "completion"))
    label: Label
    reward: FiniteFloat | None = None

    def record(self) -> Feedback:
        return replace(_single(self.prompt, self.output, self.reward), desirable=[self.label])


class _Pairwise(Row):
    prompt: Prompt
    output_A: Completion
    output_B: Completion
    label: Label
    reward_A: FiniteFloat | None = None
    reward_B: FiniteFloat | None = None

    def record(self) -> Feedback:
        first = _single(self.prompt, self.output_A, self.reward_A)
        second = _single(self.prompt, self.output_B, self.reward_B)
        return _pair(first, second) if self.label else _pair(second, first)


class _Preference(Row):
    prompt: Prompt = []
    chosen: Completion
    rejected: Completion

    def record(self) -> Feedback:
        chosen, rejected = self.chosen, self.rejected
        if self.prompt or any(completion[0]["role"] != "assistant" for completion in (chosen, rejected)):
            return _pair(_single(self.prompt, chosen), _single(self.prompt, rejected))
        texts = [completion[0]["content"] for completion in (chosen, rejected)]
        prompt = _shared_text(*texts)
        turns = [{"role": "user", "content": prompt}]
        return _pair(*(_single(turns, _assistant(text[len(prompt) :])) for text in texts))


class _PromptCompletion(Row):
    joins = False  # each completion is a target of its own

    prompt: Prompt
    completion: Completion

    def record(self) -> Feedback:
        return _single(self.prompt, self.completion)


class _Messages(Row):
    joins = False

    messages: list[_Turn] = Field(min_length=2)

    def record(self) -> Feedback:
        return _single([], self.messages)


SHAPES: dict[str, tuple[type[Row], frozenset[str]]] = {
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
    """The record of one response. A completion that does not begin with the assistant's turn holds the prompt, too."""
    turns = [*prompt, *completion] if completion[0]["role"] == "assistant" else completion
    if turns[-1]["role"] != "assistant":
        raise ValueError("the conversation does not end in an assistant turn")
    return Feedback(turns[:-1], [turns[-1]["content"]], "local", [] if score is None else [score], target=0)


def _pair(winner: Feedback, loser: Feedback) -> Feedback:
    """The record of two responses to one prompt, the first preferred."""
    if winner.prompt != loser.prompt:
        raise ValueError("the two responses follow different prompts")
    scores = winner.scores + loser.scores
    if len(scores) == 1:
        raise ValueError("only one of the two responses has a reward")
    return replace(winner, responses=winner.responses + loser.responses, scores=scores, pairs=[(0, 1)])


def _shared_text(chosen: str, rejected: str) -> str:
    """The words that both texts begin with: the prompt of a preference without one."""
    if chosen.lstrip().startswith("Human:"):
        raise ValueError("this is the layout of Anthropic's HH, which the source hh reads")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    equal = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    shared = re.match(r".*\S(?=\s)", chosen[:equal], re.DOTALL)  # up to the last word that is whole
    if shared is None:
        raise ValueError("there is no prompt, and chosen and rejected do not begin with the same words")
    return shared[0]


def parse(content: Any) -> tuple[Row, Feedback] | str:
    """A row of a file and its record, or what is wrong with it.

    A record may have an empty response (EMPTY), which the caller drops; one written as a record may not.
    """
    if not isinstance(content, dict):
        return f"not an object with fields but {json.dumps(content)[:40]}"
    content = {name: value for name, value in content.items() if value is not None}
    shape = _shape(content)
    if shape is None:
        return f"{NO_SHAPE} (fields: {', '.join(content)})"
    try:
        row = shape.model_validate(content)
        record = row.record()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"field {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        return str(error)
    problem = record.problem()
    droppable = problem == EMPTY and not isinstance(row, _Record)
    return (row, record) if problem is None or droppable else problem


def _shape(content: dict[str, Any]) -> type[Row] | None:
    """The shape that a row's `type` names, else the first whose fields it has."""
    if isinstance(content.get("type"), str) and content["type"] in SHAPES:
        return SHAPES[content["type"]][0]
    return next((shape for shape, fields in SHAPES.values() if fields <= content.keys()), None)
