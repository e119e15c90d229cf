"""The result of a finished run as that of another, where both are the same training: a chosen cell and its trial."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from halos.files import link, link_folder, whole
from halos.manifest import VALUE_HEAD, Manifest
from halos.train.inputs import Inputs
from halos.train.log import PREVIEWS


def is_same(run: Path, inputs: Inputs) -> bool:
    """Whether a run is finished, and has the settings and inputs of another one, under another method's name.

    Args:
        run: folder of the finished run.
        inputs: of the other one. One that keeps models or states besides is a training of its own.
    """
    path = run / "manifest.json"
    stage = inputs.stage
    if not path.is_file() or stage.keep_every or stage.keep_optimizer or stage.snapshots:
        return False
    manifest = Manifest.read(path)
    ours = {**inputs.settings.identity, "method": manifest.config["method"]}
    theirs = type(inputs.settings).model_validate(manifest.config).identity
    return manifest.diverged is None and ours == theirs and manifest.inputs == inputs.hashes


def adopt(run: Path, inputs: Inputs, output: Path) -> None:
    """Write the outputs of a run, which are those of the same training.

    Args:
        run: folder of the finished run.
        inputs: of the run that is written.
        output: its folder.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        return
    manifest = Manifest.read(run / "manifest.json")
    take(run, output, manifest.model_copy(update={"config": inputs.settings.content}))
    print(f"{run} was the same training: its model is taken", file=sys.stderr)


def take(run: Path, output: Path, manifest: Manifest) -> None:
    """Write a run's outputs at another place: hard links, where the file system has them.

    Args:
        run: folder of the run.
        output: the other folder.
        manifest: of the other one.
    """
    with whole(output / "model") as temporary:
        link_folder(run / "model", temporary)
    (output / VALUE_HEAD).unlink(missing_ok=True)
    (output / PREVIEWS).unlink(missing_ok=True)
    for name in (VALUE_HEAD, "train.jsonl", PREVIEWS):
        if (run / name).is_file():
            with whole(output / name) as temporary:
                link(str(run / name), str(temporary))
    manifest.write(output / "manifest.json")
