"""A page for each loss, made from the loss itself and from losses.yaml."""

from __future__ import annotations

import dataclasses
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert

import halos.losses
from docs.site.tables import table
from halos.registry import LOSSES

FACTS = Path(__file__).with_name("losses.yaml")
GROUPS = {
    "Imitation": "imitation",
    "Pairs, against a reference": "paired",
    "Pairs, with an eye to length": "lengths",
    "Pairs, without a reference": "reference_free",
    "Single responses": "unpaired",
    "Reward models": "reward_model",
}
"""Heading -> the file of halos/losses that has them."""
OWN = "Others"
"""Heading of losses of any other file."""
VIEWS = {
    "sft": "the target response of each prompt",
    "paired": "pairs of a chosen and a rejected response",
    "unpaired": "single responses, each desirable or not, or scored",
    "grouped": "all scored responses to a prompt",
}


@cache
def facts() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(FACTS.read_text())
    return content


def facts_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = facts()["losses"].get(name, {})
    return found


def title(name: str) -> str:
    return str(facts_of(name).get("title", name))


def groups() -> dict[str, list[str]]:
    """{heading: names of losses}, in the order in which they are defined."""
    of_file = {file: heading for heading, file in GROUPS.items()}
    found: dict[str, list[str]] = {heading: [] for heading in [*GROUPS, OWN]}
    names = {LOSSES[name]: name for name in LOSSES}
    for loss in LOSSES.values():
        found[of_file.get(loss.__module__.rsplit(".", 1)[-1], OWN)].append(names[loss])
    return {heading: losses for heading, losses in found.items() if losses}


def menu() -> list[Any]:
    """The menu's entries: the losses, by their groups."""
    return [{heading: [{title(name): f"losses/{name}.md"} for name in names]} for heading, names in groups().items()]


def equation(latex: str) -> str:
    """A block of MathML, which browsers show without a script; what follows a \\qquad has a line of its own."""
    lines = (convert(line.strip().rstrip(","), display="block") for line in latex.split(r"\qquad"))
    return f'<div class="equation">{"".join(lines)}</div>'


def inline(text: str) -> str:
    """A Markdown text whose $LaTeX$ has become MathML."""
    return re.sub(r"\$([^$]+)\$", lambda found: convert(found[1]), text)


def meaning(name: str, hyperparameter: str) -> str:
    """What a hyperparameter of a loss does; empty where nothing says it."""
    own = facts_of(name).get("hyperparameters", {})
    return str(own.get(hyperparameter, facts()["hyperparameters"].get(hyperparameter, "")))


def pages() -> dict[str, str]:
    """{page: Markdown} of the overview and of every loss."""
    return {"losses/index.md": _overview(), **{f"losses/{name}.md": page(name) for name in LOSSES}}


def page(name: str) -> str:
    """The page of a loss."""
    loss, about = LOSSES[name], facts_of(name)
    paragraphs = (inspect.getdoc(loss) or "").split("\n\n")
    lines = [f"# {title(name)}", ""]
    if "equation" in about:
        here = f"Here {about['where']} The rest is the" if "where" in about else "In the"
        lines += [equation(about["equation"]), "", inline(f"{here} [notation](index.md#notation) of all losses."), ""]
    lines += [f"`{' '.join(paragraphs[0].split())}`", ""]
    lines += [line for paragraph in paragraphs[1:] for line in (_linked(" ".join(paragraph.split())), "")]
    if "when" in about:
        lines += ["## When to use it", "", about["when"], ""]
    lines += ["## What it reads", "", table(["", ""], _traits(loss)), ""]
    lines += ["## Hyperparameters", "", _hyperparameters(name, loss), ""]
    lines += ["## In config.yaml", "", "```yaml", "stages:", f"  {name}: {_entry(name, loss)}", "```", ""]
    if name == "sft":
        lines += ["`sft` is then a method, and the first stage of others, such as `sft-dpo`.", ""]
    else:
        reference = ", which is also its reference" if loss.needs_reference else ""
        lines += [f"`sft-{name}` is then a method: this loss from the weights of SFT{reference}.", ""]
    if "trl" in about:
        lines += ["## Elsewhere", "", table(["", ""], [("TRL 1.16", about["trl"]), ("HALOs", about["halos"])]), ""]
    return "\n".join(lines)


def _linked(text: str) -> str:
    """A docstring's text with its papers linked, and what Markdown would take for emphasis left as it is."""
    text = text.replace("*", "\\*").replace("_", "\\_")
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"\((https?://[^)\s]+)\)", r"(<\1>)", text)


def _traits(loss: Any) -> list[tuple[str, str]]:
    made = loss()
    rows = [
        ("view", f"`{loss.view.name}`: {VIEWS.get(loss.view.name, ', '.join(loss.view.roles))}"),
        ("reference", "log-probabilities of the reference, computed once before training" if loss.needs_reference
         else "none"),
        ("objective", "a mean over the tokens of the global batch" if loss.per_token
         else "a mean over the examples of the global batch"),
    ]  # fmt: skip
    if loss.head is not None:
        heads = {"value": "a value head beside the output layer", "score": "a score head in place of the output layer"}
        rows.append(("head", heads[loss.head]))
    if loss.prepass:
        rows.append(("statistics", f"a pass without gradient over the {' and '.join(loss.prepass)} responses of the "
                                   "global batch comes first"))  # fmt: skip
    if made.control:
        tokens = ", ".join(f"`{token}` ({role})" for role, token in made.control.items())
        rows.append(("control tokens", f"{tokens}, between prompt and response"))
    if made.needs_scores:
        rows.append(("scores", "of each response, from the data or a `reward_model`"))
    return rows


def _hyperparameters(name: str, loss: Any) -> str:
    fields = dataclasses.fields(loss)
    rows = [(f"`{f.name}`", f"`{f.default}`", meaning(name, f.name)) for f in fields]
    return table(["name", "default", "meaning"], rows) if rows else "None of its own."


def _entry(name: str, loss: Any) -> str:
    values = {"loss": name, **{f.name: f.default for f in dataclasses.fields(loss)}}
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _overview() -> str:
    notation = " ".join((inspect.getdoc(halos.losses) or "").split("\n\n")[1].split())
    above, below = (FACTS.parent / "losses.md").read_text().split("<!-- all losses -->")
    text = [inline(above).replace("<!-- notation -->", notation)]
    for heading, names in groups().items():
        rows = []
        for name in names:
            reference = "yes" if LOSSES[name].needs_reference else "no"
            link, when = f"[{title(name)}]({name}.md)", facts_of(name).get("when", "")
            rows.append((link, f"`{name}`", LOSSES[name].view.name, reference, when))
        text += [f"## {heading}", "", table(["loss", "name", "view", "reference", "when"], rows), ""]
    return "\n".join([*text, below])
