"""A grid whose samples are written by hand, with a judge of kind human."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.annotate.ballot import Ballot, open_ballot
from halos.data import feedback as F
from halos.evaluate.judging.judge import judge
from halos.evaluate.judging.judgement import Judgement
from halos.sample.samples import Sample, write_samples
from halos.settings import dump
from halos.study.catalogue import load
from halos.study.cells import Cell
from halos.study.paths import Paths
from halos.study.slices import config_slice
from halos.study.study import Study
from tests.evaluate.judging.cases import record
from tests.workflow.conftest import CATALOGUE

ROOT = Path(__file__).parents[2]
MARKUP = "<b>bold</b> & <script>document.title = 'broken'</script>"


@dataclass
class Votes:
    """A folder with a config and the samples of two methods to 10 prompts: 20 comparisons with the data's targets."""

    folder: Path
    judge: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def write(self, **human: Any) -> Votes:
        content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
        content["judges"]["people"] = {"kind": "human", "human": human, "prompts": "p", "label": "People", **self.judge}
        content["grids"]["both"] |= {"methods": ["base", "sft"], "judges": ["people"], "tasks": []}
        self.config.write_text(dump(content))
        return self

    def sample(self, responses: int = 10) -> Votes:
        paths = Paths()
        records = [record(f"Question {i}?", f"The target's answer {i} is so long.") for i in range(responses)]
        file = paths.data("d").test
        file.parent.mkdir(parents=True, exist_ok=True)
        F.write(records, file)
        for method in ("base", "sft"):
            file = paths.run(Cell("d", "m", method, 1)).samples("p")
            file.parent.mkdir(parents=True, exist_ok=True)
            texts = [f"What {method} says, {i}. {MARKUP if i == 3 else ''}" for i in range(responses)]
            ids = [record.prompt_id for record in records]
            given = zip(ids, texts, strict=True)
            write_samples([Sample(prompt_id=id_, response=text, sample=0) for id_, text in given], file)
        return self

    def study(self) -> Study:
        return Study(load(self.config))

    def ballot(self) -> Ballot:
        return open_ballot(self.study(), Paths(), "people")

    def judged(self, method: str, opponent: str | None = None) -> Judgement:
        """What the rules `ask` and `ask_pair` write, run as they do."""
        study, paths = self.study(), Paths()
        run, folder = paths.run(Cell("d", "m", method, 1)), f"judges/people{f'/against/{opponent}' if opponent else ''}"
        config = self.folder / "judge.yaml"
        config.write_text(dump(config_slice(study.config, folder)))
        other = [] if opponent is None else [paths.run(Cell("d", "m", opponent, 1)).samples("p")]
        output = run.judged("people") if opponent is None else run.judged_against("people", opponent)
        people = study.config.judges["people"].human
        assert people is not None
        judge(config, run.samples("p"), paths.data("d").test, output, baseline=other, votes=people.files("people"))
        return Judgement.read(output)

    @contextmanager
    def served(self, *options: str) -> Iterator[str]:
        """The address of the page of a real process, which is killed at the end."""
        command = [sys.executable, "-m", "halos", "annotate", "--judge", "people", "--port", "0", *options]
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True, env=variables) as process:
            try:
                assert process.stdout is not None
                lines = [process.stdout.readline(), process.stdout.readline()]
                found = re.search(r"http://\S+", "".join(lines))
                assert found, lines
                yield found[0]
            finally:
                process.send_signal(signal.SIGKILL)


@pytest.fixture
def votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Votes:
    monkeypatch.chdir(tmp_path)
    return Votes(tmp_path).write().sample()
