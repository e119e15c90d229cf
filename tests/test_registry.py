"""Plugins: a user's own loss, source or verifier in one file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from halos import registry
from halos.data.feedback import Turn
from halos.errors import HalosError
from halos.registry import LOSSES, SOURCES, VERIFIERS, Registry, load_plugins, plugin_slice, suggest
from halos.settings import dump, read_slice
from halos.study import catalogue as C
from halos.study.slices import config_slice
from tests.conftest import CATALOGUE

LOSS = """
from dataclasses import dataclass

from halos.losses.paired import DPO
from halos.registry import LOSSES


@LOSSES.register("{name}")
@dataclass(frozen=True)
class Mine(DPO):
    '''dpo, but its temperature is called otherwise.'''

    strength: float = 0.5
"""


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the registries as they were."""
    for one in (LOSSES, SOURCES, VERIFIERS):
        monkeypatch.setattr(one, "_entries", dict(one._entries))
        monkeypatch.setattr(one, "_plugins", dict(one._plugins))
    monkeypatch.setattr(registry, "_loaded", set(registry._loaded))


def write(path: Path, name: str = "mine") -> Path:
    path.write_text(LOSS.format(name=name))
    return path


def test_a_plugins_loss_is_used_like_any_other(tmp_path: Path) -> None:
    file = write(tmp_path / "plugin.py")
    content = copy.deepcopy(CATALOGUE)
    content["plugins"] = [str(file)]
    content["stages"]["mine"] = {"loss": "mine", "strength": 0.7}
    content["grids"]["g"]["methods"] = ["sft-mine"]
    config = C.load(content)
    loss = config.stages["mine"].make_loss()
    assert (loss.strength, loss.beta, loss.view.name) == (0.7, 0.1, "paired")  # type: ignore[attr-defined]
    found = config_slice(config, "runs/d/m/sft-mine/seed1")
    assert found["stage"]["strength"] == 0.7
    assert list(found["plugins"]) == [str(file)]
    assert config_slice(config, "runs/d/m/sft/seed1")["plugins"] == {}
    content["stages"]["mine"]["strenght"] = 1
    with pytest.raises(HalosError, match="did you mean 'strength'"):
        C.load(content)


def test_editing_a_plugin_changes_the_slices_of_what_it_makes(tmp_path: Path) -> None:
    file = write(tmp_path / "plugin.py")
    load_plugins([file])
    before = plugin_slice(LOSSES.plugin("mine"), LOSSES.plugin("dpo"))
    assert before == plugin_slice(file)
    file.write_text(file.read_text() + "\n# edited\n")
    assert plugin_slice(LOSSES.plugin("mine")) != before


def test_reading_a_slice_loads_its_plugins(tmp_path: Path) -> None:
    file = write(tmp_path / "plugin.py")
    path = tmp_path / "config.yaml"
    path.write_text(dump({"plugins": plugin_slice(file)}))
    assert "mine" not in LOSSES
    read_slice(path)
    assert "mine" in LOSSES
    read_slice(path)  # a second time is no duplicate


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"plugins: there is no file .*plugin\.py"):
        load_plugins([tmp_path / "plugin.py"])


def test_a_failing_plugin_is_named_with_its_error(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text("1 / 0\n")
    with pytest.raises(HalosError, match=r"plugin\.py fails when it is read: ZeroDivisionError"):
        load_plugins([file])
    write(file)
    load_plugins([file])  # put right, it loads
    assert LOSSES.plugin("mine") == file


def test_a_name_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="a loss called 'dpo' exists already"):
        load_plugins([write(tmp_path / "plugin.py", "dpo")])
    load_plugins([write(tmp_path / "one.py")])
    (tmp_path / "folder").mkdir()
    with pytest.raises(HalosError, match="a loss called 'mine' exists already"):
        load_plugins([write(tmp_path / "folder" / "one.py")])


def test_a_plugin_does_not_replace_a_loss_by_a_class_of_the_same_name(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(LOSS.format(name="dpo").replace("class Mine(DPO)", "class DPO(DPO)"))
    known = LOSSES["dpo"]
    with pytest.raises(HalosError, match="a loss called 'dpo' exists already"):
        load_plugins([file])
    assert LOSSES["dpo"] is known


def test_a_hyperparameter_with_the_name_of_a_training_setting_is_refused(tmp_path: Path) -> None:
    """A value given to it would go to the setting."""
    file = tmp_path / "plugin.py"
    file.write_text(LOSS.format(name="mine").replace("strength", "warmup"))
    content = copy.deepcopy(CATALOGUE)
    content["plugins"] = [str(file)]
    content["stages"]["mine"] = {"loss": "mine", "warmup": 5}
    with pytest.raises(HalosError, match=r"stages\.mine: loss 'mine': its 'warmup' is the name of a training setting"):
        C.load(content)


def test_plugins_add_sources_and_verifiers_too(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(
        "from halos.registry import SOURCES, VERIFIERS\n"
        "@SOURCES.register('my_source')\n"
        "def source(split, *, size=3):\n    yield from ()\n"
        "@VERIFIERS.register('my_verifier')\n"
        "def verifier(prompt, response):\n    return {'length': len(response) / 100}\n"
    )
    content = copy.deepcopy(CATALOGUE)
    content["plugins"] = [str(file)]
    content["datasets"]["d"]["sources"] = [{"name": "my_source", "options": {"size": 4}}]
    content["judges"]["j"]["verifier"] = "my_verifier"
    config = C.load(content)
    assert (
        config_slice(config, "data/d")["plugins"] == config_slice(config, "judges/j")["plugins"] == plugin_slice(file)
    )
    assert VERIFIERS["my_verifier"]([Turn(role="user", content="?")], "four") == {"length": 0.04}


def test_a_registry_is_read_in_the_order_of_names() -> None:
    words: Registry[object] = Registry("word")
    for name in ("b", "c", "a"):
        words.register(name)(type(name, (), {}))
    assert list(words) == ["a", "b", "c"]
    with pytest.raises(HalosError, match="unknown word 'd'; there are a, b, c"):
        words["d"]


def test_a_suggestion_is_the_nearest_name_or_all() -> None:
    assert suggest("ktoo", ["dpo", "kto"]) == "; did you mean 'kto'?"
    assert suggest("zzz", ["dpo", "kto"]) == "; there are dpo, kto"
    assert suggest("x", []) == "; there are none"
