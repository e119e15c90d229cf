"""Judgements of many cells by one process, which loads a reward model once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from halos.evaluate.judging.deciders import ByScores, Decides, open_judge
from halos.evaluate.judging.judge import answers_of, judgement_of
from halos.evaluate.judging.settings import JudgeSlice, JudgingSlice, ToJudge
from halos.files import hash_file
from halos.scoring.api import Calls
from halos.scoring.reward_model import RewardModel, open_reward_model
from halos.together import Failures, Item


def decide(
    config: Path,
    output: Path,
    kept: Path,
    tokens_per_microbatch: int = 16384,
    concurrency: int = 16,
    requests_per_minute: int | None = None,
) -> None:
    """Judge the samples of many cells, with the judgements that the verb `judge` makes of each.

    A reward model is loaded once for all that it judges. A judgement that fails stops none of the others: in its place,
    the output has the reason. What is finished is kept until the output is whole, so that a run that is stopped loses
    no more than the judgement that it is at. The answers of a model that is asked are kept beside the place where its
    judgement goes, and not asked for again.

    Args:
        config: config.yaml of the batch: the judgements, each with the files that it is made from.
        output: folder to write: below it each judgement by its own path, or instead a file that ends in .failed.
        kept: folder of what stopped runs have finished, of this batch or another.
        tokens_per_microbatch: tokens of one forward pass of a reward model, padding included.
        concurrency: calls at one time, for a model that is asked.
        requests_per_minute: limit on requests, for a model that is asked; by default none.

    Raises:
        HalosError: nothing could be judged.
    """

    @cache
    def loaded(files: tuple[str, ...]) -> RewardModel:
        return open_reward_model([*map(Path, files)], tokens_per_microbatch)

    batch = {_item(asked, kept): asked for asked in JudgingSlice.read(config).judgements}
    failures = Failures()
    for item, asked in batch.items():
        if item.done:
            print(f"{item.place}: finished by an earlier attempt")
            continue
        with failures.of(item):
            settings, judged = JudgeSlice.read(Path(asked.config)), Path(asked.judged)
            judged.parent.mkdir(parents=True, exist_ok=True)
            calls = Calls(answers_of(judged), concurrency, requests_per_minute)

            def opened(asked: ToJudge = asked, settings: JudgeSlice = settings, calls: Calls = calls) -> Decides:
                if asked.reward_model and settings.kind == "reward_model":
                    return ByScores(loaded(asked.reward_model), settings.tie_margin)
                files = [*map(Path, asked.reward_model)]
                return open_judge(f"judge {settings.judge}", settings, files, tokens_per_microbatch, calls)

            baseline, difficulties = ([*map(Path, files)] for files in (asked.baseline, asked.difficulties))
            files = Path(asked.samples), Path(asked.feedback), baseline, difficulties
            judgement_of(settings, *files, opened).write(item.kept)
            print(f"{item.place}: judged")
    failures.publish([*batch], output)


def _item(asked: ToJudge, kept: Path) -> Item:
    """A judgement's item. The content of a reward model's folder is told by its manifest or the judge's slice."""
    made_from = [[file, hash_file(Path(file))] for file in asked.files if Path(file).is_file()]
    alone = Item.of(Path(asked.judged).name, kept, [asked.judged, *made_from])  # in one folder, for all batches
    return Item(asked.judged.lstrip("/"), alone.kept)
