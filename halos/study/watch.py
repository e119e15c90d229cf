"""The verb `watch`: what is trained now, read from the logs that grow."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.study.listing import aligned
from halos.study.paths import Paths
from halos.train.log import TRAINING, Log, Training

SILENT = 300
"""Seconds without a line of the log after which a run may have ended, at least."""
RECENT = 20
"""Steps whose mean time tells how long the others will take."""
CLEAR = "\x1b[H\x1b[2J"
"""What clears a terminal."""


@dataclass(frozen=True)
class Watched:
    """A run that is trained, or was stopped, by its files.

    Attributes:
        folder: the folder of its log.
        training: the file beside the log.
        lines: the log.
        age: seconds since it, or the file beside it, was written.
    """

    folder: Path
    training: Training
    lines: list[dict[str, Any]]
    age: float

    @classmethod
    def read(cls, folder: Path) -> Watched:
        """
        Raises:
            FileNotFoundError: the run has ended in the meantime.
        """
        log, file = Log(folder / "train.jsonl"), folder / TRAINING
        written = max(path.stat().st_mtime for path in (log.path, file))
        return cls(folder, Training.model_validate_json(file.read_bytes()), log.lines()[0], time.time() - written)

    def row(self, runs: Path) -> dict[str, Any]:
        """Its row of the table: values of the last step, and of the last evaluation where there are some."""
        steps = [line for line in self.lines if line["split"] == "train"]
        evaluated = [line for line in self.lines if line["split"] == "eval"]
        last, recent = (steps[-1] if steps else {}), [line["seconds"] for line in steps[-RECENT:]]
        left = sum(recent) / len(recent) * (self.training.steps - last["step"]) if recent else None
        silent = self.age > max(SILENT, 10 * max(recent, default=0.0))
        state = f"silent for {_time(self.age)}" if silent else f"{_time(left)} left" if left is not None else "begins"
        return {
            "run": str(self.folder.parent.relative_to(runs)),
            "step": f"{last.get('step', 0)} of {self.training.steps}",
            "loss": _number(last, "loss"),
            "eval loss": _number(evaluated[-1] if evaluated else {}, "loss"),
            "margin": _number(last, "rewards/margin"),
            "accuracy": _number(last, "rewards/accuracy"),
            "tokens/s": f"{last['tokens_per_second']:.0f}" if last else "",
            "time": state,
        }


def watch(results: Path = Path("results"), every: float = 2.0, once: bool = False) -> None:
    """Show what is trained now, from the logs in the results folder: on this machine or on a cluster.

    A run that has written nothing for five minutes, or for ten times its longest step of late, is shown as silent: it
    was stopped, or waits. The time left is that of the steps, without evaluations. Ctrl-C ends it; no training does.

    Args:
        results: the results folder
        every: seconds between two looks
        once: print one table and end

    Raises:
        HalosError: there is no results folder.
    """
    if not results.is_dir():
        raise HalosError(f"there is no {results}: name the results folder by --results")
    try:
        while True:
            text = table(results)
            print(text if once else f"{CLEAR}{time.strftime('%H:%M:%S')}\n{text}", flush=True)
            if once:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        return


def table(results: Path) -> str:
    """The table of the runs that are trained, or were stopped, in a results folder."""
    rows = []
    for folder in Paths(results).training():
        try:
            rows.append(Watched.read(folder).row(results / "runs"))
        except FileNotFoundError:  # it has ended
            continue
    return aligned(rows) if rows else "nothing is trained now"


def _number(line: dict[str, Any], name: str) -> str:
    return f"{line[name]:.4g}" if name in line else ""


def _time(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
