"""The objective of a global batch: its loss and gradient, and the metrics for the log."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from halos.distributed.reductions import Gathered, Sums, means
from halos.distributed.sharding import copy_weights, prepare_frozen
from halos.forward.microbatch import Microbatch
from halos.forward.networks import OUTPUTS
from halos.losses import Loss
from halos.losses.base import Batch, Logps, Output, humanline
from halos.train.batches import LocalBatch
from halos.train.routers import Load, Routers
from halos.train.stage import Stage
from halos.views import LABELS


class Given(NamedTuple):
    """The arguments of a loss for one microbatch."""

    policy: Logps
    reference: Logps
    batch: Batch


class Sizes(NamedTuple):
    """Tokens of a global batch, over all processes.

    Attributes:
        tokens: tokens of its sequences, a shared prompt counted for each of them.
        real: positions that the model computed, without padding.
        positions: positions that the model computed.
    """

    tokens: int
    real: int
    positions: int


@dataclass(frozen=True)
class Objective:
    """The mean loss of a global batch, over its examples (or tokens), whatever its microbatches and processes.

    It is weighted by the examples' weights in the data: sum(weight * loss) / sum(weight) over the global batch, as
    torch's cross-entropy is by the weights of classes. So weights that are all scaled by a number change nothing, and
    the learning rate means the same with them.

    Attributes:
        stage: settings of the stage: `humanline` and its bounds.
        loss: the stage's loss.
        policy: the network that is trained, on its devices.
        live: a live reference, on its devices; None where the reference is cached or there is none.
        accelerator: the processes and devices.
        routers: the policy's routers.
        router_weight: weight of the loss that balances their load.
    """

    stage: Stage
    loss: Loss
    policy: nn.Module
    live: nn.Module | None
    accelerator: Accelerator
    routers: Routers
    router_weight: float

    def __call__(self, local: LocalBatch, backward: bool) -> tuple[dict[str, float], Sizes]:
        """Run this process's share of a global batch.

        Args:
            local: its microbatches, on its device.
            backward: whether to add the gradient of the objective to the policy's parameters.

        Returns:
            Metrics by the names of train.jsonl, and sizes; both over all processes.
        """
        sums = Sums()
        with torch.no_grad():
            passes = [(*self._forward(part, sums), part) for part in local.before]
            statistics = self._statistics([(given, part) for given, _, part in passes])
            load = self._load(local, [load for _, load, _ in passes]) if backward and self.router_weight else None
        done: Load | None = None
        for k, part in enumerate(local.parts):
            is_last = k == len(local.parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.policy):
                given, routed = self._forward(part, sums)
                if self.loss.prepass and not local.before:  # the only microbatch, so its statistics are the batch's
                    with torch.no_grad():
                        source = given
                        if part.following is not None:
                            source = _joined(given, self._forward(part.following, sums)[0])
                        statistics = self._statistics([(source, part)])
                out = self.loss(given.policy, given.reference, replace(given.batch, statistics=statistics))
                objective = (out.losses * part.weight).sum() / local.count
                balance: Tensor | float = 0.0
                if routed is not None:
                    done = routed.detach() if done is None else done + routed
                    if backward and self.router_weight:
                        whole = routed.over(self.accelerator) if load is None else load
                        balance = self.router_weight * whole.loss(routed)
                if backward:  # DDP takes the mean of the processes' gradients, and the objective is their sum
                    self.accelerator.backward((objective + balance) * self.accelerator.num_processes)
            sums.add("loss", objective)
            _add_metrics(sums, part, given, out)
            if self.stage.humanline:
                self._add_free(sums, part, given)
        totals = sums.over(self.accelerator)
        sizes = Sizes(*(int(totals.pop(name)[0]) for name in Sizes._fields))
        metrics = {**_with_variances(means(totals)), "loss": totals["loss"][0], **local.metrics}
        if "rewards/chosen" in metrics and "rewards/rejected" in metrics:
            metrics["rewards/margin"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        metrics |= {f"batch/{name}": float(values.mean()) for name, values in statistics.items()}
        if done is not None:
            metrics |= done.over(self.accelerator).metrics()
        return metrics, sizes

    def sync_reference(self) -> None:
        """Move the weights of the live reference to those of the policy, by the stage's `sync_weight` of the way."""
        assert self.live is not None
        unwrap = self.accelerator.unwrap_model
        copy_weights(unwrap(self.policy), unwrap(self.live), self.stage.sync_weight)

    def _load(self, local: LocalBatch, before: list[Load | None]) -> Load | None:
        """The load of the policy's routers by a global batch, known before its first microbatch.

        Args:
            local: this process's share of the batch.
            before: the loads of the earlier pass for the loss's statistics, used where it had the same sequences.

        Returns:
            None where each process has one microbatch, after which the load is known early enough.
        """
        if len(local.parts) == 1:
            return None
        if not local.before or local.before[0].roles != local.parts[0].roles:
            before = [self.routers.run(self.policy, part)[1] for part in local.parts]
        return reduce(add, filter(None, before)).over(self.accelerator)

    def _forward(self, part: Microbatch, sums: Sums) -> tuple[Given, Load | None]:
        """Run policy and reference on a microbatch, whose sizes are added to `sums`; with the load of the routers."""
        for name in Sizes._fields:
            sums.add(name, torch.tensor(float(getattr(part, name))).to(self.accelerator.device, non_blocking=True))
        outputs, load = self.routers.run(self.policy, part)
        out = {name: part.by_role(values) for name, values in outputs.items()}
        unclamped = out.get("logps", {})
        policy: Logps = unclamped
        reference = self._reference(part)
        if self.stage.humanline:
            policy = humanline(policy, reference, self.stage.log_eps_p, self.stage.log_eps_r)
        known = {name: values for name, values in part.labels.items() if name in (*LABELS, "advantages")}
        batch = Batch(
            mask=part.by_role(part.mask), unclamped=unclamped, values=out.get("values", {}),
            entropies=out.get("entropies", {}), rewards=out.get("scores", {}), statistics={},
            labels={name: values for name, values in part.labels.items() if name not in known},
            outputs={name: values for name, values in out.items() if name not in OUTPUTS},
            **known,
        )  # fmt: skip
        return Given(policy, reference, batch), load

    def _add_free(self, sums: Sums, part: Microbatch, given: Given) -> None:
        """Add the response tokens whose log-ratio humanline does not clamp."""
        for role in part.roles:
            ratio = given.batch.unclamped[role].detach() - given.reference[role]
            free = (ratio >= self.stage.log_eps_p) & (ratio <= self.stage.log_eps_r)
            sums.add("humanline/free", free, given.batch.mask[role] * (not part.filler))

    @torch.no_grad()
    def _reference(self, part: Microbatch) -> dict[str, Tensor]:
        """role -> (B, T) log-probabilities under the reference, cached or live; empty for a loss without one."""
        if self.live is not None:
            return part.by_role(self.live(part)["logps"])
        return {} if part.reference is None else part.by_role(part.reference)

    def _statistics(self, passes: list[tuple[Given, Microbatch]]) -> dict[str, Tensor]:
        """name -> (N,) the loss's statistics of all N examples that the processes have run; empty without passes."""
        gathered = Gathered()
        for given, part in passes:
            gathered.add(self.loss.statistics(*given), part.weight)
        return gathered.over(self.accelerator) if passes else {}


def _joined(given: Given, following: Given) -> Given:
    """The arguments for the roles of a microbatch and of the one that follows it, which has the same examples."""
    ours, theirs = given.batch, following.batch
    outputs = {name: {**values, **theirs.outputs[name]} for name, values in ours.outputs.items()}
    batch = replace(
        ours, mask={**ours.mask, **theirs.mask}, unclamped={**ours.unclamped, **theirs.unclamped},
        values={**ours.values, **theirs.values}, outputs=outputs,
    )  # fmt: skip
    return Given({**given.policy, **following.policy}, {**given.reference, **following.reference}, batch)


SQUARED = "/squared"
"""After the name of a mean that is no metric itself, but makes a variance of one."""


def _add_metrics(sums: Sums, part: Microbatch, given: Given, out: Output) -> None:
    counted = torch.full_like(part.weight, not part.filler)
    for name, rewards in (("chosen", out.chosen_rewards), ("rejected", out.rejected_rewards)):
        if rewards is not None:
            sums.add(f"rewards/{name}", rewards, counted[:1].expand_as(rewards))
    for role, logps in given.batch.unclamped.items():
        for name, chosen in _groups(role, given.batch).items():
            sums.add(f"logps/{name}", logps.sum(-1), counted if chosen is None else counted * chosen)
    for name, values in out.metrics.items():
        sums.add(name, values, part.weight)
    for name, values in out.moments.items():
        weight = part.weight if values.ndim == 1 else part.weight[:, None] * given.batch.mask[part.roles[0]]
        sums.add(f"{name}/mean", values, weight)
        sums.add(f"{name}{SQUARED}", values.square(), weight)
    for role in part.roles if given.reference else ():
        sums.add("kl", (given.policy[role] - given.reference[role]).sum(-1), part.weight)


def _groups(role: str, batch: Batch) -> dict[str, Tensor | None]:
    """name -> (B,) which responses of a role belong to it: in a pair the role, else by label or advantage if there is
    one."""
    if role != "response":
        return {role: None}
    chosen = batch.desirable if batch.advantages is None else batch.advantages > 0
    return {"response": None} if chosen is None else {"chosen": chosen, "rejected": ~chosen}


def _with_variances(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics with a variance in place of each mean square."""
    names = [name.removesuffix(SQUARED) for name in metrics if name.endswith(SQUARED)]
    variances = {
        f"{name}/variance": max(0.0, metrics.pop(f"{name}{SQUARED}") - metrics[f"{name}/mean"] ** 2) for name in names
    }
    return metrics | variances


def live_reference(policy: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A frozen copy of a network that is not yet on its devices, placed on them.

    Weights that are not trained (LoRA) are shared with the policy, unless they are sharded over processes.
    """
    shared = [] if accelerator.is_fsdp2 else [p for p in policy.parameters() if not p.requires_grad]
    frozen: Any = copy.deepcopy(policy, {id(p): p for p in shared}).requires_grad_(False).eval()
    frozen.value_head = None
    return prepare_frozen(frozen, accelerator)
