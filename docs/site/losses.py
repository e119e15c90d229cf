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
from docs.site.tables import cell, table
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
    """A block of MathML, which browsers show without a script."""
    return f'<div class="equation">{convert(latex, display="block")}</div>'


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
        lines += [equation(about["equation"]), ""]
        where = about.get("where")
        lines += [inline(f"Here {where} The rest is the [notation](index.md#notation) of all losses."), ""] if where else [
            "In the [notation](index.md#notation) of all losses.", ""]  # fmt: skip
    lines += ["```text", paragraphs[0], "```", ""]
    lines += [line for paragraph in paragraphs[1:] for line in (_linked(" ".join(paragraph.split())), "")]
    if "when" in about:
        lines += ["## When to use it", "", about["when"], ""]
    lines += ["## What it reads", "", table(["", ""], _traits(loss)), ""]
    lines += ["## Hyperparameters", "", *_hyperparameters(name, loss), ""]
    lines += ["## In config.yaml", "", "```yaml", "stages:", f"  {name}: {_entry(name, loss)}", "```", ""]
    lines += [f"`sft-{name}` is then a method: this loss from the weights of SFT"
              f"{', which is also its reference' if loss.needs_reference else ''}.", ""] if name != "sft" else [
                  "`sft` is then a method, and the first stage of others, such as `sft-dpo`.", ""]  # fmt: skip
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


def _hyperparameters(name: str, loss: Any) -> list[str]:
    fields = dataclasses.fields(loss)
    if not fields:
        return ["None of its own."]
    return [table(["name", "default", "meaning"],
                  [(f"`{f.name}`", f"`{f.default}`", meaning(name, f.name)) for f in fields])]  # fmt: skip


def _entry(name: str, loss: Any) -> str:
    values = {"loss": name, **{f.name: f.default for f in dataclasses.fields(loss)}}
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _overview() -> str:
    notation = (inspect.getdoc(halos.losses) or "").split("\n\n")
    text = [
        "# Losses",
        "",
        f"{len(list(LOSSES))} losses, each a pure function of token log-probabilities. Each equals a closed form that is "
        "written out by hand, and TRL's own code where TRL has it: tests compare them.",
        "",
        "## Notation",
        "",
        inline(
            "For a response $y$ to a prompt $x$: $\\pi$ is the policy, $\\pi_{\\text{ref}}$ the reference, $|y|$ the number "
            "of tokens; $s = \\log \\pi(y \\mid x)$, summed over tokens; $m = s / |y|$; "
            "$r = \\log \\frac{\\pi(y \\mid x)}{\\pi_{\\text{ref}}(y \\mid x)}$, the log-ratio. The chosen response of a "
            "pair is $w$, the rejected one $l$; $\\sigma$ is the logistic function. An implicit reward is $\\beta r$."
        ),
        "",
        "The line below each equation is the same as it stands in the code, where "
        f"{' '.join(notation[1].split()).removeprefix('Notation, for a response y to a prompt x: ').rstrip('.')}.",
        "",
    ]
    for heading, names in groups().items():
        rows = [
            (f"[{title(n)}]({n}.md)", f"`{n}`", LOSSES[n].view.name, "yes" if LOSSES[n].needs_reference else "no",
             cell(facts_of(n).get("when", "")))
            for n in names
        ]  # fmt: skip
        text += [f"## {heading}", "", table(["loss", "name", "view", "reference", "when"], rows), ""]
    text += [*_BEYOND.split("\n"), ""]
    return "\n".join(text)


_BEYOND = """\
## What goes with any of them

A **mixture** is a weighted sum of losses on the same batch; `sft` beside losses of pairs is the mean negative log-likelihood of
the chosen response, and so is `sft_weight` of a stage.

```yaml
stages:
  rpo: { loss: dpo, beta: 0.1, sft_weight: 1.0 } # RPO, or DPO + SFT
  mpo: { loss: { dpo: 0.8, bco: 0.2, sft: 1.0 }, beta: 0.1 } # MPO
```

**Humanline** clamps the log-ratio of each token to the reference, which follows one step behind the policy: `humanline: true` on any
loss with a reference (Liu et al. 2025, [arXiv 2509.24207](https://arxiv.org/abs/2509.24207)).

**Moving references**: `sync_reference: N` brings the reference to the policy every N steps, by `sync_weight` only in part
(TR-DPO).

A **loss of your own** is one small file: [adding things](../tutorials/adding.md#a-loss)."""
