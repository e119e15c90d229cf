"""Online stages: what their rounds made, put together as the run of one cell."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.files import write_json, write_text
from halos.settings import read_slice


def join(config: Path, rounds: list[Path], output: Path) -> None:
    """The verb: the run of an online stage, from its rounds. Each round's folder stays as it is.

    Args:
        config: the cell's slice.
        rounds: the rounds' folders, in order: trained, with the labeller's report.
        output: the run's folder. `model/` is the last round's, its files linked where the file system can;
            `train.jsonl` is that of all rounds, with the round in each line, steps and examples counted on; and, last,
            `manifest.json` sums them up.

    Raises:
        HalosError: a round is not finished.
    """
    manifests = []
    for folder in rounds:
        if not (folder / "manifest.json").is_file():
            raise HalosError(f"there is no {folder}/manifest.json; train that round first")
        manifests.append(json.loads((folder / "manifest.json").read_text()))
    temporary = output / ".model.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(rounds[-1] / "model", temporary, copy_function=_link)
    shutil.rmtree(output / "model", ignore_errors=True)
    temporary.rename(output / "model")
    write_text(output / "train.jsonl", "".join(json.dumps(line) + "\n" for line in _lines(rounds)))
    sums = {key: sum(m[key] for m in manifests) for key in ("steps", "tokens", "seconds", "gpu_hours")}
    trained = sum((Counter(m["data"]["train"]) for m in manifests), Counter[str]())
    write_json(
        output / "manifest.json",
        {
            **manifests[-1],
            "config": read_slice(config),
            "inputs": manifests[0]["inputs"],
            "data": {"train": dict(trained), "test": manifests[-1]["data"]["test"]},
            **sums,
            "peak_memory_gb": max(m["peak_memory_gb"] for m in manifests),
            "rounds": [_summary(folder, m) for folder, m in zip(rounds, manifests, strict=True)],
        },
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _lines(rounds: list[Path]) -> list[dict[str, Any]]:
    found, steps, examples = [], 0, 0
    for number, folder in enumerate(rounds, 1):
        lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().split("\n") if line]
        found += [{**line, "round": number, "step": line["step"] + steps, "examples": line["examples"] + examples}
                  for line in lines]  # fmt: skip
        steps, examples = found[-1]["step"], found[-1]["examples"]
    return found


def _summary(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    kept = {key: manifest[key] for key in ("weights", "inputs", "data", "steps", "tokens", "seconds")}
    return {**kept, "labels": json.loads((folder / "fresh/labels.json").read_text())}
