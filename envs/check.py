"""Resolve each environment against the package index, for GPU machines: `make check-envs`.

Reads metadata and downloads no package, but what is published as source only. Of the machine it is run on, nothing
matters: the target is Linux on x86-64 with glibc 2.31 or newer, and Python 3.11.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).parent
TARGET = ("--python-platform", "x86_64-manylinux_2_31", "--python-version", "3.11")
PURE = ("langdetect", "rouge-score", "sqlitedict", "word2number")
"""Of lm-eval's packages, those published as source only; all is Python. Whatever else had to be built would want
compilers on the users' machines, and so counts as not resolved."""


def requirements(file: Path) -> list[str]:
    """The pip part of an environment."""
    nested = [entry for entry in yaml.safe_load(file.read_text())["dependencies"] if isinstance(entry, dict)]
    return list(nested[0]["pip"])


def resolve(file: Path) -> tuple[bool, str]:
    """Whether an environment resolves, and the sentence that says so, or the resolver's own."""
    wheels = ["--only-binary", ":all:", *(word for name in PURE for word in ("--no-binary", name))]
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "requirements.in"), Path(folder, "requirements.txt")
        given.write_text("\n".join(requirements(file)) + "\n")
        command = ["uv", "pip", "compile", given, "--output-file", found, *TARGET, *wheels]
        done = subprocess.run([*command, "--quiet", "--no-header", "--no-annotate"], capture_output=True, text=True)
        if done.returncode:
            return False, done.stderr.strip()
        return True, f"resolves to {len(found.read_text().splitlines())} packages"


def main() -> int:
    resolved = []
    for file in sorted(HERE.glob("*.yaml")):
        ok, sentence = resolve(file)
        print(f"{file.name:14} {sentence}", flush=True)
        resolved.append(ok)
    return 0 if all(resolved) else 1


if __name__ == "__main__":
    sys.exit(main())
