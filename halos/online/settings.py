"""`labellers:` of config.yaml, and a stage's `online:`: how samples become feedback, and how many rounds there are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from halos.scoring.settings import OpenAI, Scorer
from halos.settings import INCIDENTAL, Positive, Strict, numbers


def _threshold(value: Any) -> Any:
    """The same for a labeller's threshold."""
    value = numbers(value)
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("mean", "median")):
        raise ValueError(f"{value!r} is none of mean, median and a number")
    return value


class Online(Strict):
    """Rounds of a stage: responses to fresh prompts are sampled from the policy, labelled, and trained on."""

    rounds: Positive
    prompts_per_round: Positive = Field(description="prompts of train that no earlier round had")
    samples_per_prompt: Positive = Field(2, description="responses to each prompt")
    label: str = Field(description="id of the labeller")
    reference: Literal["previous", "fixed"] = Field(
        "previous", description="the policy that a round starts from, or the one that the first round starts from"
    )
    eval_prompts: Positive = Field(64, description="prompts of test, the same in each round, to evaluate training on")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: Positive = 512

    def prompts(self, split: str, round_: int, seed: int) -> dict[str, Any]:
        """The prompt set of a round's train or test split."""
        n = self.prompts_per_round
        which = {"skip": (round_ - 1) * n, "limit": n} if split == "train" else {"skip": 0, "limit": self.eval_prompts}
        how = {key: getattr(self, key) for key in ("temperature", "top_p", "max_new_tokens")}
        shuffle = seed if split == "train" else None
        return {"split": split, **which, "shuffle": shuffle, "samples": self.samples_per_prompt, **how}


class Labeller(Scorer):
    """What turns samples into feedback: how they are scored, and what is made of the scores."""

    kind: Literal["verifier", "reward_model", "openai"]  # type: ignore[assignment]
    openai: OpenAI | None = None
    feedback: Literal["binary", "pairwise", "scalar"] = Field(
        description="desirable or not; pairs (and their sides as desirable or not); or the scores alone"
    )
    threshold: Annotated[Literal["mean", "median"] | float, BeforeValidator(_threshold)] = Field(
        "mean", description="binary: responses that score more are desirable"
    )
    pairs: Literal["max", "min", "random"] = Field(
        "max", description="pairwise: best and worst of a prompt, the two closest, or as many random pairs as there are"
    )
    min_margin: float = Field(0.0, ge=0, description="pairwise: scores of a pair differ by more than this")
    concurrency: Annotated[Positive, INCIDENTAL] = Field(16, description="openai: calls at one time; reruns nothing")
    requests_per_minute: Annotated[Positive | None, INCIDENTAL] = Field(None, description="openai: reruns nothing")

    @model_validator(mode="after")
    def no_contradiction(self) -> Labeller:
        read = {"threshold": "binary", "pairs": "pairwise", "min_margin": "pairwise"}
        for key, feedback in read.items():
            if key in self.model_fields_set and self.feedback != feedback:
                raise ValueError(f"{self.feedback} feedback has no {key}: take that out, or ask for {feedback}")
        return self
