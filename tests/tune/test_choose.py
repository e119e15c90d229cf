"""The choice between trials: by which number, over which seeds, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halos.errors import HalosError
from halos.manifest import Manifest
from halos.report.proportions import wilson
from halos.settings import dump
from halos.study.choice import Choice
from halos.tune.choose import choose
from tests.report.conftest import dump as dump_json
from tests.report.conftest import judged, task_result, write_training

TRIALS = {"aaaaaa": {"lr": 1e-5}, "bbbbbb": {"lr": 1e-4}, "cccccc": {"lr": 1e-3}}
RIGHT = {("aaaaaa", 1): 2, ("aaaaaa", 2): 6, ("bbbbbb", 1): 5, ("bbbbbb", 2): 5, ("cccccc", 1): 5, ("cccccc", 2): 3}
"""How many prompts a trial gets right, with each seed."""


def right(method: str, seed: int, prompt: int) -> float:
    return float(prompt < RIGHT[method.partition("~")[2], seed])


def folder_of(results: Path, trial: str, seed: int) -> Path:
    return results / f"runs/toy/tiny/sft-dpo~{trial}/seed{seed}"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for trial, seed in RIGHT:
        folder = folder_of(tmp_path, trial, seed)
        write_training(folder, "sft-dpo", seed)
        judged("toy", f"sft-dpo~{trial}", seed, right).write(folder / "judged/toy.json")
        judged("rm", f"sft-dpo~{trial}", seed, right).write(folder / "judged/rm.json")
        result = task_result("arc", "sft", seed)
        result["halos"]["value"] = RIGHT[trial, seed] / 10
        dump_json(folder / "tasks/arc.json", result)
    return tmp_path


def chosen(results: Path, select: dict[str, Any]) -> Choice:
    config = results / "choices/toy/tiny/sft-dpo/config.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    trials = [[name, settings] for name, settings in TRIALS.items()]
    config.write_text(dump({"dataset": "toy", "model": "tiny", "method": "sft-dpo", "select": select,
                            "trials": trials}))  # fmt: skip
    choose(config, results, config.with_name("choice.json"))
    return Choice.read(config.with_name("choice.json"))


def test_the_trial_with_the_highest_win_rate_is_chosen_and_of_equals_the_first(results: Path) -> None:
    choice = chosen(results, {"judge": "toy"})
    assert choice.chosen == "bbbbbb"  # as good as cccccc
    assert choice.winner.settings == {"lr": 1e-4}
    assert [trial.value for trial in choice.trials.values()] == pytest.approx([2.5 / 8, 5.5 / 8, 5.5 / 8])
    assert (choice.measure, choice.n, choice.unit_interval, choice.lowest) == ("win rate by toy", 8, True, False)
    assert choice.winner.low is not None
    assert 0 < choice.winner.low < 5.5 / 8 < (choice.winner.high or 0) < 1
    assert (choice.winner.steps, choice.winner.seconds) == (10, 12.5)


def test_without_ties_the_interval_of_one_seed_is_wilsons(results: Path) -> None:
    choice = chosen(results, {"judge": "toy", "by": "score"})
    assert [trial.value for trial in choice.trials.values()] == pytest.approx([2 / 8, 5 / 8, 5 / 8])
    assert (choice.winner.low, choice.winner.high) == pytest.approx(wilson(5, 8))


def test_what_two_seeds_add_is_taken_to_be_the_same_for_all_trials(results: Path) -> None:
    """From two numbers of one trial alone nothing would be known: a t of one degree of freedom has no end."""
    choice = chosen(results, {"judge": "toy", "seeds": [1, 2]})
    widths = [(trial.high or 0) - (trial.low or 0) for trial in choice.trials.values()]
    assert max(widths) < 0.95
    assert max(widths) < 1.2 * min(widths)


def test_several_seeds_are_averaged_and_their_spread_widens_the_interval(results: Path) -> None:
    one, two = chosen(results, {"judge": "toy"}), chosen(results, {"judge": "toy", "seeds": [1, 2]})
    assert two.trials["aaaaaa"].values == pytest.approx({1: 2.5 / 8, 2: 6.5 / 8})
    assert two.trials["aaaaaa"].value == pytest.approx(4.5 / 8)
    assert two.chosen == "bbbbbb"
    assert two.trials["aaaaaa"].seconds == 25
    width = [(c.trials["aaaaaa"].high or 0) - (c.trials["aaaaaa"].low or 0) for c in (one, two)]
    assert width[1] > width[0]


def test_a_reward_has_no_bounds_and_a_task_its_own_error(results: Path) -> None:
    reward = chosen(results, {"judge": "rm", "by": "score"})
    assert (reward.unit_interval, reward.measure, reward.winner.value) == (False, "score by rm", 2 * 5 / 8 - 4)
    task = chosen(results, {"task": "arc", "seeds": [2]})
    assert (task.chosen, task.winner.value, task.n, task.measure) == ("aaaaaa", 0.6, 200, "acc,none of arc")
    assert ((task.winner.high or 0) - 0.6) == pytest.approx(1.96 * 0.03, abs=1e-4)


@pytest.mark.parametrize(("goal", "best"), [(None, "cccccc"), ("highest", "aaaaaa")])
def test_of_losses_the_lowest_of_the_last_evaluation_is_chosen(results: Path, goal: str | None, best: str) -> None:
    for trial, last in (("aaaaaa", 3.0), ("bbbbbb", 2.0), ("cccccc", 1.0)):
        lines = [{"split": "eval", "step": 0, "loss": 0.1}, {"split": "eval", "step": 9, "loss": last},
                 {"split": "train", "step": 10, "loss": 0.2}]  # fmt: skip
        (folder_of(results, trial, 1) / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    choice = chosen(results, {"metric": "loss", **({"goal": goal} if goal else {})})
    assert (choice.chosen, choice.lowest) == (best, goal is None)
    assert (choice.winner.low, choice.winner.high, choice.n) == (None, None, None)


def test_with_early_stopping_the_best_evaluation_counts_whose_weights_were_published(results: Path) -> None:
    """Of an online stage that of its last round."""
    for trial, losses in (("aaaaaa", [3.0, 1.5, 2.5]), ("bbbbbb", [3.0, 2.0, 2.25]), ("cccccc", [0.5, 2.25, 2.25])):
        rounds = [1, 2, 2] if trial == "cccccc" else [None] * 3
        lines = [{"split": "eval", "step": k, "loss": loss, **({"round": r} if r else {})}
                 for k, (loss, r) in enumerate(zip(losses, rounds, strict=True))]  # fmt: skip
        folder = folder_of(results, trial, 1)
        (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        manifest = Manifest.read(folder / "manifest.json")
        stage = {**manifest.config["stage"], "early_stopping": {"patience": 1}}
        manifest.model_copy(update={"config": {**manifest.config, "stage": stage}}).write(folder / "manifest.json")
    choice = chosen(results, {"metric": "loss"})
    assert {name: trial.value for name, trial in choice.trials.items()} == {
        "aaaaaa": 1.5,
        "bbbbbb": 2.0,
        "cccccc": 2.25,
    }
    assert choice.chosen == "aaaaaa"


def diverge(results: Path, *trials: str) -> None:
    for trial in trials:
        path = folder_of(results, trial, 1) / "manifest.json"
        Manifest.read(path).model_copy(update={"diverged": "the loss is nan at step 3"}).write(path)


def test_a_trial_that_diverged_is_not_chosen_and_its_answers_are_not_read(results: Path) -> None:
    diverge(results, "bbbbbb")
    choice = chosen(results, {"judge": "toy"})
    assert (choice.chosen, choice.trials["bbbbbb"].value, choice.trials["bbbbbb"].values) == ("cccccc", None, {1: None})


def test_what_cannot_be_chosen_by_is_refused_in_a_sentence(results: Path) -> None:
    with pytest.raises(HalosError, match=r"has no 'los'; did you mean 'loss'\?"):
        chosen(results, {"metric": "los"})
    with pytest.raises(HalosError, match=r"there is no .*judged/other\.json; run `snakemake"):
        chosen(results, {"judge": "other"})
    diverge(results, *TRIALS)
    with pytest.raises(HalosError, match="every trial of sft-dpo diverged"):
        chosen(results, {"judge": "toy"})
