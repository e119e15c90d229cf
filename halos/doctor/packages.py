"""Installed packages beside those of a lock file. It imports nothing that may be missing itself, but packaging."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
"""The checkout of this package."""
LOCK = "requirements.lock"
SHOWN = 6
"""Packages that a line names; it counts the others."""
Versions = dict[str, str]


def installed(folder: Path | None = None) -> Versions:
    """{canonical name: version} of the packages of this environment, or of another one's folder."""
    path = sys.path if folder is None else [str(site) for site in folder.glob("lib/python*/site-packages")]
    found: Versions = {}
    for distribution in metadata.distributions(path=path):
        found.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution.version)
    return found


def locked(file: Path) -> Versions:
    """{canonical name: version} of a lock file; of packages for some machines alone where this is one of them."""
    found: Versions = {}
    for line in file.read_text().replace("\\\n", "").splitlines():
        if pin := line.split("#")[0].split(" --hash")[0].strip():
            requirement = Requirement(pin)
            if requirement.marker is None or requirement.marker.evaluate():
                [exact] = requirement.specifier
                found[canonicalize_name(requirement.name)] = exact.version
    return found


def deviations(have: Versions, want: Versions) -> Versions:
    """{name: what it is instead} of packages that are not as wanted. A local version, such as +cu128, is no other."""
    other = {}
    for name, version in want.items():
        if name not in have:
            other[name] = f"{name} is not here ({version})"
        elif Version(have[name]).public != version:
            other[name] = f"{name} is {have[name]} ({version})"
    return other


def listed(texts: list[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")
