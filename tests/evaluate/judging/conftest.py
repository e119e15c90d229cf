"""Each test of a judge has a folder to judge; where one asks a server, pauses are skipped and no key is set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluate.judging.cases import Case
from tests.scoring import api_server


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture
def local_server(monkeypatch: pytest.MonkeyPatch) -> None:
    api_server.skip_pauses(monkeypatch)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
