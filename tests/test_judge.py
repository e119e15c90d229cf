"""Judging: what is counted, and that alpaca_eval's own row says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halos.config import dump
from halos.data import feedback as F
from halos.errors import HalosError
from halos.judge import judge
from halos.registry import VERIFIERS


@VERIFIERS.register("test_letters")
def letters(prompt: list[F.Turn], response: str) -> dict[str, float]:
    """`a`: share of a's; `end`: whether it ends in a full stop. The word boom makes it fail."""
    if "boom" in response:
        raise RuntimeError("boom")
    return {"a": response.count("a") / max(len(response), 1), "end": float(response.endswith("."))}


def record(question: str, target: str | None) -> F.Feedback:
    prompt = [{"role": "user", "content": question}]
    return F.Feedback(prompt, [target or "other"], "test", target=None if target is None else 0)


class Case:
    """A folder with a judge's inputs; `run` gives its output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "judged" / "letters.json"
        self.lines: list[str] = []
        self.records: list[F.Feedback] = []

    def add(self, question: str, target: str | None, *responses: str) -> F.Feedback:
        self.records.append(record(question, target))
        for i, response in enumerate(responses):
            self.sample(self.records[-1].prompt_id, i, response)
        return self.records[-1]

    def sample(self, prompt_id: str, sample: int, response: str) -> None:
        row = {"prompt_id": prompt_id, "prompt": [], "response": response, "sample": sample, "finish_reason": "stop"}
        self.lines.append(json.dumps(row))

    def run(self, **changes: Any) -> dict[str, Any]:
        content = {"judge": "letters", "kind": "verifier", "verifier": "test_letters", "prompts": "p",
                   "baseline": "target", "tie_margin": 0.0, "plugins": {}}  # fmt: skip
        (self.folder / "judge.yaml").write_text(dump(content | changes))
        (self.folder / "samples.jsonl").write_text("".join(line + "\n" for line in self.lines))
        F.write(self.records, self.folder / "test.parquet")
        judge(self.folder / "judge.yaml", self.folder / "samples.jsonl", self.folder / "test.parquet", self.output)
        result: dict[str, Any] = json.loads(self.output.read_text())
        return result


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_counts_and_win_rate_are_those_worked_by_hand_and_those_of_alpaca_eval(case: Case) -> None:
    case.add("q1", "b.", "aa")  # 1 and 0 against 0 and 1: .5 each, a tie
    case.add("q2", "bb", "aa")  # win
    case.add("q3", "bb", "a.")  # win
    case.add("q4", "a.", "bb")  # loss
    result = case.run()
    assert [a["preference"] for a in result["annotations"]] == [1.5, 2.0, 2.0, 1.0]
    assert [result[k] for k in ("n", "wins", "losses", "ties", "failures", "not_judged")] == [4, 2, 1, 1, 0, 0]
    assert result["win_rate"] == pytest.approx(2.5 / 4)
    # standard error of the mean of (.5, 1, 1, 0): sqrt(sum of squared deviations / 3 / 4)
    assert result["standard_error"] == pytest.approx((0.6875 / 3 / 4) ** 0.5)
    row = result["leaderboard"]
    assert (row["win_rate"], row["n_wins"], row["n_wins_base"], row["n_draws"], row["n_total"]) == (62.5, 2, 1, 1, 4)
    assert result["scores"]["candidate"] == pytest.approx({"mean": 0.4375, "a": 0.625, "end": 0.25})
    assert result["scores"]["baseline"] == pytest.approx({"mean": 0.3125, "a": 0.125, "end": 0.5})
    assert result["mean_length"] == {"candidate": 2.0, "baseline": 2.0}
    assert result["annotations"][2]["criteria"] == {"a": 0.5, "end": 1.0}
    assert result["annotations"][2]["candidate_score"] == 0.75


def test_identical_responses_are_a_tie_and_keep_their_scores(case: Case) -> None:
    case.add("q1", "aa", "aa")
    case.add("q2", "bb", "aa")
    result = case.run()
    assert (result["ties"], result["wins"]) == (1, 1)
    assert result["annotations"][0]["candidate_score"] == result["annotations"][0]["baseline_score"] == 0.5


def test_scores_within_the_margin_are_a_tie(case: Case) -> None:
    case.add("q1", "aaabbbbbbb", "aaaabbbbbb")  # .4 against .3 in one of two criteria
    assert case.run(tie_margin=0.05)["ties"] == 1
    assert case.run(tie_margin=0.04)["wins"] == 1


def test_every_sample_counts_even_when_texts_repeat(case: Case) -> None:
    for question in ("q1", "q2"):
        case.add(question, "bb", "aa", "aa", "bb", "aa")
    result = case.run()
    assert (result["n"], result["wins"], result["ties"], result["leaderboard"]["n_total"]) == (8, 6, 2, 8)
    assert [(a["sample"], a["preference"]) for a in result["annotations"][:4]] == [(0, 2), (1, 2), (2, 1.5), (3, 2)]


def test_order_of_the_samples_is_kept_beyond_one_chunk_of_alpaca_eval(case: Case) -> None:
    for i in range(150):
        case.add(f"q{i}", "b", "a" if i % 3 else "b.")
    result = case.run()
    assert [a["prompt_id"] for a in result["annotations"]] == [r.prompt_id for r in case.records]
    assert result["n"] == 150


def test_a_failed_verifier_decides_nothing_and_is_counted(case: Case) -> None:
    case.add("q1", "bb", "boom", "aa")
    case.add("q2", "boom", "aa")
    result = case.run()
    assert [result[k] for k in ("n", "wins", "failures", "win_rate")] == [1, 1, 2, 1.0]
    assert [a["preference"] for a in result["annotations"]] == [None, 2.0, None]
    assert result["standard_error"] is None  # one comparison has none
    assert result["annotations"][0]["candidate_score"] is None


def test_prompts_without_a_target_are_counted_as_not_judged(case: Case) -> None:
    case.add("q1", None, "aa", "aa")
    case.add("q2", "bb", "aa")
    result = case.run()
    assert (result["n"], result["not_judged"]) == (1, 2)


def test_the_same_input_gives_the_same_bytes_and_no_other_file(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import alpaca_eval

    def files(folder: Path) -> set[Path]:
        return {p for p in folder.rglob("*") if "__pycache__" not in p.parts}

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    case.add("q1", "bb", "aa", "ba")
    case.run()
    first, package = case.output.read_bytes(), files(Path(alpaca_eval.__file__).parent)
    case.run()
    assert case.output.read_bytes() == first
    assert files(Path(alpaca_eval.__file__).parent) == package
    assert files(home) == set()
    assert list(case.output.parent.iterdir()) == [case.output]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "line 2 is not a sample"),
        ('{"prompt_id": "x", ', "line 2 is not a sample"),
        ("[1]", "line 2 is not a sample"),
        ('{"prompt_id": "x", "sample": 0}', "line 2 is not a sample .*response"),
        ('{"prompt_id": "x", "sample": 0, "response": null}', "response is not text"),
        ('{"prompt_id": "x", "sample": 0, "response": "a"}', "prompt x is not in"),
    ],
)
def test_a_malformed_or_foreign_sample_is_refused(case: Case, line: str, says: str) -> None:
    case.add("q1", "bb", "aa")
    case.lines.append(line)
    with pytest.raises(HalosError, match=says):
        case.run()
    assert not case.output.exists()


def test_a_sample_that_is_there_twice_is_refused(case: Case) -> None:
    prompt_id = case.add("q1", "bb", "aa").prompt_id
    case.sample(prompt_id, 0, "ab")
    with pytest.raises(HalosError, match="twice"):
        case.run()


def test_nothing_to_judge_is_refused(case: Case) -> None:
    with pytest.raises(HalosError, match="holds no samples"):
        case.run()
    case.add("q1", None, "aa")
    with pytest.raises(HalosError, match="has a target"):
        case.run()
    case.add("q2", "bb", "boom")
    with pytest.raises(HalosError, match="failed on all"):
        case.run()


def test_unknown_kinds_and_verifiers_are_named(case: Case) -> None:
    case.add("q1", "bb", "aa")
    with pytest.raises(HalosError, match=r"unknown kind 'verifyer'.*verifier"):
        case.run(kind="verifyer")
    with pytest.raises(HalosError, match=r"unknown verifier 'test_letter'.*test_letters"):
        case.run(verifier="test_letter")
