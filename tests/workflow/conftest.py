"""The project's files in a folder of their own, and real `snakemake` commands in it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.conftest import CATALOGUE as SMALL
from tests.workflow.warm import Warm

ROOT = Path(__file__).parents[2]
TIMEOUT = 240

CATALOGUE: dict[str, Any] = {
    "grid": "both",
    "models": {
        "m": {
            **SMALL["models"]["m"],
            "resources": {"cpus": 1, "mem_gb": 2, "runtime": 20, "tokens_per_microbatch": 2048, "generate_batch": 8},
        }
    },
    "datasets": {
        "d": {"sources": [{"name": "toy", "options": {"prompts": 200, "test_prompts": 24}}], "max_length": 100,
              "max_prompt_length": 60, "eval_examples": 8}
    },
    "stages": {
        "sft": {"loss": "sft", "lr": 1e-3, "batch_size": 8, "examples": 64, "label": "SFT"},
        "dpo": {"loss": "dpo", "lr": 1e-3, "batch_size": 8, "examples": 32},
        "kto": {"loss": "kto", "lr": 1e-3, "batch_size": 8, "examples": 32, "beta": 0.1},
        "simpo": {"loss": "simpo", "lr": 1e-3, "batch_size": 8, "examples": 32},
        # of no grid: enough steps to be stopped in the middle of them
        "long": {"loss": "kto", "lr": 1e-3, "batch_size": 4, "examples": 400, "epochs": 4, "checkpoint_every": 2},
    },
    "prompts": {"p": {"limit": 8, "max_new_tokens": 8}},
    "judges": {"j": {"kind": "verifier", "verifier": "toy", "prompts": "p"}},
    "tasks": {"t": {"local": "preferences", "limit": 10}},
    "grids": {
        "pair": {"datasets": ["d"], "models": ["m"], "methods": ["sft-dpo"], "judges": ["j"], "tasks": ["t"]},
        "both": {"datasets": ["d"], "models": ["m"], "methods": ["base", "sft-dpo", "sft-kto"], "judges": ["j"],
                 "tasks": ["t"]},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One job that snakemake announced: its rule and the lines below it."""

    rule: str
    fields: dict[str, str] = field(hash=False)

    @property
    def wildcards(self) -> dict[str, str]:
        return _pairs(self.fields.get("wildcards", ""))

    @property
    def resources(self) -> dict[str, str]:
        return _pairs(self.fields["resources"])

    @property
    def input(self) -> list[str]:
        return self.fields.get("input", "").split(", ")

    @property
    def name(self) -> str:
        """The rule and what it is about: `train_cell sft-kto/seed1`, `configure grids/both`, `check d/m/sft`; KEY for
        the key of a batch."""
        w = self.wildcards
        cell = "/".join(w[k] for k in ("method", "run") if k in w)
        about = cell or w.get("folder", "/".join(w.values()))
        extra = [w[k] for k in ("part", "prompts", "judge", "task") if k in w and "method" in w]
        name = " ".join([self.rule, about, *extra]).strip()
        return re.sub("(answering/|judging/|^decide )[0-9a-f]{12}", r"\1KEY", name)


def _pairs(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(", ") if "=" in part)


@dataclass(frozen=True)
class Run:
    """A finished command."""

    code: int
    output: str
    seconds: float

    @property
    def jobs(self) -> list[Job]:
        """The jobs that it ran or, in a dry run, would run."""
        jobs: dict[str, Job] = {}
        for block in re.split(r"^(?:local)?(?:rule|checkpoint) ", self.output, flags=re.MULTILINE)[1:]:
            head, *lines = block.split("\n")
            if not head.endswith(":"):
                continue
            fields = {}
            for line in lines:
                if not line.startswith("    "):
                    break
                name, _, value = line.strip().partition(": ")
                fields[name.rstrip(":")] = value
            jobs[fields["jobid"]] = Job(head[:-1], fields)
        return list(jobs.values())

    @property
    def names(self) -> list[str]:
        """The jobs' names, in order, without those that only gather files."""
        return sorted(job.name for job in self.jobs if job.fields.get("output"))

    @property
    def rules(self) -> Counter[str]:
        return Counter(job.rule for job in self.jobs)

    def ok(self) -> Run:
        assert self.code == 0, self.output
        return self

    def failed(self) -> Run:
        assert self.code != 0, self.output
        assert "Traceback" not in self.output, self.output
        return self


@dataclass(frozen=True)
class Project:
    """A copy of the project in which commands are run, with these variables in their environment.

    `python` is the folder of the Python that jobs run, before that of this environment.
    """

    path: Path
    variables: dict[str, str] = field(default_factory=dict, kw_only=True, hash=False)
    python: Path = field(default=Path(sys.executable).parent, kw_only=True)

    @property
    def results(self) -> Path:
        return self.path / "results"

    def cell(self, method: str, seed: int = 1) -> Path:
        return self.results / f"runs/d/m/{method}/seed{seed}"

    def read_config(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load((self.path / "config.yaml").read_text())
        return content

    def write_config(self, content: dict[str, Any]) -> None:
        (self.path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def edit(self, changes: dict[str, Any]) -> Project:
        """Change entries of config.yaml, each named by its path: {"stages.kto.beta": 0.2}."""
        content = self.read_config()
        for path, value in changes.items():
            *parents, last = path.split(".")
            entry = content
            for parent in parents:
                entry = entry[parent]
            entry[last] = value
        self.write_config(content)
        return self

    def copy(self, to: Path) -> Project:
        """The same, results and Snakemake's records included, with their times."""
        subprocess.run(["cp", "-a", str(self.path), str(to)], check=True, timeout=60)
        return replace(self, path=to)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SNAKEMAKE_", "PYTHON", "PYTEST_"))}
        path = f"{self.python}:{Path(sys.executable).parent}:{kept['PATH']}"
        return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **self.variables, **more}

    def snakemake(self, *arguments: str, timeout: float = TIMEOUT, **environment: str) -> Run:
        """`snakemake ARGUMENTS`, as a user types it."""
        begun = time.monotonic()
        with self.started(*arguments, **environment) as (process, log):
            process.wait(timeout)
        return Run(process.returncode, log.read_text(), time.monotonic() - begun)

    def command(self, *arguments: str) -> list[str]:
        return ["snakemake", *arguments]

    def dry(self, *arguments: str) -> Run:
        return self.snakemake("-n", *arguments, timeout=60).ok()

    @contextmanager
    def started(self, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """A running `snakemake`, in a process group of its own that is gone afterwards, and the file of its output."""
        log = self.path / "output.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.command(*arguments), cwd=self.path, env=self.environment(**environment),
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            yield process, log
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)


def trainer_of(process: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The `python -m halos train` that a running snakemake has started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[1:4] == ["-m", "halos", "train"]:
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def wait_for_checkpoint(process: subprocess.Popen[bytes], cell: Path, log: Path) -> None:
    """Return as soon as the run that is being trained has a checkpoint."""
    deadline = time.monotonic() + 120
    while not any((cell / "checkpoints").glob("step*")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def copy_files(to: Path) -> Path:
    """What a fresh clone would hold, with the changes that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, timeout=60, capture_output=True
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, to / name
        if not os.path.lexists(source) or name.startswith("tests/"):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    return to


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with its own config.yaml, and nothing made yet. For dry runs only."""
    return Project(copy_files(tmp_path_factory.mktemp("project")))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with a config.yaml of seconds, and nothing made yet. For dry runs and for copies."""
    project = Project(copy_files(tmp_path_factory.mktemp("small")))
    project.write_config(CATALOGUE)
    return project


@pytest.fixture(scope="session")
def warm(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """`small`, whose jobs do not wait for imports. For copies that are run, unless they kill or look for a process."""
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield replace(small, python=server.folder)
    server.stop()


@pytest.fixture
def quick(warm: Project, tmp_path: Path) -> Project:
    """A copy of `warm` to edit and to run."""
    return warm.copy(tmp_path / "project")


@pytest.fixture
def fresh(small: Project, tmp_path: Path) -> Project:
    """A copy of `small` to edit and to run."""
    return small.copy(tmp_path / "project")
