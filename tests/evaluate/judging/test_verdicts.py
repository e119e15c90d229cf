"""Verdicts of judges that are asked: in which forms they are understood, and what their requests hold."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from halos.errors import HalosError
from halos.evaluate.judging.pairwise import PairwiseAnnotator
from halos.evaluate.judging.settings import Annotator
from halos.evaluate.judging.verdicts import read_verdict
from halos.scoring.api import Calls
from tests.evaluate.judging.cases import Case
from tests.evaluate.judging.test_pairwise import PROMPT, add_pairs, asking, longer
from tests.scoring import api_server as S
from tests.scoring.api_server import ApiServer, Messages, Outcome

A, B, TIE, NONE = 1.0, 2.0, 1.5, math.nan

pytestmark = pytest.mark.usefixtures("local_server")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Verdict: A", A),
        ("B is short.\n\n**Verdict: B**", B),
        ("verdict = tie", TIE),
        ("Verdict: A at first, but then\nVerdict: B.", B),
        ("A", A),
        (" `B`. ", B),
        ("A is better", NONE),
        ("Verdict: Both", NONE),
        ("Verdict: Apples", NONE),
        ("", NONE),
        ("Both are fine. [[A]]", A),
        ("[[B]]", B),
        ("[[C]]", TIE),
        ("My final verdict is: [[A>>B]]", A),
        ("[[B > A]]", B),
        ("[[A=B]]", TIE),
        ("Verdict: A<B", B),
        ("Output (a)", A),
        ("It is short.\n\n**Output (b)**", B),
        ("Verdict: Response B", B),
        ("Winner: Assistant A, as it is short", A),
        ('{"verdict": "B"}', B),
        ('{"why": "short", "winner": "tie"}', TIE),
        ("<verdict>A</verdict>", A),
        ("So \\boxed{B}", B),
        ("Verdict: a tie", TIE),
        ("<think>Verdict: A</think>Verdict: B", B),
        ("Verdict: A, or not?</think>\n\n[[B]]", B),
        ("<reasoning>Verdict: A</reasoning> B", B),
        ("<think>Verdict: A", NONE),
        ("<think>[[A]]</think>", NONE),
        ("Verdict: A or B", NONE),
        ("Verdict: A/B", NONE),
        ("Verdict: A and Response B", NONE),
        ("Verdict: A. No, Verdict: A or B", NONE),
        ("Verdict: a bit better is B", NONE),
        ("Verdict: A's is better", NONE),
        ("Output (a) is better in part", NONE),
        ("Verdict: C", NONE),
    ],
)
def test_a_verdict_is_read_and_never_guessed(answer: str, verdict: float) -> None:
    assert read_verdict(answer) == pytest.approx([verdict], nan_ok=True)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("Urteil: A; dann Urteil: b", B), ("Urteil: tie", TIE), ("<think>Urteil: A</think>", NONE), ("Verdict: A", NONE),
     ("Urteil: keins", NONE)],
)  # fmt: skip
def test_a_pattern_of_ones_own_alone_says_where_the_verdict_is(answer: str, verdict: float) -> None:
    assert read_verdict(answer, re.compile(r"Urteil: (\w+)")) == pytest.approx([verdict], nan_ok=True)


@pytest.mark.parametrize("part", ["<think>", "verdict ", "verdict:", "[[", "a or ", "\n", "output ", "a>"])
def test_an_answer_without_an_end_is_read_in_no_time(part: str) -> None:
    """Where time grew with the square of the length, this would take hours."""
    assert math.isnan(read_verdict(part * 100_000)[0])


def test_a_judge_reads_by_its_pattern_and_its_fields_are_sent_and_kept(case: Case) -> None:
    def answer(messages: Messages) -> str:
        return "<think>Verdict: A, Urteil: A</think>" + longer(messages).replace("Verdict", "Verdict: B. Urteil")

    add_pairs(case, 9)
    fields = {"reasoning_effort": "low", "guided_choice": ["A", "B"]}
    with ApiServer(answer=answer) as server:
        result = case.run(**asking(server, pattern=r"Urteil: (\w+)", extra_body=fields, temperature=None))
    assert [result[k] for k in ("wins", "losses", "ties", "failures")] == [3, 3, 3, 0]
    assert {name: server.requests[0].body[name] for name in fields} == fields
    assert "temperature" not in server.requests[0].body
    assert (result["question"]["extra_body"], result["question"]["temperature"]) == (fields, None)


def test_thoughts_are_kept_from_alpaca_evals_own_readers_of_text(case: Case) -> None:
    add_pairs(case, 6)
    with ApiServer(answer=lambda messages: "<think>9 1?\n</think>\n\n1 9\nIt is short.") as server:
        result = case.run(**asking(server, model=None, prompt=None, annotator="lmsys_gpt4"))
    second = [2.0 if a["shown_first"] == "baseline" else 1.0 for a in result["annotations"]]
    assert [a["preference"] for a in result["annotations"]] == second
    assert result["annotations"][0]["answer"].startswith("<think>")  # kept as it was said
    with (
        ApiServer(lambda content, number: Outcome(text="<think>9 1?", finish_reason="length")) as server,
        pytest.raises(HalosError, match=r"6 cut off \(raise max_tokens\)"),
    ):
        case.run(**asking(server, model="thinker", prompt=None, annotator="lmsys_gpt4"))


def test_a_judges_messages_name_its_settings(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    add_pairs(case, 3)
    with (
        ApiServer(lambda content, number: S.CUT_OFF) as server,
        pytest.raises(HalosError, match=r"3 of 3 comparisons \(3 cut off \(raise max_tokens\)\)"),
    ):
        case.run(**asking(server, max_tokens=7))
    said = "3 answers were cut off at 7 tokens: raise max_tokens in the `openai:` settings of judge letters"
    assert said in capfd.readouterr().err
    with (
        ApiServer(refuse=lambda body: S.refusal(422, "temperature: must be > 0")) as server,
        pytest.raises(HalosError, match="change temperature in the `openai:` settings of judge letters; null sends"),
    ):
        case.run(**asking(server))
    with (
        ApiServer(refuse=lambda body: S.refusal(400, "logprobs is not supported")) as server,
        pytest.raises(
            HalosError, match=r"refuses logprobs True .*change model, base_url or annotator in the `openai:`"
        ),
    ):
        case.run(**asking(server, model=None, prompt=None, annotator="weighted_alpaca_eval_gpt4_turbo"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pattern": "no group"}, "has 0 groups"),
        ({"temperature": "hot"}, "'hot' is none of default, null and a number from 0 on"),
        ({"temperature": -1}, "-1 is none of default"),
        ({"temperature": True}, "True is none of default"),
        ({"extra_body": {"messages": []}}, "messages cannot be in extra_body"),
        ({"prompt": None, "annotator": "lmsys_gpt4", "pattern": "(A)"}, "an annotator reads answers itself"),
    ],
)
def test_settings_of_a_judge_that_cannot_work_are_refused_when_they_are_read(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Annotator(**{"model": "m", "prompt": PROMPT} | changes)


@pytest.mark.parametrize("temperature", ["1e-1", 0, 0.1, None, "default"])
def test_a_judges_temperature_is_a_number_or_null_or_the_annotators_own(temperature: Any, case: Case) -> None:
    add_pairs(case, 1)
    own = {"model": None, "prompt": None, "annotator": "lmsys_gpt4"}
    with ApiServer(lambda content, number: Outcome(text="9 1")) as server:
        case.run(**asking(server, temperature=temperature, **own))
    sent = {"1e-1": 0.1, "default": 0.2}.get(str(temperature), temperature)
    assert server.requests[0].body.get("temperature") == sent


def test_every_annotator_of_alpaca_eval_that_is_accepted_can_be_asked(tmp_path: Path) -> None:
    import alpaca_eval

    opened = []
    for folder in sorted(Path(alpaca_eval.__file__).with_name("evaluators_configs").iterdir()):
        try:
            settings = Annotator(annotator=folder.name, base_url="http://localhost:1/v1")
        except ValueError:
            continue
        opened.append(PairwiseAnnotator("judge j", settings, 0.0, Calls(tmp_path / "cache.jsonl")).question.model)
    assert {"gpt-4", "gpt-4-1106-preview", "gpt-3.5-turbo-1106"} <= set(opened)
