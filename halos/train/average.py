"""`average:` of a stage: a mean of the weights that its training passes through, which is evaluated and published."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from halos.settings import Strict


class Ema(Strict):
    """The exponential moving average of the weights w(1), w(2), ... after each step: decay * average + (1 - decay) * w,
    corrected for its beginning as Adam's moments are, sum_i decay^(t-i) w(i) / sum_i decay^(t-i): the weights before
    the first step have no share in it (Polyak & Juditsky 1992; Kingma & Ba 2015, arXiv 1412.6980, section 3)."""

    kind: Literal["ema"]
    decay: float = Field(
        0.99,
        gt=0,
        lt=1,
        description="ema: weight of the average so far at each step, that of the new weights being 1 - decay",
    )

    def share(self, step: int, steps: int) -> float:
        """The share of the weights after `step` of all `steps` in the average over those up to them; 0 for none."""
        return (1 - self.decay) / (1 - self.decay**step) if step else 0.0


class Uniform(Strict):
    """The mean of the weights after each step of the last part of a training (stochastic weight averaging, Izmailov et
    al. 2018, arXiv 1803.05407, at every step)."""

    kind: Literal["uniform"]
    start: float = Field(0.5, ge=0, lt=1, description="uniform: share of the steps after which it begins")

    def share(self, step: int, steps: int) -> float:
        """The share of the weights after `step` of all `steps` in the average over those up to them; 0 for none."""
        counted = step - min(round(self.start * steps), steps - 1)
        return 1 / counted if counted > 0 else 0.0


def _of_a_kind(value: Any) -> Any:
    """Refuses a missing kind in one sentence, where pydantic would speak of tags."""
    if isinstance(value, Ema | Uniform) or (isinstance(value, dict) and value.get("kind") in ("ema", "uniform")):
        return value
    raise ValueError("give its kind, {kind: ema, decay: 0.99} or {kind: uniform, start: 0.5}")


Average = Annotated[Ema | Uniform, Field(discriminator="kind"), BeforeValidator(_of_a_kind)]
