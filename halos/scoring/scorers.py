"""The scorer that a judge or labeller names in config.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from halos.errors import HalosError
from halos.scoring.api import Calls
from halos.scoring.asking import Rater
from halos.scoring.reward_model import open_reward_model
from halos.scoring.scores import ScoresResponses, Verifier
from halos.scoring.settings import OpenAI, Scorer


def open_scorer(
    name: str, settings: Scorer, reward_model: Sequence[Path], tokens_per_microbatch: int, calls: Calls
) -> ScoresResponses:
    """The verifier, reward model or model behind a server that scores responses.

    Args:
        name: of the judge or labeller, for messages: `judge x`.
        settings: its slice.
        reward_model: for a reward model, its folder and, where it has one, its manifest; otherwise empty.
        tokens_per_microbatch: tokens of one forward pass of the reward model.
        calls: how a model behind a server is called.

    Raises:
        HalosError: the scorer does not exist or cannot be loaded, or --reward-model and the kind do not fit.
    """
    if bool(reward_model) != (settings.kind == "reward_model"):
        problem = "takes none" if reward_model else "needs its model's folder"
        raise HalosError(f"{name} is of kind {settings.kind}: --reward-model {problem}")
    if settings.verifier is not None:
        return Verifier(settings.verifier)
    if isinstance(settings.openai, OpenAI):
        return Rater(name, settings.openai, calls)
    return open_reward_model(reward_model, tokens_per_microbatch)
