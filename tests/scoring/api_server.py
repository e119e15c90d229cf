"""A real HTTP server that speaks /v1/chat/completions on this machine, and misbehaves on order.

with ApiServer(faults={"1 + 2": [SERVER_ERROR, DROPPED]}) as server:
    ...  # call server.base_url: the third request of "1 + 2" gets "3", any other its sum at once
    assert server.count == 3
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Messages = list[dict[str, str]]


def skip_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make the openai package retry at once; the pauses that it would have made are added to the list."""
    import anyio

    pauses: list[float] = []
    sleep = anyio.sleep

    async def skip(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("openai._base_client.anyio.sleep", skip)
    return pauses


@dataclass(frozen=True)
class Outcome:
    """What one request gets.

    Attributes:
        text: content of the answer in place of the right one; None is the right one, NULL the JSON null.
        logprobs: of the likeliest tokens at the answer's only place; None is the answer's own, which is certain.
        body: the whole body in place of a completion.
        delay: seconds before the response.
        drip: seconds between one byte of the response and the next; 0 sends it at once.
        sent: share of the response that is sent before the connection is dropped; 1 does not drop it.
    """

    status: int = 200
    text: str | None = None
    finish_reason: str = "stop"
    logprobs: Mapping[str, float] | None = None
    body: str | None = None
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    sent: float = 1.0


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Outcome:
    """An error in OpenAI's form; `retry_after="1"` is the header Retry-After."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": code}})
    return Outcome(status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def rate_limited(retry_after: str) -> Outcome:
    return refusal(429, "Too many requests", "rate_limit_exceeded", retry_after=retry_after)


NULL = "\0"
RIGHT = Outcome()
SERVER_ERROR = refusal(500, "Something broke")
OVERLOADED = Outcome(503, body="<h1>503</h1>", kind="text/html")
HTML = Outcome(body="<html><body>Sign in</body></html>", kind="text/html")
NO_JSON = Outcome(body='{"choices": [{"mess')
NO_CHOICES = Outcome(body='{"error": {"message": "upstream failed"}}')
ODD_CHOICES = Outcome(body='{"choices": [null], "usage": {"prompt_tokens": "many"}}')
EMPTY = Outcome(text="")
NO_CONTENT = Outcome(text=NULL)
NONSENSE = Outcome(text="As a language model, I would rather not count.")
CUT_OFF = Outcome(text="The sum of", finish_reason="length")
FILTERED = Outcome(text="", finish_reason="content_filter")
DROPPED = Outcome(sent=0.0)
DROPPED_MIDWAY = Outcome(sent=0.7)


@dataclass(frozen=True)
class Request:
    """One request, as it arrived; `time` is of time.monotonic."""

    content: str
    body: dict[str, Any]
    key: str
    time: float


def total(messages: Messages) -> str:
    """The sum of the whole numbers in the last turn."""
    return str(sum(map(int, re.findall(r"\d+", messages[-1]["content"]))))


class ApiServer:
    """The server, in threads of this process, while the context lasts.

    Args:
        faults: content of the last turn -> the outcomes of its first, second ... request; what comes later is RIGHT.
            Or a function of the content and the number of requests with it so far, which is called in the request's
            own thread and may block.
        answer: the right answer to a conversation.
        refuse: the outcome of every request with such a body; None where the server takes it.

    Attributes:
        requests: in the order of their arrival.
        highest: the most requests that there were at one time.
        model: the name that the server gives of its model, whichever is asked for; None for none.
    """

    def __init__(
        self,
        faults: Mapping[str, Sequence[Outcome]] | Callable[[str, int], Outcome] | None = None,
        answer: Callable[[Messages], str] = total,
        refuse: Callable[[dict[str, Any]], Outcome | None] = lambda body: None,
    ) -> None:
        self.faults, self.answer, self.refuse = faults or {}, answer, refuse
        self.model: str | None = "m"
        self.requests: list[Request] = []
        self.highest = self._now = 0
        self._seen: Counter[str] = Counter()
        self._change = threading.Condition()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                api._handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._http = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> ApiServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def count(self) -> int:
        return len(self.requests)

    @property
    def contents(self) -> Counter[str]:
        """How often each content was asked."""
        return Counter(request.content for request in self.requests)

    def wait(self, count: int, timeout: float = 30.0) -> None:
        """Until so many requests have arrived."""
        with self._change:
            assert self._change.wait_for(lambda: self.count >= count, timeout), f"only {self.count} requests came"

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        with self._change:
            key = handler.headers.get("Authorization", "").removeprefix("Bearer ")
            self.requests.append(Request(content, body, key, time.monotonic()))
            number = self._seen[content]
            self._seen[content] += 1
            self._now += 1
            self.highest = max(self.highest, self._now)
            self._change.notify_all()
        try:
            outcome = self.refuse(body) or self._outcome(handler.path, content, number)
            time.sleep(outcome.delay)
        finally:
            with self._change:  # before the response: the client's next request may be here before this line's end
                self._now -= 1
        self._respond(handler, outcome, body)

    def _outcome(self, path: str, content: str, number: int) -> Outcome:
        if path != "/v1/chat/completions":
            return refusal(404, f"no such path: {path}")
        if callable(self.faults):
            return self.faults(content, number)
        outcomes = self.faults.get(content, ())
        return outcomes[number] if number < len(outcomes) else RIGHT

    def _respond(self, handler: BaseHTTPRequestHandler, outcome: Outcome, request: dict[str, Any]) -> None:
        body = (outcome.body if outcome.body is not None else self._completion(outcome, request)).encode()
        headers = {"Content-Type": outcome.kind, "Content-Length": str(len(body)), **outcome.headers}
        head = f"HTTP/1.1 {outcome.status} -\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        response = f"{head}\r\n".encode() + body
        left_out = round((1 - outcome.sent) * len(body)) if outcome.sent else len(response)
        try:
            self._send(handler, response[: len(response) - left_out], outcome.drip)
            if outcome.sent < 1:
                handler.close_connection = True
                handler.connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # the client has given up
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, response: bytes, drip: float) -> None:
        if not drip:  # one write: a second small one would wait for the client's acknowledgement of the first
            handler.wfile.write(response)
            return
        for byte in response:
            handler.wfile.write(bytes([byte]))
            time.sleep(drip)

    def _completion(self, outcome: Outcome, request: dict[str, Any]) -> str:
        messages = request["messages"]
        text = self.answer(messages) if outcome.text is None else outcome.text
        content = None if text == NULL else text
        tokens = sum(len(turn["content"].split()) for turn in messages), len((content or "").split())
        choice = {"index": 0, "message": {"role": "assistant", "content": content},
                  "finish_reason": outcome.finish_reason}  # fmt: skip
        if request.get("logprobs"):
            logprobs = outcome.logprobs or {text: 0.0}
            top = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top[: request["top_logprobs"]]}]}
        usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
        return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "choices": [choice],
                           "usage": usage, **({"model": self.model} if self.model else {})})  # fmt: skip
