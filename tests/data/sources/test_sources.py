"""Published datasets: their rows become records or counted drops."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from halos.data.feedback import Feedback
from halos.data.rows import Drop
from halos.data.sources.hh import hh, hh_harmless, hh_helpful, hh_record, hh_turns
from halos.data.sources.safe_rlhf import safe_rlhf
from halos.data.sources.shp import shp
from halos.data.sources.ultrafeedback import ultrabin
from halos.errors import HalosError
from halos.registry import SOURCES
from tests.data.files import CHOSEN, REJECTED, comparisons, write_lines
from tests.data.published import (
    CODE,
    armorm_row,
    assistant,
    safe_row,
    shp_row,
    split_up,
    ultrabin_row,
    user,
    without,
    write_parquet,
)


def test_roles_come_from_the_text_not_from_alternation() -> None:
    turns = hh_turns("\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d")
    assert [(t["role"], t["content"]) for t in turns] == [
        ("user", "a"),
        ("user", "b"),
        ("assistant", "c"),
        ("assistant", "d"),
    ]


def test_a_comparison_becomes_prompt_winner_and_loser() -> None:
    found = hh_record(CHOSEN, REJECTED)
    assert isinstance(found, Feedback)
    assert [t["role"] for t in found.prompt] == ["user", "assistant", "user"]
    assert found.prompt[-1]["content"] == "Python, please."
    assert found.responses[1] == "I don't know."
    assert (found.pairs, found.desirable, found.target, found.scores) == ([(0, 1)], [True, False], 0, [])
    assert found.problem() is None


def test_indentation_and_inner_blank_lines_are_kept() -> None:
    found = hh_record(CHOSEN, REJECTED)
    assert isinstance(found, Feedback)
    assert found.responses[0] == "Like this:\n\n    def sort(x):\n        return sorted(x)\n\nIt gives a new list."
    assert hh_turns("\n\nHuman: q\n\nAssistant:     indented\n\n\n")[1]["content"] == "    indented"


def test_a_marker_inside_a_line_is_text() -> None:
    assert hh_turns("\n\nHuman: who said Human: and why?")[0]["content"] == "who said Human: and why?"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (CHOSEN, CHOSEN, "chosen and rejected are equal"),
        (CHOSEN, CHOSEN + "\n", "chosen and rejected are equal"),
        (CHOSEN, REJECTED + "\n\nHuman: Why not?", "no assistant turn at the end"),
        (CHOSEN, REJECTED.replace("Python", "Perl"), "chosen and rejected have different prompts"),
        (CHOSEN, REJECTED + "\n\nHuman: Why?\n\nAssistant: So.", "chosen and rejected have different prompts"),
        ("Hello. " + CHOSEN, REJECTED, "the text does not begin with a turn"),
        ("", REJECTED, "the text does not begin with a turn"),
    ],
)
def test_rows_that_are_no_comparison_are_dropped_with_a_reason(chosen: str, rejected: str, reason: str) -> None:
    assert hh_record(chosen, rejected) == Drop(reason)


@pytest.mark.parametrize("name", ["hh.jsonl", "hh.jsonl.gz"])
def test_a_single_file_is_split_by_prompt_the_same_way_each_time(tmp_path: Path, name: str) -> None:
    path = str(write_lines(tmp_path / name, comparisons(400)))
    train, test = list(hh("train", path=path)), list(hh("test", path=path))
    assert list(hh("test", path=path)) == test
    assert len(train) + len(test) == 400
    assert 20 <= len(test) <= 60  # 10 % of 400, within 3.5 standard deviations
    reverse = str(write_lines(tmp_path / f"reverse-{name}", comparisons(400)[::-1]))
    ids = [{r.prompt_id for r in rows if isinstance(r, Feedback)} for rows in (train, test, hh("test", path=reverse))]
    assert not ids[0] & ids[1]
    assert ids[1] == ids[2]


def test_a_larger_test_fraction_keeps_the_smaller_test_split(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "hh.jsonl", comparisons(400)))
    small, large = (set(map(repr, hh("test", path=path, test_fraction=f))) for f in (0.1, 0.5))
    assert small < large


def test_a_file_for_each_split_is_taken_as_it_is(tmp_path: Path) -> None:
    rows = comparisons(5)
    train, test = write_lines(tmp_path / "a.jsonl", rows[:3]), write_lines(tmp_path / "b.jsonl.gz", rows[3:])
    paths = {"train": str(train), "test": str(test)}
    assert [len(list(hh(split, path=paths))) for split in ("train", "test")] == [3, 2]


def test_limit_counts_records_and_not_drops(tmp_path: Path) -> None:
    equal = {"chosen": CHOSEN, "rejected": CHOSEN}
    path = str(write_lines(tmp_path / "hh.jsonl", [equal, *comparisons(5)]))
    rows = list(hh("train", path={"train": path, "test": path}, limit=2))
    assert [type(row) for row in rows] == [Drop, Feedback, Feedback]


def test_files_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text(json.dumps(comparisons(1)[0]) + "\nthis line is not JSON\n")
    rows = hh("train", path={"train": str(path), "test": str(path)})
    assert isinstance(next(rows), Feedback)
    with pytest.raises(HalosError, match=r"row 2 of .*hh\.jsonl"):
        next(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
        ({"path": {"train": "a", "dev": "b"}}, "or some for each of train, validation and test"),
        ({"path": "nowhere.jsonl", "test_fraction": 1.5}, "test_fraction is 1.5"),
    ],
)
def test_unusable_options_are_refused_before_reading(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HalosError, match=message):
        hh("train", **options)


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "hh.jsonl.gz", comparisons(100))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(HalosError, match=r"hh\.jsonl\.gz cannot be read"):
        list(hh("train", path=str(path)))


def test_a_hub_out_of_reach_is_said_and_files_are_offered(tmp_path: Path) -> None:
    code = "from halos.data.sources.hh import hh\nfrom halos.errors import HalosError\n"
    code += "try: hh('train', subset='helpful-base')\nexcept HalosError as error: print(error)"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "Anthropic/hh-rlhf cannot be loaded from the hub" in done.stdout
    assert "`path:`" in done.stdout
    assert done.stdout.count("\n") == 1


# ---- HH's folders


def test_the_subsets_are_named_after_themselves(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "hh.jsonl", comparisons(1)))
    for source, name in ((hh_helpful, "hh_helpful"), (hh_harmless, "hh_harmless")):
        (found,) = source("train", path={"train": path, "test": path})
        assert isinstance(found, Feedback)
        assert (found.source, found.desirable, found.target) == (name, [True, False], 0)


def test_odd_rows_of_hh_are_dropped(tmp_path: Path) -> None:
    rows = [*comparisons(1), {"chosen": CHOSEN}, {"chosen": CHOSEN, "rejected": None}, {"chosen": 1, "rejected": ""}]
    path = str(write_lines(tmp_path / "hh.jsonl", rows))
    records, drops = split_up(hh("train", path={"train": path, "test": path}))
    assert (len(records), drops) == (1, ["chosen is malformed", "no rejected", "no rejected"])


# ---- SHP


def shp_at(tmp_path: Path, rows: list[Any], split: str = "train", **options: Any) -> tuple[list[Feedback], list[str]]:
    path = str(write_lines(tmp_path / "shp.jsonl", rows))
    return split_up(shp(split, path={"train": path, "test": path}, **options))


def test_rows_of_a_post_become_one_record_with_scores(tmp_path: Path) -> None:
    rows = [
        shp_row("p", "a", CODE, (2, 6)),
        shp_row("p", CODE, "c", (6, 30)),
        shp_row("q", "x", "y", (8, 2)),
    ]
    (p, q), drops = shp_at(tmp_path, rows)
    assert drops == []
    assert p == Feedback(
        prompt=[{"role": "user", "content": "Question p?"}],
        responses=["a", CODE, "c"],
        source="shp",
        scores=[2.0, 6.0, 30.0],
        pairs=[(1, 0), (2, 1)],
        desirable=[False, None, True],
        target=0,
    )
    assert (q.responses, q.pairs, q.desirable, q.target) == (["x", "y"], [(0, 1)], [True, False], 0)


def test_close_scores_are_left_out_of_train_only(tmp_path: Path) -> None:
    rows = [shp_row("p", "a", "b", (10, 19)), shp_row("q", "a", "b", (10, 20)), shp_row("r", "a", "b", (10, 30))]
    assert [r.prompt[0]["content"] for r in shp_at(tmp_path, rows)[0]] == ["Question q?", "Question r?"]
    assert shp_at(tmp_path, rows)[1] == ["score ratio below min_score_ratio"]
    assert len(shp_at(tmp_path, rows, min_score_ratio=3.0)[0]) == 1
    assert len(shp_at(tmp_path, rows, "test")[0]) == 3


def test_at_most_max_pairs_are_kept_the_same_in_any_order_and_of_train_only(tmp_path: Path) -> None:
    rows = [shp_row("p", f"a{i}", f"b{i}", (2, 8)) for i in range(12)]

    def kept(rows: list[Any], split: str = "train", **options: Any) -> set[tuple[str, ...]]:
        (record,), drops = shp_at(tmp_path, rows, split, **options)
        assert len(record.pairs) + len(drops) == 12
        assert set(drops) <= {"over max_pairs of its prompt"}
        assert len(record.responses) == 24
        labels = {text: record.desirable[i] for i, text in enumerate(record.responses)}
        texts = {tuple(record.responses[i] for i in pair) for pair in record.pairs}
        assert all(labels[w] is True and labels[lo] is False for w, lo in texts)
        assert list(labels.values()).count(None) == 24 - 2 * len(texts)
        return texts

    assert len(kept(rows)) == 5
    assert kept(rows) == kept(rows[::-1])
    assert kept(rows, max_pairs=3) < kept(rows)
    assert kept(rows) != {(f"b{i}", f"a{i}") for i in range(5)}
    assert len(kept(rows, "test")) == 12


def test_both_labels_restores_the_response_that_wins_and_loses(tmp_path: Path) -> None:
    rows = [shp_row("p", "a", "b", (2, 6)), shp_row("p", "b", "c", (6, 30))]
    (record,), _ = shp_at(tmp_path, rows, both_labels=True)
    assert record.responses == ["a", "b", "c", "b"]
    assert record.desirable == [False, True, True, False]
    assert record.scores == [2.0, 6.0, 30.0, 6.0]


def test_rows_of_shp_are_pairs_or_drops(tmp_path: Path) -> None:
    good = [shp_row("p", f"a{i}", f"b{i}", (9, 3)) for i in range(8)]
    odd = [
        good[0],
        shp_row("p", "same", "same", (9, 3)),
        shp_row("p", "a", " ", (9, 3)),
        shp_row("p", "a", "b", (9, 3), labels=2),
        shp_row("p", "a", "b", (9, 3), score_A=0),
        shp_row("p", "a", "b", (9, 3), score_B=None),
        shp_row("p", "a", "b", (9, 3), history=None),
        without(shp_row("p", "a", "b", (9, 3)), "labels"),
    ]
    records, drops = shp_at(tmp_path, good + odd)
    assert sum(len(r.pairs) for r in records) + len(drops) == 16
    assert [r.problem() for r in records] == [None]
    assert drops == sorted(
        [
            *["over max_pairs of its prompt"] * 3,
            "pair repeats one of the same prompt",
            "the two responses are equal",
            "empty response",
            "labels is malformed",
            "a score is not positive",
            "no score_B",
            "no history",
            "no labels",
        ]
    )


# ---- UltraFeedback


def test_ultrabin_keeps_system_and_earlier_turns_and_scores(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, user("q"), assistant("a"), user("more")]
    row = ultrabin_row("q", "", "", chosen=[*turns, assistant(CODE)], rejected=[*turns, assistant("bad")])
    path = write_parquet(tmp_path / "u.parquet", [row])
    (record,), _ = split_up(ultrabin("train", path={"train": path, "test": path}))
    assert record.prompt == turns
    assert (record.responses, record.scores) == ([CODE, "bad"], [8.0, 5.5])
    assert (record.pairs, record.desirable, record.target) == ([(0, 1)], [True, False], 0)


def test_rows_of_ultrabin_are_pairs_or_drops(tmp_path: Path) -> None:
    rows = [
        ultrabin_row("p", "good", "bad"),
        ultrabin_row("p", "better", "good", (9.0, 8.0)),
        ultrabin_row("p", "good", "good"),
        ultrabin_row("p", "good", ""),
        ultrabin_row("p", "good", "bad", rejected=[user("other"), assistant("bad")]),
        ultrabin_row("p", "good", "bad", rejected=[user("p")]),
        ultrabin_row("p", "good", "bad", chosen=None),
        ultrabin_row("p", "good", "bad", chosen=[{"role": "user", "content": None}]),
        without(ultrabin_row("p", "good", "bad"), "score_chosen"),
    ]
    path = write_parquet(tmp_path / "u.parquet", rows)
    records, drops = split_up(ultrabin("test", path={"train": path, "test": path}))
    assert [(r.responses, r.pairs, r.scores) for r in records] == [
        (["good", "bad", "better"], [(0, 1), (2, 0)], [8.0, 5.5, 9.0])
    ]
    assert records[0].desirable == [None, False, True]
    assert drops == sorted(
        [
            "chosen and rejected are equal",
            "empty response",
            "chosen and rejected have different prompts",
            "no assistant turn at the end",
            "no chosen",
            "chosen is malformed",
            "no score_chosen",
        ]
    )


@pytest.mark.parametrize("name", ["ultrafeedback_armorm", "ultrafeedback_armorm_gemma"])
def test_all_scored_responses_are_kept_and_best_against_worst_is_the_pair(tmp_path: Path, name: str) -> None:
    rows = [
        armorm_row("p", ["a", CODE, "c", "d", "e"], [0.15, 0.17, 0.11, 0.16, 0.12]),
        armorm_row("q", ["a", "b", "a", "d", "e"], [0.1, 0.2, 0.1, 0.3, 0.4]),
        armorm_row("r", ["a", "b"], [0.1, 0.1]),
        armorm_row("s", ["a", "b"], [0.1, 0.2], all_rm_scores=[0.1]),
        armorm_row("s", ["a", "b"], [0.1, 0.2], all_rm_scores=[0.1, float("nan")]),
        armorm_row("s", ["a", "b"], [0.1, 0.2], all_generated_responses=None),
        armorm_row("s", ["a", "b"], [0.1, 0.2], all_generated_responses=[], all_rm_scores=[]),
        armorm_row("s", ["a", "b"], [0.1, 0.2], all_generated_responses=["a", None]),
    ]
    path = write_parquet(tmp_path / "u.parquet", rows)
    records, drops = split_up(SOURCES[name]("train", path={"train": path, "test": path}))
    p, q, r = records
    assert (p.responses[1], p.scores) == (CODE, [0.15, 0.17, 0.11, 0.16, 0.12])
    assert (p.pairs, p.desirable, p.target) == ([(1, 2)], [None, True, False, None, None], 1)
    assert (q.responses, q.pairs, q.source) == (["a", "b", "d", "e"], [(3, 0)], name)
    assert (r.pairs, r.desirable, r.target, r.problem()) == ([], [], 0, None)
    assert len(records) + len(drops) == len(rows)
    assert drops == sorted(
        [
            "scores and responses differ in number",
            "all_rm_scores is malformed",
            "no all_generated_responses",
            "no response",
            "all_generated_responses is malformed",
        ]
    )


# ---- PKU-SafeRLHF


def test_safe_rlhf_goes_by_the_better_response_id(tmp_path: Path) -> None:
    rows = [
        safe_row("p", "no", CODE, 1),
        safe_row("p", "no", "never", 0),
        safe_row("p", CODE, "no", 0),
        safe_row("q", "x", "y", 0),
        safe_row("q", "x", "y", 2),
        safe_row("q", "x", "y", 0, response_1=None),
        safe_row("q", "x", "", 0),
        safe_row("q", "x", "x", 0),
        without(safe_row("q", "x", "y", 0), "better_response_id"),
    ]
    path = str(write_lines(tmp_path / "s.jsonl", rows))
    (p, q), drops = split_up(safe_rlhf("train", path={"train": path, "test": path}))
    assert (p.responses, p.pairs, p.target) == ([CODE, "no", "never"], [(0, 1), (1, 2)], 0)
    assert p.desirable == [True, None, False]
    assert (q.responses, q.pairs, q.desirable) == (["x", "y"], [(0, 1)], [True, False])
    assert sum(len(r.pairs) for r in (p, q)) + len(drops) == len(rows)
    assert drops == sorted(
        [
            "pair repeats one of the same prompt",
            "better_response_id is malformed",
            "no response_1",
            "empty response",
            "chosen and rejected are equal",
            "no better_response_id",
        ]
    )


def test_a_prompt_of_one_file_is_in_one_split_whole(tmp_path: Path) -> None:
    rows = [safe_row(f"p{i // 3}", f"x{i}", f"y{i}", 0) for i in range(300)]
    path = str(write_lines(tmp_path / "s.jsonl", rows))
    train, test = (split_up(safe_rlhf(split, path=path, test_fraction=0.3))[0] for split in ("train", "test"))
    assert {len(r.pairs) for r in train + test} == {3}
    assert len(train) + len(test) == 100
    assert 10 < len(test) < 50


def test_pinned_revisions_are_commits() -> None:
    for name in set(SOURCES) - {"hub"}:  # of whose datasets none is known
        revision = inspect.signature(SOURCES[name]).parameters.get("revision")
        assert revision is None or re.fullmatch("[0-9a-f]{40}", revision.default), name
