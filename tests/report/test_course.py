"""The course of a training: what the figure draws is what judgements and log-probabilities say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from halos.evaluate.divergence.divergence import Divergence
from halos.report import figures
from halos.report.results import Results
from halos.report.subjects.course import Course
from tests.report.conftest import judged, write_training

RIGHT = [2, 6, 7, 3]  # of 8 prompts: what training begins with, two snapshots, its end
METHODS = ("sft", "sft-kto", "sft-simpo")


@pytest.fixture
def followed(tmp_path: Path, write_tree: Callable[..., tuple[Path, Path]]) -> Callable[..., tuple[Path, Path]]:
    """A tree of two methods with two snapshots each, which both judges have judged, and the divergences that are asked
    for: 1, 2 and 3 nats, and one more of the second seed."""

    def write(**grid: Any) -> tuple[Path, Path]:
        courses = [["toy", "tiny", method, 3] for method in METHODS[1:]]
        config, results = write_tree(tmp_path, methods=METHODS, judges=("toy", "rm"), snapshots=["toy", "rm"],
                                     courses=courses, score=lambda *_: 0.0, **grid)  # fmt: skip
        for method in METHODS[1:]:
            for seed in (1, 2):
                cell = results / f"runs/toy/tiny/{method}/seed{seed}"
                passed = [cell.parents[1] / f"sft/seed{seed}", cell / "snapshot1", cell / "snapshot2", cell]
                for i, (folder, right) in enumerate(zip(passed, RIGHT, strict=True)):
                    for judge in ("toy", "rm"):
                        judgement = judged(judge, method, seed, lambda *of, right=right: float(of[-1] < right))
                        judgement.write(folder / f"judged/{judge}.json")
                    if i in (1, 2):
                        write_training(folder, method, seed)
                    if i and "divergence" in grid:
                        diverge(folder / "divergence/p/4.json", i + (seed == 2))
        return config, results

    return write


def diverge(path: Path, ratio: float) -> None:
    Divergence(
        weights="w", reference_weights="v", temperature=1, top_p=1, prompts=2,
        responses=[{"prompt_id": f"p{i}", "sample": 0, "tokens": 3, "policy": -5 + ratio + shift, "reference": -5}
                   for i, shift in enumerate((-0.5, 0.5))],
    ).write(path)  # fmt: skip


def test_the_distance_is_that_of_own_responses_of_losses_without_a_reference_too(
    followed: Callable[..., tuple[Path, Path]],
) -> None:
    frame = Course().frame(Results(*followed(divergence=4)))
    assert set(frame["kl_on"]) == {"samples"}
    for _, course in frame.groupby(["judge", "method"]):
        assert course["kl"].tolist() == [0, 1.5, 2.5, 3.5]
        assert course["share"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    scores = frame[frame["judge"] == "toy"]
    assert scores["mean"].tolist() == pytest.approx([right / 8 for right in RIGHT] * 2)
    assert set(scores["measure"]) == {"score"}
    assert set(frame[frame["judge"] == "rm"]["measure"]) == {"reward"}


def test_without_divergence_the_distance_is_that_of_the_data_of_losses_with_a_reference(
    followed: Callable[..., tuple[Path, Path]],
) -> None:
    frame = Course().frame(Results(*followed()))
    assert set(frame["kl_on"]) == {"data"}
    assert frame[frame["method"] == "sft-simpo"].loc[frame["share"] > 0, "kl"].isna().all()


def test_panels_say_whose_judge_they_are(followed: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    config, results = followed(divergence=4)
    figures.make(config, tmp_path / "figures", results, only=["course"])
    drawn = (tmp_path / "figures/course.svg").read_text()
    for words in ("Tiny Llama, Toy verifier", "Tiny Llama, rm", ">reward<", ">score<", "nats per own response"):
        assert words in drawn
    assert len(pd.read_csv(tmp_path / "figures/course.csv")) == 2 * 2 * len(RIGHT)
