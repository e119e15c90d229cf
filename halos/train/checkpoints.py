"""Checkpoints: the whole state of a training, in safetensors and JSON, from which it resumes bitwise.

`checkpoints/` is no declared output of a rule, so a workflow that cleans up after a failed job leaves it alone.
"""

from __future__ import annotations

import json
import shutil
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halos.distributed.sharding import local, reshard, shard_like
from halos.errors import HalosError
from halos.files import hash_content, writing


class Checkpoints:
    """The checkpoints of one run. Only the newest is kept, and with early stopping that of the best evaluation.

    Args:
        folder: usually RUN/checkpoints.
        fingerprint: hash of the run's config and inputs; a checkpoint with another fingerprint is never resumed.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    def at(self, step: int) -> Path:
        """The folder of the checkpoint after so many steps."""
        return self.folder / f"step{step}"

    def latest(self) -> Path | None:
        """The newest complete checkpoint of this run, or None."""
        return max(self._of(ours=True), key=_step, default=None)

    def remove_others(self) -> None:
        """Remove checkpoints of another config, data or parent, and the remains of an interrupted removal."""
        for path in self._of(ours=False):
            print(f"removing {path}: it belongs to another config, data or parent")
            shutil.rmtree(path)

    def _of(self, ours: bool) -> list[Path]:
        paths = self.folder.glob("step*")
        return [p for p in paths if (read_meta(p).get("fingerprint") == self.fingerprint) == ours]

    def save(
        self,
        step: int,
        weights: dict[str, dict[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        meta: dict[str, Any],
        accelerator: Any,
        keep: int | None = None,
    ) -> None:
        """Save the state after `step` steps. It appears complete or not at all; then older checkpoints are removed.

        Every process calls it. Each writes its shard where weights are sharded, else the main process writes all.

        Args:
            step: optimiser steps that are done.
            weights: file name -> name -> this process's values of each weight, see `trained`.
            optimizer: the optimiser.
            meta: further values to keep, as JSON can hold them.
            accelerator: the processes.
            keep: step of an older checkpoint that stays, too.

        Raises:
            HalosError: the file system takes no more. The older checkpoints are as they were.
        """
        path = self.at(step)
        self.write(path, step, weights, optimizer, meta, accelerator)
        if accelerator.is_main_process:
            for other in self.folder.glob("step*"):
                if _step(other) not in (step, keep):
                    shutil.rmtree(other)
        accelerator.wait_for_everyone()

    def write(
        self,
        path: Path,
        step: int,
        weights: dict[str, dict[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        meta: dict[str, Any],
        accelerator: Any,
    ) -> None:
        """Write a checkpoint to a folder of any name, which appears complete or not at all, see `save`."""
        temporary = self.folder / ".partial"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        suffix = _suffix(accelerator)
        try:
            with writing(path):
                if suffix or accelerator.is_main_process:
                    for file, values in weights.items():
                        whole = {name: tensor.contiguous() for name, tensor in values.items()}
                        save_file(whole, temporary / f"{file}{suffix}.safetensors")
                    tensors, state = _flatten(optimizer.state_dict())
                    save_file(tensors, temporary / f"optimizer{suffix}.safetensors")
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    identity = {"step": step, "fingerprint": self.fingerprint, "shards": _shards(accelerator)}
                    (temporary / "meta.json").write_text(json.dumps({**meta, **identity, "optimizer": state}))
                    shutil.rmtree(path, ignore_errors=True)
                    temporary.rename(path)
        except HalosError:
            shutil.rmtree(temporary, ignore_errors=True)  # a full disk gets its room back
            raise
        accelerator.wait_for_everyone()

    def load(
        self, path: Path, weights: dict[str, dict[str, Tensor]], optimizer: torch.optim.Optimizer, accelerator: Any
    ) -> dict[str, Any]:
        """Load a checkpoint into weights and an optimiser like those that it was saved from, in place.

        Returns:
            Its meta data: those given to `save`, and `step`.

        Raises:
            HalosError: it was saved with the weights sharded over another number of processes.
        """
        meta = read_meta(path)
        if meta["shards"] != _shards(accelerator):
            owner = "the checkpoint" if path.parent == self.folder else f"{path.parent}"
            raise HalosError(
                f"{path} holds {meta['shards'] or 'no'} shards and this run has {_shards(accelerator) or 'none'}: "
                f"launch it as before, or delete {owner} to begin again"
            )
        suffix = _suffix(accelerator)
        for file, values in weights.items():
            saved = load_file(path / f"{file}{suffix}.safetensors")
            for name, tensor in values.items():
                tensor.copy_(saved[name])
        tensors = load_file(path / f"optimizer{suffix}.safetensors")
        optimizer.load_state_dict(_unflatten(tensors, meta["optimizer"], optimizer))
        return meta


def _shards(accelerator: Any) -> int:
    """Number of processes that the weights are sharded over; 0 when each process holds them all."""
    return int(accelerator.num_processes) if accelerator.is_fsdp2 else 0


def _suffix(accelerator: Any) -> str:
    return f"-{accelerator.process_index}" if accelerator.is_fsdp2 else ""


def trained(policy: nn.Module, of: nn.Module | None = None) -> dict[str, Tensor]:
    """name -> this process's values of each parameter that a policy trains, of the policy itself or of another module
    of its structure."""
    module = policy if of is None else of
    reshard(module)
    names = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    return {name: local(p) for name, p in module.named_parameters() if name in names}


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step"))


def read_meta(path: Path) -> dict[str, Any]:
    """A checkpoint's meta data; empty where an interrupted removal left none."""
    file = path / "meta.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimiser state as tensors by "parameter/name" (this process's shards), and the rest, which JSON can hold."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {"param_groups": state["param_groups"], "state": {}}
    seen: set[int] = set()
    for parameter, entries in state["state"].items():
        for name, value in _one_level(entries).items():
            if isinstance(value, Tensor):
                tensor = local(value).contiguous()
                shared = tensor.data_ptr() in seen  # bitsandbytes has one table for all; safetensors takes none twice
                seen.add(tensor.data_ptr())
                tensors[f"{parameter}/{name}"] = tensor.clone() if shared else tensor
            else:
                values["state"][f"{parameter}/{name}"] = value
    return tensors, values


def _one_level(entries: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state without the levels in which bitsandbytes puts its quantised part."""
    inner = [_one_level(value) for value in entries.values() if isinstance(value, dict)]
    return reduce(or_, inner, {name: value for name, value in entries.items() if not isinstance(value, dict)})


def _unflatten(tensors: dict[str, Tensor], values: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state dict from what `_flatten` made of it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values["state"]}.items():
        number, name = key.split("/")
        entry = shard_like(value, parameters[int(number)]) if isinstance(value, Tensor) else value
        state.setdefault(int(number), {})[name] = entry
    groups = [{k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in g.items()}
              for g in values["param_groups"]]  # fmt: skip
    return {"param_groups": groups, "state": state}


def fingerprint(config: dict[str, Any], inputs: dict[str, str]) -> str:
    """Hash of the identity of a run's slice of the config and of the hashes of its inputs."""
    return hash_content([config, inputs])
