"""Labelling: what is made of scores, what is left out and counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from halos.data import feedback as F
from halos.data.feedback import prompt_id
from halos.data.sources.local import local
from halos.errors import HalosError
from halos.online.label import label, pair
from halos.registry import VERIFIERS
from halos.settings import dump
from tests.conftest import World


@VERIFIERS.register("digits")
def digits(prompt: list[F.Turn], response: str) -> dict[str, float]:
    """The number that a response is; it fails on words, and infinity is no score."""
    return {"number": float(response)}


def question(i: int) -> list[F.Turn]:
    return [{"role": "user", "content": f"Number {i}?"}]


def samples(path: Path, *of_prompts: list[str]) -> Path:
    """A file of samples: for each prompt, its responses."""
    lines = [
        {"prompt_id": prompt_id(question(i)), "prompt": question(i), "response": text, "sample": k}
        for i, texts in enumerate(of_prompts) for k, text in enumerate(texts)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(folder: Path, *files: Path, **changes: Any) -> tuple[list[list[F.Feedback]], dict[str, Any]]:
    """The records of each file, and the report."""
    content = {"labeller": "l", "kind": "verifier", "verifier": "digits", "feedback": "binary"}
    (folder / "labeller.yaml").write_text(dump({**content, **changes}))
    outputs = [folder / f"{file.stem}.parquet" for file in files]
    label(folder / "labeller.yaml", list(files), outputs, folder / "report.json", [], 2048, 4, None)
    return [list(F.read(path)) for path in outputs], json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(
    ("threshold", "desirable"),
    [("mean", [False, False, False, True]), ("median", [False, False, True, True]), (0.5, [False, True, True, True])],
)
def test_a_response_is_desirable_above_the_threshold(
    tmp_path: Path, threshold: str | float, desirable: list[bool]
) -> None:
    [[first, second]], report = run(tmp_path, samples(tmp_path / "s", ["0", "1"], ["2", "9"]), threshold=threshold)
    assert [*first.desirable, *second.desirable] == desirable
    assert report["threshold"] == {"mean": 3.0, "median": 1.5}.get(str(threshold), threshold)
    assert (report["files"][0]["desirable"], report["files"][0]["undesirable"]) == (
        sum(desirable), 4 - sum(desirable)
    )  # fmt: skip


@pytest.mark.parametrize(("setting", "desirable"), [({}, True), ({"at_threshold": "undesirable"}, False)])
def test_a_score_at_the_threshold_is_desirable_as_in_halos_unless_it_is_said_otherwise(
    tmp_path: Path, setting: dict[str, str], desirable: bool
) -> None:
    """HALOs, train/label.py: `1 if sample['reward'] >= threshold else 0`."""
    [[record]], _ = run(tmp_path, samples(tmp_path / "s", ["0", "1", "2"]), threshold=1, **setting)
    assert record.desirable == [False, desirable, True]


@VERIFIERS.register("characters")
def characters(prompt: list[F.Turn], response: str) -> dict[str, float]:
    return {"characters": len(response)}


def test_whole_sentences_are_scored_and_the_whole_response_is_learned(tmp_path: Path) -> None:
    texts = ["One. Two", "No sentence"]
    [[record]], _ = run(
        tmp_path, samples(tmp_path / "s", texts), verifier="characters", whole_sentences=True, threshold=5
    )
    assert record.scores == [4.0, 11.0]
    assert (record.responses, record.desirable) == (texts, [False, True])


def test_a_mean_is_that_of_the_first_file(tmp_path: Path) -> None:
    """So that held-out samples are labelled as those that are trained on."""
    files = samples(tmp_path / "train", ["0", "2"]), samples(tmp_path / "test", ["3", "5"])
    (_, [test]), report = run(tmp_path, *files)
    assert test.desirable == [True, True]
    assert report["threshold"] == 1.0
    assert [f["mean_score"] for f in report["files"]] == [1.0, 4.0]


SCORES = [3.0, 9.0, 4.0, 1.0]


@pytest.mark.parametrize(
    ("mode", "min_margin", "pairs"),
    [("max", 0, [(1, 3)]), ("max", 8, []), ("min", 0, [(2, 0)]), ("min", 1, [(0, 3)]), ("min", 4, [(1, 2)])],
)
def test_a_pair_has_the_largest_or_the_smallest_margin_above_the_least(
    mode: str, min_margin: float, pairs: list[tuple[int, int]]
) -> None:
    assert pair(SCORES, mode, min_margin, 0) == pairs


def test_random_pairs_are_disjoint_right_way_round_and_the_same_each_time() -> None:
    seen = set()
    for seed in range(40):
        pairs = pair([*SCORES, 4.0], "random", 0, seed)
        assert len({i for both in pairs for i in both}) == 2 * len(pairs) >= 2
        assert all([*SCORES, 4.0][w] > [*SCORES, 4.0][lo] for w, lo in pairs)
        assert pair([*SCORES, 4.0], "random", 0, seed) == pairs
        seen |= set(pairs)
    assert {(1, 3), (1, 0), (2, 3), (2, 0), (0, 3), (1, 2)} <= seen


def test_random_pairs_are_drawn_anew_for_each_prompt_and_seed(tmp_path: Path) -> None:
    def pairs(seed: int | None) -> list[list[tuple[int, int]]]:
        file = samples(tmp_path / "s", *(["3", "9", "4", "1"] for _ in range(20)))
        lines = [json.loads(line) | {"seed": seed} for line in file.open()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        [records], _ = run(tmp_path, file, feedback="pairwise", pairs="random")
        return [record.pairs for record in records]

    assert pairs(1) == pairs(1)
    assert pairs(1) != pairs(2)
    assert len({tuple(of_prompt) for of_prompt in pairs(None)}) > 1


def test_equal_scores_make_no_pair() -> None:
    assert [pair([2.0, 2.0, 2.0], mode, 0, 0) for mode in ("max", "min", "random")] == [[], [], []]


def test_the_sides_of_a_pair_are_desirable_and_not_and_the_others_have_no_label(tmp_path: Path) -> None:
    [[record]], report = run(tmp_path, samples(tmp_path / "s", ["3", "9", "4", "1"]), feedback="pairwise")
    assert (record.pairs, record.desirable) == ([(1, 3)], [None, True, None, False])
    assert report["files"][0]["pairs"] == 1


def test_scalar_feedback_is_scores_alone_and_every_kind_keeps_them_and_the_best_as_target(tmp_path: Path) -> None:
    for kind in ("scalar", "binary", "pairwise"):
        [[record]], _ = run(tmp_path, samples(tmp_path / "s", ["3", "9", "9", "1"]), feedback=kind)
        assert (record.scores, record.target, record.source) == ([3, 9, 9, 1], 1, "l")
        assert bool(record.pairs) == (kind == "pairwise")
        assert bool(record.desirable) == (kind != "scalar")


def test_the_best_response_is_a_target_where_it_is_good_enough(tmp_path: Path) -> None:
    file = samples(tmp_path / "s", ["0", "1"], ["2", "9", "9"], ["1.5"])
    [records], _ = run(tmp_path, file, target_above=1)
    assert [record.target for record in records] == [None, 1, 0]
    [records], _ = run(tmp_path, file)
    assert [record.target for record in records] == [1, 1, 0]


def test_what_failed_is_counted_by_reason_and_left_out(tmp_path: Path) -> None:
    file = samples(tmp_path / "s", ["1", "word", "3"], ["inf", " ", "x"], ["nan", "2"])
    [records], report = run(tmp_path, file)
    assert [record.responses for record in records] == [["1", "3"], ["2"]]
    counts = report["files"][0]
    assert counts["failed"] == {"the response is empty": 1, "the verifier failed (ValueError)": 2,
                               "the verifier gave no finite score": 2}  # fmt: skip
    assert (counts["responses"], counts["scored"], counts["prompts"], counts["records"]) == (8, 3, 3, 2)
    assert counts["mean_score"] == 2.0


def test_a_sample_that_met_its_token_limit_is_known_as_cut(tmp_path: Path) -> None:
    file = samples(tmp_path / "s", ["1", "2"], ["3"])
    lines = [json.loads(line) | {"finish_reason": reason}
             for line, reason in zip(file.open(), ("length", "stop", "stop"), strict=True)]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [[first, second]], report = run(tmp_path, file)
    assert (first.cut, second.cut) == ([True, False], [])
    assert report["files"][0]["cut"] == 1


def test_nothing_scored_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"labeller l scored none of the 2 responses of .*: 2 the verifier failed"):
        run(tmp_path, samples(tmp_path / "s", ["a", "b"]))
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".parquet", ".json")]


def test_labels_go_on_to_training_as_a_local_source(tmp_path: Path) -> None:
    run(tmp_path, samples(tmp_path / "s", *(["1", "2"] for _ in range(40))), feedback="pairwise")
    path = str(tmp_path / "s.parquet")
    records = [r for split in ("train", "test") for r in local(split, path=path) if isinstance(r, F.Feedback)]
    assert len(records) == 40
    assert all(record.pairs == [(1, 0)] for record in records)


def test_a_reward_model_labels_the_same_in_two_processes_as_in_one(world: World, tmp_path: Path) -> None:
    """Launched by accelerate as on a machine with two GPUs; each process scores a share."""
    model = world.train(tmp_path / "rm", "bradley_terry", changes={"examples": 16}) / "model"
    records = [r for r in F.read(world.results / "data/d/test.parquet") if len(r.responses) > 1][:11]
    lines = [{"prompt_id": r.prompt_id, "prompt": r.prompt, "response": text, "sample": k}
             for r in records for k, text in enumerate(r.responses)]  # fmt: skip
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "l.yaml").write_text(dump({"labeller": "l", "kind": "reward_model", "reward_model": "models/rm",
                                           "feedback": "binary", "threshold": "median"}))  # fmt: skip

    def words(name: str) -> list[str]:
        return ["halos", "label", "--config", str(tmp_path / "l.yaml"), "--samples", str(tmp_path / "s.jsonl"),
                "--reward-model", str(model), "--output", str(tmp_path / f"{name}.jsonl"),
                "--report", str(tmp_path / f"{name}.json"), "--tokens-per-microbatch", "512"]  # fmt: skip

    one = [sys.executable, "-m", *words("one")]
    two = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "profiles/accelerate/ddp.yaml",
           "--num_processes", "2", "--main_process_port", "0", "-m", *words("two")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for command in (one, two):
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=240)
    alone, shared = (list(F.read(tmp_path / f"{name}.jsonl")) for name in ("one", "two"))
    assert [r.responses for r in shared] == [r.responses for r in alone]
    assert [r.desirable for r in shared] == [r.desirable for r in alone]
    assert [s for r in shared for s in r.scores] == pytest.approx([s for r in alone for s in r.scores], abs=1e-5)
    assert json.loads((tmp_path / "two.json").read_text())["files"][0]["scored"] == len(lines)


def test_the_tokens_of_samples_go_on_with_their_labels(tmp_path: Path) -> None:
    """A sample made elsewhere has none, and tokens of another template than the first's are of no use beside them."""
    file = samples(tmp_path / "s", ["0", "1", "2", "x"], ["3"])
    more = [{"response_ids": [1, 2], "template": "t"}, {}, {"response_ids": [4], "template": "other"},
            {"response_ids": [5], "template": "t"}, {}]  # fmt: skip
    lines = [json.loads(line) | extra for line, extra in zip(file.open(), more, strict=True)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [[first, second]], _ = run(tmp_path, file)
    assert (first.responses, first.response_ids, first.template) == (["0", "1", "2"], [[1, 2], None, None], "t")
    assert (second.response_ids, second.template) == ([], None)


def test_tools_go_on_with_the_samples(tmp_path: Path) -> None:
    file, tools = samples(tmp_path / "s", ["0"]), [{"type": "function", "function": {"name": "add"}}]
    [line] = map(json.loads, file.open())
    file.write_text(json.dumps({**line, "tools": tools, "prompt_id": prompt_id(question(0), tools)}) + "\n")
    [[record]], _ = run(tmp_path, file)
    assert (record.tools, record.prompt_id) == (tools, prompt_id(question(0), tools))
