"""How the rules and the package are written."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from halos.registry import LOSSES
from halos.views import VIEWS
from tests.workflow.conftest import ROOT

RULES = sorted((ROOT / "rules").glob("*.smk"))
UNTIMED = {"configure", "sample", "judge", "judge_pair", "task", "check", "join", "snapshot", "fetch_model",
           "fetch_dataset", "fetch_task", "describe", "choose", "gather", "make_tables", "draw_figures",
           "write_overview", "write_responses", "write_cards", "make_crate"}  # fmt: skip
"""Rules whose jobs are local or take seconds."""


def rules_of(file: Path) -> dict[str, str]:
    """{name: text} of the rules of a file."""
    parts = re.split(r"^(?:use )?(?:rule|checkpoint) (\w+(?: as \w+ with)?):\n", file.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.name)
def test_a_rules_file_opens_with_a_docstring_and_each_rule_has_a_log_and_one_call(file: Path) -> None:
    text = file.read_text()
    assert text.startswith('"""')
    assert "Input:" in text
    assert "Output:" in text
    assert not re.search(r"\blambda\b|^\s*run:", text, flags=re.MULTILINE)
    for name, body in rules_of(file).items():
        assert re.match(r'    """[A-Z][^"\n]+\."""\n', body), f"{name}: its docstring is its line in `snakemake --list`"
        assert "    log:\n" in body, name
        if name not in UNTIMED:
            assert "    benchmark:\n" in body, name
        if " as " in name:  # the same call of another rule
            assert "    shell:\n" not in body, name
            continue
        assert "    shell:\n" in body, name
        if name not in ("configure", "sample", "judge", "judge_pair", "task", "gather"):  # these move text
            assert len(re.findall(r"python -m halos(?:\.distributed\.launch)? ", body)) == 1, name


def test_each_folder_of_the_package_that_makes_results_has_its_rules() -> None:
    stages = {file.stem for file in RULES} - {"common"}
    assert {name for name in stages if not (ROOT / "halos" / name).is_dir()} == set()
    included = re.findall(r'^include: "rules/(\w+)\.smk"', (ROOT / "Snakefile").read_text(), flags=re.MULTILINE)
    assert sorted(included) == sorted([*stages, "common"])


def test_what_rules_share_stays_small() -> None:
    assert len((ROOT / "rules/common.smk").read_text().splitlines()) < 100


def without_prose(source: str) -> str:
    """Python code without its comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            prose = [s for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
            node.body = [s for s in body if s not in prose] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def test_nothing_but_the_losses_names_a_loss() -> None:
    """(A view may be called like a loss: sft.)"""
    names = "|".join(set(LOSSES) - set(VIEWS))
    general = (
        "halos/train", "halos/workflow", "halos/forward", "halos/models", "halos/reference", "halos/distributed",
    )  # fmt: skip
    modules = [file for folder in general for file in sorted((ROOT / folder).rglob("*.py"))]
    found = Counter[str]()
    for file in [ROOT / "Snakefile", *RULES, *modules]:
        text = without_prose(file.read_text()) if file.suffix == ".py" else file.read_text()
        found[file.name] += len(re.findall(rf"(?<![a-z])({names})(?![a-z])", text, flags=re.IGNORECASE))
    assert found.total() == 0, found
