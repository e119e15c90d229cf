"""The verb: a table whatever happens, and an exit code that says whether the grid lacks something."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from halos.cli import main
from halos.doctor import lines as L
from halos.doctor.checks import hub
from halos.doctor.lines import ABSENT, OK, TO_DO, Line, row
from halos.doctor.setup import Setup
from halos.errors import HalosError
from tests.doctor.conftest import Answered, Make

Table = Callable[..., tuple[int, list[str], str]]
ROOT = Path(__file__).parents[2]


def fine(setup: Setup) -> Iterator[Line]:
    yield Line("fine", OK, "as it should be")


def absent(setup: Setup) -> Iterator[Line]:
    yield Line("absent", ABSENT, "not here | not\nneeded")


def broken(setup: Setup) -> Iterator[Line]:
    yield Line("begun", OK, "so far")
    raise ZeroDivisionError("division\nby nothing")


def refused(setup: Setup) -> Iterator[Line]:
    raise HalosError("put it there")
    yield


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Table:
    """The exit code, the table's rows and the error of the verb with these checks, in a folder without a config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Setup, "start", lambda self: None)

    def of(**checks: L.Check) -> tuple[int, list[str], str]:
        monkeypatch.setattr("halos.doctor.lines.CHECKS", checks)
        code = main(["doctor"])
        said = capsys.readouterr()
        return code, said.out.splitlines()[4:], said.err

    return of


def test_what_is_not_needed_is_no_failure(table: Table) -> None:
    code, rows, error = table(fine=fine, absent=absent)
    assert (code, error) == (0, "")
    assert rows == [
        "| ok    | fine               | as it should be |",
        "| -     | absent             | not here \\| not needed |",
    ]


def test_a_check_that_fails_is_one_line_and_the_others_go_on(table: Table) -> None:
    code, rows, error = table(broken=broken, fine=fine)
    assert code == 0
    assert rows[0] == row("ok", "begun", "so far")
    assert rows[1] == row("-", "broken", "could not be found out: ZeroDivisionError: division")
    assert rows[2] == row("ok", "fine", "as it should be")
    assert error == ""


def test_what_the_user_can_put_right_is_to_do_and_exit_code_1(table: Table) -> None:
    code, rows, error = table(refused=refused, fine=fine)
    assert code == 1
    assert rows[0] == row(TO_DO, "refused", "put it there")
    assert error.startswith("error: 1 of these lines")


def test_an_environment_that_cannot_import_halos_is_one_sentence_that_names_what_lacks(tmp_path: Path) -> None:
    code = "import sys\nsys.modules['torch'] = None\nfrom halos.cli import main\nsys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: this environment cannot run halos (")
    assert "torch" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_takes_long_is_started_at_once_and_the_hub_has_the_rest_of_the_minute(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[tuple[str, ...], float] = {}

    def probe(*names: str, seconds: float, **_: object) -> Answered:
        begun[names] = seconds
        return Answered({})

    monkeypatch.setattr("halos.doctor.setup.Probe", probe)
    monkeypatch.setattr("halos.doctor.setup.find_spec", lambda name: name if name == "vllm" else None)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    setup = make()
    setup.start()
    assert [*begun] == [("devices",), ("attention",), ("collective",), ("package", "vllm"),
                        ("cached", str(setup.config), "g")]  # fmt: skip
    list(hub.hub(setup))
    assert max(begun.values()) + begun["hub",] <= 60


def test_every_check_is_in_the_list() -> None:
    import halos.doctor.checks  # noqa: F401

    assert list(L.CHECKS) == ["python", "packages", "vLLM", "bitsandbytes", "trackers", "git", "grid", "API keys",
                              "GPU", "GPU locks", "torch", "attention", "processes", "Slurm", "hub", "disk", "memory",
                              "file systems"]  # fmt: skip


@pytest.mark.slow  # all probes: four processes that import torch
def test_without_config_network_or_results_it_says_what_there_is_and_changes_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "halos", "doctor", "--offline"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "could not be found out" not in done.stdout
    found = [line.split("|")[1:3] for line in done.stdout.splitlines()[4:]]
    assert ["ok", "attention sdpa"] in [[field.strip() for field in fields] for fields in found]
    assert list(tmp_path.iterdir()) == []
