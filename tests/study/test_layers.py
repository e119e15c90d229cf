"""Which value of a setting is in force: default < stage < the model's own < a later layer, the command line last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.errors import HalosError
from halos.study.catalogue import Config, load
from halos.study.checks import overridden
from halos.study.layers import typed
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.train.stage import Stage

STAGE: dict[str, Any] = {"dpo": {"lr": 2e-5}}
OWN: dict[str, Any] = {"m": {"stages": {"dpo": {"lr": 3e-5}}}}


def below(**changes: Any) -> dict[str, Any]:
    """A catalogue of two models, none with settings of its own."""
    return {
        "grid": "g",
        "models": {"m": {"path": "somewhere"}, "other": {"path": "elsewhere"}},
        "datasets": {"d": {"sources": [{"name": "toy"}]}},
        "stages": {"dpo": {"loss": "dpo"}, "sft": {"loss": "sft"}},
        "grids": {"g": {"datasets": ["d"], "models": ["m", "other"], "methods": ["sft-dpo"]}},
        **changes,
    }


def given(text: str) -> Any:
    """What Snakemake makes of `--config 'text'`: everything within {} is text."""
    key, value = text.split("=", 1)
    return {key: yaml.load(value, yaml.BaseLoader)}


def lr(config: Config, model: str = "m") -> Any:
    return config_slice(config, f"runs/d/{model}/sft-dpo/seed1")["stage"]["lr"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], Stage(loss="dpo").lr),
        ([{"stages": STAGE}], 2e-5),
        ([{"stages": STAGE, "models": OWN}], 3e-5),
        ([{"models": OWN}, {"stages": STAGE}], 2e-5),  # a file of --configfile over config.yaml
        ([{"stages": STAGE}, {"models": OWN}], 3e-5),
        ([{"models": OWN}, {"stages": STAGE}, typed(given("stages={dpo: {lr: 1e-6}}"))], 1e-6),
        ([{"models": OWN}, typed(given("models={m: {stages: {dpo: {lr: 1e-6}}}}"))], 1e-6),
    ],
)
def test_a_setting_is_the_defaults_the_stages_the_models_own_or_a_later_layers(
    layers: list[dict[str, Any]], expected: float
) -> None:
    assert lr(load(below(), *layers)) == expected


def test_the_command_line_changes_what_it_names_and_nothing_else() -> None:
    own = {"lr": 3e-5, "beta": 0.5, "lora": {"r": 16, "alpha": 32}}
    base = below(models={"m": {"path": "somewhere", "stages": {"dpo": own}}, "other": {"path": "elsewhere"}})
    config = load(base, typed(given("stages={dpo: {beta: 0.25, lora: {r: 8}}}")))
    mine, other = (config.stage("dpo", model) for model in ("m", "other"))
    assert mine.lora is not None
    assert other.lora is not None
    assert (mine.lr, mine.beta, mine.lora.r, mine.lora.alpha) == (3e-5, 0.25, 8, 32)  # type: ignore[attr-defined]
    assert (other.beta, other.lora.r, other.lora.alpha) == (0.25, 8, 256)  # type: ignore[attr-defined]
    assert own == {"lr": 3e-5, "beta": 0.5, "lora": {"r": 16, "alpha": 32}}


def test_entries_that_share_an_anchor_do_not_change_with_each_other(tmp_path: Path) -> None:
    pairs = {"lr": 3e-5}  # as YAML reads `dpo: &pairs {...}` and `sft: *pairs`
    config = load(
        below(models={"m": {"path": "somewhere", "stages": {"dpo": pairs, "sft": pairs}}, "other": {"path": "x"}}),
        {"models": {"m": {"stages": {"dpo": {"lr": 1e-6}}}}},
    )
    assert (config.stage("dpo", "m").lr, config.stage("sft", "m").lr) == (1e-6, 3e-5)


def test_values_of_the_command_line_have_the_types_of_the_file() -> None:
    text = "stages={dpo: {lr: 1e-6, humanline: true, keep_every: null, loss: {dpo: 1, sft: 0.5}, batch_size: 4}}"
    stage = typed(given(text))["stages"]["dpo"]
    expected = {"lr": 1e-6, "humanline": True, "keep_every": None, "loss": {"dpo": 1, "sft": 0.5}, "batch_size": 4}
    assert stage == expected
    assert typed({"a": ["x: y", "2024-07-26", "@"]}) == {"a": ["x: y", "2024-07-26", "@"]}


# ---- settings of a stage that no cell reads -------------------------------------------------------------------------


def line(*layers: dict[str, Any]) -> str | None:
    return overridden(Study(load(below(), *layers)))


def test_a_stages_setting_that_every_model_overrides_is_named() -> None:
    every = {"models": {name: {"stages": {"dpo": {"lr": 3e-5}}} for name in ("m", "other")}}
    assert (found := line({"stages": STAGE, **every})) is not None
    assert found.startswith("without effect in the grid g: stages.dpo.lr; ")
    assert "\n" not in found


@pytest.mark.parametrize(
    "layers",
    [
        [{"stages": STAGE}],
        [{"stages": STAGE, "models": OWN}],  # the other model reads it
        [{"stages": {"dpo": {"lr": 5e-6}}, "models": OWN}, {"grids": {"g": {"models": ["m"]}}}],  # its default
        [{"stages": {"dpo": {"lr": 3e-5}}, "models": OWN}, {"grids": {"g": {"models": ["m"]}}}],  # the same value
        [{"models": OWN}, {"stages": STAGE}, {"grids": {"g": {"models": ["m"]}}}],  # a later layer, which wins
        [{"stages": {"kto": {"loss": "kto", "lr": 2e-5}},
          "models": {"m": {"stages": {"kto": {"lr": 3e-5}}}}}],  # of no cell
    ],
)  # fmt: skip
def test_a_setting_with_an_effect_is_not_named(layers: list[dict[str, Any]]) -> None:
    assert line(*layers) is None


@pytest.mark.parametrize("grid", ["demo", "losses", "online", "smollm2"])
def test_the_grids_that_run_here_begin_without_that_line(grid: str) -> None:
    root = Path(__file__).parents[2]
    assert overridden(Study(load(root / "config.yaml"), grid)) is None


# ---- a model without an entry ---------------------------------------------------------------------------------------


def test_a_hub_model_without_an_entry_takes_the_place_of_the_grids_models() -> None:
    config = load(below(), typed(given("model=owner/some-model")))
    assert config.models["owner--some-model"].hub == "owner/some-model"
    assert config.models["owner--some-model"] == type(config.models["m"])(hub="owner/some-model")
    assert {cell.model for cell in Study(config).cells} == {"owner--some-model"}


def test_a_local_folder_and_an_entry_take_that_place_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    config = load(below(), {"model": "models/mine"})
    assert config.models["models--mine"].path == "models/mine"
    assert [cell.model for cell in Study(config).cells] == ["models--mine"]
    assert [cell.model for cell in Study(load(below(), {"model": "other"})).cells] == ["other"]


def test_its_entry_may_say_more() -> None:
    config = load(below(), {"model": "a/b"}, typed(given("models={a--b: {precision: fp32, resources: {gpus: 2}}}")))
    model = config.models["a--b"]
    assert (model.hub, model.precision, model.resources.gpus) == ("a/b", "fp32", 2)


def test_a_model_that_is_none_is_one_sentence() -> None:
    with pytest.raises(HalosError, match=r"^model: 'othr' is no id of models, .*; did you mean 'other'\?$"):
        load(below(), {"model": "othr"})
