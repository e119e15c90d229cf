"""Judgements of many cells by one process, which loads a reward model once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from halos.evaluate.judging.deciders import ByScores, Decides
from halos.evaluate.judging.judge import judgement_of
from halos.evaluate.judging.local import LocalModel, LocalPairwise
from halos.evaluate.judging.settings import JudgeSlice, JudgingSlice, ToJudge
from halos.files import hash_file
from halos.scoring.reward_model import RewardModel, open_reward_model
from halos.scoring.scores import Verifier
from halos.together import Failures, Item


def decide(
    config: Path,
    output: Path,
    kept: Path,
    tokens_per_microbatch: int = 16384,
    batch: int = 16,
    backend: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel: int = 1,
) -> None:
    """Judge the samples of many cells, with the judgements that the verb `judge` makes of each.

    A reward model, or a model that is asked, is loaded once for all that it judges. A judgement that fails stops
    none of the others: in its place, the output has the reason. What is finished is kept until the output is whole,
    so that a run that is stopped loses no more than the judgement that it is at.

    Args:
        config: config.yaml of the batch: the judgements, each with the files that it is made from.
        output: folder to write: below it each judgement by its own path, or instead a file that ends in .failed.
        kept: folder of what stopped runs have finished, of this batch or another.
        tokens_per_microbatch: tokens of one forward pass of a reward model, padding included.
        batch: questions that a model answers side by side, on transformers.
        backend: library that runs a model that is asked.
        tensor_parallel: GPUs over which vLLM splits each layer.

    Raises:
        HalosError: nothing could be judged.
    """

    @cache
    def loaded(files: tuple[str, ...]) -> RewardModel:
        return open_reward_model([*map(Path, files)], tokens_per_microbatch)

    @cache
    def asked_model(name: str, files: tuple[str, ...]) -> LocalModel:
        return LocalModel(name, [*map(Path, files)], batch, backend, tensor_parallel)

    judgements = {_item(asked, kept): asked for asked in JudgingSlice.read(config).judgements}
    failures = Failures()
    for item, asked in judgements.items():
        if item.done:
            print(f"{item.place}: finished by an earlier attempt")
            continue
        with failures.of(item):
            settings = JudgeSlice.read(Path(asked.config))

            def opened(asked: ToJudge = asked, settings: JudgeSlice = settings) -> Decides:
                if settings.model is not None:
                    model = asked_model(settings.model.model, asked.reward_model)
                    return LocalPairwise(f"judge {settings.judge}", settings, model)
                named = settings.verifier
                scorer = loaded(asked.reward_model) if named is None else Verifier(named)
                return ByScores(scorer, settings.tie_margin)

            baseline, difficulties = ([*map(Path, files)] for files in (asked.baseline, asked.difficulties))
            files = Path(asked.samples), Path(asked.feedback), baseline, difficulties
            judgement_of(settings, *files, opened).write(item.kept)
            print(f"{item.place}: judged")
    failures.publish([*judgements], output)


def _item(asked: ToJudge, kept: Path) -> Item:
    """A judgement's item. The content of a reward model's folder is told by its manifest or the judge's slice."""
    made_from = [[file, hash_file(Path(file))] for file in asked.files if Path(file).is_file()]
    alone = Item.of(Path(asked.judged).name, kept, [asked.judged, *made_from])  # in one folder, for all batches
    return Item(asked.judged.lstrip("/"), alone.kept)
