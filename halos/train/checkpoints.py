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

from halos.distributed.sharding import local, reshard, shard_like
from halos.errors import HalosError
from halos.files import hash_content


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

    def save(
        self,
        step: int,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        meta: dict[str, Any],
        accelerator: Any,
    ) -> None:
        """Save after `step` steps: seen whole or not at all, and only then are older ones removed.

        Every process calls it. Where weights are sharded each writes its own, else the first writes all.

        Args:
            modules: file name -> module. What the first trains is kept, of each; the rest is the parent's.
            meta: more to keep, as JSON can hold it.
        """
        path, temporary = self.folder / f"step{step}", self.folder / ".partial"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        suffix = _suffix(accelerator)
        if suffix or accelerator.is_main_process:
            first = next(iter(modules.values()))
            for file, module in modules.items():
                save_file(
                    {n: t.contiguous() for n, t in _trained(module, first).items()},
                    temporary / f"{file}{suffix}.safetensors",
                )
            tensors, values = _flatten(optimizer.state_dict())
            save_file(tensors, temporary / f"optimizer{suffix}.safetensors")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            more = {"step": step, "fingerprint": self.fingerprint, "shards": _shards(accelerator)}
            (temporary / "meta.json").write_text(json.dumps({**meta, **more, "optimizer": values}))
            temporary.rename(path)
            for other in self.folder.glob("step*"):
                if other != path:
                    shutil.rmtree(other)
        accelerator.wait_for_everyone()

    def load(
        self, path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, accelerator: Any
    ) -> dict[str, Any]:
        """Put a checkpoint back into what it was saved from; returns its meta data, `step` included.

        Raises:
            HalosError: weights are sharded over another number of processes than they were.
        """
        meta = _meta(path)
        if meta["shards"] != _shards(accelerator):
            raise HalosError(
                f"{path} holds {meta['shards'] or 'no'} shards and this run has {_shards(accelerator) or 'none'}: "
                f"launch it as before, or delete the checkpoint to begin again"
            )
        suffix = _suffix(accelerator)
        first = next(iter(modules.values()))
        for file, module in modules.items():
            saved = load_file(path / f"{file}{suffix}.safetensors")
            for name, tensor in _trained(module, first).items():
                tensor.copy_(saved[name])
        tensors = load_file(path / f"optimizer{suffix}.safetensors")
        optimizer.load_state_dict(_unflatten(tensors, meta["optimizer"], optimizer))
        return meta


def _shards(accelerator: Any) -> int:
    """Over how many processes the weights are sharded; 0 when each holds them all."""
    return int(accelerator.num_processes) if accelerator.is_fsdp2 else 0


def _suffix(accelerator: Any) -> str:
    return f"-{accelerator.process_index}" if accelerator.is_fsdp2 else ""


def _trained(module: nn.Module, trained: nn.Module) -> dict[str, Tensor]:
    """This process's part of the parameters of `module` that `trained`, built as it is, trains."""
    reshard(module)
    names = {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    return {name: local(p) for name, p in module.named_parameters() if name in names}


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step"))


def _meta(path: Path) -> dict[str, Any]:
    """A checkpoint's meta data; empty for one whose removal was cut short."""
    file = path / "meta.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors ("parameter/name", this process's part) and what JSON can hold."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {"param_groups": state["param_groups"], "state": {}}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}/{name}"] = local(value).contiguous()
            else:
                values["state"][f"{parameter}/{name}"] = value
    return tensors, values


def _unflatten(tensors: dict[str, Tensor], values: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
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
    """What a checkpoint belongs to: the run's slice of the config, and the hashes of its inputs."""
    return hash_content([json.loads(json.dumps(config)), inputs])
