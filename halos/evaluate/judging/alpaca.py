"""alpaca_eval's win rates, plain and length-controlled (Dubois et al. 2024, arXiv:2404.04475)."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.evaluate.judging.comparisons import Comparison

_FEWEST = 10
"""Comparisons below which no length control is fitted."""


def import_alpaca_eval() -> Any:
    """The package alpaca_eval, imported without its setting the log level INFO for the whole process."""
    root = logging.getLogger().level
    import alpaca_eval

    logging.getLogger().setLevel(root)
    return alpaca_eval


def win_rate(wins: list[float | None]) -> tuple[float, float | None]:
    """The win rate of the decided comparisons, 0 to 1, and its standard error (None for one comparison)."""
    import_alpaca_eval()
    from alpaca_eval.metrics import get_winrate

    row = get_winrate([{"preference": 1 + value} for value in wins if value is not None])
    error = _plain(row["standard_error"])
    return float(row["win_rate"]) / 100, None if error is None else error / 100


def length_controlled(
    comparisons: list[Comparison], wins: list[float | None]
) -> tuple[float, float | None] | tuple[None, None]:
    """The win rate at equal lengths, 0 to 1, by a logistic model of the difference in length alone: alpaca_eval's
    `length_controlled_minimal`.

    There is no standard error, as the model predicts the same for every comparison. (None, None) where nothing can be
    fitted: fewer than 10 comparisons, or a single difference in length.
    """
    frame = _frame(comparisons, wins)
    difference = frame["output_1"].str.len() - frame["output_2"].str.len()
    if frame["preference"].count() < _FEWEST or not difference.std() > 0:
        return None, None
    from alpaca_eval.metrics import glm_winrate

    formula = glm_winrate.GLM_INFO["length_controlled_minimal"]["formula"]
    frame = frame.assign(
        preference=frame["preference"] - 1, std_delta_len=difference / difference.std(), not_gamed_baseline=True
    )
    design, equal = glm_winrate.make_dmatrix_for_model(frame, frame.assign(std_delta_len=0), formula=formula)
    with _quiet():
        model = glm_winrate.fit_LogisticRegressionCV(design[design["preference"].notna()], "preference", n_splits=5)
    return float(model.predict_proba(equal)[:, 1].mean()), None


def length_controlled_on_alpaca_eval(
    comparisons: list[Comparison], wins: list[float | None], size: int | None, difficulties: Path | None
) -> tuple[float, float | None] | tuple[None, None]:
    """AlpacaEval 2's length-controlled win rate, 0 to 1, and its standard error, by alpaca_eval itself.

    As in alpaca_eval, undecided comparisons take no part in the fit, but are among those it predicts.

    Args:
        comparisons: their positions are the indices of their instructions in AlpacaEval's set.
        wins: the worth of each to the candidate; None where nothing was decided.
        size: outputs in the baseline's file, which has to hold that set.
        difficulties: AlpacaEval's df_gamed.csv; None for the one in the hub's cache.

    Raises:
        HalosError: the file is missing, or is about another set of instructions.
    """
    frame = _frame(comparisons, wins)
    if frame["preference"].count() < _FEWEST:
        return None, None
    file = difficulties or _cached_difficulties()
    import pandas as pd
    from alpaca_eval.metrics import get_length_controlled_winrate, glm_winrate

    try:
        known = pd.read_csv(file)["index"].nunique()
    except (OSError, ValueError, KeyError):
        raise HalosError(f"{file} is not AlpacaEval's df_gamed.csv: name it in `difficulties:`") from None
    if known != size:
        raise HalosError(f"length_control: alpaca_eval is for AlpacaEval's own instructions: {file} has {known}, the "
                         f"baseline's file {size}; say length_only")  # fmt: skip
    download = glm_winrate.hf_hub_download
    glm_winrate.hf_hub_download = lambda **_: str(file)  # it has no argument for a file
    try:
        with _quiet():
            row = get_length_controlled_winrate(frame, save_weights_dir=None)  # else it writes into its own package
    finally:
        glm_winrate.hf_hub_download = download
    return float(row["length_controlled_winrate"]) / 100, float(row["lc_standard_error"]) / 100


def _frame(comparisons: list[Comparison], wins: list[float | None]) -> Any:
    """The comparisons as alpaca_eval's annotations, indexed by their instructions' positions."""
    import_alpaca_eval()
    import pandas as pd

    columns = {"preference": [math.nan if value is None else 1 + value for value in wins],
               "output_1": [c.baseline for c in comparisons], "output_2": [c.candidate for c in comparisons],
               "generator_1": "baseline", "generator_2": "candidate"}  # fmt: skip
    return pd.DataFrame(columns, index=[i if c.position is None else c.position for i, c in enumerate(comparisons)])


def _cached_difficulties() -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = hf_hub_download("tatsu-lab/alpaca_eval", "df_gamed.csv", repo_type="dataset", local_files_only=True)
    except LocalEntryNotFoundError:
        raise HalosError(
            "length_control: alpaca_eval needs AlpacaEval's df_gamed.csv: name it in `difficulties:`, or get it by "
            "`hf download tatsu-lab/alpaca_eval df_gamed.csv --repo-type dataset`"
        ) from None
    return Path(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences scikit-learn's warnings about alpaca_eval's calls, and restores its settings afterwards."""
    import sklearn  # type: ignore[import-untyped]

    with sklearn.config_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _plain(value: Any) -> Any:
    """A numpy number as Python's; None for NaN."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
