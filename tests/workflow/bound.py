"""The parts of the workflow bound to a study, as rules/common.smk does it, without snakemake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halos.study.catalogue import Config
from halos.study.study import Study
from halos.workflow.inputs import Inputs
from halos.workflow.patterns import Patterns
from halos.workflow.resources import StudyResources
from halos.workflow.targets import Targets


class Workflow:
    """A study with its patterns, targets, inputs and resources. Paths are given as text."""

    def __init__(self, config: Config) -> None:
        self.study = Study(config)
        inputs = Inputs(self.study)
        self.patterns, self.resources = Patterns(config), StudyResources(self.study, inputs.judging)
        self.targets, self.inputs = _Text(Targets(self.study)), _Text(inputs)


class _Text:
    """Functions of an object, with text in place of each path that they return."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._functions, name)
        return (lambda *args: _text(value(*args))) if callable(value) else value


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    return str(value) if isinstance(value, Path) else value
