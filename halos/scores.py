"""How responses are scored: by a verifier, a reward model, or a model that is asked. Judges and labellers share it."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import halos.data  # noqa: F401  (registers the verifiers of the package)
from halos.data.feedback import Turn, prompt_id
from halos.errors import HalosError
from halos.registry import VERIFIERS

if TYPE_CHECKING:
    from halos.rewards import RewardModel

log = logging.getLogger(__name__)

SCORE = re.compile(r"\bscore\W*?[:=]\W*?(-?\d+(?:\.\d+)?)(?![\d.]*\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Score:
    """What a response is worth.

    Attributes:
        criteria: score for each criterion, higher is better, a verifier's between 0 and 1; empty when scoring failed.
        problem: why it failed, in words that are the same for every such failure.
    """

    criteria: Mapping[str, float] = field(default_factory=dict)
    problem: str | None = None

    @property
    def value(self) -> float | None:
        """The mean over the criteria; None when scoring failed."""
        return fmean(self.criteria.values()) if self.criteria else None


Means = Callable[[dict[str, Any], list[list[Turn]], list[str]], list[Score]]
"""(config slice of a judge or labeller, prompts, responses) -> their scores, in order."""


def by_verifier(config: dict[str, Any], prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
    """A verifier that raises, or gives no finite score, has failed on that response."""
    verifier = VERIFIERS[config["verifier"]]
    known = {prompt_id(prompt): prompt for prompt in prompts}

    @cache  # one response may be met many times
    def score(prompt: str, response: str) -> Score:
        try:
            criteria = {name: float(value) for name, value in verifier(known[prompt], response).items()}
        except Exception as error:
            log.warning("verifier %s failed: %s: %s", config["verifier"], type(error).__name__, error)
            return Score(problem=f"the verifier failed ({type(error).__name__})")
        if not criteria or not all(map(math.isfinite, criteria.values())):
            return Score(problem="the verifier gave no finite score")
        return Score(criteria)

    return [score(prompt_id(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]


def by_reward_model(model: RewardModel) -> Means:
    """The model's score, under the name `reward`."""

    def score(_: dict[str, Any], prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
        values = model.score(prompts, responses)
        none = Score(problem="no score of the reward model: empty, too long for it, or not finite")
        return [none if value is None else Score({"reward": value}) for value in values]

    return score


def by_asking(cache: Path, concurrency: int, requests_per_minute: int | None) -> Means:
    """The score that a model behind OpenAI's API answers when it is asked.

    Args:
        cache: file of the answers so far, which are not asked for again.
        concurrency: calls at one time.
        requests_per_minute: or None for as fast as they are answered.
    """

    def score(config: dict[str, Any], prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
        from halos.api import Api, Client

        settings = dict(config["openai"])
        instructions, (low, high) = settings.pop("instructions"), settings.pop("scale")
        instructions = instructions.replace("{low}", f"{low:g}").replace("{high}", f"{high:g}")
        client = Client(Api(**settings, concurrency=concurrency, requests_per_minute=requests_per_minute), cache)
        asked = [_question(instructions, *both) for both in zip(prompts, responses, strict=True)]
        answers = client.ask(asked, accept=lambda answer: read_score(answer.text or "", low, high) is not None)
        found = []
        for answer in answers:
            value = None if answer.text is None else read_score(answer.text, low, high)
            found.append(Score(problem=answer.problem) if value is None else Score({"score": value}))
        return found

    return score


def _question(instructions: str, prompt: list[Turn], response: str) -> list[dict[str, str]]:
    turns = [f"[{turn['role']}]\n{turn['content']}" for turn in prompt]
    text = "\n\n".join(["# Conversation", *turns, "# Response to rate", response])
    return [{"role": "system", "content": instructions}, {"role": "user", "content": text}]


def read_score(answer: str, low: float, high: float) -> float | None:
    """The score in an answer: its last `Score: N`, or all of it where it is a number. None where there is none, or one
    that is not on the scale. No other number counts: "there are 3 mistakes" is no score of 3."""
    text = answer.strip().strip("*`. ")
    found = [text] if re.fullmatch(r"-?\d+(\.\d+)?", text) else SCORE.findall(text)
    value = float(found[-1]) if found else None
    return value if value is not None and low <= value <= high else None


def open_reward_model(what: str, kind: str, files: list[Path], tokens_per_microbatch: int) -> RewardModel | None:
    """The reward model that scores, computing as in its own run: the manifest tells how.

    Args:
        what: who asks, for messages: `judge x` or `labeller x`.
        kind: its kind; only a `reward_model` has one.
        files: the model's folder and, where it has one, its manifest; or nothing.

    Raises:
        HalosError: files for a kind that takes none, or none for one that needs them.
    """
    if bool(files) != (kind == "reward_model"):
        says = "takes none" if files else "needs its model's folder"
        raise HalosError(f"{what} is of kind {kind}: --reward-model {says}")
    if not files:
        return None
    from halos.rewards import RewardModel

    folder, *manifest = files
    run = json.loads(manifest[0].read_text())["config"] if manifest else {}
    how = {key: run[key] for key in ("precision", "attention") if key in run}
    return RewardModel(folder, tokens_per_microbatch=tokens_per_microbatch, **how)
