"""`sample` and `label` by hand: any model folder, any file of prompts or samples, a few options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from halos.cli import main
from halos.data import feedback as F
from halos.data.feedback import prompt_id
from halos.pretrained import TRUSTED, keep_code
from halos.sample.by_hand import read_prompts, samples_of
from halos.sample.samples import read_samples
from tests.conftest import World
from tests.models.code import with_code

ASKED = [{"role": "user", "content": "What is 2 + 2?"}]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def sampled(world: World, prompts: Path, output: Path, *options: object) -> Path:
    words = ["sample", "--model", world.base / "model", "--prompts", prompts, "--output", output]
    assert main([*map(str, words), "--max-new-tokens", "6", *map(str, options)]) == 0
    return output


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([*map(str, words)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error.splitlines()[-1].removeprefix("error: ")


# ---- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        "What is 2 + 2?",
        {"prompt": "What is 2 + 2?"},
        {"prompt": ASKED, "responses": ["4"], "target": 0},
        {"messages": [*ASKED, {"role": "assistant", "content": "4"}]},
        {"conversations": [{"from": "human", "value": "What is 2 + 2?"}]},
        {"instruction": "What is 2 + 2?", "input": "", "output": "4"},
        {"question": "What is 2 + 2?", "answer": "4"},
        {"type": "sample", "prompt_id": "x", "prompt": ASKED, "output": "4"},
        ASKED,
    ],
)
def test_a_prompt_is_read_in_whichever_form_it_is(row: Any, tmp_path: Path) -> None:
    [record] = read_prompts(write(tmp_path / "prompts.json", [row]))
    assert record.prompt == ASKED
    assert record.prompt_id == prompt_id(ASKED)


def test_prompts_keep_their_order_and_are_asked_once(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.json", ["c", "a", {"instruction": "b", "input": "more"}, "a", "d"])
    texts = [record.prompt[-1]["content"] for record in read_prompts(path)]
    assert texts == ["c", "a", "b\n\nmore", "d"]
    assert len(read_prompts(path, 2)) == 2


def test_the_records_of_the_workflow_are_prompts_too(world: World) -> None:
    path = world.results / "data/d/test.parquet"
    assert {r.prompt_id for r in read_prompts(path)} == {r.prompt_id for r in F.read(path)}


def test_a_model_folder_answers_a_list_of_texts(world: World, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.json", ["What is 2 + 2?", "Name a colour."])
    output = sampled(world, prompts, tmp_path / "samples.json", "--n", 3, "--temperature", 1)
    rows = json.loads(output.read_text())
    assert [(row["prompt"][0]["content"], row["sample"]) for row in rows] == [
        (text, k) for text in ("What is 2 + 2?", "Name a colour.") for k in range(3)
    ]
    assert {row["max_new_tokens"] for row in rows} == {6}
    assert {(row["temperature"], row["top_p"], row["seed"]) for row in rows} == {(1.0, 0.95, 0)}
    assert len({row["response"] for row in rows}) > 3
    # JSON lines hold the same, and are what the workflow reads
    lines = read_samples(sampled(world, prompts, tmp_path / "samples.jsonl", "--n", 3, "--temperature", 1))
    assert [line.model_dump(mode="json") for line in lines] == rows
    other = sampled(world, prompts, tmp_path / "other.jsonl", "--n", 3, "--temperature", 1, "--seed", 7)
    assert [line.response for line in read_samples(other)] != [row["response"] for row in rows]


def test_a_folder_that_says_little_about_generation_ends_responses_as_its_template_does(
    world: World, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(world.base / "model", model)
    (model / "generation_config.json").unlink()
    prompts = write(tmp_path / "prompts.json", ["What is 2 + 2?"])
    words = ["sample", "--model", model, "--prompts", prompts, "--output", tmp_path / "a.jsonl"]
    # random weights find the end among 512 tokens sooner or later
    assert main([*map(str, words), "--n", "24", "--max-new-tokens", "64", "--temperature", "1", "--top-p", "1"]) == 0
    assert {sample.finish_reason for sample in read_samples(tmp_path / "a.jsonl")} == {"stop", "length"}


MISTAKES: dict[str, tuple[Any, list[object], str]] = {
    "no prompt": ([{"text": "?"}], [], "prompts.json, row 1 has no prompt: name it prompt"),
    "several": ([{"prompt": "a", "question": "b"}], [], "prompts.json, row 1 has several prompts (prompt, question)"),
    "empty": (["a", ""], [], "prompts.json, row 2 has no prompt: name it prompt"),
    "a number": ([1], [], "prompts.json, row 1: field prompt: neither a text nor a list of turns"),
    "nothing": ([], [], "prompts.json holds no prompts: give it some"),
    "n": (["a"], ["--n", 0], "--n: Input should be greater than 0"),
    "top_p": (["a"], ["--top-p", 2], "--top-p: Input should be less than or equal to 1"),
    "a store": (["a"], ["--store", "store"], "give --config with --feedback and --store, or none of them; and as many"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_before_the_model_is_loaded(
    name: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, options, sentence = MISTAKES[name]
    prompts = write(tmp_path / "prompts.json", rows)
    words = ("sample", "--model", world.base / "model", "--prompts", prompts, "--output", tmp_path / "a.jsonl")
    assert sentence in refused(capsys, *words, *options)
    assert not (tmp_path / "a.jsonl").exists()


def test_what_does_not_exist_is_named(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sample", "--output", tmp_path / "a.jsonl")
    model, none = world.base / "model", tmp_path / "none"
    said = refused(capsys, *words, "--model", model, "--prompts", none)
    assert said == f"there is no file {none}: name a file of prompts"
    prompts = write(tmp_path / "prompts.json", ["a"])
    said = refused(capsys, *words, "--model", tmp_path, "--prompts", prompts)
    assert said == f"there is no model in {tmp_path} (no config.json): name a model's folder"
    said = refused(capsys, *words, "--model", model, "--prompts", prompts, "--config", none, "--n", 2)
    assert said == "--n: with --config, the prompt sets and the cell say this: leave it out"


def test_a_folder_that_cannot_be_read_is_one_sentence(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("sample", "--output", tmp_path / "a.jsonl", "--prompts", write(tmp_path / "prompts.json", ["a"]))
    adapters, bare, damaged = (tmp_path / name for name in ("adapters", "bare", "damaged"))
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text("{}")
    shutil.copytree(world.base / "model", bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    shutil.copytree(world.base / "model", damaged)
    (damaged / "config.json").write_text("{")
    for folder, says in (
        (adapters, f"there is no model in {adapters} (no config.json)"),
        (bare, f"there is no tokenizer in {bare} that transformers can read ("),
        (damaged, f"{damaged / 'config.json'} is not valid JSON"),
    ):
        assert refused(capsys, *words, "--model", folder).startswith(says)


def test_code_that_comes_with_a_folder_is_run_on_request_alone(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the folder says that its code was accepted: it may have been copied from elsewhere."""
    model = with_code(world.base / "model", tmp_path / "model")
    output = tmp_path / "a.jsonl"
    words = ("sample", "--model", model, "--output", output, "--prompts", write(tmp_path / "prompts.json", ["a"]))
    assert "brings code of its own (" in refused(capsys, *words, "--trust-remote-code")  # nobody has kept it
    (model.parent / "kept").mkdir()
    keep_code(model, model.parent / "kept")
    (model.parent / "kept" / TRUSTED).rename(model / TRUSTED)
    assert "which is not run: give --trust-remote-code if you have read and trust it" in refused(capsys, *words)
    assert not output.exists()
    assert main([*map(str, words), "--trust-remote-code", "--max-new-tokens", "4"]) == 0
    assert len(read_samples(output)) == 1


# ---- labels --------------------------------------------------------------------------------------------------------

SAMPLES = [
    {"prompt": "Which is the largest ocean?", "output": "The Pacific."},
    {"prompt": "Name a colour.", "response": "Blue."},
    {
        "prompt": [{"role": "user", "content": "Which is the largest ocean?"}],
        "completion": "I do not know that.",
    },
]


def labelled(samples: Path, output: Path, *options: object) -> list[F.Feedback]:
    words = ["label", "--samples", samples, "--output", output, *options]
    assert main([*map(str, words)]) == 0
    return list(F.read(output))


def test_samples_of_any_origin_are_numbered_by_prompt(tmp_path: Path) -> None:
    samples = samples_of(write(tmp_path / "samples.json", SAMPLES))
    assert [(s.response, s.sample) for s in samples] == [
        ("The Pacific.", 0), ("I do not know that.", 1), ("Blue.", 0)
    ]  # fmt: skip
    assert samples[0].prompt_id == samples[1].prompt_id != samples[2].prompt_id


def test_a_verifier_labels_them(world: World, tmp_path: Path) -> None:
    prompts = world.results / "data/d/test.parquet"
    samples = sampled(world, prompts, tmp_path / "samples.json", "--limit", 4, "--n", 2, "--temperature", 1)
    scored = labelled(samples, tmp_path / "scores.jsonl", "--verifier", "toy")
    assert [len(record.scores) for record in scored] == [len({*record.responses}) for record in scored]
    assert not any(record.desirable or record.pairs for record in scored)
    assert not (tmp_path / "answers.jsonl").exists()
    report = tmp_path / "report.json"
    binary = labelled(samples, tmp_path / "binary.parquet", "--verifier", "toy", "--feedback", "binary",
                      "--threshold", "-1", "--report", report)  # fmt: skip
    assert {label for record in binary for label in record.desirable} == {True}
    assert json.loads(report.read_text())["threshold"] == -1


def test_a_plugins_verifier_makes_pairs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from halos.registry import VERIFIERS\n\n\n@VERIFIERS.register('short_by_hand')\n"
        "def short(prompt, response):\n    return {'short': 1 / (1 + len(response))}\n"
    )
    samples = write(tmp_path / "samples.json", SAMPLES)
    options = ("--verifier", "short_by_hand", "--plugins", tmp_path / "mine.py", "--feedback", "pairwise")
    records = labelled(samples, tmp_path / "pairs.jsonl", *options, "--pairs", "max")
    assert [(r.responses, r.pairs) for r in records] == [
        (["The Pacific.", "I do not know that."], [(0, 1)]), (["Blue."], [])
    ]  # fmt: skip
    assert {r.source for r in records} == {"short_by_hand"}


def test_a_reward_model_of_any_folder_labels_them(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "rm", "bradley_terry", changes={"examples": 16})
    samples = write(tmp_path / "samples.json", SAMPLES)
    records = labelled(samples, tmp_path / "scores.jsonl", "--reward-model", run / "model")
    assert [len(record.scores) for record in records] == [2, 1]


LABELS: dict[str, tuple[list[object], str]] = {
    "nobody": ([], "say what scores: --reward-model FOLDER or --verifier NAME (or --config, of a labeller)"),
    "two": (["--verifier", "toy", "--reward-model", "x"], "say what scores: --reward-model FOLDER or --verifier NAME"),
    "unknown": (["--verifier", "toi"], "unknown verifier 'toi'; did you mean 'toy'?"),
    "a threshold of scores": (["--verifier", "toy", "--threshold", "0.5"], "scalar feedback has no threshold"),
    "a threshold": (["--verifier", "toy", "--feedback", "binary", "--threshold", "men"],
                    "--threshold: 'men' is none of mean, median and a number"),
    "no reward model": (["--reward-model", "none"], "there is no reward model in none (no config.json)"),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_a_labeller_that_is_none_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, sentence = LABELS[name]
    samples = write(tmp_path / "samples.json", SAMPLES)
    assert sentence in refused(capsys, "label", "--samples", samples, "--output", tmp_path / "a.jsonl", *options)
    assert not (tmp_path / "a.jsonl").exists()


def test_files_that_are_none_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("label", "--verifier", "toy", "--samples", write(tmp_path / "samples.json", [{"prompt": "a"}]), "--output")
    assert refused(capsys, *words, tmp_path / "a.jsonl") == (
        f"{tmp_path}/samples.json, row 1 has no response: name it response, output or completion"
    )
    said = refused(capsys, *words, tmp_path / "a.json")
    assert said == f"--output {tmp_path}/a.json: feedback is written as .jsonl or .parquet: name it so"
