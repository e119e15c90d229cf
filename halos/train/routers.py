"""Load balancing of the routers of mixtures of experts (Fedus et al. 2021, Switch Transformers, equations 4 to 6).

The loss is E * sum over experts of f * P: f is how many of a token's choices fall on the expert on average, without
gradient, and P is the mean probability of the expert; both are means over the tokens and layers of the global batch, as
in transformers' `load_balancing_loss_func`, for which E is the number of experts of a layer.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from halos.errors import HalosError
from halos.forward.layout import Layout
from halos.forward.microbatch import Microbatch


@dataclass(frozen=True)
class Load:
    """What the routers did with some tokens.

    Attributes:
        chosen: (L, E) how often each of the E experts of each of the L layers was chosen.
        probability: (E,) the sum of its probabilities, over the layers, too.
        tokens: () number of tokens, each counted in every layer.
    """

    chosen: Tensor
    probability: Tensor
    tokens: Tensor

    def __add__(self, other: Load) -> Load:
        return Load(
            self.chosen + other.chosen, self.probability + other.probability.detach(), self.tokens + other.tokens
        )

    def detach(self) -> Load:
        return Load(self.chosen, self.probability.detach(), self.tokens)

    def over(self, accelerator: Any) -> Load:
        """The load of all processes together, without gradient."""
        if accelerator.num_processes == 1:
            return self.detach()
        rows = torch.cat([self.chosen, self.probability.detach()[None]]).flatten()
        total = accelerator.reduce(torch.cat([rows, self.tokens[None]]), reduction="sum")
        rows = total[:-1].view(-1, self.chosen.shape[1])
        return Load(rows[:-1], rows[-1], total[-1])

    def loss(self, part: Load | None = None) -> Tensor:
        """() the loss of a global batch, of which this is the load.

        Args:
            part: the load of a microbatch; the result is then its share of the loss, with gradient.
        """
        probability = (self if part is None else part).probability
        frequency = self.chosen.sum(0) / self.tokens
        return len(frequency) * (frequency * probability).sum() / self.tokens

    def metrics(self) -> dict[str, float]:
        """The loss, and the largest and the smallest load of an expert, as multiples of an even share."""
        share = self.chosen * self.chosen.shape[1] / self.chosen.sum(1, keepdim=True)
        return {"router/loss": float(self.loss()), "router/load_max": float(share.max()),
                "router/load_min": float(share.min())}  # fmt: skip


class Routers:
    """The routers of a network, whose logits are recorded while it runs.

    They are the modules whose output the model's class itself records as `router_logits`.

    Args:
        network: `ResponseLogps` or `SequenceScores`, not yet on its devices.

    Attributes:
        weight: the weight of the loss that the model's config asks for; 0 unless it has `output_router_logits: true`.
        lacking: why the model has no such loss, as a clause; None where it has.
    """

    def __init__(self, network: nn.Module) -> None:
        self._logits: list[Tensor] = []
        self._recording = False
        wrapped: Any = network
        self._network = wrapped
        model = wrapped.model.get_base_model() if hasattr(wrapped.model, "get_base_model") else wrapped.model
        config = model.config.get_text_config()
        routers = list(_routers(model, []))
        self.lacking = _lacking(model, bool(routers))
        self.weight, self._choices = 0.0, 0
        if self.lacking is not None:
            return
        self._choices = int(getattr(model, "num_experts_per_tok", None) or config.num_experts_per_tok)
        if getattr(model.config, "output_router_logits", False) or getattr(config, "output_router_logits", False):
            names = ("router_aux_loss_coef", "aux_loss_coef")
            given = (getattr(owner, name, None) for owner in (model, config) for name in names)
            self.weight = float(next((value for value in given if value is not None), 0.0))
        for module, index in routers:
            module.register_forward_hook(self._hook(index))

    def _hook(self, index: int) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._recording:  # not while gradient checkpointing runs a layer again
                logits = output[index] if isinstance(output, tuple) else output
                self._logits.append(logits.flatten(0, -2))

        return record

    def run(self, network: nn.Module, part: Microbatch) -> tuple[dict[str, Tensor], Load | None]:
        """Run a network on a microbatch.

        Returns:
            Its outputs, and the load of its routers, in which a token of a prompt that sequences share counts for each
            of them, and padding not at all; None where it has no loss of routers, and for a row of branches alone.
        """
        self._logits.clear()
        segments = part.layout.segments
        self._recording = self.lacking is None and (segments is None or not segments.key_offset)
        try:
            out: dict[str, Tensor] = network(part)
        finally:
            self._recording = False
        return out, self._load(part) if self._logits else None

    def _load(self, part: Microbatch) -> Load:
        device = self._logits[0].device
        layouts = self._network.grouping.parts(part.layout)
        weights = [torch.from_numpy(token_counts(layout) * (not part.filler)).to(device) for layout in layouts]
        routers = len(self._logits) // len(layouts)
        chosen: list[Tensor] = []
        probability = torch.zeros((), device=device)
        for k, logits in enumerate(self._logits):
            weight = weights[k // routers]  # all routers of one layout, then those of the next
            scores = logits.float().softmax(-1)
            experts = scores.detach().topk(self._choices, dim=-1).indices
            counts = torch.zeros(scores.shape[-1], device=weight.device)
            counts = counts.index_add(0, experts.flatten(), weight.repeat_interleave(self._choices))
            if k < routers:
                chosen.append(counts)
            else:
                chosen[k % routers] = chosen[k % routers] + counts
            probability = probability + weight @ scores
        self._logits.clear()
        return Load(torch.stack(chosen), probability, torch.stack([w.sum() for w in weights]).sum() * routers)


def token_counts(layout: Layout) -> np.ndarray:
    """(R * L,) float32: in how many sequences each position of a layout's rows is; 0 for padding."""
    size = layout.input_ids.numel()
    if layout.segments is None:
        columns = np.arange(layout.input_ids.shape[1])
        return (columns < layout.lengths[:, None]).astype(np.float32).reshape(-1)
    s = layout.segments
    change = np.zeros(size + 1)
    for start, length in ((s.prompt_start, s.prompt_length), (s.start, s.length)):
        np.add.at(change, start, 1)
        np.add.at(change, start + length, -1)
    counts: np.ndarray = np.cumsum(change[:-1]).astype(np.float32)
    return counts


def check_weight(weight: float | None, routers: Routers) -> float:
    """The weight of the routers' loss of a run.

    Args:
        weight: the stage's; None for what the model's config asks for.
        routers: those of its model.

    Raises:
        HalosError: the stage gives a weight and the model has no such loss.
    """
    if weight and routers.lacking is not None:
        raise HalosError(f"router_weight: {routers.lacking}; take it out")
    return routers.weight if weight is None else weight


def _lacking(model: nn.Module, has_routers: bool) -> str | None:
    if not has_routers:
        return "the model has no routers"
    function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    if function is None:
        return f"{type(model).__name__} has no loss for its routers (some models balance them by a bias instead)"
    if list(inspect.signature(function).parameters) != ["gate_logits", "num_experts", "top_k", "attention_mask"]:
        return f"{type(model).__name__} has a loss of its own form for its routers, which is not computed here"
    return None


def _routers(module: nn.Module, recorders: list[Any], name: str = "") -> Iterator[tuple[nn.Module, int]]:
    """The modules below one whose outputs classes record as router logits, and which of their outputs that is.

    Args:
        module: the module.
        recorders: the recorders of the model around it.
        name: its name.
    """
    if isinstance(module, PreTrainedModel):
        recorded = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits", [])
        recorders = recorded if isinstance(recorded, list) else [recorded]
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}"
        if not isinstance(child, PreTrainedModel):
            for recorder in recorders:
                of_layer = recorder.layer_name is None or f".{recorder.layer_name}." in f"{path}."
                if isinstance(child, recorder.target_class) and of_layer:
                    yield child, recorder.index
        yield from _routers(child, recorders, path)
