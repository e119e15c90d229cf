"""The tutorials of docs/tutorials: their files, and their commands, which are typed in a copy of the project."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.workflow.conftest import ROOT, Project

TUTORIALS = ROOT / "docs/tutorials"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"(?:#|\.\.) (\S+\.(?:py|ya?ml|rst))\n")
MAY_FIND_FAULT = ("python -m halos doctor",)
"""Commands that end with 1 where the machine lacks something, which machines of tests do."""


@dataclass(frozen=True)
class Tutorial:
    """A page of docs/tutorials: its files and commands, in their order."""

    name: str

    @property
    def blocks(self) -> list[tuple[str, str]]:
        return BLOCK.findall((TUTORIALS / f"{self.name}.md").read_text())

    @property
    def commands(self) -> list[str]:
        """The lines of all blocks of commands."""
        return [line for language, text in self.blocks if language == "bash" for line in text.splitlines()]

    def write_files(self, folder: Path) -> None:
        """Write every block that begins with the name of a file."""
        for language, text in self.blocks:
            if language != "bash" and (named := NAMED.match(text)):
                path = folder / named[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text.removeprefix(named[0]) if language == "rst" else text)

    def run(self, type_in: Callable[[str], tuple[int, str]]) -> dict[str, str]:
        """{command: what it printed} of all commands, each of which must succeed."""
        printed = {}
        for command in self.commands:
            code, printed[command] = type_in(command)
            assert code in ((0, 1) if command.startswith(MAY_FIND_FAULT) else (0,)), f"{command}\n{printed[command]}"
            assert "Traceback" not in printed[command], printed[command]
        return printed


def typed(project: Project, command: str, wrap: Callable[[Sequence[str]], Sequence[str]] = list) -> tuple[int, str]:
    """A line as a user types it in the project's folder: its exit code, and what it prints."""
    done = subprocess.run(
        wrap(["bash", "-c", command]), cwd=project.path, env=project.environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400,
    )  # fmt: skip
    return done.returncode, done.stdout
