"""A model behind an OpenAI-compatible server: what a request says, and how calls are made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from halos.errors import HalosError
from halos.files import hash_content
from halos.scoring.answers import Conversation
from halos.scoring.settings import Server

OPENAI = "https://api.openai.com/v1"
"""The server where settings name none, even if the openai package finds another one in the environment."""


MAX_UNUSABLE = 3
"""Times that a conversation is asked when the server replies, but with nothing of use."""


@dataclass(frozen=True)
class Api:
    """A model behind an OpenAI-compatible server, and what is asked of it.

    Attributes:
        model: its name on the server.
        server: its address, key and patience. Its seed is sent when not None. Its `extra_body` holds further fields of
            each request.
        temperature: of sampling; None sends none.
        max_tokens: length limit of an answer; one that reaches it counts as cut off, unless `may_be_cut`.
        top_logprobs: how many of the likeliest tokens to return with log-probabilities at each place; None for none.
        may_be_cut: an answer that reaches `max_tokens` is valid.
        again: the same is asked a second time, and its answer kept beside the first. The seeds are others.
    """

    model: str
    server: Server = field(default_factory=Server)
    temperature: float | None = 0.0
    max_tokens: int = 64
    top_logprobs: int | None = None
    may_be_cut: bool = False
    again: bool = False

    @property
    def seed(self) -> int | None:
        """The seed that is sent with a request; asking anew after an unusable answer adds one each time."""
        seed = self.server.seed
        return seed if seed is None or not self.again else seed + MAX_UNUSABLE

    @property
    def extra_body(self) -> dict[str, Any]:
        return self.server.extra_body

    @property
    def address(self) -> str:
        return (self.server.base_url or OPENAI).rstrip("/")

    def key(self, conversation: Conversation) -> str:
        """Hash of the whole request, by which its answer is kept."""
        request: dict[str, Any] = {
            "base_url": self.address,
            "model": self.model,
            "messages": conversation,
            "seed": self.seed,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.top_logprobs is not None:
            request["top_logprobs"] = self.top_logprobs
        if self.extra_body:  # left out when empty: answers that were paid for earlier keep their keys
            request["extra_body"] = self.extra_body
        if self.again:
            request["again"] = True
        return hash_content(request)


@dataclass(frozen=True)
class Calls:
    """How calls are made, which changes no answer.

    Attributes:
        cache: JSON Lines file of the answers so far, which are not asked for again.
        concurrency: calls at one time.
        requests_per_minute: limit on the starts of attempts, which are spaced evenly; None for no limit.
    """

    cache: Path
    concurrency: int = 16
    requests_per_minute: int | None = None


def read_key(base_url: str | None, key_variable: str) -> SecretStr:
    """The API key in an environment variable; empty where it is not set, which only a server of the user's may allow.

    Raises:
        HalosError: the variable is not set although OpenAI itself is called, or its content cannot be a key.
    """
    key = os.environ.get(key_variable, "").strip()
    if not key and base_url is None:
        raise HalosError(f"OpenAI wants a key: put it into the environment variable {key_variable}")
    if not all("!" <= character <= "~" for character in key):
        raise HalosError(f"{key_variable} holds no key (it has spaces or other signs in it): set it again")
    return SecretStr(key)
