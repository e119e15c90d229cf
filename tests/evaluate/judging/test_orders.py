"""A judge that is asked in both orders, and again: what becomes of its biases, and that the report finds them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from halos.data.feedback import prompt_id
from halos.errors import HalosError
from halos.evaluate.judging.comparisons import Comparison
from halos.evaluate.judging.judgement import Judgement, agreed
from halos.report import tables
from tests.evaluate.judging.cases import Case
from tests.evaluate.judging.test_pairwise import add_pairs, asking, longer, shown
from tests.report.conftest import write
from tests.scoring import api_server as S
from tests.scoring.api_server import ApiServer, Messages, Outcome

pytestmark = pytest.mark.usefixtures("local_server")
N = 240


def chance(text: str) -> float:
    """A number from 0 to 1, drawn by a hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def first_of(share: float) -> Any:
    """A judge that sees nothing but the order, and prefers the first response with this probability."""
    return lambda messages: f"Verdict: {'A' if chance(messages[-1]['content']) < share else 'B'}"


def longer_of(share: float) -> Any:
    """A judge that prefers the longer response with this probability, wherever it is shown."""

    def answer(messages: Messages) -> str:
        texts = shown(messages[-1]["content"])
        is_long = chance("/".join(sorted(texts))) < share
        first_is_longer = len(texts[0]) > len(texts[1])
        return f"Verdict: {'A' if first_is_longer == is_long else 'B'}"

    return answer


def questions(n: int, candidate_first: bool | None = None) -> list[str]:
    """Questions, if wanted those alone in whose comparison a judge sees the candidate's response first, or last."""
    found, i = [], 0
    while len(found) < n:
        text, i = f"question {i}", i + 1
        id_ = prompt_id([{"role": "user", "content": text}])
        comparison = Comparison(id_, 0, [], "", "", (0, 0), "stop")
        if candidate_first in (None, comparison.candidate_first):
            found.append(text)
    return found


def add(case: Case, texts: list[str]) -> None:
    """Responses of different lengths: every second is longer than its baseline."""
    for i, text in enumerate(texts):
        case.add(text, "b" * (20 + i), "a" * (20 + i + (7, -7)[i % 2]))


def trust(case: Case, root: Path) -> pd.DataFrame:
    """The table of a grid whose only cell has the case's judgement, by measure."""
    config, results = write(root, methods=("sft",), seeds=(1,), judges=("letters",), tasks=(), compare=None)
    (results / "runs/toy/tiny/sft/seed1/judged/letters.json").write_bytes(case.output.read_bytes())
    tables.make(config, results=results, output=root / "tables")
    assert "How far to trust the judges" in (root / "tables/trust.md").read_text()
    return pd.read_csv(root / "tables/trust.csv").set_index("measure")


def holds(frame: pd.DataFrame, measure: str, value: float) -> bool:
    return bool(frame.loc[measure, "low"] <= value <= frame.loc[measure, "high"])


def test_a_preference_for_the_first_response_is_found_and_changes_no_win_rate(case: Case, tmp_path: Path) -> None:
    add(case, questions(N, candidate_first=True))  # an order that the judge's bias would turn into wins
    with ApiServer(answer=first_of(0.7)) as server:
        once = case.run(**asking(server))
        assert once["win_rate"] > 0.62
        case.output = tmp_path / "both" / "letters.json"
        both = case.run(**asking(server), both_orders=True)
    # with the bias .7 in either order, each side wins .7 * .3 of all comparisons, and the rest are ties
    assert abs(both["win_rate"] - 0.5) < 2.5 * (0.42 / 4 / N) ** 0.5
    assert both["ties"] == pytest.approx(0.58 * N, abs=2.5 * (0.58 * 0.42 * N) ** 0.5)
    found = trust(case, tmp_path / "tree")
    assert holds(found, "prefers_first", 0.7)
    assert not holds(found, "prefers_first", 0.5)
    assert holds(found, "flips", 0.58)
    assert found.loc["prefers_first", "n"] == 2 * N
    assert holds(found, "prefers_longer", 0.5)


def test_a_preference_for_the_longer_response_is_found(case: Case, tmp_path: Path) -> None:
    add(case, questions(N))
    with ApiServer(answer=longer_of(0.8)) as server:
        result = case.run(**asking(server), both_orders=True)
    assert result["ties"] == 0  # it sees no order
    found = trust(case, tmp_path / "tree")
    assert holds(found, "prefers_longer", 0.8)
    assert not holds(found, "prefers_longer", 0.7)
    assert holds(found, "prefers_first", 0.5)
    assert found.loc["flips", "value"] == 0


def test_a_judge_of_nothing_but_the_order_makes_ties_alone(case: Case, tmp_path: Path) -> None:
    add(case, questions(20))
    with ApiServer(answer=first_of(1.0)) as server:
        result = case.run(**asking(server), both_orders=True)
        assert server.count == 40
    assert [result[k] for k in ("wins", "losses", "ties", "win_rate")] == [0, 0, 20, 0.5]
    assert result["question"]["both_orders"] is True
    found = trust(case, tmp_path / "tree")
    assert found.loc[["prefers_first", "flips"], "value"].tolist() == [1.0, 1.0]
    assert "prefers_longer" not in found.index  # there is no verdict for either


def test_both_orders_agree_with_a_judge_that_sees_none(case: Case, tmp_path: Path) -> None:
    add_pairs(case, 30)
    with ApiServer(answer=longer) as server:
        once = case.run(**asking(server))
        case.output = tmp_path / "both" / "letters.json"
        both = case.run(**asking(server), both_orders=True)
    for mine, other in zip(both["annotations"], once["annotations"], strict=True):
        assert {q["shown_first"] for q in mine["asked"]} == {"candidate", "baseline"}
        assert {**mine, "asked": []} == other
    assert both["usage"]["prompt_tokens"] == 2 * once["usage"]["prompt_tokens"]


def test_a_comparison_with_one_missing_answer_fails(case: Case) -> None:
    add(case, questions(20))

    def fault(content: str, number: int) -> Outcome:
        first, _ = shown(content)
        return S.SERVER_ERROR if content.startswith("Q: question 3\n") and first.startswith("b") else S.RIGHT

    with ApiServer(fault, longer) as server:
        result = case.run(**asking(server), both_orders=True)
    failed = [a for a in result["annotations"] if a["preference"] is None]
    assert [a["problem"] for a in failed] == ["server error 500"]
    assert sorted(map(str, [q["preference"] for q in failed[0]["asked"]]))[-1] == "None"


def test_questions_are_asked_again_with_other_seeds_and_change_no_result(case: Case, tmp_path: Path) -> None:
    add(case, questions(N))
    with ApiServer(answer=longer) as server:
        once = case.run(**asking(server))
    case.output = tmp_path / "again" / "letters.json"

    def other(content: str, number: int) -> Outcome:
        """The opposite verdict, for three in ten of what is asked a second time."""
        right = longer([{"content": content}])
        said = right if number == 0 or chance(content) < 0.7 else right.translate(str.maketrans("AB", "BA"))
        return Outcome(text=f"Verdict: {said[-1]}")

    with ApiServer(other) as server:
        again = case.run(**asking(server), ask_again=150)
        assert server.count == N + 150
        assert Counter(request.body["seed"] for request in server.requests) == {0: N, 3: 150}
        case.run(**asking(server), ask_again=150)
        assert server.count == N + 150  # all answers were kept
    assert again["win_rate"] == once["win_rate"]
    assert sum(bool(a["asked"]) for a in again["annotations"]) == 150
    found = trust(case, tmp_path / "tree")
    assert holds(found, "same_again", 0.7)
    assert found.loc["same_again", "n"] == 150
    assert found.loc["prefers_first", "n"] == N  # what is asked again does not count twice


def test_a_server_that_takes_no_seed_is_asked_again_all_the_same(case: Case) -> None:
    add(case, questions(5))
    with ApiServer(answer=longer) as server:
        result = case.run(**asking(server, seed=None), ask_again=9)
        assert server.count == 10
    assert all(len(a["asked"]) == 2 for a in result["annotations"])


def test_what_answers_in_both_orders_are_worth() -> None:
    assert agreed([2.0, 2.0]) == 2.0
    assert agreed([1.9, 1.7]) == pytest.approx(1.8)
    assert agreed([1.9, 1.4]) == agreed([2.0, 1.5]) == agreed([1.5, 1.5]) == 1.5
    assert agreed([1.0, None]) is None


def test_two_methods_are_judged_by_the_verb_with_the_other_ones_samples(case: Case, tmp_path: Path) -> None:
    """As rule ask_pair calls it: both methods' samples of all prompts, of which a hash draws the same for all."""
    records = [case.add(text, None, "a" * (20 + i)) for i, text in enumerate(questions(30))]
    theirs = Case(tmp_path / "theirs")
    theirs.folder.mkdir()
    for i, record in enumerate(records):
        theirs.sample(record.prompt_id, 0, "b" * (20 + i + (3, -3)[i % 2]))
    other = theirs.folder / "samples.jsonl"
    other.write_text("".join(line + "\n" for line in theirs.lines))
    case.output = tmp_path / "judged/letters/against/sft.json"
    entry = {"baseline": {"method": "sft", "seed": "same"}, "prompts_per_pair": 12}
    with ApiServer(answer=longer) as server:
        result = case.run((), (other,), **asking(server), **entry)
        assert server.count == 12
    assert result["baseline"] == "sft"
    assert result["n"] == 12
    assert result["wins"] + result["losses"] == 12
    kept = {a["prompt_id"] for a in result["annotations"]}
    assert case.output.with_name("sft.answers.jsonl").is_file()
    case.lines.reverse()
    case.output = tmp_path / "judged/letters/against/dpo.json"
    with ApiServer(answer=longer) as server:
        assert {a["prompt_id"] for a in case.run((), (other,), **asking(server), **entry)["annotations"]} == kept
    assert Judgement.read(case.output).values("half") != [0.5] * 12


def test_a_model_that_changes_within_a_judgement_or_between_two_is_an_error(case: Case, tmp_path: Path) -> None:
    add(case, questions(6))
    with ApiServer(answer=longer) as server:
        server.model = "judge-2026-01-01"
        result = case.run(**asking(server))
        assert result["question"]["answered_by"] == "judge-2026-01-01"
        add(case, ["another question"])
        server.model = "judge-2026-06-01"
        said = r"several models \(6 of judge-2026-01-01, 1 of judge-2026-06-01\): delete \S+letters.answers.jsonl"
        for _ in range(2):  # also from the cache alone
            with pytest.raises(HalosError, match=said):
                case.run(**asking(server))
        kept = case.output.with_name("letters.answers.jsonl")
        rows = [json.loads(line) for line in kept.read_text().splitlines()]
        kept.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "model"}) + "\n" for row in rows[:6]))
        assert case.run(**asking(server))["question"]["answered_by"] == "judge-2026-06-01"  # older lines name none
    config, results = write(
        tmp_path / "tree", methods=("sft",), seeds=(1, 2), judges=("letters",), tasks=(), compare=None
    )
    files = [results / f"runs/toy/tiny/sft/seed{seed}/judged/letters.json" for seed in (1, 2)]
    for name in ("judge-2026-06-01", None):
        for file, model in zip(files, ("judge-2026-06-01", name), strict=True):
            content = json.loads(case.output.read_text())
            content["question"] = {**content["question"], "answered_by": model}
            file.write_text(json.dumps(content))
        tables.make(config, results=results, output=tmp_path / "tables")
    files[1].write_text(case.output.read_text().replace("judge-2026-06-01", "judge-2027"))
    with pytest.raises(
        HalosError, match=r"judge letters was not the same model throughout: judge-2026-06-01 .*, and judge-2027"
    ):
        tables.make(config, results=results, output=tmp_path / "tables")


def test_a_server_that_names_no_model_is_taken_as_it_is(case: Case) -> None:
    add(case, questions(3))
    with ApiServer(answer=longer) as server:
        server.model = None
        assert "answered_by" not in case.run(**asking(server))["question"]


def test_settings_of_questions_are_refused_where_nothing_is_asked(case: Case) -> None:
    case.add("question", "b", "a")
    for name, value in (("both_orders", True), ("ask_again", 3)):
        with pytest.raises(HalosError, match=f"a judge of kind verifier has no {name}: take that out"):
            case.run(**{name: value})
