"""Win rates are alpaca_eval's own, whatever is made of ties, with and without control of length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from halos.errors import HalosError
from halos.evaluate.judging.alpaca import (
    _frame,
    length_controlled,
    length_controlled_on_alpaca_eval,
    win_rate,
)
from halos.evaluate.judging.comparisons import Comparison
from halos.evaluate.judging.judgement import win

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # alpaca_eval's use of scikit-learn

N = 120
QUESTION = [{"role": "user", "content": "q"}]


def drawn(n: int, positions: bool = True, bias: float = 0.0, places: int = N) -> tuple[list[Comparison], list[Any]]:
    """Comparisons of responses of many lengths and what a judge prefers that likes long ones as much as `bias` says."""
    draw = np.random.default_rng(0)
    order = draw.permutation(places)[:n]
    comparisons, wins = [], []
    for i in range(n):
        candidate, baseline = draw.integers(1, 400, 2)
        place = int(order[i]) if positions else None
        texts = "x" * candidate, "y" * baseline
        comparisons.append(Comparison(f"p{i}", 0, QUESTION, *texts, (0, 0), None, place))
        wins.append(float(1 / (1 + np.exp(-bias * (candidate - baseline) / 100 - draw.normal()))))
    return comparisons, wins


def difficulties(folder: Path, n: int = N) -> Path:
    """A file in the form of AlpacaEval's df_gamed.csv: two baselines that were made longer and shorter."""
    draw = np.random.default_rng(1)
    hard = draw.normal(size=n)
    rows = [
        {"model": model, "index": i, "instruction_difficulty": hard[i], "not_gamed_baseline": False,
         "std_delta_len": draw.normal(shift), "preference": draw.uniform()}
        for model, shift in (("verbose", -1), ("concise", 1)) for i in range(n)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "df_gamed.csv", index=False)
    return folder / "df_gamed.csv"


def of_alpaca_eval(
    comparisons: list[Comparison], wins: list[Any], file: Path, monkeypatch: pytest.MonkeyPatch, **how: Any
) -> dict[str, float]:
    """What alpaca_eval's own function makes of an annotation file, in the order of its instructions."""
    from alpaca_eval.metrics import get_length_controlled_winrate, glm_winrate

    frame = pd.DataFrame({
        "preference": [np.nan if w is None else 1 + w for w in wins],
        "output_1": [c.baseline for c in comparisons],
        "output_2": [c.candidate for c in comparisons],
        "generator_1": "reference", "generator_2": "model",
    }, index=[i if c.position is None else c.position for i, c in enumerate(comparisons)])  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(file))
        return dict(get_length_controlled_winrate(frame, save_weights_dir=None, **how))


@pytest.mark.parametrize("missing", [0, 15])
def test_the_length_controlled_win_rate_is_that_of_alpaca_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    comparisons, wins = drawn(N, bias=0.6)
    wins[:missing] = [None] * missing
    file = difficulties(tmp_path)
    truth = of_alpaca_eval(comparisons, wins, file, monkeypatch)
    rate, error = length_controlled_on_alpaca_eval(comparisons, wins, N, file)
    assert rate is not None
    assert error is not None
    assert (100 * rate, 100 * error) == pytest.approx((truth["length_controlled_winrate"], truth["lc_standard_error"]))
    assert 100 * win_rate(wins)[0] == pytest.approx(truth["win_rate"])
    assert 100 * (win_rate(wins)[1] or 0) == pytest.approx(truth["standard_error"])


def test_instructions_are_known_by_their_place_and_not_by_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Harder instructions are lost more often, which shows in how far the predictions are apart."""
    file = difficulties(tmp_path)
    hard = pd.read_csv(file)["instruction_difficulty"]
    comparisons, wins = drawn(N)
    wins = [float(1 / (1 + np.exp(-2 * hard[c.position] - w))) for c, w in zip(comparisons, wins, strict=True)]
    ordered = sorted(zip(comparisons, wins, strict=True), key=lambda both: both[0].position or 0)
    unplaced = [Comparison(**{**c.__dict__, "position": None}) for c, _ in ordered]  # as in alpaca_eval's own files
    truth = of_alpaca_eval(unplaced, [w for _, w in ordered], file, monkeypatch)["lc_standard_error"] / 100
    error = length_controlled_on_alpaca_eval(comparisons, wins, N, file)[1]
    misplaced = [Comparison(**{**c.__dict__, "position": i}) for i, c in enumerate(comparisons)]
    other = length_controlled_on_alpaca_eval(misplaced, wins, N, file)[1]
    assert error == pytest.approx(truth, rel=0.02)  # the folds of the fit follow the order
    assert other is not None
    assert other < truth / 2


def test_without_difficulties_it_is_alpaca_evals_smallest_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparisons, wins = drawn(N, positions=False, bias=1.0)
    wins[3] = None
    minimal = "length_controlled_minimal"
    truth = of_alpaca_eval(comparisons, wins, difficulties(tmp_path), monkeypatch, glm_name=minimal)
    rate, error = length_controlled(comparisons, wins)
    assert rate is not None
    assert 100 * rate == pytest.approx(truth["length_controlled_winrate"])
    assert error is None


def test_a_judge_that_likes_length_alone_gives_half_once_length_is_controlled() -> None:
    comparisons, _ = drawn(N, positions=False)
    longer = [Comparison(**{**c.__dict__, "candidate": c.candidate + "x" * 150}) for c in comparisons]
    wins: list[float | None] = [float(len(c.candidate) > len(c.baseline)) for c in longer]
    assert win_rate(wins)[0] > 0.7
    rate, _ = length_controlled(longer, wins)
    assert rate is not None
    assert abs(rate - 0.5) < 0.15


def test_no_length_control_where_nothing_can_be_fitted(tmp_path: Path) -> None:
    few, wins = drawn(9)
    assert length_controlled(few, wins) == (None, None)
    assert length_controlled_on_alpaca_eval(few, wins, N, None) == (None, None)
    same = [Comparison(**{**c.__dict__, "candidate": "a", "baseline": "b"}) for c in drawn(N)[0]]
    assert length_controlled(same, drawn(N)[1]) == (None, None)


def test_difficulties_of_other_instructions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons, wins = drawn(N)
    with pytest.raises(HalosError, match="has 100, the baseline's file 120"):
        length_controlled_on_alpaca_eval(comparisons, wins, N, difficulties(tmp_path, 100))
    (tmp_path / "df_gamed.csv").write_text("a,b\n1,2\n")
    with pytest.raises(HalosError, match=r"is not AlpacaEval's df_gamed\.csv"):
        length_controlled_on_alpaca_eval(comparisons, wins, N, tmp_path / "df_gamed.csv")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(HalosError, match=r"hf download tatsu-lab/alpaca_eval df_gamed\.csv"):
        length_controlled_on_alpaca_eval(comparisons, wins, N, None)


def test_length_control_leaves_no_file_and_no_setting_behind(tmp_path: Path) -> None:
    import alpaca_eval
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    def files() -> set[Path]:
        return {p for p in Path(alpaca_eval.__file__).parent.rglob("*") if "__pycache__" not in p.parts}

    before, settings, download = files(), sklearn.get_config(), glm_winrate.hf_hub_download
    comparisons, wins = drawn(N)
    length_controlled(comparisons, wins)
    length_controlled_on_alpaca_eval(comparisons, wins, N, difficulties(tmp_path))
    assert (files(), sklearn.get_config(), glm_winrate.hf_hub_download) == (before, settings, download)


def test_a_tie_is_half_a_win_or_none() -> None:
    preferences = [1.0, 1.5, 2.0, None, 1.25]
    assert [win(p, "half") for p in preferences] == [0, 0.5, 1, None, 0.25]
    assert [win(p, "neither") for p in preferences] == [0, 0, 1, None, 0.25]


def test_the_plain_win_rate_is_that_of_alpaca_evals_leaderboard() -> None:
    from alpaca_eval.metrics import get_winrate

    _, wins = drawn(40)
    preferences: list[float | None] = [1 + w for w in wins[:30]] + [1.5] * 4 + [None] * 6
    truth = get_winrate([{"preference": p} for p in preferences])
    rate, error = win_rate([win(p, "half") for p in preferences])
    assert (100 * rate, 100 * (error or 0)) == pytest.approx((truth["win_rate"], truth["standard_error"]))


def test_annotations_have_the_place_of_their_instruction() -> None:
    comparisons, wins = drawn(5, places=5)
    assert list(_frame(comparisons, wins).index) == [c.position for c in comparisons]
    assert list(_frame(drawn(5, positions=False)[0], wins).index) == [0, 1, 2, 3, 4]
