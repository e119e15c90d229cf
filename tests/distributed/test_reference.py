"""A reference pass of several processes gives what that of one gives, with all weights in each and with shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halos.reference import compute
from halos.reference.cache import Reference
from halos.reference.compute import reference
from halos.reference.score import score
from halos.settings import dump, read_slice
from halos.tokens.store import Store
from tests.conftest import CATALOGUE, World
from tests.distributed.processes import run_verbs
from tests.reference.test_score import OTHER, inputs, made
from tests.scoring.rewards import armorm
from tests.train.architectures import ARCHITECTURES
from tests.train.runs import base_of

WINDOWS = "from halos.reference import compute, score\ncompute.WINDOW = score.WINDOW = 100\n"
"""Windows of 100 sequences."""


def side_by_side(tmp_path: Path, processes: int, commands: list[list[str]]) -> None:
    """Run verbs in processes that hold all weights each, in windows of 100 sequences."""
    assert run_verbs(tmp_path, commands, processes, "ddp", WINDOWS) == [0] * len(commands)


def command(config: Path, parent: Path, store: Path, part: str, output: Path) -> list[str]:
    words = ["reference", "--config", config, "--parent", parent, "--store", store, "--part", part, "--output", output,
             "--tokens-per-microbatch", 2048]  # fmt: skip
    return [*map(str, words)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_share_the_examples_make_the_very_file_that_one_makes(
    processes: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one process alone has begun, and was stopped after two windows, whose values are kept."""
    monkeypatch.setattr(compute, "WINDOW", 100)
    config, add = world.slice("runs/d/m/base/seed0"), compute.Done.add
    one, begun = tmp_path / "one.safetensors", tmp_path / "begun.safetensors"
    reference(config, world.base, world.store, "responses", one, 2048)

    def stopped(done: compute.Done, values: list[np.ndarray]) -> None:
        add(done, [np.full_like(row, -3) for row in values])
        if done.path.stat().st_size == 4 * done.offsets[200]:
            raise KeyboardInterrupt

    monkeypatch.setattr(compute.Done, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        reference(config, world.base, world.store, "responses", begun, 2048)
    monkeypatch.undo()
    outputs = {"responses": tmp_path / "r.safetensors", "mismatched": tmp_path / "m.safetensors"}
    words = [command(config, world.base, world.store, part, output) for part, output in outputs.items()]
    side_by_side(tmp_path, processes, [*words, command(config, world.base, world.store, "responses", begun)])
    assert outputs["responses"].read_bytes() == one.read_bytes()
    both, first = Reference([*outputs.values()], {}), Reference(world.reference(), {})
    for row in range(len(Store(world.store))):
        np.testing.assert_allclose(both[row], first[row], rtol=1e-4, atol=1e-5)  # whose windows are others
    found, whole = Reference([begun], {}), Reference([one], {})
    for row in range(Store(world.store).n_responses):
        assert (found[row] == (-3 if row < 200 else whole[row])).all()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


KINDS: dict[str, dict[str, Any]] = {
    "llama": {**CATALOGUE["models"]["m"]["architecture"], "tie_word_embeddings": True},
    **{kind: {"model_type": kind, **ARCHITECTURES[kind]} for kind in ("mixtral", "jamba", "gemma3")},
}


@pytest.mark.slow
def test_processes_that_share_the_weights_compute_the_values_that_one_computes(world: World, tmp_path: Path) -> None:
    """They need one another's shards in every forward pass, also where there are fewer microbatches than processes. In
    bfloat16 norms and embeddings are rounded, too, which is as in a sharded training."""
    config = world.slice("runs/d/m/base/seed0")
    half = tmp_path / "half.yaml"
    half.write_text(dump({**read_slice(config), "precision": "bf16"}))
    bases = {kind: base_of(world, tmp_path / kind, fields) for kind, fields in KINDS.items()}
    runs = {kind: (config, base, "responses") for kind, base in bases.items()}
    rewards = world.train(tmp_path / "rewards", "bradley_terry", changes={"examples": 16})
    runs |= {"mismatched": (config, bases["llama"], "mismatched"), "half": (half, bases["llama"], "responses"),
             "scores": (config, rewards, "scores")}  # fmt: skip
    files = {name: tmp_path / f"{name}.safetensors" for name in runs}
    commands = {name: command(c, base, world.store, part, files[name]) for name, (c, base, part) in runs.items()}
    halved = commands.pop("half")
    assert run_verbs(tmp_path, [*commands.values()], processes=3) == [0] * len(commands)
    assert run_verbs(tmp_path, [halved], processes=2) == [0]
    for name in commands:
        one = tmp_path / f"one_{name}.safetensors"
        reference(runs[name][0], runs[name][1], world.store, runs[name][2], one, 2048)  # type: ignore[arg-type]
        alone, together = (Reference([file], {}) for file in (one, files[name]))
        first = Store(world.store).n_responses if runs[name][2] == "mismatched" else 0
        for row in range(first, len(Store(world.store)) if first else Store(world.store).n_responses):
            np.testing.assert_allclose(together[row], alone[row], rtol=1e-5, atol=1e-6, err_msg=name)
    full, rounded = (Reference([files[name]], {}) for name in ("llama", "half"))
    errors = np.concatenate([rounded[row] - full[row] for row in range(Store(world.store).n_responses)])
    assert 1e-6 < np.abs(errors).mean() < 0.02


@pytest.mark.slow
def test_processes_that_share_the_responses_score_them_as_one_does(world: World, tmp_path: Path) -> None:
    (tmp_path / "other.jinja").write_text(OTHER)
    origin = armorm(world.base / "model", tmp_path / "origin")
    rewards = made(world, tmp_path / "made", origin, template=str(tmp_path / "other.jinja"))
    options = {**inputs(world), "reward_model": rewards, "output": tmp_path / "two.safetensors"}
    words = [w for k, v in options.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    side_by_side(tmp_path, 2, [["score", *words]])
    score(**{**options, "output": tmp_path / "one.safetensors"})
    one, two = (Reference([tmp_path / f"{name}.safetensors"], {}) for name in ("one", "two"))
    for row in range(Store(world.store).n_responses):
        assert two[row] == pytest.approx(one[row], rel=1e-5, abs=1e-6)
