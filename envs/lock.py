"""Lock every environment, each file of each package by its hash: `make locks`.

Versions that the locks name already are kept where what is asked for allows it. Reads metadata from the package index,
and downloads no package but those published as source only. Of the machine it is run on, nothing matters.

`--check` writes nothing and fails where a lock would come out otherwise: `make check-envs`.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from packaging.markers import Marker
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYTHON = "3.11"
"""Of the environments of rules, and the oldest one of the others."""
PYTHONS = ("3.11", "3.12", "3.13")
SOURCES = ("connection-pool", "docopt", "langdetect", "rouge-score", "sqlitedict", "word2number")
"""Packages published as source only; all are Python. Whatever else had to be built would want compilers on the users'
machines, and so counts as not to be had."""
CUDA = ("torch==", "triton==", "cuda-", "nvidia-c", "nvidia-n")
"""How the lines of torch and of what its CUDA build wants beside begin; nvidia-ml-py is not of these."""
Target = tuple[str, ...]
GPU: Target = ("--python-platform", "x86_64-manylinux_2_31", "--python-version", PYTHON)
ANYWHERE: Target = ("--universal", "--python-version", PYTHON)
MACHINES = ("x86_64", "aarch64", "arm64")


@dataclass(frozen=True)
class Lock:
    """A lock file, the requirements that it is made of, and for which machines."""

    file: str
    head: str
    given: tuple[str, ...]
    target: Target = ANYWHERE

    @property
    def path(self) -> Path:
        return ROOT / self.file


HEAD = """\
# Every package of the workflow, its checks and its tests but torch, for Linux and macOS and Python 3.11 to 3.13.
# Made by `make locks` from pyproject.toml. torch is in requirements-cuda.lock and requirements-cpu.lock.
"""
CUDA_HEAD = """\
# torch as the package index has it, and on Linux the CUDA libraries that it wants. Made by `make locks`.
"""
TRACKERS_HEAD = """\
# TensorBoard, Weights & Biases, Trackio and MLflow without its server, with what they need beside requirements.lock; of
# a few packages Trackio wants another version. Made by `make locks` from pyproject.toml.
"""
VLLM_HEAD = """\
# vLLM on the CPU, for Python 3.11: an environment of its own, because vLLM allows only its own versions of transformers
# and numpy. `make env-vllm` installs exactly these, without what they ask for beside: torchvision, torchaudio and
# torchcodec, which are for images and sound and do not load beside a CPU build of torch, and triton, which is for GPUs.
# GPU nodes have envs/sample.lock instead. The versions are those of an environment that passed tests/test_vllm.py (`pip
# freeze`); the hashes are made by `make locks`.
"""
ENV_HEAD = """\
# Made by `make locks` from envs/{name}.in, for Linux on x86-64 with glibc 2.31 or newer and Python 3.11. This is for
# pip and uv; envs/{name}.yaml has the same for conda.
"""
YAML_HEAD = """\
# Made by `make locks` from envs/{name}.in, which says what it is for, for Linux on x86-64 with glibc 2.31 or newer.
name: halos-{name}
channels:
  - conda-forge
dependencies:
  - python={python}
  - pip
  - pip:
"""
EXTRAS = ("build", "docs", "schedulers", "test")
PROJECT = ("pyproject.toml", *(word for name in EXTRAS for word in ("--extra", name)))
MAIN = Lock("requirements.lock", HEAD, PROJECT)
TRACKERS = Lock("requirements-trackers.lock", TRACKERS_HEAD, ("pyproject.toml", "--extra", "trackers"))
VLLM = Lock("requirements-vllm.lock", VLLM_HEAD, ("requirements-vllm.lock", "--no-deps"), GPU)
RULES = tuple(
    Lock(f"envs/{name}.lock", ENV_HEAD.format(name=name), (f"envs/{name}.in",), GPU)
    for name in sorted(file.stem for file in (ROOT / "envs").glob("*.in"))
)


def uv(*arguments: str) -> str:
    """The output of `uv pip compile`; exits with its words where it fails."""
    only = ["--only-binary", ":all:", *(word for name in SOURCES for word in ("--no-binary", name))]
    command = [Path(sys.executable).parent / "uv", "pip", "compile", *arguments, *only, "--quiet", "--no-header"]
    done = subprocess.run([*command, "--no-annotate"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{arguments[0]} does not resolve: {done.stderr.strip()}")
    return done.stdout


def fits(tag: Tag, target: Target) -> bool:
    """Whether files of this tag can be installed on one of the target's machines."""
    versions = PYTHONS if target is ANYWHERE else (PYTHON,)
    systems, machines = (("linux", "macosx"), MACHINES) if target is ANYWHERE else (("linux",), ("x86_64",))
    found = re.fullmatch(r"(py|cp)(\d)(\d*)", tag.interpreter)
    if not found:
        return False
    if found[1] == "py" or tag.abi == "abi3":
        python = Version(f"{found[2]}.{found[3] or 0}") <= Version(versions[-1])
    else:
        python = f"{found[2]}.{found[3]}" in versions
    platform = tag.platform.removeprefix("many")
    return python and (
        platform == "any" or (platform.startswith(systems) and platform.endswith((*machines, "universal2")))
    )


def everywhere(marker: str) -> bool:
    """Whether a marker holds on all machines that requirements.lock is for."""
    systems = {"linux": ("x86_64", "aarch64"), "darwin": ("x86_64", "arm64")}
    return all(
        Marker(marker).evaluate({"sys_platform": system, "platform_machine": machine, "python_full_version": f"{v}.9"})
        for system, machines in systems.items()
        for machine in machines
        for v in PYTHONS
    )


def hashes(requirements: str, target: Target) -> dict[tuple[str, str], list[str]]:
    """{(name, version): SHA-256 of its files}, wheels that fit the target; the source where there are none."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "requirements.in"), Path(folder, "pylock.toml")
        given.write_text(requirements)
        uv(str(given), "--no-deps", *target, "--format", "pylock.toml", "--output-file", str(found))
        packages = tomllib.loads(found.read_text())["packages"]
    of = {}
    for package in packages:
        wheels = [file for file in package.get("wheels", ()) if any(fits(tag, target) for tag in tags(file["url"]))]
        files = wheels or [package["sdist"]]
        of[package["name"], package["version"]] = sorted({file["hashes"]["sha256"] for file in files})
    return of


def tags(url: str) -> frozenset[Tag]:
    return parse_wheel_filename(unquote(PurePosixPath(urlsplit(url).path).name))[3]


def kept(lock: Lock) -> str:
    """The versions to keep, as requirements: the lock's own, or else those of an environment that has passed tests."""
    found: dict[str, str] = {}
    for path in (VLLM.path, MAIN.path, lock.path):
        for line in path.read_text().splitlines() if path.exists() else ():
            if pin := re.match(r"([\w.-]+)==([\w.]+)", line):
                found[canonicalize_name(pin[1])] = pin[2]
    return "".join(f"{name}=={version}\n" for name, version in found.items())


def lines(lock: Lock) -> list[str]:
    """The lines of a lock, one for each package: `name==version --hash=... ; marker`."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "requirements.txt")
        found.write_text(kept(lock))
        uv(*lock.given, *lock.target, "--output-file", str(found))
        requirements = found.read_text()
    of = hashes(requirements, lock.target)
    written = []
    for line in requirements.splitlines():
        pin, _, marker = line.partition(" ; ")
        name, version = pin.strip().split("==")
        options = [f"--hash=sha256:{value}" for value in of[canonicalize_name(name), version]]
        written.append(" ".join([pin.strip() if not marker or everywhere(marker) else line, *options]))
    return written


def locks() -> dict[str, tuple[str, list[str]]]:
    """{file: its head, its packages}, as they should be."""
    main = lines(MAIN)
    made = {
        MAIN.file: (MAIN.head, [line for line in main if not line.startswith(CUDA)]),
        "requirements-cuda.lock": (CUDA_HEAD, [line for line in main if line.startswith(CUDA)]),
        TRACKERS.file: (TRACKERS.head, [line for line in lines(TRACKERS) if line not in main]),
        VLLM.file: (VLLM.head, [line for line in lines(VLLM) if not line.startswith(CUDA)]),
    }
    for lock in RULES:
        name, found = Path(lock.file).stem, lines(lock)
        made[lock.file] = (lock.head, found)
        made[f"envs/{name}.yaml"] = (YAML_HEAD.format(name=name, python=PYTHON), [f"      - {line}" for line in found])
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a lock would change")
    check = parser.parse_args().check
    changed = False
    for file, (head, entries) in locks().items():
        path = ROOT / file
        was = path.read_text() if path.exists() else ""
        between = " --hash" if path.suffix == ".yaml" else " \\\n    --hash"
        should = head + "".join(entry.replace(" --hash", between) + "\n" for entry in entries)
        print(f"{file:28} {len(entries)} packages{'' if was == should else ', changed'}", flush=True)
        changed |= was != should
        if check:
            sys.stdout.writelines(difflib.unified_diff(was.splitlines(True), should.splitlines(True), n=0))
        else:
            path.write_text(should)
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
