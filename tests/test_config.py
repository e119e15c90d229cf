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

from halos import config as C
from halos.errors import HalosError
from halos.grid import config_slice
from halos.losses import DPO
from halos.registry import LOSSES
from tests.conftest import CATALOGUE

ROOT = Path(__file__).parent.parent


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
    "a model's resources": ("models/m/resources", {"gpu": 1}, ["models.m.resources.gpu: unknown key"]),
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
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_that_says_where_and_what_is_right(mistake: str) -> None:
    path, value, expected = MISTAKES[mistake]
    with pytest.raises(HalosError) as caught:
        C.load(changed(path, value))
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in expected if part not in message] == [], message


def test_every_mistake_has_a_line_of_its_own() -> None:
    content = changed("stages/dpo/betta", 0.1)
    content["models"]["m"]["labels"] = "x"
    with pytest.raises(HalosError) as caught:
        C.load(content)
    assert sorted(line.split(":")[0] for line in str(caught.value).split("\n")) == ["models.m.labels", "stages.dpo"]


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
    found = C.stage_slice(stage)
    assert (found["lr"], found["beta"]) == (5e-6, 0.1)
    assert found["optimizer_args"] == {"weight_decay": 0.01, "betas": [0.9, 0.95], "eps": 1e-8}


def test_a_slice_read_back_is_the_slice_that_was_written(tmp_path: Path) -> None:
    content = config_slice(C.load(CATALOGUE), "runs/d/m/sft-lora/seed1")
    (tmp_path / "config.yaml").write_text(C.dump(content))
    assert C.read_slice(tmp_path / "config.yaml") == content


def test_a_missing_slice_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="halos config FOLDER"):
        C.read_slice(tmp_path / "config.yaml")


def test_equal_slices_are_equal_text_whatever_the_order_of_keys() -> None:
    content = config_slice(C.load(CATALOGUE), "runs/d/m/dpo/seed1")
    assert C.dump(dict(reversed(content.items()))) == C.dump(content)


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
    labelled["models"]["m"]["resources"] = {"gpus": 8, "tokens_per_microbatch": 7}
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
