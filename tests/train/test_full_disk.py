"""Disks that take no more: one sentence, nothing half-written that counts, a run that goes on when there is room."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from halos.cli import main
from halos.errors import HalosError
from halos.files import whole, writing
from halos.scoring.answers import Answer, AnswerCache
from halos.settings import dump
from halos.train.log import Log
from halos.train.stopping import Stopped
from tests.conftest import CATALOGUE, World
from tests.train.runs import assert_equal, log


def answer(path: Path) -> None:
    cache = AnswerCache(path.with_name("answers.jsonl"))
    cache.path = path
    cache.add("key", Answer("text", None))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("words"),
    "parquet": lambda path: pq.write_table(pa.table({"x": [1]}), path),
    "tokenizers": lambda path: Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(path)),
    "log": lambda path: Log(path).add({"step": 1}),
    "answers": answer,
}
"""Libraries raise errors of types of their own. That of safetensors, which renames what it wrote, is tested below."""


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_sentence_whoever_writes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.symlink_to("/dev/full")  # the system's own device that is always full
    with pytest.raises(HalosError) as caught, writing(path):
        WRITERS[kind](path)
    message = str(caught.value)
    assert message.startswith(f"the disk is full: {path} cannot be written, and {tmp_path} has ")
    assert "GB free; make room and run the same command again" in message
    assert "\n" not in message


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "no/folder").write_text("words")
    with pytest.raises(ValueError, match="28"), writing(tmp_path):
        raise ValueError("28 is no number of a disk's error")


def test_a_verb_that_writes_plain_files_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, output = tmp_path / "config.yaml", tmp_path / "plan"
    config.write_text(dump(CATALOGUE))
    output.mkdir()
    (output / "plan.md").symlink_to("/dev/full")
    assert main(["plan", "--config", str(config), "--output", str(output)]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: the disk is full: {output} cannot be written")
    assert "Traceback" not in error


# ---- a limit on the size of files, which needs no disk of its own -------------------------------------------------


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The system lets no file of this process grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_was_there_stays_where_another_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    refused = pytest.raises(HalosError, match="a file would be larger than is allowed")
    with no_file_beyond(1000), refused, whole(path) as temporary:
        temporary.write_text("new" * 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("fails_at", ["checkpoint", "model"])
def test_a_training_without_room_for_weights_goes_on_from_its_last_checkpoint(
    fails_at: str, world: World, tmp_path: Path
) -> None:
    changes = {"examples": 24, "checkpoint_every": 2 if fails_at == "checkpoint" else 100}
    whole_run, run = world.train(tmp_path / "whole", "dpo", changes=changes), tmp_path / "run"
    with pytest.raises(Stopped):
        world.train(run, "dpo", changes=changes, time_limit=0)
    missing = run / {"checkpoint": "checkpoints/step2", "model": "model"}[fails_at]
    with no_file_beyond(100_000), pytest.raises(HalosError, match=f"allowed.*: {missing} cannot be written"):
        world.train(run, "dpo", changes=changes)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step1", "train.jsonl", "training.json"]
    world.train(run, "dpo", changes=changes)
    assert_equal(whole_run, run)
    assert log(whole_run) == log(run)


def test_a_log_is_whole_while_it_is_cut(tmp_path: Path) -> None:
    """A disk may have no room for the shorter log beside the longer one: the longer one is then not lost."""
    path = tmp_path / "train.jsonl"
    lines = "".join(f'{{"step": {step}}}\n' for step in range(200))
    path.write_text(lines)
    with no_file_beyond(1000), pytest.raises(HalosError):
        Log(path).cut(199)
    assert path.read_text() == lines
