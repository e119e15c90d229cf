"""Judging: what is counted, and that alpaca_eval's own row says the same; which judges a catalogue may name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from halos.data import feedback as F
from halos.errors import HalosError
from halos.evaluate.judging.judge import judge
from halos.models.settings import Resources
from halos.registry import VERIFIERS
from halos.scoring import reward_model as rewards
from halos.settings import dump
from halos.study import catalogue as C
from halos.study.checks import check_files, check_keys
from halos.study.slices import config_slice
from halos.workflow.inputs import Workflow
from tests.conftest import CATALOGUE
from tests.workflow.conftest import CATALOGUE as SMALL
from tests.workflow.conftest import Job, Project, copy_files


@VERIFIERS.register("test_letters")
def letters(prompt: list[F.Turn], response: str) -> dict[str, float]:
    """`a`: share of a's; `end`: whether it ends in a full stop. The word boom makes it fail."""
    if "boom" in response:
        raise RuntimeError("boom")
    return {"a": response.count("a") / max(len(response), 1), "end": float(response.endswith("."))}


def record(question: str, target: str | None) -> F.Feedback:
    prompt = [{"role": "user", "content": question}]
    return F.Feedback(prompt, [target or "other"], "test", target=None if target is None else 0)


class Case:
    """A folder with a judge's inputs; `run` gives its output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "judged" / "letters.json"
        self.lines: list[str] = []
        self.records: list[F.Feedback] = []

    def add(self, question: str, target: str | None, *responses: str) -> F.Feedback:
        self.records.append(record(question, target))
        for i, response in enumerate(responses):
            self.sample(self.records[-1].prompt_id, i, response)
        return self.records[-1]

    def sample(self, prompt_id: str, sample: int, response: str) -> None:
        row = {"prompt_id": prompt_id, "prompt": [], "response": response, "sample": sample, "finish_reason": "stop"}
        self.lines.append(json.dumps(row))

    def run(
        self,
        model: tuple[Path, ...] = (),
        outputs: tuple[Path, ...] = (),
        hard: tuple[Path, ...] = (),
        /,
        **changes: Any,
    ) -> dict[str, Any]:
        """What comes of the reward model's files, the baseline's and AlpacaEval's difficulties."""
        content = {"judge": "letters", "kind": "verifier", "verifier": "test_letters", "prompts": "p",
                   "baseline": "target", "tie_margin": 0.0, "ties": "half", "whole_sentences": False,
                   "length_control": "length_only", "difficulties": None, "plugins": {}}  # fmt: skip
        (self.folder / "judge.yaml").write_text(dump(content | changes))
        (self.folder / "samples.jsonl").write_text("".join(line + "\n" for line in self.lines))
        F.write(self.records, self.folder / "test.parquet")
        samples, data = self.folder / "samples.jsonl", self.folder / "test.parquet"
        files = {"reward_model": list(model), "baseline": list(outputs), "difficulties": list(hard)}
        how = {"tokens_per_microbatch": 2048, "concurrency": 16, "requests_per_minute": None}
        judge(self.folder / "judge.yaml", samples, data, self.output, **files, **how)
        result: dict[str, Any] = json.loads(self.output.read_text())
        return result


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_counts_and_win_rate_are_those_worked_by_hand_and_those_of_alpaca_eval(case: Case) -> None:
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
    row = result["leaderboard"]
    assert (row["win_rate"], row["n_wins"], row["n_wins_base"], row["n_draws"], row["n_total"]) == (62.5, 2, 1, 1, 4)
    assert result["scores"]["candidate"] == pytest.approx({"mean": 0.4375, "a": 0.625, "end": 0.25})
    assert result["scores"]["baseline"] == pytest.approx({"mean": 0.3125, "a": 0.125, "end": 0.5})
    assert result["mean_length"] == {"candidate": 2.0, "baseline": 2.0}
    assert result["annotations"][2]["criteria"] == {"a": 0.5, "end": 1.0}
    assert result["annotations"][2]["candidate_score"] == 0.75


def test_identical_responses_are_a_tie_and_keep_their_scores(case: Case) -> None:
    case.add("q1", "aa", "aa")
    case.add("q2", "bb", "aa")
    result = case.run()
    assert (result["ties"], result["wins"]) == (1, 1)
    assert result["annotations"][0]["candidate_score"] == result["annotations"][0]["baseline_score"] == 0.5


def test_scores_within_the_margin_are_a_tie(case: Case) -> None:
    case.add("q1", "aaabbbbbbb", "aaaabbbbbb")  # .4 against .3 in one of two criteria
    assert case.run(tie_margin=0.05)["ties"] == 1
    assert case.run(tie_margin=0.04)["wins"] == 1


def test_every_sample_counts_even_when_texts_repeat(case: Case) -> None:
    for question in ("q1", "q2"):
        case.add(question, "bb", "aa", "aa", "bb", "aa")
    result = case.run()
    assert (result["n"], result["wins"], result["ties"], result["leaderboard"]["n_total"]) == (8, 6, 2, 8)
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
        ('{"prompt_id": "x", "sample": 0, "response": null}', "response: Input should be a valid string"),
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
    with pytest.raises(HalosError, match=r"unknown kind 'verifyer'.*verifier"):
        case.run(kind="verifyer")
    with pytest.raises(HalosError, match=r"unknown verifier 'test_letter'.*test_letters"):
        case.run(verifier="test_letter")


# ---- a reward model as judge --------------------------------------------------------------------------------------


class Letters:
    """Stands for a reward model: a's less 5, so below 0; none for the word boom."""

    def __init__(self, folder: Path, tokens_per_microbatch: int, **how: Any) -> None:
        self.made_of = {"folder": folder, "tokens": tokens_per_microbatch, **how}
        made.append(self)

    def score(self, prompts: list[list[F.Turn]], responses: list[str]) -> list[float | None]:
        assert len(prompts) == len(responses)
        bonus = {"generous": 0.5}
        return [None if "boom" in response else response.count("a") + bonus.get(prompt[0]["content"], 0) - 5
                for prompt, response in zip(prompts, responses, strict=True)]  # fmt: skip


made: list[Letters] = []
BY_REWARD = {"kind": "reward_model", "reward_model": "rm", "verifier": None}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Letters]:
    monkeypatch.setattr(rewards, "RewardModel", Letters)
    made.clear()
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
    manifest.write_text(json.dumps({"config": {"precision": "fp32", "attention": "eager", "seed": 1}}))
    case.run((tmp_path / "model", manifest), **BY_REWARD)
    case.run((tmp_path / "mine",), **BY_REWARD)
    assert [model.made_of for model in stand_in] == [
        {"folder": tmp_path / "model", "tokens": 2048, "precision": "fp32", "attention": "eager"},
        {"folder": tmp_path / "mine", "tokens": 2048},
    ]


def test_a_judge_and_its_model_come_together(case: Case, tmp_path: Path) -> None:
    case.add("q1", "bb", "aa")
    with pytest.raises(HalosError, match="of kind verifier: --reward-model takes none"):
        case.run((tmp_path,))
    with pytest.raises(HalosError, match="of kind reward_model: --reward-model needs its model's folder"):
        case.run(**BY_REWARD)
    with pytest.raises(HalosError, match="there is no reward model in"):
        case.run((tmp_path,), **BY_REWARD)


def load(**judge: Any) -> C.Config:
    """The catalogue of the tests with one more judge, and a reward model for it."""
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["stages"]["rm"] = {"loss": "bradley_terry"}
    content["judges"]["r"] = {"prompts": "p", **judge}
    content["grids"]["g"]["judges"] = ["j", "r"]
    return C.load(content)


ASK = "{instruction} {output_1} {output_2}"
MISTAKES = {
    "both": ({"kind": "reward_model", "reward_model": "sft-rm", "verifier": "toy"},
             "judges.r: a judge of kind reward_model has no verifier: take that out"),
    "both, the other way": ({"kind": "verifier", "verifier": "toy", "reward_model": "sft-rm", "seed": 1},
                            "judges.r: a judge of kind verifier has no reward_model and no seed: take that out"),
    "a folder's seed": ({"kind": "reward_model", "reward_model": "models/rm", "seed": 1},
                        "judges.r: a judge of kind reward_model, which names a folder, has no seed: take that out"),
    "no verifier": ({"kind": "verifier"}, "judges.r: a judge of kind verifier names one: give it `verifier:`"),
    "no reward model": ({"kind": "reward_model"},
                        "judges.r: a judge of kind reward_model names one: give it `reward_model:`"),
    "an unknown stage": ({"kind": "reward_model", "reward_model": "sft-rmm"},
                         "judges.r.reward_model: sft-rmm: there is no 'rmm' in stages; did you mean 'rm'?"),
    "a policy": ({"kind": "reward_model", "reward_model": "sft-dpo"},
                 "judges.r.reward_model: sft-dpo must end in a reward model, such as bradley_terry"),
    "a kind": ({"kind": "verifyer", "verifier": "toy"},
               "judges.r.kind: Input should be 'verifier', 'reward_model' or 'openai'"),
    "no question": ({"kind": "openai", "openai": {"model": "m"}},
                    "judges.r.openai: give exactly one of prompt and annotator"),
    "two questions": ({"kind": "openai", "openai": {"model": "m", "prompt": ASK, "annotator": "chatgpt"}},
                      "judges.r.openai: give exactly one of prompt and annotator"),
    "no model": ({"kind": "openai", "openai": {"prompt": ASK}},
                 "judges.r.openai: a prompt of one's own is for a model: give `model:`"),
    "a prompt without a response": (
        {"kind": "openai", "openai": {"model": "m", "prompt": "{instruction} {output_1}"}},
        "judges.r.openai: the prompt has no {output_2}: put what is compared there"),
    "an unknown annotator": (
        {"kind": "openai", "openai": {"annotator": "weighted"}},
        "judges.r.openai: alpaca_eval has no annotator 'weighted'; try weighted_alpaca_eval_gpt4_turbo"),
    "nobody to ask": ({"kind": "openai"}, "judges.r: a judge of kind openai names one: give it `openai:`"),
    "a margin of answers": ({"kind": "openai", "openai": {"annotator": "chatgpt"}, "tie_margin": 0.1},
                            "judges.r: a judge of kind openai has no tie_margin: take that out"),
    "failures of a program": ({"kind": "verifier", "verifier": "toy", "max_failures": 0.1, "concurrency": 2},
                              "judges.r: a judge of kind verifier has no concurrency and no max_failures: "
                              "take that out"),
    "a baseline": ({"kind": "verifier", "verifier": "toy", "baseline": "targets"},
                   "judges.r.baseline: 'targets' is none of target, {file: PATH} and {method: METHOD, seed: same}"),
    "a baseline's stage": ({"kind": "verifier", "verifier": "toy", "baseline": {"method": "sft-pppo"}},
                           "judges.r.baseline.method: sft-pppo: there is no 'pppo' in stages; did you mean 'ppo'?"),
    "a baseline that answers nothing": (
        {"kind": "verifier", "verifier": "toy", "baseline": {"method": "sft-rm"}},
        "judges.r.baseline.method: sft-rm ends in a reward model, which answers no prompts: name it in reward_models"),
    "length control without AlpacaEval": (
        {"kind": "verifier", "verifier": "toy", "length_control": "alpaca_eval"},
        "judges.r: length_control: alpaca_eval needs AlpacaEval's reference outputs: name them as baseline"),
    "difficulties of nothing": (
        {"kind": "verifier", "verifier": "toy", "difficulties": "df_gamed.csv"},
        "judges.r: difficulties are read with length_control: alpaca_eval: take them out, or say so"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_contradictory_judge_is_refused_in_one_sentence(mistake: str) -> None:
    entry, says = MISTAKES[mistake]
    with pytest.raises(HalosError) as caught:
        load(**entry)
    assert str(caught.value) == says


def test_the_slice_of_a_judge_holds_what_is_its_own_and_no_key_of_another_kind() -> None:
    common = {"prompts": "p", "baseline": "target", "tie_margin": 0.0, "ties": "half", "whole_sentences": False,
              "length_control": "length_only", "difficulties": None, "plugins": {}}  # fmt: skip
    config = load(kind="reward_model", reward_model="sft-rm", label="A name")
    assert config_slice(config, "judges/j") == {"judge": "j", "kind": "verifier", "verifier": "toy", **common}
    rewarded = {"judge": "r", "kind": "reward_model", **common}
    assert config_slice(config, "judges/r") == {**rewarded, "reward_model": "sft-rm", "seed": 1}
    config = load(kind="reward_model", reward_model="models/mine")
    assert config_slice(config, "judges/r") == {**rewarded, "reward_model": "models/mine"}
    asked = config_slice(load(kind="openai", openai={"annotator": "chatgpt"}, concurrency=3), "judges/r")
    own = {"judge", "kind", "openai", "max_failures", *common} - {"tie_margin"}  # how fast it is asked makes no result
    assert set(asked) == own
    assert asked["openai"]["annotator"] == "chatgpt"


def test_an_edited_judge_is_another_slice_for_itself_alone() -> None:
    one = load(kind="reward_model", reward_model="sft-rm")
    other = load(kind="reward_model", reward_model="sft-rm", seed=2, tie_margin=0.5)
    folders = ["models/m", "data/d", "tokens/d/m", "prompts/p", "tasks/t", "judges/j", "grids/g",
               *(f"runs/d/m/{method}/seed1" for method in ("base", "sft", "sft-dpo", "sft-rm"))]  # fmt: skip
    assert [folder for folder in folders if config_slice(one, folder) != config_slice(other, folder)] == []
    assert config_slice(one, "judges/r") != config_slice(other, "judges/r")


def wildcards(judge: str) -> SimpleNamespace:
    return SimpleNamespace(dataset="d", model="m", method="sft-dpo", seed="3", judge=judge)


def test_all_cells_are_judged_by_the_reward_model_of_one_seed() -> None:
    w = Workflow(load(kind="reward_model", reward_model="sft-rm"))
    assert w.judging_model(wildcards("j")) == []
    folder = "results/runs/d/m/sft-rm/seed1"
    assert w.judging_model(wildcards("r")) == [f"{folder}/model", f"{folder}/manifest.json"]


def test_a_baseline_is_a_file_or_the_samples_of_another_cell() -> None:
    program = {"kind": "verifier", "verifier": "toy"}
    w = Workflow(load(**program))
    assert w.baseline(wildcards("r")) == []
    w = Workflow(load(**program, baseline={"file": "data/outputs.json"}))
    assert w.baseline(wildcards("r")) == ["data/outputs.json"]
    w = Workflow(load(**program, baseline={"method": "sft"}))
    assert w.baseline(wildcards("r")) == ["results/runs/d/m/sft/seed3/samples/p.jsonl"]
    of_round = SimpleNamespace(**{**wildcards("r").__dict__, "seed": "3/round2"})
    assert w.baseline(of_round) == ["results/runs/d/m/sft/seed3/samples/p.jsonl"]
    w = Workflow(load(**program, baseline={"method": "sft", "seed": 7}))
    assert w.baseline(wildcards("r")) == ["results/runs/d/m/sft/seed7/samples/p.jsonl"]


def test_the_views_of_a_baseline_that_the_grid_does_not_name_are_checked() -> None:
    of_store = SimpleNamespace(dataset="d", model="m", view="paired")
    assert Workflow(load(kind="verifier", verifier="toy")).views(of_store) == "paired sft"
    w = Workflow(load(kind="verifier", verifier="toy", baseline={"method": "sft-kto"}))
    assert w.views(of_store) == "paired sft unpaired"


def test_how_fast_a_model_is_asked_reaches_the_command() -> None:
    asked: dict[str, Any] = {"kind": "openai", "openai": {"annotator": "chatgpt"}}
    assert Workflow(load(**asked)).judging_limits(wildcards("r")) == "--concurrency 16"
    w = Workflow(load(**asked, concurrency=4, requests_per_minute=90))
    assert w.judging_limits(wildcards("r")) == "--concurrency 4 --requests-per-minute 90"
    assert (w.judging_gres(wildcards("r")), w.judging_model(wildcards("r"))) == ("", [])


def test_the_key_and_the_files_of_a_judge_are_wanted_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(HalosError, match="put it into the environment variable OPENAI_API_KEY"):
        check_keys(load(kind="openai", openai={"annotator": "chatgpt"}))
    config = load(kind="verifier", verifier="toy", baseline={"file": "outputs.json"}, length_control="alpaca_eval",
                  difficulties="hard.csv")  # fmt: skip
    for file in ("outputs.json", "hard.csv"):
        with pytest.raises(HalosError, match=rf"judges\.r wants {file}, which does not exist"):
            check_files(config)
        Path(file).touch()
    check_files(config)
    assert Workflow(config).difficulties(wildcards("r")) == ["hard.csv"]


def test_a_folder_that_judges_is_looked_into_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    w = Workflow(load(kind="reward_model", reward_model="./mine"))
    with pytest.raises(HalosError, match="there is no reward model in mine"):
        w.judging_model(wildcards("r"))
    (tmp_path / "mine").mkdir()
    content = '{"architectures": ["XForSequenceClassification"], "id2label": {"0": "A"}}'
    (tmp_path / "mine/config.json").write_text(content)
    with pytest.raises(HalosError, match="has no chat template"):
        w.judging_model(wildcards("r"))
    (tmp_path / "mine/chat_template.jinja").touch()
    assert w.judging_model(wildcards("r")) == ["mine"]


def test_a_reward_model_takes_what_the_model_needs_and_a_program_the_least() -> None:
    config = load(kind="reward_model", reward_model="sft-rm")
    needs = Resources(gpus=2, cpus=8, mem_gb=48, runtime=90, tokens_per_microbatch=512)
    entry = config.models["m"].model_copy(update={"resources": needs})
    w = Workflow(config.model_copy(update={"models": {"m": entry}}))
    names = ("cpus", "mem_mb", "runtime", "tokens_per_microbatch")
    assert [w.judging_resource(name)(wildcards("r"), 2) for name in names] == [8, 96000, 180, 512]
    assert [w.judging_resource(name)(wildcards("j"), 2) for name in names] == [1, 4000, 60, 16384]
    assert (w.judging_gres(wildcards("r")), w.judging_gres(wildcards("j"))) == ("gpu:1", "")


def test_the_workflow_trains_the_reward_model_that_judges_once_and_hands_it_to_its_judge(tmp_path: Path) -> None:
    """Though the grid does not name it among its `reward_models`."""
    project = Project(copy_files(tmp_path))
    project.write_config(SMALL)
    project.edit({
        "stages": {**SMALL["stages"], "rm": {"loss": "bradley_terry"}},
        "judges.rm": {"kind": "reward_model", "reward_model": "sft-rm", "prompts": "p"},
        "grids.both.judges": ["j", "rm"],
        "grids.both.seeds": [1, 2],
        "models.m.resources.gpus": 1,
    })  # fmt: skip
    run = project.dry("judged")
    assert [name for name in run.names if "-rm" in name and not name.startswith("configure")] == [
        "train_cell sft-rm/seed1"
    ]
    judges: dict[str, list[Job]] = {"j": [], "rm": []}
    for job in run.jobs:
        if job.rule == "judge":
            judges[job.wildcards["judge"]].append(job)
    assert {name: len(jobs) for name, jobs in judges.items()} == {"j": 6, "rm": 6}
    model = {"results/runs/d/m/sft-rm/seed1/model", "results/runs/d/m/sft-rm/seed1/manifest.json"}
    assert all(model <= set(job.input) for job in judges["rm"])
    assert not any(model & set(job.input) for job in judges["j"])
    assert {job.resources["gres"] for job in judges["rm"]} == {"gpu:1"}
    assert {job.resources["gres"] for job in judges["j"]} == {""}


def test_the_workflow_samples_a_baseline_once_and_hands_it_to_a_judge_that_asks(tmp_path: Path) -> None:
    project = Project(copy_files(tmp_path))
    project.write_config(SMALL)
    project.edit({
        "judges.asked": {"kind": "openai", "prompts": "p", "baseline": {"method": "sft", "seed": 2}, "concurrency": 3,
                         "openai": {"model": "m", "prompt": ASK, "base_url": "http://localhost:1/v1"}},
        "grids.both.judges": ["asked"],
    })  # fmt: skip
    run = project.dry("-p", "judged")
    assert [name for name in run.names if name.startswith(("sample sft/", "train_cell sft/"))] == [
        "sample sft/seed2 p", "train_cell sft/seed1", "train_cell sft/seed2",
    ]  # fmt: skip
    judges = [job for job in run.jobs if job.rule == "judge"]
    theirs = "results/runs/d/m/sft/seed2/samples/p.jsonl"
    assert [theirs in job.input for job in judges] == [True] * 3
    assert run.output.count(f"--baseline {theirs}") == run.output.count(" --concurrency 3\n") == 3
