"""The source `sampled`: responses that a model of the catalogue gave to prompts, with the labels of a labeller."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from halos.data.feedback import read
from halos.data.paths import SPLITS
from halos.data.rows import Records
from halos.errors import HalosError
from halos.registry import SOURCES


@SOURCES.register("sampled")
def sampled(
    split: str,
    *,
    dataset: str,
    model: str,
    prompts: dict[Literal["train", "validation", "test"], str],
    labeller: str,
    method: str = "base",
    seed: int = 0,
    path: dict[Literal["train", "validation", "test"], str] | None = None,
) -> Records:
    """Labelled responses of a model of the catalogue to prompts of another dataset: on-policy data.

    The workflow samples and labels them before anything is trained on them.

    Args:
        split: "train", "validation" or "test".
        dataset: id of the dataset whose prompts are answered.
        model: id of the model that answers them.
        prompts: split -> id of the prompt set, which says how many prompts of that split there are, how many responses
            to each, and how they are sampled.
        labeller: id of the labeller, which scores the responses and makes feedback of the scores.
        method: what the model was trained by, on `dataset`; by default nothing.
        seed: of that training, and of the samples.
        path: split -> file of labelled samples; the workflow says where it has put them.

    Raises:
        HalosError: nobody has said where the files are, or one is not there.
    """
    if path is None or split not in path:
        raise HalosError(
            f"the source sampled has no {split} file of labelled samples; name it in config.yaml, and let `snakemake` "
            "make them"
        )
    return Records(read(Path(path[split])), {})


sampled.splits = SPLITS  # type: ignore[attr-defined]
