"""The command line: one verb for each rule of the workflow, and a few that show what there is.

A verb is a function. Its options are the function's parameters: types and defaults are those of the signature, help is
the `Args:` of the docstring. Both are read from the source, because importing a verb may take seconds: only a verb that
runs is imported.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import gc
import importlib
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from halos import __version__
from halos.distributed.devices import hold
from halos.errors import HalosError
from halos.files import writing
from halos.hub import go_offline
from halos.registry import suggest

VERBS = {
    "fetch": "halos.fetch:fetch",
    "prepare": "halos.data.prepare:prepare",
    "overlap": "halos.data.repeats.overlap:overlap",
    "model": "halos.models.base:make",
    "tokenize": "halos.tokens.tokenize:tokenize",
    "check": "halos.tokens.store:check",
    "reference": "halos.reference.compute:reference",
    "score": "halos.reference.score:score",
    "train": "halos.train.run:train",
    "snapshot": "halos.train.snapshots:snapshot",
    "sample": "halos.sample.run:sample",
    "label": "halos.online.label:label",
    "join": "halos.online.join:join",
    "judge": "halos.evaluate.judging.judge:judge",
    "annotate": "halos.annotate.run:annotate",
    "divergence": "halos.evaluate.divergence.compute:divergence",
    "rewards": "halos.evaluate.rewards.compute:rewards",
    "decide": "halos.evaluate.judging.decide:decide",
    "task": "halos.evaluate.tasks.task:evaluate",
    "answer": "halos.answer.run:answer",
    "choose": "halos.tune.choose:choose",
    "describe": "halos.report.dataset.describe:describe",
    "tables": "halos.report.tables:make",
    "figures": "halos.report.figures:make",
    "published": "halos.report.subjects.published:draw",
    "overview": "halos.publish.overview:make",
    "responses": "halos.publish.responses:make",
    "cards": "halos.publish.cards:make",
    "crate": "halos.publish.crate:make",
    "export": "halos.publish.export:export",
    "convert": "halos.models.convert:convert",
    "plan": "halos.plan.run:plan",
    "doctor": "halos.doctor.run:doctor",
    "list": "halos.study.show:show_entries",
    "watch": "halos.study.watch:watch",
    "config": "halos.study.show:show_slice",
    "verify": "halos.study.show:show_changes",
    "schema": "halos.study.show:show_schema",
}
"""verb -> module:function."""

ANNOTATIONS: dict[str, Any] = {"Path": Path, "Literal": Literal, "Sequence": Sequence, "Iterable": Iterable}
"""What the signature of a verb may name, beside Python's own types."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a call in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def header(verb: str) -> Callable[..., None]:
    """A verb's function without its body, made from the source: the signature and the docstring."""
    module, name = VERBS[verb].split(":")
    file = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    text = re.search(rf"^def {name}\(.*\n(?:[ )].*\n|\n)*", file.read_text(), re.MULTILINE)
    assert text is not None, f"{VERBS[verb]} does not exist"
    tree = ast.parse(text[0])
    assert isinstance(tree.body[0], ast.FunctionDef)
    del tree.body[0].body[1:]
    namespace = dict(ANNOTATIONS)
    exec(compile(tree, str(file), "exec", dont_inherit=True), namespace)
    function: Callable[..., None] = namespace[name]
    return function


def summary(function: Callable[..., None]) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def descriptions(function: Callable[..., None]) -> dict[str, str]:
    """{parameter: text} of the `Args:` in a docstring, each text on one line."""
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", inspect.getdoc(function) or "", re.MULTILINE)
    texts: dict[str, str] = {}
    for entry in re.split(r"^ {4}(?=\S)", section[1] if section else "", flags=re.MULTILINE)[1:]:
        names, text = entry.split(":", 1)
        texts |= dict.fromkeys(names.split(", "), " ".join(text.split()).removesuffix("."))
    return texts


def add_option(parser: argparse.ArgumentParser, parameter: inspect.Parameter, text: str) -> None:
    """Add `--name` for a parameter of a verb, or a plain argument for a positional-only one.

    A bool is a flag, a Literal has choices, a list or Sequence takes any number of values, and what may be None may be
    left out.
    """
    name = parameter.name.rstrip("_").replace("_", "-")  # Python has the word `import` for itself
    kind, default = parameter.annotation, parameter.default
    positional = parameter.kind is parameter.POSITIONAL_ONLY
    if get_origin(kind) in (types.UnionType, Union):
        kind = next(part for part in get_args(kind) if part is not types.NoneType)
        default = None if default is parameter.empty else default
    if kind is bool:
        parser.add_argument(f"--{name}", action="store_true", help=text, dest=parameter.name)
        return
    settings: dict[str, Any] = {} if positional else {"dest": parameter.name}
    if get_origin(kind) is Literal:
        settings["choices"] = get_args(kind)
    elif get_origin(kind) is not None:
        settings["nargs"] = "*"
        kind = get_args(kind)[0]
        default = default if default in (parameter.empty, None) else list(default)
    if "choices" not in settings:
        settings |= {"type": kind, "metavar": (name if positional else kind.__name__).upper()}
    if default not in (parameter.empty, None, []):
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        text += f" (default: {shown})"
    settings["help"] = text.replace("%", "%%")
    if positional:
        parser.add_argument(parameter.name, **settings)
    elif default is parameter.empty:
        parser.add_argument(f"--{name}", required=True, **settings)
    else:
        parser.add_argument(f"--{name}", default=default, **settings)


def verb_parser(verb: str) -> Parser:
    """The parser of a verb's options."""
    function = header(verb)
    parser = Parser(prog=f"python -m halos {verb}", description=summary(function).replace("%", "%%"))
    texts = descriptions(function)
    for parameter in inspect.signature(function).parameters.values():
        add_option(parser, parameter, texts.get(parameter.name, ""))
    return parser


def top_parser() -> Parser:
    """The parser for a call without a verb: it prints the list of verbs, or the version."""
    parser = Parser(
        prog="python -m halos",
        description="Alignment of language models with human-centred loss functions, one step at a time. "
        "`snakemake all` runs the steps in order.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        verbs.add_parser(verb, help=summary(header(verb)).replace("%", "%%"))
    return parser


def parse(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb of a call and its options by name.

    Raises:
        SystemExit: with 0 after `--help` and `--version`, with 2 when the call is wrong.
    """
    if not words or words[0] not in VERBS:
        top = top_parser()
        if words and not words[0].startswith("-"):
            top.error(f"there is no verb {words[0]!r}{suggest(words[0], VERBS)}")
        top.parse_args(words[:1])
        top.error("name a verb")
    verb, *rest = words
    parser = verb_parser(verb)
    known = [option for action in parser._actions for option in action.option_strings]
    for word in rest:  # before argparse, which reports a missing option where one is mistyped
        option = word.split("=")[0]
        if option.startswith("--") and option not in known:
            parser.error(f"{verb} has no option {option}{suggest(option, known)}")
    return verb, vars(parser.parse_args(rest))


def run(verb: str, options: dict[str, Any]) -> None:
    """Import a verb's function and call it."""
    module, name = VERBS[verb].split(":")
    gc.disable()  # an import leaves hardly any garbage, and looking for it takes a tenth of its time
    try:
        function = getattr(importlib.import_module(module), name)
    finally:
        gc.freeze()  # nor does the first collection after it look at what was imported
        gc.enable()
    parameters = inspect.signature(header(verb)).parameters.values()
    positional = [options.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY]
    function(*positional, **options)


def main(argv: list[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: the verb and its options; by default those of the process.

    Returns:
        The exit code: 0 when the verb is done, 1 when the user has to put something right.

    Raises:
        SystemExit: as `parse`.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _collect_seldom()
    try:
        verb, options = parse(sys.argv[1:] if argv is None else argv)
        hold()
        if verb not in ("fetch", "doctor"):
            go_offline()
        outputs = options.get("output") or Path()
        with writing(outputs[0] if isinstance(outputs, list) else outputs):
            run(verb, options)
        sys.stdout.flush()
    except HalosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `python -m halos list cells | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _collect_seldom() -> None:
    """Make full garbage collections rare: they walk through all imported modules, up to a third of a short job's time.

    Young objects, such as those that a training step leaves behind, are collected as often as by default.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1000)
    atexit.register(gc.freeze)  # the interpreter collects once more as it ends
