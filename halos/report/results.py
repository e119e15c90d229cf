"""Reading a grid's part of the results tree: every judgement, benchmark, training log and cost of its cells."""

from __future__ import annotations

import json
import re
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from halos.errors import HalosError
from halos.settings import read_slice
from halos.study.cells import BASE, Cell


def cells_of(results: Results, ids: tuple[str, str, str]) -> list[Cell]:
    return [cell for cell in results.cells if (cell.dataset, cell.model, cell.method) == ids]


def number_of(value: Any) -> float:
    return np.nan if value is None else float(value)


CELL = ["dataset", "model", "method", "seed"]
WIN = "win_rate"
SCORE = "score"
STRICT = "wins_of_all"
"""The win rate that counts a tie for neither, whatever the judge's own says."""
SIZE = re.compile(r"[ _-]*(\d+(?:\.\d+)?) ?([BM])\b", re.IGNORECASE)
"""The parameters in a model's name: Pythia 1.4B, SmolLM2-135M-Instruct."""


class Results:
    """The results of a grid, read when they are asked for.

    Args:
        config: the grid's slice of the config, results/grids/{grid}/config.yaml.
        results: the results folder.

    Raises:
        HalosError: on reading, when a cell's file is missing or is not what it should be.
    """

    def __init__(self, config: Path, results: Path) -> None:
        content = read_slice(config)
        self.folder = results
        self.grid: str = content["grid"]
        self.datasets: list[str] = list(content["datasets"])
        self.models: list[str] = list(content["models"])
        self.methods: list[str] = list(content["methods"])
        self.reward_models: list[str] = list(content.get("reward_models") or [])
        self.seeds: list[int] = list(content["seeds"])
        self.judges: list[str] = list(content.get("judges") or [])
        self.tasks: list[str] = list(content.get("tasks") or [])
        self.published: str | None = content.get("published")
        self._labels: dict[str, dict[str, str]] = content.get("labels") or {}

    @property
    def cells(self) -> list[Cell]:
        """The policies: what is judged and benchmarked."""
        return [Cell(*ids) for ids in product(self.datasets, self.models, self.methods, self.seeds)]

    @property
    def trained(self) -> list[Cell]:
        """What has a training: policies, then reward models."""
        rewards = [Cell(*ids) for ids in product(self.datasets, self.models, self.reward_models, self.seeds)]
        return [cell for cell in (*self.cells, *rewards) if cell.stage is not None]

    def label(self, kind: str, name: str) -> str:
        """The name in tables and figures of an entry of the config; its id when it has no label."""
        return self._labels.get(kind, {}).get(name) or name

    def method_label(self, method: str) -> str:
        """`sft-kto` -> `SFT + KTO`: the stages' labels, or their ids in capitals."""
        if method == BASE:
            return "Base"
        stages = self._labels.get("stages", {})
        return " + ".join(stages.get(stage) or stage.upper().replace("_", " ") for stage in method.split("-"))

    def panel_label(self, dataset: str, model: str) -> str:
        """Model and dataset, each only where the grid has more than one; the model alone when it has one of both."""
        parts = [self.label("models", model)] if len(self.models) > 1 or len(self.datasets) == 1 else []
        parts += [self.label("datasets", dataset)] if len(self.datasets) > 1 else []
        return ", ".join(parts)

    def hub(self, model: str) -> str:
        """A model's id on the hub, or its id in the catalogue."""
        path = f"models/{model}/config.yaml"
        hub = read_slice(self.folder / path).get("hub") if (self.folder / path).is_file() else None
        return str(hub or model)

    def family(self, model: str) -> str:
        """What models of several sizes have in common: their label without the size."""
        return SIZE.sub("", self.label("models", model)).strip() or model

    def parameters(self, model: str) -> float:
        """As counted when a cell of it was trained, else as its label or id says; NaN where nobody knows."""
        counts = [self.manifest(cell).get("parameters") for cell in self.trained if cell.model == model]
        said = SIZE.search(self.label("models", model)) or SIZE.search(model)
        named = float(said[1]) * {"B": 1e9, "M": 1e6}[said[2].upper()] if said else np.nan
        return next((float(count) for count in counts if count), named)

    def settings(self, cell: Cell) -> dict[str, Any]:
        """The stage that a cell trained, with every setting; nothing for a base model."""
        return {} if cell.stage is None else dict(self.manifest(cell).get("config", {}).get("stage", {}))

    def losses(self, cell: Cell) -> list[str]:
        """The loss of each stage of a cell's method, in order."""
        trained = [found for found in cell.lineage() if found.stage is not None]
        return [self.settings(found).get("loss") or str(found.stage) for found in reversed(trained)]

    @cached_property
    def judged(self) -> dict[tuple[Cell, str], dict[str, Any]]:
        """judged/{judge}.json of each cell, without its annotations."""
        return {key: {k: v for k, v in j.items() if k != "annotations"} for key, j in self._judgements.items()}

    @cached_property
    def _judgements(self) -> dict[tuple[Cell, str], dict[str, Any]]:
        cells = [*self.cells, *(r for cell in self.cells for r in cell.rounds(self.rounds(cell) - 1))]
        return {(c, j): self._json(f"{c.folder}/judged/{j}.json") for c in cells for j in self.judges}

    def rounds(self, cell: Cell) -> int:
        """Rounds of a cell whose stage was trained online; 0 of another. The last one's result is the cell's."""
        manifest = self.folder / cell.folder / "manifest.json"  # of a base model, none is there
        return len(self.manifest(cell).get("rounds", ())) if manifest.is_file() else 0

    def kind(self, judge: str) -> str:
        """verifier, reward_model, ..."""
        return str(self.judged[self.cells[0], judge].get("kind", judge))

    def score_name(self, judge: str) -> str:
        """What a judge's score is called: a reward model's has no scale, and is not to be taken for a verifier's."""
        return "reward" if self.kind(judge) == "reward_model" else "score"

    def criteria(self, judge: str) -> list[str]:
        """The criteria that make up a judge's score, in its own order; none where the score is one number by itself."""
        if self.kind(judge) == "reward_model":
            return []
        found: dict[str, None] = {}
        for (_, name), content in self.judged.items():
            if name == judge:
                found |= dict.fromkeys((content.get("scores") or {}).get("candidate") or {})
        return [criterion for criterion in found if criterion != "mean"]

    @cached_property
    def _values(self) -> dict[tuple[str, ...], pd.DataFrame]:
        """{(judge, dataset, model, method, round): measures by seed and prompt_id, each the mean over a prompt's
        samples}."""
        rows = []
        for (cell, judge), content in self._judgements.items():
            tie = 0.0 if content.get("ties_as") == "neither" else 0.5
            for a in content["annotations"]:
                won = np.nan if a.get("preference") is None else a["preference"] - 1
                rows.append(
                    {"judge": judge, **cell.__dict__, "prompt_id": a["prompt_id"]}
                    | {WIN: tie if won == 0.5 else won, STRICT: 0.0 if won == 0.5 else won}
                    | {SCORE: a.get("candidate_score")}
                    | {f"{SCORE}.{criterion}": value for criterion, value in (a.get("criteria") or {}).items()}
                )
        keys = ["judge", *CELL[:-1], "round", "seed", "prompt_id"]
        frame = pd.DataFrame(rows, columns=None if rows else keys).set_index(keys).astype(float)
        means = frame.groupby(level=keys).mean()
        groups = means.groupby(level=keys[:5])
        return {tuple(map(str, key)): part.droplevel([0, 1, 2, 3, 4]) for key, part in groups}

    def values(
        self, judge: str, dataset: str, model: str, method: str, measure: str, after_round: int = 0
    ) -> pd.DataFrame:
        """Seeds x prompts of one measure: `win_rate` (1 win, 0 loss, a tie .5 or 0 as the judge counts it),
        `wins_of_all` (a tie 0), `score`, or `score.{criterion}`.

        NaN where a prompt was not judged; empty when the judge does not give this measure.
        """
        found = self._values.get((judge, dataset, model, method, str(after_round)))
        if found is None or measure not in found:
            return pd.DataFrame()
        table: pd.DataFrame = found[measure].dropna().unstack("prompt_id")
        return table

    def bounded(self, judge: str, measure: str) -> bool:
        """Whether a measure lies between 0 and 1: a win rate, and whatever a verifier gives."""
        return measure in (WIN, STRICT) or self.kind(judge) == "verifier"

    def ties(self, judge: str) -> str:
        """How a judge counts ties: half or neither."""
        return str(self.judged[self.cells[0], judge].get("ties_as", "half"))

    def cut(self, cell: Cell, judge: str) -> float:
        """Share of responses that reached the token limit."""
        reasons = [a.get("finish_reason") for a in self._judgements[cell, judge]["annotations"]]
        return float(np.mean([reason == "length" for reason in reasons])) if reasons else np.nan

    @cached_property
    def benchmarks(self) -> pd.DataFrame:
        """A row per cell and task: metric, value, stderr, n, and whether more is better."""
        rows = []
        for cell, task in product(self.cells, self.tasks):
            content = self._json(f"{cell.folder}/tasks/{task}.json")
            ours = content["halos"]
            better = {m: up for by in (content.get("higher_is_better") or {}).values() for m, up in by.items()}
            rows.append(
                {**cell.ids, "task": task, "metric": ours["metric"], "value": ours["value"]}
                | {"stderr": _number(ours.get("stderr")), "n": _number(ours.get("n"))}
                | {"higher_is_better": better.get(ours["metric"].split(",")[0]) is not False}
            )
        return pd.DataFrame(
            rows, columns=[*CELL, "task", "metric", "value", "stderr", "n", "higher_is_better"]
        )  # fmt: skip

    @cached_property
    def training(self) -> pd.DataFrame:
        """The lines of every train.jsonl, numbers only, with the cell, the split and the examples seen by then."""
        frames = []
        for cell in self.trained:
            lines = self._read(f"{cell.folder}/train.jsonl").splitlines()
            frame = pd.DataFrame([json.loads(line) for line in lines if line.strip()])
            if not {"split", "step"} <= set(frame.columns):
                raise HalosError(f"{self.folder / cell.folder}/train.jsonl has no steps; remove it and run snakemake")
            # a resumed run logs again the steps after its last checkpoint
            frame = frame.drop_duplicates(["split", "step"], keep="last").sort_values("step", kind="stable")
            if "examples" in frame:
                seen = frame[frame["split"] == "train"]
                known = np.interp(frame["step"], [0, *seen["step"]], [0, *seen["examples"]])
                frame["examples"] = frame["examples"].fillna(pd.Series(known, index=frame.index))
            numbers = frame.drop(columns="split").apply(pd.to_numeric, errors="coerce")
            frames.append(numbers.assign(split=frame["split"], **cell.ids))
        if not frames:
            return pd.DataFrame(columns=[*CELL, "split", "step", "examples"])
        log: pd.DataFrame = pd.concat(frames, ignore_index=True)
        return log

    def data_reports(self, dataset: str, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What prepare and tokenize reported; nothing of what is not there."""
        paths = (f"data/{dataset}/report.json", f"tokens/{dataset}/{model}/report.json")
        prepared, tokenized = (self._json(path) if (self.folder / path).is_file() else {} for path in paths)
        return prepared, tokenized

    def held_out_pairs(self, cell: Cell) -> int | None:
        """Pairs that a paired loss is evaluated on; None where the store's report is not there."""
        path = f"{cell.store_folder}/report.json"
        if not (self.folder / path).is_file():
            return None
        pairs: int | None = self._json(path)["views"]["test"].get("paired")
        return pairs

    def manifest(self, cell: Cell) -> dict[str, Any]:
        return self._json(f"{cell.folder}/manifest.json")

    def _read(self, path: str) -> str:
        file = self.folder / path
        if not file.is_file():
            raise HalosError(f"there is no {file}; run `snakemake` to make it")
        return file.read_text()

    def _json(self, path: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self._read(path))
        except json.JSONDecodeError as error:
            raise HalosError(f"{self.folder / path} is not JSON ({error}); remove it and run `snakemake`") from None
        return content


def _number(value: Any) -> float:
    """lm-eval writes "N/A" where it has no standard error."""
    return float(value) if isinstance(value, int | float) else np.nan
