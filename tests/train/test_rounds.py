"""Rounds of an online stage whose optimiser and schedule go on from one to the next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from halos.errors import HalosError
from halos.manifest import KEPT
from halos.settings import dump, read_slice
from halos.train.inputs import Inputs
from halos.train.optimizer import learning_rate
from halos.train.stage import Stage
from halos.train.stopping import Stopped, Stopping
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import assert_equal, log

CHANGES: dict[str, Any] = {"lr": 1e-3, "examples": 24, "scheduler": "linear", "warmup": 2}
ONLINE = {"rounds": 3, "prompts_per_round": 8, "label": "l"}


def trainer_of(
    world: World, output: Path, number: int, parent: Path, stage: str = "kto", rounds: int = 3, **changes: Any
) -> Trainer:
    """The training of a round, on the dataset's own responses, with the round before as its reference."""
    config = world.slice(f"runs/d/m/{stage}/seed{number}", **{**CHANGES, **changes})
    config.write_text(dump({**read_slice(config), "round": number, "rounds": rounds}))
    world.slice("runs/d/m/sft/seed1")
    inputs = Inputs.open(config, parent, world.store, world.reference_of(parent)[: 2 if stage == "kto" else 1])
    return Trainer(inputs, output, 2048)


def states(trainer: Trainer) -> list[dict[str, torch.Tensor]]:
    """What the optimiser keeps of each parameter, by its place."""
    optimizer = trainer.optimizer.optimizer
    found = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return [{name: torch.as_tensor(value).clone() for name, value in state.items()} for state in found]


@pytest.fixture(scope="module")
def first(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """A finished first round, and its optimiser's state at the end."""
    folder = tmp_path_factory.mktemp("rounds") / "round1"
    trainer = trainer_of(world, folder, 1, world.base)
    trainer.run()
    return folder, states(trainer)


@pytest.fixture
def before(first: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(first[0], tmp_path / "round1"))


def test_moments_and_step_counts_are_those_of_the_round_before(
    world: World, first: tuple[Path, list[dict[str, torch.Tensor]]], before: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(world, tmp_path / "round2", 2, before)
    assert not any(states(trainer))
    assert trainer._resume() == 0
    begins = states(trainer)
    assert [state.keys() for state in begins] == [state.keys() for state in first[1]]
    for ours, theirs in zip(begins, first[1], strict=True):
        assert ours["step"] == 3
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert any(state["exp_avg"].any() for state in begins)


def test_one_schedule_runs_over_all_rounds_and_a_state_stays_until_the_next_round_is_done(
    world: World, before: Path, tmp_path: Path
) -> None:
    folders = [before]
    for number in (2, 3):
        assert (folders[-1] / KEPT / "meta.json").is_file()
        folders.append(tmp_path / f"round{number}")
        trainer_of(world, folders[-1], number, folders[-2]).run()
        assert (folders[-2] / KEPT).exists()  # so that this round can be made again, if its end is not noticed
    assert not (folders[0] / KEPT).exists()
    assert not (folders[-1] / KEPT).exists()
    rates = [line["lr"] for folder in folders for line in log(folder) if line["split"] == "train"]
    assert rates == pytest.approx([1e-3 * learning_rate(k, 9, 2, "linear") for k in range(9)])
    steps = [[line["step"] for line in log(folder) if line["split"] == "train"] for folder in folders]
    assert steps == [[1, 2, 3]] * 3


@pytest.mark.parametrize("stage", ["kto", "ppo"])
def test_a_round_that_is_stopped_is_as_one_that_is_not(stage: str, world: World, tmp_path: Path) -> None:
    trainer_of(world, tmp_path / "round1", 1, world.base, stage).run()
    again = Path(shutil.copytree(tmp_path / "round1", tmp_path / "again1"))
    trainer_of(world, tmp_path / "whole", 2, tmp_path / "round1", stage).run()
    trainer = trainer_of(world, tmp_path / "stopped", 2, again, stage)
    trainer.stopping = Stopping(0)
    with pytest.raises(Stopped):
        trainer.run()
    assert (again / KEPT).exists()
    trainer_of(world, tmp_path / "stopped", 2, again, stage).run()
    assert_equal(tmp_path / "whole", tmp_path / "stopped")
    assert log(tmp_path / "whole") == log(tmp_path / "stopped")


def test_a_state_that_is_gone_or_of_another_run_is_refused(world: World, before: Path, tmp_path: Path) -> None:
    shutil.move(before / KEPT, tmp_path / "state")
    advice = f"optimizer, the optimiser's state at the end of that run, is not there: delete {tmp_path} and run snake"
    with pytest.raises(HalosError, match=advice):
        trainer_of(world, tmp_path / "round2", 2, before)
    meta = (tmp_path / "state/meta.json").read_text().replace('"fingerprint": "', '"fingerprint": "0')
    (tmp_path / "state/meta.json").write_text(meta)
    shutil.move(tmp_path / "state", before / KEPT)
    with pytest.raises(HalosError, match=r"the optimiser's state at the end of that run, is of another run: delete"):
        trainer_of(world, tmp_path / "round2", 2, before)


def test_by_default_each_round_has_an_optimiser_of_its_own(world: World, tmp_path: Path) -> None:
    trainer_of(world, tmp_path / "round1", 1, world.base, rounds=0).run()
    assert not (tmp_path / "round1" / KEPT).exists()
    trainer = trainer_of(world, tmp_path / "round2", 2, tmp_path / "round1", rounds=0)
    trainer._resume()
    assert not any(states(trainer))
    assert trainer.scheduled == 3


def test_adapters_of_a_round_have_no_optimiser_to_go_on_with() -> None:
    with pytest.raises(ValidationError, match="with lora each round trains new adapters, which the optimiser of the"):
        Stage(loss="kto", lora={"r": 4}, online={**ONLINE, "continue_optimizer": True})
    assert "continue_optimizer" not in Stage(loss="kto", online=ONLINE).model_dump()["online"]
