"""Trackers: runs that are killed and go on, read back from TensorBoard, Weights & Biases, Trackio and MLflow, in the
environment that `make env-trackers` makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from halos.train.trackers import PACKAGES
from tests.conftest import World
from tests.train.runs import assert_equal

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-trackers/bin/python"
PROJECT, RUN = "a study", "d/m/dpo/seed1"
KILLED_IN = 6
"""The step in which the first attempt is killed; checkpoints are after the third and the sixth."""
KILLED = f"""
import os, signal, sys, time
from halos.cli import main
from halos.train.trainer import Trainer
step = Trainer.step
def killed(trainer, done):
    if done + 1 == {KILLED_IN} and sys.argv[1] == "kill":
        time.sleep(1.5)  # Trackio writes every half a second
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, done)
Trainer.step = killed
sys.exit(main(sys.argv[2:]))
"""
READ = """
import json, os, struct, sys
from pathlib import Path

folder, project, run = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
metrics = sys.argv[4:]
os.environ |= {"TRACKIO_DIR": str(folder / "trackio"), "MLFLOW_ALLOW_FILE_STORE": "true"}

def tensorboard():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    [file] = (folder / "tensorboard" / run).iterdir()
    events = EventAccumulator(str(file), {"scalars": 0}).Reload()
    return {m: [[e.step, e.value] for e in events.Scalars(m)] for m in metrics}

def wandb():  # its file is a log of LevelDB's format after seven bytes, of its own records
    from wandb.proto.wandb_internal_pb2 import Record
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, part, found = file.read_bytes(), 7, b"", {m: [] for m in metrics}
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # the first or a middle part of a record
            continue
        record, part = Record.FromString(part), b""
        if record.HasField("run"):
            assert (record.run.project, record.run.display_name) == (project, run)
        values = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for m in metrics:
            if m in values:
                found[m].append([values["_step"], values[m]])
    return found

def trackio():
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage
    [shown] = Api().runs(project)
    assert shown.name == run
    rows = SQLiteStorage.get_logs(project, run)
    return {m: [[row["step"], row[m]] for row in rows if m in row] for m in metrics}

def mlflow():
    import mlflow
    mlflow.set_tracking_uri((folder / "mlflow").absolute().as_uri())
    [shown] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert shown.info.run_name == run and mlflow.get_experiment(shown.info.experiment_id).name == project
    history = mlflow.MlflowClient().get_metric_history
    return {m: [[point.step, point.value] for point in history(shown.info.run_id, m)] for m in metrics}

print(json.dumps({read.__name__: read() for read in (tensorboard, wandb, trackio, mlflow)}))
"""


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    """That of the trackers, without which the tests are left out."""
    if not PYTHON.exists():
        reason = "there is no .venv-trackers: `make env-trackers` makes it"
        if os.environ.get("HALOS_NEED_TRACKERS"):
            pytest.fail(reason)
        pytest.skip(reason)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    mine = ("WANDB_", "MLFLOW_", "TRACKIO_")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    variables |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([str(PYTHON), "-c", code, *arguments], env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run of a training that was killed and went on, shown in all trackers; and their folder."""
    folder = tmp_path_factory.mktemp("trackers")
    config = world.slice(f"runs/{RUN}")
    options: dict[str, Any] = {"config": config, "parent": world.base, "store": world.store, "output": folder / "run"}
    options |= {"tokens-per-microbatch": 2048, "eval-every": 3, "checkpoint-every": 3}
    options |= {"tracker-project": PROJECT, "tracker-folder": folder / "shown"}
    words = ["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    words += ["--reference", str(world.reference()[0]), "--trackers", *PACKAGES]
    done = run(KILLED, "kill", *words)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in (folder / "run/checkpoints").glob("step*")] == ["step3"]
    done = run(KILLED, "go on", *words)
    assert done.returncode == 0, done.stderr
    assert "going on from step 3 of 8" in done.stderr
    assert "left out" not in done.stderr
    return folder / "run", folder / "shown"


def test_a_run_that_was_killed_and_went_on_is_one_curve_in_every_tracker(trained: tuple[Path, Path]) -> None:
    folder, shown = trained
    lines = list(map(json.loads, (folder / "train.jsonl").read_text().splitlines()))
    metrics = ["train/loss", "train/rewards/margin", "train/lr", "eval/loss", "eval/rewards/accuracy"]
    done = run(READ, str(shown), PROJECT, RUN, *metrics)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == PACKAGES.keys()
    for tracker, curves in found.items():
        for metric in metrics:
            split, key = metric.split("/", 1)
            expected = [(line["step"], line[key]) for line in lines if line["split"] == split]
            assert [step for step, _ in expected] == ([*range(1, 9)] if split == "train" else [0, 3, 6, 8])
            assert [step for step, _ in curves[metric]] == [step for step, _ in expected], (tracker, metric)
            assert [v for _, v in curves[metric]] == pytest.approx([v for _, v in expected], rel=1e-6), (
                tracker,
                metric,
            )


def test_trackers_change_no_weight(trained: tuple[Path, Path], world: World, tmp_path: Path) -> None:
    assert_equal(trained[0], world.train(tmp_path, "dpo"))
