"""Shapes of rows of one's own: one model for each, and how it becomes records.

Turns are read before, by halos.data.layouts.turns.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from halos.data.feedback import Feedback, Turn, from_row
from halos.data.layouts.completions import LeftOut, holds, pair, same, shared_text, single, spoken, with_system
from halos.data.layouts.turns import WEIGHT_ZERO, Invalid
from halos.data.layouts.words import VERDICTS
from halos.data.rows import Drop

EMPTY = "empty response"


def _label(value: Any) -> Any:
    """A label as a number, or as a cell of CSV, as a bool."""
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}.get(
            value.strip().lower(), value
        )
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


def _verdict(value: Any) -> Any:
    """A label that is one of the words for it."""
    return VERDICTS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """A number that is a text, as a cell of CSV is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _weight(value: Any) -> Any:
    """A weight that is a text, or true or false, as a number."""
    return float(value) if isinstance(value, bool) else _number(value)


def _whole(value: Any) -> Any:
    """A whole number that pandas holds as a float, because other rows of its column have none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _list(value: Any) -> Any:
    """A list that is a text, as a cell of CSV is."""
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith("[") else value
    except (ValueError, RecursionError):
        return value


Label = Annotated[bool, BeforeValidator(_label)]
Verdict = Annotated[Label, BeforeValidator(_verdict)]
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[FiniteFloat, BeforeValidator(_number)]
RowWeight = Annotated[FiniteFloat, BeforeValidator(_weight), Field(ge=0)]
Listed = BeforeValidator(_list)
Turns = list[Turn]
Completion = Annotated[list[Turn], Field(min_length=1)]


class Row(BaseModel, ABC):
    """One row of a file. Fields of other names are notes of the user's, and not read.

    Attributes:
        split: the split that it belongs to; None where its prompt decides.
        system: the system message of its conversation.
        tools: the functions that the model may call.
        weight: the weight of its responses and of its pair; None for 1. A row of weight 0 is left out before.
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    joins: ClassVar[bool] = True
    """Whether neighboring rows on one prompt become one record."""
    repeats: ClassVar[bool] = False
    """Whether a row equal to its neighbor counts again, as in a group of samples, instead of being dropped."""
    turns: ClassVar[dict[str, str]] = {}
    """field that holds turns -> the role of a text in their place."""

    split: Literal["train", "validation", "test"] | None = None
    system: str | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    weight: RowWeight | None = None

    @abstractmethod
    def record(self) -> Feedback:
        """The record of this row alone, without its system message and tools.

        Raises:
            Invalid: the fields contradict each other.
            LeftOut: the response is of weight 0.
        """

    def records(self, every_turn: bool) -> Iterator[Feedback | Drop]:
        """The record, or a Drop where it is left out.

        Args:
            every_turn: a record for every assistant turn, where the row is a whole conversation.

        Raises:
            Invalid: the fields contradict each other.
        """
        try:
            record = self.record()
        except LeftOut:
            yield Drop(WEIGHT_ZERO)
        else:
            yield self.framed(record)

    def framed(self, record: Feedback) -> Feedback:
        """The record with the row's system message, tools and weight.

        Raises:
            Invalid: the record has weights of its own, or another system message.
        """
        if self.weight not in (None, 1):
            if record.weights or record.pair_weights:
                raise Invalid("both weight and the weights of a record")
            weights, pair_weights = [self.weight] * len(record.responses), [self.weight] * len(record.pairs)
            record = replace(record, weights=weights, pair_weights=pair_weights)
        has_system = bool(self.system and self.system.strip())
        if not has_system and not self.tools:
            return record
        prompt = with_system(self.system or "", record.prompt) if has_system else record.prompt
        return replace(record, prompt=prompt, tools=self.tools or record.tools)


class RecordRow(Row):
    """A row that `Feedback.row` gives, or a part of one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    joins = False
    turns = {"prompt": "user"}

    prompt: Turns
    responses: Annotated[list[str], Listed]
    prompt_id: str | None = None
    source: str | None = None
    scores: Annotated[list[FiniteFloat] | None, Listed] = None
    pairs: Annotated[list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None, Listed] = None
    desirable: Annotated[list[Label | None] | None, Listed] = None
    target: Whole | None = None
    cut: Annotated[list[bool] | None, Listed] = None
    response_fields: list[dict[str, Any]] | None = None
    response_ids: Annotated[list[list[int] | None] | None, Listed] = None
    template: str | None = None
    weights: Annotated[list[FiniteFloat] | None, Listed] = None
    pair_weights: Annotated[list[FiniteFloat] | None, Listed] = None
    margins: Annotated[list[FiniteFloat | None] | None, Listed] = None

    def record(self) -> Feedback:
        return from_row({name: value for name, value in self if name not in ("split", "system", "weight")})


class Sample(Row):
    repeats = True
    turns = {"prompt": "user", "instruction": "user", "output": "assistant", "response": "assistant"}

    prompt: Turns = Field(validation_alias=AliasChoices("prompt", "instruction"))
    output: Completion = Field(validation_alias=AliasChoices("output", "response"))
    reward: Number | None = None
    finish_reason: str | None = None
    response_ids: Annotated[list[int] | None, Listed] = None
    template: str | None = None

    def record(self) -> Feedback:
        record = single(self.prompt, self.output, self.reward)
        cut = [True] if self.finish_reason == "length" else []
        ids = self.response_ids if self.template is not None else None  # without their template they are only numbers
        return replace(record, cut=cut, response_ids=[ids] if ids else [], template=self.template if ids else None)


class Scalar(Sample):
    reward: Number


class Binary(Row):
    turns = {"prompt": "user", "output": "assistant", "completion": "assistant"}

    prompt: Turns = Field(default_factory=list)
    output: Completion = Field(validation_alias=AliasChoices("output", "completion"))
    label: Verdict
    reward: Number | None = None

    def record(self) -> Feedback:
        return replace(single(self.prompt, self.output, self.reward), desirable=[self.label])


class Pairwise(Row):
    turns = {"prompt": "user", "output_A": "assistant", "output_B": "assistant"}

    prompt: Turns
    output_A: Completion
    output_B: Completion
    label: Label
    reward_A: Number | None = None
    reward_B: Number | None = None
    margin: Number | None = None

    def record(self) -> Feedback:
        first = single(self.prompt, self.output_A, self.reward_A)
        second = single(self.prompt, self.output_B, self.reward_B)
        return pair(first, second, self.margin) if self.label else pair(second, first, self.margin)


class Preference(Row):
    turns = {"prompt": "user", "messages": "user", "chosen": "assistant", "rejected": "assistant"}

    prompt: Turns = Field(default_factory=list)
    messages: Turns = Field(default_factory=list)
    chosen: Completion
    rejected: Completion
    score_chosen: Number | None = None
    score_rejected: Number | None = None
    margin: Number | None = None

    @property
    def has_prompt(self) -> bool:
        """Whether a prompt is given, and not only what both texts begin with."""
        return bool(self.prompt or self.messages) or self.chosen[0]["role"] != "assistant"

    def record(self) -> Feedback:
        chosen, rejected, prompt = self.chosen, self.rejected, self.prompt
        if not self.has_prompt:
            texts = [completion[0]["content"] for completion in (chosen, rejected)]
            shared = shared_text(*texts)
            prompt = [{"role": "user", "content": shared}]
            chosen, rejected = (spoken(text[len(shared) :]) for text in texts)
        if self.messages and self.messages[-1]["role"] != "assistant" and not prompt:
            prompt = self.messages
        pair_of = single(prompt, chosen, self.score_chosen), single(prompt, rejected, self.score_rejected)
        if self.messages and prompt is not self.messages and not same(single([], self.messages), pair_of[0]):
            raise Invalid("messages and chosen are different conversations")
        return pair(*pair_of, self.margin)


class Preferences(Row):
    """Several chosen and several rejected responses to a prompt, as RewardBench 2 has them: each of the chosen is
    preferred to each of the rejected."""

    turns = {"prompt": "user"}

    prompt: Turns = Field(min_length=1)
    chosen: list[str] = Field(min_length=1)
    rejected: list[str] = Field(min_length=1)

    def record(self) -> Feedback:
        if not set(self.chosen).isdisjoint(self.rejected):
            raise Invalid("a response is both chosen and rejected")
        chosen, responses = len(self.chosen), [*self.chosen, *self.rejected]
        pairs = list(product(range(chosen), range(chosen, len(responses))))
        return Feedback(self.prompt, responses, "local", pairs=pairs, target=0)


class PromptCompletion(Row):
    joins = False  # each completion is a target of its own
    turns = {"prompt": "user", "completion": "assistant"}

    prompt: Turns
    completion: Completion

    def record(self) -> Feedback:
        return single(self.prompt, self.completion)


class Alpaca(Row):
    joins = False

    instruction: str
    input: str = Field("", validation_alias=AliasChoices("input", "context"))
    output: str = Field(validation_alias=AliasChoices("output", "response"))

    def record(self) -> Feedback:
        text = f"{self.instruction}\n\n{self.input}" if self.input.strip() else self.instruction
        return single([{"role": "user", "content": text}], spoken(self.output))


class Messages(Row):
    joins = False
    turns = {"messages": "user", "prompt": "user"}

    messages: Turns = Field(min_length=2)
    prompt: Turns = Field(default_factory=list)

    def record(self) -> Feedback:
        self._check_prompt()
        return single([], self.messages)

    def records(self, every_turn: bool) -> Iterator[Feedback | Drop]:
        if not every_turn:
            yield from super().records(every_turn)
            return
        self._check_prompt()
        if self.messages[-1]["role"] != "assistant":
            raise Invalid("the conversation does not end in an assistant turn")
        for i, turn in enumerate(self.messages):
            if turn["role"] == "assistant":
                try:
                    record = self.framed(single([], self.messages[: i + 1]))
                except LeftOut:
                    yield Drop("a turn of weight 0")
                    continue
                problem = record.problem()
                yield record if problem is None else Drop(f"a turn of a conversation: {problem}")

    def _check_prompt(self) -> None:
        """Refuse a prompt that the conversation does not hold."""
        if self.prompt and not holds(self.messages, self.prompt):
            raise Invalid("prompt and messages are different conversations")
