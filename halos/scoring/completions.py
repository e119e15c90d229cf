"""One chat completion of an OpenAI-compatible server: the request, its retries, and what the reply means."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
from aiolimiter import AsyncLimiter
from pydantic import SecretStr

from halos.scoring.answers import CUT_OFF, Answer, Conversation
from halos.scoring.api import Api
from halos.scoring.parameters import Parameters
from halos.scoring.refusals import error_text

MALFORMED = "malformed answer"
_LONGEST = 300
"""Characters of a server's text that are shown."""
_LONGEST_READ = 20_000
_SECRET = re.compile(r"(?<=Bearer )[\w.~+/=-]+|\b(?:sk|pk|hf|gsk|xai|rk)[-_][\w-]{8,}")
_REFUSED = (400, 422)
_PASSING = {408: "timed out", 409: "conflict", 429: "rate limited"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """The result of one request, its retries included.

    Attributes:
        answer: its text is None when the request failed.
        cut: the answer's text reached `max_tokens`, which it may.
        unusable: the server replied, but with nothing of use: asking again may help.
        fatal: set when every other request would fail alike: what the user has to put right.
    """

    answer: Answer
    cut: bool = False
    unusable: bool = False
    fatal: str | None = None


def _failed(problem: str, tokens: tuple[int, int] = (0, 0), unusable: bool = False, fatal: str | None = None) -> Reply:
    return Reply(Answer(None, problem, *tokens), unusable=unusable, fatal=fatal)


class _Http(openai.DefaultAsyncHttpxClient):
    """The HTTP client below the openai package's retries: each `send` is one attempt."""

    def __init__(self, timeout: float, requests_per_minute: int | None) -> None:
        super().__init__(timeout=timeout)
        self.seconds, self.attempts = timeout, 0
        # a bucket for one request spaces the attempts evenly, where a larger one would allow bursts
        self.limiter = AsyncLimiter(1, 60 / requests_per_minute) if requests_per_minute else nullcontext()

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        async with self.limiter:
            self.attempts += 1
            try:
                async with asyncio.timeout(self.seconds):  # httpx's own timeout is one of each read
                    response = await super().send(request, **options)
            except TimeoutError:
                raise httpx2.ReadTimeout("timed out", request=request) from None
        if response.status_code == 429 and "insufficient_quota" in response.text:
            response.headers["x-should-retry"] = "false"  # no pause brings credit back
        return response


class Endpoint:
    """A model of a server, while the context lasts.

    The openai package retries what passes: lost connections, timeouts and the statuses 408, 409, 429 and from 500 on,
    after the pause that a Retry-After header asks for, or pauses that grow.

    Args:
        parameters: of each call of the model.
        key: of the server; empty for none.
        requests_per_minute: limit on the starts of attempts; None for no limit.
    """

    def __init__(self, parameters: Parameters, key: SecretStr, requests_per_minute: int | None) -> None:
        for name in ("openai", "httpx", "httpx2", "httpcore2"):  # at INFO they log a line for each request
            logging.getLogger(name).setLevel(logging.WARNING)
        api = parameters.api
        self.api, self._parameters, self._key = api, parameters, key
        self._explained: set[str] = set()
        self._http = _Http(api.server.timeout, requests_per_minute)
        self._openai = openai.AsyncOpenAI(
            api_key=key.get_secret_value() or "none",
            base_url=api.address,
            timeout=api.server.timeout,
            max_retries=api.server.attempts - 1,
            http_client=self._http,
        )

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._openai.close()

    @property
    def attempts(self) -> int:
        """Attempts so far, retries included."""
        return self._http.attempts

    async def complete(self, conversation: Conversation, seed: int | None) -> Reply:
        """The reply to one conversation. No exception of the openai package leaves here: it holds the headers."""
        while True:
            sent = self._parameters.of_call(seed)
            try:
                return self._read(await self._create(conversation, sent))
            except openai.APITimeoutError:
                return _failed("timed out")
            except openai.APIConnectionError as error:
                return self._unconnected(error)
            except openai.APIStatusError as error:
                says = self._scrub(error_text(error.body)[:_LONGEST_READ])
                refused = error.status_code in _REFUSED
                if not (refused and self._parameters.learn(sent, says, _short(says))):
                    fatal = self._parameters.fatal(sent, says, _short(says)) if refused else None
                    return self._refused(error, _short(says), fatal)
            except (ValueError, openai.APIError):  # a body that is no JSON
                return _failed(MALFORMED, unusable=True)

    async def _create(self, conversation: Conversation, parameters: dict[str, Any]) -> Any:
        """A completion. Names of parameters that the openai package does not know are sent as they are."""
        messages: Any = conversation
        create = self._openai.chat.completions.create
        return await create(model=self.api.model, messages=messages, extra_body=parameters)

    def _read(self, completion: Any) -> Reply:
        reply = read(completion, self.api)
        if reply.answer.problem == MALFORMED:
            body = getattr(completion, "model_extra", None) or completion
            self._explain(MALFORMED, _short(self._scrub(error_text(body) if isinstance(body, str | dict) else "")))
        return reply

    def _unconnected(self, error: openai.APIConnectionError) -> Reply:
        fatal = None
        if isinstance(error.__cause__, httpx2.ConnectError):
            fatal = (
                f"cannot connect to {self.api.address} ({self._scrub(str(error.__cause__))}): see that a server runs "
                "there and that base_url is right, and run again; the answers so far are kept"
            )
        return _failed("connection failed", fatal=fatal)

    def _refused(self, error: openai.APIStatusError, says: str, fatal: str | None) -> Reply:
        """The meaning of an HTTP status that no retry has changed.

        Args:
            error: the response.
            says: its text.
            fatal: the sentence for the user where the text tells why every call gets it.
        """
        status = error.status_code
        if fatal := fatal or self._fatal(error, says):
            return _failed(f"refused: {status}", fatal=fatal)
        if status >= 500:
            problem = f"server error {status}"
        elif status in _PASSING:
            problem = _PASSING[status]
        else:
            code = error.code if re.fullmatch(r"(?!\d+$)[\w.-]{1,80}", error.code or "") else None
            problem = f"refused: {self._scrub(code or str(status))}"
        self._explain(problem, says)
        return _failed(problem)

    def _explain(self, problem: str, says: str) -> None:
        """Say once for each problem what the server says of it."""
        if says and problem not in self._explained:
            self._explained.add(problem)
            log.warning("%s (the server says: %s)", problem, says)

    def _fatal(self, error: openai.APIStatusError, says: str) -> str | None:
        """The sentence for the user when every call would get this status."""
        address, model, variable, status = (
            self.api.address, self.api.model, self.api.server.key_variable, error.status_code
        )  # fmt: skip
        if status == 401 and not self._key.get_secret_value():
            return f"{address} wants a key: put it into the environment variable {variable}"
        if status == 401:
            return f"{address} refuses the key in {variable}: put a valid one there"
        if status == 402 or (status == 429 and error.code == "insufficient_quota"):
            return f"the account of the key in {variable} has no credit left at {address}: top it up"
        message = f" (it says: {says})" if says else ""
        if status == 403:
            return f"{address} does not let the key in {variable} use {model}: change one of them{message}"
        if status == 404:
            return f"{address} has no model {model}, or is no such server: correct model or base_url{message}"
        return None

    def _scrub(self, text: str) -> str:
        """A text on one line, without words that hold a part of the key, whole or masked, or what may be another."""
        key = self._key.get_secret_value()
        parts = {key[i : i + 6] for i in range(max(len(key) - 5, 1))} | {key[-4:], "***"} if key else {"***"}
        words = ("[key]" if any(part in word for part in parts) else word for word in text.split())
        return _SECRET.sub("[key]", " ".join(words))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def read(completion: Any, api: Api) -> Reply:
    """The reply in a completion, whose form the openai package does not check."""
    try:
        choice = completion.choices[0]
        text, reason = choice.message.content, choice.finish_reason
        refusal = getattr(choice.message, "refusal", None)
    except (AttributeError, TypeError, LookupError):
        return _failed(MALFORMED, unusable=True)
    tokens = _count(completion.usage, "prompt_tokens"), _count(completion.usage, "completion_tokens")
    if reason == "content_filter":
        return _failed("refused: content filter", tokens)
    if refusal:
        return _failed("refused: by the model", tokens)
    empty = not isinstance(text, str) or not text.strip()
    if reason == "length" and (empty or not api.may_be_cut):  # a model that thinks can spend all of it on thoughts
        return _failed(CUT_OFF, tokens, unusable=True)
    if empty:
        return _failed("empty answer", tokens, unusable=True)
    model = name if isinstance(name := getattr(completion, "model", None), str) and name else None
    if api.top_logprobs is None:
        return Reply(Answer(text, None, *tokens, model=model), cut=reason == "length")
    logprobs = _read_logprobs(choice)
    if not logprobs:  # a server that has none will have none when it is asked again
        return _failed("no log-probabilities", tokens)
    return Reply(Answer(text, None, *tokens, logprobs=logprobs, model=model))


def _read_logprobs(choice: Any) -> list[dict[str, Any]] | None:
    """Log-probabilities of each token; None where the choice has none in OpenAI's form."""
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
