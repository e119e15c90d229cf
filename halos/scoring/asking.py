"""A model behind an OpenAI-compatible server that is asked for a score."""

from __future__ import annotations

import re

from halos.data.feedback import Turn
from halos.scoring.answers import Answer, Conversation
from halos.scoring.api import Api, Calls
from halos.scoring.client import Client
from halos.scoring.scores import Score
from halos.scoring.settings import OpenAI

SCORE = re.compile(r"\bscore\W*?[:=]\W*?(-?\d+(?:\.\d+)?)(?![\d.]*\d)", re.IGNORECASE)


class Rater:
    """A model that is asked to rate each response on a scale.

    Raises:
        HalosError: there is no usable key, or the cache cannot be written.
    """

    def __init__(self, settings: OpenAI, calls: Calls) -> None:
        self.low, self.high = settings.scale
        text = settings.instructions.replace("{low}", f"{self.low:g}").replace("{high}", f"{self.high:g}")
        self.instructions = text
        self.client = Client(Api(settings.model, settings, settings.temperature, settings.max_tokens), calls)

    def score(self, prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
        """The score in the answer to each question, in their order, as the criterion `score`.

        Raises:
            HalosError: no call can succeed. The answers so far are kept.
        """
        questions = [self._question(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        return [self._read(answer) for answer in self.client.ask(questions, lambda a: self._read(a).value is not None)]

    def _question(self, prompt: list[Turn], response: str) -> Conversation:
        turns = [f"[{turn['role']}]\n{turn['content']}" for turn in prompt]
        text = "\n\n".join(["# Conversation", *turns, "# Response to rate", response])
        return [{"role": "system", "content": self.instructions}, {"role": "user", "content": text}]

    def _read(self, answer: Answer) -> Score:
        value = None if answer.text is None else read_score(answer.text, self.low, self.high)
        return Score(problem=answer.problem) if value is None else Score({"score": value})


def read_score(answer: str, low: float, high: float) -> float | None:
    """The score in an answer: its last `Score: N`, or the whole answer if it is a number.

    None without one, or with one off the scale. No other number counts: "there are 3 mistakes" is no score of 3.
    """
    text = answer.strip().strip("*`. ")
    numbers = [text] if re.fullmatch(r"-?\d+(\.\d+)?", text) else SCORE.findall(text)
    value = float(numbers[-1]) if numbers else None
    return value if value is not None and low <= value <= high else None
