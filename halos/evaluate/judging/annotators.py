"""alpaca_eval's annotators."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from halos.errors import HalosError

_UNDERSTOOD = {"model_name", "max_tokens", "temperature", "logprobs", "top_logprobs", "requires_chatml"}


def read_annotator(name: str) -> dict[str, Any] | None:
    """An annotator's settings in alpaca_eval; None where alpaca_eval is not installed.

    Raises:
        HalosError: alpaca_eval has no such annotator, or it does not ask one chat model once for each comparison.
    """
    package = find_spec("alpaca_eval")  # importing it takes seconds
    if package is None or package.origin is None:
        return None
    file = Path(package.origin).with_name("evaluators_configs") / name / "configs.yaml"
    if not file.is_file():
        raise HalosError(f"alpaca_eval has no annotator {name!r}; try weighted_alpaca_eval_gpt4_turbo")
    settings: list[dict[str, Any]] = list(yaml.safe_load(file.read_text()).values())
    request = settings[0].get("completions_kwargs", {})
    if (
        len(settings) != 1
        or settings[0].get("fn_completions") != "openai_completions"
        or settings[0].get("batch_size", 1) != 1
        or not set(request) <= _UNDERSTOOD
    ):
        raise HalosError(
            f"alpaca_eval's annotator {name} is not one plain question to a chat model for each comparison; try "
            "weighted_alpaca_eval_gpt4_turbo"
        )
    return settings[0]


def annotator_template(settings: dict[str, Any]) -> str:
    """The text of an annotator's question, with places for the instruction and both responses."""
    package = find_spec("alpaca_eval")
    assert package is not None, "the annotator was read from there"
    folder = Path(str(package.origin)).with_name("evaluators_configs")
    return (folder / str(settings["prompt_template"])).read_text()
