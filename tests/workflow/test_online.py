"""Online stages through real commands: what is kept when a round is stopped, and what a change reruns."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from halos.data import feedback as F
from tests.scoring.api_server import RIGHT, SERVER_ERROR, ApiServer
from tests.workflow.conftest import Project, trainer_of

pytestmark = pytest.mark.slow  # the finished rounds that they share take longer than 20 seconds

VERIFIER = '''
from halos.registry import VERIFIERS


@VERIFIERS.register("vowels")
def vowels(prompt, response):
    """The share of vowels: a model of random weights differs in it."""
    return {"vowels": sum(c in "aeiou" for c in response.lower()) / max(1, len(response))}
'''
ONLINE = {"rounds": 3, "prompts_per_round": 12, "samples_per_prompt": 4, "label": "vowels", "eval_prompts": 4,
          "max_new_tokens": 8}  # fmt: skip
CELL = "results/runs/d/m/sft-kto_on/seed1"
MANIFEST = f"{CELL}/manifest.json"


def rounds_of(names: list[str]) -> set[int]:
    """The rounds that jobs are about."""
    return {int(found[1]) for name in names if (found := re.search(r"/round(\d+)", name))}


@pytest.fixture(scope="module")
def online(warm: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished cell of three rounds."""
    project = warm.copy(tmp_path_factory.mktemp("online") / "project")
    (project.path / "vowels.py").write_text(VERIFIER)
    content = project.read_config()
    content["plugins"] = ["vowels.py"]
    content["labellers"] = {"vowels": {"kind": "verifier", "verifier": "vowels", "feedback": "binary"}}
    content["stages"]["kto_on"] = {"loss": "kto", "lr": 1e-3, "batch_size": 8, "checkpoint_every": 1, "online": ONLINE}
    content["grids"]["rounds"] = {**content["grids"]["pair"], "methods": ["sft", "sft-kto_on"], "tasks": []}
    content["grid"] = "rounds"
    project.write_config(content)
    project.snakemake("all", timeout=600).ok()
    return project


@pytest.fixture
def done(online: Project, tmp_path: Path) -> Project:
    return online.copy(tmp_path / "project")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/model.safetensors")


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def test_each_round_samples_prompts_of_its_own_from_the_policy_before_it(online: Project) -> None:
    cell = online.path / CELL
    prompts, evaluated = [], []
    for number in (1, 2, 3):
        lines = [json.loads(line) for line in (cell / f"round{number}/fresh/train/samples.jsonl").open()]
        records = list(F.read(cell / f"round{number}/fresh/train/feedback.parquet"))
        assert len(lines) == 48
        prompts.append({line["prompt_id"] for line in lines})
        assert {record.prompt_id for record in records} <= prompts[-1]
        evaluated.append(
            {record.prompt_id for record in F.read(cell / f"round{number}/fresh/validation/feedback.parquet")}
        )
        assert manifest(cell / f"round{number}")["inputs"]["weights"] == manifest(
            cell / f"round{number - 1}" if number > 1 else online.cell("sft")
        )["weights"]  # fmt: skip
    assert [len(p) for p in prompts] == [12, 12, 12]
    assert len(set.union(*prompts)) == 36
    assert evaluated[0] == evaluated[1] == evaluated[2]
    train = {record.prompt_id for record in F.read(online.results / "data/d/train.parquet")}
    assert set.union(*prompts) <= train
    assert not set.union(*evaluated) & train


def test_the_cell_is_its_last_round_and_every_round_is_judged(online: Project) -> None:
    cell = online.path / CELL
    assert manifest(cell)["weights"] == manifest(cell / "round3")["weights"] != manifest(cell / "round2")["weights"]
    assert [r["weights"] for r in manifest(cell)["rounds"]] == [
        manifest(cell / f"round{i}")["weights"] for i in (1, 2, 3)
    ]  # fmt: skip
    table = (online.results / "figures/rounds/rounds.csv").read_text().splitlines()
    assert [line.split(",")[3:5] for line in table[1:]] == [["sft-kto_on", str(i)] for i in range(4)]
    assert online.dry("all").jobs == []


def test_more_rounds_leave_the_finished_ones_alone(done: Project) -> None:
    names = done.edit({"stages.kto_on.online": {**ONLINE, "rounds": 4}}).dry("all").names
    assert [n for n in names if re.match("sample_round|train_round|label_round", n)] == [
        f"{rule} sft-kto_on/seed1/round4" for rule in ("label_round", "sample_round", "train_round")
    ]  # fmt: skip


def test_another_threshold_labels_again_and_samples_what_comes_of_it(done: Project) -> None:
    """The first round's samples are of the parent, which is the same; the others' are of what it trains."""
    names = done.edit({"labellers.vowels.threshold": 0.1}).dry("all").names
    assert [n for n in names if n.startswith("sample_round")] == [
        f"sample_round sft-kto_on/seed1/round{i}" for i in (2, 3)
    ]  # fmt: skip
    assert [n for n in names if n.startswith("label_round")] == [
        f"label_round sft-kto_on/seed1/round{i}" for i in (1, 2, 3)
    ]  # fmt: skip
    assert "train_cell sft/seed1" not in names


def test_a_fixed_reference_is_the_parent_in_every_round(done: Project) -> None:
    done.edit({"stages.kto_on.online": {**ONLINE, "rounds": 2, "reference": "fixed"}}).snakemake("train").ok()
    cell, parent = done.path / CELL, manifest(done.cell("sft"))["weights"]
    assert "reference" not in manifest(cell / "round1")["inputs"]
    assert manifest(cell / "round2")["inputs"]["reference"] == parent
    assert manifest(cell / "round2")["inputs"]["weights"] == manifest(cell / "round1")["weights"]
    first = json.loads((cell / "round2/train.jsonl").read_text().split("\n")[0])
    assert first["split"] == "eval"
    assert abs(first["kl"]) > 1e-4  # the policy has left its reference in the first round


def test_a_kill_in_the_second_round_repeats_nothing_of_the_first(
    online: Project, done: Project, small: Project
) -> None:
    done, cell = replace(done, python=small.python), done.path / CELL
    shutil.rmtree(cell)
    with done.started(MANIFEST) as (process, log):
        deadline = time.monotonic() + 200
        while not any((cell / "round2/checkpoints").glob("step*")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        trainer = trainer_of(process)
        assert trainer is not None
        trainer.kill()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    kept = {path: path.stat().st_mtime_ns for path in (cell / "round1").rglob("*") if path.is_file()}
    assert (cell / "round1/manifest.json") in kept
    assert not (cell / "round2/manifest.json").exists()

    done.snakemake("--unlock").ok()
    again = done.snakemake(MANIFEST).ok()
    assert rounds_of(again.names) == {2, 3}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "going on from step" in (done.results / "logs/train_round/d/m/sft-kto_on/seed1/round2.log").read_text()
    expected, got = weights(online.path / CELL), weights(cell)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_too_few_prompts_are_refused_before_anything_is_trained(
    small: Project, online: Project, tmp_path: Path
) -> None:
    fresh = small.copy(tmp_path / "project")
    shutil.copy(online.path / "vowels.py", fresh.path)
    fresh.write_config(online.read_config())
    run = fresh.edit({"stages.kto_on.online": {**ONLINE, "prompts_per_round": 80}}).snakemake("train").failed()
    assert "want 240: lower their rounds or prompts_per_round" in run.output
    assert run.rules["train_round"] == run.rules["sample_round"] == 0


def test_samples_of_any_cell_are_labelled_on_demand(done: Project) -> None:
    target = "results/runs/d/m/sft/seed1/labelled/p/vowels.parquet"
    assert done.snakemake(target).ok().rules["label"] == 1
    records = list(F.read(done.path / target))
    assert len(records) == 8
    done.edit({"datasets.mine": {"sources": [{"name": "local", "options": {"path": target, "test_fraction": 0.5}}],
                                 "max_length": 100, "max_prompt_length": 60}})  # fmt: skip
    (done.path / target).unlink()  # made again, because the dataset is made of it
    run = done.snakemake("results/data/mine/train.parquet").ok()
    assert [n.split()[0] for n in run.names if not n.startswith("configure")] == ["label", "prepare"]


def test_a_server_labels_within_the_workflow_once_and_its_key_is_written_nowhere(done: Project) -> None:
    key, target = "sk-workflow-0123456789", "results/runs/d/m/sft/seed1/labelled/p/asked.parquet"

    def grade(messages: list[dict[str, str]]) -> str:
        return f"Score: {1 + len(messages[-1]['content']) % 10}"

    with ApiServer(faults=lambda _, nth: SERVER_ERROR if nth == 1 else RIGHT, answer=grade) as server:
        asked = {"model": "m", "base_url": server.base_url, "key_variable": "THE_KEY"}
        done.edit({"labellers.asked": {"kind": "openai", "openai": asked, "feedback": "binary"}})
        first = done.snakemake(target, THE_KEY=key, NO_PROXY="127.0.0.1").ok()
        assert {request.key for request in server.requests} == {key}
        records, calls = list(F.read(done.path / target)), server.count
        assert len(records) == 8
        assert all(1 <= score <= 10 for record in records for score in record.scores)

        (done.path / target).unlink()
        again = done.edit({"labellers.asked.threshold": 3}).snakemake(target, THE_KEY=key, NO_PROXY="127.0.0.1").ok()
        assert server.count == calls
    assert again.rules["label"] == 1
    assert [r.scores for r in F.read(done.path / target)] == [r.scores for r in records]
    written = [path for path in done.path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert written == []
    assert key not in first.output + again.output
