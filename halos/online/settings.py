"""`labellers:` of config.yaml and a stage's `online:`: how samples become feedback, and how many rounds there are."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from halos.sample.settings import StopStrings
from halos.scoring.settings import OpenAI, Scorer
from halos.settings import INCIDENTAL, Positive, Slice, Strict, numbers


def _threshold(value: Any) -> Any:
    """Refuses a mistake in one sentence, where pydantic would give one for each member of the union."""
    value = numbers(value)
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("mean", "median")):
        raise ValueError(f"{value!r} is none of mean, median and a number")
    return value


class Online(Strict):
    """Rounds of a stage: responses to fresh prompts are sampled from the policy, labelled, and trained on."""

    rounds: Positive = Field(description="number of rounds: sample, label, train")
    prompts_per_round: Positive = Field(description="prompts of the train split that no earlier round used")
    samples_per_prompt: Positive = Field(2, description="responses to each prompt")
    label: str = Field(description="id of the labeller")
    reference: Literal["previous", "fixed"] = Field(
        "previous",
        description="each round's reference: the policy it starts from, or the one the first round starts from",
    )
    continue_optimizer: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="the optimiser's state goes on from round to round, and the schedule runs over all rounds, each "
        "taken to be as long as the current one; by default each round has its own",
    )
    evaluate: Literal["fresh", "dataset"] = Field(
        "fresh",
        exclude_if=lambda value: value == "fresh",
        description="what a round's training is evaluated on: its own labelled responses to eval_prompts, or the "
        "responses and labels of the dataset's validation split, the same in each round",
    )
    eval_prompts: Positive = Field(
        64, description="prompts of the validation split, the same in each round, to evaluate on"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="of sampling: probability mass of the tokens drawn from")
    max_new_tokens: Positive = Field(512, description="longest response")
    stop: StopStrings = ()

    def prompts(self, split: str, round_: int, seed: int) -> dict[str, Any]:
        """The prompt set of a round's train or validation split."""
        n = self.prompts_per_round
        which = {"skip": (round_ - 1) * n, "limit": n} if split == "train" else {"skip": 0, "limit": self.eval_prompts}
        how = self.model_dump(mode="json", include={"temperature", "top_p", "max_new_tokens", "stop"})
        shuffle = seed if split == "train" else None
        return {"split": split, **which, "shuffle": shuffle, "samples": self.samples_per_prompt, **how}


_FEEDBACK_OF = {"threshold": "binary", "at_threshold": "binary", "pairs": "pairwise", "min_margin": "pairwise"}
"""The feedback that each of these settings is read for."""


class Labeller(Scorer):
    """A labeller, which scores samples and turns the scores into feedback."""

    noun: ClassVar[str] = "labeller"

    kind: Literal["verifier", "reward_model", "openai"]
    openai: OpenAI | None = Field(None, description="for kind openai: the model that is asked for a score, and how")
    feedback: Literal["binary", "pairwise", "scalar"] = Field(
        description="desirable or undesirable; pairs, whose sides are desirable and undesirable; or scores alone"
    )
    threshold: Annotated[Literal["mean", "median"] | float, BeforeValidator(_threshold)] = Field(
        "mean", description="binary: responses with a higher score are desirable, those with a lower one are not"
    )
    at_threshold: Literal["desirable", "undesirable"] = Field(
        "desirable", description="binary: responses with exactly the threshold's score; HALOs takes them as desirable"
    )
    pairs: Literal["max", "min", "random"] = Field(
        "max", description="pairwise: best and worst of a prompt, the two closest, or as many random pairs as there are"
    )
    min_margin: float = Field(0.0, ge=0, description="pairwise: scores of a pair differ by more than this")
    target_above: float | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="the best response to a prompt is a target, which SFT imitates, where its score is above this; by "
        "default always",
    )
    whole_sentences: bool = Field(
        False,
        exclude_if=lambda whole: not whole,
        description="what scores sees each response up to its last full sentence, as HALOs' reward models do; feedback "
        "keeps the whole response",
    )
    concurrency: Annotated[Positive, INCIDENTAL] = Field(16, description="openai: calls at one time; reruns nothing")
    requests_per_minute: Annotated[Positive | None, INCIDENTAL] = Field(
        None, description="openai: limit on requests, retries included; reruns nothing"
    )

    @property
    def foreign(self) -> set[str]:
        return super().foreign | {key for key, feedback in _FEEDBACK_OF.items() if feedback != self.feedback}

    @model_validator(mode="after")
    def no_contradiction(self) -> Labeller:
        for key, feedback in _FEEDBACK_OF.items():
            if key in self.model_fields_set and self.feedback != feedback:
                raise ValueError(f"{self.feedback} feedback has no {key}: take that out, or ask for {feedback}")
        return self


class LabellerSlice(Labeller, Slice):
    """config.yaml of a labeller's folder.

    Attributes:
        labeller: the labeller's id.
    """

    labeller: str
