"""lm-eval's class for transformers, as tasks use it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from halos.evaluate.tasks.lm_eval import transformers_backend
from tests.conftest import World
from tests.train.runs import base_of
from tests.zoo.architectures import tiny


def test_saved_sampling_parameters_do_not_change_a_task_and_other_defaults_do(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(world.base / "model", folder)
    saved = json.loads((folder / "generation_config.json").read_text())
    own = {"do_sample": True, "temperature": 0.1, "top_k": 3, "min_p": 0.5, "repetition_penalty": 1.5}
    (folder / "generation_config.json").write_text(json.dumps({**saved, **own}))
    backend, arguments = transformers_backend(folder)
    config = backend(**arguments).model.generation_config
    assert (config.do_sample, config.temperature, config.top_k, config.min_p) == (None, None, None, None)
    assert config.repetition_penalty == 1.5


def test_a_multimodal_model_is_loaded_whole(world: World, tmp_path: Path) -> None:
    folder = base_of(world, tmp_path, tiny("llama4", 512)) / "model"
    backend, arguments = transformers_backend(folder)
    assert type(backend(**arguments).model).__name__ == "Llama4ForConditionalGeneration"
