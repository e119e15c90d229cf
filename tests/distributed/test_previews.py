"""Previews of a training in several processes: of one of them, and none of sharded weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halos.train.log import PREVIEWS
from tests.conftest import World
from tests.distributed.processes import run_verbs
from tests.train.runs import assert_equal, log

pytestmark = pytest.mark.slow  # it starts processes


@pytest.mark.parametrize("profile", ["ddp", "fsdp"])
def test_a_training_in_two_processes_is_the_same_with_previews(world: World, tmp_path: Path, profile: str) -> None:
    config = world.slice("runs/d/m/dpo/seed1")
    words = ["train", "--config", config, "--parent", world.base, "--store", world.store]
    words += ["--reference", world.reference()[0], "--tokens-per-microbatch", 1024, "--eval-every", 3]
    runs = {"plain": [], "previewed": ["--preview-prompts", 2, "--preview-tokens", 6]}
    commands = [[*map(str, [*words, "--output", tmp_path / name, *more])] for name, more in runs.items()]
    assert run_verbs(tmp_path, commands, profile=profile) == [0, 0]
    plain, previewed = (tmp_path / name for name in runs)
    assert_equal(plain, previewed)
    assert log(plain) == log(previewed)
    said = "preview_prompts: weights that are sharded answer no prompts" in (tmp_path / "output0.txt").read_text()
    if profile == "fsdp":
        assert said
        assert not (previewed / PREVIEWS).exists()
    else:
        assert not said
        steps = [json.loads(line)["step"] for line in (previewed / PREVIEWS).read_text().splitlines()]
        assert steps == [0, 0, 3, 3, 6, 6, 8, 8]
