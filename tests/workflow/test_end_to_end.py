"""A small study made by real commands: what reruns after a change, what survives a kill, what fails early."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from rocrate.rocrate import ROCrate
from safetensors.torch import load_file

from halos.files import hash_file
from tests.workflow.conftest import CATALOGUE, Project, Run, trainer_of, wait_for_checkpoint

pytestmark = pytest.mark.slow  # the finished study that they share takes longer than 20 seconds

LONG = "results/runs/d/m/sft-long/seed1/manifest.json"
DECIDED = ["configure judging/KEY", "decide KEY"]
"""The choice of what is judged together, and its judgements, which `judge` takes out."""
REPORT = ["draw_figures both", "make_tables both", "write_cards both", "write_overview both", "write_responses both"]
ANEW = [*DECIDED, "gather both", *REPORT]
"""What follows on new answers."""


def of_cell(method: str, seed: int = 1, *, trained: bool = True) -> list[str]:
    """The names of all jobs of one cell that answers what another has answered before."""
    cell = f"{method}/seed{seed}"
    jobs = [f"configure runs/d/m/{cell}", f"answer {cell}", f"sample {cell} p", f"judge {cell} j", f"task {cell} t"]
    return jobs + [f"train_cell {cell}"] * trained


@pytest.fixture(scope="module")
def study(small: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run, Run]:
    """A finished study, made in two commands: the grid that has dpo alone is trained, then kto is added to it."""
    project = small.copy(tmp_path_factory.mktemp("study") / "project")
    first = project.snakemake("--config", "grid=pair", "--", "train").ok()
    second = project.snakemake("all", LONG).ok()
    return project, first, second


@pytest.fixture
def done(study: tuple[Project, Run, Run], tmp_path: Path) -> Project:
    """A copy of the finished study, times and Snakemake's records included."""
    return study[0].copy(tmp_path / "project")


def weights(cell: Path) -> dict[str, torch.Tensor]:
    return load_file(cell / "model/model.safetensors")


def steps(cell: Path) -> list[dict[str, Any]]:
    """What a run logged of its training, but for what the clock and the machine say."""
    own = ("seconds", "tokens_per_second", "examples_per_second", "peak_memory_gb")
    records = [json.loads(line) for line in (cell / "train.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in own} for record in records]


# ---- the finished study -------------------------------------------------------------------------------------------


def test_a_finished_study_has_nothing_to_be_done(done: Project) -> None:
    run = done.dry("all", LONG)
    assert not run.jobs
    assert "Nothing to be done" in run.output


def test_other_intervals_of_its_stages_leave_a_finished_study_as_it_is(done: Project) -> None:
    intervals = {"eval_every": 1, "checkpoint_every": 2, "keep_every": 1, "eval_first": False}
    stages = ("sft", "dpo", "kto")
    run = done.edit({f"stages.{s}.{k}": v for s in stages for k, v in intervals.items()}).dry("all", LONG)
    assert not run.jobs
    project = done.edit({"stages.sft.lr": 2e-3})  # and reach the trainer once something else is new
    words = " --eval-every 1 --checkpoint-every 2 --keep-every 1 --skip-first-evaluation "
    assert project.dry("-p", "results/runs/d/m/sft/seed1/manifest.json").output.count(words) == 1


def test_a_finished_study_holds_tables_figures_and_no_checkpoints(study: tuple[Project, Run, Run]) -> None:
    project = study[0]
    for method in ("sft-dpo", "sft-kto", "sft-long"):
        names = {path.name for path in project.cell(method).iterdir()}
        assert {"config.yaml", "manifest.json", "model", "train.jsonl"} <= names
        assert "checkpoints" not in names
    table = (project.results / "tables/both/main.md").read_text()
    for method in ("base", "sft-dpo", "sft-kto"):
        assert json.loads((project.cell(method) / "judged/j.json").read_text())
        assert json.loads((project.cell(method) / "tasks/t.json").read_text())
        assert len((project.cell(method) / "samples/p.jsonl").read_text().splitlines()) == 8
    assert "SFT" in table
    assert (project.results / "figures/both/win_rate.svg").stat().st_size > 1000


def test_a_cell_added_to_a_grid_leaves_the_others_and_their_reference_alone(study: tuple[Project, Run, Run]) -> None:
    """kto reads a view and a reference part that dpo does not: these are made, and dpo stays."""
    _, first, second = study
    assert [n for n in first.names if re.match("reference|train|check", n)] == [
        "check d/m/paired",
        "check d/m/sft",
        "reference sft/seed1 responses",
        "train_cell sft-dpo/seed1",
        "train_cell sft/seed1",
    ]
    assert [n for n in second.names if re.match("reference|train|check|model|tokenize|prepare", n)] == [
        "check d/m/unpaired",
        "reference sft/seed1 mismatched",
        "train_cell sft-kto/seed1",
        "train_cell sft-long/seed1",
    ]


def test_the_report_holds_tables_and_figures(done: Project) -> None:
    done.snakemake("--report", "report.zip").ok()
    with zipfile.ZipFile(done.path / "report.zip") as archive:
        names = [Path(name).name for name in archive.namelist()]
    assert "report.html" in names
    assert {"main.md", "comparisons.md", "benchmarks.md"} <= set(names)
    assert {"win_rate.svg", "score.svg", "training.svg", "benchmarks.svg"} <= set(names)
    assert "rounds.svg" not in names  # nothing of this grid is trained online
    assert {"report.json", "rows.svg", "lengths.svg", "examples.html"} <= set(names)


def test_the_report_opens_on_the_main_figure_and_table(done: Project) -> None:
    done.snakemake("--report", "report.html").ok()
    page = (done.path / "report.html").read_text()
    landing = json.loads(re.search(r"var workflow_desc = (.*);$", page, re.MULTILINE)[1])  # type: ignore[index]
    assert landing.count("data:image/svg+xml") == 2
    assert "SFT + KTO" in landing
    assert "<h2>Methods</h2>" in landing


def test_each_model_has_a_card_that_the_hub_reads(done: Project) -> None:
    index = (done.results / "cards/both/index.md").read_text()
    for method in ("sft-dpo", "sft-kto"):
        path = done.cell(method) / "model/README.md"
        assert str(path.relative_to(done.path)) in index
        card = ModelCard.load(path)
        judged = json.loads((done.cell(method) / "judged/j.json").read_text())
        wins = [r for r in card.data.eval_results if r.metric_type == "win_rate"]
        assert [r.metric_value for r in wins] == [pytest.approx(judged["win_rate"])]
        assert card.data.tags[-2:] == [method.removeprefix("sft-"), "sft"]
        assert json.loads((done.cell(method) / "manifest.json").read_text())["weights"] in card.text


def test_a_finished_run_verifies_and_a_changed_setting_is_named(done: Project) -> None:
    def verify() -> subprocess.CompletedProcess[str]:
        command = ["python", "-m", "halos", "verify", "results/runs/d/m/sft-kto/seed1"]
        return subprocess.run(command, cwd=done.path, env=done.environment(), capture_output=True, text=True)

    assert verify().returncode == 0
    done.edit({"stages.kto.beta": 0.3})
    changed = verify()
    assert changed.returncode == 1
    assert "stage.beta was 0.1 and is 0.3" in changed.stdout


def test_the_crate_of_a_grid_holds_what_its_metadata_says(done: Project, tmp_path: Path) -> None:
    done.snakemake("results/crates/both.zip").ok()
    shutil.unpack_archive(done.results / "crates/both.zip", tmp_path / "crate")
    crate = ROCrate(tmp_path / "crate")
    assert crate.mainEntity.id == "Snakefile"
    files = [entity for entity in crate.data_entities if entity.id != "Snakefile"]
    assert len(files) > 50
    for entity in files:
        assert entity["sha256"] == hash_file(tmp_path / "crate" / entity.id)
    trained = {entity.id for entity in crate.contextual_entities if entity.type == "CreateAction"}
    assert trained == {f"#train/d/m/{method}/seed1" for method in ("sft", "sft-dpo", "sft-kto")}
    assert "results/runs/d/m/base/seed1/judged/j.json" in {entity.id for entity in files}
    assert not [entity.id for entity in files if entity.id.endswith(".safetensors")]


# ---- what a change reruns -----------------------------------------------------------------------------------------


def test_a_changed_hyperparameter_reruns_the_cells_of_its_stage(done: Project) -> None:
    """`long` is a kto loss as well, but an entry of its own."""
    run = done.edit({"stages.kto.beta": 0.3}).dry("all", LONG)
    assert run.names == sorted([*of_cell("sft-kto"), *ANEW])


def test_a_changed_parent_reruns_what_comes_from_it_and_not_base(done: Project) -> None:
    run = done.edit({"stages.sft.lr": 2e-3}).dry("all")
    assert run.names == sorted([
        "configure runs/d/m/sft/seed1", "train_cell sft/seed1",
        "reference sft/seed1 responses", "reference sft/seed1 mismatched",
        *(name for method in ("sft-dpo", "sft-kto") for name in of_cell(method)
          if not name.startswith("configure")),
        *ANEW,
    ])  # fmt: skip


ANSWERED = ["configure answering/KEY", "answer base/seed1", "answer sft-dpo/seed1", "answer sft-kto/seed1"]
"""The choice of what is answered together, and the answers of each cell."""


@pytest.mark.parametrize(
    ("changes", "jobs"),
    [
        (
            {"stages.kto.label": "KTO", "models.m.label": "Little Llama", "grids.both.label": "Both"},
            ["configure grids/both", *REPORT],
        ),
        ({"models.m.resources": {"cpus": 2, "mem_gb": 3, "runtime": 9, "tokens_per_microbatch": 1024}}, []),
        ({"grids.third": {**CATALOGUE["grids"]["both"], "methods": ["sft", "sft-simpo"]}}, []),
        ({"stages.other": {"loss": "dpo", "beta": 0.5}, "models.n": CATALOGUE["models"]["m"]}, []),
        (
            {"prompts.p.max_new_tokens": 6},
            [
                "configure prompts/p",
                *ANSWERED,
                *(f"{rule} {cell}/seed1 {name}" for cell in ("base", "sft-dpo", "sft-kto")
                  for rule, name in (("sample", "p"), ("judge", "j"))),
                "decide KEY",  # of those that were judged together before
                "gather both",
                *REPORT,
            ],
        ),
        (
            {"tasks.t.limit": 5},
            [
                "configure tasks/t",
                *ANSWERED,
                *(f"task {cell}/seed1 t" for cell in ("base", "sft-dpo", "sft-kto")),
                "gather both",
                *REPORT,
            ],
        ),
    ],
    ids=["labels", "resources", "grid", "stage and model", "prompts", "task"],
)  # fmt: skip
def test_what_does_not_make_a_model_trains_none(done: Project, changes: dict[str, Any], jobs: list[str]) -> None:
    assert done.edit(changes).dry("all", LONG).names == sorted(jobs)


def test_another_grid_trains_only_the_cells_that_are_new(done: Project) -> None:
    done.edit({"grids.third": {**CATALOGUE["grids"]["both"], "methods": ["sft", "sft-kto", "sft-simpo"]}})
    run = done.dry("--config", "grid=third", "--", "train")
    assert [n for n in run.names if n.startswith(("train", "reference"))] == ["train_cell sft-simpo/seed1"]


def test_a_new_seed_trains_its_own_cells_only(done: Project) -> None:
    """A base model has no seed: the new one samples it, and trains nothing of it."""
    run = done.edit({"grids.both.seeds": [1, 2]}).dry("all")
    assert run.names == sorted([
        "configure grids/both",
        *of_cell("base", 2, trained=False), *of_cell("sft-dpo", 2), *of_cell("sft-kto", 2),
        "configure runs/d/m/sft/seed2", "train_cell sft/seed2",
        "reference sft/seed2 responses", "reference sft/seed2 mismatched",
        *ANEW,
    ])  # fmt: skip


def test_the_same_config_in_other_words_reruns_nothing(done: Project) -> None:
    """Comments, blank lines, the order of keys, and defaults that are spelled out."""
    content = done.read_config()
    content["stages"]["kto"] |= {"desirable_weight": 1.0, "epochs": 1}
    content = {key: content[key] for key in reversed(content)}
    text = yaml.safe_dump(content, sort_keys=False, indent=4)
    (done.path / "config.yaml").write_text("# a comment\n\n" + text.replace("\nstages:", "\n\n# stages\nstages:   \n"))
    assert not done.dry("all", LONG).jobs


def test_a_deleted_cell_is_rebuilt_alone(done: Project) -> None:
    shutil.rmtree(done.cell("sft-dpo"))
    assert done.dry("all", LONG).names == sorted([*of_cell("sft-dpo"), *ANEW])


def test_deleted_tables_and_figures_are_made_again_and_nothing_else(done: Project) -> None:
    table = (done.results / "tables/both/main.csv").read_bytes()
    shutil.rmtree(done.results / "tables")
    shutil.rmtree(done.results / "figures")
    run = done.snakemake("all").ok()
    assert run.names == [name for name in REPORT if "cards" not in name and "responses" not in name]
    assert (done.results / "tables/both/main.csv").read_bytes() == table


# ---- stopped in the middle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["the trainer is killed", "Ctrl-C"])
def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(
    study: tuple[Project, Run, Run], done: Project, how: str
) -> None:
    cell = done.cell("sft-long")
    shutil.rmtree(cell)
    with done.started(LONG) as (process, log):
        wait_for_checkpoint(process, cell, log)
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to snakemake and all that it started
        else:
            trainer = trainer_of(process)
            assert trainer is not None
            trainer.kill()
        assert process.wait(60) != 0, log.read_text()
    assert not (cell / "manifest.json").exists()
    assert not (cell / "model").exists()
    assert any((cell / "checkpoints").glob("step*"))

    again = done.snakemake(LONG).ok()
    assert [n for n in again.names if not n.startswith("configure")] == ["train_cell sft-long/seed1"]
    said = (done.results / "logs/train/d/m/sft-long/seed1.log").read_text()
    found = re.search(r"going on from step (\d+) of 100", said)
    assert found is not None, said
    assert 0 < int(found[1]) < 100

    uninterrupted = study[0].cell("sft-long")
    expected, got = weights(uninterrupted), weights(cell)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert steps(cell) == steps(uninterrupted)
    assert not (cell / "checkpoints").exists()


# ---- what fails before anything is trained ------------------------------------------------------------------------


def sentence(project: Project, log: str) -> str:
    """The one line that a failed rule's log ends with."""
    text = (project.results / "logs" / log).read_text()
    assert "Traceback" not in text
    [line] = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


def rows(path: Path, *more: dict[str, Any]) -> None:
    """Unpaired feedback: one response to a prompt, good or bad."""
    records = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} plus {n}?"}],
            "responses": [f"It is {2 * n}." if n % 2 else "No idea."],
            "desirable": [bool(n % 2)],
            "target": 0,
        }
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, *more]))


LOCAL = {"datasets.d.sources": [{"name": "local", "options": {"path": "mine.jsonl", "test_fraction": 0.3}}]}


def test_a_dataset_without_pairs_is_refused_before_the_sft_of_a_dpo_cell(fresh: Project) -> None:
    rows(fresh.path / "mine.jsonl")
    run = fresh.edit(LOCAL).snakemake("train").failed()
    assert "Error in rule check" in run.output
    assert run.rules & Counter(["train_cell", "reference"]) == Counter()
    assert sentence(fresh, "check/d/m/sft.log").startswith("error: dataset d has no rows for the paired view in its ")
    assert not (fresh.results / "runs/d/m/sft").joinpath("seed1/checkpoints").exists()


def test_a_bad_row_is_named_by_file_row_and_field(fresh: Project) -> None:
    rows(fresh.path / "mine.jsonl", {"prompt": [{"role": "user", "content": "Hi"}], "responses": "Hello"})
    run = fresh.edit(LOCAL).snakemake("train").failed()
    assert "Error in rule prepare" in run.output
    assert run.rules.keys() == {"configure", "prepare"}
    said = sentence(fresh, "prepare/d.log")
    assert "mine.jsonl" in said
    assert "row 61, field responses: " in said


def test_a_hub_model_that_cannot_be_reached_is_one_sentence_before_any_training(fresh: Project, tmp_path: Path) -> None:
    fresh.edit({"models.m": {"hub": "nobody/nothing", "precision": "fp32"}})
    run = fresh.snakemake("train", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub")).failed()
    assert "Error in rule fetch_model" in run.output
    assert run.rules.keys() <= {"configure", "prepare", "fetch_model"}
    assert "nobody/nothing" in sentence(fresh, "fetch/models/m.log")


def test_the_failed_command_shows_why_it_failed(fresh: Project) -> None:
    """The sentence of the log is on the screen as well."""
    (fresh.path / "mine.jsonl").write_text("{}\n")
    run = fresh.edit(LOCAL).snakemake("results/data/d/train.parquet").failed()
    assert sentence(fresh, "prepare/d.log") in run.output


def test_verbs_run_without_snakemake_on_what_it_made(done: Project) -> None:
    """The same command that the rule runs, typed by hand, writes the same file."""
    cell = done.cell("sft-kto")
    before = (cell / "judged/j.json").read_bytes()
    subprocess.run(
        ["python", "-m", "halos", "judge", "--config", "results/judges/j/config.yaml",
         "--samples", str(cell / "samples/p.jsonl"), "--feedback", "results/data/d/test.parquet",
         "--output", "again.json"],
        cwd=done.path, env=done.environment(), check=True, timeout=120,
    )  # fmt: skip
    assert (done.path / "again.json").read_bytes() == before
