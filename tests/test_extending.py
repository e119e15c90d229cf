"""The plugins of docs/extending.md train as they are written there, and what they must not do is one sentence."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from halos.cli import main
from halos.study.slices import config_slice
from halos.tokens.store import Store
from tests.conftest import World

DOCUMENT = (Path(__file__).parents[1] / "docs/extending.md").read_text()

pytestmark = pytest.mark.usefixtures("plugins_forgotten")


def block(language: str, containing: str) -> str:
    [found] = [b for b in re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL) if containing in b]
    return str(found)


@dataclass(frozen=True)
class Done:
    """A verb that has run."""

    returncode: int
    stdout: str
    stderr: str


class Study:
    """A folder with plugins and a config.yaml over the catalogue of a world, and verbs run on it by hand."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world, self.store = folder, world, world.store
        self.files: dict[str, str] = {}
        self.rest = world.config.model_dump(mode="json", exclude={"plugins", "stages", "model"}, exclude_unset=True)

    def plugin(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def write(self, catalogue: dict[str, Any], **changes: Any) -> None:
        """Write config.yaml: the world's, with the entries of a document and small sizes."""
        catalogue["plugins"] = [str(self.folder / name) for name in catalogue["plugins"]]
        for stage in catalogue["stages"].values():
            stage |= {"examples": 32, "batch_size": 8, "lr": 1e-3, **changes}
        content = {**self.rest, **catalogue}
        content["grids"]["g"]["methods"] = list(catalogue["stages"])
        (self.folder / "config.yaml").write_text(yaml.safe_dump(content))

    def run(self, *words: object, check: bool = True) -> Done:
        """`python -m halos WORDS`, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([*map(str, words)])
        assert not (check and code), err.getvalue()
        return Done(code, out.getvalue(), err.getvalue())

    def slice(self, folder: str, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.run("config", folder, "--config", self.folder / "config.yaml").stdout)
        return path

    def train(self, stage: str, *reference: Path, check: bool = True, budget: int = 16384) -> Done:
        run = self.folder / stage
        config = self.slice(f"runs/d/m/{stage}/seed1", run / "config.yaml")
        given = ("--reference", *reference) if reference else ()
        return self.run("train", "--config", config, "--parent", self.world.base, "--store", self.store,
                        "--output", run, "--tokens-per-microbatch", budget, *given, check=check)  # fmt: skip

    def log(self, stage: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / stage / "train.jsonl").read_text().splitlines()]
        return [line for line in lines if line["split"] == "train"]


@pytest.fixture
def study(tmp_path: Path, world: World) -> Study:
    return Study(tmp_path, world)


# ---- forward passes -------------------------------------------------------------------------------------------------


def test_a_forward_pass_gives_a_loss_what_it_reads_and_rows_stay_packed(study: Study) -> None:
    study.plugin("my_entropy.py", block("python", "class WithEntropy"))
    study.write(yaml.safe_load(block("yaml", "with_entropy")))
    assert "packing is off" not in study.train("sft_entropy").stderr
    log = study.log("sft_entropy")
    vocabulary = 512
    assert 0 < log[0]["entropy"] <= np.log(vocabulary) + 1e-4
    # random weights predict nothing: likelihood and entropy are those of nearly even odds
    assert log[0]["loss"] == pytest.approx((1 - 0.02) * np.log(vocabulary), rel=0.02)
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[0]["padding_share"] == 0
    manifest = json.loads((study.folder / "sft_entropy/manifest.json").read_text())
    assert list(manifest["config"]["plugins"]) == [str(study.folder / "my_entropy.py")]
    assert manifest["config"]["stage"]["forward"] == {"name": "with_entropy", "options": {}}


def test_a_pass_that_draws_trains_from_a_cached_reference_and_evaluates_without_a_draw(study: Study) -> None:
    study.plugin("my_noise.py", block("python", "class NEFTune"))
    study.write(yaml.safe_load(block("yaml", "neftune")))
    study.train("dpo_noise", study.world.reference()[0])
    first = json.loads((study.folder / "dpo_noise/train.jsonl").read_text().splitlines()[0])
    assert first["split"] == "eval"
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert abs(study.log("dpo_noise")[0]["loss"] - np.log(2)) > 1e-5


@pytest.mark.parametrize("loss", ["kto", "ppo", "grpo", "csft", "simpo"])
@pytest.mark.parametrize("budget", [300, 16384])
def test_any_loss_trains_with_any_pass_as_it_does_with_the_packages_own(loss: str, budget: int, study: Study) -> None:
    """In one microbatch and in several: mismatched responses, a value head, groups, control tokens."""
    study.plugin("my.py", block("python", "class NEFTune").replace("if not network.training:", "if True:"))
    study.write(
        {"plugins": ["my.py"], "stages": {"own": {"loss": loss, "forward": "neftune"}, "plain": {"loss": loss}}}
    )
    reference = [*study.world.reference()[: {"kto": 2, "ppo": 1, "grpo": 1}.get(loss, 0)]]
    logs = []
    for stage in ("own", "plain"):
        study.train(stage, *reference, budget=budget)
        logs.append([(line["loss"], line["grad_norm"]) for line in study.log(stage)])
    np.testing.assert_allclose(*logs, rtol=1e-5)


Edit = Callable[[str], str]
PASSES: dict[str, tuple[Edit, dict[str, Any], str]] = {
    "other log-probabilities than the cached ones": (
        lambda text: text.replace("log_softmax", "div(2).log_softmax"),
        {"loss": "dpo", "forward": "with_entropy"},
        "the forward pass WithEntropy gives other log-probabilities than those that the reference was cached with: set "
        "sync_reference",
    ),
    "a draw in evaluation": (
        lambda text: text.replace(".float()", ".float().mul(1 + torch.rand(()))").replace("# my", "import torch\n# my"),
        {"loss": "sft", "forward": "with_entropy"},
        "the forward pass WithEntropy computes the same sequence otherwise each time, also alone: its "
        "log-probabilities are none to train or compare with; let it draw where network.training is true",
    ),
    "a value for each sequence": (
        lambda text: text.replace('-(logps.exp() * logps).sum(-1)', "tokens.sum()"),
        {"loss": "sft", "forward": "with_entropy"},
        "the forward pass WithEntropy gives a tensor of shape () as entropy, and not one value for each of the",
    ),
    "no log-probabilities": (
        lambda text: text.replace('"logps": tokens, ', ""),
        {"loss": "sft", "forward": "with_entropy"},
        "the forward pass WithEntropy must return a dictionary with logps",
    ),
    "no values of a value head": (
        str,
        {"loss": "ppo", "forward": "with_entropy"},
        "the forward pass WithEntropy must return a dictionary with logps and values",
    ),
    "another output than the loss reads": (
        lambda text: text.replace('"entropy": -', '"entropies": -'),
        {"loss": "sft_entropy", "forward": "with_entropy"},
        "the loss sft_entropy reads 'entropy', which the forward pass WithEntropy does not give; did you mean "
        "'entropies'?",
    ),
    "an error": (
        lambda text: text.replace("network.logits(batch)", "network.logit(batch)"),
        {"loss": "sft", "forward": "with_entropy"},
        "the forward pass WithEntropy fails: 'ResponseLogps' object has no attribute 'logit'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_that_would_train_something_else_is_refused_in_a_sentence(name: str, study: Study) -> None:
    edit, stage, sentence = PASSES[name]
    study.plugin("my.py", edit(block("python", "class WithEntropy")))
    study.write({"plugins": ["my.py"], "stages": {"mine": stage}})
    reference = [study.world.reference()[0]] if stage["loss"] in ("dpo", "ppo") else []
    result = study.train("mine", *reference, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: {sentence}"), result.stderr
    assert not (study.folder / "mine/train.jsonl").exists()


def test_other_log_probabilities_train_against_a_live_reference_which_they_equal_at_first(study: Study) -> None:
    study.plugin("my.py", block("python", "class WithEntropy").replace("log_softmax", "div(2).log_softmax"))
    stage = {"loss": "dpo", "forward": "with_entropy", "sync_reference": 100}
    study.write({"plugins": ["my.py"], "stages": {"mine": stage}})
    study.train("mine")
    assert study.log("mine")[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert study.log("mine")[-1]["loss"] < np.log(2)


PADDED = {
    "takes no packed rows": ("(Forward):", "(Forward):\n    packed = False"),
    "gives other results on packed rows": ("-(logps.exp()", "float(batch.packing is not None) - (logps.exp()"),
}


@pytest.mark.parametrize("reason", PADDED)
def test_a_pass_that_is_not_right_on_packed_rows_is_run_on_padded_ones(reason: str, study: Study) -> None:
    study.plugin("my.py", block("python", "class WithEntropy").replace(*PADDED[reason]))
    study.write({"plugins": ["my.py"], "stages": {"mine": {"loss": "sft", "forward": "with_entropy"}}})
    assert f"packing is off: the forward pass WithEntropy {reason}" in study.train("mine").stderr


MISTAKES = {
    "an unknown pass": ({"loss": "sft", "forward": "with_entropi"}, "unknown forward pass 'with_entropi'; did"),
    "an unknown option": ({"loss": "sft", "forward": {"name": "neftune", "options": {"alhpa": 1}}},
                          "forward: 'neftune' has no option 'alhpa'; did you mean 'alpha'?"),
    "an option's type": ({"loss": "sft", "forward": {"name": "neftune", "options": {"alpha": "much"}}},
                         "forward 'neftune': alpha: Input should be a valid number"),
    "no pass for a loss that needs one": ({"loss": "sft_entropy"},
                                          "the loss 'sft_entropy' reads 'entropy': name the pass that gives it"),
    "a reward model": ({"loss": "bradley_terry", "forward": "neftune"}, "trains a reward model"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_about_a_pass_is_named_with_its_stage(mistake: str, study: Study) -> None:
    stage, sentence = MISTAKES[mistake]
    study.plugin("my_entropy.py", block("python", "class WithEntropy"))
    study.plugin("my_noise.py", block("python", "class NEFTune"))
    study.write({"plugins": ["my_entropy.py", "my_noise.py"], "stages": {"mine": stage}})
    result = study.run("list", "stages", "--config", study.folder / "config.yaml", check=False)
    assert result.stderr.startswith("error: stages.mine: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


# ---- views ----------------------------------------------------------------------------------------------------------


def with_triples(study: Study, *plugins: str) -> dict[str, Any]:
    """Write the view, the loss and a config in which dataset d has the view; the catalogue of the document."""
    study.plugin("my_triples.py", block("python", "def triples"))
    study.plugin("my_ranking.py", block("python", "class RankedDPO"))
    catalogue: dict[str, Any] = yaml.safe_load(block("yaml", "triples"))
    views = catalogue.pop("datasets")["mine"]["views"]
    study.rest["datasets"]["d"]["views"] = views
    catalogue["plugins"] = list(plugins or catalogue["plugins"])
    study.write(catalogue)
    return catalogue


def tokenize(study: Study, check: bool = True) -> Done:
    study.store = study.folder / "store"
    config, data = study.slice("tokens/d/m", study.folder / "tokens/config.yaml"), study.world.results / "data/d"
    return study.run("tokenize", "--config", config, "--train", data / "train.parquet",
                     "--validation", data / "validation.parquet", "--model", study.world.base / "model",
                     "--output", study.store, "--report", study.folder / "report.json", check=check)  # fmt: skip


@pytest.mark.parametrize("order", [("my_triples.py", "my_ranking.py"), ("my_ranking.py", "my_triples.py")])
def test_a_view_makes_the_examples_that_a_loss_learns_from(study: Study, order: tuple[str, str]) -> None:
    """In whichever order the files are named, although one reads the other's view."""
    with_triples(study, *order)
    tokenize(study)
    store = Store(study.store)
    rows = store.view("train", "sft")  # the package's own are as they were
    assert rows.equals(Store(study.world.store).view("train", "sft"))
    base = study.slice("runs/d/m/base/seed0", study.folder / "base.yaml")
    reference = study.folder / "responses.safetensors"
    study.run("reference", "--config", base, "--parent", study.world.base, "--store", study.store,
              "--part", "responses", "--output", reference)  # fmt: skip
    assert "packing is off" not in study.train("ranked", reference).stderr
    log = study.log("ranked")
    assert log[0]["loss"] == pytest.approx(np.log(6), abs=1e-5)  # all six orders are equally likely at the reference
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[0]["gap"] > 0
    assert log[0]["shared_share"] > 0.2  # three responses share their prompt
    manifest = json.loads((study.folder / "ranked/manifest.json").read_text())
    assert sorted(Path(file).name for file in manifest["config"]["plugins"]) == ["my_ranking.py", "my_triples.py"]


def test_only_datasets_that_name_a_view_are_made_otherwise(study: Study) -> None:
    before = study.world.config
    with_triples(study)
    own = yaml.safe_load(study.slice("tokens/d/m", study.folder / "a.yaml").read_text())
    assert own.pop("views") == ["triples"]
    assert list(own.pop("plugins")) == [str(study.folder / "my_triples.py")]
    assert own == config_slice(before, "tokens/d/m")
    del study.rest["datasets"]["d"]["views"]
    study.write({"plugins": ["my_triples.py"], "stages": {"dpo": {"loss": "dpo"}}})
    assert yaml.safe_load(study.slice("tokens/d/m", study.folder / "b.yaml").read_text()) == own


def test_a_store_without_the_view_says_what_names_it(study: Study) -> None:
    with_triples(study)
    result = study.train("ranked", study.world.reference()[0], check=False)
    said = "dataset d does not have the view triples: name it in its `views`, as views: [triples]"
    assert result.stderr.splitlines()[-1] == f"error: {said}"


ROWS = {
    "too few values": ("yield best, middle, worst\n", "it yields (0, 1, 2), and not a tuple of 3 responses, 1 labels"),
    "no response": ("yield best, middle, 99, 1.0\n", "99 is no index of its "),
    "no number": ("yield best, middle, worst, None\n", "its gap is None, and not a number"),
    "an error": ("yield record.score\n", "AttributeError: 'Feedback' object has no attribute 'score'"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_is_none_is_named_with_its_record(name: str, study: Study) -> None:
    line, sentence = ROWS[name]
    with_triples(study)
    text = block("python", "def triples")
    head, _ = text.split("    order = ")
    study.plugin(
        "my_triples.py",
        f"{head}    if len(record.responses) > 2:\n        best, middle, worst = 0, 1, 2\n        {line}",
    )
    result = tokenize(study, check=False)
    [said] = re.findall(r"error: the view 'triples' fails on the record with the prompt '.*", result.stderr)
    assert sentence in said
    assert not study.store.exists()


STATEMENTS = {
    "a name": ('"triples"', '"Triples"', "view 'Triples': a name is small letters"),
    "a role twice": ('"middle"', '"best"', "view 'triples': roles are names of an example's responses, each once"),
    "mismatched": ('"middle"', '"mismatched"', "mismatched responses are those of the view unpaired alone"),
    "half a pair": ('"best", "middle", "worst"', '"chosen", "worst"', "chosen and rejected go together"),
    "a type": ("float64", "int", "the label 'gap' is float64 or bool, not 'int'"),
    "scores of several roles": ('"gap"', '"scores"', "the label 'scores' is of a single role called response"),
    "a role called weight": ('"middle"', '"weight"', "'weight' cannot be the name of a role or label here"),
    "a taken name": ('"triples"', '"paired"', "a view called 'paired' exists already; give yours another name"),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_view_that_lacks_what_it_must_state_is_refused_in_a_sentence(name: str, study: Study) -> None:
    old, new, sentence = STATEMENTS[name]
    with_triples(study)
    study.plugin("my_triples.py", block("python", "def triples").replace(old, new))
    study.write({"plugins": ["my_triples.py"], "stages": {"dpo": {"loss": "dpo"}}})
    result = study.run("list", "views", "--config", study.folder / "config.yaml", check=False)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
