"""The package by itself, installed as users install it; and the files that other services read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos import __version__
from halos.cli import VERBS
from tests.workflow.conftest import copy_files

ROOT = Path(__file__).parents[1]


class Installed:
    """The command `halos` of a package that is installed into a folder of its own, called in another one."""

    def __init__(self, site: Path, elsewhere: Path) -> None:
        self.site, self.elsewhere = site, elsewhere

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.site / "bin/halos"), *words], cwd=self.elsewhere, capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": str(self.site)},
        )  # fmt: skip


@pytest.fixture(scope="module")
def halos(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("package")
    source = copy_files(folder / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, timeout=120)
    (folder / "elsewhere").mkdir()
    return Installed(folder / "site", folder / "elsewhere")


def test_an_installed_package_has_its_command_wherever_it_is_called(halos: Installed) -> None:
    shown = halos("--help").stdout
    assert all(re.search(rf"^ +{verb}\b", shown, re.MULTILINE) for verb in VERBS)
    assert halos("--version").stdout.strip() == __version__
    files = [file for file in (ROOT / "halos").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert [file for file in files if not (halos.site / file.relative_to(ROOT)).exists()] == []


@pytest.mark.parametrize("words", [("list", "cells"), ("plan",)])
def test_a_verb_that_reads_the_projects_config_says_so_in_a_sentence(words: tuple[str, ...], halos: Installed) -> None:
    done = halos(*words)
    sentence = "error: there is no config file config.yaml; run from the project's folder or name one by --config\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_a_verb_that_needs_the_workflow_says_so_in_a_sentence(halos: Installed) -> None:
    content = yaml.safe_load((ROOT / "config.yaml").read_text())
    (halos.elsewhere / "study.yaml").write_text(yaml.safe_dump(content))
    slice = halos("config", "grids/demo", "--config", "study.yaml").stdout
    (halos.elsewhere / "grid.yaml").write_text(slice)
    done = halos("crate", "--config", "grid.yaml", "--output", "crate.zip")
    assert done.returncode == 1
    assert re.fullmatch(
        "error: there is no Snakefile in .*: make the crate from a checkout of the workflow\n", done.stderr
    )


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_catalog_of_workflows_finds_what_it_asks_for() -> None:
    """A README with two words, a Snakefile, rules, and what deploys its software."""
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme
    assert "workflow" in readme
    assert (ROOT / "Snakefile").exists()
    assert list((ROOT / "rules").glob("*.smk"))
    deployed = read(".snakemake-workflow-catalog.yml")["usage"]["software-stack-deployment"]
    assert deployed["conda"] is any("conda:" in rule.read_text() for rule in (ROOT / "rules").glob("*.smk"))


def test_a_commit_is_checked_as_make_lint_checks() -> None:
    hooks = [hook["entry"] for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    [line] = re.findall(r"^lint: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert hooks == [f"make {target}" for target in line.split()]


def test_a_bug_report_asks_for_what_the_doctor_prints() -> None:
    form = read(".github/ISSUE_TEMPLATE/bug.yml")
    [doctor] = [field for field in form["body"] if field.get("id") == "doctor"]
    assert "python -m halos doctor" in doctor["attributes"]["label"]
    assert doctor["validations"]["required"]
    assert {field["type"] for field in form["body"]} <= {"textarea", "checkboxes", "input", "dropdown", "markdown"}
