"""What is on the hub is fetched by one verb; all others are offline, and read what was fetched. The hub is a server on
this machine, which is gone after fetching."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from halos.data.settings import Dataset, Source
from halos.data.sources.hh import HH_REVISION
from halos.evaluate.tasks.settings import Task
from halos.models.settings import Model
from halos.sample.settings import Prompts
from halos.settings import dump, identity
from tests.conftest import World
from tests.data.hub import Datasets, serve
from tests.models.code import with_code
from tests.test_cli import small_job
from tests.workflow.conftest import CATALOGUE, Project, copy_files

ROOT = Path(__file__).parents[1]
A, B = "a" * 40, "b" * 40


@dataclass(frozen=True)
class Machine:
    """A machine with a cache of its own; `python -m halos` is run there."""

    path: Path
    hub: str = "http://127.0.0.1:9"

    def run(self, *words: Any, **more: str) -> subprocess.CompletedProcess[str]:
        left_out = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
        kept = {name: value for name, value in os.environ.items() if name not in left_out}
        environment = {**kept, "HF_HOME": str(self.path / "home"), "HF_ENDPOINT": self.hub, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=self.path, env={**environment, **more}, capture_output=True, text=True)

    def halos(self, *words: Any) -> None:
        done = self.run("-m", "halos", *words)
        assert done.returncode == 0, done.stderr

    def refused(self, *words: Any) -> str:
        done = self.run("-m", "halos", *words)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    def at(self, hub: str) -> Machine:
        return Machine(self.path, hub)

    def fetch(self, hub: Datasets, config: Path, name: str = "fetched.json") -> dict[str, Any]:
        """Fetch while the hub is up."""
        with serve(hub) as address:
            self.at(address).halos("fetch", "--config", config, "--output", name)
        found: dict[str, Any] = json.loads((self.path / name).read_text())
        return found

    def slice(self, kind: str, entry: Any) -> Path:
        path = self.path / f"{kind}.yaml"
        content = identity(entry)
        content = {"sources": content["sources"]} if kind == "dataset" else content
        template = {"chat_template": None} if kind == "model" else {}
        path.write_text(dump({kind: "x", **content, **template}))
        return path

    def cached(self) -> set[str]:
        snapshots = (self.path / "home/hub").glob("*/snapshots/*")
        return {str(path.relative_to(folder)) for folder in snapshots for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# ---- models


@pytest.fixture(scope="module")
def weights(world: World) -> dict[str, bytes]:
    """The files of a model on the hub."""
    return {path.name: path.read_bytes() for path in (world.base / "model").iterdir()}


def moved(weights: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """The same model with other weights."""
    (folder / "w").write_bytes(weights["model.safetensors"])
    tensors = {name: tensor + 1 for name, tensor in load_file(folder / "w").items()}
    save_file(tensors, folder / "w", metadata={"format": "pt"})
    return {**weights, "model.safetensors": (folder / "w").read_bytes()}


def test_a_fetched_model_is_made_without_the_hub_at_the_commit_that_was_fetched(
    machine: Machine, weights: dict[str, bytes]
) -> None:
    config = machine.slice("model", Model(hub="some/one"))
    assert machine.fetch({"some/one": {A: weights}}, config) == {"hub": "some/one", "revision": "main", "commit": A}
    later = {A: weights, B: moved(weights, machine.path)}
    assert machine.fetch({"some/one": later}, config, "later.json")["commit"] == B
    machine.halos("model", "--config", config, "--fetched", "fetched.json", "--output", "m")
    assert (machine.path / "m/model/model.safetensors").read_bytes() == weights["model.safetensors"]
    assert json.loads((machine.path / "m/manifest.json").read_text())["revision"] == A


def test_a_tokenizer_on_the_hub_is_fetched_without_its_models_weights(
    machine: Machine, weights: dict[str, bytes], world: World
) -> None:
    entry = Model(path=str(world.base / "model"), tokenizer={"from": "some/one"})  # type: ignore[arg-type]
    config = machine.slice("model", entry)
    found = machine.fetch({"some/one": {A: weights}}, config)
    assert found == {"tokenizer": {"hub": "some/one", "revision": "main", "commit": A}}
    assert machine.cached() == {name for name in weights if not name.endswith(".safetensors")}
    machine.halos("model", "--config", config, "--fetched", "fetched.json", "--output", "m")
    assert (machine.path / "m/model/tokenizer.json").read_bytes() == weights["tokenizer.json"]


def test_weights_are_fetched_once_and_as_safetensors(machine: Machine, weights: dict[str, bytes]) -> None:
    other = ["consolidated.safetensors", "pytorch_model.bin", "onnx/config.json", "README.md"]
    machine.fetch(
        {"some/one": {A: weights | dict.fromkeys(other, b"x")}}, machine.slice("model", Model(hub="some/one"))
    )
    assert machine.cached() == set(weights)


def test_code_is_fetched_with_a_model_whose_entry_trusts_it_and_with_no_other(machine: Machine, world: World) -> None:
    files = {path.name: path.read_bytes() for path in with_code(world.base / "model", machine.path / "m").iterdir()}
    machine.fetch({"some/one": {A: files}}, machine.slice("model", Model(hub="some/one")))
    code = {"configuration_mine.py", "modeling_mine.py"}
    assert code.isdisjoint(machine.cached())
    config = machine.slice("model", Model(hub="some/one", revision=A, trust_remote_code=True))
    machine.fetch({"some/one": {A: files}}, config)
    assert machine.cached() == set(files)
    machine.halos("model", "--config", config, "--fetched", "fetched.json", "--output", "made")
    assert code <= {path.name for path in (machine.path / "made/model").iterdir()}


def test_a_model_without_safetensors_is_refused_when_it_is_fetched(machine: Machine, weights: dict[str, bytes]) -> None:
    pickled = {name: content for name, content in weights.items() if not name.endswith("safetensors")}
    config = machine.slice("model", Model(hub="some/one"))
    with serve({"some/one": {A: pickled | {"pytorch_model.bin": b"x"}}}) as address:
        said = machine.at(address).refused("fetch", "--config", config, "--output", "fetched.json")
    assert "holds no safetensors weights" in said
    assert not (machine.path / "fetched.json").exists()


def test_a_model_is_not_downloaded_where_it_is_made(machine: Machine, weights: dict[str, bytes]) -> None:
    config = machine.slice("model", Model(hub="some/one"))
    with serve({"some/one": {A: weights}}) as address:
        said = machine.at(address).refused("model", "--config", config, "--output", "m")
    assert said.startswith("error: models.x: cannot get some/one at main from the Hugging Face hub")
    assert "run `python -m halos fetch`" in said
    assert machine.cached() == set()


def test_a_hub_that_does_not_answer_is_one_sentence(machine: Machine) -> None:
    config = machine.slice("model", Model(hub="some/one"))
    said = machine.refused("fetch", "--config", config, "--output", "fetched.json")
    assert said.startswith("error: models.x: cannot get some/one at main from the Hugging Face hub")
    assert "your token and the network" in said


@pytest.mark.slow
def test_adapters_are_fetched_with_the_model_they_belong_to(
    machine: Machine, weights: dict[str, bytes], world: World
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(world.base / "model", dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.01)
    folder = machine.path / "adapters"
    adapted.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "some/one"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes(weights[name])
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    base = {"hub": "some/one", "revision": "main", "commit": B}
    later = {A: weights, B: weights, "c" * 40: moved(weights, machine.path)}
    config = machine.slice("model", Model(path=str(folder)))
    assert machine.fetch({"some/one": {A: weights, B: weights}}, config) == {"base": base}
    config = machine.slice("model", Model(hub="some/adapters"))
    found = machine.fetch({"some/adapters": {A: files}, "some/one": {A: weights, B: weights}}, config)
    assert found == {"hub": "some/adapters", "revision": "main", "commit": A, "base": base}
    machine.fetch({"some/adapters": {A: files}, "some/one": later}, config, "later.json")
    machine.halos("model", "--config", config, "--fetched", "fetched.json", "--output", "m")
    merged = adapted.merge_and_unload().state_dict()
    made = load_file(machine.path / "m/model/model.safetensors")
    assert made
    assert all(torch.equal(tensor, merged[name]) for name, tensor in made.items())


# ---- datasets


def comparisons(word: str, n: int = 4) -> bytes:
    prompts = [f"\n\nHuman: {word} {i}?\n\nAssistant: " for i in range(n)]
    return gzip.compress(
        "".join(json.dumps({"chosen": f"{p}yes", "rejected": f"{p}no"}) + "\n" for p in prompts).encode()
    )


def hh(word: str) -> dict[str, bytes]:
    return {f"helpful-base/{split}.jsonl.gz": comparisons(f"{word} {split}") for split in ("train", "test")}


PREPARE = (
    "--train",
    "train.jsonl",
    "--validation",
    "validation.jsonl",
    "--test",
    "test.jsonl",
    "--report",
    "report.json",
)


def hh_at(*revisions: str) -> Dataset:
    return Dataset(sources=tuple(Source(name="hh", options={"revision": r}) for r in revisions))


def test_a_fetched_dataset_is_prepared_without_the_hub_at_the_commits_that_were_fetched(machine: Machine) -> None:
    toy = Source(name="toy", options={"prompts": 20, "test_prompts": 4})
    entry = Dataset(sources=(*hh_at("main").sources, toy, *hh_at(A).sources))
    config = machine.slice("dataset", entry)
    hub = "Anthropic/hh-rlhf"
    found = machine.fetch({hub: {A: hh("old"), B: hh("new")}}, config)
    assert found == {"sources": [{"hub": hub, "commit": B}, None, {"hub": hub, "commit": A}]}
    machine.fetch({hub: {A: hh("old"), B: hh("new"), "c" * 40: hh("newest")}}, config, "later.json")
    machine.halos("prepare", "--config", config, "--fetched", "fetched.json", *PREPARE)
    report = json.loads((machine.path / "report.json").read_text())
    assert [source.get("commit") for source in report["train"]["sources"]] == [B, None, A]
    text = (machine.path / "train.jsonl").read_text()
    assert [word in text for word in ("new train 3?", "old train 3?", "newest")] == [True, True, False]


def test_a_dataset_is_not_downloaded_where_it_is_prepared(machine: Machine) -> None:
    config = machine.slice("dataset", hh_at(A))
    with serve({"Anthropic/hh-rlhf": {A: hh("old")}}) as address:
        said = machine.at(address).refused("prepare", "--config", config, *PREPARE)
    assert said.startswith("error: source hh: Anthropic/hh-rlhf cannot be loaded from the hub")
    assert "run `python -m halos fetch`" in said
    assert machine.cached() == set()


def test_what_was_fetched_for_other_sources_is_refused(machine: Machine) -> None:
    machine.fetch({"Anthropic/hh-rlhf": {A: hh("old")}}, machine.slice("dataset", hh_at(A)))
    config = machine.slice("dataset", hh_at(A, A))
    assert "of other sources" in machine.refused("prepare", "--config", config, "--fetched", "fetched.json", *PREPARE)
    assert "`python -m halos fetch` writes it" in machine.refused(
        "prepare", "--config", config, "--fetched", "none.json", *PREPARE
    )


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("model", Model(path="models/m")),
        ("dataset", Dataset(sources=(Source(name="hh", options={"path": "hh.jsonl"}), Source(name="toy")))),
        ("task_id", Task(local="preferences")),
        ("prompts", Prompts()),
    ],
)
def test_there_is_nothing_to_fetch_of_what_is_not_on_the_hub(machine: Machine, kind: str, entry: Any) -> None:
    said = machine.refused("fetch", "--config", machine.slice(kind, entry), "--output", "fetched.json")
    assert "nothing to fetch" in said


# ---- tasks

LM_EVAL = """
import sys
from pathlib import Path
if sys.argv[1] != "fetch":
    from halos.hub import go_offline
    go_offline()
import lm_eval.tasks

class Manager(lm_eval.tasks.TaskManager):
    def __init__(self, include_defaults):
        super().__init__(include_path=Path(lm_eval.tasks.__file__).parent / "arc", include_defaults=False)

lm_eval.tasks.TaskManager = Manager
from halos.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""`python -m halos` where lm-eval knows no tasks but its ARC: all take a quarter of a minute to index."""


def arc(rows: int) -> dict[str, bytes]:
    splits = ("train", "validation", "test")
    card = "---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n"
    card += "".join(f"  - {{split: {split}, path: {split}.parquet}}\n" for split in splits) + "---\n"
    choices = {"text": ["a", "b"], "label": ["A", "B"]}
    table = [{"question": f"{i}?", "choices": choices, "answerKey": "AB"[i % 2]} for i in range(rows)]
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), parquet)
    return {"README.md": card.encode(), **{f"{split}.parquet": parquet.getvalue() for split in splits}}


@pytest.mark.slow
def test_a_fetched_task_is_run_without_the_hub_on_the_data_that_was_fetched(machine: Machine, world: World) -> None:
    config = machine.slice("task_id", Task(task="arc_easy"))
    fetch = ("-c", LM_EVAL, "fetch", "--config", config, "--output")
    task = ("-c", LM_EVAL, "task", "--config", config, "--model", world.base / "model", "--output", "out.json",
            "--fetched")  # fmt: skip
    with serve({"allenai/ai2_arc": {A: arc(4)}}) as address:
        assert machine.at(address).run(*fetch, "fetched.json").returncode == 0
        missing = Machine(machine.path / "other", address)
        missing.path.mkdir()
        done = missing.run(*task)
        assert done.stderr.splitlines()[-1].startswith("error: the data of task arc_easy cannot be had")
        assert "run `python -m halos fetch`" in done.stderr
    data = [{"hub": "allenai/ai2_arc", "name": "ARC-Easy", "commit": A}]
    assert json.loads((machine.path / "fetched.json").read_text()) == {"task": "arc_easy", "data": data}
    done = machine.run(*task, "fetched.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((machine.path / "out.json").read_text())["halos"]["n"] == 4

    with serve({"allenai/ai2_arc": {A: arc(4), B: arc(6)}}) as address:
        assert machine.at(address).run(*fetch, "later.json").returncode == 0
    done = machine.run(*task, "fetched.json")
    assert done.returncode == 1
    assert "another commit of allenai/ai2_arc than was fetched" in done.stderr.splitlines()[-1]


# ---- the workflow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(copy_files(tmp_path_factory.mktemp("project")))
    project.write_config({
        **CATALOGUE,
        "models": CATALOGUE["models"] | {"hub": {"hub": "some/one"}},
        "datasets": CATALOGUE["datasets"] | {"hh": {"sources": [{"name": "hh"}]}},
        "tasks": CATALOGUE["tasks"] | {"arc": {"task": "arc_easy"}},
        "grids": CATALOGUE["grids"] | {
            "hub": {"datasets": ["hh", "d"], "models": ["hub", "m"], "methods": ["base"], "tasks": ["arc", "t"]}
        },
    })  # fmt: skip
    return project


def test_the_workflow_fetches_what_is_on_the_hub_once_and_nothing_else(project: Project) -> None:
    run = project.dry("--config", "grid=hub", "--", "tasks")
    assert [name for name in run.names if name.startswith("fetch")] == [
        "fetch_dataset hh", "fetch_model hub", "fetch_task arc"
    ]  # fmt: skip
    assert [name for name in project.dry("all").names if name.startswith("fetch")] == []


def test_on_a_cluster_what_downloads_runs_beside_the_driver() -> None:
    rules = [rule for file in (ROOT / "rules").glob("*.smk") for rule in file.read_text().split("\nrule ")[1:]]
    downloading = {rule.split(":")[0] for rule in rules if "halos fetch" in rule}
    [local] = re.findall(r"^localrules:\n((?:    \w+,\n)+)", (ROOT / "Snakefile").read_text(), re.MULTILINE)
    assert downloading == {"fetch_model", "fetch_dataset", "fetch_task"}
    assert downloading - set(re.findall(r"\w+", local)) == set()


@pytest.mark.slow
def test_the_workflow_makes_a_model_and_a_dataset_of_the_hub(
    project: Project, weights: dict[str, bytes], tmp_path: Path
) -> None:
    fresh = project.copy(tmp_path / "project")
    targets = ("results/models/hub/manifest.json", "results/data/hh/report.json")
    command = ("-m", "snakemake", "--cores", "1", *targets)
    hub = {"some/one": {A: weights}, "Anthropic/hh-rlhf": {HH_REVISION: hh("new")}}
    with serve(hub) as address:
        done = Machine(fresh.path, address).run(*command, PATH=fresh.environment()["PATH"])
    assert done.returncode == 0, done.stderr
    model, data = (json.loads((fresh.path / target).read_text()) for target in targets)
    assert model["revision"] == A
    assert {source["commit"] for source in data["train"]["sources"]} == {HH_REVISION}


# ---- all other verbs

NO_NETWORK = """
import json, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"{event} {arguments}")

sys.addaudithook(refuse)
from halos.cli import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
"""


def test_no_verb_that_reads_what_is_there_asks_the_network(world: World, machine: Machine) -> None:
    jobs = []
    for verb in ("tokenize", "reference", "train", "sample", "judge", "task"):
        (machine.path / verb).mkdir()
        jobs.append(small_job(verb, world, machine.path / verb))
    done = machine.run("-c", NO_NETWORK, json.dumps(jobs))
    assert done.returncode == 0, done.stderr
