"""`judges:` of config.yaml: what decides wins, against which baseline, and what a tie is worth."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from halos.errors import HalosError
from halos.scoring.settings import Scorer, Server
from halos.settings import INCIDENTAL, Fraction, Positive, Strict


class Prices(Strict):
    """Dollars for a million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


PLACES = ("{instruction}", "{output_1}", "{output_2}")
"""What a judge's prompt stands around: the conversation, and the two responses in the order in which they are shown."""


class Comparer(Server):
    """A model behind OpenAI's API that is asked which of two responses is better: by a prompt of one's own, which asks
    for a last line `Verdict: A`, `Verdict: B` or `Verdict: tie`, or by one of alpaca_eval's annotators."""

    model: str | None = Field(None, description="with an annotator, by default its own")
    prompt: str | None = Field(
        None, description="what is asked, around {instruction}, {output_1} and {output_2}: a turn, or several in ChatML"
    )
    annotator: str | None = Field(
        None, description="prompt, model and reading of the answer: weighted_alpaca_eval_gpt4_turbo"
    )
    temperature: float | None = Field(None, ge=0, description="by default the annotator's own, or 0")
    max_tokens: Positive | None = Field(None, description="of an answer; by default the annotator's own, or 512")
    prices: Prices | None = Field(None, description="to say what judging costs, before and after")

    @model_validator(mode="after")
    def one_question(self) -> Comparer:
        if (self.prompt is None) == (self.annotator is None):
            raise ValueError("give exactly one of prompt and annotator")
        if self.prompt is not None and self.model is None:
            raise ValueError("a prompt of one's own is for a model: give `model:`")
        if self.annotator is not None:
            from halos.evaluate.judging.annotators import read_annotator

            try:
                read_annotator(self.annotator)
            except HalosError as error:
                raise ValueError(str(error)) from None
        if missing := [place for place in PLACES if place not in (self.prompt or "".join(PLACES))]:
            raise ValueError(f"the prompt has no {' and no '.join(missing)}: put what is compared there")
        return self


class FromFile(Strict):
    """A file of outputs as AlpacaEval's: a JSON list, or JSON lines, of {instruction, output}."""

    file: str


class FromCell(Strict):
    """The samples of another cell of the same dataset and model, to the same prompts."""

    method: str
    seed: Literal["same"] | Annotated[int, Field(ge=0)] = "same"


def _baseline(value: Any) -> Any:
    """One sentence for a mistake, as above."""
    known = value == "target" or isinstance(value, FromFile | FromCell)
    if not known and not (isinstance(value, dict) and set(value) in ({"file"}, {"method"}, {"method", "seed"})):
        raise ValueError(f"{value!r} is none of target, {{file: PATH}} and {{method: METHOD, seed: same}}")
    return value


class Judge(Scorer):
    """What decides wins between a cell's responses and a baseline's."""

    kind: Literal["verifier", "reward_model", "openai"]  # type: ignore[assignment]
    openai: Comparer | None = None
    prompts: str = Field(description="id of the prompt set whose samples are judged")
    baseline: Annotated[Literal["target"] | FromFile | FromCell, BeforeValidator(_baseline)] = Field(
        "target", description="the dataset's target for the same prompt, a file of outputs, or another cell's samples"
    )
    ties: Literal["half", "neither"] = Field(
        "half", description="a tie is half a win; or a win of neither, so that the win rate is wins of all comparisons"
    )
    tie_margin: float = Field(0.0, ge=0, description="verifier and reward_model: scores this close together are a tie")
    whole_sentences: bool = Field(False, description="both responses are cut after their last full sentence")
    length_control: Literal["length_only", "alpaca_eval"] = Field(
        "length_only",
        description="a logistic model of the difference in length; or alpaca_eval's own, which knows how difficult "
        "each of its 805 instructions is: it needs AlpacaEval's reference outputs as baseline",
    )
    difficulties: str | None = Field(
        None, description="length_control alpaca_eval: AlpacaEval's df_gamed.csv; by default that of the hub's cache"
    )
    max_failures: Fraction = Field(0.05, description="openai: share of comparisons that may stay without an answer")
    concurrency: Annotated[Positive, INCIDENTAL] = Field(16, description="openai: calls at one time; reruns nothing")
    requests_per_minute: Annotated[Positive | None, INCIDENTAL] = Field(None, description="openai: reruns nothing")

    @property
    def foreign(self) -> set[str]:
        asks = {"max_failures", "concurrency", "requests_per_minute"}
        return super().foreign | ({"tie_margin"} if self.kind == "openai" else asks)

    @model_validator(mode="after")
    def no_contradiction(self) -> Judge:
        if self.length_control == "alpaca_eval" and not isinstance(self.baseline, FromFile):
            raise ValueError("length_control: alpaca_eval needs AlpacaEval's reference outputs: name them as baseline")
        if self.difficulties is not None and self.length_control != "alpaca_eval":
            raise ValueError("difficulties are read with length_control: alpaca_eval: take them out, or say so")
        return self
