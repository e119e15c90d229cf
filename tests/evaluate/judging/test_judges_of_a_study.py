"""Judges of a study: which ones a catalogue may name, their slices, and what the workflow hands to them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from halos.errors import HalosError
from halos.evaluate.judging.settings import JudgeSlice, ToJudge
from halos.models.settings import Resources
from halos.settings import dump, identity
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.checks import check_files, check_keys
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.workflow.judging import Pair
from tests.conftest import CATALOGUE
from tests.workflow.bound import Workflow
from tests.workflow.conftest import CATALOGUE as SMALL
from tests.workflow.conftest import Project, copy_files


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
               "judges.r.kind: Input should be 'verifier', 'reward_model', 'openai', 'model' or 'human'"),
    "no question": ({"kind": "openai", "openai": {"model": "m"}},
                    "judges.r.openai: give exactly one of prompt and annotator"),
    "two questions": ({"kind": "openai", "openai": {"model": "m", "prompt": ASK, "annotator": "chatgpt"}},
                      "judges.r.openai: give exactly one of prompt and annotator"),
    "no model": ({"kind": "openai", "openai": {"prompt": ASK}},
                 "judges.r.openai: a prompt is asked of a model: give `model:`"),
    "a prompt without a response": (
        {"kind": "openai", "openai": {"model": "m", "prompt": "{instruction} {output_1}"}},
        "judges.r.openai: the prompt has no {output_2}: add where each goes"),
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
    "a word for pairs": ({"kind": "verifier", "verifier": "toy", "compare": "every"},
                         "judges.r.compare: 'every' is neither all nor a list of pairs of methods, as in "
                         "[[sft-dpo, sft-kto]]"),
    "three of a pair": ({"kind": "verifier", "verifier": "toy", "compare": [["sft", "sft-dpo", "base"]]},
                        "judges.r.compare: [['sft', 'sft-dpo', 'base']] is neither all nor a list of pairs of methods, "
                        "as in [[sft-dpo, sft-kto]]"),
    "a method against itself": ({"kind": "verifier", "verifier": "toy", "compare": [["sft", "sft"]]},
                                "judges.r.compare: the pair of sft is one method twice: name two"),
    "a pair in both directions": (
        {"kind": "verifier", "verifier": "toy", "compare": [["sft", "base"], ["base", "sft"]]},
        "judges.r.compare: the pair of base and sft is named twice: take one out"),
    "a pair's stage": ({"kind": "verifier", "verifier": "toy", "compare": [["sft", "sft-pppo"]]},
                       "judges.r.compare: sft-pppo: there is no 'pppo' in stages; did you mean 'ppo'?"),
    "prompts of no pair": ({"kind": "openai", "openai": {"annotator": "chatgpt"}, "prompts_per_pair": 9},
                           "judges.r: prompts_per_pair is of comparisons between methods: give `compare:`, or take it "
                           "out"),
    "questions of a program": (
        {"kind": "verifier", "verifier": "toy", "both_orders": True, "ask_again": 5, "prompts_per_pair": 9},
        "judges.r: a judge of kind verifier has no ask_again and no both_orders and no prompts_per_pair: take that "
        "out"),
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
    # how fast it is asked makes no result
    own = {"judge", "kind", "openai", "max_failures", "both_orders", "ask_again", *common} - {"tie_margin"}
    assert set(asked) == own
    assert asked["openai"]["annotator"] == "chatgpt"


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "verifier", "verifier": "toy", "tie_margin": 0.5},
        {"kind": "reward_model", "reward_model": "sft-rm", "seed": 3},
        {"kind": "openai", "openai": {"annotator": "chatgpt"}, "max_failures": 0.5, "concurrency": 3},
        {"kind": "verifier", "verifier": "toy", "baseline": {"method": "sft", "seed": 7}},
    ],
    ids=str,
)
def test_the_slice_of_a_judge_reads_back_as_its_entry(tmp_path: Path, entry: dict[str, Any]) -> None:
    config = load(**entry)
    (tmp_path / "config.yaml").write_text(dump(config_slice(config, "judges/r")))
    slice_ = JudgeSlice.read(tmp_path / "config.yaml")
    assert slice_.judge == "r"
    mine = config.judges["r"]
    assert {name: getattr(slice_, name) for name in identity(mine)} == {
        name: getattr(mine, name) for name in identity(mine)
    }


def test_an_edited_judge_is_another_slice_for_itself_alone() -> None:
    one = load(kind="reward_model", reward_model="sft-rm")
    other = load(kind="reward_model", reward_model="sft-rm", seed=2, tie_margin=0.5)
    folders = ["models/m", "data/d", "tokens/d/m", "prompts/p", "tasks/t", "judges/j", "grids/g",
               *(f"runs/d/m/{method}/seed1" for method in ("base", "sft", "sft-dpo", "sft-rm"))]  # fmt: skip
    differing = [folder for folder in folders if config_slice(one, folder) != config_slice(other, folder)]
    assert differing == ["grids/g"]  # whose tables compare methods by the scores, with this margin
    assert config_slice(one, "judges/r") != config_slice(other, "judges/r")


def wildcards(judge: str) -> SimpleNamespace:
    return SimpleNamespace(dataset="d", model="m", method="sft-dpo", run="seed3", judge=judge)


def asked(w: Workflow, judge: str, **changes: Any) -> ToJudge:
    """What a judgement of the cell of `wildcards` is made from."""
    return w.inputs.judging.files(Pair(Cell("d", "m", "sft-dpo", 3, **changes), judge))  # type: ignore[no-any-return]


def batch(w: Workflow, judge: str) -> SimpleNamespace:
    """The wildcards of the job that judges the cell of `wildcards`."""
    [folder] = w.inputs.judgements(wildcards(judge))
    return SimpleNamespace(batch=Path(folder).parent.name)


def test_all_cells_are_judged_by_the_reward_model_of_one_seed() -> None:
    w = Workflow(load(kind="reward_model", reward_model="sft-rm"))
    assert asked(w, "j").reward_model == ()
    folder = "results/runs/d/m/sft-rm/seed1"
    assert asked(w, "r").reward_model == (f"{folder}/model", f"{folder}/manifest.json")


def test_a_baseline_is_a_file_or_the_samples_of_another_cell() -> None:
    program = {"kind": "verifier", "verifier": "toy"}
    w = Workflow(load(**program))
    assert asked(w, "r").baseline == ()
    w = Workflow(load(**program, baseline={"file": "data/outputs.json"}))
    assert asked(w, "r").baseline == ("data/outputs.json",)
    w = Workflow(load(**program, baseline={"method": "sft"}))
    assert asked(w, "r").baseline == ("results/runs/d/m/sft/seed3/samples/p.jsonl",)
    assert asked(w, "r", round=2).baseline == ("results/runs/d/m/sft/seed3/samples/p.jsonl",)
    w = Workflow(load(**program, baseline={"method": "sft", "seed": 7}))
    assert asked(w, "r").baseline == ("results/runs/d/m/sft/seed7/samples/p.jsonl",)


def test_the_views_of_a_baseline_that_the_grid_does_not_name_are_checked() -> None:
    of_store = SimpleNamespace(dataset="d", model="m", view="paired")
    assert Workflow(load(kind="verifier", verifier="toy")).resources.views(of_store) == "paired sft"
    w = Workflow(load(kind="verifier", verifier="toy", baseline={"method": "sft-kto"}))
    assert w.resources.views(of_store) == "paired sft unpaired"


def test_how_fast_a_model_is_asked_reaches_the_command() -> None:
    server: dict[str, Any] = {"kind": "openai", "openai": {"annotator": "chatgpt"}}
    w = Workflow(load(**server))
    assert w.resources.judge.limits(batch(w, "r")) == "--concurrency 16"
    w = Workflow(load(**server, concurrency=4, requests_per_minute=90))
    assert w.resources.judge.limits(batch(w, "r")) == "--concurrency 4 --requests-per-minute 90"
    assert (w.resources.judge.single_gres(batch(w, "r")), asked(w, "r").reward_model) == ("", ())


def test_the_key_and_the_files_of_a_judge_are_wanted_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(HalosError, match="put it into the environment variable OPENAI_API_KEY"):
        check_keys(Study(load(kind="openai", openai={"annotator": "chatgpt"})))
    config = load(kind="verifier", verifier="toy", baseline={"file": "outputs.json"}, length_control="alpaca_eval",
                  difficulties="hard.csv")  # fmt: skip
    for file in ("outputs.json", "hard.csv"):
        with pytest.raises(HalosError, match=rf"judges\.r wants {file}, which does not exist"):
            check_files(Study(config))
        Path(file).touch()
    check_files(Study(config))
    assert asked(Workflow(config), "r").difficulties == ("hard.csv",)


def test_a_folder_that_judges_is_looked_into_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    w = Workflow(load(kind="reward_model", reward_model="./mine"))
    with pytest.raises(HalosError, match="there is no reward model in mine"):
        w.inputs.judgements(wildcards("r"))
    (tmp_path / "mine").mkdir()
    content = '{"architectures": ["XForSequenceClassification"], "id2label": {"0": "A"}}'
    (tmp_path / "mine/config.json").write_text(content)
    with pytest.raises(HalosError, match="has no chat template"):
        w.inputs.judgements(wildcards("r"))
    (tmp_path / "mine/chat_template.jinja").touch()
    assert asked(w, "r").reward_model == ("mine",)


def test_a_reward_model_takes_what_the_model_needs_and_a_program_the_least() -> None:
    config = load(kind="reward_model", reward_model="sft-rm")
    needs = Resources(gpus=2, cpus=8, mem_gb=48, runtime=90, tokens_per_microbatch=512)
    entry = config.models["m"].model_copy(update={"resources": needs})
    w = Workflow(config.model_copy(update={"models": {"m": entry}}))
    of = w.resources.judge
    for name, needed in (("r", (8, 96000, 180, 512)), ("j", (1, 8000, 120, 16384))):  # doubled: a second attempt
        named = batch(w, name)
        assert (of.cpus(named), of.mem_mb(named, 2), of.runtime(named, 2), of.tokens(named)) == needed
    assert (of.single_gres(batch(w, "r")), of.single_gres(batch(w, "j"))) == ("gpu:1", "")


def test_a_model_that_is_asked_runs_as_it_samples_and_a_reward_model_on_one_gpu() -> None:
    asked = {"model": "m", "prompt": ASK}
    split, whole = Resources(gpus=4, tensor_parallel=2), Resources(gpus=4, sampler="transformers")
    for kind, needs, wanted in (
        ({"kind": "model", "model": asked}, split, (2, "gpu:2", "--backend vllm --tensor-parallel 2")),
        ({"kind": "model", "model": asked}, whole, (1, "gpu:1", "--backend transformers --tensor-parallel 1")),
        ({"kind": "model", "model": asked}, Resources(), (0, "", "--backend transformers --tensor-parallel 1")),
        (
            {"kind": "reward_model", "reward_model": "sft-rm"},
            split,
            (1, "gpu:1", "--backend transformers --tensor-parallel 2"),
        ),
    ):
        config = load(**kind)
        entry = config.models["m"].model_copy(update={"resources": needs})
        w = Workflow(config.model_copy(update={"models": {"m": entry}}))
        of, named = w.resources.judge, batch(w, "r")
        *gpus, options = wanted
        assert [of.sampling_gpus(named), of.sampling_gres(named)] == gpus
        assert of.sampling(named).endswith(options)


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
    judged = Counter(job.wildcards["judge"] for job in run.jobs if job.rule == "judge")
    assert judged == {"j": 6, "rm": 6}
    [j], [rm] = ([job for job in run.jobs if job.rule == "decide" and config in job.input]
                 for config in ("results/judges/j/config.yaml", "results/judges/rm/config.yaml"))  # fmt: skip
    model = {"results/runs/d/m/sft-rm/seed1/model", "results/runs/d/m/sft-rm/seed1/manifest.json"}
    assert model <= set(rm.input)
    assert not model & set(j.input)
    assert (rm.resources["gres"], j.resources["gres"]) == ("gpu:1", "")


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
    judges = [job for job in run.jobs if job.rule == "ask"]
    theirs = "results/runs/d/m/sft/seed2/samples/p.jsonl"
    assert [theirs in job.input for job in judges] == [True] * 3
    assert run.output.count(" --concurrency 3\n") == 3
