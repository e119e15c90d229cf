"""Scores given by a model behind an OpenAI-compatible server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from halos.data.feedback import Turn
from halos.scoring.scores import Means, Score

SCORE = re.compile(r"\bscore\W*?[:=]\W*?(-?\d+(?:\.\d+)?)(?![\d.]*\d)", re.IGNORECASE)


def by_asking(cache: Path, concurrency: int, requests_per_minute: int | None) -> Means:
    """The score that a model behind OpenAI's API answers when it is asked.

    Args:
        cache: file of the answers so far, which are not asked for again.
        concurrency: calls at one time.
        requests_per_minute: or None for as fast as they are answered.
    """

    def score(config: dict[str, Any], prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
        from halos.scoring.client import Api, Client

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
