"""Models that cannot be trained are refused before anything runs, as far as their small files tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.errors import HalosError
from halos.models.architectures import classified_types
from halos.study import catalogue as C
from halos.study.checks import check_classifiers, check_files, check_weights
from halos.study.study import Study
from tests.conftest import CATALOGUE

COHERE = {**CATALOGUE["models"]["m"], "architecture": {"model_type": "cohere"}}
ADAPTERS = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "someone/model"}


def study_of(model: dict[str, Any], **grid: Any) -> Study:
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["models"]["m"] = model
    content["grids"]["g"] |= grid
    return Study(C.load(content))


def folder_of(path: Path, **files: dict[str, Any]) -> dict[str, Any]:
    """The entry of a local model with some JSON files."""
    path.mkdir()
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return {"path": str(path)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config": {"quantization_config": {"quant_method": "gptq"}}}, r"the weights in \S+ are quantised \(gptq\)"),
        ({"config": {"quantization_config": {"quant_method": "mxfp4"}}}, r"the weights in \S+ are quantised \(mxfp4\)"),
        ({"config": {"compression_config": {"quant_method": "compressed-tensors"}}}, r"are quantised \(compressed-t"),
        ({"adapter_config": {**ADAPTERS, "base_model_name_or_path": None}}, "do not say which model they belong to"),
        ({"adapter_config": {**ADAPTERS, "peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}}, "cannot be merged"),
    ],
)
def test_a_local_model_that_cannot_be_trained_is_refused(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    study = study_of(folder_of(tmp_path / "model", **files))
    with pytest.raises(HalosError, match=rf"^models\.m: .*{message}") as caught:
        check_files(study)
    assert "\n" not in str(caught.value)


def test_a_quantised_model_that_is_trained_in_full_is_refused() -> None:
    model = {**CATALOGUE["models"]["m"], "quantization": "nf4"}
    with pytest.raises(HalosError, match=r"^models\.m has `quantization: nf4`.*: give stages\.sft `lora: \{\}`"):
        check_weights(study_of(model))
    check_weights(study_of({**model, "stages": {name: {"lora": {}} for name in ("sft", "dpo")}}))
    with pytest.raises(HalosError, match="quantised weights cannot be sharded: set `parallel: ddp`"):
        study_of({**model, "resources": {"gpus": 2, "parallel": "fsdp"}})


def test_an_optimiser_that_takes_whole_weights_is_refused_where_they_are_sharded() -> None:
    """On one GPU nothing is sharded; and a stage that a model has for itself counts, not its entry in `stages`."""
    model = {**CATALOGUE["models"]["m"], "stages": {"sft": {"optimizer": "Adafactor", "optimizer_args": {}}}}
    sharded = {"gpus": 2, "parallel": "fsdp"}
    message = r"^models\.m has `parallel: fsdp`, and Adafactor cannot .*: give stages\.sft another optimizer"
    with pytest.raises(HalosError, match=message):
        check_weights(study_of({**model, "resources": sharded}))
    check_weights(study_of({**model, "resources": {**sharded, "gpus": 1}}))
    eight = {"sft": {"optimizer": "AdamW8bit", "optimizer_args": {}}}
    check_weights(study_of({**model, "stages": eight, "resources": sharded}))


def test_local_models_that_can_be_trained_pass(tmp_path: Path) -> None:
    check_files(study_of(folder_of(tmp_path / "model", config={"quantization_config": None})))
    check_files(study_of(folder_of(tmp_path / "adapters", adapter_config=ADAPTERS)))


def test_a_local_reward_model_is_checked_and_is_no_policy(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForSequenceClassification"], "id2label": dict.fromkeys("01234", "x")}
    entry = folder_of(tmp_path / "model", config=config)
    with pytest.raises(HalosError, match=r"^models\.m: .* holds a reward model, which answers no prompts"):
        check_files(study_of(entry))
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["models"]["theirs"] = entry
    content["judges"]["j"] = {"kind": "reward_model", "reward_model": "theirs", "prompts": "p"}
    with pytest.raises(HalosError, match=r"^models\.theirs, the reward model of judges\.j: .* with 5 labels"):
        check_files(Study(C.load(content)))


def test_the_types_with_a_classifier_are_those_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    assert classified_types() == CLASSIFIERS.keys()


def test_a_reward_model_of_a_type_without_a_classifier_is_refused(tmp_path: Path) -> None:
    grid: dict[str, Any] = {"methods": ["base"], "reward_models": ["sft-bradley_terry"]}
    local = folder_of(tmp_path / "model", config={"model_type": "mamba"})
    for model, kind in ((COHERE, "cohere"), (local, "mamba")):
        check_classifiers(study_of(model))  # it trains none
        with pytest.raises(HalosError, match=rf"^models\.m with stages\.bradley_terry: .* of the type {kind}, "):
            check_classifiers(study_of(model, **grid))
    check_classifiers(study_of(CATALOGUE["models"]["m"], **grid))
    check_classifiers(study_of({"hub": "someone/model"}, **grid))  # whose type nobody knows yet
