"""The result of a task: lm-eval's whole output as JSON, and the one number of it that tables show."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from halos.errors import HalosError
from halos.files import Record, write_json


class TaskResult(Record):
    """The one number of a task's result.

    In the file, it is the entry `halos` of lm-eval's output; `higher_is_better` is lm-eval's own entry of that name.

    Attributes:
        task_id: id of the task in the catalogue.
        metric: lm-eval's name of it, `metric,filter`.
        stderr: standard error; None where lm-eval gives none.
        n: documents that were scored.
        too_long: documents left out because they do not fit the model's context.
    """

    task_id: str
    backend: str
    metric: str
    value: float | None
    stderr: float | None
    n: int
    too_long: int
    higher_is_better: bool = True

    @classmethod
    def of(cls, output: dict[str, Any], name: str, metric: str, **fields: Any) -> Self:
        """The number that a metric has in lm-eval's output.

        Args:
            output: lm-eval's output in JSON's types.
            name: the task's name in lm-eval.
            metric: `metric,filter`, or `metric` for lm-eval's first filter.
            fields: the fields that lm-eval does not know.

        Raises:
            HalosError: the task has no such metric.
        """
        scores = output["results"][name]
        keys = [key for key in scores if "," in key and metric in (key, key.split(",")[0])]
        if not keys:
            known = ", ".join(key for key in scores if "," in key)
            raise HalosError(f"task {name} has no metric {metric!r}; it has {known}")
        stderr = scores.get(keys[0].replace(",", "_stderr,", 1))
        return cls(
            metric=keys[0],
            value=scores[keys[0]],
            stderr=stderr if isinstance(stderr, float) else None,  # "N/A" where lm-eval has none
            n=scores["sample_len"],
            higher_is_better=_higher_is_better(output, keys[0]),
            **fields,
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """
        Raises:
            HalosError: the file is missing, or is not the result of a task.
        """
        try:
            output = json.loads(path.read_bytes())
            summary = output["halos"]
            return cls.model_validate({**summary, "higher_is_better": _higher_is_better(output, summary["metric"])})
        except FileNotFoundError:
            raise HalosError(f"there is no {path}; run `snakemake {path}` to make it") from None
        except (ValidationError, ValueError, TypeError, KeyError):
            raise HalosError(
                f"{path} is not the result of a task; delete it and run `snakemake {path}` to make it again"
            ) from None

    def write(self, path: Path, output: dict[str, Any]) -> None:
        """Write lm-eval's output with this number."""
        write_json(path, {**output, "halos": self.model_dump(exclude={"higher_is_better"})})


def _higher_is_better(output: dict[str, Any], metric: str) -> bool:
    directions = output.get("higher_is_better") or {}
    return not any(by_metric.get(metric.split(",")[0]) is False for by_metric in directions.values())


def plain(value: Any) -> Any:
    """A copy in JSON's types: numpy's numbers become Python's, other objects text, and what is not finite None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
