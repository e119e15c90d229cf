"""The training loop. It reads a loss's traits and never its name."""

from __future__ import annotations

import math
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from halos.distributed.accelerator import accelerator_for, peak_memory_gb
from halos.distributed.loading import Weights, build, from_main
from halos.distributed.sharding import keep_float32, local, name_layers, shard
from halos.errors import Diverged, HalosError
from halos.files import whole
from halos.forward.packable import check_side_by_side
from halos.manifest import KEPT, VALUE_HEAD
from halos.models.fused import apply_liger, compile_layers
from halos.models.load import hold_in_compute_type
from halos.models.lora import quantised_share
from halos.seeds import derive
from halos.train.averaged import Averaged
from halos.train.batches import Examples, GlobalBatches, LocalBatch, Prefetch
from halos.train.checkpoints import Checkpoints, fingerprint, read_meta, trained
from halos.train.dropout import Dropout
from halos.train.early import Course
from halos.train.effects import without_effect
from halos.train.inputs import Inputs
from halos.train.log import PREVIEWS, TRAINING, Log, Training
from halos.train.objective import Objective, live_reference
from halos.train.optimizer import learning_rate, make_optimizer
from halos.train.policy import Policy
from halos.train.previews import Previews
from halos.train.publish import Publisher
from halos.train.routers import Routers, check_weight
from halos.train.settings import UNSHARDED
from halos.train.snapshots import kept_snapshot, snapshot_steps, step_at
from halos.train.stopping import Stopped, Stopping
from halos.train.sweep import TRIAL
from halos.train.trackers import Shown, Trackers, Tracking
from halos.train.unreached import settle_unreached
from halos.train.utilisation import Utilisation


class Trainer:
    """One run: the constructor builds it, `run` trains, resumes and publishes it.

    Args:
        inputs: everything that the run reads.
        output: the run's folder; `model/`, `train.jsonl` and, last, `manifest.json` appear there when it is done.
        tokens_per_microbatch: tokens of one forward pass on one device, padding included.
        gradient_checkpointing: run forward passes again in the backward pass instead of keeping their activations.
        stopping: the time limit; without one the run stops for signals alone.
        tracking: the trackers that show the run.

    Raises:
        HalosError: the model or the launch does not fit the stage.
    """

    def __init__(
        self,
        inputs: Inputs,
        output: Path,
        tokens_per_microbatch: int,
        gradient_checkpointing: bool = False,
        stopping: Stopping | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self.started = time.monotonic()
        self.tracking = tracking or Tracking()
        self.trackers: Trackers | None = None  # of the main process
        self.stopping = stopping or Stopping(None)
        self.inputs, self.stage, self.loss = inputs, inputs.stage, inputs.loss
        self.output, self.budget, self.seed = output, tokens_per_microbatch, inputs.settings.seed
        self.accelerator = accelerator_for(inputs.settings.precision)
        if self.accelerator.is_fsdp2 and self.stage.optimizer in UNSHARDED:
            raise HalosError(
                f"{self.stage.optimizer} cannot train sharded weights: choose another optimizer, or `parallel: ddp`"
            )
        if self.accelerator.is_fsdp2 and inputs.settings.quantization is not None:
            raise HalosError("quantised weights cannot be sharded: set `parallel: ddp` in the model's resources")

        torch.manual_seed(derive(self.seed, "weights"))  # of new ones: adapters, heads, control tokens
        begun = self._begin(gradient_checkpointing)
        packed = begun.unpacked_because is None
        if not packed:
            self._say(f"packing is off: {begun.unpacked_because}")
        if begun.unchecked_because is not None:
            self._say(f"gradient_checkpointing is off: {begun.unchecked_because}")
        if self.accelerator.is_fsdp2:
            check_side_by_side(begun.network)
        self.dropout = Dropout(begun.network, self.stage.dropout_in_force)
        self.dropout.check_attention(inputs.settings.attention)
        if self.dropout.text is not None:
            self._say(self.dropout.text)
        self.tokenizer, self.parameters = begun.tokenizer, begun.parameters
        if begun.coverage.others:
            self._say(begun.coverage.text)
        if inputs.settings.quantization is not None:
            self._say(f"{quantised_share(begun.network):.0%} of the weights are held as {inputs.settings.quantization}")
        routers = Routers(begun.network)
        router_weight = check_weight(self.stage.router_weight, routers)
        if routers.lacking is None:
            self._say(f"the loss that balances the experts' load has the weight {router_weight:g}")
        if not self.accelerator.is_fsdp2 or self.accelerator.is_main_process:  # which has the weights to try it with
            left = settle_unreached(begun.network, self.accelerator, self.dropout.drops_layers)
            if left is not None:
                self._say(left)
        if self.stage.lora is not None and not self.accelerator.is_fsdp2:  # which shards weights of one type
            hold_in_compute_type(begun.network.model, inputs.settings.precision)
        name_layers(begun.network)
        if inputs.settings.liger:  # after all that is tried on the CPU, and before a live reference is copied
            apply_liger(begun.network.model)
        self.utilisation = Utilisation.of(begun.network, inputs.settings.precision, self.stage.sync_every is not None)
        weights = Weights.take(begun.network, self.accelerator) if self.accelerator.is_fsdp2 else None
        self.live = live_reference(begun.network, self.accelerator) if self.stage.sync_every else None
        if inputs.settings.compile:
            for network in filter(None, (begun.network, self.live)):
                compile_layers(network)
        if begun.value_head is not None:
            head = inputs.value_head
            self._say("the value head is fresh: the parent has none" if head is None else f"the value head is {head}")
            keep_float32(begun.value_head, self.accelerator)
        if weights is None:
            optimizer = make_optimizer(begun.network, self.stage)
            self.policy, self.optimizer = self.accelerator.prepare(begun.network, optimizer)
        else:
            self.policy = shard(begun.network, self.accelerator)
            weights.hand_out(*filter(None, (self.policy, self.live)))
            self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(self.policy, self.stage))
        self.objective = Objective(
            self.stage, self.loss, self.policy, self.live, self.accelerator, routers, router_weight
        )

        self.examples = inputs.examples("train", begun.control, packed)
        evaluated = "validation" in inputs.store.splits
        self.held_out = inputs.examples("validation", begun.control, packed) if evaluated else None
        if self.held_out is None:
            self._say(
                f"dataset {inputs.store.meta.dataset} has no validation split: nothing is evaluated during training"
            )
        self.batches = GlobalBatches(
            len(self.examples), self.stage.batch_size, self.stage.epochs, self.stage.examples, self.seed,
            self.stage.inner_epochs,
        )  # fmt: skip
        self.steps = step_at(self.stage.stop_after or 1, len(self.batches))
        self.snapshots = snapshot_steps(self.stage.snapshots, len(self.batches))
        if inputs.resumed is not None:
            done = int(read_meta(inputs.resumed / KEPT)["step"])
            if done >= len(self.batches):
                raise HalosError(
                    f"{inputs.resumed} has {done} steps and this run would end at {len(self.batches)}: raise epochs or "
                    f"examples, which count those of that run, too"
                )
        rounds = max(1, inputs.settings.rounds - inputs.settings.round + 1)  # this one and those that follow
        self.earlier = 0 if inputs.before is None else int(read_meta(inputs.before)["step"])
        self.scheduled = self.earlier + rounds * len(self.batches)
        for line in without_effect(
            self.stage, inputs.store, self.examples, len(self.batches), self.scheduled, self.seed
        ):
            self._say(line)
        self.ahead = Prefetch(lambda step: self._prepare(self.examples, self.batches[step]), self.steps)

        self.checkpoints = Checkpoints(output / "checkpoints", fingerprint(inputs.settings.identity, inputs.hashes))
        self.log = Log(self.checkpoints.folder / "train.jsonl")
        self.previewed = Log(self.checkpoints.folder / PREVIEWS)
        self.previews = self._previews(begun)
        self.course = Course()
        policy, average = self.accelerator.unwrap_model(self.policy), self.stage.average
        self.average = None if average is None else Averaged(average, partial(trained, policy), len(self.batches))
        self.publisher = Publisher(
            inputs, self.policy, self.tokenizer, self.accelerator, begun.coverage, self.held_out or self.examples
        )
        self.seconds, self.tokens = 0.0, 0  # of earlier attempts, then of all

    def _begin(self, gradient_checkpointing: bool) -> Policy:
        """The network to train; a benchmark makes another than the parent's."""
        return build(partial(Policy.begin, self.inputs, gradient_checkpointing), self.accelerator)

    def _previews(self, begun: Policy) -> Previews | None:
        """What samples responses at evaluations, in the main process; None where nothing does."""
        if self.stage.preview_prompts is None or not self.accelerator.is_main_process:
            return None
        if self.held_out is None:
            self._say("preview_prompts: there are no validation prompts to answer")
            return None
        if self.accelerator.is_fsdp2:
            self._say("preview_prompts: weights that are sharded answer no prompts, so there will be no previews")
            return None
        model: Any = self.accelerator.unwrap_model(self.policy).model
        return Previews(
            model.get_base_model() if hasattr(model, "get_base_model") else model, self.inputs.parent, self.tokenizer,
            self.held_out, begun.control, self.stage.preview_prompts, self.stage.preview_tokens,
            self.accelerator.autocast,
        )  # fmt: skip

    def run(self) -> None:
        """Train to the end from the newest checkpoint, and publish the model: the last weights, with early stopping
        those of the best evaluation, with `average` their average.

        A trial of a sweep whose training diverges gets its parent's model, and a manifest that says so: it is not
        chosen, and the others go on.

        Raises:
            Diverged: the loss or the gradient is no longer finite.
            Stopped: by the time limit or a signal, with a checkpoint.
        """
        diverged, step, stopped = None, self._resume(), None
        if self.accelerator.is_main_process:
            self._show()
        try:
            step = self._train(step)
            stopped = step if self.course.is_over and step < self.steps else None
        except Diverged as error:
            if TRIAL not in self.inputs.settings.method:
                raise
            diverged = str(error)
            self._say(f"{error}; this is a trial of a sweep, which will not choose it")
        if diverged is None:
            self._keep_state(step)
            step = self._take_best(step)
        if self.accelerator.is_main_process and self.previewed.path.is_file():
            with whole(self.output / PREVIEWS) as temporary:
                shutil.copyfile(self.previewed.path, temporary)
        self._publish(self.output, step, diverged, stopped)
        if self.accelerator.is_main_process:
            if self.trackers is not None:
                self.trackers.finish()
            shutil.rmtree(self.checkpoints.folder, ignore_errors=diverged is not None)

    def _publish(
        self, output: Path, step: int, diverged: str | None = None, stopped: int | None = None,
        share: float | None = None,
    ) -> None:  # fmt: skip
        """Write the outputs of the run, or of a snapshot, as they are after `step` steps; see `Publisher.run`."""
        data = {"train": self.examples.counts()} | ({"validation": self.held_out.counts()} if self.held_out else {})
        with self.dropout.as_configured(), nullcontext() if self.average is None else self.average.in_force(step):
            self.publisher.run(
                output, self.log.path, data, step, self.tokens, self._total_seconds(), self.parameters, diverged,
                stopped, share,
            )  # fmt: skip

    def _train(self, step: int) -> int:
        """Train from `step` steps on to the end.

        Returns:
            The steps that are done.
        """
        self.stopping.listen()
        bar = tqdm(total=self.steps, initial=step, unit="step", mininterval=1,
                   disable=not self.accelerator.is_main_process, desc=self.stage.loss_name)  # fmt: skip
        if step == 0 and self.stage.eval_first and self.course.best is None:
            self._evaluate(step, examples=0)
            self._track()
            if self._is_best(step):
                self._save_checkpoint(step, must=True)
        while step < self.steps and not self.course.is_over:
            metrics = self.step(step)
            step += 1
            self._record({"split": "train", "step": step, **metrics})
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", tok_s=round(metrics["tokens_per_second"]), refresh=False)
            bar.update()
            last, number = step == self.steps, self.snapshots.get(step)
            if last or number or step % self.stage.eval_every == 0:
                self._evaluate(step, metrics["examples"])
            self._track()
            last = last or self.course.is_over
            if self.stage.keep_every and not last and step % self.stage.keep_every == 0:
                with self.dropout.as_configured():
                    self.publisher.model(self._kept / f"step{step}", merge=False)
            if number and self.stage.snapshots:
                self._publish(kept_snapshot(self.output, number), step, share=number / self.stage.snapshots)
            reason = self.stopping.reason(self.accelerator)
            if last or reason or self._is_best(step) or step % self.stage.checkpoint_every == 0:
                self._save_checkpoint(step, must=not last)
                if reason and not last:
                    bar.close()
                    raise Stopped(f"stopped by {reason} after step {step} of {self.steps}, with a checkpoint; "
                                  f"run the same command again to go on")  # fmt: skip
        bar.close()
        return step

    def step(self, step: int) -> dict[str, Any]:
        """One optimiser step over one global batch, counted from 0.

        Returns:
            The step's line of the log.
        """
        begun = time.monotonic()
        torch.manual_seed(derive(self.seed, "dropout", step, self.accelerator.process_index))
        lr = self.stage.lr * learning_rate(self.earlier + step, self.scheduled, self.stage.warmup,
                                           self.stage.scheduler, self.stage.min_lr_ratio, self.stage.decay)  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.dropout.train(self.policy)
        batch = self.ahead(step)
        metrics, sizes = self.objective(batch, backward=True)
        norm = self._clip()
        self._check_finite(metrics["loss"], step + 1, updates=step, norm=norm)
        if self.stage.sync_every and (step + 1) % self.stage.sync_every == 0:
            self.objective.sync_reference()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(step + 1)
        seconds = time.monotonic() - begun
        self.tokens += sizes.tokens
        return {
            "examples": self.batches.examples_until(step + 1),
            **metrics,
            "lr": lr,
            "grad_norm": norm,
            "tokens_per_second": sizes.tokens / seconds,
            "examples_per_second": batch.examples / seconds,
            "padding_share": 1 - sizes.real / sizes.positions,
            "shared_share": 1 - sizes.real / sizes.tokens,
            **({} if self.utilisation is None else {"mfu": self.utilisation(batch, seconds)}),
            "peak_memory_gb": peak_memory_gb(),
            "seconds": seconds,
        }

    def _clip(self) -> float:
        """Clip the gradient by its global norm, a value head's by a norm of its own.

        Returns:
            The norm before clipping, without the value head's.
        """
        model: list[Tensor] = []
        head: list[Tensor] = []
        for name, parameter in self.policy.named_parameters():
            (head if "value_head." in name else model).append(parameter)
        norm = self.accelerator.clip_grad_norm_(model, self.stage.max_grad_norm or math.inf)
        if head:
            self.accelerator.clip_grad_norm_(head, self.stage.value_max_grad_norm or math.inf)
        return float(norm)

    def _evaluate(self, step: int, examples: int) -> None:
        """Log the metrics of the held-out examples, if there are any, after `step` steps over so many examples."""
        if self.held_out is not None:
            self._record({"split": "eval", "step": step, "examples": examples, **self.evaluate(step)})
            self._follow()
        if self.previews is not None:
            with self._averaged(step):
                lines = self.previews.sample(step)
            for line in lines:
                self.previewed.add(line.model_dump())

    def _follow(self) -> None:
        """See what the evaluations in the log say about the end of the training, in every process."""
        early = self.stage.early_stopping
        if early is not None:
            self.course = from_main(lambda: early.course(self.log.evaluations()), self.accelerator)

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the held-out examples, of which there must be some, as one global batch, after `step` steps;
        with `average`, of the averaged weights as soon as there are some."""
        assert self.held_out is not None
        self.policy.eval()
        batch = self._prepare(self.held_out, np.arange(len(self.held_out)))
        with self._averaged(step):
            metrics, _ = self.objective(batch, backward=False)
        self._check_finite(metrics["loss"], step, updates=step)
        return metrics

    def _averaged(self, step: int) -> AbstractContextManager[None]:
        """A block in which the policy has the averaged weights after `step` steps, where there are some."""
        return nullcontext() if self.average is None else self.average.in_force(step)

    def _check_finite(self, loss: float, step: int, updates: int, norm: float = 0.0) -> None:
        """Refuse to go on with weights that have diverged: they must reach no checkpoint and no child.

        Before the first of the `updates`, the learning rate cannot be the reason.
        """
        for name, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                advice = f"lower the learning rate (now {self.stage.lr:g})" if updates else self._not_finite_because()
                error = Diverged if updates else HalosError
                raise error(f"the {name} is {value} at step {step}; {advice}")

    def _not_finite_because(self) -> str:
        """What to do about a loss that is not finite before any weight was changed."""
        for name, parameter in self.accelerator.unwrap_model(self.policy).named_parameters():
            if not local(parameter).isfinite().all():
                return (
                    f"the weights that it begins with are not finite ({name}, from {self.inputs.parent}): take others"
                )
        precision = self.inputs.settings.precision
        return (
            "no weight has changed yet, so the learning rate is not the reason: look at the scores and weights in the "
            "data and at the reference's log-probabilities"
            + (", or set `precision: fp32`" if precision != "fp32" else "")
        )

    def _prepare(self, examples: Examples, indices: np.ndarray) -> LocalBatch:
        """This process's share of a global batch, on its device."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return examples.local_batch(indices, self.loss, self.budget, rank, world).to(self.accelerator.device)

    # ---- resuming and logging ------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Load the newest checkpoint, or clear away what another run left in the folder.

        Returns:
            The steps that are done; the log is cut back to them.
        """
        main = self.accelerator.is_main_process
        if main:
            self.checkpoints.remove_others()
            if self.inputs.before is not None:  # the round before is done with what it went on from
                earlier = self.inputs.before.parents[1] / f"round{self.inputs.settings.round - 2}"
                shutil.rmtree(earlier / KEPT, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        path = self.checkpoints.latest()
        if path is None:
            if main:
                self.log.start()
                self.previewed.path.unlink(missing_ok=True)
                (self.output / PREVIEWS).unlink(missing_ok=True)
                (self.output / "manifest.json").unlink(missing_ok=True)  # it would say that this run is done
                (self.output / VALUE_HEAD).unlink(missing_ok=True)
                shutil.rmtree(self._kept, ignore_errors=True)
                shutil.rmtree(self.output / KEPT, ignore_errors=True)
            if self.inputs.before is not None:
                self.checkpoints.load(self.inputs.before, {}, self.optimizer.optimizer, self.accelerator)
                self._say(f"the optimiser goes on from step {self.earlier}")
            return self._go_on() if self.inputs.resumed is not None else 0
        meta = self.checkpoints.load(path, *self._trained(), self.accelerator)
        self.seconds, self.tokens = meta["seconds"], meta["tokens"]
        step = int(meta["step"])
        self._say(f"going on from step {step} of {self.steps}")
        if main:
            self.log.cut(step)
            if self.previewed.path.is_file():
                self.previewed.cut(step)
        self._follow()
        return step

    def _go_on(self) -> int:
        """Load the state at the end of the run that this one goes on from, whose log it takes over.

        Returns:
            The steps of that run.
        """
        run = self.inputs.resumed
        assert run is not None
        step = int(self.checkpoints.load(run / KEPT, *self._trained(), self.accelerator)["step"])
        if self.accelerator.is_main_process:
            shutil.copyfile(run / "train.jsonl", self.log.path)
            if (run / PREVIEWS).is_file():
                shutil.copyfile(run / PREVIEWS, self.previewed.path)
        self._say(f"going on from {run}, step {step} of {len(self.batches)}")
        return step

    def _save_checkpoint(self, step: int, must: bool) -> None:
        """Save the state after `step` steps. After the last one it need not be, so that a disk with room for the model
        alone is enough; but a model that is refused, or a stop while it is published, then costs no training. With
        early stopping, the checkpoint of the best evaluation is written right after its line of the log, and stays; a
        run that dies between the two goes on from an older one, without the line."""
        meta = {"seconds": self._total_seconds(), "tokens": self.tokens}
        try:
            self.checkpoints.save(step, *self._trained(), meta, self.accelerator, keep=self.course.best)
        except HalosError:
            if must or self.accelerator.num_processes > 1:  # the others wait for this one
                raise

    def _is_best(self, step: int) -> bool:
        """Whether the best evaluation so far, with early stopping, was after `step` steps."""
        return self.course.best == step

    def _take_best(self, step: int) -> int:
        """Load the weights of the best evaluation, with early stopping, where they are not those after `step` steps.

        Returns:
            The steps of the policy's weights.
        """
        best = self.course.best
        if best is None or best == step:
            return step
        self._say(f"the best evaluation was after step {best} of {step}: its weights are published")
        self.checkpoints.load(self.checkpoints.at(best), *self._trained(), self.accelerator)
        return best

    def _keep_state(self, step: int) -> None:
        """Keep the state at the end, where another run goes on from it: the next round of the optimiser's state."""
        settings, (weights, optimizer) = self.inputs.settings, self._trained()
        if settings.round < settings.rounds:
            step, weights = self.earlier + step, {}
        elif not self.stage.keep_optimizer:
            return
        meta = {"seconds": self._total_seconds(), "tokens": self.tokens}
        self.checkpoints.write(self.output / KEPT, step, weights, optimizer, meta, self.accelerator)

    def _trained(self) -> tuple[dict[str, dict[str, Tensor]], torch.optim.Optimizer]:
        """The weights of a checkpoint by the names of their files, and the optimiser."""
        unwrap = self.accelerator.unwrap_model
        weights = {"weights": trained(unwrap(self.policy))}
        if self.live is not None:
            weights["reference"] = trained(unwrap(self.policy), of=unwrap(self.live))
        if self.average is not None:
            weights["average"] = self.average.weights
        return weights, self.optimizer.optimizer

    def _total_seconds(self) -> float:
        return self.seconds + time.monotonic() - self.started

    @property
    def _kept(self) -> Path:
        return self.output / "kept"

    def _show(self) -> None:
        """Write down what `watch` reads beside the log, and start the trackers."""
        settings = self.inputs.settings
        known = Training.begin(self.checkpoints.folder / TRAINING, self.checkpoints.fingerprint, self.steps)
        if self.tracking.names:
            done = max((int(line["step"]) for line in self.log.lines()[0]), default=-1)
            self.trackers = Trackers(self.tracking, Shown(settings.name, known.key, settings.content, done), self.log)

    def _track(self) -> None:
        if self.trackers is not None:
            self.trackers.update()

    def _record(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.log.add(record)

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr)
