"""One version of a package everywhere: the lock files, pyproject.toml and the environments of the rules."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from halos.cli import VERBS
from halos.train.trackers import PACKAGES

ROOT = Path(__file__).parents[1]
ENVS = sorted((ROOT / "envs").glob("*.yaml"))
TRIED = {"sample": "requirements-vllm.lock", "train": "requirements-trackers.lock"}
"""Environments with packages that allow only other versions of some than requirements.lock has, and where those are."""
UNTRIED = {"sample": {"apache-tvm-ffi"}}
"""Packages whose versions here, on CPUs, are not allowed by what GPUs need beside."""
LOCKS = sorted(file.name for file in ROOT.glob("*.lock"))


def pins(requirements: list[str]) -> dict[str, str]:
    """{canonical name: version} of requirements of the form name==version."""
    found = {}
    for line in requirements:
        match = re.fullmatch(r"([\w.-]+)==([\w.+]+)(?: ; [^#]+?)?((?: --hash=sha256:[0-9a-f]{64})*)", line)
        assert match, f"{line} is not an exact pin"
        found[canonicalize_name(match[1])] = match[2]
    return found


def entries(file: Path) -> list[str]:
    """The lines of a lock file, each with its hashes."""
    text = re.sub(r" \\\n +", " ", file.read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def lock(name: str = "requirements.lock") -> dict[str, str]:
    return pins(entries(ROOT / name))


def environment(file: Path) -> dict[str, str]:
    return pins(listed(file))


def listed(file: Path) -> list[str]:
    """The pip part of an environment."""
    content = yaml.safe_load(file.read_text())
    assert "python=3.11" in content["dependencies"]
    [nested] = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    return list(nested)


def asked(name: str) -> dict[str, str]:
    """What a person asks of an environment."""
    lines = (line.split(" #")[0].strip() for line in (ROOT / f"envs/{name}.in").read_text().splitlines())
    return pins([line for line in lines if line and not line.startswith("#")])


@pytest.mark.parametrize("name", [*LOCKS, *(f"envs/{file.stem}.lock" for file in ENVS)])
def test_locks_know_each_file_by_its_hash(name: str) -> None:
    assert (ROOT / name).read_text().startswith("# ")
    assert len(lock(name)) == len(entries(ROOT / name)) > 0
    assert [line for line in entries(ROOT / name) if "--hash=sha256:" not in line] == []


@pytest.mark.parametrize("file", ENVS, ids=lambda file: file.stem)
def test_an_environment_is_the_same_for_conda_and_for_pip_and_has_what_was_asked(file: Path) -> None:
    assert listed(file) == entries(file.with_suffix(".lock"))
    assert asked(file.stem).items() <= environment(file).items()


def test_torch_is_the_same_version_with_and_without_cuda() -> None:
    assert set(lock("requirements-cpu.lock")) == {"torch"}
    cpu, cuda = lock("requirements-cpu.lock")["torch"], lock("requirements-cuda.lock")["torch"]
    assert (cpu.split("+"), "torch" in lock()) == ([cuda, "cpu"], False)


def test_every_group_of_rules_has_an_environment() -> None:
    assert [file.stem for file in ENVS] == ["evaluate", "report", "sample", "train"]


@pytest.mark.parametrize("file", ENVS, ids=lambda file: file.stem)
def test_environments_agree_with_the_lock(file: Path) -> None:
    locked, own = lock() | lock("requirements-cuda.lock"), environment(file)
    tried = lock(TRIED[file.stem]) if file.stem in TRIED else {}
    others = {name for name in own.keys() & (locked.keys() | tried.keys())
              if own[name] not in (locked.get(name), tried.get(name))}  # fmt: skip
    assert others == UNTRIED.get(file.stem, set())


LAUNCHER = r"halos\.distributed\.launch [^\n]*\} "


def modules(name: str) -> set[str]:
    """The modules of the verbs of the rules that run in an environment, and of their launcher."""
    rules = [
        rule for file in (ROOT / "rules").glob("*.smk") for rule in re.split(r"^rule ", file.read_text(), flags=re.M)
    ]
    text = "".join(rule for rule in rules if f"envs/{name}.yaml" in rule)
    verbs = re.findall(rf"\b(?:halos |{LAUNCHER})([a-z]+) ", text)
    launched = {"halos.distributed.devices"} if re.search(LAUNCHER, text) else set()
    return {"halos.cli", *launched, *(VERBS[verb].split(":")[0] for verb in verbs)}


def imported(module: str, deferred: bool) -> Iterator[str]:
    """The modules that a module of the package imports when it is imported or, deferred, in its functions as well; of
    what it imports from the package, what that imports when it is imported."""
    waiting, seen = [(module, deferred)], set()
    while waiting:
        name, inside = waiting.pop()
        found = importlib.util.find_spec(name) if name not in seen else None
        seen.add(name)
        if found is None or found.origin is None:
            continue
        for node in statements(ast.parse(Path(found.origin).read_text()), inside):
            base = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            for other in base:
                if other.split(".")[0] == "halos":
                    waiting.append((other, False))
                else:
                    yield other.split(".")[0]


def statements(node: ast.AST, inside: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        only_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not only_types and (inside or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from statements(child, inside)


def brought(names: set[str]) -> set[str]:
    """The packages and all that they depend on."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        try:
            needed = metadata.requires(name) if name not in found else None
        except metadata.PackageNotFoundError:  # of GPU machines alone
            needed = None
        found.add(name)
        wanted = [Requirement(line) for line in needed or ()]
        waiting += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.parametrize("file", ENVS, ids=lambda file: file.stem)
def test_environments_hold_what_their_verbs_import(file: Path) -> None:
    names = {name for module in modules(file.stem) for name in imported(module, deferred=True)}
    of_module = metadata.packages_distributions()
    needed = {canonicalize_name(of_module[name][0]) for name in names - sys.stdlib_module_names if name in of_module}
    assert len(needed) > 5
    assert needed - brought(set(environment(file))) == set()


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("train", ["kernels cannot be installed: without it", "liger-kernel cannot be installed: without it",
                   "no nvcc: without flash-attn"]),
        ("evaluate", ["kernels cannot be installed: without it"]),
    ],
)  # fmt: skip
def test_kernels_are_the_projects_and_what_cannot_be_installed_is_left_out(
    name: str, left_out: list[str], tmp_path: Path
) -> None:
    script = ROOT / f"envs/{name}.post-deploy.sh"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"pip install (?:--\S+ )*\"?([a-z-]+[<>=][^\s\"]+)", script.read_text())
    gpu = project["optional-dependencies"]["gpu"]
    assert sorted(named) == sorted(gpu if name == "train" else [line for line in gpu if line.startswith("kernels")])
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "bash").symlink_to("/bin/bash")
    done = subprocess.run(
        ["/bin/bash", script], env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == left_out


def test_the_lock_holds_every_dependency_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked, extras = lock() | lock("requirements-cuda.lock"), project["optional-dependencies"]
    installed = (line for name in ("test", "docs", "build", "schedulers") for line in extras[name])
    for line in (*project["dependencies"], *installed):
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), line


def test_trackers_are_the_projects_wherever_they_are_installed() -> None:
    wanted = pins(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["trackers"])
    locked = lock("requirements-trackers.lock")
    train = environment(ROOT / "envs/train.yaml")
    assert wanted.keys() == {*map(canonicalize_name, PACKAGES.values())}
    assert {name: (locked[name], train[name]) for name in wanted} == {name: (v, v) for name, v in wanted.items()}


def test_an_image_has_the_files_that_its_environment_is_made_of(tmp_path: Path) -> None:
    text = (ROOT / "envs/halos.def").read_text()
    files = re.findall(r"^    (\S+) /opt/halos/(\S+)$", text, flags=re.M)
    for source, target in files:
        shutil.copy(ROOT / source, tmp_path / target)
    commands = re.search(r"^    cd /opt/halos\n    (make .+)$", text, flags=re.M)
    assert commands is not None
    done = subprocess.run([*commands[1].split(), "--dry-run"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name, _ in files if name.endswith(".lock") and name not in done.stdout] == []
