"""What snakemake would run: nothing here is trained."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig

from halos.study.catalogue import load
from halos.study.cells import Cell
from halos.study.paths import Paths
from halos.study.study import Study
from tests.workflow.conftest import CATALOGUE, ROOT, Job, Project, Run

CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
RULES = sorted((ROOT / "rules").glob("*.smk"))
TARGETS = ("all", "train", "samples", "judged", "tasks", "tables", "figures")
TRAININGS = {"train_cell", "train_round"}
OVER_ALL_GPUS = {*TRAININGS, "reference", "reference_round"}
GPU_RULES = {*OVER_ALL_GPUS, "sample_round", "answer"}


@pytest.fixture(scope="session")
def demo(project: Project) -> Run:
    return project.dry("all")


# ---- the project's own config -------------------------------------------------------------------------------------


def test_the_demo_grid_is_so_many_jobs_of_each_rule(demo: Run) -> None:
    """base, sft and eleven methods from sft, one of them online, with two seeds, and a reward model for each seed."""
    rounds = 2 * 3
    assert demo.rules == {
        # data, model, store; base; what is trained; a round with its two prompt sets; prompts, judge, labeller, tasks,
        # grid; what each cell, and what each judged round, answers; what is judged together
        "configure": 3 + 2 + 26 + 3 * rounds + 6 + 2 + 1,
        "prepare": 1, "model": 1, "tokenize": 1, "check": 5, "describe": 1,
        "train_cell": 2 * 12,
        "reference": 2 * 3,  # of each sft both parts; of each reward model its scores
        "sample_round": rounds, "label_round": rounds, "tokenize_round": rounds, "reference_round": rounds,
        "train_round": rounds, "join": 2,
        # two rounds of each seed are judged beside their cell
        "answer": 26 + 4, "sample": 26 + 4, "decide": 1, "judge": 26 + 4, "task": 52,
        "gather": 1, "make_tables": 1, "draw_figures": 1, "write_overview": 1, "write_responses": 1, "write_cards": 1,
        "all": 1,
    }  # fmt: skip


def test_a_base_model_is_sampled_for_each_seed_but_its_reference_is_made_once(project: Project, demo: Run) -> None:
    def of_base(run: Run) -> list[str]:
        return [n for n in run.names if re.match(r"reference|train_cell|sample", n) and " base/" in n]

    assert of_base(demo) == ["sample base/seed1 held_out", "sample base/seed2 held_out"]
    wanted = [f"results/runs/toy/tiny/kto/seed{seed}/manifest.json" for seed in (1, 2)]
    assert of_base(project.dry(*wanted)) == ["reference base/seed0 mismatched", "reference base/seed0 responses"]


@pytest.mark.parametrize("profile", ["slurm", "profiles/lsf", "profiles/generic"])
def test_a_clusters_profile_runs_as_typed_with_the_same_jobs(profile: str, project: Project, demo: Run) -> None:
    assert project.dry("--profile", profile, "all").names == demo.names


@pytest.mark.parametrize("grid", sorted(CONFIG["grids"]))
def test_every_grid_of_the_config_resolves_or_names_the_local_file_that_it_lacks(project: Project, grid: str) -> None:
    run = project.snakemake("-n", "--config", f"grid={grid}", "--", "all", timeout=120)
    if run.code:
        kinds = ("models.", "datasets.", "labellers.", "judges.")
        [line] = [line for line in run.failed().output.splitlines() if line.startswith(kinds)]
        assert re.search(r"wants \S+, which does not exist|there is no (reward )?model in \S+", line), run.output
        return
    g = CONFIG["grids"][grid]
    cells = len(g["datasets"]) * len(g["models"]) * len(g["methods"]) * len(g.get("seeds", [1]))
    online = [CONFIG["stages"][m.rsplit("-", 1)[-1]]["online"]["rounds"] - 1 for m in g["methods"] if "_online" in m]
    rounds = sum(online) * len(g.get("seeds", [1]))
    assert run.rules["judge"] + run.rules["ask"] == (cells + rounds) * len(g.get("judges", ()))
    assert run.rules["task"] == cells * len(g.get("tasks", ()))
    assert run.rules["make_tables"] == run.rules["draw_figures"] == 1


@pytest.mark.parametrize("study", sorted(path.name for path in (ROOT / "studies").glob("*.yaml")))
def test_every_study_beside_the_config_resolves_and_is_planned(study: str, project: Project, tmp_path: Path) -> None:
    local, files = project.copy(tmp_path / "project"), ("config.yaml", f"studies/{study}")
    (local.path / "data").mkdir(exist_ok=True)
    for name in ("alpaca_eval_gpt4_baseline.json", "df_gamed.csv"):
        (local.path / "data" / name).touch()
    AutoConfig.for_model("llama").save_pretrained(local.path / "models/SmolLM2-135M-Instruct")
    grid = yaml.safe_load((local.path / files[1]).read_text())["grid"]
    trials = Study(load(*(local.path / file for file in files))).tried
    run = local.snakemake("-n", "--configfile", *files, "--", "all", timeout=120).ok()
    tried = {job.wildcards["method"] for job in run.jobs if job.rule in ("train_cell", "join")}
    assert {trial.method for trial in trials} <= tried
    command = [sys.executable, "-m", "halos", "plan", "--config", *files]
    planned = subprocess.run(
        command, cwd=local.path, env=local.environment(), check=True, capture_output=True, text=True
    )
    assert f"# Plan of {grid}" in planned.stdout


def test_grids_whose_files_are_there_resolve(project: Project, tmp_path: Path) -> None:
    """Files without content in the place of local models and data: a dry run looks no further than at their names."""
    local = project.copy(tmp_path / "project")
    for model in CONFIG["models"].values():
        if path := model.get("path"):
            (local.path / path).mkdir(parents=True)
            (local.path / path / "config.json").write_text("{}")
    for dataset in CONFIG["datasets"].values():
        for source in dataset["sources"]:
            path = source.get("options", {}).get("path", {})
            for file in path.values() if isinstance(path, dict) else [path]:
                (local.path / file).parent.mkdir(parents=True, exist_ok=True)
                (local.path / file).touch()
    for grid, entry in CONFIG["grids"].items():
        kinds = [*(CONFIG["models"][m] for m in entry["models"]), *(CONFIG["datasets"][d] for d in entry["datasets"])]
        if "path" in str(kinds):
            assert local.dry("--config", f"grid={grid}", "--", "all").rules["make_tables"] == 1


TRAINED = {"train_cell": 3, "reference": 2}

# ---- targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "rules"),
    [
        ("train", TRAINED),
        ("samples", {**TRAINED, "answer": 3, "sample": 3}),
        ("judged", {**TRAINED, "answer": 3, "sample": 3, "decide": 1, "judge": 3}),
        ("tasks", {**TRAINED, "answer": 3, "task": 3}),
        (
            "tables",
            {**TRAINED, "answer": 3, "sample": 3, "decide": 1, "judge": 3, "task": 3, "gather": 1, "make_tables": 1},
        ),
        (
            "figures",
            {**TRAINED, "answer": 3, "sample": 3, "decide": 1, "judge": 3, "task": 3, "gather": 1, "draw_figures": 1},
        ),
    ],
)
def test_a_target_is_its_phase_and_what_comes_before_it(small: Project, target: str, rules: dict[str, int]) -> None:
    """base, sft-dpo and sft-kto, and the sft that both come from."""
    once = dict.fromkeys(("prepare", "model", "tokenize", target), 1) | {
        "check": 3
    }  # of the sft, paired, unpaired views
    found = small.dry(target).rules
    del found["configure"]
    assert found == once | rules


@pytest.mark.parametrize(
    ("target", "prompts", "tasks"),
    [
        ("tables", 2, 1),
        ("figures", 2, 1),
        ("results/reports/pair/overview.html", 2, 1),
        ("results/reports/pair/responses.html", 2, 0),
        ("results/cards/pair/index.md", 1, 1),
    ],
)
def test_a_cell_answers_all_that_a_target_needs_and_no_more_by_one_load(
    fresh: Project, target: str, prompts: int, tasks: int
) -> None:
    """One prompt set is judged; the other is read by tables, pages, and figures of the divergence."""
    more = {"unjudged": {"limit": 4, "max_new_tokens": 8}}
    fresh.edit({"grid": "pair", "prompts": {**CATALOGUE["prompts"], **more}, "grids.pair.prompts": ["unjudged"],
                "grids.pair.divergence": 4, "tasks.t.split": "validation"})  # fmt: skip
    run = fresh.dry(target)
    [answer] = [job for job in run.jobs if job.rule == "answer"]
    assert (run.rules["sample"], run.rules["task"]) == (prompts, tasks)
    assert "results/data/d/test.parquet" in answer.input
    assert ("results/data/d/validation.parquet" in answer.input) == bool(tasks)  # of which the task is made


def test_one_path_is_one_chain(project: Project) -> None:
    run = project.dry("results/runs/toy/tiny/sft-kto/seed2/judged/toy_verifier.json")
    assert run.names == [
        "answer sft-kto/seed2",
        "check toy/tiny/sft",
        "check toy/tiny/unpaired",
        "configure answering/KEY",
        "configure data/toy",
        "configure judges/toy_verifier",
        "configure judging/KEY",
        "configure models/tiny",
        "configure runs/toy/tiny/sft-kto/seed2",
        "configure runs/toy/tiny/sft/seed2",
        "configure tokens/toy/tiny",
        "decide KEY",
        "judge sft-kto/seed2 toy_verifier",
        "model tiny",
        "prepare toy",
        "reference sft/seed2 mismatched",
        "reference sft/seed2 responses",
        "sample sft-kto/seed2 held_out",
        "tokenize toy/tiny",
        "train_cell sft-kto/seed2",
        "train_cell sft/seed2",
    ]


def test_the_rules_make_what_the_paths_of_the_package_name(small: Project) -> None:
    paths, cell = Paths(), Cell("d", "m", "sft-dpo", 1)
    run, data, store, model = paths.run(cell), paths.data("d"), paths.store("d", "m"), paths.model("m")
    wanted = [
        data.train, data.validation, data.test, data.report, store.store, store.report, store.checked("paired"),
        model.model, model.manifest, run.model, run.manifest, run.log, run.samples("p"), run.judged("j"), run.task("t"),
        run.divergence("p", 8), run.rewards("d"),
        run.reference("responses"), store.scores("m"), paths.tables("both") / "main.md",
        paths.figures("both") / "win_rate.svg",
        paths.description("d", "m") / "report.json", paths.overview("both") / "overview.html", paths.responses("both"),
        paths.cards("both") / "index.md", paths.crate("both"),
        *(folder.config for folder in (data, store, model, run, paths.prompts("p"), paths.judge("j"), paths.task("t"),
                                       paths.grid("both"))),
    ]  # fmt: skip
    made = {path for job in small.dry(*map(str, wanted)).jobs for path in job.fields.get("output", "").split(", ")}
    assert {str(path) for path in wanted} - made == set()


def test_a_grid_that_asks_for_it_has_the_divergence_of_each_trained_policy(fresh: Project) -> None:
    jobs = [job for job in fresh.edit({"grids.both.divergence": 4}).dry("all").jobs if job.rule == "divergence"]
    parent = "results/runs/d/m/sft/seed1/model"
    assert {job.name: parent in job.input for job in jobs} == {
        "divergence sft-dpo/seed1 p": True, "divergence sft-kto/seed1 p": True
    }  # fmt: skip


def test_a_grid_with_a_preference_set_has_the_rewards_of_policies_and_reward_models(fresh: Project) -> None:
    """A policy is read with its reference; a reward model is not, and neither is a judge's."""
    fresh.edit({
        "stages.rm": {"loss": "bradley_terry", "lr": 1e-3, "batch_size": 8, "examples": 32},
        "datasets.pairs": {"sources": [{"name": "toy", "options": {"prompts": 40, "test_prompts": 8}}]},
        "judges.by_rm": {"kind": "reward_model", "reward_model": "rm", "prompts": "p"},
        "grids.both": {"datasets": ["d"], "models": ["m"], "methods": ["base", "sft-dpo"], "reward_models": ["sft-rm"],
                       "judges": ["by_rm"], "preference_sets": ["pairs"]},
    })  # fmt: skip
    jobs = [job for job in fresh.dry("all").jobs if job.rule == "rewards"]
    parent = "results/runs/d/m/sft/seed1/model"
    assert {(job.name, parent in job.input, "results/data/pairs/test.parquet" in job.input) for job in jobs} == {
        ("rewards sft-dpo/seed1", True, True), ("rewards sft-rm/seed1", False, True),
        ("rewards rm/seed1", False, True)
    }  # fmt: skip


# ---- what is made from test prompts -------------------------------------------------------------------------------


def upstream(run: Run, job: Job) -> set[str]:
    """All files that a job is made from, those of the jobs before it included."""
    made_by = {file: other for other in run.jobs for file in other.fields.get("output", "").split(", ")}
    files: set[str] = set()
    waiting = [job]
    while waiting:
        for file in set(filter(None, waiting.pop().input)) - files:
            files.add(file)
            if file in made_by:
                waiting.append(made_by[file])
    return files


@pytest.mark.parametrize("evaluate", ["fresh", "dataset"])
def test_nothing_that_trains_is_made_from_test_prompts(fresh: Project, evaluate: str) -> None:
    """Rounds with both kinds of evaluation, reward models of both kinds, and a reference of another model."""
    rounds = {"rounds": 2, "prompts_per_round": 4, "label": "l", "evaluate": evaluate}
    run = fresh.edit({
        "models.other": CATALOGUE["models"]["m"] | {"tokenizer": {"from": "m"}},
        "models.theirs": {"hub": "some/reward-model"},
        "labellers": {"l": {"kind": "verifier", "verifier": "toy", "feedback": "binary"}},
        "stages": {
            **CATALOGUE["stages"], "kto_on": {"loss": "kto", "online": rounds}, "rm": {"loss": "bradley_terry"},
            "ppo": {"loss": "ppo", "reward": "score", "reward_model": "theirs"},
            "ppo_rm": {"loss": "ppo", "reward": "score", "reward_model": "sft-rm"},
            "far": {"loss": "dpo", "reference": "other"},
        },
        "grids.both.methods": ["sft-dpo", "sft-kto_on", "sft-ppo", "sft-ppo_rm", "far"],
        "grids.both.reward_models": ["sft-rm"],
    }).dry("all")  # fmt: skip
    training = {*TRAININGS, "label_round", "sample_round", "tokenize", "tokenize_round", "reference", "reference_round",
                "reference_of_model", "score", "join", "check"}  # fmt: skip
    found = {job.rule: upstream(run, job) for job in run.jobs if job.rule in training}
    assert found.keys() == training
    assert [rule for rule, files in found.items() if any(Path(file).name == "test.parquet" for file in files)] == []
    assert all("results/data/d/validation.parquet" in files for files in found.values())
    [answer, *_] = [job for job in run.jobs if job.rule == "answer"]
    assert "results/data/d/test.parquet" in answer.input


# ---- prompts of another dataset -----------------------------------------------------------------------------------


def test_training_data_is_compared_with_the_prompts_of_another_dataset(small: Project, tmp_path: Path) -> None:
    other = {"sources": [{"name": "toy", "options": {"prompts": 30, "test_prompts": 20, "seed": 1}}]}
    changes = {"datasets.other": other, "prompts.p.dataset": "other", "grids.both.methods": ["sft-dpo"]}
    run = small.copy(tmp_path / "project").edit(changes).dry("tables")
    [job] = [job for job in run.jobs if job.rule == "overlap"]
    assert job.fields["output"] == "results/data/d/overlap/other/test.json"
    assert sorted(job.input) == ["results/data/d/train.parquet", "results/data/other/test.parquet"]
    [tables] = [job for job in run.jobs if job.rule == "make_tables"]
    assert job.fields["output"] in tables.input


# ---- what is refused before any job -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stages.kto.bta": 0.1}, r"stages\.kto: 'bta' is neither .*; did you mean 'beta'\?"),
        ({"models.m.precison": "fp32"}, r"models\.m\.precison: unknown key; did you mean 'precision'\?"),
        (
            {"grids.both.methods": ["sft-ktoo"]},
            r"grids\.both\.methods: sft-ktoo: there is no 'ktoo' in stages.*'kto'\?",
        ),
        (
            {"stages.rm": {"loss": "bradley_terry"}, "grids.both.methods": ["sft-rm"]},
            r"grids\.both\.methods: sft-rm ends in a reward model, which answers no prompts: name it in reward_models",
        ),
        ({"grid": "bth"}, r"grid: there is no 'bth' in grids; did you mean 'both'\?"),
        (
            {"datasets.d.sources": [{"name": "local", "options": {"path": "mine.jsonl"}}]},
            r"datasets\.d: source local wants mine\.jsonl, which does not exist",
        ),
        ({"models.m": {"path": "models/mine"}}, r"models\.m: there is no model in models/mine .*"),
        ({"trackers": ["wand"]}, r"trackers\.0: .*'wandb'.*"),
    ],
)
def test_a_mistake_in_the_config_is_one_sentence_before_any_job(
    fresh: Project, changes: dict[str, Any], sentence: str
) -> None:
    run = fresh.edit(changes).snakemake("all", timeout=60).failed()
    assert len([line for line in run.output.splitlines() if re.fullmatch(sentence, line)]) == 1, run.output
    assert not run.jobs
    assert not fresh.results.exists()


@pytest.mark.parametrize(
    "path",
    [
        "runs/d/m/sft-ktoo/seed1/manifest.json",
        "runs/d/m/sft/seedx/manifest.json",
        "runs/d/other/sft/seed1/manifest.json",
        "runs/d/m/base/seed1/manifest.json",
        "tables/other/main.md",
    ],
)
def test_a_path_of_an_id_that_the_config_lacks_is_made_by_no_rule(small: Project, path: str) -> None:
    run = small.snakemake("-n", f"results/{path}", timeout=60).failed()
    assert "MissingRuleException" in run.output


# ---- what is in force ---------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_files_and_models_and_a_line_names_what_has_no_effect(fresh: Project) -> None:
    cell = "results/runs/d/m/sft-kto/seed1/config.yaml"

    def kto(*arguments: str) -> tuple[dict[str, Any], str]:
        run = fresh.snakemake(*arguments, "--", cell, timeout=60).ok()
        stage: dict[str, Any] = yaml.safe_load((fresh.path / cell).read_text())["stage"]
        return stage, run.output

    # as config.yaml may have it: two stages that share the anchor of one entry
    text = yaml.safe_dump({**CATALOGUE, "models": {"m": CATALOGUE["models"]["m"]}}, sort_keys=False)
    own = "    stages: { dpo: &own { lr: 1.e-4, beta: 0.4 }, kto: *own }\n"
    (fresh.path / "config.yaml").write_text(text.replace("  m:\n", f"  m:\n{own}", 1))
    stage, output = kto()
    assert (stage["lr"], stage["beta"]) == (1e-4, 0.4)
    assert output.count("without effect in the grid both: stages.dpo.lr, stages.kto.lr;") == 1
    (fresh.path / "more.yaml").write_text("stages: { kto: { lr: 2.e-5 } }")
    assert kto("--configfile", "more.yaml")[0]["lr"] == 2e-5
    changes = ("--config", "stages={kto: {lr: 1e-5}}", "models={m: {stages: {dpo: {beta: 0.7}}}}")
    stage, output = kto("--configfile", "more.yaml", *changes)
    assert (stage["lr"], stage["beta"]) == (1e-5, 0.4)
    assert "without effect in the grid both: stages.dpo.lr;" in output


def test_a_model_without_an_entry_is_run_by_the_whole_grid(project: Project) -> None:
    run = project.dry("--config", "model=owner/mine", "--", "all")
    assert {job.wildcards["model"] for job in run.jobs if "model" in job.wildcards} == {"owner--mine"}
    assert run.rules["train_cell"] == 2 * 12
    assert run.rules["fetch_model"] == 1
    run = project.snakemake("-n", "--config", "model=tinyy", "--", "all", timeout=60).failed()
    assert re.search(r"^model: 'tinyy' is no id of models, .*; did you mean 'tiny'\?$", run.output, re.MULTILINE)


# ---- resources ----------------------------------------------------------------------------------------------------


def test_gpus_memory_and_time_of_a_job_are_those_of_its_model(project: Project) -> None:
    entry = 'models={"tiny": {"resources": {"gpus": 2, "cpus": 8, "mem_gb": 48, "runtime": 90}}}'
    run = project.dry("--profile", "slurm", "--config", entry, "--", "all")
    assert {job.rule for job in run.jobs if job.resources.get("gres")} == GPU_RULES
    for job in run.jobs:
        if job.rule in GPU_RULES:
            assert job.resources["gres"] == ("gpu:2" if job.rule in OVER_ALL_GPUS else "gpu:1")
            assert not {"mpi", "nodes", "tasks"} & job.resources.keys()
            assert (job.resources["mem_mb"], job.resources["runtime"]) == ("48000", "90")
            # (threads would be cut down to the cores of the machine that submits)
            assert (job.resources["slurm_partition"], job.resources["cpus_per_task"]) == ("gpu", "8")
    launchers = {job.resources["launch"] for job in run.jobs if job.rule in OVER_ALL_GPUS}
    assert launchers == {"--nodes 1 --gpus 2 --parallel ddp --cpus 8"}


def test_trainings_and_reference_passes_alone_go_over_nodes(project: Project) -> None:
    entry = 'models={"tiny": {"resources": {"gpus": 2, "nodes": 3}}}'
    run = project.dry("--profile", "slurm", "--config", entry, "--", "all")
    names = ("mpi", "nodes", "tasks", "tasks_per_gpu")
    asked = {job.rule: tuple(map(job.resources.get, names)) for job in run.jobs if "nodes" in job.resources}
    assert asked == dict.fromkeys(OVER_ALL_GPUS, ("srun", "3", "3", "0"))


def test_a_model_without_gpus_asks_for_none_and_trains_in_one_process(demo: Run) -> None:
    assert {job.resources.get("gres", "") for job in demo.jobs} == {""}
    assert {job.resources["launch"] for job in demo.jobs if job.rule == "train_cell"} == {
        "--nodes 1 --gpus 0 --parallel ddp --cpus 1"
    }
