"""Trees of messages become one record a ranked prompt, and every message is accounted for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from halos.data.feedback import Feedback
from halos.data.sources.oasst import oasst
from tests.data.published import CODE, assistant, message, split_up, user, write_parquet

TREE = [
    message("a", None, "q"),
    message("a.1", "a", "worst", 4),
    message("a.2", "a", CODE, 0),
    message("a.3", "a", "middle", 2),
    message("a.2.1", "a.2", "more?"),
    message("a.2.1.1", "a.2.1", "good", 1),
    message("a.2.1.2", "a.2.1", "best", 0),
    message("a.2.1.1.1", "a.2.1.1", "and then?"),
    message("a.2.1.1.1.1", "a.2.1.1.1", "the end", 0),
]


def at(tmp_path: Path, rows: list[Any], split: str = "train", **options: Any) -> tuple[list[Feedback], list[str]]:
    path = write_parquet(tmp_path / "o.parquet", rows)
    return split_up(oasst(split, path={"train": path, "test": path}, **options))


def test_each_ranked_prompt_of_a_deep_tree_is_a_record_with_its_path(tmp_path: Path) -> None:
    records, drops = at(tmp_path, TREE)
    assert drops == []
    history = [user("q"), assistant(CODE), user("more?")]
    assert records == [
        Feedback(
            [user("q")],
            [CODE, "middle", "worst"],
            "oasst",
            pairs=[(0, 1), (1, 2)],
            desirable=[True, None, False],
            target=0,
        ),
        Feedback(history, ["best", "good"], "oasst", pairs=[(0, 1)], desirable=[True, False], target=0),
        Feedback([*history, assistant("good"), user("and then?")], ["the end"], "oasst", target=0),
    ]
    assert all(record.problem() is None for record in records)


def test_both_labels_lists_the_middle_of_a_ranking_twice(tmp_path: Path) -> None:
    record = at(tmp_path, TREE, both_labels=True)[0][0]
    assert record.responses == [CODE, "middle", "worst", "middle"]
    assert record.desirable == [True, True, False, False]
    assert record.pairs == [(0, 1), (1, 2)]


def test_rows_may_be_in_any_order(tmp_path: Path) -> None:
    rows = TREE[:]
    random.Random(0).shuffle(rows)
    assert rows[0]["message_id"] != "a"

    def content(rows: list[Any]) -> list[Any]:
        return sorted((r.prompt_id, r.responses, r.pairs) for r in at(tmp_path, rows)[0])

    assert content(rows) == content(TREE)


def test_equal_ranks_and_equal_replies_make_no_pair(tmp_path: Path) -> None:
    replies = [message(f"a.{i}", "a", text, rank) for i, (text, rank) in enumerate([("x", 1), ("y", 1), ("z", 3)])]
    repeat = message("a.9", "a", "x", 5)
    (record,), drops = at(tmp_path, [TREE[0], *replies, repeat])
    assert (record.responses, record.pairs) == (["x", "y", "z"], [(1, 2)])
    assert record.desirable == [None, True, False]
    assert drops == ["repeats a better reply"]


def test_every_message_is_a_prompt_a_response_or_a_drop(tmp_path: Path) -> None:
    odd = [
        message("a.4", "a", "deleted", 1, deleted=True),
        message("a.4.1", "a.4", "below a deleted message"),
        message("a.5", "a", "no rank"),
        message("a.5.1", "a.5", "its reply is a turn all the same"),
        message("a.5.1.1", "a.5.1", "yes", 0),
        message("a.6", "a", "auf Deutsch", 3, lang="de"),
        message("a.1.1", "a.1", "nobody answers"),
        message("a.1.1", "a.1", "the same id"),
        message("b.1", "b", "no root", 0),
        message("b.1.1", "b.1", "nor here"),
        message("c", "c", "its own parent"),
        message("d.1", None, "a reply as root", 0),
        message("a.1.5", "a.1", "a reply to a reply", 0, role="assistant"),
        message("a.7", "a", "role", 1, role="moderator"),
        {**message("a.8", "a", "null", 1), "text": None},
        {**message("a.9", "a", "null", 1), "message_id": None},
    ]
    rows = TREE + odd
    records, drops = at(tmp_path, rows)
    assert sum(1 + len(r.responses) for r in records) + len(drops) == len(rows)
    assert drops == sorted(
        [
            "deleted message",
            "reply without a rank",
            "another language",
            "message id repeats",
            "prompt without ranked replies",
            *["a message before it is missing"] * 4,
            *["reply to no prompt"] * 2,
            "role is malformed",
            "no text",
            "no message_id",
        ]
    )
    later = next(r for r in records if r.responses == ["yes"])
    assert [turn["content"] for turn in later.prompt] == ["q", "no rank", "its reply is a turn all the same"]


def test_another_language_can_be_asked_for(tmp_path: Path) -> None:
    german = [message("g", None, "Frage", lang="de"), message("g.1", "g", "Antwort", 0, lang="de")]
    (record,), drops = at(tmp_path, TREE + german, lang="de")
    assert record.responses == ["Antwort"]
    assert drops == ["another language"] * len(TREE)


def test_a_tree_of_one_file_is_in_one_split_whole(tmp_path: Path) -> None:
    rows = []
    for i in range(60):
        ids = [f"t{i}", f"t{i}.1", f"t{i}.1.1", f"t{i}.1.1.1"]
        rows += [message(a, b, f"{a} says", 0) for a, b in zip(ids, [None, *ids], strict=False)]
    path = write_parquet(tmp_path / "o.parquet", rows)
    trees = []
    for split in ("train", "test"):
        records, drops = split_up(oasst(split, path=path, test_fraction=0.3))
        assert drops == []
        trees.append([record.prompt[0]["content"] for record in records])
    assert not set(trees[0]) & set(trees[1])
    assert len(trees[0]) + len(trees[1]) == 120
    assert trees[1]
