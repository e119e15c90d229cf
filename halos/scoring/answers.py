"""Answers of a server, kept on disk by what was asked."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halos.errors import HalosError

log = logging.getLogger(__name__)


Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came of one conversation.

    Attributes:
        text: None when the call failed for good.
        problem: why it failed, in words that are the same for all such failures.
        prompt_tokens: by the server's count, over all attempts of the call.
        completion_tokens: the same.
        cached: an earlier call's answer; its tokens were spent then.
        logprobs: where they were asked for, {token, logprob, top_logprobs} of each token, in OpenAI's form.
    """

    text: str | None
    problem: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    logprobs: list[dict[str, Any]] | None = None


class AnswerCache:
    """Answers by request, in a JSON Lines file that is only added to: of two lines for a request the later counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                file.seek(0)
                content = file.read()
                whole = content.rfind(b"\n") + 1
                if whole < len(content):  # the run that wrote it was killed in the middle of its last line
                    file.truncate(whole)
        except OSError as error:
            raise HalosError(f"cannot write the cache {path}: {error.strerror}; name a file that can be") from None
        self.answers: dict[str, Answer] = {}
        broken = 0
        for line in content[:whole].splitlines():
            try:
                row = json.loads(line)
                tokens = row["prompt_tokens"], row["completion_tokens"]
                answer = Answer(str(row["text"]), None, *tokens, cached=True, logprobs=row.get("logprobs"))
                self.answers[row["key"]] = answer
            except (ValueError, TypeError, KeyError):
                broken += 1
        if broken:
            log.warning("%s: %d lines are no answers and are asked for again", path, broken)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; one write each, so that a kill tears the last line at most."""
        row: dict[str, Any] = {"key": key, "text": answer.text, "prompt_tokens": answer.prompt_tokens,
               "completion_tokens": answer.completion_tokens}  # fmt: skip
        if answer.logprobs is not None:
            row["logprobs"] = answer.logprobs
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(row).encode() + b"\n")
        self.answers[key] = replace(answer, cached=True)
