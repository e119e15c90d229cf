"""Probes answer within their time, whatever happens in their processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from halos.doctor import answers
from halos.doctor.probe import Probe

Importing = Callable[..., dict[str, Any]]


@pytest.fixture
def importing(tmp_path: Path) -> Importing:
    """The answers of the probe that imports a package of this text."""

    def answered(text: str, seconds: float = 20.0) -> dict[str, Any]:
        (tmp_path / "subject.py").write_text(text)
        return Probe(
            "package", "subject", environment={**os.environ, "PYTHONPATH": str(tmp_path)}, seconds=seconds
        ).answers()

    return answered


def test_a_probe_answers_beside_what_libraries_print(importing: Importing) -> None:
    assert importing("print('hello')\nprint('{not json')\n__version__ = '1.2'") == {"version": "1.2"}


def test_an_error_is_its_first_line(importing: Importing) -> None:
    found = importing("raise OSError('libcuda.so is missing\\nand so on')")
    assert found == {"failure": "OSError: libcuda.so is missing"}


def test_a_crash_is_named(importing: Importing) -> None:
    assert importing("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)") == {"failure": "ended by SIGSEGV"}


def test_an_exit_without_an_answer_is_the_last_line_of_its_errors(importing: Importing) -> None:
    assert importing("import sys; sys.exit('no licence')") == {"failure": "no licence"}


def test_a_probe_that_hangs_is_ended_with_its_children(importing: Importing, tmp_path: Path) -> None:
    child = "import subprocess, sys, time\n"
    child += f"p = subprocess.Popen(['sleep', '1000'])\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))\n"
    assert importing(child + "time.sleep(1000)", seconds=2.0) == {"failure": "no answer within 2 seconds", "late": True}
    pid = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)


def test_the_drivers_version_is_asked_of_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuDriverGetVersion(self, pointer: Any) -> int:
            pointer._obj.value = 12080
            return 0

    def none(name: str) -> Driver:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("halos.doctor.answers.ctypes.CDLL", lambda name: Driver())
    assert answers.driver_version() == 12080
    monkeypatch.setattr("halos.doctor.answers.ctypes.CDLL", none)
    assert answers.driver_version() == 0


def test_attention_that_forgets_its_mask_differs_from_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    right = {name: value for answer in answers.attention() for name, value in answer.items()}
    assert right["eager"] == 0
    assert right["sdpa"] < 1e-5
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def unmasked(*tensors: Any, **options: Any) -> Any:
        return sdpa(*tensors, enable_gqa=options.get("enable_gqa", False))

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", unmasked)
    wrong = {name: value for answer in answers.attention() for name, value in answer.items()}
    assert wrong["sdpa"] > 0.5


def test_attention_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", broken)
    found = {name: value for answer in answers.attention() for name, value in answer.items()}
    assert found == {"eager": 0.0, "sdpa": "RuntimeError: no kernel"}


@pytest.mark.slow  # two processes that import torch, twice
def test_two_processes_add_up_and_say_why_they_cannot() -> None:
    good = Probe("collective", seconds=120)
    bad = Probe("collective", environment={**os.environ, "GLOO_SOCKET_IFNAME": "none0"}, seconds=120)
    assert good.answers() == {"backend": "gloo", "processes": 2, "sum": 3.0}
    failed = bad.answers()
    assert "none0" in failed["failure"]
    assert "sum" not in failed
