"""Trackers that show a run while it is trained: TensorBoard, Weights & Biases, Trackio and MLflow, through accelerate.

train.jsonl is the record of a run, and trackers are told what it holds. An attempt that goes on from a checkpoint
trains the steps after it anew, to the same values, and some of them a tracker may already have. So the files of
TensorBoard, of Trackio and of Weights & Biases offline are written anew from the log as an attempt begins; MLflow and a
server of Weights & Biases are told only what they do not have. A run that was stopped anywhere is one curve, and so is
one that is given a tracker later on.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.errors import HalosError
from halos.registry import suggest
from halos.train.log import Log

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow-skinny"}
"""tracker -> the package that has to be installed for it; a module has the tracker's name."""
TAG = "halos.training"
"""The tag of MLflow's runs with the key of their training."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that there are not, or whose package is not installed in this environment.

    Raises:
        HalosError: naming the tracker.
    """
    for name in names:
        if name not in PACKAGES:
            raise HalosError(f"there is no tracker {name!r}{suggest(name, PACKAGES)}")
        if find_spec(name) is None:
            raise HalosError(
                f"the tracker {name} is not installed in this environment: `pip install {PACKAGES[name]}` there, or "
                f"take it out of `trackers`"
            )


@dataclass(frozen=True)
class Tracking:
    """Where a run is shown.

    Attributes:
        names: the trackers.
        project: the name under which they file the run.
        folder: the folder of the files of those that write some.
    """

    names: tuple[str, ...] = ()
    project: str = "halos"
    folder: Path = Path("results/trackers")


@dataclass(frozen=True)
class Shown:
    """A run within a project, as trackers are to show it.

    Attributes:
        name: its name: the path of its cell.
        key: the key of its training.
        settings: the slice of the config that it is made of.
        done: the last step in the log as the attempt begins; -1 for none.
    """

    name: str
    key: str
    settings: dict[str, Any]
    done: int


Lacks = Callable[[str, int], bool]
"""(metric, step) -> whether a tracker lacks it."""


def _tensorboard(to: Tracking, run: Shown) -> tuple[GeneralTracker, Lacks]:
    from accelerate.tracking import TensorBoardTracker

    shutil.rmtree(to.folder / "tensorboard" / run.name, ignore_errors=True)
    # what is already shown of it is forgotten as well
    tracker = TensorBoardTracker(run.name, to.folder / "tensorboard", purge_step=0)
    tracker.start()
    return tracker, lambda metric, step: True


def _wandb(to: Tracking, run: Shown) -> tuple[GeneralTracker, Lacks]:
    from accelerate.tracking import WandBTracker

    to.folder.mkdir(parents=True, exist_ok=True)
    for earlier in (to.folder / "wandb").glob(f"offline-run-*-{run.key}"):
        shutil.rmtree(earlier)
    tracker = WandBTracker(
        to.project, name=run.name, id=run.key, resume="allow", dir=str(to.folder), config=run.settings
    )
    tracker.start()
    first = tracker.run.step  # after those that the server has
    return tracker, lambda metric, step: step >= first


def _trackio(to: Tracking, run: Shown) -> tuple[GeneralTracker, Lacks]:
    os.environ.setdefault("TRACKIO_DIR", str((to.folder / "trackio").absolute()))  # read at its import
    import trackio
    from accelerate.tracking import TrackioTracker

    try:
        earlier = [other for other in trackio.Api().runs(to.project) if other.name == run.name]
    except ValueError:  # there is no such project yet
        earlier = []
    for other in earlier:
        other.delete()
    tracker = TrackioTracker(to.project, name=run.name, config=run.settings)
    tracker.start()
    return tracker, lambda metric, step: True


def _mlflow(to: Tracking, run: Shown) -> tuple[GeneralTracker, Lacks]:
    import mlflow
    from accelerate.tracking import MLflowTracker

    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else refused, as it gets no new features
        mlflow.set_tracking_uri((to.folder / "mlflow").absolute().as_uri())
    mlflow.set_experiment(to.project)
    known = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`{TAG}` = '{run.key}'", output_format="list"
    )
    run_id, last = None, {}
    for found in known[:1]:
        run_id, client = found.info.run_id, mlflow.MlflowClient()
        last = {m: max(point.step for point in client.get_metric_history(run_id, m)) for m in found.data.metrics}
    tracker = MLflowTracker(to.project, run_id=run_id, run_name=run.name, tags={TAG: run.key})
    tracker.start()
    if run_id is None:
        tracker.store_init_configuration(run.settings)
    return tracker, lambda metric, step: step > last.get(metric, -1)


STARTS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}
"""tracker -> what starts it, and says what it lacks of the log."""
OPTIONS = {"wandb": {"commit": True}}
"""tracker -> arguments of its log: a step is told at once, with its evaluation."""


class Trackers:
    """The trackers of a run, in the main process.

    Args:
        tracking: which, and where.
        run: the run.
        log: its log, cut back to where the attempt begins.

    Raises:
        HalosError: a tracker does not start, at the beginning of a run. Later, it is left out, and said so.
    """

    def __init__(self, tracking: Tracking, run: Shown, log: Log) -> None:
        self._log, self._read = log, 0
        self._told: dict[str, tuple[GeneralTracker, Lacks]] = {}
        for name in tracking.names:
            try:
                self._told[name] = STARTS[name](tracking, run)
            except Exception as error:  # each library has its own
                if run.done < 0:
                    raise HalosError(f"the tracker {name} does not start: {_why(error)}; put that right, or take it "
                                     "out of `trackers`") from error  # fmt: skip
                self._leave_out(name, error)
        self.update()

    def update(self) -> None:
        """Tell the trackers what the log has got since the last time: a step and its evaluation at once."""
        if not self._told:
            return
        lines, self._read = self._log.lines(self._read)
        for step, group in groupby(lines, lambda line: int(line["step"])):
            values = {f"{line['split']}/{key}": value for line in group
                      for key, value in line.items() if key not in ("split", "step")}  # fmt: skip
            for name, (tracker, lacks) in list(self._told.items()):
                new = {metric: value for metric, value in values.items() if lacks(metric, step)}
                if new:
                    self._try(name, partial(tracker.log, new, step=step, **OPTIONS.get(name, {})))

    def finish(self) -> None:
        """Tell them that the run is done."""
        for name, (tracker, _) in list(self._told.items()):
            self._try(name, tracker.finish)

    def _try(self, name: str, what: Callable[[], Any]) -> None:
        try:
            what()
        except Exception as error:
            self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        """A training does not end because a tracker does: the log has it all."""
        self._told.pop(name, None)
        print(f"the tracker {name} is left out from here on: {_why(error)}", file=sys.stderr)


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
