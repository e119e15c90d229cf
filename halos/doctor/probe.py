"""A question that is answered in a process of its own, within a time limit: an answer that crashes, hangs or fills a
GPU harms nobody. The answers are in halos/doctor/answers.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MODULE = "halos.doctor.answers"
SECONDS = 45.0
"""Limit of a probe from its start. Those that take long are started at once, so that the doctor takes a minute."""
FAILURE, LATE = "failure", "late"
"""Keys under which answers say why they lack others, and whether the reason is the limit of time."""


class Probe:
    """A question, asked when it is made.

    Args:
        name: a function of halos/doctor/answers.py.
        arguments: its arguments.
        python: the interpreter; by default this one.
        environment: the environment variables; by default those of this process.
        seconds: the time limit.
    """

    def __init__(
        self,
        name: str,
        *arguments: str,
        python: str | None = None,
        environment: Mapping[str, str] = os.environ,
        seconds: float = SECONDS,
    ) -> None:
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  # until `end`
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", MODULE, name, *arguments],
            env={**environment, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            start_new_session=True,
        )

    def answers(self) -> dict[str, Any]:
        """What was answered so far, once the process ended or its time is up: `failure` says why something lacks."""
        late = False
        try:
            self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = True
        self.end()
        found: dict[str, Any] = {}
        for line in self._lines(self._output):
            with suppress(ValueError):  # of others: libraries print, too
                content = json.loads(line)
                found |= content if isinstance(content, dict) else {}
        code = self._process.returncode
        if late:
            found |= {FAILURE: f"no answer within {self._seconds:g} seconds", LATE: True}
        elif code < 0:
            found[FAILURE] = f"ended by {signal.Signals(-code).name}"
        elif code and FAILURE not in found:
            found[FAILURE] = next(reversed(self._lines(self._errors)), f"ended with code {code}")
        return found

    def end(self) -> None:
        """End the process and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @staticmethod
    def _lines(file: Any) -> list[str]:
        file.seek(0)
        return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
