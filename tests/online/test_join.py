"""Online stages: what is refused, what makes each round, which files its rules read, and the rounds joined."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from halos.errors import HalosError
from halos.manifest import KEPT, VALUE_HEAD, Manifest
from halos.online.join import join
from halos.settings import dump
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.checks import check_keys
from halos.study.slices import config_slice
from halos.study.study import Study
from tests.conftest import CATALOGUE
from tests.workflow.bound import Workflow

ONLINE = {"rounds": 3, "prompts_per_round": 20, "samples_per_prompt": 4, "label": "binary", "max_new_tokens": 8}
LABELLERS: dict[str, Any] = {
    "binary": {"kind": "verifier", "verifier": "toy", "feedback": "binary"},
    "pairs": {"kind": "reward_model", "reward_model": "sft-rm", "seed": 2, "feedback": "pairwise"},
    "scalar": {"kind": "openai", "openai": {"model": "gpt"}, "feedback": "scalar"},
    "local": {"kind": "openai", "openai": {"model": "m", "base_url": "http://localhost/v1"}, "feedback": "binary"},
}
STAGES: dict[str, Any] = {
    "rm": {"loss": "bradley_terry"},
    "kto_on": {"loss": "kto", "online": ONLINE},
    "dpo_on": {"loss": "dpo", "online": {**ONLINE, "label": "pairs", "reference": "fixed"}},
    "grpo_on": {"loss": "grpo", "online": {**ONLINE, "label": "scalar"}},
    "live": {"loss": "kto", "humanline": True, "online": ONLINE},
}


def load(changes: dict[str, Any] | None = None, **grid: Any) -> C.Config:
    """The tests' catalogue with online stages; `changes` are of entries, {"stages/kto_on/online/rounds": 2}."""
    content = json.loads(json.dumps({**CATALOGUE, "labellers": LABELLERS}))
    content["stages"] |= json.loads(json.dumps(STAGES))
    content["grids"]["g"] |= grid
    for path, value in (changes or {}).items():
        *parents, last = path.split("/")
        entry = content
        for parent in parents:
            entry = entry[parent]
        entry[last] = value
    return C.load(content)


MISTAKES: dict[str, tuple[str, Any, str]] = {
    "no labeller": ("stages/kto_on/online/label", "binry",
                    "stages.kto_on.online.label: there is no 'binry' in labellers; did you mean 'binary'?"),
    "pairs for KTO are fine, scores are not": (
        "stages/kto_on/online/label", "scalar",
        "stages.kto_on.online.label: the loss kto wants binary or pairwise feedback, and scalar gives scalar"),
    "labels for DPO": ("stages/dpo_on/online/label", "binary",
                       "stages.dpo_on.online.label: the loss dpo wants pairwise feedback, and binary gives binary"),
    "one sample for pairs": ("stages/dpo_on/online/samples_per_prompt", 1,
                             "stages.dpo_on: the loss 'dpo' compares responses: raise online.samples_per_prompt"),
    "one sample for a group": ("stages/grpo_on/online/samples_per_prompt", 1,
                               "stages.grpo_on: the loss 'grpo' compares responses: raise online.samples_per_prompt"),
    "a reward model that answers": ("stages/rm/online", ONLINE,
                                    "stages.rm: the loss 'bradley_terry' cannot be trained online: take out `online`"),
    "control tokens": ("stages/csft/online", ONLINE,
                       "stages.csft: the loss 'csft' cannot be trained online: take out `online`"),
    "two sources of scores": ("stages/grpo_on/reward_model", "sft-rm",
                              "stages.grpo_on: with `online` the labeller gives the scores: take out reward_model"),
    "a reference that moves and is fixed": (
        "stages/live/online/reference", "fixed",
        "stages.live: humanline and sync_reference move the reference: take out online.reference: fixed"),
    "no rounds": ("stages/kto_on/online/rounds", 0, "stages.kto_on.online.rounds: Input should be greater than 0"),
    "a labeller's own student": ("labellers/pairs/reward_model", "dpo_on-rm",
                                 "stages.dpo_on: its reward model dpo_on-rm: dpo_on learns from a reward model itself; "
                                 "name one that does not"),
    "a policy that labels": ("labellers/pairs/reward_model", "sft",
                             "labellers.pairs.reward_model: sft must end in a reward model, such as bradley_terry"),
    "a threshold of pairs": ("labellers/pairs/threshold", 1,
                             "labellers.pairs: pairwise feedback has no threshold: take that out, or ask for binary"),
    "pairs of labels": ("labellers/binary/pairs", "min",
                        "labellers.binary: binary feedback has no pairs: take that out, or ask for pairwise"),
    "a threshold of another kind": ("labellers/binary/threshold", "men",
                                    "labellers.binary.threshold: 'men' is none of mean, median and a number"),
    "nothing to ask": ("labellers/scalar/openai", None,
                       "labellers.scalar: a labeller of kind openai names one: give it `openai:`"),
    "a model for a program": ("labellers/binary/openai", {"model": "gpt"},
                              "labellers.binary: a labeller of kind verifier has no openai: take that out"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_contradictory_online_stage_or_labeller_is_refused_in_one_sentence(mistake: str) -> None:
    path, value, says = MISTAKES[mistake]
    with pytest.raises(HalosError) as caught:
        load({path: value})
    assert str(caught.value) == says


def test_a_missing_key_is_refused_before_anything_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    check_keys(Study(load(methods=["sft-kto_on"])))  # asks nobody
    check_keys(Study(load({"stages/kto_on/online/label": "local"}, methods=["sft-kto_on"])))  # a server of one's own
    config = load(methods=["sft-grpo_on-dpo"])  # a parent's
    with pytest.raises(HalosError, match="put it into the environment variable OPENAI_API_KEY"):
        check_keys(Study(config))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    check_keys(Study(config))


# ---- rounds as cells ----------------------------------------------------------------------------------------------


def test_a_round_starts_from_the_one_before_and_the_first_from_the_parent() -> None:
    lineage = [(c.method, c.seed, c.round) for c in Cell("d", "m", "sft-kto_on", 3, 2).lineage()]
    assert lineage == [("sft-kto_on", 3, 2), ("sft-kto_on", 3, 1), ("sft", 3, 0), ("base", 0, 0)]
    cell = Cell("d", "m", "sft-kto_on", 3)
    assert cell.parent == Cell("d", "m", "sft", 3)
    for one in cell.rounds(2):
        assert Cell.of(f"results/{one.folder}/fresh/train/samples.jsonl") == one


ROUND = "runs/d/m/sft-kto_on/seed1"
FOLDERS = [ROUND, *(f"{ROUND}/round{i}{rest}" for i in (1, 2) for rest in ("", "/fresh/train", "/fresh/validation")),
           "labellers/binary", "runs/d/m/sft/seed1"]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        ("stages/kto_on/online/rounds", 5, [ROUND]),
        ("stages/kto_on/beta", 0.3, [ROUND, f"{ROUND}/round1", f"{ROUND}/round2"]),
        ("stages/kto_on/online/temperature", 0.5,
         [ROUND, *(f"{ROUND}/round{i}/fresh/{split}" for i in (1, 2) for split in ("train", "validation"))]),
        ("stages/kto_on/online/eval_prompts", 9, [ROUND, *(f"{ROUND}/round{i}/fresh/validation" for i in (1, 2))]),
        ("labellers/binary/threshold", 0.3, ["labellers/binary"]),
        ("labellers/local/concurrency", 2, []),
    ],
)  # fmt: skip
def test_an_edit_reaches_the_rounds_that_it_makes_and_more_rounds_leave_the_first_alone(
    path: str, value: Any, changed: list[str]
) -> None:
    before, after = load(), load({path: value})
    assert [f for f in FOLDERS if config_slice(before, f) != config_slice(after, f)] == changed


def test_an_optimiser_that_goes_on_makes_the_number_of_rounds_a_part_of_each() -> None:
    folder = "runs/d/m/kto_on/seed1/round2"
    changes = {"stages/kto_on/online/continue_optimizer": True}
    more = {**changes, "stages/kto_on/online/rounds": 4}
    before, after, longer = (config_slice(load(c), folder) for c in ({}, changes, more))
    assert (after.pop("rounds"), longer.pop("rounds")) == (3, 4)
    assert before == after == longer  # else as without, so that finished rounds stay


def test_no_round_has_a_training_prompt_of_another_and_all_have_the_same_validation_prompts() -> None:
    train, validation = ([config_slice(load(), f"{ROUND}/round{i}/fresh/{split}") for i in (1, 2, 3)]
                   for split in ("train", "validation"))  # fmt: skip
    assert [(p["skip"], p["limit"], p["samples"], p["shuffle"]) for p in train] == [
        (0, 20, 4, 1), (20, 20, 4, 1), (40, 20, 4, 1)
    ]  # fmt: skip
    assert validation[0] == validation[1] == validation[2]
    assert (validation[0]["skip"], validation[0]["limit"]) == (0, 64)


@pytest.mark.parametrize("folder", [f"{ROUND}/round4", "runs/d/m/sft-kto/seed1/round1"])
def test_a_round_that_there_is_not_is_refused(folder: str) -> None:
    with pytest.raises(HalosError, match=r"has (3|no) rounds; see its `online:`"):
        config_slice(load(), folder)


# ---- which files the rules read -----------------------------------------------------------------------------------


def wildcards(method: str, run: str = "seed3/round2", **more: str) -> SimpleNamespace:
    return SimpleNamespace(dataset="d", model="m", method=method, run=run, **more)


def test_a_round_reads_the_reference_that_its_stage_names_on_its_own_store() -> None:
    w = Workflow(load())
    kto, dpo = wildcards("sft-kto_on"), wildcards("sft-dpo_on")
    before = "results/runs/d/m/sft-kto_on/seed3/round1"
    assert w.inputs.parent_model(kto) == w.inputs.reference_model(kto) == f"{before}/model"
    assert w.inputs.reference_config(kto) == f"{before}/config.yaml"
    assert w.inputs.reference_manifest(dpo) == "results/runs/d/m/sft/seed3/manifest.json"  # fixed
    assert w.inputs.parent_manifest(dpo) == "results/runs/d/m/sft-dpo_on/seed3/round1/manifest.json"
    fresh = "results/runs/d/m/sft-kto_on/seed3/round2/fresh/reference"
    assert w.inputs.round_reference(kto) == [f"{fresh}/both.safetensors"]
    assert w.inputs.round_reference(dpo) == [f"{fresh.replace('kto', 'dpo')}/responses.safetensors"]
    assert w.inputs.round_reference(wildcards("live")) == []
    first = wildcards("kto_on", "seed3/round1")
    assert w.inputs.reference_model(first) == "results/models/m/model"
    assert w.inputs.reference_config(first) == "results/runs/d/m/base/seed0/config.yaml"


def test_a_round_is_evaluated_on_its_own_responses_or_on_the_datasets() -> None:
    place = wildcards("sft-kto_on")
    fresh, dataset = (Workflow(load({"stages/kto_on/online/evaluate": name})) for name in ("fresh", "dataset"))
    round_ = "results/runs/d/m/sft-kto_on/seed3/round2"
    assert fresh.inputs.round_validation(place) == f"{round_}/fresh/validation/feedback.parquet"
    assert dataset.inputs.round_validation(place) == "results/data/d/validation.parquet"
    # the labels that are evaluated on have to be there before anything is sampled
    checked = "results/tokens/d/m/checked"
    assert (fresh.inputs.checked(place), dataset.inputs.checked(place)) == (
        f"{checked}/prompts.json", f"{checked}/unpaired.json"
    )  # fmt: skip
    assert "evaluate" not in C.Stage(loss="kto", online=ONLINE).model_dump()["online"]


def test_a_cell_is_made_of_its_rounds_and_all_but_the_last_are_judged_beside_it() -> None:
    w = Workflow(load(methods=["sft", "sft-kto_on"]))
    cell = wildcards("sft-kto_on", "seed1")
    folder = "results/runs/d/m/sft-kto_on/seed1"
    assert w.inputs.round_manifests(cell) == [f"{folder}/round{i}/manifest.json" for i in (1, 2, 3)]
    assert w.inputs.last_model(cell) == f"{folder}/round3/model"
    assert w.targets.judged()[2:] == [f"{folder}/round{i}/judged/j.json" for i in (1, 2)]
    assert w.targets.trained() == ["results/runs/d/m/sft/seed1/manifest.json", f"{folder}/manifest.json"]


def test_a_round_is_labelled_by_its_stages_labeller_and_samples_by_the_one_that_is_named() -> None:
    w = Workflow(load({"models/m/resources": {"gpus": 2, "cpus": 7, "mem_gb": 9}}))
    dpo = wildcards("sft-dpo_on")
    assert w.inputs.labeller(dpo) == "results/labellers/pairs/config.yaml"
    assert w.inputs.labelling_model(dpo) == [
        f"results/runs/d/m/sft-rm/seed2/{name}" for name in ("model", "manifest.json")
    ]
    assert w.resources.label.cpus(dpo) == 7
    assert w.resources.label.gres(dpo) == "gpu:2"
    assert w.resources.label.launch(dpo) == "--nodes 1 --gpus 2 --parallel ddp --cpus 7"
    named = wildcards("sft-dpo_on", labeller="local")
    assert w.inputs.labeller(named) == "results/labellers/local/config.yaml"
    assert w.inputs.labelling_model(named) == []
    assert w.resources.label.cpus(named) == 1
    assert (w.resources.label.gres(named), w.resources.label.launch(named)) == (
        "",
        "--nodes 1 --gpus 0 --parallel ddp --cpus 1",
    )


def test_how_fast_a_server_is_asked_stands_on_the_command_line() -> None:
    w = Workflow(load({"labellers/local/requests_per_minute": 90, "labellers/local/concurrency": 3}))
    assert w.resources.label.limits(wildcards("sft", labeller="local")) == "--concurrency 3 --requests-per-minute 90"
    assert w.resources.label.limits(wildcards("sft", labeller="binary")) == "--concurrency 16"


def test_an_online_stage_wants_prompts_of_its_dataset_and_no_view_but_its_teachers() -> None:
    place = SimpleNamespace(dataset="d", model="m", view="prompts")
    w = Workflow(load(methods=["base", "kto_on"]))
    assert (w.inputs.checked(wildcards("kto_on")), w.resources.views(place)) == (
        "results/tokens/d/m/checked/prompts.json",
        "",
    )
    assert w.resources.fresh_prompts(place) == 60
    w = Workflow(load(methods=["sft-dpo_on-kto"]))
    assert w.resources.views(place) == "paired sft unpaired"  # of the reward model, of the parent, of kto
    assert w.resources.fresh_prompts(place) == 60
    assert Workflow(load(methods=["sft"])).resources.fresh_prompts(place) == 0


# ---- the rounds joined --------------------------------------------------------------------------------------------


def labels(mean_score: float) -> dict[str, Any]:
    """The report of a labeller on one file."""
    counts = dict.fromkeys(("responses", "scored", "cut", "prompts", "records", "desirable", "undesirable", "pairs"), 1)
    file = {"samples": "samples.jsonl", **counts, "failed": {}, "mean_score": mean_score}
    return {"labeller": "l", "kind": "verifier", "feedback": "binary", "threshold": 0.5, "files": [file]}


def finished(folder: Path, number: int, steps: int) -> Path:
    """A round's folder, with as many steps of two examples."""
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_text(f"weights {number}")
    (folder / "fresh").mkdir()
    (folder / "fresh/labels.json").write_text(json.dumps(labels(number / 10)))
    lines: list[dict[str, Any]] = [{"split": "eval", "step": 0, "examples": 0, "loss": 1.0}]
    lines += [{"split": "train", "step": i + 1, "examples": 2 * i + 2, "loss": 0.5} for i in range(steps)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = {
        "config": {"round": number}, "weights": f"hash {number}", "inputs": {"weights": f"parent {number}"},
        "data": {"train": {"examples": steps, "desirable": number}, "validation": {"examples": 3}},
        "steps": steps, "tokens": 7, "seconds": 1.5, "gpu_hours": 0.5, "peak_memory_gb": 3 - number,
        "parameters": 9, "processes": 1,
        "files": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(dump({"method": "sft-on", "seed": 1}))
    rounds = [finished(tmp_path / f"round{i}", i, steps) for i, steps in ((1, 3), (2, 2))]
    join(tmp_path / "config.yaml", rounds, tmp_path)
    return tmp_path


def test_the_model_is_the_last_rounds_and_takes_no_space_of_its_own(run: Path) -> None:
    assert (run / "model/model.safetensors").read_text() == "weights 2"
    assert (run / "model/model.safetensors").samefile(run / "round2/model/model.safetensors")


def test_steps_and_examples_count_on_over_rounds(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    found = [(line["round"], line["split"], line["step"], line["examples"]) for line in lines]
    assert found == [(1, "eval", 0, 0), (1, "train", 1, 2), (1, "train", 2, 4), (1, "train", 3, 6),
                     (2, "eval", 3, 6), (2, "train", 4, 8), (2, "train", 5, 10)]  # fmt: skip


def test_the_manifest_sums_the_rounds_up_and_keeps_each(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    assert Manifest.read(run / "manifest.json").model_dump(mode="json") == manifest
    assert manifest["config"] == {"method": "sft-on", "seed": 1}
    assert (manifest["weights"], manifest["inputs"]) == ("hash 2", {"weights": "parent 1"})
    assert (manifest["steps"], manifest["tokens"], manifest["seconds"], manifest["gpu_hours"]) == (5, 14, 3.0, 1.0)
    assert manifest["peak_memory_gb"] == 2
    assert manifest["data"] == {"train": {"examples": 5, "desirable": 3}, "validation": {"examples": 3}}
    assert [r["labels"]["files"][0]["mean_score"] for r in manifest["rounds"]] == [0.1, 0.2]
    assert [r["weights"] for r in manifest["rounds"]] == ["hash 1", "hash 2"]


def test_joining_again_replaces_what_was_there(run: Path) -> None:
    join(run / "config.yaml", [run / "round1"], run)
    assert (run / "model/model.safetensors").read_text() == "weights 1"
    assert (run / "round2/model/model.safetensors").read_text() == "weights 2"


def test_no_round_keeps_the_optimisers_state_that_the_next_one_went_on_from(run: Path) -> None:
    (run / "round1" / KEPT).mkdir()
    join(run / "config.yaml", [run / "round1", run / "round2"], run)
    assert sorted(path.name for path in (run / "round1").iterdir()) == [
        "fresh",
        "manifest.json",
        "model",
        "train.jsonl",
    ]


def test_an_unfinished_round_is_named(run: Path) -> None:
    (run / "round2/manifest.json").unlink()
    with pytest.raises(HalosError, match=r"there is no .*round2/manifest\.json; run `snakemake"):
        join(run / "config.yaml", [run / "round1", run / "round2"], run)


def test_ppos_value_head_is_the_last_rounds(run: Path) -> None:
    for number in (1, 2):
        head = run / f"round{number}" / VALUE_HEAD
        head.write_text(f"head {number}")
        manifest = Manifest.read(head.with_name("manifest.json"))
        manifest.model_copy(update={"value_head": f"hash {number}"}).write(head.with_name("manifest.json"))
    join(run / "config.yaml", [run / "round1", run / "round2"], run)
    assert (run / VALUE_HEAD).read_text() == "head 2"
    assert Manifest.read(run / "manifest.json").value_head == "hash 2"


def test_where_a_round_stopped_early_is_said_by_the_round_alone(run: Path) -> None:
    path = run / "round2/manifest.json"
    Manifest.read(path).model_copy(update={"stopped_early": 9}).write(path)
    join(run / "config.yaml", [run / "round1", run / "round2"], run)
    assert Manifest.read(run / "manifest.json").stopped_early is None
