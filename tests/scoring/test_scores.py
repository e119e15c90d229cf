"""Scores of responses: what a model's answer is worth, and labels by a server that misbehaves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos.data import feedback as F
from halos.errors import HalosError
from halos.online.label import label
from halos.scoring.api import Calls
from halos.scoring.asking import Rater
from halos.scoring.reading import read_score
from halos.scoring.settings import OpenAI
from halos.settings import dump
from tests.online.test_label import question, samples
from tests.scoring import api_server as S

KEY = "sk-test-labels-0123456789"


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 7", 7.0),
        ("7", 7.0),
        (" **6.5** ", 6.5),
        ("It is polite and right.\nScore: 9", 9.0),
        ("**Score:** 8", 8.0),
        ("score = 3", 3.0),
        ("Score: 4. On reflection, Score: 5", 5.0),
        ("Score: 7/10", 7.0),
        ("Rating: 7", 7.0),
        ("Grade = 7", 7.0),
        ("Score (1-10): 7", 7.0),
        ("**Score** [1 to 10]: **7**", 7.0),
        ("Score 1-10: 7", 7.0),
        ("Score：7", 7.0),
        ("Final score: 7 out of 10.", 7.0),
        ("Score: **7**/**10**", 7.0),
        ("Score: 7 - a good one, 3 points lost", 7.0),
        ("Score: 7\nMaximum score: 10", 7.0),
        ("7/10", 7.0),
        ("7 out of 10", 7.0),
        ("I would rate this response 7/10, as it is short.", 7.0),
        ("Polite, short, right.\n\n**7/10**", 7.0),
        ("[[7]]", 7.0),
        ("A good one. Rating: [[7]]", 7.0),
        ("Good: \\boxed{7}", 7.0),
        ("$\\boxed{\\text{7}}$", 7.0),
        ('{"score": 7}', 7.0),
        ('```json\n{"score": "7/10", "why": "near, but no score: 9"}\n```', 7.0),
        ('{"why": "short", "rating": 7}', 7.0),
        ("<score>7</score>", 7.0),
        ("Score: 7,5", 7.5),
        ("7,5", 7.5),
        ("Score: 7.25", 7.25),
        ("<think>Score: 3</think>Score: 7", 7.0),
        ("<think>Hm.</think> Score: 7 <think>Or Score: 3?", 7.0),
        ("It may be Score: 3.\n</think>\n\n7", 7.0),
        ("<reasoning>Score: 3</reasoning>\n[[7]]", 7.0),
        ("[THINK]Score: 3[/THINK]Score: 7", 7.0),
        ("<|channel|>analysis<|message|>Score: 3<|end|><|start|>assistant<|channel|>final<|message|>Score: 7", 7.0),
        ("<think>Score: 7", None),
        ("<Thinking>Score: 7</thinking>", None),
        ("Score: 7 or 8", None),
        ("Score: 7-8", None),
        ("Score: **7** to **8**", None),
        ("Score: 7, 8", None),
        ("7 or 8", None),
        ("Score: 5. No, Score: 7 or 8", None),
        ("Score: 70/100", None),
        ("Score: 4/5", None),
        ("Score: 70%", None),
        ("Score: 1,000", None),
        ("Score: 7.5.2", None),
        ("Score: 7th", None),
        ("Score: \u22121", None),
        ("Maximum score: 10", None),
        ("3/10 of its sentences are wrong.", None),
        ("There are 3 mistakes in it.", None),
        ("3 mistakes", None),
        ("Score: 11", None),
        ("Score: -1", None),
        ("Score: none", None),
        ("I scored 20 points in 1990: it was fun", None),
        ("", None),
    ],
)
def test_only_a_score_on_the_scale_is_one(answer: str, score: float | None) -> None:
    assert read_score(answer, 1, 10) == score


@pytest.mark.parametrize(
    ("answer", "pattern", "score"),
    [
        ("Punkte: 3, dann doch Punkte: 7", r"Punkte: (\S+)", 7.0),
        ("Note 7,5!", r"Note ([\d,]+)", 7.5),
        ("<think>Punkte: 3</think> keine", r"Punkte: (\d+)", None),
        ("Score: 7", r"Punkte: (\d+)", None),
        ("Punkte: viele", r"Punkte: (\w+)", None),
        ("Punkte: 77", r"Punkte: (\d+)", None),
        ("Punkte:", r"Punkte:(\d+)?", None),
    ],
)
def test_a_pattern_of_ones_own_alone_says_where_the_score_is(answer: str, pattern: str, score: float | None) -> None:
    assert read_score(answer, 1, 10, re.compile(pattern)) == score


@pytest.mark.parametrize("part", ["<think>", "score ", "score:", "score(", "[[", "7 ", "\n", "rate ", "</think>", "1"])
def test_an_answer_without_an_end_is_read_in_no_time(part: str) -> None:
    """Where time grew with the square of the length, this would take hours."""
    assert read_score(part * 100_000, 1, 10) is None


PIECES = ["Score", "**", ":", " ", "\n", "7", "10", "12", ".", ",", "/", "-", "or", "[[", "]]", "(", ")", "<think>",
          "</think>", "\\boxed{", "}", "out of", "%", '"', "{", "rate", "max ", "\u0663", "\ud83d"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_whatever_a_model_says_its_score_is_none_or_on_the_scale(pieces: list[str]) -> None:
    score = read_score("".join(pieces), 1, 10)
    assert score is None or 1 <= score <= 10


def grade(messages: S.Messages) -> str:
    """The number that the response is."""
    return "Score: " + re.findall(r"\d+", messages[-1]["content"])[-1]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    S.skip_pauses(monkeypatch)
    monkeypatch.setenv("THE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def run(
    folder: Path, server: S.ApiServer, texts: Sequence[list[str]], **settings: Any
) -> tuple[list[F.Feedback], dict[str, object]]:
    asked = OpenAI(model="m", base_url=server.base_url, key_variable="THE_KEY", **settings).model_dump(mode="json")
    content = {"labeller": "l", "kind": "openai", "openai": asked, "feedback": "binary", "threshold": 5.0}
    (folder / "l.yaml").write_text(dump(content))
    file = samples(folder / "s.jsonl", *texts)
    label(folder / "l.yaml", [file], [folder / "f.jsonl"], folder / "r.json", [], 1, 4, None)
    return list(F.read(folder / "f.jsonl")), json.loads((folder / "r.json").read_text())["files"][0]


def test_labels_are_right_under_all_faults_and_nothing_answered_is_asked_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Slow answers, 429, 500, nonsense and dropped connections; two responses that nothing helps are left out."""
    trouble = [S.rate_limited("0.01"), S.SERVER_ERROR, S.NONSENSE, S.DROPPED, S.DROPPED_MIDWAY, S.Outcome(delay=0.05)]
    texts = [["1", "9"], ["6", "5"], ["2"], ["8", "7", "3"]]

    def faults(content: str, nth: int) -> S.Outcome:
        response = int(re.findall(r"\d+", content)[-1])
        if response in (9, 2):
            return S.SERVER_ERROR if response == 9 else S.NONSENSE
        return trouble[response % len(trouble)] if nth == 1 else S.RIGHT

    with S.ApiServer(faults, grade) as server:
        records, counts = run(tmp_path, server, texts)
        assert [record.responses for record in records] == [["1"], ["6", "5"], ["8", "7", "3"]]
        assert [record.scores for record in records] == [[1], [6, 5], [8, 7, 3]]
        assert [record.desirable for record in records] == [[False], [True, True], [True, True, False]]
        assert counts["failed"] == {"not understood": 1, "server error 500": 1}
        assert counts["scored"] == 6

        before = server.contents
        server.faults = {}
        _, counts = run(tmp_path, server, texts)
        asked = server.contents - before
    assert sorted(content[-1] for content in asked.elements()) == ["2", "9"]
    assert (counts["scored"], counts["failed"]) == (8, {})
    printed = capfd.readouterr()
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in printed.out + printed.err + written


def test_the_question_holds_the_conversation_and_marks_the_response(tmp_path: Path) -> None:
    with S.ApiServer(answer=grade) as server:
        run(tmp_path, server, [["4"]])
        [request] = server.requests
    system, user = request.body["messages"]
    assert "from 1 to 10" in system["content"]
    assert question(0)[0]["content"] in user["content"]
    assert user["content"].endswith("# Response to rate\n\n4")


def test_a_labeller_reads_by_its_pattern_and_sends_its_fields(tmp_path: Path) -> None:
    fields = {"reasoning_effort": "low", "top_k": 1}
    with S.ApiServer(answer=lambda messages: grade(messages).replace("Score:", "Score: none. Punkte")) as server:
        records, _ = run(tmp_path, server, [["4", "6"]], pattern=r"Punkte (\d+)", extra_body=fields, temperature=None)
        assert [record.scores for record in records] == [[4, 6]]
        run(tmp_path, server, [["4", "6"]], pattern=r"P\w+ (\d+)", extra_body=fields, temperature=None)
        assert server.count == 2  # another reading of answers asks no more of them
        run(tmp_path, server, [["4", "6"]], pattern=r"P\w+ (\d+)", extra_body={"top_k": 2}, temperature=None)
        assert server.count == 4
    assert {name: server.requests[0].body[name] for name in fields} == fields
    assert "temperature" not in server.requests[0].body


def test_a_labellers_messages_name_its_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        S.ApiServer(lambda content, nth: S.CUT_OFF) as server,
        pytest.raises(HalosError, match=r"2 cut off \(raise max"),
    ):
        run(tmp_path, server, [["4", "6"]])
    assert "raise max_tokens in the `openai:` settings of labeller l" in capfd.readouterr().err
    with S.ApiServer(lambda content, nth: S.NONSENSE) as server, pytest.raises(HalosError, match="2 not understood"):
        run(tmp_path, server, [["4", "6"]])
    said = capfd.readouterr().err
    assert "ends in 'As a language model, I would rather not count.': see what the `openai:` settings of" in said
    refused = S.refusal(400, "Unsupported value: 'temperature' does not support 0")
    with (
        S.ApiServer(refuse=lambda body: refused) as server,
        pytest.raises(HalosError, match="change temperature in the `openai:` settings of labeller l; null sends none"),
    ):
        run(tmp_path, server, [["4", "6"]])


def test_tools_that_were_called_are_part_of_the_question(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}
    prompt = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
              {"role": "tool", "content": "2"}]  # fmt: skip
    with S.ApiServer(answer=grade) as server:
        settings = OpenAI(model="m", base_url=server.base_url, key_variable="THE_KEY")
        [score] = Rater("labeller l", settings, Calls(tmp_path / "c.jsonl")).score([prompt], ["It is 2"])
        [request] = server.requests
    assert score.value == 2
    assert f"[user]\n1 + 1?\n\n[assistant]\n{json.dumps(call)}\n\n[tool]\n2\n\n# Response to rate" in request.content
