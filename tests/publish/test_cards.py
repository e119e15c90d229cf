"""What a model card says of how its model is loaded is how plain transformers loads all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from halos.pretrained import keep_code
from halos.publish.cards import loading
from tests.conftest import World
from tests.models.code import with_code
from tests.train.runs import base_of
from tests.zoo.architectures import tiny


@pytest.mark.parametrize(
    ("name", "loader"), [("mistral3", "AutoModelForImageTextToText"), ("gpt2", "AutoModelForCausalLM")]
)
def test_the_class_of_a_card_loads_the_whole_model(name: str, loader: str, world: World, tmp_path: Path) -> None:
    folder = base_of(world, tmp_path, tiny(name, 512)) / "model"
    assert loading(folder, reward=False) == {"loader": loader, "options": ""}
    _, report = getattr(transformers, loader).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert loading(folder, reward=True)["loader"] == "AutoModelForSequenceClassification"


def test_a_card_says_that_code_has_to_be_trusted(world: World, tmp_path: Path) -> None:
    folder = with_code(world.base / "model", tmp_path / "model")
    origin = with_code(world.base / "model", tmp_path / "origin")
    keep_code(origin, folder)
    assert loading(folder, reward=False) == {"loader": "AutoModelForCausalLM", "options": ", trust_remote_code=True"}
