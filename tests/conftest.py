"""A small real study: toy data, a Llama of a few thousand parameters, its sequence store."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from xdist.scheduler import LoadScopeScheduling

from halos import registry
from halos.registry import FORWARDS, LOSSES, SOURCES, VERIFIERS
from halos.settings import dump, read_slice
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.paths import Paths
from halos.study.slices import config_slice
from halos.views import VIEWS

# The same examples on every machine and in every run; a search for others is a matter of `max_examples` and patience.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")

SLURM = "tests/slurm/"

CATALOGUE: dict[str, Any] = {
    "grid": "g",
    "models": {
        "m": {
            "architecture": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                             "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256},
            "tokenizer": {"train_on": "d", "vocab_size": 512},
            "template": "turns",
            "precision": "fp32",
        }
    },
    "datasets": {
        "d": {"sources": [{"name": "toy", "options": {"prompts": 240, "validation_prompts": 40, "test_prompts": 40}}],
              "max_length": 100, "max_prompt_length": 60, "eval_examples": 24}
    },
    "stages": {
        **{name: {"loss": name, "lr": 1e-3, "batch_size": 8, "examples": 64, "checkpoint_every": 3} for name in LOSSES},
        "sft": {"loss": "sft", "lr": 1e-3, "batch_size": 16, "examples": 160},
        "lora": {"loss": "dpo", "lr": 1e-3, "batch_size": 8, "examples": 64, "checkpoint_every": 3,
                 "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
    },
    "prompts": {"p": {"limit": 6, "max_new_tokens": 8}},
    "judges": {"j": {"kind": "verifier", "verifier": "toy", "prompts": "p"}},
    "tasks": {"t": {"local": "preferences", "limit": 8}},
    "grids": {"g": {"datasets": ["d"], "models": ["m"], "methods": ["base", "sft-dpo"], "judges": ["j"],
                    "tasks": ["t"]}},
}  # fmt: skip


@dataclass
class World:
    """A results tree with data, base model and sequence store; `folder` of a cell holds its config.yaml."""

    results: Path
    config: C.Config

    def slice(self, folder: str, **changes: Any) -> Path:
        """Write the config.yaml of a folder, the stage's settings changed if asked for."""
        content = config_slice(self.config, folder)
        content.get("stage", {}).update(changes)
        path = self.results / folder / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(content))
        return path

    @property
    def store(self) -> Path:
        return self.results / "tokens/d/m/store"

    @property
    def base(self) -> Path:
        return self.results / "models/m"

    def reference(self, method: str = "base", seed: int = 0) -> list[Path]:
        """Both parts of a cell's reference, made once."""
        from halos.reference.cache import PARTS
        from halos.reference.compute import reference

        cell = Cell("d", "m", method, seed)
        folder = self.results / cell.folder
        config = self.slice(cell.folder)
        files = [folder / "reference" / f"{part}.safetensors" for part in PARTS]
        for part, file in zip(PARTS, files, strict=True):
            if not file.exists():
                reference(config, Paths(self.results).run(cell).manifest.parent, self.store, part, file, 2048)
        return files

    def reference_of(self, run: Path) -> list[Path]:
        """Both parts of the reference of a trained run, made beside it."""
        from halos.reference.cache import PARTS
        from halos.reference.compute import reference

        config = self.results / "runs/d/m/sft/seed1/config.yaml"
        files = [run / "reference" / f"{part}.safetensors" for part in PARTS]
        for part, file in zip(PARTS, files, strict=True):
            if not file.exists():
                reference(config, run, self.store, part, file, 2048)
        return files

    def parts(self, stage: C.Stage) -> list[Path]:
        """The files of the base model's reference that a stage reads."""
        from halos.reference.cache import PARTS, parts_for

        wanted = parts_for(stage.make_loss(), live=stage.sync_every is not None)
        files = dict(zip(PARTS, self.reference(), strict=True)) if wanted else {}
        return [files[part] for part in wanted]

    def train(self, output: Path, method: str, seed: int = 1, parent: Path | None = None, **options: Any) -> Path:
        """Train a cell's last stage from the base model (or `parent`) into `output`."""
        from halos.train.run import train

        changes = options.pop("changes", {})
        config = self.slice(f"runs/d/m/{method}/seed{seed}", **changes)
        reference = options.pop("reference", None)
        if reference is None:
            reference = self.parts(C.Stage(**read_slice(config)["stage"]))
        inputs = {"config": config, "parent": parent or self.base, "store": self.store, "reference": reference}
        defaults = {"scores": [], "reference_of": None, "tokens_per_microbatch": 2048, "gradient_checkpointing": False,
                    "time_limit": None}  # fmt: skip
        train(**inputs, output=output, **{**defaults, **options})
        return output


class Scheduling(LoadScopeScheduling):
    """Gives each worker whole files, as tests of one share what is slow to make, and one of them all tests on Slurm,
    which wait more than they compute."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SLURM if file.startswith(SLURM) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: the workers that share the files then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.nodeid.startswith(SLURM), item.path not in slow))


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Give pytest the signal handlers back that a training took."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    import torch

    from halos.data.paths import SPLITS
    from halos.data.prepare import prepare
    from halos.models.base import make
    from halos.tokens.tokenize import tokenize

    torch.set_num_threads(1)
    results = tmp_path_factory.mktemp("results")
    world = World(results, C.load(yaml.safe_load(yaml.safe_dump(CATALOGUE))))
    data, tokens = results / "data/d", results / "tokens/d/m"
    splits = [data / f"{split}.parquet" for split in SPLITS]
    prepare(world.slice("data/d"), *splits, data / "report.json")
    make(world.slice("models/m"), world.base, [splits[0]])
    tokenize(world.slice("tokens/d/m"), *splits[:2], world.base / "model", world.store, tokens / "report.json")
    return world


@pytest.fixture
def plugins_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the plugins that a test loads in this process, so that no other test sees them."""
    for one in (FORWARDS, LOSSES, SOURCES, VERIFIERS, VIEWS):
        monkeypatch.setattr(one, "_entries", dict(one._entries))
        monkeypatch.setattr(one, "_plugins", dict(one._plugins))
    monkeypatch.setattr(registry, "_loaded", set(registry._loaded))
