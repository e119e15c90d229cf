"""The one training loop. It reads a loss's traits and never its name."""

from __future__ import annotations

import copy
import json
import math
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from halos.distributed.accelerator import accelerator_for, peak_memory_gb
from halos.distributed.reductions import Gathered, Sums, means
from halos.distributed.sharding import copy_weights, keep_float32, prepare_frozen
from halos.errors import HalosError
from halos.files import hash_each, hash_files, hash_weights, weights_of, write_json
from halos.forward.microbatch import Microbatch
from halos.forward.networks import ResponseLogps, SequenceScores, ValueHead
from halos.forward.packable import pack_rows
from halos.losses.base import Batch, Logps, humanline
from halos.manifest import environment
from halos.models.policy import begin, save
from halos.reference.cache import Reference, expected_hashes, parts_for, read_scores
from halos.settings import read_slice
from halos.tokens.selection import select
from halos.tokens.store import Store
from halos.train.batches import Examples, GlobalBatches, LocalBatch, Prefetch
from halos.train.checkpoints import Checkpoints, fingerprint
from halos.train.objective import Given
from halos.train.optimizer import learning_rate, make_optimizer
from halos.train.settings import Stage
from halos.train.stopping import MARGIN, Stopped


class Trainer:
    """One run: set up by the constructor, done by `run`.

    Args:
        config: the cell's slice.
        parent: folder of the parent, with `model/` and `manifest.json`.
        store: sequence store of the cell's dataset and model.
        output: the run's folder; `model/`, `train.jsonl` and, last, `manifest.json` appear there when done.
        reference: files of the reference's log-probabilities, one for each part the loss reads; none for a live one.
        reference_of: folder of the reference, with `manifest.json`; None where it is the parent.
        scores: a reward model's scores of the store, or none to read the data's own.
        tokens_per_microbatch: tokens of one forward pass on one device, padding included.
        gradient_checkpointing: run forward passes again in the backward pass instead of keeping what they made.
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
        reference_of: Path | None,
        scores: list[Path],
        tokens_per_microbatch: int,
        gradient_checkpointing: bool,
        time_limit: float | None,
    ) -> None:
        self.started = time.monotonic()
        self.deadline = None if time_limit is None else self.started + max(60 * time_limit - MARGIN, 30 * time_limit)
        self.settings = read_slice(config)
        self.seed: int = self.settings["seed"]
        self.stage = Stage(**self.settings["stage"])
        self.loss = self.stage.make_loss()
        self.parent, self.output, self.budget = parent, output, tokens_per_microbatch
        opened = Store(store)
        frozen = expected_hashes(reference_of or parent, opened)
        self.inputs = self._check_inputs(opened, reference, scores)
        if frozen["weights"] != self.inputs["weights"] and reference:
            self.inputs["reference"] = frozen["weights"]
        self.checkpoints = Checkpoints(output / "checkpoints", fingerprint(self.settings, self.inputs))
        self.log_path = self.checkpoints.folder / "train.jsonl"
        self.kept = output / "kept"
        self.accelerator = accelerator_for(self.settings["precision"])
        if self.accelerator.is_fsdp2 and self.stage.optimizer == "Adafactor":
            raise HalosError("torch's Adafactor cannot train sharded weights: choose another, or `parallel: ddp`")

        torch.manual_seed(self.seed)  # new weights are drawn from it: adapters, heads, control tokens
        self.lora = None if self.stage.lora is None else self.stage.lora.model_dump()
        model, self.tokenizer, control = begin(parent / "model", self.settings["attention"], self.loss, self.lora)
        self._check_lengths(opened, model, control)
        self.parameters = sum(p.numel() for p in model.parameters())
        if gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        head = ValueHead(model.config.get_text_config().hidden_size) if self.loss.head == "value" else None
        module: nn.Module = SequenceScores(model) if self.loss.head == "score" else ResponseLogps(model, head)
        padded = pack_rows(module, self._longest(opened, control))
        if padded is not None:
            self._say(f"sequences are padded and prompts not shared, because {padded}")
        self.live: nn.Module | None = None
        if self.stage.sync_every:
            self.live = prepare_frozen(self._frozen_copy(module), self.accelerator)
        if head is not None:
            keep_float32(head, self.accelerator)
        self.policy, self.optimizer = self.accelerator.prepare(module, make_optimizer(module, self.stage))

        cached = Reference(reference, frozen) if reference else None
        rewarded = read_scores(scores[0], opened) if scores else None
        self.examples, self.held_out = (
            Examples(opened, select(opened, split, self.stage.reads, self.stage.selection, self.seed), self.loss.view,
                     cached, rewarded, control, packed=padded is None)
            for split in ("train", "test")
        )  # fmt: skip
        self.batches = GlobalBatches(
            len(self.examples), self.stage.batch_size, self.stage.epochs, self.stage.examples, self.seed,
            self.stage.inner_epochs,
        )  # fmt: skip
        self.ahead = Prefetch(lambda step: self._prepare(self.examples, self.batches[step]), len(self.batches))
        self.seconds, self.tokens = 0.0, 0  # of earlier attempts, then of all
        self.stop_signal: int | None = None

    def _check_inputs(self, store: Store, reference: list[Path], scores: list[Path]) -> dict[str, str]:
        """The hashes of all inputs; refuses other files than the loss reads."""
        parts = parts_for(self.loss, live=self.stage.sync_every is not None)
        if reference and self.stage.sync_every:
            raise HalosError(
                "the reference of this stage is live (humanline or sync_reference), and a cached one would be stale "
                "after the first step: give no --reference"
            )
        if len(reference) != len(parts):
            wanted = ", ".join(parts) or "no part"
            raise HalosError(f"the loss {self.stage.loss} reads {wanted} of the reference: give as many --reference")
        if len(scores) != (self.stage.reward_model is not None):
            raise HalosError("a stage with a reward_model takes its scores by --scores, one without takes none")
        inputs = expected_hashes(self.parent, store)
        for path in scores:
            inputs["scores"] = hash_files([path])
        if self.stage.lora is not None and self.stage.lora.path is not None:
            inputs["adapters"] = hash_weights(Path(self.stage.lora.path))
        return inputs

    def _check_lengths(self, store: Store, model: Any, control: dict[str, int]) -> None:
        """Refuse sequences that are longer than the model has positions for."""
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        longest = self._longest(store, control)
        if positions is not None and longest > positions:
            raise HalosError(
                f"a sequence of {longest} tokens does not fit the model's {positions} positions: lower the dataset's "
                f"max_length"
            )

    @staticmethod
    def _longest(store: Store, control: dict[str, int]) -> int:
        """Tokens of the longest sequence."""
        return int(store.lengths.sum(-1).max()) + bool(control)

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr)

    def _frozen_copy(self, module: nn.Module) -> nn.Module:
        """For a live reference. What is not trained is shared, not copied, where weights are not sharded."""
        fixed = [] if self.accelerator.is_fsdp2 else [p for p in module.parameters() if not p.requires_grad]
        copied: Any = copy.deepcopy(module, {id(p): p for p in fixed}).requires_grad_(False).eval()
        copied.value_head = None
        frozen: nn.Module = copied
        return frozen

    # ---- the loop ------------------------------------------------------------------------------------------

    def run(self) -> None:
        step = self._resume()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        bar = tqdm(total=len(self.batches), initial=step, unit="step", mininterval=1,
                   disable=not self.accelerator.is_main_process, desc=self.stage.loss)  # fmt: skip
        if step == 0:
            self._log({"split": "eval", "step": 0, "examples": 0, **self.evaluate(step)})
        while step < len(self.batches):
            metrics = self.step(step)
            step += 1
            self._log({"split": "train", "step": step, **metrics})
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", tok_s=round(metrics["tokens_per_second"]), refresh=False)
            bar.update()
            last = step == len(self.batches)
            if last or step % self.stage.eval_every == 0:
                self._log({"split": "eval", "step": step, "examples": metrics["examples"], **self.evaluate(step)})
            if self.stage.keep_every and not last and step % self.stage.keep_every == 0:
                self._publish(self.kept / f"step{step}", merge=False)
            reason = self._stop_reason()
            if not last and (reason or step % self.stage.checkpoint_every == 0):
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
        torch.manual_seed(self.seed * 1_000_003 + step * 1_009 + self.accelerator.process_index)  # dropout
        lr = self.stage.lr * learning_rate(step, len(self.batches), self.stage.warmup, self.stage.scheduler)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.policy.train()
        found, sizes = self._over_batch(self.ahead(step), backward=True)
        norm = self._clip()
        self._check(found, step + 1, norm)
        if self.live is not None and self.stage.sync_every and (step + 1) % self.stage.sync_every == 0:
            unwrap = self.accelerator.unwrap_model
            copy_weights(unwrap(self.policy), unwrap(self.live))
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.monotonic() - begun
        self.tokens += sizes["tokens"]
        return {
            "examples": self.batches.examples_until(step + 1),
            **found,
            "lr": lr,
            "grad_norm": norm,
            "tokens_per_second": sizes["tokens"] / seconds,
            "padding_share": 1 - sizes["real"] / sizes["positions"],
            "shared_share": 1 - sizes["real"] / sizes["tokens"],
            "peak_memory_gb": peak_memory_gb(),
            "seconds": seconds,
        }

    def _clip(self) -> float:
        """Clip the gradient by its global norm, a value head's apart; returns the norm before, without the head's."""
        own: list[Tensor] = []
        head: list[Tensor] = []
        for name, parameter in self.policy.named_parameters():
            (head if "value_head." in name else own).append(parameter)
        norm = self.accelerator.clip_grad_norm_(own, self.stage.max_grad_norm)
        if head:
            self.accelerator.clip_grad_norm_(head, self.stage.value_max_grad_norm)
        return float(norm)

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """The same quantities over the fixed evaluation subset, as one global batch, after `step` steps."""
        self.policy.eval()
        found, _ = self._over_batch(self._prepare(self.held_out, np.arange(len(self.held_out))), backward=False)
        self._check(found, step)
        return found

    def _check(self, found: dict[str, float], step: int, norm: float = 0.0) -> None:
        """Refuse to go on with weights that have diverged: they must reach no checkpoint and no child."""
        for name, value in (("loss", found["loss"]), ("gradient's norm", norm)):
            if not math.isfinite(value):
                lr = self.stage.lr
                raise HalosError(f"the {name} is {value} at step {step}; lower the learning rate (now {lr:g})")

    def _prepare(self, examples: Examples, indices: np.ndarray) -> LocalBatch:
        """This process's share of a global batch, on its device."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return examples.local_batch(indices, self.loss, self.budget, rank, world).to(self.accelerator.device)

    def _over_batch(self, share: LocalBatch, backward: bool) -> tuple[dict[str, float], dict[str, int]]:
        """Run a global batch, with backward passes or without.

        Returns:
            What is logged of it, and over all processes: `tokens` of its sequences, `positions` that were computed, and
            how many of them are `real`, no padding.
        """
        world = self.accelerator.num_processes
        sums = Sums()
        with torch.no_grad():
            statistics = self._statistics([(self._forward(part, sums), part) for part in share.before])
        for k, part in enumerate(share.parts):
            accumulate = nullcontext() if k == len(share.parts) - 1 else self.accelerator.no_sync(self.policy)
            with accumulate:
                policy, reference, batch = given = self._forward(part, sums)
                if self.loss.prepass and not share.before:  # all is in this one microbatch, so its statistics are those
                    with torch.no_grad():
                        seen = given if part.following is None else self._forward(part.following, sums)
                        statistics = self._statistics([(seen, part)])
                out = self.loss(policy, reference, replace(batch, statistics=statistics))
                objective = (out.losses * part.weight).sum() / share.count
                if backward:  # DDP takes the mean over processes of what is a sum
                    self.accelerator.backward(objective * world)
            sums.add("loss", objective)
            for name, rewards in (("chosen", out.chosen_rewards), ("rejected", out.rejected_rewards)):
                if rewards is not None:
                    sums.add(f"rewards/{name}", rewards, (part.weight[:1] > 0).expand_as(rewards))
            for name, values in out.metrics.items():
                sums.add(name, values, part.weight)
            for role in part.roles if reference else ():
                sums.add("kl", (policy[role] - reference[role]).sum(-1), part.weight)
        totals = sums.over(self.accelerator)
        sizes = {name: int(totals.pop(name)[0]) for name in ("tokens", "real", "positions")}
        found = {**means(totals), "loss": totals["loss"][0]}
        if "rewards/chosen" in found and "rewards/rejected" in found:
            found["rewards/margin"] = found["rewards/chosen"] - found["rewards/rejected"]
        found |= {f"batch/{name}": float(values.mean()) for name, values in statistics.items()}
        return found, sizes

    def _forward(self, part: Microbatch, sums: Sums) -> Given:
        """What a loss is called with; its sizes are added to the sums."""
        for name, count in (("tokens", part.tokens), ("real", part.real), ("positions", part.positions)):
            sums.add(name, torch.tensor(float(count)).to(self.accelerator.device, non_blocking=True))
        out = {name: part.by_role(values) for name, values in self.policy(part).items()}
        policy: Logps = out.get("logps", {})
        reference = self._reference(part)
        if self.stage.humanline:
            policy = humanline(policy, reference, self.stage.log_eps_p, self.stage.log_eps_r)
        batch = Batch(
            mask=part.by_role(part.mask), values=out.get("values", {}), rewards=out.get("scores", {}), statistics={},
            **part.labels,
        )  # fmt: skip
        return policy, reference, batch

    def _statistics(self, passes: list[tuple[Given, Microbatch]]) -> dict[str, Tensor]:
        """The loss's statistics of what all processes have run."""
        gathered = Gathered()
        for given, part in passes:
            gathered.add(self.loss.statistics(*given), part.weight)
        return gathered.over(self.accelerator) if passes else {}

    @torch.no_grad()
    def _reference(self, batch: Microbatch) -> dict[str, Tensor]:
        """role -> (B, T) log-probabilities under the reference, cached or live; empty for a loss without one."""
        if self.live is not None:
            return batch.by_role(self.live(batch)["logps"])
        return {} if batch.reference is None else batch.by_role(batch.reference)

    # ---- start, stop, finish -------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Steps already done by an earlier attempt; its log is cut back to them. What another run left is removed."""
        main = self.accelerator.is_main_process
        if main:
            self.checkpoints.remove_others()
        self.accelerator.wait_for_everyone()
        path = self.checkpoints.latest()
        if path is None:
            if main:
                self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
                self.log_path.write_text("")
                (self.output / "manifest.json").unlink(missing_ok=True)  # it would say that this run is done
                shutil.rmtree(self.kept, ignore_errors=True)
            return 0
        meta = self.checkpoints.load(path, *self._parts(), self.accelerator)
        self.seconds, self.tokens = meta["seconds"], meta["tokens"]
        step = int(meta["step"])
        self._say(f"going on from step {step} of {len(self.batches)}")
        if main:
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
        self.checkpoints.save(step, *self._parts(), meta, self.accelerator)

    def _parts(self) -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
        """What a checkpoint holds: the modules by the names of their files, and the optimiser."""
        modules = {"weights": self.policy} | ({} if self.live is None else {"reference": self.live})
        unwrapped = {name: self.accelerator.unwrap_model(module) for name, module in modules.items()}
        return unwrapped, self.optimizer.optimizer

    def _finish(self, step: int) -> None:
        """Publish the model, then the log, then, as the sign that all is whole, the manifest."""
        self._publish(self.output / "model", merge=True)
        if not self.accelerator.is_main_process:
            return
        shutil.copyfile(self.log_path, self.output / "train.jsonl")
        seconds = self.seconds + time.monotonic() - self.started
        files = hash_each(self.output / "model")
        manifest = {
            "config": self.settings,
            "weights": weights_of(files),
            "files": files,
            "inputs": self.inputs,
            "data": {"train": self.examples.counts(), "test": self.held_out.counts()},
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

    def _publish(self, folder: Path, merge: bool) -> None:
        """Write a model's folder, LoRA merged or its adapters alone."""
        state = self.accelerator.get_state_dict(self.policy)
        if not self.accelerator.is_main_process:
            return
        prefix = "model."
        weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        save(self._model(), weights, self.parent / "model", folder, self.tokenizer, merge)

    def _model(self) -> Any:
        """The model without its wrappers; a fresh one where its weights are sharded, to put them together in."""
        if not self.accelerator.is_fsdp2:
            return self.accelerator.unwrap_model(self.policy).model
        return begin(self.parent / "model", self.settings["attention"], self.loss, self.lora)[0]
