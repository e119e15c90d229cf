"""`judges:` of config.yaml: who decides which response is better, against which baseline, and the worth of a tie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from halos.errors import HalosError
from halos.evaluate.judging.annotators import read_annotator
from halos.evaluate.judging.judgement import Ties
from halos.scoring.settings import Pattern, Scorer, Server
from halos.settings import INCIDENTAL, Fraction, Positive, Slice, Strict, numbers


class Prices(Strict):
    """Dollars for a million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


PLACES = ("{instruction}", "{output_1}", "{output_2}")
"""Placeholders in a judge's prompt: the conversation, and the two responses in the order in which they are shown."""


def _temperature(value: Any) -> Any:
    """Refuses a mistake in one sentence, where pydantic would give one for each member of the union."""
    value = numbers(value)
    if value not in ("default", None) and (isinstance(value, bool | str) or not value >= 0):
        raise ValueError(f"{value!r} is none of default, null and a number from 0 on")
    return value


class Annotator(Server):
    """A model behind a server that is asked which of two responses is better: either by a prompt in the config, which
    asks for a last line `Verdict: A`, `Verdict: B` or `Verdict: tie`, or by one of alpaca_eval's annotators."""

    model: str | None = Field(None, description="its name on the server; with an annotator, by default its own")
    prompt: str | None = Field(
        None, description="the question, with {instruction}, {output_1} and {output_2}: one turn, or several in ChatML"
    )
    annotator: str | None = Field(
        None,
        description="an annotator of alpaca_eval, for its prompt, model and reading of answers: "
        "weighted_alpaca_eval_gpt4_turbo",
    )
    pattern: Pattern = Field(
        None,
        description="with a prompt: a regular expression whose one group holds A, B or tie, in its last match; by "
        "default `Verdict: A` and its like are understood. Thoughts, as in <think>, are left out first",
    )
    temperature: Annotated[Literal["default"] | Annotated[float, Field(ge=0)] | None, BeforeValidator(_temperature)] = (
        Field("default", description="of sampling; by default the annotator's own, or 0; null sends none")
    )
    max_tokens: Positive | None = Field(
        None,
        description="longest answer, in tokens, thoughts included; by default the annotator's own, or 512",
    )
    prices: Prices | None = Field(None, description="to print what judging costs, before and after")

    @model_validator(mode="after")
    def one_question(self) -> Annotator:
        if (self.prompt is None) == (self.annotator is None):
            raise ValueError("give exactly one of prompt and annotator")
        if self.prompt is not None and self.model is None:
            raise ValueError("a prompt is asked of a model: give `model:`")
        if self.annotator is not None and self.pattern is not None:
            raise ValueError("an annotator reads answers itself: take out pattern, or give a prompt")
        if self.annotator is not None:
            try:
                read_annotator(self.annotator)
            except HalosError as error:
                raise ValueError(str(error)) from None
        if missing := [place for place in PLACES if place not in (self.prompt or "".join(PLACES))]:
            raise ValueError(f"the prompt has no {' and no '.join(missing)}: add where each goes")
        return self


class FromFile(Strict):
    """A file of outputs in AlpacaEval's form: a JSON list, or JSON lines, of {instruction, output}."""

    file: str


class FromCell(Strict):
    """The samples of another cell of the same dataset and model, to the same prompts."""

    method: str = Field(description="of the other cell")
    seed: Literal["same"] | Annotated[int, Field(ge=0)] = Field("same", description="of the other cell")


def _baseline(value: Any) -> Any:
    """Refuses a mistake in one sentence, where pydantic would give one for each member of the union."""
    known = value == "target" or isinstance(value, FromFile | FromCell)
    if not known and not (isinstance(value, dict) and set(value) in ({"file"}, {"method"}, {"method", "seed"})):
        raise ValueError(f"{value!r} is none of target, {{file: PATH}} and {{method: METHOD, seed: same}}")
    return value


class Judge(Scorer):
    """A judge, which decides whether a cell's response or the baseline's is better."""

    noun: ClassVar[str] = "judge"

    openai: Annotator | None = Field(None, description="for kind openai: the model that is asked, and how")
    prompts: str = Field(description="id of the prompt set whose samples are judged")
    baseline: Annotated[Literal["target"] | FromFile | FromCell, BeforeValidator(_baseline)] = Field(
        "target", description="the dataset's target for the same prompt, a file of outputs, or another cell's samples"
    )
    ties: Ties = Field("half", description="a tie is half a win; or a win for neither, and so worth nothing")
    tie_margin: float = Field(0.0, ge=0, description="verifier and reward_model: scores this close together are a tie")
    whole_sentences: bool = Field(False, description="both responses are cut after their last full sentence")
    length_control: Literal["length_only", "alpaca_eval"] = Field(
        "length_only",
        description="a logistic model of the difference in length; or alpaca_eval's own, which knows how difficult "
        "each of its 805 instructions is: it needs AlpacaEval's reference outputs as baseline",
    )
    difficulties: str | None = Field(
        None,
        description="length_control alpaca_eval: AlpacaEval's df_gamed.csv; by default the one in the hub's cache",
    )
    max_failures: Fraction = Field(
        0.05, description="openai: largest fraction of the comparisons that may get no answer"
    )
    concurrency: Annotated[Positive, INCIDENTAL] = Field(16, description="openai: calls at one time; reruns nothing")
    requests_per_minute: Annotated[Positive | None, INCIDENTAL] = Field(
        None, description="openai: limit on requests, retries included; reruns nothing"
    )

    @property
    def files(self) -> list[str | Path | None]:
        baseline = self.baseline.file if isinstance(self.baseline, FromFile) else None
        return [*super().files, baseline, self.difficulties]

    def _of_other_kinds(self) -> set[str]:
        asking = {"max_failures", "concurrency", "requests_per_minute"}
        return super()._of_other_kinds() | ({"tie_margin"} if self.kind == "openai" else asking)

    @model_validator(mode="after")
    def no_contradiction(self) -> Judge:
        if self.length_control == "alpaca_eval" and not isinstance(self.baseline, FromFile):
            raise ValueError("length_control: alpaca_eval needs AlpacaEval's reference outputs: name them as baseline")
        if self.difficulties is not None and self.length_control != "alpaca_eval":
            raise ValueError("difficulties are read with length_control: alpaca_eval: take them out, or say so")
        return self


class JudgeSlice(Judge, Slice):
    """config.yaml of a judge's folder.

    Attributes:
        judge: the judge's id.
    """

    judge: str


class ToJudge(Strict):
    """A judgement of a batch: the files that it is made from.

    Attributes:
        judged: where it goes in the end.
        config: the judge's config.yaml.
        samples: of the cell.
        feedback: records that the prompts come from.
        reward_model: folder of the reward model that judges and, where it has one, its manifest; empty for others.
        baseline: file of the baseline's outputs or samples; empty where the dataset's targets are the baseline.
        difficulties: AlpacaEval's df_gamed.csv; empty for none.
    """

    judged: str
    config: str
    samples: str
    feedback: str
    reward_model: tuple[str, ...] = ()
    baseline: tuple[str, ...] = ()
    difficulties: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:
        """All files and folders that it is made from."""
        return [self.config, self.samples, self.feedback, *self.reward_model, *self.baseline, *self.difficulties]


class JudgingSlice(Slice):
    """config.yaml of a batch of judgements, which one process makes."""

    judgements: list[ToJudge]
