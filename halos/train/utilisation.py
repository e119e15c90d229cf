"""Model FLOPs utilisation: the operations that a step cannot do without, over what its GPU could do in the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from halos.distributed.peaks import known
from halos.forward.operations import Operations, work
from halos.train.batches import LocalBatch


@dataclass(frozen=True)
class Utilisation:
    """The utilisation of one process's GPU.

    Operations are those of the positions that a step has to compute: none for padding or for activations that are
    computed again, and a shared prompt's once where rows are packed.

    Attributes:
        operations: those of the model.
        peak: floating-point operations per second of the GPU in the compute type.
        passes: forward passes of each microbatch: 2 with a live reference, else 1.
    """

    operations: Operations
    peak: float
    passes: int

    @classmethod
    def of(cls, network: nn.Module, precision: str, live: bool) -> Utilisation | None:
        """The utilisation of this process's GPU.

        Args:
            network: `ResponseLogps` or `SequenceScores`, its weights not yet sharded.
            precision: compute type, `bf16` or `fp32`.
            live: whether a live reference is run beside the network.

        Returns:
            None without a GPU whose peak is known, for a plugin's forward pass, and for models whose operations are
            not known.
        """
        device = known(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        wrapped: Any = network
        if device is None or getattr(wrapped, "own", None) is not None:
            return None
        operations = Operations.of(wrapped.model)
        return None if operations is None else cls(operations, device.peak(precision), 2 if live else 1)

    def needed(self, batch: LocalBatch) -> float:
        """The operations of a step on this process's share of a global batch."""
        following = [part.following for part in batch.parts if part.following is not None]
        run = [*batch.parts, *batch.before, *following]
        forward = sum(self.operations.forward(*work(part)) for part in run)
        return self.passes * forward + sum(self.operations.backward(*work(part)) for part in batch.parts)

    def __call__(self, batch: LocalBatch, seconds: float) -> float:
        """The share of the GPU's peak that a step of so many seconds has used."""
        return self.needed(batch) / (self.peak * seconds)
