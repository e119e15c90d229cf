"""A stage and a run as the files of the results tree hold them."""

from __future__ import annotations

import dataclasses
from typing import Any

from halos.models.settings import Precision, Quantization, SavePrecision, saved_precision
from halos.registry import FORWARDS, LOSSES, plugin_slice
from halos.settings import Slice
from halos.train.mixing import SFT, SFT_WEIGHT
from halos.train.settings import ADAMW, EIGHT_BIT
from halos.train.stage import Stage
from halos.views import VIEWS


class RunSlice(Slice):
    """config.yaml of a run, of a round of one, or of a base model.

    Attributes:
        round: the round of an online stage, from 1; 0 for a whole run.
        rounds: the number of rounds that one optimiser and one schedule go on through; 0 where each run has its own.
        stage: the last stage of the method, with all hyperparameters; None for a base model.
    """

    dataset: str
    model: str
    method: str
    seed: int
    round: int = 0
    rounds: int = 0
    attention: str
    precision: Precision
    save_precision: SavePrecision = "auto"
    quantization: Quantization | None = None
    liger: bool = False
    compile: bool = False
    stage: Stage | None = None

    @property
    def content(self) -> dict[str, Any]:
        """The slice as the file holds it."""
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def name(self) -> str:
        """The path of the run below the folder of runs."""
        parts = [self.dataset, self.model, self.method, f"seed{self.seed}"]
        return "/".join([*parts, f"round{self.round}"] if self.round else parts)

    @property
    def saved(self) -> Precision:
        """The type in which the trained weights are saved."""
        return saved_precision(self.save_precision, self.precision, self.round > 0)

    @property
    def continues(self) -> bool:
        """Whether the optimiser goes on from the round before."""
        return self.rounds > 0 and self.round > 1

    @property
    def identity(self) -> dict[str, Any]:
        """The content without the settings of its stage that make no other result."""
        content = self.content
        if self.stage is not None:
            content["stage"] = {k: v for k, v in content["stage"].items() if k not in self.stage.without_result}
        return content


def stage_slice(stage: Stage) -> dict[str, Any]:
    """The stage with the loss's default hyperparameters filled in, so that a changed default is a changed run.

    Those of a mixture are filled in at each of its parts.
    """
    arguments = {**(ADAMW if stage.optimizer in ("AdamW", *EIGHT_BIT) else {}), **stage.optimizer_args}
    content = {**stage.model_dump(mode="json", exclude=stage.without_result), "optimizer_args": arguments}
    parts = {name: {"weight": part.weight, **dataclasses.asdict(part.loss)} for name, part in stage.parts.items()}
    content = {key: value for key, value in content.items() if key not in stage.hyperparameters}
    if not isinstance(stage.loss, str):
        return {**content, "loss": parts}
    filled = {**content, **dataclasses.asdict(stage.parts[stage.loss].loss)}
    return filled | ({SFT_WEIGHT: parts[SFT]["weight"]} if len(parts) > 1 else {})


def stage_plugins(stage: Stage) -> dict[str, str]:
    """{file: sha256} of the plugins that the stage's losses, views and forward pass come from, if any do."""
    views = [VIEWS.plugin(part.loss.view.name) for part in stage.parts.values()]
    own = None if stage.forward is None else FORWARDS.plugin(stage.forward.name)
    return plugin_slice(*map(LOSSES.plugin, stage.parts), *views, own)
