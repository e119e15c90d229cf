"""The outputs of a run: model folders, the log and, last, the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from halos.distributed.accelerator import peak_memory_gb
from halos.distributed.loading import gather
from halos.files import hash_file, whole
from halos.manifest import VALUE_HEAD, Manifest
from halos.models.lora import Coverage, is_quantised, is_reduced
from halos.models.policy import save
from halos.seeds import derive
from halos.train.batches import Examples
from halos.train.inputs import Inputs
from halos.train.policy import load_model
from halos.train.reloaded import Probe


@dataclass(frozen=True)
class Publisher:
    """Writes the outputs of one run. Every process calls it, and the main process writes.

    Attributes:
        inputs: the run's inputs.
        policy: the trained network, on its devices.
        tokenizer: the model's tokenizer; None where it is the parent's unchanged.
        accelerator: the processes and devices.
        coverage: which weights the training changed.
        examples: examples that the published model is checked on.
    """

    inputs: Inputs
    policy: nn.Module
    tokenizer: Any
    accelerator: Accelerator
    coverage: Coverage
    examples: Examples

    def model(self, folder: Path, merge: bool, head: Path | None = None, last: bool = True) -> None:
        """Write the policy as a model folder; of a LoRA run the merged model, or with `merge` False its adapters.

        Args:
            folder: the folder.
            merge: whether adapters are merged.
            last: whether the policy is trained no further, so that its own adapters may be merged.
            head: file for the value head, if the policy has one.

        Raises:
            HalosError: the merged model, or that of a run without LoRA, gives other values once it is loaded again.
        """
        precision = self.inputs.settings.saved
        probe = Probe.of(self.policy, self.examples, self.accelerator) if merge else None  # merging changes the policy
        if probe is not None and precision == "bf16":
            probe = replace(probe, precision=precision)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "value_head": {}}
        for name, tensor in gather(self.accelerator.unwrap_model(self.policy), self.accelerator):
            part, own = name.split(".", 1)
            parts[part][own] = tensor
        if not self.accelerator.is_main_process:
            return
        model, weights = self._model(merge, last), parts["model"]
        policy = self.accelerator.unwrap_model(self.policy).model
        if model is not policy and not self.accelerator.is_fsdp2:
            weights = _in_full(policy, weights, model)
        save(
            model,
            weights,
            self.inputs.parent,
            folder,
            self.tokenizer,
            merge,
            precision,
            None if probe is None else probe.check,
        )
        if head is not None and parts["value_head"]:
            with whole(head) as temporary:
                save_file({name: tensor.cpu().contiguous() for name, tensor in parts["value_head"].items()}, temporary)

    def _model(self, merge: bool, last: bool) -> Any:
        """The model without its wrappers; where adapters are merged that are sharded, that are trained further, or
        whose base is held in fewer bits, a fresh one in float32, to put weights together in."""
        model: Any = self.accelerator.unwrap_model(self.policy).model
        if not (merge and hasattr(model, "merge_and_unload")):
            return model
        if self.accelerator.is_fsdp2:
            fresh = load_model(self.inputs, weights=False)[0]
            for name in ("_weight_conversions", "all_tied_weights_keys"):  # as reading the parent's files left them
                if hasattr(model.get_base_model(), name):
                    setattr(fresh.get_base_model(), name, getattr(model.get_base_model(), name))
            return fresh
        if is_reduced(model) or not last:
            torch.manual_seed(derive(self.inputs.settings.seed, "weights"))  # of rows that are added, as at first
            return load_model(self.inputs, quantised=False)[0]
        return model

    def run(
        self,
        output: Path,
        log: Path,
        data: dict[str, dict[str, int]],
        steps: int,
        tokens: int,
        seconds: float,
        parameters: int,
        diverged: str | None = None,
        stopped_early: int | None = None,
        share: float | None = None,
    ) -> None:
        """Write `model/` and a value head, then train.jsonl, then, as the sign that all is whole, manifest.json.

        Args:
            output: the run's folder.
            log: the finished log.
            data: see `Manifest`, as are the following.
            steps: optimiser steps of the published weights.
            tokens: tokens of all sequences that were trained on.
            seconds: wall time, over all attempts.
            parameters: number of the model's weights.
            diverged: why `model/` shall be the parent's, which the files of a finished run then are all the same.
            stopped_early: step at which early stopping ended the training.
            share: of the training that is done, if it is a snapshot; None at the end.
        """
        head, settings = output / VALUE_HEAD, self.inputs.settings
        if share is not None and settings.stage is not None:
            stage = settings.stage.model_copy(update={"stop_after": share})
            settings = settings.model_copy(update={"stage": stage})
        if diverged is None:
            self.model(output / "model", merge=True, head=head, last=share is None)
        if not self.accelerator.is_main_process:
            return
        if diverged is not None:
            with whole(output / "model") as temporary:
                shutil.copytree(self.inputs.parent, temporary)
        with whole(output / "train.jsonl") as temporary:
            shutil.copyfile(log, temporary)
        processes = self.accelerator.num_processes
        Manifest.of(
            output / "model",
            config=settings.content,
            inputs=self.inputs.hashes,
            data=data,
            steps=steps,
            tokens=tokens,
            seconds=seconds,
            gpu_hours=seconds / 3600 * processes * (self.accelerator.device.type == "cuda"),
            peak_memory_gb=peak_memory_gb(),
            parameters=parameters,
            trained=self.coverage.trained,
            adapted=self.coverage.adapted,
            not_adapted=self.coverage.others,
            processes=processes,
            diverged=diverged,
            stopped_early=stopped_early,
            value_head=hash_file(head) if head.is_file() else None,
        ).write(output / "manifest.json")


def _in_full(policy: nn.Module, trained: Mapping[str, Tensor], fresh: nn.Module) -> dict[str, Tensor]:
    """The weights of a policy whose frozen ones are held in fewer bits: in place of rounded ones those of its parent,
    and of quantised ones what they multiply by, which the adapters were trained beside."""
    found = dict(fresh.state_dict())
    found |= {n: t for n, t in trained.items() if n in found and (t.dtype, t.shape) == (found[n].dtype, found[n].shape)}
    layers: Iterator[tuple[str, Any]] = ((name, layer) for name, layer in policy.named_modules() if is_quantised(layer))
    for name, layer in layers:
        weight = layer.dequantised()
        found[f"{name}.weight"] = weight if isinstance(fresh.get_submodule(name), nn.Linear) else weight.T
    return found
