"""The command line: one verb for each rule of the workflow, and a few to look around.

A verb's options are the parameters of its function, which is imported only when the verb runs.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halos import __version__
from halos.errors import HalosError
from halos.hub import go_offline


@dataclass(frozen=True)
class Option:
    """`--name`, the parameter `name` of the verb's function."""

    help: str
    type: Any = Path
    many: bool = False
    default: Any = ...
    choices: tuple[str, ...] | None = None

    def add(self, parser: argparse.ArgumentParser, name: str) -> None:
        required = self.default is ...
        suffix = "" if required or self.default in (None, []) else f" (default: {self.default})"
        if self.type is bool:
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=self.help)
            return
        settings: dict[str, Any] = {"type": self.type, "required": required, "help": self.help + suffix}
        if not required:
            settings["default"] = self.default
        if self.many:
            settings["nargs"] = "*"
        if self.choices:
            settings["choices"] = self.choices
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=None if self.choices else self.type.__name__.upper(),
                            **settings)  # fmt: skip


@dataclass(frozen=True)
class Verb:
    function: str
    help: str
    options: dict[str, Option]


CONFIG = Option("config.yaml of the folder that is made: `python -m halos config FOLDER` writes one")
FEEDBACK = Option("feedback records, parquet")
STORE = Option("sequence store")
TOKENS = Option("tokens of one forward pass on one device, padding included", int, default=16384)
FETCHED = Option("what `fetch` wrote for the same config, where something is on the hub", many=True, default=[])
REWARD_MODEL = Option("a reward model's folder and its manifest, for that kind", many=True, default=[])
GRID_OUTPUT = {
    "config": CONFIG,
    "results": Option("the results folder", default=Path("results")),
    "output": Option("folder to write to"),
}
VERBS = {
    "fetch": Verb("halos.fetch:fetch", "download what a model, a dataset or a task has on the hub", {
        "config": CONFIG,
        "output": Option("JSON to write: the commits that were found"),
    }),
    "prepare": Verb("halos.data.prepare:prepare", "make a dataset's feedback records from its sources", {
        "config": CONFIG,
        "train": Option("train split to write, parquet"),
        "test": Option("test split to write, parquet"),
        "report": Option("report to write, JSON: rows in and out, drops by reason"),
        "fetched": FETCHED,
    }),
    "model": Verb("halos.models.base:make", "make a base model's folder: weights, tokenizer, chat template", {
        "config": CONFIG,
        "feedback": Option("splits to train a tokenizer on, for an architecture", many=True, default=[]),
        "output": Option("folder to write model/ and manifest.json to"),
        "fetched": FETCHED,
    }),
    "tokenize": Verb("halos.tokens.tokenize:tokenize", "make the sequence store of a dataset and a model", {
        "config": CONFIG,
        "train": FEEDBACK,
        "test": FEEDBACK,
        "model": Option("model folder, for its tokenizer"),
        "output": Option("sequence store to write"),
        "report": Option("report to write, JSON: lengths, truncations, drops"),
    }),
    "check": Verb("halos.tokens.store:check", "refuse a store that lacks a view which the grid's losses need", {
        "store": STORE,
        "views": Option("views that are needed", str, many=True),
        "feedback": Option("train split, where prompts are needed", default=None),
        "prompts": Option("prompts of it that are needed", int, default=0),
        "output": Option("JSON to write"),
    }),
    "reference": Verb("halos.reference.compute:reference", "cache a model's log-probabilities of a sequence store", {
        "config": CONFIG,
        "parent": Option("folder of the model, with model/ and manifest.json"),
        "store": STORE,
        "part": Option("real responses, mismatched sequences, or a reward model's scores", str,
                       choices=("responses", "mismatched", "scores")),
        "output": Option("safetensors file to write"),
        "tokens_per_microbatch": TOKENS,
    }),
    "train": Verb("halos.train.run:train", "train the last stage of a cell", {
        "config": CONFIG,
        "parent": Option("folder of the parent, with model/ and manifest.json"),
        "store": STORE,
        "output": Option("the run's folder"),
        "reference": Option("the parent's log-probabilities, each part that the loss reads", many=True, default=[]),
        "reference_of": Option("folder of the reference, with manifest.json (default: the parent)", default=None),
        "scores": Option("a reward model's scores, for a stage with one", many=True, default=[]),
        "tokens_per_microbatch": TOKENS,
        "gradient_checkpointing": Option("less memory for more time: forward passes run twice", bool, default=False),
        "time_limit": Option("minutes after which to stop with a checkpoint", float, default=None),
    }),
    "sample": Verb("halos.sample.run:sample", "sample a model's responses to a prompt set", {
        "config": CONFIG,
        "prompts": Option("config.yaml of each prompt set", many=True),
        "feedback": Option("feedback records whose prompts are answered, for each prompt set", many=True),
        "model": Option("model folder"),
        "store": STORE,
        "output": Option("samples to write, JSON lines, for each prompt set", many=True),
        "batch": Option("responses generated side by side", int, default=64),
        "backend": Option("what generates", str, default="transformers", choices=("transformers", "vllm")),
        "tensor_parallel": Option("GPUs over which vLLM splits the model", int, default=1),
    }),
    "label": Verb("halos.online.label:label", "make feedback records from samples, scored by a labeller", {
        "config": CONFIG,
        "samples": Option("files of samples, JSON lines", many=True),
        "output": Option("feedback records to write, .parquet or .jsonl, for each file of samples", many=True),
        "report": Option("report to write, JSON: scored, failed, labels"),
        "reward_model": REWARD_MODEL,
        "tokens_per_microbatch": TOKENS,
        "concurrency": Option("calls at one time, for a model that is asked", int, default=16),
        "requests_per_minute": Option("the most calls there may be, for a model that is asked", int, default=None),
    }),
    "join": Verb("halos.online.join:join", "put the rounds of an online stage together as one run", {
        "config": CONFIG,
        "rounds": Option("the rounds' folders, in order", many=True),
        "output": Option("the run's folder"),
    }),
    "judge": Verb("halos.evaluate.judging.judge:judge", "judge samples against a baseline", {
        "config": CONFIG,
        "samples": Option("samples, JSON lines"),
        "feedback": FEEDBACK,
        "output": Option("judgement to write, JSON"),
        "reward_model": REWARD_MODEL,
        "baseline": Option("the baseline's outputs or samples, unless the targets are the baseline", many=True,
                           default=[]),
        "difficulties": Option("AlpacaEval's df_gamed.csv, for its length control", many=True, default=[]),
        "tokens_per_microbatch": TOKENS,
        "concurrency": Option("calls at one time, for a model that is asked", int, default=16),
        "requests_per_minute": Option("the most calls there may be, for a model that is asked", int, default=None),
    }),
    "task": Verb("halos.evaluate.tasks.task:evaluate", "run an lm-evaluation-harness task", {
        "config": CONFIG,
        "model": Option("model folder"),
        "feedback": Option("test split, for a local task", default=None),
        "output": Option("result to write, JSON"),
        "fetched": FETCHED,
        "backend": Option("what runs the model", str, default="transformers", choices=("transformers", "vllm")),
        "tensor_parallel": Option("GPUs over which vLLM splits the model", int, default=1),
    }),
    "describe": Verb("halos.report.dataset.describe:describe", "report on a dataset as a model sees it", {
        "data": Option("report of prepare, JSON, with the splits beside it"),
        "tokens": Option("report of tokenize, JSON"),
        "store": STORE,
        "model": Option("model folder, for its tokenizer"),
        "output": Option("folder to write to"),
    }),
    "tables": Verb("halos.report.tables:make", "aggregate a grid into tables", GRID_OUTPUT),
    "figures": Verb("halos.report.figures:make", "draw a grid's figures", {
        **GRID_OUTPUT,
        "only": Option("figures to draw (default: those with something to show)", str, many=True, default=[]),
    }),
    "plan": Verb("halos.plan.run:plan", "say what a grid will cost: memory, GPU-hours, disk", {
        "config": Option("the catalogue", default=Path("config.yaml")),
        "grid": Option("id of the grid (default: the config's)", str, default=None),
        "gpu": Option("kind of GPU: a100-40gb, a100-80gb, h100-80gb or l40s-48gb", str, default="a100-80gb"),
        "results": Option("the results folder, for what is known already", default=Path("results")),
        "utilisation": Option("share of a GPU's peak that training reaches", float, default=0.4),
        "output": Option("folder to write plan.md, jobs.csv and totals.csv to", default=None),
    }),
    "published": Verb("halos.report.subjects.published:draw", "draw published win rates against model size", {
        "name": Option("which: archangel", str, default="archangel"),
        "output": Option("figure without its ending; .svg, .png and .csv are written"),
    }),
    "overview": Verb("halos.publish.overview:make", "put a grid's figures, tables and methods on a page", GRID_OUTPUT),
    "cards": Verb("halos.publish.cards:make", "write the model card of each trained model of a grid", GRID_OUTPUT),
    "crate": Verb("halos.publish.crate:make", "put a finished grid into an RO-Crate, without its weights", {
        **GRID_OUTPUT, "output": Option("zip to write"),
    }),
    "convert": Verb("halos.models.gguf:gguf", "turn a GGUF file into a model folder", {
        "source": Option("GGUF file"),
        "output": Option("model folder to write"),
        "template": Option("chat template, where the file has none: a name or a .jinja file", str, default=None),
    }),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m halos",
        description="Alignment of language models with human-centred loss functions, one step at a time. "
        "`snakemake all` runs the steps in order.",
    )
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.help, description=verb.help)
        for option, declared in verb.options.items():
            declared.add(sub, option)
    sub = verbs.add_parser("list", help="what there is", description="print a table of what there is")
    sub.add_argument("what", choices=("models", "datasets", "sources", "stages", "losses", "prompts", "labellers",
                                      "judges",
                                      "verifiers", "tasks", "grids", "cells"))  # fmt: skip
    sub.add_argument("--grid", help="whose cells (default: the config's)")
    sub.add_argument("--results", type=Path, default=Path("results"), help="the results folder (default: results)")
    _add_catalogue(sub)
    sub = verbs.add_parser("config", help="print the part of the catalogue that makes one folder of the results",
                           description="print the config.yaml of one folder of the results")  # fmt: skip
    sub.add_argument("folder", help="for example data/toy or runs/toy/tiny/sft-kto/seed1")
    _add_catalogue(sub)
    sub = verbs.add_parser("verify", help="say what changed since a run was made: weights, config, data, parents",
                           description="recompute the hashes of a run and of all that it was made from")  # fmt: skip
    sub.add_argument("run", type=Path, help="the run's folder, for example results/runs/toy/tiny/sft-kto/seed1")
    _add_catalogue(sub)
    verbs.add_parser("schema", help="print the JSON schema of config.yaml", description="print the JSON schema")
    return top


def _add_catalogue(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", type=Path, default=Path("config.yaml"), help="the catalogue (default: config.yaml)")


def run(arguments: argparse.Namespace) -> None:
    if arguments.verb in VERBS:
        verb = VERBS[arguments.verb]
        module, function = verb.function.split(":")
        getattr(importlib.import_module(module), function)(**{k: getattr(arguments, k) for k in verb.options})
        return
    if arguments.verb == "schema":
        import json

        from halos.study.catalogue import schema

        print(json.dumps(schema(), indent=1))
        return
    from halos.settings import dump
    from halos.study.catalogue import load

    config = load(arguments.config)
    if arguments.verb == "config":
        from halos.study.slices import config_slice

        print(dump(config_slice(config, arguments.folder.removeprefix("results/"))), end="")
    elif arguments.verb == "verify":
        from halos.study.verify import verify

        verify(arguments.run, config)
    else:
        from halos.study.listing import table

        print(table(config, arguments.what, arguments.grid, arguments.results))


def main(argv: list[str] | None = None) -> int:
    """Run a verb; 0 when it is done, 1 when the user has to put something right."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _collect_seldom()
    try:
        arguments = parser().parse_args(argv)
        if arguments.verb != "fetch":
            go_offline()
        run(arguments)
        sys.stdout.flush()
    except HalosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `python -m halos list cells | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _collect_seldom() -> None:
    """Spare a job the garbage collector's walks through all that it imports: up to a third of a short one's time.

    Young objects, among them what a step of training leaves behind, are looked at as often as ever.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1000)
    atexit.register(gc.freeze)  # the interpreter collects once more as it ends
