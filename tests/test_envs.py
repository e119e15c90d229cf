"""One version of a package everywhere: requirements.lock, pyproject.toml and the environments of the rules."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ENVS = sorted((ROOT / "envs").glob("*.yaml"))
OWN_VERSIONS = {"sample": {"transformers", "numpy"}}
"""Packages of which an environment needs another version than the lock: vLLM allows only its own."""


def pins(requirements: list[str]) -> dict[str, str]:
    """{canonical name: version} of requirements of the form name==version."""
    found = {}
    for line in requirements:
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
        assert match, f"{line} is not an exact pin"
        found[canonicalize_name(match[1])] = match[2]
    return found


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


def environment(file: Path) -> dict[str, str]:
    content = yaml.safe_load(file.read_text())
    assert "python=3.11" in content["dependencies"]
    nested = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    return pins(nested[0])


def test_every_group_of_rules_has_an_environment() -> None:
    assert [file.stem for file in ENVS] == ["evaluate", "report", "sample", "train"]


@pytest.mark.parametrize("file", ENVS, ids=lambda file: file.stem)
def test_environments_agree_with_the_lock(file: Path) -> None:
    locked, own = lock(), environment(file)
    differing = {name for name, version in own.items() if locked.get(name, version) != version}
    assert differing == OWN_VERSIONS.get(file.stem, set())


@pytest.mark.parametrize("file", ENVS, ids=lambda file: file.stem)
def test_environments_hold_what_the_package_imports_first(file: Path) -> None:
    assert {"pydantic", "pyyaml", "pyarrow", "tqdm", "numpy", "jinja2"} <= set(environment(file))


def test_the_lock_holds_every_dependency_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = lock()
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), line
