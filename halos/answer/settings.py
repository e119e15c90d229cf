"""The slice of what a cell's model answers in one go."""

from __future__ import annotations

from halos.evaluate.tasks.settings import TaskSlice
from halos.sample.settings import PromptsSlice
from halos.settings import Slice


class AnswerSlice(Slice):
    """The config.yaml of a batch: the prompt sets and tasks that one process answers, by their ids."""

    prompts: dict[str, PromptsSlice] = {}
    tasks: dict[str, TaskSlice] = {}
