"""docs/halos.md: each script of HALOs has a cell here, whose settings differ as the page says; its commands run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from halos.data.settings import Dataset
from halos.losses import Loss
from halos.models.settings import Model, Resources
from halos.online.settings import Labeller
from halos.registry import LOSSES
from halos.sample.settings import Prompts
from halos.scoring.settings import OpenAI
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.settings import Grid
from halos.train.settings import Lora
from halos.train.slices import stage_slice
from halos.train.stage import Stage
from tests.test_readme import README, block
from tests.workflow.conftest import CATALOGUE, ROOT, Project, Run
from tests.workflow.halos_scripts import SCRIPTS, SETTINGS, Script

CONFIG = C.load(ROOT / "config.yaml")
PAGE = (ROOT / "docs/halos.md").read_text()

pytestmark = pytest.mark.usefixtures("plugins_forgotten")


def section(heading: str) -> str:
    """The text under a heading of the page, up to the next one."""
    return re.split(r"^##+ ", PAGE.split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]


def rows(heading: str) -> list[list[str]]:
    """The cells of the rows of all tables under a heading."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    heads = {i + n for i, line in enumerate(lines) if line.startswith("|---") for n in (-1, 0)}
    return [[cell.strip() for cell in line.split("|")[1:-1]] for i, line in enumerate(lines) if i not in heads]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def cell_of(script: Script) -> Cell:
    return Cell(*script.cell.split("/"), 1)


def scorer_of(name: str) -> str:
    """What a labeller's `reward_model` is: a model of the hub, the loss that trains it, or a folder."""
    if name in CONFIG.models:
        return str(CONFIG.models[name].hub)
    last = name.rpartition("-")[-1]
    return CONFIG.stages[last].loss_name if last in CONFIG.stages else name


def settings_here(script: Script) -> dict[str, Any]:
    """The settings of a script's counterpart, by the names of tests/workflow/halos_scripts.py."""
    cell = cell_of(script)
    model, data = CONFIG.models[cell.model], CONFIG.datasets[cell.dataset]
    stage = CONFIG.stage(str(cell.stage), cell.model)
    content = stage_slice(stage)
    [source] = [source.name for source in data.sources]
    prompts = CONFIG.prompts["alpaca_eval"]
    assert prompts.dataset is not None
    found = {
        **content, **content["optimizer_args"], "model": model.hub, "data": source, "held_out": source,
        "start": cell.method.rpartition("-")[0] or "base", "precision": model.precision, "max_length": data.max_length,
        "max_prompt_length": data.max_prompt_length,
        **{f"samples.{name}": getattr(prompts, name) for name in ("temperature", "top_p", "max_new_tokens")},
        "samples.max_prompt_length": CONFIG.datasets[prompts.dataset].max_prompt_length,
    }  # fmt: skip
    if script.grid:
        grid = CONFIG.grids[script.grid]
        [judge] = grid.judges
        assert CONFIG.judges[judge].prompts == "alpaca_eval"
        asked = CONFIG.judges[judge].openai
        assert asked is not None
        found |= {"judge": asked.model or asked.annotator, "tasks": [CONFIG.tasks[task].task for task in grid.tasks],
                  "seeds": list(grid.seeds)}  # fmt: skip
    if stage.online is not None:
        labeller = CONFIG.labellers[stage.online.label]
        rounds = {"whole_sentences": False, **stage.online.model_dump(),
                  **labeller.model_dump(exclude=labeller.foreign)}  # fmt: skip
        rounds["warmup"] = "first round" if rounds.get("continue_optimizer") else "every round"
        rounds["scorer"] = scorer_of(str(labeller.reward_model))
        found |= {f"online.{name}": value for name, value in rounds.items()}
    return found


def shown(value: Any) -> str:
    """A value as the page writes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def differences(script: Script) -> set[tuple[str, str, str]]:
    """(setting, its value in HALOs, its value here); of tasks, those that are missing here."""
    here, found = settings_here(script), set()
    for name, theirs in script.all_settings.items():
        if name == "tasks":
            theirs = [task for task in theirs if task not in here[name]]
            here = {**here, name: []}
        if name == "seeds" and not script.grid:
            continue
        if name.startswith("online.") and name not in here:
            continue  # a setting that is not read with the feedback that a labeller gives here
        if here[name] != theirs:
            found.add((name, shown(theirs), shown(here[name])))
    return found


# ---- its scripts --------------------------------------------------------------------------------------------------

WHERE: dict[str, Callable[[Script], bool]] = {
    "all but PPO": lambda s: s.loss != "ppo",
    "that sample for AlpacaEval": lambda s: "samples.temperature" in s.settings,
    "that judge": lambda s: "judge" in s.settings,
    "PPO": lambda s: s.loss == "ppo",
    "online": lambda s: s.rounds is not None,
    "online from the instruction-tuned model": lambda s: s.rounds is not None and s.start == "base",
    "online DPO and KTO from the instruction-tuned model": lambda s: (
        s.rounds is not None and s.start == "base" and s.loss in ("dpo", "kto")
    ),
    "online GRPO": lambda s: s.rounds is not None and s.loss == "grpo",
    "online PPO": lambda s: s.rounds is not None and s.loss == "ppo",
}
"""What a row of the page says about the scripts that it is true of."""


def test_the_page_has_each_script_with_its_cell_and_the_grid_that_holds_it() -> None:
    wanted = [[f"`{s.name}`", s.arguments, f"`{s.grid}`" if s.grid else "", f"`{s.cell}`"] for s in SCRIPTS]
    assert len(wanted) == 25
    assert sorted(rows("Its scripts")) == sorted(wanted)
    for script in SCRIPTS:
        if script.grid:
            cell, grid = cell_of(script), CONFIG.grids[script.grid]
            assert (cell.dataset, cell.model, cell.method) in [
                (d, m, method) for d in grid.datasets for m in grid.models for method in grid.methods
            ]


def test_settings_differ_from_those_of_the_scripts_as_the_page_says() -> None:
    found = defaultdict(set)
    for script in SCRIPTS:
        for difference in differences(script):
            found[difference].add(script.name)
    said = {}
    for name, theirs, here, where, _ in rows("Settings that differ"):
        scripts = {script.name for script in SCRIPTS if where in WHERE and WHERE[where](script)}
        said[name.strip("`"), theirs, here] = scripts or set(code(where))
    assert said == found


@pytest.fixture(scope="module")
def planned(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A dry run of all cells, with a reward model's small files in the place of each local one."""
    local = project.copy(tmp_path_factory.mktemp("scripts") / "project")
    for folder in {labeller.folder for labeller in CONFIG.labellers.values() if labeller.folder is not None}:
        (local.path / folder).mkdir(parents=True)
        classifier = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}}
        (local.path / folder / "config.json").write_text(json.dumps(classifier))
        (local.path / folder / "chat_template.jinja").touch()
    return local.dry(*sorted({f"results/runs/{script.cell}/seed1/manifest.json" for script in SCRIPTS}))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_dry_run_trains_the_cell_of_each_script(script: Script, planned: Run) -> None:
    cell, rounds = cell_of(script), (script.rounds or {}).get("rounds")
    of_jobs = [(job.rule, job.wildcards) for job in planned.jobs if "method" in job.wildcards]
    here = (cell.dataset, cell.model)
    jobs = [(rule, w["method"], w["run"]) for rule, w in of_jobs if (w["dataset"], w["model"]) == here]
    if script.start != "base":
        assert ("train_cell", script.start, "seed1") in jobs
    if script.rounds is None:
        assert ("train_cell", cell.method, "seed1") in jobs
        return
    assert ("join", cell.method, "seed1") in jobs
    found = [run for rule, method, run in jobs if rule == "train_round" and method == cell.method]
    online = CONFIG.stage(str(cell.stage), cell.model).online
    assert online is not None
    assert sorted(found) == [f"seed1/round{i + 1}" for i in range(rounds if isinstance(rounds, int) else online.rounds)]


def test_a_model_on_several_nodes_is_launched_on_them(project: Project) -> None:
    script = next(script for script in SCRIPTS if script.name == "launch_multinode_batch.sh")
    nodes = f"models={{{cell_of(script).model}: {{resources: {{nodes: 2}}}}}}"
    run = project.dry("--profile", "slurm", "--config", nodes, "--", f"results/runs/{script.cell}/seed1/manifest.json")
    [job] = [job for job in run.jobs if job.rule == "train_cell"]
    assert (job.resources["mpi"], job.resources["nodes"]) == ("srun", "2")


@pytest.mark.parametrize(("model", "kind"), [("llama-3-8b", "llama"), ("qwen2.5-3b-instruct", "qwen2")])
def test_the_size_of_a_model_is_that_of_its_architecture(model: str, kind: str) -> None:
    size, of_a_head = CONFIG.models[model].size, 128
    assert size is not None
    assert size.key_value_size is not None
    config = AutoConfig.for_model(
        kind, hidden_size=size.hidden_size, intermediate_size=size.intermediate_size, num_hidden_layers=size.layers,
        num_attention_heads=size.hidden_size // of_a_head, num_key_value_heads=size.key_value_size // of_a_head,
        vocab_size=size.vocab_size, tie_word_embeddings=size.tied,
    )  # fmt: skip
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    assert size.parameters == sum(p.numel() for p in made.parameters())


# ---- its settings -------------------------------------------------------------------------------------------------

ENTRIES: dict[str, tuple[type[Any], ...]] = {
    "grid": (Grid,), "dataset": (Dataset,), "model": (Model,), "resources": (Resources,), "stage": (Stage, Lora),
    "prompts": (Prompts,), "labeller": (Labeller, OpenAI),
}  # fmt: skip


def fields(entry: str) -> set[str]:
    """The settings of a kind of entry, the hyperparameters of losses among those of a stage."""
    kinds: list[type[Loss]] = [LOSSES[name] for name in LOSSES] if entry == "stage" else []
    own = {name for kind in ENTRIES[entry] for name in kind.model_fields}
    return own | {f.name for kind in kinds for f in dataclasses.fields(kind)}


def test_each_setting_of_halos_is_on_the_page() -> None:
    said = [name for row in rows("Its settings") for name in code(row[0])]
    assert len(said) == len(SETTINGS)
    assert sorted(said) == sorted(SETTINGS)


@pytest.mark.parametrize("row", [row for row in rows("Its settings") if row[2]], ids=lambda row: row[0])
def test_each_setting_that_the_page_names_exists(row: list[str]) -> None:
    names = [name for name in code(row[1]) if re.fullmatch(r"[a-z_]+", name)]
    assert names
    assert set(names) - {"scalar", "sft"} <= set.union(*map(fields, row[2].split(", ")))


# ---- its README ---------------------------------------------------------------------------------------------------

TOY = {"name": "toy", "options": {"prompts": 200, "test_prompts": 24}}
SMALL: dict[str, Any] = {
    "grid": "g",
    "models": {
        "llama-3-8b": {**CATALOGUE["models"]["m"], "tokenizer": {"train_on": "ultrafeedback", "vocab_size": 512}}
    },
    "datasets": {"ultrafeedback": {**CATALOGUE["datasets"]["d"], "sources": [TOY]}},
    "stages": {
        **{name: CATALOGUE["stages"][name] for name in ("sft", "kto", "dpo")},
        "rm": {"loss": "bradley_terry", "lr": 1e-3, "batch_size": 8, "examples": 32},
        "dpo_online": {"loss": "dpo", "lr": 1e-3, "batch_size": 8, "online": {
            "rounds": 1, "prompts_per_round": 8, "samples_per_prompt": 4, "label": "sft_rm_pairs", "eval_prompts": 4,
            "max_new_tokens": 8}},
    },
    "prompts": {"alpaca_eval": {"limit": 8, "max_new_tokens": 8}},
    "labellers": {"sft_rm_pairs": CONFIG.labellers["sft_rm_pairs"].model_dump(exclude_unset=True)},
    "judges": {"alpaca_eval_2": {"kind": "verifier", "verifier": "toy", "prompts": "alpaca_eval"}},
    "tasks": {"arc_easy": {"local": "preferences", "limit": 10}},
    "grids": {"g": {"datasets": ["ultrafeedback"], "models": ["llama-3-8b"], "methods": ["sft"]}},
}  # fmt: skip
"""Entries of config.yaml by the same names, of seconds."""

BLOCKS = re.findall(r"```(bash|yaml)\n(.*?)```", section("Its README, from top to bottom"), re.DOTALL)


def shrunk(kind: str, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the page as it runs here in seconds."""
    if kind == "models":
        return {**entry, "precision": "fp32", "resources": SMALL["models"]["llama-3-8b"]["resources"]}
    if kind == "datasets":
        sources = [TOY if source["name"] == "ultrabin" else source for source in entry["sources"]]
        return {**SMALL["datasets"]["ultrafeedback"], "sources": sources}
    if kind == "prompts":
        return {**entry, "limit": 16, "max_new_tokens": 8}
    return entry


def with_entries(content: dict[str, Any], more: dict[str, Any], small: bool) -> dict[str, Any]:
    """A catalogue with the entries of a block of the page."""
    merged = {**content, "plugins": [*content.get("plugins", []), *more.pop("plugins", [])]}
    for kind, entries in more.items():
        shown = {name: shrunk(kind, name, entry) if small else entry for name, entry in entries.items()}
        merged[kind] = {**merged[kind], **shown}
    return merged


def test_the_entries_of_the_page_are_ones_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_losses.py").write_text(block(README, "python", "class DummyKTO"))
    content = yaml.safe_load((ROOT / "config.yaml").read_text())
    for language, text in BLOCKS:
        if language == "yaml":
            content = with_entries(content, yaml.safe_load(text), small=False)
    [archangel] = [text for row in rows("Its README, from top to bottom") for text in code(row[1]) if "hub:" in text]
    assert set(C.load(with_entries(content, yaml.safe_load(archangel), small=False)).models) > {"my-sft", "archangel"}


def test_the_answers_to_questions_name_settings_that_exist() -> None:
    answers = [text for row in rows("Its README, from top to bottom") for text in code(row[1])]
    named = {name: set(yaml.safe_load(f"{{{text.rstrip(':')}}}")) for text in answers
             if (name := text.split(":")[0]) and re.fullmatch(r"[a-z_]+:.*", text) and name != "models"}  # fmt: skip
    assert set(named) == {"nodes", "resources", "keep_every", "checkpoint_every", "lora", "attention"}
    assert set.union(*named.values()) <= set.union(*map(fields, ENTRIES))
    assert "\nenv: $(ENV)\n" in (ROOT / "Makefile").read_text()


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_their_order(warm: Project, tmp_path: Path) -> None:
    """On models and data of seconds, with the names that the page has; those of a block side by side, to save time.

    It is slow because all twelve are real: some forty jobs, most of which import torch.
    """
    project = warm.copy(tmp_path / "project")
    (project.path / "my_losses.py").write_text(block(README, "python", "class DummyKTO"))
    (project.path / "data").mkdir(exist_ok=True)
    feedback = [
        {"type": "binary_feedback", "prompt_id": i, "prompt": [{"role": "user", "content": f"What is {i} plus 1?"}],
         "output": [{"role": "assistant", "content": str(i + 1 + i % 2)}], "label": 1 - i % 2, "reward": 1.0 - i % 2}
        for i in range(40)
    ]  # fmt: skip
    (project.path / "data/binary_feedback.json").write_text(json.dumps(feedback))
    (project.path / "data/prompts.json").write_text(json.dumps(["What is 1 plus 1?", "Name a colour."]))
    content = SMALL
    project.write_config(content)
    made = []
    for language, text in BLOCKS:
        if language == "yaml":
            content = with_entries(content, yaml.safe_load(text), small=True)
            project.write_config(content)
            continue
        commands = [shlex.split(line) for line in text.splitlines()]
        [program] = {program for program, *_ in commands}
        if program == "python":
            for command in commands:
                subprocess.run([sys.executable, *command[1:]], cwd=project.path, env=project.environment(), check=True)
            files = [command[command.index("--output") + 1] for command in commands]
        else:
            assert program == "snakemake"
            files = [path for _, *paths in commands for path in paths]
            project.snakemake(*files, timeout=600).ok()
        assert [path for path in files if not (project.path / path).is_file()] == []
        made += files
    assert len(made) == 12
    report = json.loads((project.results / "data/mine/report.json").read_text())
    assert {source["name"] for source in report["train"]["sources"]} == {"toy", "local"}
