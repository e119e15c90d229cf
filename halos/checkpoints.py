"""Checkpoints: everything needed to go on as if never stopped, in safetensors and JSON.

`checkpoints/` stands beside a run's declared outputs, so a workflow that cleans up after a failed job leaves it alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Checkpoints:
    """The checkpoints of one run. Only the newest is kept.

    Args:
        folder: usually RUN/checkpoints.
        fingerprint: hash of the run's config and inputs; checkpoints of another one are never resumed.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    def latest(self) -> Path | None:
        """The newest whole checkpoint of this run, or None."""
        return max(self._of(ours=True), key=_step, default=None)

    def remove_others(self) -> None:
        """Remove checkpoints of another config, data or parent, and what is left of a removal that was cut short."""
        for path in self._of(ours=False):
            print(f"removing {path}: it is of another config, data or parent")
            shutil.rmtree(path)

    def _of(self, ours: bool) -> list[Path]:
        paths = self.folder.glob("step*")
        return [p for p in paths if (_meta(p).get("fingerprint") == self.fingerprint) == ours]

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, meta: dict[str, Any]) -> None:
        """Save after `step` steps: seen whole or not at all, and only then are older ones removed.

        Args:
            model: its trained parameters are kept; frozen ones are the parent's.
            meta: more to keep, as JSON can hold it.
        """
        path, temporary = self.folder / f"step{step}", self.folder / ".partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(
            {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad},
            temporary / "weights.safetensors",
        )
        tensors, values = _flatten(optimizer.state_dict())
        save_file(tensors, temporary / "optimizer.safetensors")
        content = {**meta, "step": step, "fingerprint": self.fingerprint, "optimizer": values}
        (temporary / "meta.json").write_text(json.dumps(content))
        temporary.rename(path)
        for other in self.folder.glob("step*"):
            if other != path:
                shutil.rmtree(other)

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put a checkpoint back into model and optimizer; returns its meta data, `step` included."""
        meta = _meta(path)
        weights = load_file(path / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])
        optimizer.load_state_dict(_unflatten(load_file(path / "optimizer.safetensors"), meta["optimizer"]))
        return meta


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step"))


def _meta(path: Path) -> dict[str, Any]:
    """A checkpoint's meta data; empty for one whose removal was cut short."""
    file = path / "meta.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors ("parameter/name") and what JSON can hold."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {"param_groups": state["param_groups"], "state": {}}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}/{name}"] = value.contiguous()
            else:
                values["state"][f"{parameter}/{name}"] = value
    return tensors, values


def _unflatten(tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values["state"]}.items():
        parameter, name = key.split("/")
        state.setdefault(int(parameter), {})[name] = value
    groups = [{k: tuple(v) if k == "betas" else v for k, v in g.items()} for g in values["param_groups"]]
    return {"param_groups": groups, "state": state}
