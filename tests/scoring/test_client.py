"""The client of OpenAI-compatible servers, against a server that fails in every way a real one does."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiolimiter import AsyncLimiter

from halos.errors import HalosError
from halos.scoring import api, completions
from halos.scoring.answers import Answer, Conversation
from halos.scoring.api import Api, Calls
from halos.scoring.client import Client
from halos.scoring.settings import Server
from tests.scoring import api_server as S
from tests.scoring.api_server import ApiServer, Outcome

ROOT = Path(__file__).parents[2]
KEY = "sk-test-0123456789abcdefWXYZ"
ALL_FAULTS = [
    S.rate_limited("0.01"), S.SERVER_ERROR, S.OVERLOADED, S.HTML, S.NO_JSON, S.NO_CHOICES, S.ODD_CHOICES, S.EMPTY,
    S.NO_CONTENT, S.NONSENSE, S.CUT_OFF, S.DROPPED, S.DROPPED_MIDWAY,
]  # fmt: skip


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before retries, in seconds, none of which is waited for."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return S.skip_pauses(monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "answers" / "cache.jsonl"


def client(server: ApiServer | str, cache: Path, model: str = "m", **settings: Any) -> Client:
    """A client whose settings of the server, of the request and of its calls are given in one row."""
    url = server if isinstance(server, str) else server.base_url
    of_server = {name: settings.pop(name) for name in Server.model_fields.keys() & settings}
    of_calls = {name: settings.pop(name) for name in ("concurrency", "requests_per_minute") if name in settings}
    return Client(Api(model, Server(base_url=url, **of_server), **settings), Calls(cache, **of_calls))


def talks(*contents: str) -> list[Conversation]:
    return [[{"role": "system", "content": "Add."}, {"role": "user", "content": content}] for content in contents]


def sums(n: int, start: int = 0) -> list[str]:
    return [f"{i} + {i * i}" for i in range(start, start + n)]


def right(contents: list[str]) -> list[str]:
    return [S.total([{"content": content}]) for content in contents]


def texts(answers: list[Answer]) -> list[str | None]:
    return [answer.text for answer in answers]


def number(answer: Answer) -> bool:
    return (answer.text or "").isdigit()


def always(outcome: Outcome) -> list[Outcome]:
    return [outcome] * 50


def test_every_right_answer_comes_out_right_and_in_order_under_every_fault(cache: Path) -> None:
    contents = sums(60)
    faults = {content: [ALL_FAULTS[i % len(ALL_FAULTS)]] * (1 + i % 2) for i, content in enumerate(contents[:52])}
    with ApiServer(faults) as server:
        answers = client(server, cache).ask(talks(*contents), number)
    assert texts(answers) == right(contents)
    assert {answer.problem for answer in answers} == {None}
    assert server.count == 60 + sum(map(len, faults.values()))


def test_failures_are_counted_by_reason_and_never_have_a_text(
    cache: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {
        "rate limited": S.rate_limited("0.001"),
        "server error 500": S.SERVER_ERROR,
        "server error 503": S.OVERLOADED,
        "malformed answer": S.HTML,
        "empty answer": S.EMPTY,
        "not understood": S.NONSENSE,
        "cut off (raise max_tokens)": S.CUT_OFF,
        "refused: content filter": S.FILTERED,
        "refused: context_length_exceeded": S.refusal(400, "Too long by 7", "context_length_exceeded"),
        "refused: 422": S.refusal(422, "Odd"),
        "connection failed": S.DROPPED_MIDWAY,
    }
    asked = {"connection failed": 3, "rate limited": 3, "server error 500": 3, "server error 503": 3,
             "malformed answer": 3, "empty answer": 3, "not understood": 3,
             "cut off (raise max_tokens)": 3}  # fmt: skip
    contents = sums(len(reasons) + 1)
    faults = dict(zip(contents, map(always, reasons.values()), strict=False))
    with ApiServer(faults) as server:
        answers = client(server, cache, attempts=3).ask(talks(*contents, contents[0]), number)
    assert [answer.problem for answer in answers] == [*reasons, None, "rate limited"]
    assert texts(answers) == [None] * len(reasons) + [right(contents)[-1], None]
    assert server.contents == {c: asked.get(r, 1) for c, r in zip(contents, [*reasons, "right"], strict=True)}
    said = capfd.readouterr().err
    assert f"{server.count} calls made, 0 answers from the cache, 12 failed (2 rate limited, 1 server error 500" in said
    assert "Too long by 7" in caplog.text


def test_a_completion_may_lack_its_usage_and_a_model_may_refuse(cache: Path) -> None:
    def completion(**message: str | None) -> Outcome:
        return Outcome(body=json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}))

    refused = completion(content=None, refusal="I will not add.")
    with ApiServer({"1 + 1": [completion(content="2")], "2 + 2": [refused]}) as server:
        answers = client(server, cache).ask(talks("1 + 1", "2 + 2"))
        assert answers == [Answer("2", None), Answer(None, "refused: by the model")]
        assert server.count == 2


@pytest.mark.parametrize("slow", ["never", "byte by byte"])
def test_an_attempt_ends_at_its_timeout_however_the_server_dallies(cache: Path, pauses: list[float], slow: str) -> None:
    ended = threading.Event()

    def fault(content: str, number: int) -> Outcome:
        if slow == "never":
            ended.wait(60)
        return Outcome(drip=0.1)  # half a minute for the whole answer

    with ApiServer(fault) as server:
        assert client(server, cache, attempts=2, timeout=0.3).ask(talks("1 + 1")) == [Answer(None, "timed out")]
        ended.set()
    assert len(pauses) == 1  # between two attempts


def test_an_answer_of_no_use_is_asked_for_three_times_with_another_seed(cache: Path) -> None:
    with ApiServer({"1 + 1": always(S.NONSENSE), "2 + 2": [S.NONSENSE, S.SERVER_ERROR, S.EMPTY]}) as server:
        answers = client(server, cache, concurrency=1, seed=5).ask(talks("1 + 1", "2 + 2"), number)
    assert [(a.text, a.problem) for a in answers] == [(None, "not understood"), ("4", None)]
    assert [r.body["seed"] for r in server.requests] == [5, 6, 7, 5, 6, 6, 7]


def test_the_request_says_what_the_api_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ApiServer() as server:
        client(server, cache, temperature=0.5, max_tokens=9, seed=None).ask(talks("1 + 1"))
        monkeypatch.setattr(api, "OPENAI", server.base_url)
        monkeypatch.setenv("OTHER_KEY", "other-key\n")
        Client(Api("m", Server(key_variable="OTHER_KEY")), Calls(cache)).ask(talks("1 + 1"))
    elsewhere, openai = server.requests
    assert elsewhere.body == {"model": "m", "messages": talks("1 + 1")[0], "temperature": 0.5, "max_tokens": 9}
    assert elsewhere.key == KEY
    assert openai.body == {"model": "m", "messages": talks("1 + 1")[0], "temperature": 0.0,
                           "max_completion_tokens": 64, "seed": 0}  # fmt: skip
    assert openai.key == "other-key"


def test_log_probabilities_are_asked_for_kept_and_told_apart(cache: Path) -> None:
    likely = {"A": -0.1, "B": -2.5, "C": -4.0}
    place = {"token": "A", "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": likely[t]} for t in "AB"]}
    with ApiServer({"1 + 1": always(Outcome(text="A", logprobs=likely))}) as server:
        for cached in (False, True):
            (answer,) = client(server, cache, top_logprobs=2).ask(talks("1 + 1"))
            assert (answer.text, answer.logprobs, answer.cached) == ("A", [place], cached)
        (plain,) = client(server, cache).ask(talks("1 + 1"))
    assert plain.logprobs is None
    with_them, without = server.requests
    assert (with_them.body["logprobs"], with_them.body["top_logprobs"]) == (True, 2)
    assert not {"logprobs", "top_logprobs"} & set(without.body)


def test_a_server_that_gives_no_log_probabilities_is_asked_once(cache: Path) -> None:
    bare = [{"choices": [{"message": {"content": "2"}, "finish_reason": "stop", "logprobs": logprobs}]}
            for logprobs in (None, {"content": None}, {"content": []}, {"content": [{"token": "2"}]})]  # fmt: skip
    contents = sums(len(bare))
    faults = {c: always(Outcome(body=json.dumps(body))) for c, body in zip(contents, bare, strict=True)}
    with ApiServer(faults) as server:
        answers = client(server, cache, top_logprobs=2).ask(talks(*contents))
        assert server.count == len(bare)
    assert [(answer.text, answer.problem) for answer in answers] == [(None, "no log-probabilities")] * len(bare)


def test_an_answer_may_be_cut_where_a_few_tokens_are_all_that_is_wanted(cache: Path) -> None:
    with ApiServer({"1 + 1": [S.CUT_OFF]}) as server:
        assert client(server, cache, may_be_cut=True).ask(talks("1 + 1"))[0].text == S.CUT_OFF.text
        assert server.count == 1


def test_what_would_be_asked_is_known_before(cache: Path) -> None:
    one, two, three = talks("1 + 1", "2 + 2", "3 + 3")
    with ApiServer({"2 + 2": [S.NONSENSE]}) as server:
        asker = client(server, cache)
        asker.ask([one, two])
        assert asker.unanswered([one, two, three, three]) == [three]
        assert asker.unanswered([one, two, three, three], number) == [two, three]
        assert server.count == 2


def test_tokens_are_summed_over_attempts_and_cost_nothing_from_the_cache(
    cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ApiServer({"1 + 1": [S.NONSENSE]}) as server:
        for cached in (False, True):
            answers = client(server, cache).ask(talks("1 + 1", "2 + 2"), number)
            # prompts of four words, one of them sent twice; the nonsense has nine words
            assert answers == [Answer("2", None, 8, 10, cached, model="m"), Answer("4", None, 4, 1, cached, model="m")]
            said = capfd.readouterr().err
            assert ("3 calls made, 0 answers from the cache, 0 failed, 12 tokens in, 11 out" in said) is not cached
            assert ("0 calls made, 2 answers from the cache, 0 failed, 0 tokens in, 0 out" in said) is cached


def test_only_what_is_not_answered_yet_is_asked_again(cache: Path) -> None:
    contents = sums(20)
    bad = {contents[3]: always(S.DROPPED), contents[4]: always(S.NONSENSE)}
    with ApiServer(bad) as server:
        client(server, cache, attempts=2).ask(talks(*contents), number)
        first = server.count
        assert len(cache.read_text().splitlines()) == 18
        server.faults = {}
        again = client(server, cache).ask(talks(*contents), number)
        assert sorted(r.content for r in server.requests[first:]) == contents[3:5]
        assert texts(again) == right(contents)
        assert [i for i, answer in enumerate(again) if not answer.cached] == [3, 4]


def test_a_kept_answer_that_is_no_longer_accepted_is_asked_for_again(cache: Path) -> None:
    with ApiServer({"1 + 1": [S.NONSENSE]}) as server:
        assert texts(client(server, cache).ask(talks("1 + 1"))) == [S.NONSENSE.text]
        for _ in range(2):  # of two lines for one request the later one counts
            assert texts(client(server, cache).ask(talks("1 + 1"), number)) == ["2"]
        assert server.count == 2


@pytest.mark.parametrize("change", [{"model": "n"}, {"temperature": 1.0}, {"max_tokens": 65}, {"seed": 1}], ids=str)
def test_another_request_is_not_answered_from_the_cache(cache: Path, change: dict[str, Any]) -> None:
    with ApiServer() as server:
        for settings in ({"model": "m"}, {"model": "m", "timeout": 7.0, "concurrency": 2}, {"model": "m"} | change):
            client(server, cache, **settings).ask(talks("1 + 1"))
        assert server.count == 2
    with ApiServer() as other:
        client(other, cache).ask(talks("1 + 1"))
        assert other.count == 1


def test_equal_conversations_are_sent_once_and_roles_make_them_differ(cache: Path) -> None:
    turns = talks("1 + 1") * 3 + [[{"role": "user", "content": "1 + 1"}]]
    with ApiServer() as server:
        asker = client(server, cache)
        assert texts(asker.ask(turns)) == ["2"] * 4
        assert [answer.cached for answer in asker.ask(turns)] == [True] * 4
        assert server.count == 2
        assert asker.ask([]) == []


def test_a_torn_last_line_is_dropped_and_written_over(cache: Path) -> None:
    contents = sums(5)
    with ApiServer() as server:
        client(server, cache, concurrency=1).ask(talks(*contents))
        whole = cache.read_bytes()
        cache.write_bytes(whole[:-20])
        assert texts(client(server, cache).ask(talks(*contents))) == right(contents)
        assert server.contents == {content: 1 + (content == contents[-1]) for content in contents}
        assert cache.read_bytes() == whole


def test_lines_that_are_no_answers_are_counted_and_asked_for_again(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = sums(4)
    with ApiServer() as server:
        client(server, cache, concurrency=1).ask(talks(*contents))
        lines = cache.read_text().splitlines()
        cache.write_text("\n".join([lines[0], "{}", lines[2][:-4], "[]", lines[3]]) + "\n")
        assert texts(client(server, cache).ask(talks(*contents))) == right(contents)
        assert sorted(r.content for r in server.requests[4:]) == contents[1:3]
    assert "3 lines are no answers" in caplog.text


SCRIPT = """
import sys
from pathlib import Path
from halos.scoring.api import Api, Calls
from halos.scoring.client import Client
from halos.scoring.settings import Server
url, cache, *contents = sys.argv[1:]
turns = [[{"role": "system", "content": "Add."}, {"role": "user", "content": content}] for content in contents]
Client(Api("m", Server(base_url=url)), Calls(Path(cache), concurrency=4)).ask(turns)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_run_ended_in_the_middle_loses_no_answer(cache: Path, end: signal.Signals) -> None:
    contents, hold = sums(40), threading.Event()

    def fault(content: str, number: int) -> Outcome:
        if content in contents[20:]:
            hold.wait(60)
        return S.RIGHT

    with ApiServer(fault) as server:
        command = [sys.executable, "-c", SCRIPT, server.base_url, str(cache), *contents]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            server.wait(24)  # 20 are answered and kept, and the four workers hang on the next ones
            process.send_signal(end)
            said = process.communicate(timeout=30)[1]
        finally:
            process.kill()
        assert process.returncode == -end
        kept = [json.loads(line)["text"] for line in cache.read_text().splitlines()]
        assert len(kept) == 20
        hold.set()
        again = client(server, cache).ask(talks(*contents))
        assert texts(again) == right(contents)
        assert sum(answer.cached for answer in again) == 20
        assert {r.content for r in server.requests[24:]} == set(contents[20:])
        assert server.count == 24 + 20
    if end is signal.SIGINT:
        assert "24 calls made" in said
        assert KEY not in said


def test_calls_run_at_one_time_up_to_the_limit(cache: Path) -> None:
    together = threading.Barrier(4)

    def fault(content: str, number: int) -> Outcome:
        together.wait(20)  # breaks when four are never there at one time
        return S.RIGHT

    contents = sums(24)
    with ApiServer(fault) as server:
        assert texts(client(server, cache, concurrency=4, attempts=1).ask(talks(*contents))) == right(contents)
    assert server.highest == 4


def test_every_attempt_takes_a_turn_of_the_rate_limit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries and questions that are asked again take one, too; turns are spaced evenly, without bursts."""
    limits, turns = [], []

    class Limiter(AsyncLimiter):
        def __init__(self, max_rate: float, time_period: float) -> None:
            limits.append((max_rate, time_period))
            super().__init__(max_rate, time_period / 1e6)

        async def acquire(self, amount: float = 1) -> None:
            turns.append(amount)
            await super().acquire(amount)

    monkeypatch.setattr(completions, "AsyncLimiter", Limiter)
    with ApiServer({"0 + 0": [S.SERVER_ERROR] * 3, "1 + 1": [S.NONSENSE]}) as server:
        client(server, cache, requests_per_minute=120).ask(talks(*sums(6)), number)
        assert server.count == 10
    assert limits == [(1, 0.5)]
    assert turns == [1] * 10


def test_the_server_is_left_alone_as_long_as_it_asks(cache: Path, pauses: list[float]) -> None:
    with ApiServer({"1 + 1": [S.rate_limited("30"), S.refusal(503, "Busy", retry_after="20")]}) as server:
        assert texts(client(server, cache).ask(talks("1 + 1"))) == ["2"]
    assert pauses == [30, 20]


def test_retry_after_may_be_a_date_and_nonsense_in_it_is_no_pause(cache: Path, pauses: list[float]) -> None:
    soon, past = (format_datetime(datetime.now(UTC) + timedelta(seconds=s), usegmt=True) for s in (100, -86400))
    values = [soon, past, "", "soon", "-5", "nan"]
    with ApiServer({"1 + 1": [S.rate_limited(value) for value in values]}) as server:
        assert texts(client(server, cache, attempts=7).ask(talks("1 + 1"))) == ["2"]
    assert 10 < pauses[0] <= 100
    assert max(pauses[1:]) <= 8  # pauses of the client's own, as after a failure without the header


def test_a_server_that_wants_a_long_rest_is_not_waited_for(cache: Path, pauses: list[float]) -> None:
    with ApiServer({"1 + 1": always(S.rate_limited("86400"))}) as server:
        assert client(server, cache).ask(talks("1 + 1")) == [Answer(None, "rate limited")]
        assert server.count == 1
    assert pauses == []


def test_pauses_grow_and_differ(cache: Path, pauses: list[float]) -> None:
    """Calls that failed together do not come back together."""
    with ApiServer({"1 + 1": [S.SERVER_ERROR] * 5, "2 + 2": [S.DROPPED] * 5}) as server:
        assert texts(client(server, cache, concurrency=1).ask(talks("1 + 1", "2 + 2"))) == ["2", "4"]
    first, second = pauses[:5], pauses[5:]
    assert first == sorted(first)
    assert second == sorted(second)
    assert first[-1] > 4 * first[0]
    assert len(set(pauses)) == 10


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        (S.refusal(401, f"Incorrect API key: {KEY}"), "refuses the key in OPENAI_API_KEY"),
        (S.refusal(402, "Pay"), "no credit left"),
        (S.refusal(429, "Quota", "insufficient_quota"), "no credit left"),
        (S.refusal(403, f"Key sk-test-****WXYZ of {KEY} may not"), r"does not let .* \(it says: .*Key \[key\] of"),
        (S.refusal(404, f"No model m for {KEY[:12]}..."), r"has no model m, .* \(it says: .*No model m for \[key\]\)"),
    ],
    ids=["401", "402", "quota", "403", "404"],
)
def test_a_refusal_of_every_call_stops_at_once_and_keeps_the_answers(
    cache: Path, outcome: Outcome, sentence: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    contents = sums(2000)
    with ApiServer(lambda content, number: S.RIGHT if content in contents[:10] else outcome) as server:
        with pytest.raises(HalosError, match=sentence) as caught:
            client(server, cache, concurrency=4).ask(talks(*contents))
        assert server.count <= 10 + 4
        assert len(cache.read_text().splitlines()) >= 10 - 3  # three at most were under way beside the refused one
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    for part in (KEY, KEY[:12], "WXYZ"):
        assert part not in shown
        assert part not in cache.read_text()


def test_no_file_and_no_output_ever_holds_the_key(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    echo = S.refusal(400, f"You sent Bearer {KEY}", f"bad_{KEY}")
    faults = {content: [fault] for content, fault in zip(sums(13), ALL_FAULTS, strict=True)}
    with ApiServer(faults | {"x": [echo]}) as server:
        asker = client(server, cache)
        answers = asker.ask(talks(*sums(13), "x"), number)
    assert server.requests[0].key == KEY
    assert answers[-1].problem == "refused: [key]"
    shown = "".join(capfd.readouterr()) + caplog.text + repr(answers) + repr(asker) + repr(vars(asker))
    assert "You sent Bearer [key]" in shown
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [cache]
    assert KEY not in shown + cache.read_text()


def test_a_bug_in_accept_is_not_hidden_and_shows_no_key(cache: Path) -> None:
    def accept(answer: Answer) -> bool:
        raise ZeroDivisionError("a bug")

    with ApiServer() as server, pytest.raises(ZeroDivisionError, match="a bug") as caught:
        client(server, cache).ask(talks(*sums(8)), accept)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_missing_key_is_named_before_any_call(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "  \n"):
        monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(HalosError, match="environment variable JUDGE_KEY"):
            Client(Api("m", Server(key_variable="JUDGE_KEY")), Calls(cache))
    monkeypatch.setenv("JUDGE_KEY", "two words")
    with pytest.raises(HalosError, match="JUDGE_KEY holds no key") as caught:
        Client(Api("m", Server(key_variable="JUDGE_KEY")), Calls(cache))
    assert "two words" not in str(caught.value)


def test_a_local_server_needs_no_key_unless_it_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with ApiServer({"2 + 2": [S.refusal(401, "Who are you?")]}) as server:
        assert texts(client(server, cache).ask(talks("1 + 1"))) == ["2"]
        with pytest.raises(HalosError, match=r"wants a key: .* variable OPENAI_API_KEY"):
            client(server, cache).ask(talks("2 + 2"))


def test_a_server_that_is_not_there_is_an_error_and_not_a_failure_of_each_call(cache: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(HalosError, match=f"cannot connect to {url} "):
            client(url, cache).ask(talks(*sums(50)))
    with pytest.raises(HalosError, match="'localhost:8000/v1' is no address"):
        client("localhost:8000/v1", cache)


def test_a_cache_that_cannot_be_written_is_named_before_any_call(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="cannot write the cache"):
        client("http://localhost:1/v1", tmp_path)


def test_libraries_say_no_line_for_each_request(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with ApiServer() as server:
        client(server, cache).ask(talks("1 + 1"))
    assert [record.name for record in caplog.records] == []
