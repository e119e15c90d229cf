"""alpaca_eval's annotators, and the verdict in an answer to a prompt of the config."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from halos.errors import HalosError
from halos.evaluate.judging.judgement import TIE

VERDICT = re.compile(r"\bverdict\W*?[:=]\W*(a|b|tie)\b", re.IGNORECASE)
FIRST, SECOND = 1.0, 2.0
"""alpaca_eval's preferences for the response that is shown first, and second."""
_VERDICTS = {"a": FIRST, "b": SECOND, "tie": TIE}
_UNDERSTOOD = {"model_name", "max_tokens", "temperature", "logprobs", "top_logprobs", "requires_chatml"}


def read_verdict(answer: str) -> list[float]:
    """The verdict in an answer, as alpaca_eval's parsers give it: its last `Verdict: A`, B or tie, or the whole answer
    if it is such a word alone; NaN without one."""
    text = answer.strip().strip("*`'\". ").lower()
    verdicts = [text] if text in _VERDICTS else [match.lower() for match in VERDICT.findall(answer)]
    return [_VERDICTS[verdicts[-1]] if verdicts else math.nan]


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
