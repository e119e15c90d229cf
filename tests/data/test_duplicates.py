"""Records of train that repeat one of train are counted and shown, and left out on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halos.data import feedback
from halos.errors import HalosError
from tests.data.files import dialogue, local, record, run_prepare

TEST = [record(1000)]
ASK = "Write a letter to my landlord that asks for a new stove since the old one has not worked since last winter"
REPLY = (
    "Dear landlord, the stove in my kitchen has been out of order since last winter, and I would be glad of a new one"
)


def row(prompt: str, *responses: str, **fields: Any) -> dict[str, Any]:
    return record(0, prompt=dialogue(prompt), responses=list(responses), pairs=[], scores=[], **fields)


ROWS = [
    row(ASK, REPLY),
    row(ASK.upper() + "!", REPLY + "."),  # equal to the first
    row(ASK + ", please", REPLY + " soon"),  # nearly the first
    row(ASK + ", please", "No."),  # another response
    row("Another request, about which much could be said here", REPLY),  # another prompt
    row("Why?", "Because.", "So."),
    row("why", "so", "because", target=1),  # equal to the one before, in another order
    row("How?", "Because.", "So."),
]


def kept(folder: Path) -> list[str]:
    return [r.prompt[-1]["content"] for r in feedback.read(folder / "out/train.parquet")]


@pytest.mark.parametrize(
    ("drop", "left", "drops"),
    [
        ("none", [0, 1, 2, 3, 4, 5, 6, 7], {}),
        ("exact", [0, 2, 3, 4, 5, 7], {"equal to an earlier record": 2}),
        ("near", [0, 3, 4, 5, 7], {"equal to an earlier record": 2, "nearly equal to an earlier record": 1}),
    ],
)
def test_duplicates_are_counted_and_those_that_are_asked_for_dropped(
    tmp_path: Path, drop: str, left: list[int], drops: dict[str, int]
) -> None:
    report = run_prepare(tmp_path, local(tmp_path, ROWS, TEST), drop_duplicates=drop)
    found = report["duplicates"]
    assert (found["equal"], found["near"], found["dropped"]) == (2, 1, drop)
    assert [example["kind"] for example in found["examples"]] == ["equal", "equal", "near"]
    assert found["examples"][1]["first"] == "user: Why? response: Because. response: So."
    assert found["examples"][2]["second"].startswith(f"user: {ASK}, please response: Dear")
    assert kept(tmp_path) == [ROWS[i]["prompt"][-1]["content"] for i in left]
    train = report["train"]
    assert train["drops"] == drops
    assert train["rows_in"] == train["rows_out"] + sum(drops.values()) == 8
    assert train["rows_out"] == len(left)
    assert train["sources"][0]["available"] == (None if drop == "none" else 8)
    assert train["responses"] == sum(len(ROWS[i]["responses"]) for i in left)
    prompts = [str(ROWS[i]["prompt"]) for i in left]
    assert train["shared_prompts"] == len({p for p in prompts if prompts.count(p) > 1})


def test_responses_without_text_that_call_tools_otherwise_are_no_duplicates(tmp_path: Path) -> None:
    def calling(name: str, **arguments: str) -> dict[str, Any]:
        calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        return row(ASK, "", response_fields=[{"tool_calls": calls}])

    rows = [
        calling("send_letter", to="landlord", text="The stove has not worked since last winter"),
        calling("call_number", person="plumber"),
        calling("search_shops", query="new gas stoves near me", order="price"),
    ]
    report = run_prepare(tmp_path, local(tmp_path, rows, TEST), drop_duplicates="near")
    assert (report["duplicates"]["equal"], report["duplicates"]["near"]) == (0, 0)
    assert report["train"]["rows_out"] == 3


def test_duplicates_are_found_over_all_sources_and_the_first_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sources = local(tmp_path / "a", [row("Why?", "So.")], TEST), local(tmp_path / "b", [row("why", "so")] * 3, TEST)
    report = run_prepare(tmp_path, *sources, drop_duplicates="exact")
    assert kept(tmp_path) == ["Why?"]
    first, second = report["train"]["sources"]
    assert (first["rows_out"], second["rows_out"]) == (1, 0)
    assert second["drops"] == {"duplicate record": 2, "equal to an earlier record": 1}


@pytest.mark.parametrize("other", [{"tools": [{"name": "f"}]}, {"response_fields": [{"reasoning_content": "hm"}]}])
def test_a_record_with_other_tools_or_fields_is_no_duplicate(tmp_path: Path, other: dict[str, Any]) -> None:
    report = run_prepare(tmp_path, local(tmp_path, [row("Why?", "So."), row("Why?", "So.", **other)], TEST))
    assert report["duplicates"]["equal"] == 0


def test_a_short_answer_to_one_long_prompt_is_no_duplicate_of_another(tmp_path: Path) -> None:
    long = " ".join(f"word{i}" for i in range(400))
    rows = [row(long, answer) for answer in ("Yes.", "No.", "Perhaps, but I do not know.")]
    found = run_prepare(tmp_path, local(tmp_path, rows, TEST))["duplicates"]
    assert (found["equal"], found["near"]) == (0, 0)


def test_of_thousands_of_records_alike_a_few_stay(tmp_path: Path) -> None:
    rows = [row(f"{ASK} and {i}", f"{REPLY} and {i}") for i in range(3_000)]
    report = run_prepare(tmp_path, local(tmp_path, rows, TEST), drop_duplicates="near")
    assert report["duplicates"]["near"] >= 2_900
    assert report["train"]["rows_out"] + report["duplicates"]["near"] == 3_000


def test_the_same_file_in_another_order_has_as_many_duplicates(tmp_path: Path) -> None:
    counts = []
    for rows in (ROWS, ROWS[::-1]):
        found = run_prepare(tmp_path, local(tmp_path, rows, TEST))["duplicates"]
        counts.append((found["equal"], found["near"]))
    assert counts[0] == counts[1]


def test_what_is_asked_for_is_one_of_three(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="drop_duplicates: Input should be 'none', 'exact' or 'near'"):
        run_prepare(tmp_path, local(tmp_path, ROWS, TEST), drop_duplicates="all")
