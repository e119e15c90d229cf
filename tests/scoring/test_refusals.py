"""Refusals of servers: the text of every kind of error, and parameters that a server will not take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos.errors import HalosError
from halos.scoring import api
from halos.scoring.api import Api, Calls
from halos.scoring.client import Client
from halos.scoring.refusals import error_text, refused_parameter
from halos.scoring.settings import OpenAI, Server
from tests.scoring import api_server as S
from tests.scoring.api_server import ApiServer, Outcome
from tests.scoring.test_client import KEY, client, right, sums, talks, texts


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    S.skip_pauses(monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache.jsonl"


def error(body: Any, status: int = 422) -> Outcome:
    return Outcome(status, body=body if isinstance(body, str) else json.dumps(body))


# ---- the text of an error -----------------------------------------------------------------------------------------

FASTAPI = {"detail": [{"type": "missing", "loc": ["body", "lang"], "msg": "Field required", "input": {"a": "SECRET"}},
                      {"type": "int_type", "loc": ["body", "top_k"], "msg": "Input should be an integer"}]}  # fmt: skip
VLLM = {"error": {"message": "The prompt has 5000 tokens", "type": "BadRequestError", "param": None, "code": 400}}
OLD_VLLM = {"object": "error", "message": "The prompt has 5000 tokens", "type": "BadRequestError", "code": 400}
OPENROUTER = {"error": {"message": "Provider returned error", "code": 400,
                        "metadata": {"raw": json.dumps(VLLM), "provider_name": "P"}}}  # fmt: skip
PAGE = "<!DOCTYPE html><html><style>p {color: red}</style><body><h1>Bad</h1><p>No &amp; no</p></body></html>"


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (error(FASTAPI), "refused: 422 (the server says: lang: Field required; top_k: Input should be an integer)"),
        (error({"detail": "Not now"}), "refused: 422 (the server says: Not now)"),
        (error(VLLM, 400), "refused: 400 (the server says: The prompt has 5000 tokens)"),
        (error(OLD_VLLM, 400), "refused: 400 (the server says: The prompt has 5000 tokens)"),
        (error([VLLM], 400), "refused: 400 (the server says: The prompt has 5000 tokens)"),
        (error(OPENROUTER, 400), "refused: 400 (the server says: Provider returned error: The prompt has 5000 tokens)"),
        (error({"message": "Validation failed", "errors": [{"message": "too odd"}]}), "Validation failed: too odd)"),
        (error({"error": "Too odd", "error_type": "validation"}), "refused: 422 (the server says: Too odd)"),
        (error({"error": {"message": "No", "param": "tone", "code": {"x": 1}}}), "422 (the server says: tone: No)"),
        (error({"why": "odd"}), '422 (the server says: {"why": "odd"})'),
        (error("Just text,\n in two lines"), "refused: 422 (the server says: Just text, in two lines)"),
        (error(PAGE), "refused: 422 (the server says: Bad No & no)"),
        (error("", 500), None),
        (error({"detail": "No GPU left"}, 500), "server error 500 (the server says: No GPU left)"),
        (S.NO_CHOICES, "malformed answer (the server says: upstream failed)"),
        (S.HTML, "malformed answer (the server says: Sign in)"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_a_server_says_is_shown_whatever_its_form(
    cache: Path, caplog: pytest.LogCaptureFixture, outcome: Outcome, says: str | None
) -> None:
    with ApiServer(lambda content, number: outcome) as server:
        answers = client(server, cache).ask(talks("1 + 1", "2 + 2"))
    assert texts(answers) == [None, None]
    assert [says in message for message in caplog.messages if says] == [True] * (says is not None)  # once, not twice
    assert "SECRET" not in caplog.text


def test_a_long_text_is_shortened_and_no_secret_in_it_is_shown(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = f"Key {KEY} and upstream sk-proj-abcdefgh1234 and Bearer abc.def: " + "x " * 500
    with ApiServer(lambda content, number: error({"detail": [{"loc": ["header"], "msg": said}]})) as server:
        client(server, cache).ask(talks("1 + 1"))
    [message] = caplog.messages
    assert "header: Key [key] and upstream [key] and Bearer [key]" in message
    assert message.endswith("x ...)")
    assert len(message) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["message", "msg", "loc", "param", "detail", "raw", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_body_at_all_has_a_text(body: Any) -> None:
    text = error_text(body)
    assert isinstance(text, str)
    assert isinstance(error_text(json.dumps(body)), str)
    refused_parameter(text, ["seed", "x"])


def test_errors_within_errors_are_read_to_a_depth_only() -> None:
    body: Any = "end"
    for _ in range(900):
        body = {"error": body}
    assert error_text(body).startswith('{"error":')


# ---- parameters that a server will not take -----------------------------------------------------------------------


def openai_unknown(name: str, other: str) -> Outcome:
    message = f"Unsupported parameter: '{name}' is not supported with this model. Use '{other}' instead."
    body = {"message": message, "type": "invalid_request_error", "param": name, "code": "unsupported_parameter"}
    return error({"error": body}, 400)


def fastapi_unknown(name: str, other: str = "") -> Outcome:
    detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 1}]
    return error({"detail": detail})


def google_unknown(name: str, other: str = "") -> Outcome:
    message = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    return error([{"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}], 400)


def litellm_unknown(name: str, other: str = "") -> Outcome:
    message = f"UnsupportedParamsError: openai does not support parameters: ['{name}'], for model=m. To drop these, set"
    return error({"error": {"message": message, "type": "None", "param": "None", "code": "400"}}, 400)


UNKNOWN = [openai_unknown, fastapi_unknown, google_unknown, litellm_unknown]


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("wanted", ["max_tokens", "max_completion_tokens"])
def test_the_length_limit_goes_by_the_name_that_the_server_knows(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    wanted: str, unknown: Callable[[str, str], Outcome],
) -> None:  # fmt: skip
    """Elsewhere than at OpenAI the first name tried is max_tokens, at OpenAI it is the other."""
    (other,) = {"max_tokens", "max_completion_tokens"} - {wanted}
    with ApiServer(refuse=lambda body: unknown(other, wanted) if other in body else None) as server:
        monkeypatch.setattr(api, "OPENAI", server.base_url)
        url = None if wanted == "max_tokens" else server.base_url
        asker = Client(Api("m", Server(base_url=url), max_tokens=9), Calls(cache, concurrency=3))
        assert texts(asker.ask(talks(*sums(10)))) == right(sums(10))
        refused = [r for r in server.requests if other in r.body]
        assert 1 <= len(refused) <= 3  # those that were under way at one time
        assert texts(asker.ask(talks(*sums(5, 10)))) == right(sums(5, 10))  # remembered for the run
        assert server.count == 15 + len(refused)
        assert {r.body[wanted] for r in server.requests if r not in refused} == {9}
        kept = Client(Api("m", Server(base_url=url), max_tokens=9), Calls(cache)).ask(talks(*sums(15)))
        assert all(answer.cached for answer in kept)
    assert len([m for m in caplog.messages if f"{wanted} is sent from here on" in m]) == 1


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_a_seed_that_is_refused_is_sent_no_more_and_said_once(
    cache: Path, caplog: pytest.LogCaptureFixture, unknown: Callable[[str, str], Outcome]
) -> None:
    def refuse(body: dict[str, Any]) -> Outcome | None:
        return next((unknown(n, "max_completion_tokens") for n in ("seed", "max_tokens") if n in body), None)

    with ApiServer({"3 + 9": [S.NONSENSE]}, refuse=refuse) as server:
        answers = client(server, cache, concurrency=1).ask(talks(*sums(10)), lambda a: (a.text or "").isdigit())
        assert texts(answers) == right(sums(10))
        assert server.count == 2 + 1 + 10  # two refusals, and an answer of no use
    assert len([m for m in caplog.messages if "takes no such seed" in m]) == 1


TEMPERATURE = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."


@pytest.mark.parametrize(
    ("name", "says", "sentence"),
    [
        ("temperature", TEMPERATURE, r"temperature 0\.0 for m .*change temperature in its .*; null sends none"),
        ("temperature", "Input validation error: `temperature` must be strictly positive", "null sends none"),
        ("temperature", "`temperature` is deprecated for this model", "null sends none"),
        ("logprobs", "property 'logprobs' is unsupported", "which this annotator reads: change model, base_url"),
        ("top_logprobs", "top_logprobs must be at most 5", "which this annotator reads"),
        (
            "effort",
            "Unrecognized request argument supplied: effort",
            "refuses effort low .*correct extra_body in",
        ),
        ("effort", "Unknown value; effort must be one of high, higher", "correct extra_body in its"),
    ],
)
def test_a_refusal_that_changes_what_was_asked_for_is_the_users_to_answer(
    cache: Path, name: str, says: str, sentence: str
) -> None:
    with ApiServer(refuse=lambda body: S.refusal(400, says) if name in body else None) as server:
        asker = client(server, cache, concurrency=2, top_logprobs=9, extra_body={"effort": "low"})
        with pytest.raises(HalosError, match=sentence) as caught:
            asker.ask(talks(*sums(100)))
        assert server.count <= 2
    assert "\n" not in str(caught.value)
    assert re.escape(says[:20]) in re.escape(str(caught.value))


def test_both_names_of_the_length_limit_refused_end_the_run(cache: Path) -> None:
    def refuse(body: dict[str, Any]) -> Outcome | None:
        return next((fastapi_unknown(name) for name in ("max_tokens", "max_completion_tokens") if name in body), None)

    with ApiServer(refuse=refuse) as server, pytest.raises(HalosError, match="by both of its names: change model"):
        client(server, cache, concurrency=1).ask(talks(*sums(9)))
    assert server.count == 2


@pytest.mark.parametrize(
    "says",
    [
        "'max_tokens' is too large: 64. This model's maximum context length is 60 tokens and your request has 30",
        "The prompt speaks of a seed and of temperature, which our filter forbade",
        "max_tokens must be at most 7 for so long a prompt",
    ],
)
def test_an_error_about_one_prompt_stays_that_prompts(cache: Path, says: str) -> None:
    with ApiServer({"1 + 1": [S.refusal(400, says)]}) as server:
        answers = client(server, cache, concurrency=1).ask(talks("1 + 1", "2 + 2"))
        assert [(a.text, a.problem) for a in answers] == [(None, "refused: 400"), ("4", None)]
        assert server.count == 2
        assert {"max_tokens", "seed", "temperature"} <= set(server.requests[-1].body)


# ---- what is sent, and the key that it is kept by ------------------------------------------------------------------


def test_no_temperature_is_sent_where_it_is_null_and_further_fields_are(cache: Path) -> None:
    fields = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}, "logit_bias": {"5": -1}}
    with ApiServer() as server:
        client(server, cache, temperature=None, seed=None, extra_body=fields).ask(talks("1 + 1"))
        assert server.requests[0].body == {"model": "m", "messages": talks("1 + 1")[0], "max_tokens": 64, **fields}
        client(server, cache, temperature=None, seed=None, extra_body=fields).ask(talks("1 + 1"))
        assert server.count == 1
        client(server, cache, temperature=None, seed=None, extra_body=fields | {"reasoning_effort": "high"}).ask(
            talks("1 + 1")
        )
        assert server.count == 2


def test_answers_that_were_paid_for_before_there_were_further_fields_keep_their_keys() -> None:
    conversation = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1 é"}]
    local = Server(base_url="http://localhost:8000/v1/", seed=None)
    rated = OpenAI(model="m", base_url="http://h/v1", temperature=1)
    requests = [
        Api("m"),
        Api("gpt-4.1-mini", local, 0.5, 9, 5, True),
        Api(rated.model, rated, rated.temperature, rated.max_tokens),
    ]
    assert [request.key(conversation) for request in requests] == [
        "7757ed1721fd934a063d5581c4353601464e04d71d9e463fbac4e8ce6ed1a55c",
        "7ae9a7004d69730fe9a20d9bcdb97711a65bdc6672b50bfb7a93862b9fb8453e",
        "20638dfd093bbe158195b76d3fd27d0f083807fb0ea7101a1ceb7a92e829f625",
    ]
    assert Api("m", Server(extra_body={"a": 1})).key(conversation) != Api("m").key(conversation)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"extra_body": {"temperature": 1}}, "temperature cannot be in extra_body: use the settings beside it"),
        ({"extra_body": {"max_completion_tokens": 9}}, "max_completion_tokens cannot be in extra_body"),
        ({"extra_body": {"stream": True, "n": 2}}, "n and stream cannot be in extra_body: each request gets one"),
        ({"extra_body": {"day": date(2024, 7, 26)}}, "put quotes around dates"),
        ({"extra_body": {"a": float("nan")}}, "extra_body holds what JSON cannot"),
        ({"pattern": "Mark ("}, "is no regular expression"),
        ({"pattern": r"Mark \d+"}, r"has 0 groups: put exactly one pair of \( \)"),
        ({"pattern": r"(Mark|Score) (\d+)"}, "has 2 groups"),
        ({"scale": (10, 1)}, "10 is not below 1: give the lowest score first"),
    ],
    ids=str,
)
def test_settings_that_no_call_can_succeed_with_are_refused_when_they_are_read(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        OpenAI(model="m", **settings)


def test_numbers_as_keys_of_further_fields_are_sent_as_json_has_them(cache: Path) -> None:
    with ApiServer() as server:
        client(server, cache, extra_body={"logit_bias": {50256: -100}}).ask(talks("1 + 1"))
    assert server.requests[0].body["logit_bias"] == {"50256": -100}


def test_thoughts_that_leave_no_room_for_an_answer_are_cut_off_and_say_what_to_raise(
    cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spent = Outcome(text=S.NULL, finish_reason="length")
    with ApiServer(lambda content, number: spent) as server:
        (answer,) = client(server, cache, may_be_cut=True).ask(talks("1 + 1"))
    assert answer.problem == "cut off (raise max_tokens)"
    assert "1 answers were cut off at 64 tokens: raise max_tokens in its `openai:` settings" in capfd.readouterr().err
