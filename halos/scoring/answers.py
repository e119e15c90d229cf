"""Answers of a model behind a server, kept on disk by their request."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.files import writing

log = logging.getLogger(__name__)

CUT_OFF = "cut off (raise max_tokens)"
"""The problem of an answer that is longer than it may be."""
NOT_UNDERSTOOD = "not understood"
"""The problem of an answer that was not accepted."""
Conversation = list[dict[str, str]]
"""Turns, each {role, content}."""


@dataclass(frozen=True)
class Answer:
    """The answer to one conversation, or the reason why there is none.

    Attributes:
        text: None when the call failed for good.
        problem: why it failed, in the same words for all such failures.
        prompt_tokens: by the server's count, over all times that the conversation was asked.
        completion_tokens: by the server's count, over all times that the conversation was asked.
        cached: whether it is an earlier run's answer, whose tokens were spent then.
        logprobs: if they were asked for: {token, logprob, top_logprobs} of each token, in OpenAI's form.
        model: the name that the server gave of the model that answered; None where it gave none, and in older files.
    """

    text: str | None
    problem: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    logprobs: list[dict[str, Any]] | None = None
    model: str | None = None


class AnswerCache:
    """Answers by the key of their request, in an append-only JSON Lines file: the last line for a key counts.

    Raises:
        HalosError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                file.seek(0)
                content = file.read()
                complete = content.rfind(b"\n") + 1
                if complete < len(content):  # the run that wrote it was killed in the middle of its last line
                    file.truncate(complete)
        except OSError as error:
            raise HalosError(f"cannot write the cache {path}: {error.strerror}; name a file that can be") from None
        self.answers: dict[str, Answer] = {}
        broken = 0
        for line in content[:complete].splitlines():
            try:
                row = json.loads(line)
                tokens = row["prompt_tokens"], row["completion_tokens"]
                said = {"logprobs": row.get("logprobs"), "model": row.get("model")}
                answer = Answer(str(row["text"]), None, *tokens, cached=True, **said)
                self.answers[row["key"]] = answer
            except (ValueError, TypeError, KeyError):
                broken += 1
        if broken:
            log.warning("%s: %d lines are no answers and are asked for again", path, broken)

    def add(self, key: str, answer: Answer) -> None:
        """Append an answer, in a single write, so that a kill tears the last line at most."""
        row: dict[str, Any] = {"key": key, "text": answer.text, "prompt_tokens": answer.prompt_tokens,
               "completion_tokens": answer.completion_tokens}  # fmt: skip
        if answer.logprobs is not None:
            row["logprobs"] = answer.logprobs
        if answer.model is not None:
            row["model"] = answer.model
        with writing(self.path), self.path.open("ab") as file:  # unbuffered, a full disk would cut it without an error
            file.write(json.dumps(row).encode() + b"\n")
        self.answers[key] = replace(answer, cached=True)
