"""The one training loop. It reads a loss's traits and never its name."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from halos import losses as L
from halos.checkpoints import Checkpoints
from halos.config import read_slice
from halos.data.batches import Examples, GlobalBatches, Microbatch
from halos.data.store import Store
from halos.errors import HalosError
from halos.logprobs import ResponseLogps
from halos.models import accelerator_for, fingerprint, load, save, with_lora
from halos.provenance import environment, hash_weights, write_json
from halos.reference import Reference, expected_hashes, parts_for
from halos.registry import LOSSES

MARGIN = 120
"""Seconds kept free before a time limit, for the checkpoint."""


class Stopped(HalosError):
    """The run ended early with a checkpoint; the same command goes on from there."""


def train(**options: Any) -> None:
    """The verb: train one cell's last stage. The options are those of `Trainer`."""
    Trainer(**options).run()


def make_loss(stage: dict[str, Any]) -> L.Loss:
    """The loss of a stage's slice."""
    kind = LOSSES[stage["loss"]]
    loss: L.Loss = kind(**{f.name: stage[f.name] for f in dataclasses.fields(kind)})
    return loss


def learning_rate(step: int, steps: int, warmup: float, scheduler: str) -> float:
    """Factor of the peak learning rate at a step counted from 0: linear warm-up, then constant, linear or cosine decay
    to 0 at the end. `warmup` is a fraction of all steps below 1, else a number of steps."""
    ramp = round(warmup * steps) if warmup < 1 else int(warmup)
    if step < ramp:
        return (step + 1) / ramp
    done = (step - ramp) / max(1, steps - ramp)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[scheduler]


class Sums:
    """Sums and weights of named values over microbatches, brought together over processes in one exchange."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weight: Tensor | None = None) -> None:
        """Add values (any shape); `weight` 0 leaves one out. The name is kept even when there are none."""
        values = values.detach().float()
        weight = torch.ones_like(values) if weight is None else weight.float()
        pair = torch.stack([(values * weight).sum(), weight.sum()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def over(self, accelerator: Any) -> dict[str, tuple[float, float]]:
        """name -> (sum, weight) over all processes."""
        names = sorted(self._sums)
        if not names:
            return {}
        total = torch.stack([self._sums[name] for name in names])
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, reduction="sum")
        return {name: (row[0], row[1]) for name, row in zip(names, total.tolist(), strict=True)}


def means(sums: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The mean of each name that has any weight."""
    return {name: total / weight for name, (total, weight) in sums.items() if weight}


class Trainer:
    """One run: set up by the constructor, done by `run`.

    Args:
        config: the cell's slice.
        parent: folder of the parent, with `model/` and `manifest.json`.
        store: sequence store of the cell's dataset and model.
        output: the run's folder; `model/`, `train.jsonl` and, last, `manifest.json` appear there when done.
        reference: files of the parent's log-probabilities, one for each part the loss reads.
        tokens_per_microbatch: padded tokens of one forward pass on one device.
        time_limit: minutes after which to stop with a checkpoint, or None.

    Raises:
        HalosError: an input is missing, stale or not what the loss needs.
        Stopped: by `run`, at the time limit or a signal.
    """

    def __init__(
        self,
        config: Path,
        parent: Path,
        store: Path,
        output: Path,
        reference: list[Path],
        tokens_per_microbatch: int,
        time_limit: float | None,
    ) -> None:
        self.started = time.monotonic()
        self.deadline = None if time_limit is None else self.started + max(60 * time_limit - MARGIN, 30 * time_limit)
        self.settings = read_slice(config)
        self.stage: dict[str, Any] = self.settings["stage"]
        self.parent, self.output, self.budget = parent, output, tokens_per_microbatch
        self.loss = make_loss(self.stage)
        opened = Store(store)
        inputs = expected_hashes(parent, opened)
        if len(reference) != len(parts_for(self.loss)):
            wanted = ", ".join(parts_for(self.loss)) or "no part"
            raise HalosError(f"the loss {self.stage['loss']} reads {wanted} of the reference: give as many --reference")
        cached = Reference(reference, inputs) if reference else None
        self.examples = Examples(opened, "train", self.loss.view, cached)
        self.held_out = Examples(opened, "test", self.loss.view, cached)
        self.batches = GlobalBatches(
            len(self.examples), self.stage["batch_size"], self.stage["epochs"], self.stage["examples"],
            self.settings["seed"],
        )  # fmt: skip
        self.inputs = inputs
        self.checkpoints = Checkpoints(output / "checkpoints", fingerprint(self.settings, inputs))
        self.log_path = self.checkpoints.folder / "train.jsonl"
        self.accelerator = accelerator_for(self.settings["precision"])
        torch.manual_seed(self.settings["seed"])  # LoRA's adapters are drawn from it
        model: Any = load(parent / "model", self.settings["attention"])
        if self.stage["lora"]:
            model = with_lora(model, self.stage["lora"])
        self.parameters = sum(p.numel() for p in model.parameters())
        wrapped = ResponseLogps(model)
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        try:
            optimizer = getattr(torch.optim, self.stage["optimizer"])(
                trained, lr=self.stage["lr"], **_tuples(self.stage["optimizer_args"])
            )
        except (TypeError, ValueError) as error:
            raise HalosError(f"optimizer_args of {self.stage['optimizer']}: {error}") from error
        self.policy, self.optimizer = self.accelerator.prepare(wrapped, optimizer)
        self.seconds, self.tokens = 0.0, 0  # of earlier attempts, then of all
        self.stop_signal: int | None = None

    # ---- the loop ------------------------------------------------------------------------------------------

    def run(self) -> None:
        step = self._resume()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        bar = tqdm(total=len(self.batches), initial=step, unit="step", mininterval=1,
                   disable=not self.accelerator.is_main_process, desc=self.stage["loss"])  # fmt: skip
        if step == 0:
            self._log({"split": "eval", "step": 0, "examples": 0, **self.evaluate(step)})
        while step < len(self.batches):
            metrics = self.step(step)
            step += 1
            self._log({"split": "train", "step": step, **metrics})
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", tok_s=round(metrics["tokens_per_second"]), refresh=False)
            bar.update()
            last = step == len(self.batches)
            if last or step % self.stage["eval_every"] == 0:
                self._log({"split": "eval", "step": step, "examples": metrics["examples"], **self.evaluate(step)})
            reason = self._stop_reason()
            if not last and (reason or step % self.stage["checkpoint_every"] == 0):
                self._save_checkpoint(step)
                if reason:
                    bar.close()
                    raise Stopped(f"stopped by {reason} after step {step} of {len(self.batches)}, with a checkpoint; "
                                  f"run the same command again to go on")  # fmt: skip
        bar.close()
        self._finish(step)

    def step(self, step: int) -> dict[str, Any]:
        """One optimiser step over one global batch; returns what goes into the log."""
        begun = time.monotonic()
        torch.manual_seed(self.settings["seed"] * 1_000_003 + step * 1_009 + self.accelerator.process_index)  # dropout
        lr = self.stage["lr"] * learning_rate(step, len(self.batches), self.stage["warmup"], self.stage["scheduler"])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.policy.train()
        found, sizes = self._over_batch(self.examples, self.batches[step], backward=True)
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.stage["max_grad_norm"])
        self._check(found, step + 1, float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.monotonic() - begun
        self.tokens += sizes["tokens"]
        return {
            "examples": self.batches.examples_until(step + 1),
            **found,
            "lr": lr,
            "grad_norm": float(norm),
            "tokens_per_second": sizes["tokens"] / seconds,
            "padding_share": 1 - sizes["tokens"] / sizes["padded"],
            "peak_memory_gb": peak_memory_gb(),
            "seconds": seconds,
        }

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """The same quantities over the fixed evaluation subset, as one global batch, after `step` steps."""
        self.policy.eval()
        found, _ = self._over_batch(self.held_out, np.arange(len(self.held_out)), backward=False)
        self._check(found, step)
        return found

    def _check(self, found: dict[str, float], step: int, norm: float = 0.0) -> None:
        """Refuse to go on with weights that have diverged: they must reach no checkpoint and no child."""
        for name, value in (("loss", found["loss"]), ("gradient's norm", norm)):
            if not math.isfinite(value):
                lr = self.stage["lr"]
                raise HalosError(f"the {name} is {value} at step {step}; lower the learning rate (now {lr:g})")

    def _over_batch(
        self, examples: Examples, indices: np.ndarray, backward: bool
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Run a global batch, with backward passes or without.

        Returns:
            What is logged of it, and its `tokens` and `padded` tokens, over all processes.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        device = self.accelerator.device

        def microbatches(roles: tuple[str, ...]) -> list[Microbatch]:
            return [b.to(device) for b in examples.microbatches(indices, roles, self.budget, rank, world)]

        sums = Sums()

        def forward(batch: Microbatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            """Policy and reference log-probabilities by role."""
            real = batch.weight[0]  # 0 in a filler: all that it holds is padding
            sums.add("tokens", batch.tokens * real)
            sums.add("padded", torch.tensor(float(batch.input_ids.numel()), device=device))
            reference = {} if batch.reference is None else batch.by_role(batch.reference)
            return batch.by_role(self.policy(batch)), reference

        statistics: dict[str, Tensor] = {}
        if self.loss.prepass:
            gathered = Sums()
            with torch.no_grad():
                for batch in microbatches(self.loss.prepass):
                    policy, reference = forward(batch)
                    for name, values in self.loss.statistics(policy, reference, _facts(batch, {})).items():
                        gathered.add(name, values, batch.weight)
            statistics = {k: torch.tensor(v, device=device) for k, v in means(gathered.over(self.accelerator)).items()}
        roles = L.ROLES[self.loss.view]
        count = examples.response_tokens(indices, roles[0]) if self.loss.per_token else len(indices)
        parts = microbatches(roles)
        for k, batch in enumerate(parts):
            accumulate = nullcontext() if k == len(parts) - 1 else self.accelerator.no_sync(self.policy)
            with accumulate:
                policy, reference = forward(batch)
                out = self.loss(policy, reference, _facts(batch, statistics))
                objective = (out.losses * batch.weight).sum() / count
                if backward:  # DDP takes the mean over processes of what is a sum
                    self.accelerator.backward(objective * world)
            sums.add("loss", objective)
            for name, rewards in (("chosen", out.chosen_rewards), ("rejected", out.rejected_rewards)):
                if rewards is not None:
                    sums.add(f"rewards/{name}", rewards, batch.weight[0].expand_as(rewards))
            for name, values in out.metrics.items():
                sums.add(name, values, batch.weight)
            for role in roles if reference else ():
                sums.add("kl", (policy[role] - reference[role]).sum(-1), batch.weight)
        totals = sums.over(self.accelerator)
        sizes = {name: int(totals.pop(name)[0]) for name in ("tokens", "padded")}
        found = {**means(totals), "loss": totals["loss"][0]}
        if "rewards/chosen" in found and "rewards/rejected" in found:
            found["rewards/margin"] = found["rewards/chosen"] - found["rewards/rejected"]
        found |= {f"batch/{name}": float(value) for name, value in statistics.items()}
        return found, sizes

    # ---- start, stop, finish -------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Steps already done by an earlier attempt; its log is cut back to them."""
        main = self.accelerator.is_main_process
        if main:
            self.checkpoints.remove_others()
        self.accelerator.wait_for_everyone()
        path = self.checkpoints.latest()
        if path is None:
            if main:
                self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
                self.log_path.write_text("")
            return 0
        policy = self.accelerator.unwrap_model(self.policy)
        meta = self.checkpoints.load(path, policy, self.optimizer.optimizer)
        self.seconds, self.tokens = meta["seconds"], meta["tokens"]
        step = int(meta["step"])
        if main:
            print(f"going on from step {step} of {len(self.batches)}", file=sys.stderr)
            lines = [line for line in self.log_path.read_text().split("\n")[:-1] if json.loads(line)["step"] <= step]
            self.log_path.write_text("".join(line + "\n" for line in lines))
        return step

    def _log(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.log_path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_signal = number

    def _stop_reason(self) -> str | None:
        """Why to stop after this step, the same in all processes."""
        out_of_time = self.deadline is not None and time.monotonic() > self.deadline
        flags = torch.tensor([float(out_of_time), float(self.stop_signal is not None)], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(flags, reduction="sum")
        return "its time limit" if flags[0] else "a signal" if flags[1] else None

    def _save_checkpoint(self, step: int) -> None:
        meta = {"seconds": self.seconds + time.monotonic() - self.started, "tokens": self.tokens}
        if self.accelerator.is_main_process:
            policy = self.accelerator.unwrap_model(self.policy)
            self.checkpoints.save(step, policy, self.optimizer.optimizer, meta)
        self.accelerator.wait_for_everyone()

    def _finish(self, step: int) -> None:
        """Publish the model, then the log, then, as the sign that all is whole, the manifest."""
        state = self.accelerator.get_state_dict(self.policy)
        if not self.accelerator.is_main_process:
            return
        model = self.accelerator.unwrap_model(self.policy).model
        prefix = "model."
        weights = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        save(model, weights, self.parent / "model", self.output / "model")
        shutil.copyfile(self.log_path, self.output / "train.jsonl")
        seconds = self.seconds + time.monotonic() - self.started
        manifest = {
            "config": self.settings,
            "weights": hash_weights(self.output / "model"),
            "inputs": self.inputs,
            "steps": step,
            "tokens": self.tokens,
            "seconds": seconds,
            "gpu_hours": seconds / 3600 * self.accelerator.num_processes * (self.accelerator.device.type == "cuda"),
            "peak_memory_gb": peak_memory_gb(),
            "parameters": self.parameters,
            "processes": self.accelerator.num_processes,
            **environment(),
        }
        write_json(self.output / "manifest.json", manifest)
        shutil.rmtree(self.checkpoints.folder)


def _facts(batch: Microbatch, statistics: dict[str, Tensor]) -> L.Batch:
    return L.Batch(mask=batch.by_role(batch.mask), desirable=batch.desirable, statistics=statistics)


def _tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    """YAML has lists where torch wants tuples (betas)."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}


def peak_memory_gb() -> float:
    """Peak memory of this process: of its GPU where there is one, else of the process itself."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
