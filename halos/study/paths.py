"""The results tree: where every result is, below the results folder.

Python asks `Paths`; the rules spell the same tree as pathvars in the Snakefile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from halos.hub import FETCHED
from halos.study.cells import RESULTS, Cell
from halos.train.log import PREVIEWS, TRAINING


@dataclass(frozen=True)
class Folder:
    """A folder that one slice of the catalogue makes, and that slice: its config.yaml."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"


@dataclass(frozen=True)
class FetchedFolder(Folder):
    """A folder made from something that may be on the hub."""

    @property
    def fetched(self) -> Path:
        return self.folder / FETCHED


@dataclass(frozen=True)
class DataPaths(FetchedFolder):
    """data/DATASET: feedback records."""

    @property
    def train(self) -> Path:
        return self.split("train")

    @property
    def validation(self) -> Path:
        return self.split("validation")

    @property
    def test(self) -> Path:
        return self.split("test")

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    def split(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def overlap(self, other: str, split: str) -> Path:
        """What recurs of its train split among the prompts of another dataset's split."""
        return self.folder / "overlap" / other / f"{split}.json"


@dataclass(frozen=True)
class StorePaths(Folder):
    """tokens/DATASET/MODEL: a sequence store."""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    def reference(self, model: str, part: str) -> Path:
        """The log-probabilities of its sequences under another base model."""
        return self.folder / "reference" / model / f"{part}.safetensors"

    def checked(self, view: str) -> Path:
        return self.folder / "checked" / f"{view}.json"

    def scores(self, reward_model: str) -> Path:
        """The scores of its responses by a reward model of `models:`."""
        return self.folder / "scores" / f"{reward_model}.safetensors"


@dataclass(frozen=True)
class ModelPaths(FetchedFolder):
    """models/MODEL: a base model."""

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"


@dataclass(frozen=True)
class FreshSplitPaths(Folder):
    """ROUND/fresh/SPLIT: prompts of a round, with the policy's samples and their labels."""

    @property
    def samples(self) -> Path:
        return self.folder / "samples.jsonl"

    @property
    def feedback(self) -> Path:
        return self.folder / "feedback.parquet"


@dataclass(frozen=True)
class FreshPaths:
    """ROUND/fresh: the data of a round of an online stage."""

    folder: Path

    @property
    def train(self) -> FreshSplitPaths:
        return FreshSplitPaths(self.folder / "train")

    @property
    def validation(self) -> FreshSplitPaths:
        return FreshSplitPaths(self.folder / "validation")

    @property
    def labels(self) -> Path:
        return self.folder / "labels.json"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    def reference(self, part: str) -> Path:
        return self.folder / "reference" / f"{part}.safetensors"


@dataclass(frozen=True)
class JudgingPaths(Folder):
    """judging/KEY: judgements that one job makes, and, while they are taken out, these."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def judgements(self) -> Path:
        return self.folder / "judgements"


@dataclass(frozen=True)
class RunPaths(Folder):
    """runs/DATASET/MODEL/METHOD/seedN, or a round's folder below it.

    A cell of the method `base` trains nothing: its `model` and `manifest` are those of the base model.
    """

    base: ModelPaths | None = None

    @property
    def model(self) -> Path:
        return self.base.model if self.base else self.folder / "model"

    @property
    def manifest(self) -> Path:
        return self.base.manifest if self.base else self.folder / "manifest.json"

    @property
    def card(self) -> Path:
        return self.model / "README.md"

    @property
    def log(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def previews(self) -> Path:
        """Responses that were sampled during training, if any were."""
        return self.folder / PREVIEWS

    @property
    def fresh(self) -> FreshPaths:
        return FreshPaths(self.folder / "fresh")

    def samples(self, prompts: str) -> Path:
        return self.folder / "samples" / f"{prompts}.jsonl"

    def divergence(self, prompts: str, number: int) -> Path:
        """The log-probabilities of its samples for a number of prompts, under it and under its reference."""
        return self.folder / "divergence" / prompts / f"{number}.json"

    def rewards(self, dataset: str) -> Path:
        """What its model thinks of the responses of a preference set."""
        return self.folder / "rewards" / f"{dataset}.json"

    def answers(self, key: str) -> Path:
        """The answers of a batch, while they are taken out."""
        return self.folder / "answering" / key / "answers"

    def batches(self) -> list[str]:
        """The keys of all batches that it was asked: of each there is a copy of its config.yaml, or the file itself."""
        return sorted({file.parent.name for file in self.folder.glob("answering/*/*.yaml")})

    def labelled(self, prompts: str, labeller: str) -> Path:
        """The feedback that a labeller makes of its samples of a prompt set."""
        return self.folder / "labelled" / prompts / f"{labeller}.parquet"

    def judged(self, judge: str) -> Path:
        return self.folder / "judged" / f"{judge}.json"

    def judged_against(self, judge: str, method: str) -> Path:
        """What a judge says of it and of another method's cell with the same seed."""
        return self.folder / "judged" / judge / "against" / f"{method}.json"

    def task(self, task: str) -> Path:
        return self.folder / "tasks" / f"{task}.json"

    def reference(self, part: str) -> Path:
        return self.folder / "reference" / f"{part}.safetensors"


@dataclass(frozen=True)
class ChoicePaths(Folder):
    """choices/DATASET/MODEL/METHOD: the trials of the method's last stage, and the one that is chosen."""

    @property
    def choice(self) -> Path:
        return self.folder / "choice.json"


@dataclass(frozen=True)
class Paths:
    """All paths of a results tree.

    Attributes:
        results: the results folder.
    """

    results: Path = Path(RESULTS)

    def data(self, dataset: str) -> DataPaths:
        return DataPaths(self.results / "data" / dataset)

    def store(self, dataset: str, model: str) -> StorePaths:
        return StorePaths(self.results / "tokens" / dataset / model)

    def model(self, name: str) -> ModelPaths:
        return ModelPaths(self.results / "models" / name)

    def run(self, cell: Cell) -> RunPaths:
        return RunPaths(self.results / cell.folder, None if cell.stage else self.model(cell.model))

    def choice(self, cell: Cell) -> ChoicePaths:
        """The choice of the settings of a cell's stage."""
        return ChoicePaths(self.results / "choices" / cell.dataset / cell.model / cell.method)

    def prompts(self, name: str) -> Folder:
        return Folder(self.results / "prompts" / name)

    @property
    def trackers(self) -> Path:
        """Folder of the files of trackers."""
        return self.results / "trackers"

    def training(self) -> list[Path]:
        """Folders of the logs of all runs and rounds that are trained, or were stopped."""
        runs = self.results / "runs"
        return sorted(file.parent for pattern in ("seed*", "seed*/round*")
                      for file in runs.glob(f"*/*/*/{pattern}/checkpoints/{TRAINING}"))  # fmt: skip

    def labeller(self, name: str) -> Folder:
        return Folder(self.results / "labellers" / name)

    def judge(self, name: str) -> Folder:
        return Folder(self.results / "judges" / name)

    def answering(self, key: str) -> Folder:
        """Prompt sets and tasks that one job of a cell answers."""
        return Folder(self.results / "answering" / key)

    def judging(self, key: str) -> JudgingPaths:
        return JudgingPaths(self.results / "judging" / key)

    def judgings(self) -> list[JudgingPaths]:
        """All batches of judgements that there are."""
        return [JudgingPaths(config.parent) for config in sorted(self.results.glob("judging/*/config.yaml"))]

    def judge_against(self, name: str, method: str) -> Folder:
        """A judge's settings for comparisons with a method."""
        return Folder(self.judge(name).folder / "against" / method)

    def task(self, name: str) -> FetchedFolder:
        return FetchedFolder(self.results / "tasks" / name)

    def grid(self, name: str) -> Folder:
        return Folder(self.results / "grids" / name)

    def tables(self, grid: str) -> Path:
        """Folder of a grid's tables."""
        return self.results / "tables" / grid

    def figures(self, grid: str) -> Path:
        """Folder of a grid's figures."""
        return self.results / "figures" / grid

    def description(self, dataset: str, model: str) -> Path:
        """Folder of the report on a dataset as a model sees it."""
        return self.results / "reports" / dataset / model

    def overview(self, grid: str) -> Path:
        """Folder of a grid's page and methods."""
        return self.results / "reports" / grid

    def responses(self, grid: str) -> Path:
        """A grid's responses to read; beside it, in a folder of that name, those that the page has no room for."""
        return self.overview(grid) / "responses.html"

    def cards(self, grid: str) -> Path:
        """Folder of the list of a grid's model cards."""
        return self.results / "cards" / grid

    def crate(self, grid: str) -> Path:
        """A finished grid as one RO-Crate."""
        return self.results / "crates" / f"{grid}.zip"
