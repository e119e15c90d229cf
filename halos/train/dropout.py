"""Dropout of the model itself: with which probabilities training drops activations or layers, or jitters routers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

from halos.errors import HalosError
from halos.forward.attention import drops

LAYERS, ROUTERS = "layerdrop", "jitter"
"""Parts of the names of noise of other kinds, which a probability of dropout above 0 leaves as it is."""


class Place(NamedTuple):
    """A probability that the model reads in training: an attribute of a module or of a config, and its own value."""

    owner: Any
    name: str
    own: float


class Dropout:
    """The dropout of a model, apart from that of LoRA adapters.

    Classes of transformers hold it in dropout modules, in numbers beside them (which attention, whole layers that are
    skipped, and routers read), and in the config, which a few read as they run. Routers with jitter are kept in
    evaluation mode instead, because PhiMoE's reads it in evaluations, too, and in training draws its experts.

    Args:
        network: the model, also within other modules.
        probability: the probability everywhere, 0 for none; None for the model's own.

    Raises:
        HalosError: a probability above 0 for a model that has no dropout.
    """

    def __init__(self, network: nn.Module, probability: float | None) -> None:
        modules = [m for name, m in network.named_modules() if "lora_dropout" not in name.split(".")]
        configs = {id(c): c for m in modules for c in _configs(vars(m).get("config"))}
        self._places = [place for module in modules for place in _places(module)]
        self._names = {id(module): name.rpartition(".")[2] for name, module in network.named_modules()}
        self._routers = {id(p.owner): p.owner for p in self._places if ROUTERS in p.name}
        self._of_configs = [place for config in configs.values() for place in _places(config)]
        self.probability = probability
        if probability and all(_is_other(place.name) for place in self._places):
            raise HalosError(f"the model has no dropout that `dropout: {probability:g}` would set: take it out")
        self._set()

    def _set(self) -> None:
        for owner, name, own in [*self._places, *self._of_configs]:
            if self.probability is None or ROUTERS in name:
                continue
            if self.probability == 0 or not _is_other(name):
                is_config = isinstance(owner, PreTrainedConfig)  # its types are checked: MPT's has a whole number
                setattr(owner, name, type(own)(self.probability) if is_config else self.probability)

    def check_attention(self, attention: str) -> None:
        """Check that the attention can drop out what the model wants it to.

        Raises:
            HalosError: it cannot, and would train without it.
        """
        rates = [float(getattr(owner, name)) for owner, name, _ in self._places
                 if "att" in (self._names[id(owner)] if name == "p" else name)]  # fmt: skip
        if any(rates) and not drops(attention):
            raise HalosError(f"attention {attention} has no dropout, and the model's attention has {max(rates):g}: set "
                             "`dropout: 0` in the stage, or `attention: auto` in the model's entry")  # fmt: skip

    def train(self, policy: nn.Module) -> None:
        """Put the policy in training mode, where this dropout is in force."""
        policy.train()
        if self.probability == 0:
            for router in self._routers.values():
                router.training = False

    @contextmanager
    def as_configured(self) -> Iterator[None]:
        """A block that saves the model, whose config then holds the model's own values."""
        for owner, name, own in self._of_configs:
            setattr(owner, name, own)
        try:
            yield
        finally:
            self._set()

    @property
    def drops_layers(self) -> bool:
        """Whether training skips layers at random."""
        return any(LAYERS in name and getattr(owner, name) for owner, name, _ in self._places)

    @property
    def text(self) -> str | None:
        """What is in force, for the log; None for a model without dropout."""
        own = ", ".join(f"{value:g}" for value in sorted({place.own for place in self._places if place.own}))
        if self.probability:
            return f"dropout is {self.probability:g} (the model's own: {own or 0})"
        if not own:
            return None
        if self.probability is None:
            return f"dropout is the model's own: {own}"
        return f"dropout is off (the model's own: {own}); `dropout:` sets another"


def _configs(config: Any) -> Iterator[PreTrainedConfig]:
    """A config and those within it."""
    if isinstance(config, PreTrainedConfig):
        yield config
        for part in vars(config).values():
            yield from _configs(part)


def _is_other(name: str) -> bool:
    return LAYERS in name or ROUTERS in name


def _places(owner: Any) -> Iterator[Place]:
    if isinstance(owner, _DropoutNd):
        yield Place(owner, "p", owner.p)
        return
    for name, value in vars(owner).items():
        is_number = isinstance(value, float | int) and not isinstance(value, bool)
        if is_number and 0 <= value <= 1 and re.search("drop|jitter", name):
            yield Place(owner, name, value)
