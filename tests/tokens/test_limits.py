"""Limits of a model and a dataset, and the balance of labels: said or refused when tokenizing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from halos.data.feedback import Feedback
from halos.errors import HalosError
from halos.tokens.notes import balance
from halos.tokens.positions import Positions
from halos.tokens.template import Template
from tests.conftest import World
from tests.tokens.test_counts import OTHER, ask, make


@pytest.fixture(scope="module")
def template(world: World) -> Template:
    return Template(AutoTokenizer.from_pretrained(world.base / "model"))


# ---- positions and lengths -------------------------------------------------------------------------------------


def with_config(world: World, folder: Path, config: dict[str, Any]) -> Path:
    """The base model's folder with another config, for its tokenizer."""
    shutil.copytree(world.base / "model", folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512, **config}))
    return folder


@pytest.mark.parametrize(
    "config", [{"model_type": "gpt2", "n_positions": 50}, {"model_type": "opt", "max_position_embeddings": 50},
               {"model_type": "gpt_bigcode", "n_positions": 50}]
)  # fmt: skip
def test_a_max_length_beyond_learned_positions_is_refused_when_tokenizing(
    config: dict[str, Any], world: World, tmp_path: Path
) -> None:
    model = with_config(world, tmp_path / "model", config)
    with pytest.raises(HalosError, match=r"datasets\.d\.max_length is 60, and the model m has 50 positions, which it"):
        make(tmp_path / "a", world, [OTHER], model=model)
    assert not (tmp_path / "a/store").exists()
    make(tmp_path / "b", world, [OTHER], model=model, max_length=50)


def test_a_max_length_beyond_rotary_positions_is_a_warning_and_its_prompts_are_those_of_sampling(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((world.base / "model/config.json").read_text())
    model = with_config(world, tmp_path / "model", {**config, "max_position_embeddings": 30})
    fits, not_quite = (
        Feedback(ask("w " * 10), ["Yes."], "x", target=0),
        Feedback(ask("w " * 31), ["No."], "x", target=0),
    )
    store, report = make(tmp_path / "a", world, [fits, not_quite], model=model)
    assert "warning: datasets.d.max_length is 60, and the model m has 30 positions" in capsys.readouterr().out
    assert sum(report["train"]["dropped"].values()) == 1
    assert store.lengths[:, 0].max() < 30
    _, plain = make(tmp_path / "b", world, [fits, not_quite])
    assert plain["train"]["dropped"] == {}


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("gpt2", {"n_positions": 64}, Positions(64, fixed=True)),
        ("opt", {"max_position_embeddings": 64}, Positions(64, fixed=True)),
        ("llama", {"max_position_embeddings": 64}, Positions(64, fixed=False)),
        ("gpt_neox", {"max_position_embeddings": 64}, Positions(64, fixed=False)),
        ("bloom", {}, Positions(None, fixed=False)),
        ("xlnet", {}, Positions(None, fixed=False)),  # it says -1
        ("falcon", {"max_position_embeddings": 64, "alibi": True}, Positions(64, fixed=False)),
    ],
)
def test_positions_that_are_learned_are_fixed(kind: str, config: dict[str, Any], expected: Positions) -> None:
    assert Positions.of(AutoConfig.for_model(kind, **config)) == expected


def test_when_no_prompt_fits_the_shortest_and_the_setting_are_named(
    world: World, template: Template, tmp_path: Path
) -> None:
    long = [Feedback(ask("word " * n), ["Yes."], "x", target=0) for n in (70, 55, 90)]
    for name, splits in (("train", (long, [OTHER])), ("validation", ([OTHER], long))):
        with pytest.raises(HalosError, match=rf"no prompt of the {name} split of dataset d fits 40 tokens") as found:
            make(tmp_path / name, world, *splits)
        assert "raise datasets.d.max_prompt_length (now 40)" in str(found.value)
        shortest = int(str(found.value).split(" alone has ")[1].split(":")[0])
        assert shortest == len(template.prompts([long[1].prompt], 10**6)[0].ids or [])
    limits = {"max_prompt_length": shortest, "max_length": 200}
    _, report = make(tmp_path / "raised", world, long, **limits)  # what it advises helps
    assert sum(report["train"]["dropped"].values()) == 2


# ---- labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "begins", "ends"),
    [
        ((40, 10), "train: 40 desirable and 10 undesirable responses (4 : 1): the authors of KTO advise",
         "undesirable_weight * 10: undesirable_weight between 3 and 4, with the other one at 1, or balance_labels: "
         "true for equal weights in total"),
        ((10, 40), "train: 10 desirable and 40 undesirable responses (0.25 : 1): ",
         ": desirable_weight between 4 and 5.33, with the other one at 1, or balance_labels: true for equal weights "
         "in total"),
        ((3, 0), "train: 3 desirable and 0 undesirable responses: ", "add undesirable ones, or use another"),
        ((0, 3), "train: 0 desirable and 3 undesirable responses: ", "add desirable ones, or use another"),
        ((12, 10), "train: 12 desirable and 10 undesirable responses (1.2 : 1)", " (1.2 : 1)"),
    ],
)  # fmt: skip
def test_labels_out_of_balance_are_said_with_the_weights_that_restore_it(
    numbers: tuple[int, int], begins: str, ends: str
) -> None:
    line = str(balance(*numbers))
    assert line.startswith(begins)
    assert line.endswith(ends)


def test_no_labels_no_line() -> None:
    assert balance(0, 0) is None


def test_the_balance_is_that_of_the_labels_that_are_kept(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [Feedback(ask(f"Number {i}?"), ["Yes.", "No."], "x", desirable=[True, False]) for i in range(20)]
    make(tmp_path / "whole", world, records)
    assert "train: 20 desirable and 20 undesirable responses (1 : 1)\n" in capsys.readouterr().out
    make(tmp_path / "part", world, records, keep_undesirable=0.1)
    assert "20 desirable and 2 undesirable responses (10 : 1): the authors of KTO" in capsys.readouterr().out
