"""Cells, their parents and folders, and which slice each entry of the catalogue reaches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from halos.errors import HalosError
from halos.settings import dump
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.checks import check_files
from halos.study.listing import state
from halos.study.settings import GridSlice
from halos.study.slices import config_slice
from halos.study.study import Study
from tests.conftest import CATALOGUE


def load(**changes: Any) -> C.Config:
    """The test catalogue, its grid's settings changed."""
    content = copy.deepcopy(CATALOGUE)
    content["grids"]["g"].update(changes)
    return C.load(content)


def test_the_parent_of_a_chain_is_the_chain_without_its_last_stage() -> None:
    lineage = [(c.method, c.seed) for c in Cell("d", "m", "sft-kto-dpo_2-simpo", 3).lineage()]
    assert lineage == [("sft-kto-dpo_2-simpo", 3), ("sft-kto-dpo_2", 3), ("sft-kto", 3), ("sft", 3), ("base", 0)]


def test_all_seeds_share_one_base_model() -> None:
    assert Cell("d", "m", "kto", 1).parent == Cell("d", "m", "kto", 2).parent == Cell("d", "m", "base", 0)
    assert Cell("d", "m", "base", 1).parent is None


@pytest.mark.parametrize("cell", [Cell("d", "m", "base", 0), Cell("u-f.1", "M_7b", "sft-kto_b05", 12)])
def test_a_folder_leads_back_to_its_cell(cell: Cell) -> None:
    assert Cell.of(cell.folder) == cell
    assert Cell.of(Path("results") / cell.folder / "manifest.json") == cell


def test_a_folder_that_is_no_cell_is_refused() -> None:
    with pytest.raises(HalosError, match="a cell is runs/DATASET/MODEL/METHOD/seedN"):
        Cell.of("runs/d/m/sft")


def test_the_cells_of_a_grid_are_every_combination_in_the_configs_order() -> None:
    found = Study(load(methods=["sft-dpo", "base"], seeds=[2, 1])).cells
    assert [(c.method, c.seed) for c in found] == [("sft-dpo", 2), ("sft-dpo", 1), ("base", 2), ("base", 1)]
    with pytest.raises(HalosError, match="there is no 'h' in grids"):
        Study(load(), "h")


def test_reward_models_are_cells_of_their_own() -> None:
    study = Study(load(methods=["base", "sft"], reward_models=["bradley_terry", "sft-bradley_terry"], seeds=[1, 2]))
    assert [(c.method, c.seed) for c in study.reward_models] == [
        ("bradley_terry", 1), ("bradley_terry", 2), ("sft-bradley_terry", 1), ("sft-bradley_terry", 2)
    ]  # fmt: skip
    assert {c.method for c in study.cells} == {"base", "sft"}
    assert Study(load()).reward_models == []


SLICES = {
    "data/d": {"dataset", "sources", "drop_duplicates", "validation_prompts", "seed", "plugins"},
    "tokens/d/m": {
        "dataset",
        "model",
        "max_length",
        "max_prompt_length",
        "eval_examples",
        "keep_desirable",
        "keep_undesirable",
        "split_special_tokens",
    },
    "judges/j": {
        "judge",
        "kind",
        "verifier",
        "prompts",
        "baseline",
        "tie_margin",
        "ties",
        "whole_sentences",
        "length_control",
        "difficulties",
        "plugins",
    },
    "runs/d/m/base/seed0": {"dataset", "model", "method", "seed", "attention", "precision"},
    "runs/d/m/sft-dpo/seed1": {"dataset", "model", "method", "seed", "attention", "precision", "stage", "plugins"},
}


@pytest.mark.parametrize("folder", SLICES)
def test_a_slice_holds_the_folders_own_and_nothing_else(folder: str) -> None:
    assert set(config_slice(load(), folder)) == SLICES[folder]


@pytest.mark.parametrize(
    ("folder", "kind", "name"),
    [("models/m", "models", "m"), ("prompts/p", "prompts", "p"), ("tasks/t", "tasks", "t"), ("grids/g", "grids", "g")],
)
def test_a_slice_of_an_entry_says_what_the_entry_says(folder: str, kind: str, name: str) -> None:
    found = config_slice(load(), folder)
    assert found.items() >= CATALOGUE[kind][name].items()
    assert name in found.values()


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("runs/d/m/sft-nope/seed1", "no 'nope' in stages"),
        ("runs/d/m/nope-dpo/seed1", "no 'nope' in stages"),
        ("runs/d/mm/dpo/seed1", "no 'mm' in models"),
        ("runs/dd/m/dpo/seed1", "no 'dd' in datasets"),
        ("data/toy", "no 'toy' in datasets"),
        ("tokens/d", "is no folder"),
        ("data", "is no folder"),
        ("nothing/d", "is no folder"),
        ("data/d/train", "is no folder"),
        ("runs/d/m/dpo/seed1/model", "is no cell"),
        ("runs/d/m/dpo/seed1/fresh/train", "is no cell"),
    ],
)
def test_a_folder_that_no_entry_makes_is_refused(folder: str, says: str) -> None:
    with pytest.raises(HalosError, match=says):
        config_slice(load(), folder)


FOLDERS = ["data/d", "tokens/d/m", "models/m", "prompts/p", "judges/j", "tasks/t", *(
    f"runs/d/m/{method}/seed1"
    for method in ("base", "sft", "dpo", "sft-dpo", "sft-dpo-kto", "sft-lora", "sft-grpo", "sft-bradley_terry")
)]  # fmt: skip
EDITS = {
    "stages/sft/lr": ["runs/d/m/sft/seed1"],
    "stages/dpo/beta": [
        "runs/d/m/dpo/seed1",
        "runs/d/m/sft-dpo/seed1",
    ],  # sft-dpo-kto reruns through its parent's files
    "stages/dpo/optimizer": ["runs/d/m/dpo/seed1", "runs/d/m/sft-dpo/seed1"],
    "datasets/d/max_length": ["tokens/d/m"],
    "datasets/d/keep_desirable": ["tokens/d/m"],
    "datasets/d/split_special_tokens": ["tokens/d/m"],
    "datasets/d/sources": ["data/d"],
    "models/m/seed": ["models/m"],
    "models/m/attention": ["models/m", *(f for f in FOLDERS if f.startswith("runs"))],
    "prompts/p/temperature": ["prompts/p"],
    "judges/j/tie_margin": ["judges/j"],
    "tasks/t/limit": ["tasks/t"],
    "stages/grpo/reward_model": ["runs/d/m/sft-grpo/seed1"],
    "stages/grpo/humanline": ["runs/d/m/sft-grpo/seed1"],
    "stages/bradley_terry/batch_size": ["runs/d/m/sft-bradley_terry/seed1"],  # its scores reach sft-grpo as a file
    **{f"stages/dpo/{key}": [] for key in ("eval_every", "checkpoint_every", "keep_every")},
    "models/m/resources": [],
    "grids/g/reward_models": [],
    "grids/g/seeds": [],
}
VALUES: dict[str, Any] = {
    "optimizer": "SGD", "keep_desirable": 0.25, "split_special_tokens": False,
    "sources": [{"name": "toy"}], "attention": "eager", "seeds": [1, 2], "humanline": True,
    "reward_model": "sft-bradley_terry", "reward_models": ["bradley_terry"],
    "resources": {"gpus": 4, "parallel": "fsdp", "gradient_checkpointing": True},
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_editing_an_entry_changes_exactly_the_slices_of_what_it_makes(edit: str) -> None:
    kind, name, key = edit.split("/")
    content = copy.deepcopy(CATALOGUE)
    content[kind][name][key] = VALUES.get(key, 77 if key != "temperature" else 0.5)
    before, after = load(), C.load(content)
    assert [f for f in FOLDERS if config_slice(before, f) != config_slice(after, f)] == EDITS[edit]


def test_the_state_of_a_cell_is_read_from_its_folder(tmp_path: Path) -> None:
    cell, base = Cell("d", "m", "sft", 1), Cell("d", "m", "base", 2)
    folder = tmp_path / cell.folder
    assert (state(cell, tmp_path), state(base, tmp_path)) == ("to do", "to do")
    (folder / "checkpoints" / ".partial").mkdir(parents=True)
    assert state(cell, tmp_path) == "to do"
    (folder / "checkpoints" / "step3").mkdir()
    assert state(cell, tmp_path) == "resumable"
    (folder / "manifest.json").write_text("{}")
    assert state(cell, tmp_path) == "done"
    (tmp_path / "models/m/model").mkdir(parents=True)
    (tmp_path / "models/m/model/config.json").write_text("{}")
    assert state(base, tmp_path) == "to do"  # the manifest is written last
    (tmp_path / "models/m/manifest.json").write_text("{}")
    assert state(base, tmp_path) == "done"


def test_missing_local_files_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    content = copy.deepcopy(CATALOGUE)
    data, model = tmp_path / "data.jsonl", tmp_path / "model"
    content["datasets"]["local"] = {"sources": [{"name": "local", "options": {"path": str(data)}}]}
    content["models"]["own"] = {"path": str(model)}
    config = C.load(content)
    check_files(Study(config))  # grid g names neither
    content["grids"]["g"] |= {"datasets": ["d", "local"], "models": ["own"]}
    config = C.load(content)
    with pytest.raises(HalosError, match=rf"datasets\.local: source local wants {data}"):
        check_files(Study(config))
    content["datasets"]["local"]["sources"][0]["options"]["path"] = "results/runs/d/m/sft/seed1/labelled/p/l.parquet"
    with pytest.raises(HalosError, match=r"models\.own: there is no model"):  # the labels can be made by a rule
        check_files(Study(C.load(content)))
    content["datasets"]["local"]["sources"][0]["options"]["path"] = str(data)
    data.write_text("")
    with pytest.raises(HalosError, match=rf"models\.own: there is no model in {model}"):
        check_files(Study(config))
    model.mkdir()
    (model / "config.json").write_text("{}")
    check_files(Study(config))


def test_the_slice_of_a_grid_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = load(seeds=[3, 1], label="A grid")
    file = tmp_path / "config.yaml"
    file.write_text(dump(config_slice(config, "grids/g")))
    slice_ = GridSlice.read(file)
    assert (slice_.grid, slice_.seeds, slice_.label) == ("g", (3, 1), "A grid")
    assert slice_.labels["grids"] == {"g": "A grid"}


def test_labels_are_those_that_the_catalogue_gives() -> None:
    content = copy.deepcopy(CATALOGUE)
    content["stages"]["dpo"]["label"] = "DPO"
    found = config_slice(C.load(content), "grids/g")["labels"]
    assert {kind: names for kind, names in found.items() if names} == {"stages": {"dpo": "DPO"}}


def test_an_edited_chat_template_file_is_another_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    catalogue = {
        "grid": "g",
        "models": {"m": {"path": "somewhere", "template": str(file)}},
        "datasets": {"d": {"sources": [{"name": "toy"}]}},
        "grids": {"g": {"datasets": ["d"], "models": ["m"], "methods": ["base"]}},
    }
    slices = []
    for text in ("one", "two"):
        file.write_text(text)
        slices.append(config_slice(C.load(catalogue), "models/m"))
    assert slices[0] != slices[1]


def test_a_models_own_settings_reach_its_cells_and_nobody_elses() -> None:
    model = {"path": "somewhere"}
    catalogue = {
        "grid": "g",
        "models": {"m": {**model, "stages": {"dpo": {"beta": 0.5}}}, "other": model},
        "datasets": {"d": {"sources": [{"name": "toy"}]}},
        "stages": {"dpo": {"loss": "dpo", "beta": 0.2, "lr": 1e-4}},
        "grids": {"g": {"datasets": ["d"], "models": ["m", "other"], "methods": ["dpo"]}},
    }
    config = C.load(catalogue)
    own, other = (config_slice(config, f"runs/d/{m}/dpo/seed1")["stage"] for m in ("m", "other"))
    assert (own["beta"], own["lr"]) == (0.5, 1e-4)
    assert (other["beta"], other["lr"]) == (0.2, 1e-4)
    assert "stages" not in config_slice(config, "models/m")


def test_a_models_wrong_setting_for_a_stage_is_named() -> None:
    catalogue = {
        "models": {"m": {"path": "somewhere", "stages": {"dpo": {"betta": 0.5}}}},
        "stages": {"dpo": {"loss": "dpo"}},
        "grid": "g",
        "datasets": {"d": {"sources": [{"name": "toy"}]}},
        "grids": {"g": {"datasets": ["d"], "models": ["m"], "methods": ["dpo"]}},
    }
    with pytest.raises(HalosError, match=r"models\.m\.stages\.dpo: 'betta' is neither .* did you mean 'beta'"):
        C.load(catalogue)


def test_adapters_that_are_missing_are_named_before_anything_runs(tmp_path: Path) -> None:
    architecture = {"architecture": {"model_type": "llama"}, "tokenizer": {"train_on": "d"}}
    catalogue = {
        "grid": "g",
        "models": {"m": architecture},
        "datasets": {"d": {"sources": [{"name": "toy"}]}},
        "stages": {"sft": {"loss": "sft"}, "dpo": {"loss": "dpo", "lora": {"path": str(tmp_path)}}},
        "grids": {"g": {"datasets": ["d"], "models": ["m"], "methods": ["sft-dpo"]}},
    }
    with pytest.raises(HalosError, match=r"^stages\.dpo\.lora\.path: there are no adapters in "):
        check_files(Study(C.load(catalogue)))
    (tmp_path / "adapter_config.json").write_text("{}")
    check_files(Study(C.load(catalogue)))
