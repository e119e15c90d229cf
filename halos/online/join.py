"""The rounds of an online stage, joined as the run of one cell."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halos.files import link, link_folder, whole, write_text
from halos.manifest import KEPT, VALUE_HEAD, Manifest, Round
from halos.online.labels import Labels
from halos.settings import AnySlice


def join(config: Path, rounds: Sequence[Path], output: Path) -> None:
    """Join the rounds of an online stage as one run.

    The run's `model/`, and PPO's value head, are the last round's, with hard links where the file system has them. Its
    `train.jsonl` holds all rounds' lines, each with its round; steps and examples count on from round to round. Its
    `manifest.json`, written last, sums the rounds up. The rounds' folders stay as they are, but for the states of the
    optimiser that later ones went on from.

    Args:
        config: config.yaml of the cell.
        rounds: folders of the finished rounds, in order.
        output: folder of the run.

    Raises:
        HalosError: a round is not finished.
    """
    manifests = [Manifest.read(folder / "manifest.json") for folder in rounds]
    with whole(output / "model") as temporary:
        link_folder(rounds[-1] / "model", temporary)
    (output / VALUE_HEAD).unlink(missing_ok=True)
    if manifests[-1].value_head is not None:
        with whole(output / VALUE_HEAD) as temporary:
            link(str(rounds[-1] / VALUE_HEAD), str(temporary))
    write_text(output / "train.jsonl", "".join(json.dumps(line) + "\n" for line in _log(rounds)))
    train = sum((Counter(manifest.data["train"]) for manifest in manifests), Counter[str]())
    peaks = [manifest.peak_memory_gb for manifest in manifests if manifest.peak_memory_gb is not None]
    last = manifests[-1]
    joined = last.model_copy(
        update={
            "config": AnySlice.read(config).content,
            "inputs": manifests[0].inputs,
            "data": {"train": dict(train), "validation": last.data["validation"]},
            "steps": sum(manifest.steps for manifest in manifests),
            "tokens": sum(manifest.tokens for manifest in manifests),
            "seconds": sum(manifest.seconds for manifest in manifests),
            "gpu_hours": sum(manifest.gpu_hours for manifest in manifests),
            "peak_memory_gb": max(peaks, default=None),
            "diverged": next((manifest.diverged for manifest in manifests if manifest.diverged), None),
            "stopped_early": None,  # each round by itself
            "rounds": tuple(_round(folder, manifest) for folder, manifest in zip(rounds, manifests, strict=True)),
        }
    )
    joined.write(output / "manifest.json")
    for folder in rounds[:-1]:
        shutil.rmtree(folder / KEPT, ignore_errors=True)


def _log(rounds: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines of all rounds' train.jsonl, with steps and examples counted on."""
    log: list[dict[str, Any]] = []
    steps = examples = 0
    for number, folder in enumerate(rounds, 1):
        lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().split("\n") if line]
        log += [
            {**line, "round": number, "step": line["step"] + steps, "examples": line["examples"] + examples}
            for line in lines
        ]
        steps, examples = log[-1]["step"], log[-1]["examples"]
    return log


def _round(folder: Path, manifest: Manifest) -> Round:
    return Round(
        weights=manifest.weights,
        inputs=manifest.inputs,
        data=manifest.data,
        steps=manifest.steps,
        tokens=manifest.tokens,
        seconds=manifest.seconds,
        labels=Labels.read(folder / "fresh/labels.json").model_dump(mode="json"),
    )
