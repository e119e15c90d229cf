"""The page on which people vote, served on this machine."""

from __future__ import annotations

import json
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, ValidationError

from halos.annotate.ballot import Ballot
from halos.errors import HalosError
from halos.evaluate.judging.votes import Choice, Vote
from halos.files import Record

LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")
LONGEST_REQUEST = 1 << 20
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "frame-ancestors 'none'"
)
"""What the browser may do for the page: nothing with any other server."""


class Posted(Record):
    """What the page sends when a key is pressed."""

    annotator: str
    comparison: str
    vote: Choice
    note: str = Field("", max_length=20_000)
    seconds: float | None = None


class Wrong(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One request of the page: `/` is the page, `/state` what it shows, `/vote` takes a vote.

    Args:
        ballot: the comparisons.
        title: the judge's name.
        annotator: the only one who votes here; None where the page asks for the name.
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, *request: Any, ballot: Ballot, title: str, annotator: str | None) -> None:
        self.ballot, self.title, self.annotator = ballot, title, annotator
        super().__init__(*request)

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        if path == "/":
            self._answer(lambda: self._page())
        elif path == "/state":
            self._answer(lambda: self._state(query.get("annotator", ""), query.get("at")))
        else:
            self._answer(lambda: self._no_such_place())

    def do_POST(self) -> None:
        # read first: what is left unread would be taken for the next request of the connection
        length = self.headers.get("Content-Length", "")
        is_read = length.isdigit() and int(length) <= LONGEST_REQUEST
        body = self.rfile.read(int(length)) if is_read else b""
        self.close_connection = self.close_connection or not is_read
        self._answer(lambda: self._vote(body) if self.path == "/vote" else self._no_such_place())

    def _answer(self, make: Any) -> None:
        try:
            self._check_host()
            status, content = HTTPStatus.OK, make()
        except Wrong as wrong:
            status, content = wrong.status, {"error": str(wrong)}
        except HalosError as error:
            status, content = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        is_page = isinstance(content, str)
        body = (content if is_page else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{'text/html' if is_page else 'application/json'}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def _check_host(self) -> None:
        """Refuse a request that another site made the browser send to this machine."""
        server: Any = self.server
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if server.server_address[0] in LOCAL and host not in LOCAL:
            raise Wrong(HTTPStatus.FORBIDDEN, "this page is for this machine alone")

    def _no_such_place(self) -> None:
        raise Wrong(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _page(self) -> str:
        about = {"title": self.title, "annotator": self.annotator, "annotators": self.ballot.people.annotators}
        text = json.dumps(about).replace("<", "\\u003c")
        return Path(__file__).with_name("page.html").read_text(encoding="utf-8").replace("{{ about }}", text)

    def _check_annotator(self, annotator: str) -> None:
        if self.annotator not in (None, annotator):
            raise Wrong(HTTPStatus.FORBIDDEN, f"{self.annotator} votes here")
        self.ballot.check_name(annotator)

    def _state(self, annotator: str, at: str | None) -> dict[str, Any]:
        """What the page shows: a comparison, by default the first without a vote, and how many have one.

        Args:
            annotator: the name.
            at: place of the comparison, from 0.
        """
        self._check_annotator(annotator)
        keys, given = self.ballot.keys(annotator), self.ballot.given(annotator)
        open_ = [i for i, key in enumerate(keys) if key not in given]
        place = int(at) if at is not None and at.isdecimal() else open_[0] if open_ else len(keys)
        state = {"total": len(keys), "done": len(keys) - len(open_), "at": min(place, len(keys))}
        if place >= len(keys):
            return {**state, "comparison": None}
        key = keys[place]
        vote = given.get(key)
        return {
            **state,
            "comparison": key,
            "prompt": self.ballot.comparisons[key].instruction,
            "responses": self.ballot.shown(key),
            "vote": vote and vote.vote,
            "note": vote.note if vote else "",
        }

    def _vote(self, body: bytes) -> dict[str, Any]:
        """Save a vote, and give what is shown next."""
        if self.headers.get_content_type() != "application/json":  # the one that other sites may not send
            raise Wrong(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a vote is sent as application/json")
        try:
            posted = Posted.model_validate_json(body)
        except ValidationError:
            raise Wrong(HTTPStatus.BAD_REQUEST, "that is no vote") from None
        self._check_annotator(posted.annotator)
        if posted.comparison not in self.ballot.keys(posted.annotator):
            raise Wrong(HTTPStatus.NOT_FOUND, "there is no such comparison: load the page again")
        vote = Vote(comparison=posted.comparison, vote=posted.vote, note=posted.note.strip(), seconds=posted.seconds)
        self.ballot.add(posted.annotator, vote)
        return self._state(posted.annotator, None)

    def log_message(self, *_: Any) -> None:
        """Say nothing: a line for each key would hide what matters."""


def open_server(ballot: Ballot, title: str, annotator: str | None, host: str, port: int) -> ThreadingHTTPServer:
    """A server of the page, which listens and does not answer yet.

    Args:
        ballot: the comparisons.
        title: the judge's name.
        annotator: the only one who votes here; None where the page asks for the name.
        host: address to listen at.
        port: port; 0 for any that is free.

    Raises:
        HalosError: nothing can listen there.
    """
    handler = partial(Handler, ballot=ballot, title=title, annotator=annotator)
    try:
        return ThreadingHTTPServer((host, port), handler)
    except (OSError, OverflowError) as error:
        raise HalosError(f"cannot listen at {host}:{port} ({error}): give another --port or --host") from None
