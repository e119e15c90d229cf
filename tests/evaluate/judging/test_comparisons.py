"""Comparisons: the baseline's responses, where texts are cut, and the order in which they are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halos.data import feedback as F
from halos.errors import HalosError
from halos.evaluate.judging.baseline import open_baseline
from halos.evaluate.judging.comparisons import Comparison, compare
from halos.evaluate.judging.settings import FromCell, FromFile
from halos.sample.samples import Sample
from halos.scoring.sentences import cut_to_sentence


def question(text: str) -> list[F.Turn]:
    return [{"role": "user", "content": text}]


def written(path: Path, rows: list[Any]) -> Path:
    lines = (row.model_dump(mode="json") if isinstance(row, Sample) else row for row in rows)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def row(prompt: list[F.Turn], response: str, sample: int = 0) -> Sample:
    return Sample(prompt_id=F.prompt_id(prompt), prompt=prompt, response=response, sample=sample)


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    records = [F.Feedback(question(text), ["target of " + text], "test", target=0) for text in ("q1", "q2", "q3 ")]
    F.write(records, tmp_path / "test.parquet")
    return tmp_path / "test.parquet"


ROWS = [row(question(text), "mine") for text in ("q1", "q2", "q3 ")]


@pytest.mark.parametrize("lines", [False, True], ids=["a list", "lines"])
def test_outputs_of_a_file_are_found_by_their_instruction(tmp_path: Path, feedback: Path, lines: bool) -> None:
    outputs = [{"instruction": "q3", "output": "three"}, {"instruction": "q0", "output": "zero"},
               {"instruction": "q1", "output": "one"}, {"instruction": "q1", "output": "again"}]  # fmt: skip
    file = tmp_path / "outputs.json"
    if lines:
        written(file, outputs)
    else:
        file.write_text(json.dumps(outputs))
    baseline = open_baseline(FromFile(file="outputs.json"), [file])
    comparisons = compare(ROWS, feedback, tmp_path, baseline)
    assert [(c.instruction, c.baseline, c.position) for c in comparisons] == [("q1", "one", 2), ("q3 ", "three", 0)]
    assert baseline.size == 4


def test_samples_of_a_cell_are_found_by_prompt_and_number(tmp_path: Path, feedback: Path) -> None:
    theirs = written(tmp_path / "theirs.jsonl", [
        row(question("q2"), "second", 1), row(question("q2"), "first", 0), row(question("q1"), "other", 1),
    ])  # fmt: skip
    rows = [row(question("q2"), "mine", 0), row(question("q2"), "mine", 1), row(question("q1"), "mine", 0)]
    comparisons = compare(rows, feedback, tmp_path, open_baseline(FromCell(method="sft"), [theirs]))
    assert [(c.sample, c.baseline) for c in comparisons] == [(0, "first"), (1, "second")]


def test_a_baseline_and_its_file_come_together(tmp_path: Path, feedback: Path) -> None:
    with pytest.raises(HalosError, match="--baseline takes none"):
        open_baseline("target", [tmp_path])
    with pytest.raises(HalosError, match=r"the baseline is sft \(seed 2\): --baseline needs its file"):
        open_baseline(FromCell(method="sft", seed=2), [])
    with pytest.raises(HalosError, match=r"there is no .*outputs\.json"):
        open_baseline(FromFile(file="outputs.json"), [tmp_path / "outputs.json"])
    (tmp_path / "outputs.json").write_text('[{"instruction": "q1"}]')
    with pytest.raises(HalosError, match="give each an instruction and an output"):
        open_baseline(FromFile(file="outputs.json"), [tmp_path / "outputs.json"])
    (tmp_path / "outputs.json").write_text('[{"instruction": "q9", "output": "nine"}]')
    baseline = open_baseline(FromFile(file="outputs.json"), [tmp_path / "outputs.json"])
    with pytest.raises(HalosError, match=r"has a response of the baseline, the outputs of outputs\.json"):
        compare(ROWS, feedback, tmp_path, baseline)


def test_both_responses_are_cut_and_their_whole_lengths_are_kept(tmp_path: Path, feedback: Path) -> None:
    rows = [row(question("q1"), "Yes. And then it")]
    (cut,) = compare(rows, feedback, tmp_path, open_baseline("target", []), whole_sentences=True)
    assert (cut.candidate, cut.baseline, cut.lengths) == ("Yes.", "target of q1", (16, 12))
    (whole,) = compare(rows, feedback, tmp_path, open_baseline("target", []))
    assert whole.candidate == "Yes. And then it"


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("One. Two! Thr", "One. Two!"),
        ("One. Two", "One."),
        ("He said \"yes.\" Then", 'He said "yes."'),
        ("Version 1.5 is out. It costs 3.5", "Version 1.5 is out."),
        ("Do this.\n1. Wash\n2. Dry", "Do this."),
        ("no sentence ends here", "no sentence ends here"),
        ("1. Wash", "1. Wash"),
        ("はい。そし", "はい。"),
        ("Whole.", "Whole."),
        ("", ""),
    ],
)  # fmt: skip
def test_a_text_is_cut_after_its_last_full_sentence(text: str, cut: str) -> None:
    assert cut_to_sentence(text) == cut


def comparison(prompt_id: str, sample: int, candidate: str = "a", prompt: list[F.Turn] | None = None) -> Comparison:
    return Comparison(prompt_id, sample, prompt or question("q"), candidate, "b", (1, 1), None)


def test_the_order_is_that_of_the_prompt_and_the_sample_and_even() -> None:
    orders = [comparison(F.prompt_id(question(str(i))), 0).candidate_first for i in range(2000)]
    assert 920 < sum(orders) < 1080  # 3.6 standard deviations
    same = [comparison(F.prompt_id(question(str(i))), 0, candidate="other").candidate_first for i in range(2000)]
    assert same == orders
    samples = [comparison(F.prompt_id(question("q")), i).candidate_first for i in range(2000)]
    assert 920 < sum(samples) < 1080


def test_a_longer_conversation_is_shown_with_its_roles() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, *question("Why?")]
    assert comparison("x", 0).instruction == "q"
    assert comparison("x", 0, prompt=turns).instruction == "[user]\nHi\n\n[assistant]\nYes?\n\n[user]\nWhy?"


@pytest.mark.parametrize(
    "text",
    [
        '\ufeff[{"instruction": "q1", "output": "one"}]',
        '\ufeff{"instruction": "q1", "output": "one"}\r\n\r\n',
        '\n {"instruction": "q1 ", "output": "one"}\n',
    ],
)
def test_a_mark_at_a_files_beginning_and_empty_lines_are_no_outputs(tmp_path: Path, feedback: Path, text: str) -> None:
    (tmp_path / "outputs.json").write_text(text, encoding="utf-8", newline="")
    baseline = open_baseline(FromFile(file="outputs.json"), [tmp_path / "outputs.json"])
    assert [c.baseline for c in compare(ROWS, feedback, tmp_path, baseline)] == ["one"]


def test_an_output_may_hold_signs_at_which_python_breaks_lines(tmp_path: Path, feedback: Path) -> None:
    text = '{"instruction": "q1", "output": "one\u2028 two\x85"}\n'
    (tmp_path / "outputs.json").write_text(text, encoding="utf-8")
    baseline = open_baseline(FromFile(file="outputs.json"), [tmp_path / "outputs.json"])
    assert [c.baseline for c in compare(ROWS, feedback, tmp_path, baseline)] == ["one\u2028 two\x85"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[{"instruction": "q1", "output": "a"}, {"instruction": "q2", "output": null}]', "output 2 of 2 is no text"),
        (b'[{"instruction": "q1", "output": ["a"]}]', "output 1 of 1 is no text"),
        (b'[{"instruction": null, "output": "a"}]', "give each an instruction and an output"),
        (b'{"instruction": "q1", "output": "\xff"}', "give each an instruction and an output"),
        (b"7", "give each an instruction and an output"),
        (b"[" * 100_000, "give each an instruction and an output"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_outputs_that_are_no_texts_are_refused_in_a_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "outputs.json").write_bytes(content)
    with pytest.raises(HalosError, match=says):
        open_baseline(FromFile(file="outputs.json"), [tmp_path / "outputs.json"])


def test_a_judge_sees_the_tools_that_a_prompt_has_called() -> None:
    call = {"type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}
    turns = [*question("1 + 1?"), {"role": "assistant", "content": "", "tool_calls": [call]},
             {"role": "assistant", "content": "I see.", "tool_calls": [call]},
             {"role": "tool", "content": ""}]  # fmt: skip
    shown = Comparison("id", 0, turns, "a", "b", (1, 1), None).instruction
    calls = json.dumps(call)
    assert shown == f"[user]\n1 + 1?\n\n[assistant]\n{calls}\n\n[assistant]\nI see.\n{calls}\n\n[tool]\n"
