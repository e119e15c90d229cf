"""The command line: help without waiting, one line for a mistake, tables of what there is."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from halos import __version__
from halos.cli import VERBS, descriptions, header, main
from halos.data import feedback as F
from halos.data.paths import SPLITS
from halos.settings import dump, read_slice
from halos.study.catalogue import load
from halos.study.slices import config_slice
from tests.conftest import CATALOGUE, World

ROOT = Path(__file__).parents[1]
LISTED = ["models", "datasets", "sources", "stages", "losses", "prompts", "judges", "verifiers", "tasks", "grids",
          "cells"]  # fmt: skip


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CATALOGUE, sort_keys=False))
    return path


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def parameters(verb: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(header(verb)).parameters)


def test_the_top_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    words = helped(capsys).split()
    assert [verb for verb in VERBS if verb not in words] == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_every_option_and_its_text(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = helped(capsys, verb).split("\n")
    text = " ".join(" ".join(lines).split())
    for name, help_text in descriptions(header(verb)).items():
        kind = parameters(verb)[name].kind
        option = "" if kind is inspect.Parameter.POSITIONAL_ONLY else f"--{name.rstrip('_').replace('_', '-')}"
        assert any(line.startswith(f"  {option}") for line in lines), name
        assert "".join(help_text.split()) in text.replace(" ", "")  # words may be cut at a hyphen


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_every_option_has_a_help_text(verb: str) -> None:
    function = header(verb)
    assert function.__doc__
    texts = descriptions(function)
    assert sorted(texts) == sorted(parameters(verb))
    assert [name for name, text in texts.items() if not text] == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_header_of_a_verb_has_the_parameters_of_its_function(verb: str) -> None:
    module, name = VERBS[verb].split(":")
    function = getattr(importlib.import_module(module), name)
    expected = inspect.signature(function, eval_str=True).parameters
    assert parameters(verb) == dict(expected)
    assert inspect.getdoc(header(verb)) == inspect.getdoc(function)


def test_descriptions_are_read_from_one_name_or_several_and_over_lines() -> None:
    def function() -> None:
        """Do something.

        More about it: this is no parameter.

        Args:
            one: its text, which
                goes on: here.
            two, three: of both.

        Raises:
            HalosError: always.
        """

    assert descriptions(function) == {"one": "its text, which goes on: here", "two": "of both", "three": "of both"}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["list", "losses"], ["schema"]])
def test_looking_around_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, halos.cli\n"
        "try:\n    halos.cli.main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'pandas', 'matplotlib', 'snakemake') if m in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


HEAVY = {"torch", "transformers", "accelerate", "peft", "datasets", "lm_eval", "alpaca_eval", "scipy", "sklearn",
         "matplotlib", "openai", "snakemake", "trl", "wandb", "vllm"}  # fmt: skip
MODEL = {"torch", "transformers", "accelerate", "scipy"}  # transformers brings accelerate and scipy
NEEDED: dict[str, set[str]] = {
    "prepare": {"scipy"},  # datasketch brings it
    "check": set(),
    "label": set(),
    "judge": {"alpaca_eval", "datasets", "scipy", "sklearn"},  # alpaca_eval brings the others
    "decide": {"alpaca_eval", "datasets", "scipy", "sklearn"},
    "tokenize": MODEL - {"scipy"},
    "sample": MODEL,
    "reference": MODEL,
    "train": MODEL,
    "task": {*MODEL, "lm_eval", "datasets"},
    "answer": {*MODEL, "lm_eval", "datasets"},
}
"""What a verb may import of what is heavy."""


def small_job(verb: str, world: World, folder: Path) -> list[str]:
    """The command of a verb on a small model without adapters, or on feedback that is judged by rule."""
    results = world.results
    train, validation, test = (results / f"data/d/{split}.parquet" for split in SPLITS)
    record = next(F.read(test))
    line = {"prompt_id": record.prompt_id, "prompt": record.prompt, "response": "x", "sample": 0}
    (folder / "samples.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "labeller.yaml").write_text(dump({"labeller": "l", "kind": "verifier", "verifier": "toy",
                                                "feedback": "binary", "threshold": "mean"}))  # fmt: skip
    judged = {"judged": folder / "judged/j.json", "config": world.slice("judges/j"), "feedback": test,
              "samples": folder / "samples.jsonl"}  # fmt: skip
    (folder / "judging.yaml").write_text(dump({"judgements": [{name: str(path) for name, path in judged.items()}]}))
    (folder / "batch.yaml").write_text(dump({"tasks": {"t": read_slice(world.slice("tasks/t"))}}))
    cell = world.slice("runs/d/m/sft/seed1", examples=16)
    options: dict[str, dict[str, Any]] = {
        "prepare": {"config": world.slice("data/d"), "train": folder / "a", "validation": folder / "b",
                    "test": folder / "c"},
        "check": {"store": world.store, "views": "paired", "prompts": 0},
        "label": {"config": folder / "labeller.yaml", "samples": folder / "samples.jsonl"},
        "judge": {"config": world.slice("judges/j"), "samples": folder / "samples.jsonl", "feedback": test},
        "decide": {"config": folder / "judging.yaml", "kept": folder / "kept"},
        "tokenize": {"config": world.slice("tokens/d/m"), "train": train, "validation": validation,
                     "model": world.base / "model"},
        "sample": {"config": cell, "prompts": world.slice("prompts/p"), "feedback": test, "model": world.base / "model",
                   "store": world.store},
        "reference": {"config": cell, "parent": world.base, "store": world.store, "part": "mismatched"},
        "train": {"config": cell, "parent": world.base, "store": world.store},
        "task": {"config": world.slice("tasks/t"), "model": world.base / "model", "feedback": test},
        "answer": {"config": folder / "batch.yaml", "cell": cell, "model": world.base / "model",
                   "manifest": world.base / "manifest.json", "store": world.store, "kept": folder / "kept",
                   "local": test},
    }  # fmt: skip
    made = {name: folder / name for name in ("output", "report") if name in parameters(verb)}
    return [verb, *(str(x) for name, value in {**options[verb], **made}.items() for x in (f"--{name}", value))]


@pytest.mark.parametrize("verb", NEEDED)
def test_a_verb_imports_only_what_it_needs_and_the_garbage_collector_hardly_runs(
    verb: str, world: World, tmp_path: Path
) -> None:
    code = (
        "import atexit, gc, json, sys, halos.cli\n"
        "ignored = []\n"
        "gc.callbacks.append(lambda *_: ignored.append(gc.get_freeze_count()))\n"
        "end = lambda: print(json.dumps([gc.get_stats()[2]['collections'], gc.get_freeze_count(), ignored[-1]]))\n"
        "atexit.register(end)\n"
        "code = halos.cli.main(sys.argv[1:])\n"
        "print(code, *sys.modules)"
    )
    job = small_job(verb, world, tmp_path)
    done = subprocess.run([sys.executable, "-c", code, *job], cwd=ROOT, capture_output=True, text=True, check=True)
    *_, last, at_exit = done.stdout.splitlines()
    assert last.startswith("0 "), done.stderr
    assert HEAVY & set(last.split()) - NEEDED[verb] == set()
    collections, frozen, ignored = json.loads(at_exit)
    assert collections <= 2  # of all objects; there would be some 10 while torch is imported
    assert min(frozen, ignored) > 10_000  # at the end, and by the last collection, what the verb imported


def test_a_data_report_imports_no_model() -> None:
    code = "import sys, halos.report.dataset.describe\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == {"matplotlib"}


def test_a_users_mistake_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "halos", "list", "models", "--config", str(tmp_path / "none.yaml")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: there is no config file")
    assert done.stderr.count("\n") == 1


def test_a_mistake_within_a_verb_ends_the_same_way(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = world.slice("runs/d/m/simpo/seed1")
    code = main(["train", "--config", str(config), "--parent", str(tmp_path), "--store", str(world.store),
                 "--output", str(tmp_path)])  # fmt: skip
    assert code == 1
    assert capsys.readouterr().err.split("\n") == [
        f"error: there is no {tmp_path}/manifest.json; run `snakemake {tmp_path}/manifest.json` to make it",
        "",
    ]


def test_train_takes_what_most_stages_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule gives an option without a value where a cell has no such file."""
    from halos.train import run

    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "train", lambda **options: seen.append(options))
    command = ["train", "--config", "c", "--parent", "p", "--store", "s", "--output", "o"]
    for more in (
        [],
        ["--reference", "--scores"],
        ["--reference", "a", "b", "--scores", "c", "--gradient-checkpointing"],
    ):
        assert main([*command, *more]) == 0
    found = [[options[k] for k in ("reference", "scores", "gradient_checkpointing")] for options in seen]
    assert found == [[[], [], False], [[], [], False], [[Path("a"), Path("b")], [Path("c")], True]]
    assert (seen[0]["tokens_per_microbatch"], seen[0]["time_limit"]) == (16384, None)


def test_a_reference_is_of_every_part_there_is() -> None:
    from halos.reference.cache import BOTH, PARTS, SCORES

    assert get_args(parameters("reference")["part"].annotation) == (*PARTS, BOTH, SCORES)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no verb": ([], "the following arguments are required: VERB"),
    "an option and no verb": (["--config", "c"], "the following arguments are required: VERB"),
    "no such verb": (["trian", "--config", "c"], "there is no verb 'trian'; did you mean 'train'?"),
    "no such option": (["sample", "--modle", "m"], "sample has no option --modle; did you mean '--model'?"),
    "an abbreviation": (["verify", "run", "--conf=c"], "verify has no option --conf; did you mean '--config'?"),
    "no options": (["join"], "the following arguments are required: --config, --rounds, --output"),
    "no kind": (["list"], "the following arguments are required: what"),
    "no such choice": (["reference", "--part", "all"], "argument --part: invalid choice: 'all'"),
    "no number": (["sample", "--batch", "many"], "argument --batch: invalid int value: 'many'"),
    "one argument too many": (["schema", "yaml"], "unrecognized arguments: yaml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_call_is_one_line_and_exits_with_2(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, says = MISTAKES[mistake]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {says}")
    assert printed.err.endswith(" --help`)\n")
    assert printed.err.count("\n") == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_what_may_be_left_out_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from halos.plan import run

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "plan", lambda **options: calls.append(options))
    assert main(["plan"]) == 0
    assert main(["plan", "--grid", "paper", "--utilisation", ".5", "--output", "o"]) == 0
    defaults = {"config": [Path("config.yaml")], "grid": None, "gpu": "a100-80gb", "results": Path("results"),
                "utilisation": 0.4, "output": None}  # fmt: skip
    assert calls == [defaults, {**defaults, "grid": "paper", "utilisation": 0.5, "output": Path("o")}]


@pytest.mark.parametrize("what", LISTED)
def test_list_prints_a_table_with_a_line_for_each_entry(
    what: str, catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", what, "--config", str(catalogue), "--results", str(catalogue.parent)]) == 0
    header, rule, *rows = capsys.readouterr().out.rstrip("\n").split("\n")
    assert {*rule} == {"-", " "}
    assert len(rule) >= len(header.rstrip())
    if what in CATALOGUE:
        assert [row.split()[0] for row in rows if row[0] != " "] == list(CATALOGUE[what])  # else a line more of a cell
    elif what == "cells":
        assert [row.split() for row in rows] == [
            ["d", "m", "base", "1", "to", "do"],
            ["d", "m", "sft-dpo", "1", "to", "do"],
        ]
    else:
        assert {"sources": "toy", "losses": "kto", "verifiers": "toy"}[what] in [row.split()[0] for row in rows]


def test_list_says_when_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({**CATALOGUE, "tasks": {}, "grids": {"g": {**CATALOGUE["grids"]["g"], "tasks": []}}})
    )
    assert main(["list", "tasks", "--config", str(path)]) == 0
    assert capsys.readouterr().out == "there are no tasks\n"


@pytest.mark.parametrize("prefix", ["", "results/"])
def test_config_prints_the_slice_of_a_folder(prefix: str, catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = "runs/d/m/sft-kto/seed1"
    assert main(["config", prefix + folder, "--config", str(catalogue)]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == config_slice(load(catalogue), folder)


def test_a_closed_pipe_is_no_error(catalogue: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "halos", "list", "losses", "--config", str(catalogue)],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_help_shows_a_default_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "(default: config.yaml)" in " ".join(capsys.readouterr().out.split())
