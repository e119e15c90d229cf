"""A published model gives the trained policy's values, on a few sequences, once it is loaded again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from halos.errors import HalosError
from halos.forward.attention import is_flash
from halos.forward.layout import Text
from halos.forward.microbatch import collate, texts_of
from halos.forward.networks import plain
from halos.models.lora import is_reduced
from halos.models.policy import REFUSED
from halos.pretrained import read_config, trusts
from halos.train.batches import Examples

SEQUENCES = 8
"""Sequences that are compared, the shortest of the split that have a response."""
TOLERANCE = {"fp32": 2e-3, "bf16": 0.1}
"""Largest difference over the values' standard deviation, by the precision of the policy."""
ROUNDING = {"fp32": 1e-5, "bf16": 2**-7}
"""Largest difference over the largest of the logits, which values that are all alike do not tell: those of one token,
or of responses that are known by heart."""


@dataclass(frozen=True)
class Probe:
    """The values of a policy on a few sequences: token log-probabilities, or scores of a reward model.

    Attributes:
        texts: the sequences.
        values: (N,) float32, of all their response tokens, or one for each sequence.
        precision: `fp32` or `bf16`, by which the policy computed them.
        has_experts: whether it is a mixture of experts. Of two that are equally good for a token, rounding chooses one,
            which changes that token's value and some of those that follow: the median of the differences counts, and
            in other models their root mean square.
        adapted: whether the policy has adapters.
        device: where the published model is run, if it has room there.
    """

    texts: list[Text]
    values: Tensor
    precision: str
    has_experts: bool
    adapted: bool
    device: torch.device

    @classmethod
    def of(cls, policy: nn.Module, examples: Examples, accelerator: Accelerator) -> Probe:
        """Run the policy; every process has to call it, as its weights may be sharded.

        Unsharded weights in float32 are run in it whatever the run's precision, unless their attention has half of it
        only.

        Args:
            policy: the trained network, on its devices.
            examples: those to take sequences from.
            accelerator: the processes and devices.
        """
        store, packed = examples.store, examples.packed
        roles = {row: role for role, rows in examples.rows.items() for row in rows.tolist()}
        lengths = store.lengths
        answered = [row for row in roles if lengths[row][1]] or list(roles)
        rows = np.array(sorted(answered, key=lambda row: (int(lengths[row].sum()), row))[:SEQUENCES])
        control = np.array([examples.control.get(roles[row], -1) for row in rows.tolist()])
        batch = collate(store, rows, packed, control).to(accelerator.device)
        config: Any = accelerator.unwrap_model(policy).model.config
        half = accelerator.mixed_precision != "no"
        halved = half and (accelerator.is_fsdp2 or is_reduced(policy))
        exact = not is_flash(config._attn_implementation) and not halved
        network: nn.Module = accelerator.unwrap_model(policy, keep_fp32_wrapper=False) if half and exact else policy
        network.eval()
        with torch.no_grad(), plain(accelerator.unwrap_model(policy)):
            out = network(batch)
        values = out["scores"] if "scores" in out else out["logps"][batch.mask]
        model = accelerator.unwrap_model(policy).model
        return cls(
            texts_of(store, rows, control),
            values.float().cpu(),
            "fp32" if exact else "bf16",
            any("expert" in type(module).__name__.lower() for module in model.modules()),
            hasattr(model, "peft_config"),
            accelerator.device,
        )

    def check(self, folder: Path) -> None:
        """Check that a model folder gives these values under plain transformers, one sequence at a time.

        Raises:
            HalosError: it gives others.
        """
        model, device = _load(folder, self.device)
        pairs = [_values(model, text, device) for text in self.texts]
        found = torch.cat([values for values, _ in pairs]).cpu()
        if found.shape != self.values.shape:
            raise HalosError(f"the saved model gives {len(found)} values where the policy gives {len(self.values)}")
        if not len(found):
            return
        squares = (found - self.values).square()
        error = float((squares.median() if self.has_experts else squares.mean()).sqrt())
        spread = float(self.values.std(correction=0))
        largest = max(largest for _, largest in pairs)
        if not error <= TOLERANCE[self.precision] * spread + ROUNDING[self.precision] * largest:
            advice = "train with other layers in `lora`, or without it; " if self.adapted else ""
            raise HalosError(
                f"the trained model is not published: saved and loaded again by transformers, it gives other values "
                f"than in training on {len(self.texts)} sequences (difference {error:.3g}, and their deviation is "
                f"{spread:.3g}): {advice}nothing is lost: the run's checkpoint is kept, with which the same command "
                f"tries to publish again, and what was saved is in the run's folder {REFUSED}"
            )


def _load(folder: Path, device: torch.device) -> tuple[Any, torch.device]:
    """A saved model in float32, and where it is: on the device if it has room there, else in main memory."""
    from transformers import AutoModelForSequenceClassification

    from halos.models.architectures import language_class
    from halos.models.rewards import is_reward_model

    language: Any = language_class(read_config(folder))
    kind = AutoModelForSequenceClassification if is_reward_model(folder) else language
    options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": trusts(folder)}
    model: Any = kind.from_pretrained(folder, **options).eval()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        if 1.2 * size > torch.cuda.mem_get_info(device)[0]:
            device = torch.device("cpu")
    return model.to(device), device


@torch.no_grad()
def _values(model: Any, text: Text, device: torch.device) -> tuple[Tensor, float]:
    """The values of a text, without padding, and the size of the largest number that they are made of.

    Returns:
        (T,) log-probabilities of its T response tokens, and the largest of their logits and logsumexps; or (1,) its
        score, and its size.
    """
    ids = torch.from_numpy(np.concatenate([text.prompt, text.tail]).astype(np.int64)).to(device)
    logits = model(input_ids=ids[None], use_cache=False).logits
    if logits.ndim == 2:
        scores: Tensor = logits[:, 0].float()
        return scores, float(scores.abs().max())
    first = len(text.prompt) + text.lead
    logits = logits[0, first - 1 : -1].float()
    chosen, whole = logits.gather(1, ids[first:, None])[:, 0], logits.logsumexp(-1)
    return chosen - whole, float(torch.cat([chosen, whole]).abs().max()) if len(chosen) else 0.0
