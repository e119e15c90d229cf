"""`tasks:` of config.yaml: a task of lm-eval by name, or a local one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from halos.settings import Label, Positive, Strict


class Task(Strict):
    """An lm-evaluation-harness task: one of its own by name, or a local one made from a dataset's test split."""

    task: str | None = Field(None, description="name of a task that lm-eval knows")
    local: Literal["preferences", "best_response"] | None = Field(
        None, description="preferences: chosen above rejected; best_response: the best-scored of a prompt's responses"
    )
    metric: str = Field("acc", description="the metric shown in tables and figures")
    limit: Positive | None = None
    num_fewshot: int | None = Field(None, ge=0)
    batch_size: int | Literal["auto"] = 16
    label: Label = Field(None, description="name in tables and figures")

    @model_validator(mode="after")
    def one_origin(self) -> Task:
        if (self.task is None) == (self.local is None):
            raise ValueError("give exactly one of task and local")
        return self
