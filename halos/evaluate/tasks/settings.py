"""`tasks:` of config.yaml: a task of lm-eval by name, or a local one."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from halos.settings import Label, Positive, Slice, Strict


class TaskIdentity(Strict):
    """The identity of a task: all settings that its result depends on."""

    task: str | None = Field(None, description="name of a task that lm-eval knows")
    local: Literal["preferences", "best_response"] | None = Field(
        None, description="preferences: chosen above rejected; best_response: the best-scored of a prompt's responses"
    )
    split: Literal["validation", "test"] = Field(
        "test",
        exclude_if=lambda split: split == "test",
        description="split of the dataset that a local task is made of",
    )
    metric: str = Field("acc", description="the metric shown in tables and figures")
    limit: Positive | None = Field(None, description="number of documents, the first ones; by default all")
    num_fewshot: int | None = Field(None, ge=0, description="examples shown first; by default the task's own number")
    batch_size: int | Literal["auto"] = Field(16, description="documents scored side by side, on transformers")

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        if (self.task is None) == (self.local is None):
            raise ValueError("give exactly one of task and local")
        if self.task is not None and "split" in self.model_fields_set:
            raise ValueError("split is of a local task: take it out")
        return self


class Task(TaskIdentity):
    """An lm-evaluation-harness task: one of its own by name, or a local one made from a dataset's validation or test
    split."""

    label: Label = Field(None, description="name in tables and figures")


class TaskSlice(TaskIdentity, Slice):
    """The config.yaml of a task.

    Attributes:
        task_id: its id in the catalogue.
    """

    task_id: str

    @property
    def name(self) -> str:
        """The name by which lm-eval reports the task."""
        return str(self.task or self.local)
