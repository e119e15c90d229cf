"""Checkpoints: whole or absent, of this run or none, and exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halos import checkpoints
from halos.checkpoints import Checkpoints

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"weight_decay": 0.01, "betas": (0.9, 0.95), "eps": 1e-5},
    "RMSprop": {"alpha": 0.9, "momentum": 0.5, "centered": True},
    "SGD": {"momentum": 0.9},
    "Adafactor": {},
    "Adagrad": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "Adam": {"amsgrad": True},
}


def setup(optimizer: str = "AdamW") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].bias.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, getattr(torch.optim, optimizer)(trained, lr=0.01, **OPTIMIZERS[optimizer])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, k: int) -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(k))
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_checkpoint_is_bit_for_bit_as_never_stopped(name: str, tmp_path: Path) -> None:
    model, optimizer = setup(name)
    for k in range(3):
        step(model, optimizer, k)
    saved = Checkpoints(tmp_path / "checkpoints", "f")
    saved.save(3, model, optimizer, {"tokens": 7})
    again, other = setup(name)
    path = saved.latest()
    assert path is not None
    meta = saved.load(path, again, other)
    assert (meta["step"], meta["tokens"]) == (3, 7)
    for k in range(3, 6):
        step(model, optimizer, k)
        step(again, other, k)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(theirs[key]))


def test_only_trained_weights_are_kept(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    saved = Checkpoints(tmp_path, "f")
    saved.save(1, *setup(), {})
    assert set(load_file(tmp_path / "step1/weights.safetensors")) == {"0.weight", "2.weight", "2.bias"}


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    model, optimizer = setup()
    step(model, optimizer, 0)
    Checkpoints(tmp_path, "f").save(1, model, optimizer, {})
    files = sorted(p.name for p in (tmp_path / "step1").iterdir())
    assert files == ["meta.json", "optimizer.safetensors", "weights.safetensors"]
    json.loads((tmp_path / "step1/meta.json").read_text())


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_half_written_checkpoint_is_never_seen(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Checkpoints(tmp_path, "f")
    saved.save(1, *setup(), {})
    calls: list[Path] = []
    save_file = checkpoints.save_file

    def failing(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == fails_at:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", failing)
    with pytest.raises(KeyboardInterrupt):
        saved.save(2, *setup(), {})
    assert saved.latest() == tmp_path / "step1"
    monkeypatch.undo()
    saved.save(2, *setup(), {})
    assert saved.latest() == tmp_path / "step2"


def test_only_the_newest_is_kept_by_number_and_not_by_spelling(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, "f")
    for k in (9, 10):
        saved.save(k, *setup(), {})
        assert [p.name for p in tmp_path.iterdir()] == [f"step{k}"]
    shutil.copytree(tmp_path / "step10", tmp_path / "step9")
    assert saved.latest() == tmp_path / "step10"


def test_a_checkpoint_of_another_run_is_never_resumed_and_removed(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "other").save(5, *setup(), {})
    (tmp_path / "train.jsonl").write_text("{}\n")
    saved = Checkpoints(tmp_path, "mine")
    assert saved.latest() is None
    saved.remove_others()
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]
    saved.save(2, *setup(), {})
    saved.remove_others()
    assert saved.latest() == tmp_path / "step2"


def test_what_a_removal_cut_short_left_behind_stops_nothing(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, "f")
    saved.save(3, *setup(), {})
    (tmp_path / "step3/meta.json").unlink()
    assert saved.latest() is None
    saved.remove_others()
    assert not (tmp_path / "step3").exists()
    saved.save(3, *setup(), {})
    assert saved.latest() == tmp_path / "step3"


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path / "none", "f")
    saved.remove_others()
    assert saved.latest() is None
