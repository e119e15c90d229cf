"""The catalogue: what it refuses, and in which words; what of it makes a result."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.errors import HalosError
from halos.losses.paired import DPO
from halos.registry import LOSSES
from halos.settings import dump, read_slice
from halos.study import catalogue as C
from halos.study.slices import config_slice
from halos.train.settings import ADAMW
from halos.train.slices import stage_slice
from tests.conftest import CATALOGUE

ROOT = Path(__file__).parents[2]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The test catalogue with one key set, for example stages.dpo.beta."""
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(CATALOGUE, sort_keys=False))
    *parents, last = path.split("/")
    entry = content
    for key in parents:
        entry = entry[key]
    entry[last] = value
    return content


MISTAKES = {
    "top level": ("modles", {}, ["modles: unknown key", "'models'"]),
    "a dataset": ("datasets/d/max_lenght", 5, ["datasets.d.max_lenght: unknown key", "'max_length'"]),
    "a grid": ("grids/g/sedes", [1], ["grids.g.sedes: unknown key", "'seeds'"]),
    "a judge": ("judges/j/prompt", "p", ["judges.j.prompt: unknown key", "'prompts'"]),
    "a model's resources": ("models/m/resources", {"gpu": 1}, ["models.m.resources.gpu: unknown key", "'gpus'"]),
    "a model with the name of a setting": ("models", {"resources": {**CATALOGUE["models"]["m"], "lable": "x"}},
                                           ["models.resources.lable: unknown key; did you mean 'label'"]),
    "a key of an online stage": ("stages/dpo/online",
                                 {"label": "l", "rounds": 2, "prompts_per_round": 8, "feedbacks": 2},
                                 ["stages.dpo.online.feedbacks: unknown key; "]),
    "a hyperparameter": ("stages/dpo/betta", 0.1, ["stages.dpo: 'betta'", "'dpo'", "'beta'"]),
    "another loss's hyperparameter": ("stages/dpo/gamma_beta_ratio", 1, ["'gamma_beta_ratio' is neither"]),
    "a training setting": ("stages/dpo/learning_rates", 0.1, ["stages.dpo: 'learning_rates' is neither"]),
    "a hyperparameter's type": ("stages/dpo/beta", "high", ["stages.dpo: loss 'dpo': beta: ", "valid number"]),
    "a loss": ("stages/dpo/loss", "dop", ["stages.dpo: unknown loss 'dop'", "'dpo'"]),
    "a source": ("datasets/d/sources", [{"name": "toys"}], ["unknown source 'toys'", "'toy'"]),
    "a source's option": ("datasets/d/sources", [{"name": "toy", "options": {"promts": 3}}],
                          ["source toy has no option 'promts'", "'prompts'"]),
    "no source": ("datasets/d/sources", [], ["datasets.d.sources: "]),
    "a verifier": ("judges/j/verifier", "toi", ["unknown verifier 'toi'", "'toy'"]),
    "a stage of a method": ("grids/g/methods", ["sft-dop"], ["methods: sft-dop: there is no 'dop' in stages", "'dpo'"]),
    "base within a method": ("grids/g/methods", ["base-dpo"], ["no 'base' in stages"]),
    "a grid's model": ("grids/g/models", ["n"], ["grids.g.models: there is no 'n' in models"]),
    "the grid": ("grid", "gg", ["grid: there is no 'gg' in grids", "'g'"]),
    "a judge's prompts": ("judges/j/prompts", "q", ["judges.j.prompts: there is no 'q' in prompts"]),
    "a tokenizer's dataset": ("models/m/tokenizer/train_on", "dd", ["train_on: there is no 'dd' in datasets"]),
    "a stage id with -": ("stages/sft-dpo", {"loss": "dpo"}, ["stages.sft-dpo: an id is", "joined by -"]),
    "a stage called base": ("stages/base", {"loss": "dpo"}, ["stages.base: this id means a model without training"]),
    "no origin": ("models/n", {}, ["models.n: give exactly one of hub, path and architecture (now: none)"]),
    "two origins": ("models/n", {"hub": "a/b", "path": "c"}, ["models.n: give exactly one of", "(now: hub, path)"]),
    "no tokenizer": ("models/m/tokenizer", None, ["models.m: architecture and tokenizer go together"]),
    "no model type": ("models/m/architecture", {"hidden_size": 8}, ["models.m: architecture needs a model_type"]),
    "no room for a response": ("datasets/d/max_prompt_length", 100, ["datasets.d: max_prompt_length must be below"]),
    "a task twice": ("tasks/t/task", "arc_easy", ["tasks.t: give exactly one of task and local"]),
    "a learning rate": ("stages/dpo/lr", 0, ["stages.dpo.lr: ", "greater than 0"]),
    "a seed": ("grids/g/seeds", [-1], ["grids.g.seeds.0: ", "greater than or equal to 0"]),
    "an optimiser": ("stages/dpo/optimizer", "Adamw", ["stages.dpo.optimizer: ", "'AdamW'"]),
    "plugins that are no list": ("plugins", "my.py", ["plugins: "]),
    "a live reference of a loss without one": ("stages/simpo/humanline", True,
                                               ["stages.simpo: the loss 'simpo' has no reference: take out humanline"]),
    "a synced reference of a loss without one": ("stages/sft/sync_reference", 4, ["stages.sft: the loss 'sft' has no"]),
    "a weight of no sync": ("stages/dpo/sync_weight", 0.5, ["stages.dpo: sync_weight is read at a sync alone"]),
    "a reference that is never synced": ("stages/dpo/sync_reference", 0, ["stages.dpo.sync_reference: "]),
    "a clamp from above that is below 0": ("stages/dpo/log_eps_r", -1, ["stages.dpo.log_eps_r: ", "greater than 0"]),
    "a clamp from below that is above 0": ("stages/dpo/log_eps_p", 1, ["stages.dpo.log_eps_p: ", "less than 0"]),
    "a reward model for a loss without scores": ("stages/dpo/reward_model", "bradley_terry",
                                                 ["stages.dpo: the loss 'dpo' reads no scores: take out reward_model"]),
    "a reward model for a loss of labels": ("stages/ppo/reward_model", "bradley_terry",
                                            ["stages.ppo: ", "reads no scores", "or set reward: score"]),
    "a reward model of unknown stages": ("stages/grpo/reward_model", "sft-rn",
                                         ["stages.grpo.reward_model: sft-rn: there is no 'rn' in stages"]),
    "a policy for a reward model": ("stages/grpo/reward_model", "sft-dpo",
                                    ["stages.grpo.reward_model: sft-dpo must end in a reward model"]),
    "a base model for a reward model": ("stages/grpo/reward_model", "base",
                                        ["stages.grpo.reward_model: base must end in a reward model"]),
    "a model's own reward model": ("models/m/stages", {"grpo": {"reward_model": "rm"}},
                                   ["models.m.stages.grpo.reward_model: 'rm' is neither a method nor the id of"]),
    "a model's own policy for a reward model": ("models/m/stages", {"grpo": {"reward_model": "kto"}},
                                                ["models.m.stages.grpo.reward_model: kto must end in a reward model"]),
    "a model's own setting that its loss ignores": ("models/m/stages", {"dpo": {"label_by": "mean"}},
                                                    ["models.m.stages.dpo: the loss 'dpo' reads the paired view"]),
    "a reward model among the methods": ("grids/g/methods", ["base", "sft-bradley_terry"],
                                         ["grids.g.methods: sft-bradley_terry ends in a reward model",
                                          "name it in reward_models"]),
    "a policy among the reward models": ("grids/g/reward_models", ["sft-dpo"],
                                         ["grids.g.reward_models: sft-dpo must end in a reward model"]),
    "a stage after a reward model": ("grids/g/methods", ["bradley_terry-dpo"],
                                     ["grids.g.methods: bradley_terry-dpo: no stage can follow bradley_terry",
                                      "it trains a reward model"]),
    "a stage after control tokens": ("grids/g/methods", ["sft-csft-dpo"],
                                     ["grids.g.methods: sft-csft-dpo: no stage can follow csft", "control token"]),
    "a reward model after control tokens": ("grids/g/reward_models", ["csft-bradley_terry"],
                                            ["grids.g.reward_models: csft-bradley_terry: no stage can follow csft"]),
    "few pairs of a loss without pairs": ("stages/kto/pairs_per_prompt", 1,
                                          ["stages.kto: the loss 'kto' reads the unpaired view", "pairs_per_prompt"]),
    "shares of labels of a loss without labels": (
        "stages/dpo", {"loss": "dpo", "keep_desirable": 0.5, "one_per_prompt": True},
        ["stages.dpo: the loss 'dpo' reads the paired view: take out keep_desirable, one_per_prompt"]),
    "noise in labels of a loss without any": (
        "stages/grpo/label_noise", 0.2, ["the loss 'grpo' reads neither pairs nor labels: take out label_noise"]),
    "shares of pairs of a loss without pairs": (
        "stages/kto/keep_pairs", 0.5, ["the loss 'kto' reads the unpaired view: take out keep_pairs"]),
    "balanced labels of pairs": (
        "stages/dpo/balance_labels", True, ["the loss 'dpo' reads the paired view: take out balance_labels"]),
    "balanced labels of scores": (
        "stages/ppo", {"loss": "ppo", "reward": "score", "balance_labels": True},
        ["the loss 'ppo' reads neither pairs nor labels: take out balance_labels"]),
    "noise that is all": ("stages/dpo/label_noise", 1, ["stages.dpo.label_noise: ", "less than 1"]),
    "clamps without humanline": ("stages/dpo/log_eps_p", -0.5,
                                 ["stages.dpo: without humanline: true nothing reads log_eps_p"]),
    "a norm of no value head": ("stages/dpo/value_max_grad_norm", 0.5,
                                ["stages.dpo: the loss 'dpo' has no value head: take out value_max_grad_norm"]),
    "labels of groups": ("stages/grpo/label_by", "best_worst", ["the loss 'grpo' reads the grouped view", "label_by"]),
    "labels by an unknown statistic": ("stages/kto/label_by", "men",
                                       ["stages.kto.label_by: 'men' is none of best_worst"]),
    "labels by a yes": ("stages/kto/label_by", True, ["stages.kto.label_by: True is none of best_worst"]),
    "a stage that learns from itself": ("stages/ppo", {"loss": "ppo", "reward": "score",
                                                       "reward_model": "ppo-bradley_terry"},
                                        ["stages.ppo: its reward model ppo-bradley_terry: ppo learns from a reward"]),
    "another loss for one model": ("models/m/stages", {"dpo": {"loss": "bradley_terry"}},
                                   ["models.m.stages.dpo.loss: it is dpo for every model; add a stage"]),
    "no pairs at all": ("stages/dpo/pairs_per_prompt", 0, ["stages.dpo.pairs_per_prompt: "]),
    "a share of nothing": ("stages/kto/keep_desirable", 0, ["stages.kto.keep_desirable: ", "greater than 0"]),
    "a share of more than all": ("stages/kto/keep_undesirable", 1.1,
                                 ["stages.kto.keep_undesirable: ", "less than or equal to 1"]),
    "no inner epochs": ("stages/dpo/inner_epochs", 0, ["stages.dpo.inner_epochs: "]),
    "a norm below 0": ("stages/ppo/value_max_grad_norm", -1, ["stages.ppo.value_max_grad_norm: ", "equal to 0"]),
    "LoRA's settings": ("stages/lora/lora", {"rank": 4}, ["stages.lora.lora.rank: unknown key; it is called `r` here"]),
    "LoRA's settings by TRL": ("models/m/stages", {"lora": {"lora": {"lora_alpha": 4}}},
                               ["models.m.stages.lora.lora.lora_alpha: unknown key; it is called `alpha` here"]),
    "LoRA's settings, misspelt": ("stages/lora/lora", {"targets_modules": "q"}, ["; did you mean 'target_modules'?"]),
    "adapters that are all dropped": ("stages/lora/lora", {"dropout": 1.0}, ["lora.dropout: ", "less than 1"]),
    "an infinite rate": ("stages/dpo/lr", float("inf"), ["stages.dpo.lr: inf is no finite number"]),
    "an infinite length": ("stages/dpo/warmup", "1e999", ["stages.dpo.warmup: 1e999 is no finite number"]),
    "what no manifest can hold": ("stages/dpo", {"loss": "dpo", "humanline": True, "log_eps_p": float("-inf")},
                                  ["stages.dpo.log_eps_p: -inf is no finite number"]),
    "an infinite field of a model": ("models/m/architecture/rope_parameters", {"factor": [float("nan")]},
                                     ["models.m.architecture.rope_parameters.factor.0: nan is no finite number"]),
    "a launcher": ("models/m/resources", {"parallel": "zero3"}, ["models.m.resources.parallel: ", "'ddp' or 'fsdp'"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_that_says_where_and_what_is_right(mistake: str) -> None:
    path, value, expected = MISTAKES[mistake]
    with pytest.raises(HalosError) as caught:
        C.load(changed(path, value))
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in expected if part not in message] == [], message


def test_what_is_refused_elsewhere_is_fine_in_its_place() -> None:
    """Each setting with a loss that reads it."""
    content = changed("grids/g/reward_models", ["bradley_terry", "sft-bradley_terry"])
    content["grids"]["g"]["methods"] = ["base", "csft", "sft-csft", "sft-ppo", "sft-grpo"]
    content["stages"]["ppo"] |= {"reward": "score", "reward_model": "sft-bradley_terry", "keep_desirable": 0.5}
    content["stages"]["grpo"] |= {"reward_model": "bradley_terry", "humanline": True}
    content["stages"]["kto"] |= {"label_by": 0.5, "one_per_prompt": True, "keep_undesirable": 1}
    content["stages"]["dpo"] |= {"pairs_per_prompt": 1, "sync_reference": 8}
    content["models"]["m"]["stages"] = {"grpo": {"reward_model": "sft-bradley_terry"}}
    config = C.load(content)
    assert config.stage("grpo", "m").reward_model == "sft-bradley_terry"
    assert config.stages["kto"].selection.label_by == 0.5


def test_every_mistake_has_a_line_of_its_own() -> None:
    content = changed("stages/dpo/betta", 0.1)
    content["models"]["m"]["labels"] = "x"
    with pytest.raises(HalosError) as caught:
        C.load(content)
    assert sorted(line.split(":")[0] for line in str(caught.value).split("\n")) == ["models.m.labels", "stages.dpo"]


READS = [
    ({"loss": "sft"}, "sft"),
    ({"loss": "dpo"}, "paired"),
    ({"loss": "bradley_terry"}, "paired"),
    ({"loss": "kto"}, "unpaired"),
    ({"loss": "kto", "label_by": "mean"}, "scored"),
    ({"loss": "kto", "label_by": 0}, "scored"),
    ({"loss": "ppo"}, "unpaired"),
    ({"loss": "ppo", "reward": "score"}, "scored"),
    ({"loss": "ppo", "reward": "score", "reward_model": "rm"}, "unpaired"),
    ({"loss": "grpo"}, "grouped"),
    ({"loss": "grpo", "reward_model": "rm"}, "grouped"),
]


@pytest.mark.parametrize(("settings", "view"), READS)
def test_a_stage_reads_scored_responses_where_scores_stand_for_labels(settings: dict[str, Any], view: str) -> None:
    assert C.Stage(**settings).reads == view


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        ({}, None),
        ({"humanline": True}, 1),
        ({"sync_reference": 16}, 16),
        ({"humanline": True, "sync_reference": 4}, 4),
        ({"humanline": False, "sync_reference": None}, None),
    ],
)
def test_humanline_syncs_its_reference_every_step_unless_told_otherwise(
    settings: dict[str, Any], every: int | None
) -> None:
    assert C.Stage(loss="dpo", **settings).sync_every == every


OTHERWISE: dict[str, Any] = {
    "lr": 3e-4, "optimizer": "RAdam", "optimizer_args": {"betas": [0.8, 0.9]}, "decay_norms_and_biases": False,
    "scheduler": "wsd", "min_lr_ratio": 0.2, "warmup": 7, "decay": 0.3, "batch_size": 9, "epochs": 0.5, "examples": 50,
    "resume_from": "sft", "inner_epochs": 2, "max_grad_norm": 2.0, "dropout": 0.2, "router_weight": 0.01,
    "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"], "path": "somewhere"},
}  # fmt: skip
INTERVALS = {
    "eval_every": 5,
    "eval_first": False,
    "checkpoint_every": 6,
    "keep_every": 7,
    "keep_optimizer": True,
    "preview_prompts": 8,
    "preview_tokens": 9,
}
BY_TRAIT: dict[str, dict[str, Any]] = {
    "reference": {"humanline": True, "log_eps_p": -0.5, "log_eps_r": 0.7, "sync_reference": 3, "sync_weight": 0.5},
    "all weights": {"freeze": ["model.embed_tokens.*"]},
    "value head": {"value_max_grad_norm": 0.3},
    "scores": {"reward_model": "sft-rm"},
    "paired": {"pairs_per_prompt": 2, "keep_pairs": 0.7, "label_noise": 0.1},
    "policy": {"online": {"rounds": 2, "prompts_per_round": 8, "samples_per_prompt": 3, "label": "l"}},
    "unpaired": {
        "keep_desirable": 0.5,
        "keep_undesirable": 0.4,
        "one_per_prompt": True,
        "label_by": 0.25,
        "label_noise": 0.1,
        "balance_labels": True,
    },
}


def settings_of(name: str) -> dict[str, Any]:
    """Every setting that goes with a loss, none at its default, and every hyperparameter that is a number."""
    loss = LOSSES[name]()
    settings: dict[str, Any] = {**OTHERWISE, **BY_TRAIT.get(loss.view.name, {})}
    settings |= BY_TRAIT["reference"] if loss.needs_reference else {}
    if not loss.needs_reference:  # LoRA freezes all weights itself
        settings = {k: v for k, v in settings.items() if k != "lora"} | BY_TRAIT["all weights"]
    settings |= BY_TRAIT["scores"] if loss.needs_scores else {}
    policy = loss.head != "score" and not loss.control and not loss.needs_scores
    settings |= BY_TRAIT["policy"] if policy else {}
    settings |= BY_TRAIT["value head"] if loss.head == "value" else {}
    for field in dataclasses.fields(loss):
        value = getattr(loss, field.name)
        settings |= {field.name: value / 2} if isinstance(value, float) and value else {}
    return settings


def test_the_settings_of_these_tests_are_all_there_are() -> None:
    tested = {key for settings in (OTHERWISE, *BY_TRAIT.values()) for key in settings}
    elsewhere = {"forward", "sweep", "trials", "sampler", "sampler_seed", "select"}  # test_extending, train/test_sweep
    elsewhere |= {"early_stopping", "average", "snapshots", "stop_after"}  # train/test_early, _average, _snapshots
    assert tested == set(C.Stage.model_fields) - {"loss", "label", "reference", *INTERVALS, *elsewhere}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", list(LOSSES))
def test_a_stage_made_of_its_slice_is_that_stage(name: str, given: bool) -> None:
    """So does the trainer make it, from YAML."""
    stage = C.Stage(loss=name, **settings_of(name) if given else {})
    again = C.Stage(**yaml.safe_load(dump(stage_slice(stage))))
    for field in set(C.Stage.model_fields) - {"optimizer_args"}:
        assert getattr(again, field) == getattr(stage, field), field
    assert again.make_loss() == stage.make_loss()
    assert type(again.make_loss()) is LOSSES[name]
    assert again.hyperparameters == dataclasses.asdict(stage.make_loss())  # defaults filled in
    assert (again.reads, again.sync_every, again.selection) == (stage.reads, stage.sync_every, stage.selection)
    assert again.optimizer_args == ({"betas": [0.8, 0.9]} if given else ADAMW)
    assert C.Stage(**stage_slice(again)) == again
    assert stage_slice(again) == stage_slice(stage)


@pytest.mark.parametrize("name", list(LOSSES))
def test_no_hyperparameter_has_the_name_of_a_training_setting(name: str) -> None:
    """The setting would take its value."""
    assert not {field.name for field in dataclasses.fields(LOSSES[name])} & set(C.Stage.model_fields)


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_setting_of_a_stage_changes_its_slice_but_its_label_and_intervals(name: str) -> None:
    whole = settings_of(name)
    sliced = stage_slice(C.Stage(loss=name, **whole))
    free = [k for k in whole if k not in ("humanline", "scheduler")]  # without these, others are refused
    assert [k for k in free if stage_slice(C.Stage(loss=name, **without(whole, k))) == sliced] == []
    incidental = {k: v for k, v in INTERVALS.items() if k != "preview_prompts" or LOSSES[name].head != "score"}
    assert stage_slice(C.Stage(loss=name, **whole, **incidental, label="A name")) == sliced


def test_humanline_the_scheduler_and_a_reference_change_a_stages_slice() -> None:
    assert stage_slice(C.Stage(loss="dpo", scheduler="wsd")) != stage_slice(C.Stage(loss="dpo", scheduler="cosine"))
    assert stage_slice(C.Stage(loss="dpo", humanline=True)) != stage_slice(C.Stage(loss="dpo"))
    assert stage_slice(C.Stage(loss="dpo", reference="sft")) != stage_slice(C.Stage(loss="dpo"))


def without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def test_the_catalogue_of_the_tests_is_sound() -> None:
    assert list(C.load(changed("grid", "g")).stages) == list(CATALOGUE["stages"])


def test_an_id_with_a_slash_is_refused() -> None:
    content = changed("grid", "g")
    content["models"]["org/name"] = {"hub": "org/name"}
    with pytest.raises(HalosError, match=r"models\.org/name: an id is letters"):
        C.load(content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"no config file .*nowhere\.yaml"):
        C.load(tmp_path / "nowhere.yaml")


def test_a_yaml_mistake_is_one_sentence_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("grid: g\nmodels: {m: [}\n")
    with pytest.raises(HalosError, match=r"is not valid YAML: .*line 2") as caught:
        C.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(HalosError, match=r"must hold keys .* not a list"):
        C.load(path)


def test_numbers_that_yaml_reads_as_text_become_numbers() -> None:
    text = "{loss: dpo, lr: 5e-6, beta: 1e-1, optimizer_args: {eps: 1e-8, betas: [9e-1, 0.95]}}"
    stage = C.load(changed("stages/dpo", yaml.safe_load(text))).stages["dpo"]
    found = stage_slice(stage)
    assert (found["lr"], found["beta"]) == (5e-6, 0.1)
    assert found["optimizer_args"] == {"weight_decay": 0.01, "betas": [0.9, 0.95], "eps": 1e-8}


def test_a_slice_read_back_is_the_slice_that_was_written(tmp_path: Path) -> None:
    content = config_slice(C.load(CATALOGUE), "runs/d/m/sft-lora/seed1")
    (tmp_path / "config.yaml").write_text(dump(content))
    assert read_slice(tmp_path / "config.yaml") == content


def test_a_missing_slice_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="halos config FOLDER"):
        read_slice(tmp_path / "config.yaml")


def test_equal_slices_are_equal_text_whatever_the_order_of_keys() -> None:
    content = config_slice(C.load(CATALOGUE), "runs/d/m/dpo/seed1")
    assert dump(dict(reversed(content.items()))) == dump(content)


def test_a_changed_default_of_a_loss_is_a_changed_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config_slice(C.load(CATALOGUE), "runs/d/m/dpo/seed1")
    assert before["stage"]["beta"] == 0.1
    other = dataclasses.make_dataclass("DPO", [("beta", float, 0.2)], bases=(DPO,), frozen=True)
    monkeypatch.setitem(LOSSES._entries, "dpo", other)
    after = config_slice(C.load(CATALOGUE), "runs/d/m/dpo/seed1")
    assert after["stage"]["beta"] == 0.2
    given = config_slice(C.load(changed("stages/dpo/beta", 0.1)), "runs/d/m/dpo/seed1")
    assert given == before


@pytest.mark.parametrize(
    "folder", ["runs/d/m/sft-dpo/seed1", "models/m", "data/d", "tokens/d/m", "judges/j", "tasks/t"]
)
def test_labels_and_resources_are_in_no_slice(folder: str) -> None:
    plain = copy.deepcopy(CATALOGUE)
    labelled = copy.deepcopy(CATALOGUE)
    for kind in ("models", "datasets", "stages", "judges", "tasks", "grids"):
        for entry in labelled[kind].values():
            entry["label"] = "A name"
    labelled["models"]["m"]["resources"] = {
        "gpus": 8, "tokens_per_microbatch": 7, "parallel": "fsdp", "gradient_checkpointing": True
    }  # fmt: skip
    assert config_slice(C.load(labelled), folder) == config_slice(C.load(plain), folder)
    assert config_slice(C.load(labelled), "grids/g") != config_slice(C.load(plain), "grids/g")  # tables show them


def test_the_projects_catalogue_loads() -> None:
    config = C.load(ROOT / "config.yaml")
    assert config.grid == "demo"
    assert {"toy", "tiny"} <= {*config.datasets, *config.models}


def test_the_schema_file_is_what_the_verb_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "halos", "schema"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "config.schema.json").read_text() == printed


def test_the_schema_lists_the_hyperparameters_of_every_loss() -> None:
    properties = C.schema()["$defs"]["Stage"]["properties"]
    for name in LOSSES:
        for field in dataclasses.fields(LOSSES[name]):
            if LOSSES.plugin(name) is None:
                assert name in properties[field.name]["description"]
    assert json.dumps(properties)  # plain JSON
