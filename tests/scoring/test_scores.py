"""Scores of responses: what a model's answer is worth, and labels by a server that misbehaves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from halos.data import feedback as F
from halos.online.label import label
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


def grade(messages: S.Messages) -> str:
    """The number that the response is."""
    return "Score: " + re.findall(r"\d+", messages[-1]["content"])[-1]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    S.skip_pauses(monkeypatch)
    monkeypatch.setenv("THE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def run(folder: Path, server: S.ApiServer, texts: Sequence[list[str]]) -> tuple[list[F.Feedback], dict[str, object]]:
    asked = OpenAI(model="m", base_url=server.base_url, key_variable="THE_KEY").model_dump(mode="json")
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
        assert [record.desirable for record in records] == [[False], [True, False], [True, True, False]]
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
