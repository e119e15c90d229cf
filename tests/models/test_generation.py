"""Generation configs as they are found saved beside models, some of which transformers refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from halos.errors import HalosError
from halos.models.generation import read_generation_config
from tests.conftest import World
from tests.models.test_models import made

ENDS = {"eos_token_id": [7, 8], "bos_token_id": 5}
SAVED: dict[str, dict[str, Any]] = {
    "min_p": {"min_p": 0.1},
    "min_p and sampling": {"min_p": 0.1, "do_sample": True},
    "typical_p": {"typical_p": 0.9},
    "several answers": {"num_return_sequences": 3},
    "cutoffs": {"epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3},
    "temperature without sampling": {"temperature": 0.6, "top_p": 0.9, "do_sample": False},
    "beams": {"num_beams": 4, "num_return_sequences": 4, "early_stopping": True, "length_penalty": 2.0},
    "beams of sampling": {"num_beams": 2, "num_return_sequences": 4, "do_sample": True},
    "outputs": {"output_scores": True, "output_attentions": True},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "an unknown cache": {"cache_implementation": "quick"},
    "no length": {"max_new_tokens": 0},
}


@pytest.mark.parametrize("name", SAVED)
def test_a_base_model_is_made_of_any_saved_generation_config(name: str, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(world.base / "model", folder)
    (folder / "generation_config.json").write_text(json.dumps({**SAVED[name], **ENDS}))
    model = made(tmp_path, [], path=str(folder), template="turns", precision="fp32") / "model"
    config = GenerationConfig.from_pretrained(model)
    config.validate(strict=True)
    assert {7, 8} < set(config.eos_token_id)  # with the end of a turn
    assert config.bos_token_id == 5
    network = AutoModelForCausalLM.from_pretrained(model)
    network.save_pretrained(tmp_path / "again")  # with the config that it was loaded with


def test_settings_that_other_programs_obey_are_kept(tmp_path: Path) -> None:
    saved = {"repetition_penalty": 1.1, "min_new_tokens": 2, "do_sample": True, "temperature": 0.6, "min_p": 0.1}
    (tmp_path / "generation_config.json").write_text(json.dumps({**saved, "num_beams": 3}))
    assert saved.items() <= read_generation_config(tmp_path).to_diff_dict().items()


def test_a_config_that_is_invalid_in_another_way_is_named_and_keeps_its_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 0, **ENDS}))
    assert read_generation_config(tmp_path).eos_token_id == [7, 8]
    assert "`max_new_tokens` must be greater than 0" in caplog.text


def test_a_folder_without_one_has_the_default(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path).to_diff_dict() == GenerationConfig().to_diff_dict()


@pytest.mark.parametrize(("saved", "read"), [(-1, None), ("7", None), ([-1, 7], [7]), ([None], None), (7, 7)])
def test_what_is_no_id_of_a_token_is_none(saved: Any, read: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": saved, "pad_token_id": -1}))
    config = read_generation_config(tmp_path)
    assert (config.eos_token_id, config.pad_token_id) == (read, None)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_damaged_file_of_a_model_is_one_sentence(name: str, text: str, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(world.base / "model", folder)
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(HalosError, match=rf"{name} (is not valid JSON|must hold keys)") as refused:
        made(tmp_path, [], path=str(folder), template="turns", precision="fp32")
    assert "\n" not in str(refused.value)
