"""A model behind an OpenAI-compatible server that is asked for a score."""

from __future__ import annotations

import re

from halos.data.feedback import Turn
from halos.scoring.answers import Answer, Conversation
from halos.scoring.api import Api, Calls
from halos.scoring.client import Client
from halos.scoring.conversations import turn_text
from halos.scoring.reading import read_score
from halos.scoring.scores import Score
from halos.scoring.settings import OpenAI


class Rater:
    """A model that is asked to rate each response on a scale.

    Args:
        name: of the judge or labeller, for messages: `labeller x`.
        settings: its `openai:`.
        calls: how the model is called.

    Raises:
        HalosError: there is no usable key, or the cache cannot be written.
    """

    def __init__(self, name: str, settings: OpenAI, calls: Calls) -> None:
        self.low, self.high = settings.scale
        text = settings.instructions.replace("{low}", f"{self.low:g}").replace("{high}", f"{self.high:g}")
        self.instructions = text
        self.pattern = None if settings.pattern is None else re.compile(settings.pattern)
        api = Api(settings.model, settings, settings.temperature, settings.max_tokens)
        self.client = Client(api, calls, f"the `openai:` settings of {name}")

    def score(self, prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
        """The score in the answer to each question, in their order, as the criterion `score`.

        Raises:
            HalosError: no call can succeed. The answers so far are kept.
        """
        questions = [self._question(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        return [self._read(answer) for answer in self.client.ask(questions, lambda a: self._read(a).value is not None)]

    def _question(self, prompt: list[Turn], response: str) -> Conversation:
        text = "\n\n".join(["# Conversation", *map(turn_text, prompt), "# Response to rate", response])
        return [{"role": "system", "content": self.instructions}, {"role": "user", "content": text}]

    def _read(self, answer: Answer) -> Score:
        value = None if answer.text is None else read_score(answer.text, self.low, self.high, self.pattern)
        return Score(problem=answer.problem) if value is None else Score({"score": value})
