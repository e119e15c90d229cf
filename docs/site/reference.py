"""Reference pages, made from the schema of config.yaml, the verbs of the command line and what is registered."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from docs.site import python
from docs.site.tables import cell, plain, table
from halos.cli import VERBS, descriptions, header, verb_parser
from halos.registry import LOSSES, SOURCES, VERIFIERS, Registry
from halos.study.catalogue import schema
from halos.train.words import LORA, MEANINGS, SYNONYMS
from halos.views import VIEWS

OF_LOSSES = "hyperparameter of "
"""How the schema's descriptions of hyperparameters of losses begin."""
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
INTRODUCTIONS = {
    "Config": "The file itself.",
    "Stage": "Beside these, the hyperparameters of its loss: see [losses](../losses/index.md).",
}


def pages() -> dict[str, str]:
    """{page: Markdown} of the reference."""
    return {
        "reference/config.md": config(),
        "reference/cli.md": cli(),
        "reference/registered.md": registered(),
        "reference/words.md": words(),
        "reference/python.md": python.page(),
    }


# ---- config.yaml ----------------------------------------------------------------------------------------------------


def config() -> str:
    """Every key of config.yaml, from its schema."""
    whole = schema()
    kinds = whole.pop("$defs")
    text = [
        "# config.yaml",
        "",
        "Every key, with its type, default and meaning. Editors that know the language server of YAML show the same "
        "from `config.schema.json`. `python -m halos config runs/DATASET/MODEL/METHOD/seedN` prints what is in force.",
        "",
    ]
    for name, kind in {"Config": whole, **{name: kinds[name] for name in _order(whole, kinds)}}.items():
        text += [f"## {name}", ""]
        if name != "Config":
            text += [" ".join(kind.get("description", "").split()), ""]
        if name in INTRODUCTIONS:
            text += [INTRODUCTIONS[name], ""]
        required = set(kind.get("required", ()))
        rows = [
            (f"`{key}`", _type(about), _default(about, key in required), cell(about.get("description", "")))
            for key, about in kind["properties"].items()
            if not about.get("description", "").startswith(OF_LOSSES)
        ]
        text += [table(["key", "type", "default", "meaning"], rows), ""]
    return "\n".join(text)


def _order(whole: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[str]:
    """Names of the kinds of objects: each after the one that first names it."""
    found: list[str] = []

    def add(part: Any) -> None:
        for name in re.findall(r"#/\$defs/(\w+)", json.dumps(part)):
            if name not in found:
                found.append(name)
                add(kinds[name])

    add(whole["properties"])
    return found


def _type(about: Mapping[str, Any]) -> str:
    """The type of a value, in words."""
    if "$ref" in about:
        name = about["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in about:
            return " or ".join(dict.fromkeys(_type(part) for part in about[key] if part.get("type") != "null"))
    if "const" in about:
        return f"`{about['const']}`"
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    kind = about.get("type")
    if kind == "array":
        if "prefixItems" in about:
            return f"list of {len(about['prefixItems'])}"
        items = about.get("items", {})
        return f"list of {_type(items)}" if items else "list"
    if kind == "object":
        values = about.get("additionalProperties")
        return f"id: {_type(values)}" if isinstance(values, dict) and values else "keys and values"
    bounds = [f"{sign} {about[name]:g}" for name, sign in BOUNDS.items() if name in about]
    return f"{WORDS.get(str(kind), 'any')} {', '.join(bounds)}".strip()


def _default(about: Mapping[str, Any], required: bool) -> str:
    if required:
        return "**required**"
    value = about.get("default")
    if value is None:
        return ""
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix('...').strip()}`"


# ---- the command line -----------------------------------------------------------------------------------------------


def cli() -> str:
    """Every verb with its options, from the functions that they are."""
    text = [
        "# Command line",
        "",
        "`python -m halos VERB`, or `halos VERB`, runs one step by hand; the workflow's rules call the same verbs. "
        "`--help` of a verb prints what stands here.",
        "",
    ]
    for verb in VERBS:
        function = header(verb)
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        prose = [" ".join(p.split()) for p in paragraphs if not re.match(r"(Args|Returns|Raises):", p)]
        raised = [
            " ".join(p.removeprefix("Raises:").replace("HalosError:", "").split())
            for p in paragraphs
            if p.startswith("Raises:") and "HalosError:" in p
        ]
        text += [f"## {verb}", "", *(line for paragraph in prose for line in (plain(paragraph), ""))]
        rows = [_option(action) for action in verb_parser(verb)._actions if action.dest != "help"]
        if rows:
            text += [table(["option", "default", "meaning"], rows), ""]
        if raised:
            text += [f"It refuses: {plain(raised[0].rstrip('.'))}.", ""]
        assert set(descriptions(function)) <= {action.dest for action in verb_parser(verb)._actions}
    return "\n".join(text)


def _option(action: argparse.Action) -> tuple[str, str, str]:
    metavar = action.metavar if isinstance(action.metavar, str) else None
    values = "|".join(action.choices) if action.choices else metavar or ""
    name = action.option_strings[0] if action.option_strings else ""
    shown = " ".join(filter(None, [name, f"{values} ..." if action.nargs == "*" else values]))
    meaning = re.sub(r" \(default: .*\)$", "", (action.help or "").replace("%%", "%"))
    if action.required and action.option_strings:
        default = "**required**"
    elif action.default in (None, False, []) or not action.option_strings:
        default = ""
    else:
        given = action.default if isinstance(action.default, list) else [action.default]
        default = f"`{' '.join(map(str, given))}`"
    return f"`{shown}`", default, plain(meaning)


# ---- what is registered ---------------------------------------------------------------------------------------------


def registered() -> str:
    """Sources, verifiers and views."""
    rows = [(f"`{v.name}`", ", ".join(v.roles), ", ".join(v.labels), plain(v.wants)) for v in VIEWS.values()]
    return "\n".join([
        "# Sources, verifiers, views",
        "",
        "What entries of config.yaml name, beside [losses](../losses/index.md). A plugin adds to each of them: "
        "[adding things](../tutorials/adding.md), [extending](../extending.md).",
        "",
        "## Sources",
        "",
        "Of data. `options:` of a source are those below; [data.md](../data.md) says more of `local` and `hub`.",
        "",
        *_functions(SOURCES),
        "## Verifiers",
        "",
        "Programs that score a response, which a judge or a labeller names.",
        "",
        *_functions(VERIFIERS),
        "## Views",
        "",
        "Which responses make a training example. A loss names its view.",
        "",
        table(["view", "responses", "labels", "what a dataset needs"], rows),
        "",
    ])  # fmt: skip


def _functions(registry: Registry[Any]) -> Iterator[str]:
    for name in registry:
        parameters = list(inspect.signature(registry[name]).parameters.values())
        options = [p.name if p.default is p.empty else f"{p.name} = {p.default}" for p in parameters[1:]]
        prose = [
            p
            for p in (inspect.getdoc(registry[name]) or "").split("\n\n")
            if not re.match(r"(Args|Raises|Yields|Returns):", p)
        ]
        yield from (f"### {name}", "")
        yield from (line for p in prose for line in (plain(" ".join(p.split())), ""))
        if registry is SOURCES and options:
            yield from (f"Options: {', '.join(f'`{option}`' for option in options)}.", "")


# ---- words of other libraries ---------------------------------------------------------------------------------------


def words() -> str:
    """What settings of TRL, transformers and peft are called here."""
    rows = [(f"`{word}`", cell(text)) for word, text in MEANINGS.items() if word != "beta"]
    synonyms = [(f"`{word}`", ", ".join(f"`{name}`" for name in names)) for word, names in SYNONYMS.items()]
    return "\n".join([
        "# Words of TRL and transformers",
        "",
        "A setting under a name of these libraries is refused in one sentence, which says what to write instead. These "
        "are all that are known. [Coming from TRL](../trl.md) says what else differs.",
        "",
        "## Settings of a stage",
        "",
        table(["there", "here"], rows),
        "",
        "## Hyperparameters of losses",
        "",
        table(["there", "here, where the loss has it"], synonyms),
        "",
        "## LoRA",
        "",
        table(["there", "here, in `lora:`"], [(f"`{word}`", f"`{name}`") for word, name in LORA.items()]),
        "",
        "## Losses",
        "",
        table(["TRL 1.16", "here"], _of_trl()),
        "",
    ])  # fmt: skip


def _of_trl() -> Iterator[tuple[str, str]]:
    from docs.site.losses import facts_of, title

    for name in LOSSES:
        if (theirs := str(facts_of(name).get("trl", "none"))) != "none":
            yield theirs, f"[{title(name)}](../losses/{name}.md), `loss: {name}`"
