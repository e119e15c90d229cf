"""Model cards: a README.md in each model folder of a grid, in the Hugging Face format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from halos.evaluate.judging.judgement import Judgement
from halos.evaluate.tasks.result import TaskResult
from halos.files import write_text
from halos.manifest import Manifest
from halos.models.architectures import language_class
from halos.models.rewards import CLASSIFIER
from halos.pretrained import read_config, trusts
from halos.report.measures import ROW
from halos.report.panels import part_of
from halos.report.render import NOTHING, markdown_table
from halos.report.results import Results
from halos.study.cells import BASE, Cell
from halos.train.mixing import loss_names, loss_text
from halos.train.stage import Stage


@dataclass(frozen=True)
class Score:
    """One result of a model.

    Attributes:
        source: the judge and its baseline, the task, or the last evaluation.
        error: standard error, where there is one.
        n: prompts, items or pairs, where their number is known.
    """

    source: str
    metric: str
    value: float
    error: float | None
    n: int | None


def make(config: Path, output: Path, results: Path = Path("results")) -> None:
    """Write the model card of each trained model of a grid.

    A card has what the model was made from, how, its results (whichever grid asked for them), and the commands that
    make it again. Its metadata block is the one that the hub reads.

    Args:
        config: the grid's config.yaml: `python -m halos config FOLDER` writes one.
        output: folder for index.md, which lists the cards; a card is the README.md of a model's folder.
        results: the results folder.

    Raises:
        HalosError: a run of the grid is not finished.
    """
    grid = Results(config, results)
    rows = []
    for cell in grid.trained:
        path = grid.paths.run(cell).card
        write_text(path, card(grid, cell))
        names = grid.label("models", cell.model), grid.method_label(cell.method), grid.label("datasets", cell.dataset)
        rows.append([*names, str(cell.seed), str(path), f"`{grid.manifest(cell).weights[:12]}`"])
    titles = ["Model", "Method", "Dataset", "Seed", "Card", "Weights"]
    table = markdown_table(titles, rows, [title != "Seed" for title in titles])
    write_text(output / "index.md", f"# Models: {grid.label('grids', grid.grid)}\n\n{table}\n")


def card(grid: Results, cell: Cell) -> str:
    """The text of a cell's card."""
    manifest, base = grid.manifest(cell), grid.manifest(Cell(cell.dataset, cell.model, BASE, 0))
    names = {kind: grid.label(f"{kind}s", getattr(cell, kind)) for kind in ("model", "dataset")}
    names |= {"method": grid.method_label(cell.method)}
    reward = cell.method in grid.reward_models
    scores = list(scores_of(grid, cell))
    tokens = grid.tokens_report(cell.dataset, cell.model)
    run = grid.paths.run(cell)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    origin = base.config["hub"] or base.config["path"]
    return environment.get_template("card.md.jinja").render(
        metadata=metadata(grid, cell, base, scores, reward),
        title=f"{names['model']}, {names['method']}",
        **names,
        seed=cell.seed,
        reward=reward,
        **loading(run.model, reward),
        origin=f"`{origin}`" if origin else f"random weights (seed {base.config['seed']})",
        stages=_stages(grid, cell),
        max_length=tokens.max_length if tokens else "all",
        examples=int(max(json.loads(line).get("examples", 0) for line in run.log.read_text().splitlines())),
        hardware=_hardware(manifest),
        minutes=f"{manifest.seconds / 60:.1f}",
        results=_results(scores),
        folder=str(run.folder),
        commit=(manifest.commit or "COMMIT").removesuffix("-modified"),
        provenance=_provenance(manifest),
    )


def loading(model: Path, reward: bool) -> dict[str, str]:
    """`loader`, the class of transformers that loads the whole model of a folder, and its `options`."""
    loader = CLASSIFIER if reward else language_class(read_config(model)).__name__
    return {"loader": loader, "options": ", trust_remote_code=True" if trusts(model) else ""}


def metadata(grid: Results, cell: Cell, base: Manifest, scores: list[Score], reward: bool) -> str:
    """The card's YAML block, by the hub's own library."""
    from huggingface_hub import EvalResult, ModelCardData

    task = "text-classification" if reward else "text-generation"
    results = [
        EvalResult(
            task_type=task, dataset_type=cell.dataset, dataset_config=score.source, dataset_name=score.source,
            metric_type=score.metric, metric_value=score.value, metric_name=score.metric,
        )
        for score in scores
    ]  # fmt: skip
    stages = [made for made in cell.lineage() if made.stage]
    tags = [name for made in stages for name in loss_names(grid.settings(made)["loss"])]
    data = ModelCardData(
        model_name=f"{cell.model}-{cell.method}-{cell.dataset}-seed{cell.seed}",
        base_model=base.config["hub"],
        library_name="transformers",
        pipeline_tag=task,
        datasets=[cell.dataset],
        tags=["halos", *tags],
        eval_results=results or None,
    )
    return str(data.to_yaml()) + "\n"


def scores_of(grid: Results, cell: Cell) -> Iterator[Score]:
    """All results of a cell: each judge's win rate, each task's metric, the reward accuracy of the last evaluation."""
    folder = grid.paths.run(cell).folder
    for path in sorted(folder.glob("judged/*.json")):
        j = Judgement.read(path)
        source = f"{grid.label('judges', j.judge)}, against {j.baseline}"
        yield Score(source, "win_rate", j.win_rate, j.standard_error, j.n)
    for path in sorted(folder.glob("tasks/*.json")):
        t = TaskResult.read(path)
        if t.value is not None:
            yield Score(grid.label("tasks", t.task_id), t.metric.removesuffix(",none"), t.value, t.stderr, t.n)
    log = part_of(grid.training, [*ROW, "split"], [cell.dataset, cell.model, cell.method, "eval"])
    accuracy = log[log["seed"] == cell.seed].get("rewards/accuracy")
    if accuracy is not None and accuracy.notna().any():
        last = float(accuracy.dropna().iloc[-1])
        yield Score("Validation pairs, last evaluation", "reward_accuracy", last, None, grid.validation_pairs(cell))


def _stages(grid: Results, cell: Cell) -> str:
    """A table of how each stage was trained."""
    titles = ["Stage", "Loss", "Learning rate", "Optimiser", "Batch", "Steps", "Tokens", "Hyperparameters"]
    rows = []
    for made in reversed([made for made in cell.lineage() if made.stage]):
        manifest, stage = grid.manifest(made), grid.settings(made)
        hyperparameters = {key: value for key, value in stage.items() if key not in Stage.model_fields}
        names = ("humanline", "sync_reference", "sync_weight", "reference", "resume_from", "lora", "online")
        hyperparameters |= {name: stage[name] for name in names if stage.get(name)}
        row = [
            grid.method_label(str(made.stage)),
            loss_text(stage["loss"]),
            f"{stage['lr']:g}, {schedule(stage)}",
            optimizer(stage),
            str(stage["batch_size"]),
            str(manifest.steps),
            str(manifest.tokens),
            ", ".join(f"{key} {value}" for key, value in hyperparameters.items()) or "none",
        ]
        rows.append(row)
    return markdown_table(titles, rows, [title not in ("Batch", "Steps", "Tokens") for title in titles])


def optimizer(stage: dict[str, Any]) -> str:
    """A stage's optimiser with its arguments."""
    arguments = ", ".join(f"{key} {value}" for key, value in stage["optimizer_args"].items())
    return f"{stage['optimizer']} ({arguments})" if arguments else str(stage["optimizer"])


def schedule(stage: dict[str, Any]) -> str:
    """A stage's learning rate over its steps."""
    text = f"{stage['scheduler']}, warm-up {stage['warmup']:g}"
    if stage["scheduler"] == "wsd":
        text += f", decay {stage['decay']:g}"
    return text + (f", down to {stage['min_lr_ratio']:g} of it" if stage.get("min_lr_ratio") else "")


def _results(scores: list[Score]) -> str:
    """A table of the results; empty without any."""
    if not scores:
        return ""
    rows = [
        [s.source, s.metric, f"{s.value:.3f}", NOTHING if s.error is None else f"{s.error:.3f}",
         NOTHING if s.n is None else str(s.n)]
        for s in scores
    ]  # fmt: skip
    titles = ["What", "Metric", "Value", "Standard error", "n"]
    return markdown_table(titles, rows, [title in ("What", "Metric") for title in titles])


def _hardware(manifest: Manifest) -> str:
    if manifest.hardware is None:
        return "unknown hardware"
    gpus = manifest.hardware.gpus
    return f"{len(gpus)} x {gpus[0]}" if gpus else f"{manifest.hardware.cpus} CPU cores"


def _provenance(manifest: Manifest) -> str:
    """A table of hashes and versions."""
    inputs = {"parent's weights": "weights", "sequence store": "store", "chat template": "template"}
    facts = {
        "weights (sha256)": manifest.weights,
        **{name: manifest.inputs[key] for name, key in inputs.items()},
        "commit": manifest.commit or "none",
        "Python": manifest.python or "unknown",
        **manifest.packages,
    }
    return markdown_table(["", ""], [[name, f"`{value}`"] for name, value in facts.items()], [True, True])
