"""Asking an OpenAI-compatible server: many chat completions at once, none paid for twice, none lost to a fault."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from tqdm import tqdm

from halos.errors import HalosError
from halos.files import hash_content
from halos.scoring.answers import Answer, AnswerCache, Conversation

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI


OPENAI = "https://api.openai.com/v1"
"""The server of an `Api` that names none, whatever the openai package reads from the environment."""
_BACKOFF = 1.0
"""Seconds before the second attempt, at most; each later pause is twice as long."""
_LONGEST_PAUSE = 60.0
_LONGEST_RETRY_AFTER = 600.0
_ASKS = 3
"""Times that a conversation is asked when the server answers, but with nothing of use."""
_PASSING = {408: "timed out", 409: "conflict", 429: "rate limited"}
_REQUEST = ("base_url", "model", "messages", "temperature", "max_tokens", "seed")
_OPTIONAL = ("top_logprobs",)
"""A part of a request only where it is set, so that answers to the others are found as before."""
_JITTER = random.Random()
"""Apart from the generator that studies seed."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Api:
    """A model behind an OpenAI-compatible server, and how to call it.

    Attributes:
        base_url: address of the server, with its version (`http://localhost:8000/v1`); None is OpenAI itself.
        key_variable: environment variable that holds the key.
        max_tokens: length limit of an answer; one that reaches it counts as cut off, unless `may_be_cut`.
        concurrency: calls at one time.
        requests_per_minute: limit on the starts of attempts, which are spaced evenly; None is no limit.
        timeout: seconds for one attempt, from its start to the end of the answer.
        attempts: attempts of one call, the first included.
        seed: sent when not None; asking again for an answer that was of no use adds one each time.
        top_logprobs: log-probabilities to ask for, of so many likeliest tokens at each place; None asks for none.
        may_be_cut: an answer that reaches `max_tokens` is one.
    """

    model: str
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 64
    concurrency: int = 16
    requests_per_minute: int | None = None
    timeout: float = 60.0
    attempts: int = 6
    seed: int | None = 0
    top_logprobs: int | None = None
    may_be_cut: bool = False

    @property
    def server(self) -> str:
        return (self.base_url or OPENAI).rstrip("/")


Accept = Callable[[Answer], bool]
"""Whether an answer can be understood."""


class _Retry(Enum):
    LATER = "after a pause"
    NOW = "at once, a few times"
    NEVER = "never"


@dataclass(frozen=True)
class _Reply:
    """What came of one attempt.

    Attributes:
        retry_after: seconds that the server asks to be left alone.
        tokens: in and out.
        fatal: set when no other call would fare better and no retry is left: what the user has to put right.
    """

    text: str | None = None
    problem: str | None = None
    retry: _Retry = _Retry.NEVER
    retry_after: float = 0.0
    fatal: str | None = None
    tokens: tuple[int, int] = (0, 0)
    logprobs: list[dict[str, Any]] | None = None

    @property
    def answer(self) -> Answer:
        return Answer(self.text, self.problem, *self.tokens, logprobs=self.logprobs)


class Client:
    """Asks one model of one server, and keeps what it answered.

    Args:
        api: the model.
        cache: JSON Lines file of the answers, one line each, added to as they come. A line is found by the hash of the
            whole request (server, model, messages, temperature, max_tokens, seed, and log-probabilities where they
            are asked for), so studies can share a file.

    Raises:
        HalosError: there is no usable key, `base_url` is no address, or the cache cannot be written.
    """

    def __init__(self, api: Api, cache: Path) -> None:
        if not api.server.startswith(("http://", "https://")):
            raise HalosError(f"base_url {api.server!r} is no address; write it as in http://localhost:8000/v1")
        self.api = api
        self._key = read_key(api.base_url, api.key_variable)
        self._cache = AnswerCache(cache)
        self._spacing = _Spacing(60 / api.requests_per_minute if api.requests_per_minute else 0.0)
        self._spent: Counter[str] = Counter()
        self._explained: set[str] = set()

    def ask(self, conversations: list[Conversation], accept: Accept = lambda answer: True) -> list[Answer]:
        """One answer for each conversation, in their order.

        Failed calls are retried, then given back with their problem, and asked anew by the next `ask`. Equal
        conversations are asked once. What was spent and what failed is said on stderr.

        Args:
            accept: whether an answer can be understood. One that cannot is asked for again a few times, and is then a
                failure; only understood ones are kept.

        Raises:
            HalosError: no call can succeed: the server cannot be reached, refuses the key, or does not have the model.
                What was answered until then is kept.
        """
        keys = [self._request_key(conversation) for conversation in conversations]
        pending = self._pending(conversations, accept)
        found = {key: self._cache.answers[key] for key in keys if key not in pending}
        self._spent.clear()
        try:
            if pending:
                asyncio.run(self._ask_all(pending, accept, found))
        finally:
            self._report([found[key] for key in keys if key in found])
        return [found[key] for key in keys]

    def unanswered(self, conversations: list[Conversation], accept: Accept = lambda answer: True) -> list[Conversation]:
        """The different conversations that `ask` would send."""
        return list(self._pending(conversations, accept).values())

    def _pending(self, conversations: list[Conversation], accept: Accept) -> dict[str, Conversation]:
        """The conversations by their keys, without those that have a kept answer which is understood."""
        pending: dict[str, Conversation] = {}
        for conversation in conversations:
            key = self._request_key(conversation)
            kept = self._cache.answers.get(key)
            if kept is None or not kept.text or not accept(kept):
                pending[key] = conversation
        return pending

    def _request_key(self, conversation: Conversation) -> str:
        request = asdict(self.api) | {"base_url": self.api.server, "messages": conversation}
        names = (*_REQUEST, *(name for name in _OPTIONAL if request[name] is not None))
        return hash_content({name: request[name] for name in names})

    async def _ask_all(self, pending: dict[str, Conversation], accept: Accept, found: dict[str, Answer]) -> None:
        """Put the answers to `pending` into `found`, as they come."""
        from openai import AsyncOpenAI

        for name in ("openai", "httpx", "httpx2", "httpcore2"):  # at INFO they say a line for each request
            logging.getLogger(name).setLevel(logging.WARNING)
        # Every retry is made here: the openai package knows neither the rate limit nor an answer of no use.
        server = AsyncOpenAI(
            api_key=self._key.get_secret_value() or "none",
            base_url=self.api.server,
            timeout=self.api.timeout,
            max_retries=0,
        )
        todo = iter(pending.items())
        bar = tqdm(total=len(pending), desc="ask", unit=" answers", mininterval=1)

        async def work() -> None:
            for key, conversation in todo:
                found[key] = answer = await self._call(server, conversation, accept)
                if answer.text is not None:
                    self._cache.add(key, answer)
                bar.update()

        failure: BaseException | None = None
        try:
            async with server, asyncio.TaskGroup() as group:
                for _ in range(min(self.api.concurrency, len(pending))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            failure = failures.exceptions[0]
        finally:
            bar.close()
        if failure is not None:  # raised out here it has no context, and a group of errors is no news to the user
            raise failure

    async def _call(self, server: AsyncOpenAI, conversation: Conversation, accept: Accept) -> Answer:
        """Attempts until there is an answer, or no reason to expect one."""
        prompt_tokens = completion_tokens = useless = 0
        for attempt in range(1, self.api.attempts + 1):
            await self._spacing.turn()
            reply = await self._attempt(server, conversation, useless)
            prompt_tokens += reply.tokens[0]
            completion_tokens += reply.tokens[1]
            if reply.text is not None and not accept(reply.answer):
                reply = _Reply(problem="not understood", retry=_Retry.NOW)
            useless += reply.retry is _Retry.NOW
            if reply.retry is _Retry.NEVER or useless == _ASKS or attempt == self.api.attempts:
                break
            if reply.retry is _Retry.LATER:
                await asyncio.sleep(_pause(attempt, reply.retry_after))
        if reply.fatal:
            raise HalosError(reply.fatal)
        return replace(reply.answer, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    async def _attempt(self, server: AsyncOpenAI, conversation: Conversation, useless: int) -> _Reply:
        """One request. No exception of the openai package leaves here: it would take the request's headers along."""
        import openai

        api = self.api
        # OpenAI's newer models know only the first name of the limit, many other servers only the second
        limit = "max_completion_tokens" if api.base_url is None else "max_tokens"
        request: dict[str, Any] = {
            "model": api.model,
            "messages": conversation,
            "temperature": api.temperature,
            limit: api.max_tokens,
        }
        if api.seed is not None:
            request["seed"] = api.seed + useless
        if api.top_logprobs is not None:
            request |= {"logprobs": True, "top_logprobs": api.top_logprobs}
        self._spent["calls"] += 1
        try:
            async with asyncio.timeout(api.timeout):  # the package's own timeout is one of each read
                reply = _read(await server.chat.completions.create(**request), api)
        except (TimeoutError, openai.APITimeoutError):
            return _Reply(problem="timed out", retry=_Retry.LATER)
        except openai.APIConnectionError as error:
            return self._unconnected(error)
        except openai.APIStatusError as error:
            return self._refused(error)
        except (ValueError, openai.APIError):  # a body that is no JSON
            return _Reply(problem="malformed answer", retry=_Retry.LATER)
        self._spent.update(prompt_tokens=reply.tokens[0], completion_tokens=reply.tokens[1])
        return reply

    def _unconnected(self, error: APIConnectionError) -> _Reply:
        fatal = None
        if type(error.__cause__).__name__ == "ConnectError":  # of httpx or httpx2, whichever the package uses
            fatal = (
                f"cannot connect to {self.api.server} ({self._scrub(str(error.__cause__))}): see that a server runs "
                "there and that base_url is right, and run again; the answers so far are kept"
            )
        return _Reply(problem="connection failed", retry=_Retry.LATER, fatal=fatal)

    def _refused(self, error: APIStatusError) -> _Reply:
        """What an HTTP status means, and whether to try again."""
        status = error.status_code
        if fatal := self._fatal(error):
            return _Reply(problem=f"refused: {status}", fatal=fatal)
        pause = _retry_after(error.response.headers.get("retry-after"))
        if status >= 500:
            return _Reply(problem=f"server error {status}", retry=_Retry.LATER, retry_after=pause)
        if status in _PASSING:
            return _Reply(problem=_PASSING[status], retry=_Retry.LATER, retry_after=pause)
        code = error.code if error.code and not error.code.isdigit() else str(status)
        problem = f"refused: {self._scrub(code)}"
        if problem not in self._explained:
            self._explained.add(problem)
            log.warning("%s (%s)", problem, self._scrub(error.message))
        return _Reply(problem=problem)

    def _fatal(self, error: APIStatusError) -> str | None:
        """What the user has to put right when a status is that of every call to come."""
        api, status = self.api, error.status_code
        if status == 401 and not self._key.get_secret_value():
            return f"{api.server} wants a key: put it into the environment variable {api.key_variable}"
        if status == 401:
            return f"{api.server} refuses the key in {api.key_variable}: put a valid one there"
        if status == 402 or (status == 429 and error.code == "insufficient_quota"):
            return f"the account of the key in {api.key_variable} has no credit left at {api.server}: top it up"
        said = f" (it says: {self._scrub(error.message)})"
        if status == 403:
            return f"{api.server} does not let the key in {api.key_variable} use {api.model}: change one of them{said}"
        if status == 404:
            return f"{api.server} has no model {api.model}, or is no such server: correct model or base_url{said}"
        return None

    def _scrub(self, text: str) -> str:
        """What a server says, on one line, without words that hold a part of the key, whole or masked."""
        key = self._key.get_secret_value()
        parts = {key[i : i + 6] for i in range(max(len(key) - 5, 1))} | {key[-4:], "***"} if key else set()
        words = ("[key]" if any(part in word for part in parts) else word for word in text.split())
        return " ".join(words)[:300]

    def _report(self, answers: list[Answer]) -> None:
        problems = Counter(answer.problem for answer in answers if answer.problem)
        reasons = ", ".join(f"{count} {problem}" for problem, count in problems.most_common())
        print(
            f"{self.api.model}: {self._spent['calls']} calls made, {sum(a.cached for a in answers)} answers from the "
            f"cache, {problems.total()} failed{f' ({reasons})' if reasons else ''}, "
            f"{self._spent['prompt_tokens']} tokens in, {self._spent['completion_tokens']} out",
            file=sys.stderr,
        )


class _Spacing:
    """Turns at least `gap` seconds apart."""

    def __init__(self, gap: float) -> None:
        self.gap = gap
        self.next = 0.0

    async def turn(self) -> None:
        now = time.monotonic()
        start = max(now, self.next)
        self.next = start + self.gap
        await asyncio.sleep(start - now)


def read_key(base_url: str | None, key_variable: str) -> SecretStr:
    """The key in an environment variable; empty where it is not set, which only a server named by the user may allow.

    Raises:
        HalosError: OpenAI itself is to be called and the variable is not set, or what it holds can be no key.
    """
    key = os.environ.get(key_variable, "").strip()
    if not key and base_url is None:
        raise HalosError(f"OpenAI wants a key: put it into the environment variable {key_variable}")
    if not all("!" <= character <= "~" for character in key):
        raise HalosError(f"{key_variable} holds no key (it has spaces or other signs in it): set it again")
    return SecretStr(key)


def _read(completion: Any, api: Api) -> _Reply:
    """The text of a completion, of which the openai package has checked nothing."""
    try:
        choice = completion.choices[0]
        text, reason = choice.message.content, choice.finish_reason
        refusal = getattr(choice.message, "refusal", None)
    except (AttributeError, TypeError, LookupError):
        return _Reply(problem="malformed answer", retry=_Retry.LATER)
    tokens = _count(completion.usage, "prompt_tokens"), _count(completion.usage, "completion_tokens")
    if reason == "content_filter":
        return _Reply(problem="refused: content filter", tokens=tokens)
    if refusal:
        return _Reply(problem="refused: by the model", tokens=tokens)
    if reason == "length" and not api.may_be_cut:
        return _Reply(problem="cut off", retry=_Retry.NOW, tokens=tokens)
    if not isinstance(text, str) or not text.strip():
        return _Reply(problem="empty answer", retry=_Retry.NOW, tokens=tokens)
    if api.top_logprobs is None:
        return _Reply(text, tokens=tokens)
    logprobs = _read_logprobs(choice)
    if not logprobs:  # a server that has none will have none when it is asked again
        return _Reply(problem="no log-probabilities", tokens=tokens)
    return _Reply(text, tokens=tokens, logprobs=logprobs)


def _read_logprobs(choice: Any) -> list[dict[str, Any]] | None:
    """Of each token; None where the choice has none in OpenAI's form."""
    try:
        return [
            {"token": str(place.token), "logprob": float(place.logprob),
             "top_logprobs": [{"token": str(t.token), "logprob": float(t.logprob)} for t in place.top_logprobs]}
            for place in choice.logprobs.content
        ]  # fmt: skip
    except (AttributeError, TypeError, ValueError):
        return None


def _count(usage: Any, name: str) -> int:
    count = getattr(usage, name, None)
    return count if isinstance(count, int) else 0


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, which gives them or a date; 0 without one."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER) if math.isfinite(seconds) else 0.0


def _pause(attempt: int, retry_after: float) -> float:
    """Seconds to wait after a failed attempt: twice as long each time, never less than the server asks for.

    The random part keeps calls that failed together from coming back together.
    """
    backoff = min(_BACKOFF * 2.0 ** min(attempt - 1, 60), _LONGEST_PAUSE)
    return retry_after + backoff * _JITTER.uniform(0.5, 1.0)
