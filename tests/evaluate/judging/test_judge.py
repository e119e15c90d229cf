"""Judging: counts and win rates, by hand and by alpaca_eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halos.data import feedback as F
from halos.errors import HalosError
from halos.manifest import Manifest
from halos.scoring import reward_model as rewards
from halos.scoring.reward_model import RewardModel
from tests.evaluate.judging.cases import Case


def test_counts_and_win_rate_are_those_worked_by_hand_and_those_of_alpaca_eval(case: Case) -> None:
    from alpaca_eval.metrics import get_winrate

    case.add("q1", "b.", "aa")  # 1 and 0 against 0 and 1: .5 each, a tie
    case.add("q2", "bb", "aa")  # win
    case.add("q3", "bb", "a.")  # win
    case.add("q4", "a.", "bb")  # loss
    result = case.run()
    assert [a["preference"] for a in result["annotations"]] == [1.5, 2.0, 2.0, 1.0]
    assert [result[k] for k in ("n", "wins", "losses", "ties", "failures", "not_judged")] == [4, 2, 1, 1, 0, 0]
    assert result["win_rate"] == pytest.approx(2.5 / 4)
    # standard error of the mean of (.5, 1, 1, 0): sqrt(sum of squared deviations / 3 / 4)
    assert result["standard_error"] == pytest.approx((0.6875 / 3 / 4) ** 0.5)
    row = get_winrate([{"preference": a["preference"]} for a in result["annotations"]])
    assert (row["win_rate"], row["n_wins"], row["n_wins_base"], row["n_draws"], row["n_total"]) == (62.5, 2, 1, 1, 4)
    assert result["scores"]["candidate"] == pytest.approx({"mean": 0.4375, "a": 0.625, "end": 0.25})
    assert result["scores"]["baseline"] == pytest.approx({"mean": 0.3125, "a": 0.125, "end": 0.5})
    assert result["mean_length"] == {"candidate": 2.0, "baseline": 2.0}
    assert result["annotations"][2]["criteria"] == {"a": 0.5, "end": 1.0}
    assert result["annotations"][2]["baseline_criteria"] == {"a": 0.0, "end": 0.0}
    assert result["annotations"][2]["candidate_score"] == 0.75


def test_identical_responses_are_a_tie_and_keep_their_scores(case: Case) -> None:
    case.add("q1", "aa", "aa")
    case.add("q2", "bb", "aa")
    result = case.run()
    assert (result["ties"], result["wins"]) == (1, 1)
    assert result["annotations"][0]["candidate_score"] == result["annotations"][0]["baseline_score"] == 0.5


def test_equal_texts_are_a_tie_as_in_alpaca_eval_whatever_their_scores(case: Case) -> None:
    case.add("q1", "boom", "boom")
    case.add("q2", "bb", "aa")
    result = case.run()
    assert [a["preference"] for a in result["annotations"]] == [1.5, 2.0]
    assert (result["ties"], result["failures"], result["failed"]) == (1, 0, {})


def test_scores_within_the_margin_are_a_tie(case: Case) -> None:
    case.add("q1", "aaabbbbbbb", "aaaabbbbbb")  # .4 against .3 in one of two criteria
    assert case.run(tie_margin=0.05)["ties"] == 1
    assert case.run(tie_margin=0.04)["wins"] == 1


def test_every_sample_counts_even_when_texts_repeat(case: Case) -> None:
    for question in ("q1", "q2"):
        case.add(question, "bb", "aa", "aa", "bb", "aa")
    result = case.run()
    assert (result["n"], result["wins"], result["losses"], result["ties"]) == (8, 6, 0, 2)
    assert [(a["sample"], a["preference"]) for a in result["annotations"][:4]] == [(0, 2), (1, 2), (2, 1.5), (3, 2)]


def test_order_of_the_samples_is_kept_beyond_one_chunk_of_alpaca_eval(case: Case) -> None:
    for i in range(150):
        case.add(f"q{i}", "b", "a" if i % 3 else "b.")
    result = case.run()
    assert [a["prompt_id"] for a in result["annotations"]] == [r.prompt_id for r in case.records]
    assert result["n"] == 150


def test_a_failed_verifier_decides_nothing_and_is_counted(case: Case) -> None:
    case.add("q1", "bb", "boom", "aa")
    case.add("q2", "boom", "aa")
    result = case.run()
    assert [result[k] for k in ("n", "wins", "failures", "win_rate")] == [1, 1, 2, 1.0]
    assert [a["preference"] for a in result["annotations"]] == [None, 2.0, None]
    assert result["standard_error"] is None  # one comparison has none
    assert result["annotations"][0]["candidate_score"] is None
    assert result["annotations"][0]["problem"] == "the verifier failed (RuntimeError)"
    assert result["failed"] == {"the verifier failed (RuntimeError)": 2}


def test_prompts_without_a_target_are_counted_as_not_judged(case: Case) -> None:
    case.add("q1", None, "aa", "aa")
    case.add("q2", "bb", "aa")
    result = case.run()
    assert (result["n"], result["not_judged"]) == (1, 2)


def test_alpaca_evals_own_length_control_is_that_of_its_instructions(case: Case, tmp_path: Path) -> None:
    outputs = [{"instruction": f"q{i}", "output": "b" * (i % 7 + 1)} for i in range(40)]
    (tmp_path / "outputs.json").write_text(json.dumps(outputs[::-1]))
    for i in range(30):
        case.add(f"q{i}", None, "a" * (i % 5 + 1) + "b" * (i % 3))
    columns = "model,index,instruction_difficulty,not_gamed_baseline,std_delta_len,preference\n"
    rows = [f"{m},{i},{i % 4 - 1.5},False,{i % 3 - 1},{i % 2}\n" for m in "ab" for i in range(40)]
    (tmp_path / "hard.csv").write_text(columns + "".join(rows))
    outputs, hard = (tmp_path / "outputs.json",), (tmp_path / "hard.csv",)
    baseline = {"file": "outputs.json"}
    result = case.run((), outputs, hard, baseline=baseline, length_control="alpaca_eval")
    assert (result["n"], result["length_control"]) == (30, "alpaca_eval")
    assert result["baseline"] == "the outputs of outputs.json"
    assert 0 < result["length_controlled_win_rate"] <= 1
    assert result["length_controlled_standard_error"] > 0  # what no other length control has
    alone = case.run((), outputs, baseline=baseline)
    assert (alone["length_control"], alone["length_controlled_standard_error"]) == ("length_only", None)
    assert alone["win_rate"] == result["win_rate"]


def test_the_same_input_gives_the_same_bytes_and_no_other_file(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import alpaca_eval

    def files(folder: Path) -> set[Path]:
        return {p for p in folder.rglob("*") if "__pycache__" not in p.parts}

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    case.add("q1", "bb", "aa", "ba")
    case.run()
    first, package = case.output.read_bytes(), files(Path(alpaca_eval.__file__).parent)
    case.run()
    assert case.output.read_bytes() == first
    assert files(Path(alpaca_eval.__file__).parent) == package
    assert files(home) == set()
    assert list(case.output.parent.iterdir()) == [case.output]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "line 2 is not a sample"),
        ('{"prompt_id": "x", ', "line 2 is not a sample"),
        ("[1]", "line 2 is not a sample"),
        ('{"prompt_id": "x", "sample": 0}', "line 2 is not a sample .*response"),
        ('{"prompt_id": "x", "sample": 0, "response": null}', "line 2 is not a sample .*response"),
        ('{"prompt_id": "x", "sample": 0, "response": "a"}', "prompt x is not in"),
    ],
)
def test_a_malformed_or_foreign_sample_is_refused(case: Case, line: str, says: str) -> None:
    case.add("q1", "bb", "aa")
    case.lines.append(line)
    with pytest.raises(HalosError, match=says):
        case.run()
    assert not case.output.exists()


def test_a_sample_that_is_there_twice_is_refused(case: Case) -> None:
    prompt_id = case.add("q1", "bb", "aa").prompt_id
    case.sample(prompt_id, 0, "ab")
    with pytest.raises(HalosError, match="twice"):
        case.run()


def test_nothing_to_judge_is_refused(case: Case) -> None:
    with pytest.raises(HalosError, match="holds no samples"):
        case.run()
    case.add("q1", None, "aa")
    with pytest.raises(HalosError, match="has a target"):
        case.run()
    case.add("q2", "bb", "boom")
    with pytest.raises(HalosError, match="failed on all"):
        case.run()


def test_unknown_kinds_and_verifiers_are_named(case: Case) -> None:
    case.add("q1", "bb", "aa")
    with pytest.raises(HalosError, match=r"judge\.yaml: kind: Input should be 'verifier', "):
        case.run(kind="verifyer")
    with pytest.raises(HalosError, match=r"unknown verifier 'test_letter'.*test_letters"):
        case.run(kind="verifier", verifier="test_letter")


# ---- a reward model as judge --------------------------------------------------------------------------------------


class Letters(RewardModel):
    """A reward model without a network: a's less 5, so below 0; none for the word boom."""

    def __init__(
        self, folder: Path, precision: str = "", attention: str = "", tokens_per_microbatch: int = 0, logit: Any = ""
    ) -> None:
        self.made_of = (folder, precision, attention, tokens_per_microbatch, logit)
        made.append(self)

    def rewards(self, prompts: list[list[F.Turn]], responses: list[str]) -> list[float | None]:
        assert len(prompts) == len(responses)
        bonus = {"generous": 0.5}
        return [None if "boom" in response else response.count("a") + bonus.get(prompt[0]["content"], 0) - 5
                for prompt, response in zip(prompts, responses, strict=True)]  # fmt: skip


made: list[Letters] = []
BY_REWARD = {"kind": "reward_model", "reward_model": "rm"}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Letters]:
    monkeypatch.setattr(rewards, "RewardModel", Letters)
    made.clear()
    for folder in (tmp_path, tmp_path / "mine"):
        folder.mkdir(exist_ok=True)
        classifier = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}}
        (folder / "config.json").write_text(json.dumps(classifier))
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    return made


def test_the_higher_reward_wins_also_below_zero_and_a_missing_one_is_a_failure(
    case: Case, tmp_path: Path, stand_in: list[Letters]
) -> None:
    case.add("q1", "ab", "aa")  # -3 against -4
    case.add("q2", "aa", "ab", "boom", "ba a")  # a loss, a failure, and a tie of other words
    case.add("q3", "boom", "aa")  # a failure of the baseline
    case.add("generous", "bb", "ba")  # -3.5 against -4.5
    result = case.run((tmp_path,), **BY_REWARD)
    assert [a["preference"] for a in result["annotations"]] == [2.0, 1.0, None, 1.5, None, 2.0]
    assert [result[k] for k in ("n", "wins", "losses", "ties", "failures")] == [4, 2, 1, 1, 2]
    assert result["win_rate"] == 2.5 / 4
    assert result["kind"] == "reward_model"
    assert result["scores"]["candidate"] == {"mean": -3.375, "reward": -3.375}  # -3, -4, -3, -3.5
    assert result["scores"]["baseline"] == {"mean": -3.625, "reward": -3.625}  # -4, -3, -3, -4.5
    assert [a["candidate_score"] for a in result["annotations"]] == [-3, -4, None, -3, -3, -3.5]
    assert result["annotations"][2]["criteria"] == {}


def test_rewards_within_the_margin_are_a_tie(case: Case, tmp_path: Path, stand_in: list[Letters]) -> None:
    case.add("q1", "ab", "aa")
    assert case.run((tmp_path,), **BY_REWARD, tie_margin=1.0)["ties"] == 1
    assert case.run((tmp_path,), **BY_REWARD, tie_margin=0.9)["wins"] == 1


def test_a_reward_model_computes_as_in_its_own_run(case: Case, tmp_path: Path, stand_in: list[Letters]) -> None:
    case.add("q1", "ab", "aa")
    manifest = tmp_path / "manifest.json"
    config = {"precision": "fp32", "attention": "eager", "reward_logit": "difference"}
    Manifest(config=config, weights="", files={}).write(manifest)
    case.run((tmp_path / "model", manifest), **BY_REWARD)
    case.run((tmp_path / "mine",), **BY_REWARD)
    assert [model.made_of for model in stand_in] == [
        (tmp_path / "model", "fp32", "eager", 2048, "difference"),
        (tmp_path / "mine", "", "", 2048, ""),
    ]


def test_a_judge_and_its_model_come_together(case: Case, tmp_path: Path) -> None:
    case.add("q1", "bb", "aa")
    with pytest.raises(HalosError, match="of kind verifier: --reward-model takes none"):
        case.run((tmp_path,))
    with pytest.raises(HalosError, match="of kind reward_model: --reward-model needs its model's folder"):
        case.run(**BY_REWARD)
    with pytest.raises(HalosError, match="there is no reward model in"):
        case.run((tmp_path,), **BY_REWARD)
