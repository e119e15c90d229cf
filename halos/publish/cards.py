"""Model cards: a README.md in each model folder of a grid, in the Hugging Face format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from halos.files import write_text
from halos.manifest import Manifest
from halos.report.results import Results
from halos.study.cells import Cell
from halos.train.settings import Stage

CARD = "README.md"


def make(config: Path, results: Path, output: Path) -> None:
    """Write the card of each trained model of a grid.

    A card has what the model was made from, how, the results that are there (whatever grid asked for them), and the
    commands that make it again. Its metadata block is the one that the hub reads.

    Args:
        config: the grid's slice of the config.
        results: the results folder; a card is `model/README.md` of each run.
        output: folder for index.md, which lists them.

    Raises:
        HalosError: a run of the grid is not finished.
    """
    grid = Results(config, results)
    lines = [f"# Models: {grid.label('grids', grid.grid)}", "", "| Model | Method | Dataset | Seed | Card | Weights |",
             "|---|---|---|---:|---|---|"]  # fmt: skip
    for cell in grid.trained:
        path = results / cell.folder / "model" / CARD
        write_text(path, card(grid, cell))
        name = (grid.label("models", cell.model), grid.method_label(cell.method), grid.label("datasets", cell.dataset))
        lines.append(f"| {' | '.join(name)} | {cell.seed} | {path} | `{grid.manifest(cell)['weights'][:12]}` |")
    write_text(output / "index.md", "\n".join(lines) + "\n")


def card(grid: Results, cell: Cell) -> str:
    """The text of a cell's card."""
    manifest = grid.manifest(cell)
    base = Manifest.read(grid.folder / f"models/{cell.model}/manifest.json").config
    store = _read(grid.folder / cell.store_folder / "report.json")
    names = {kind: grid.label(f"{kind}s", getattr(cell, kind)) for kind in ("model", "dataset")}
    reward = cell.method in grid.reward_models
    names |= {"method": grid.method_label(cell.method)}
    found = list(evaluated(grid, cell))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    origin = base["hub"] or base["path"]
    gpus = manifest["hardware"]["gpus"]
    return environment.get_template("card.md.jinja").render(
        metadata=metadata(grid, cell, base, found, reward),
        title=f"{names['model']}, {names['method']}",
        **names,
        seed=cell.seed,
        reward=reward,
        loader="AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM",
        origin=f"`{origin}`" if origin else f"random weights (seed {base['seed']})",
        stages=[stage_row(grid, made) for made in reversed(list(cell.lineage())) if made.stage],
        max_length=store["max_length"],
        examples=_examples(grid, cell),
        hardware=f"{len(gpus)} x {gpus[0]}" if gpus else f"{manifest['hardware']['cpus']} CPU cores",
        minutes=f"{manifest['seconds'] / 60:.1f}",
        results=[_shown(r) for r in found],
        folder=str(grid.folder / cell.folder),
        commit=(manifest["commit"] or "COMMIT").removesuffix("-modified"),
        provenance={
            "weights (sha256)": manifest["weights"],
            "parent's weights": manifest["inputs"]["weights"],
            "sequence store": manifest["inputs"]["store"],
            "chat template": manifest["inputs"]["template"],
            "commit": manifest["commit"] or "none",
            "Python": manifest["python"],
            **manifest["packages"],
        },
    )


def metadata(grid: Results, cell: Cell, base: dict[str, Any], found: list[dict[str, Any]], reward: bool) -> str:
    """The card's YAML block, by the hub's own library."""
    from huggingface_hub import EvalResult, ModelCardData

    task = "text-classification" if reward else "text-generation"
    results = [
        EvalResult(
            task_type=task, dataset_type=cell.dataset, dataset_config=r["what"], dataset_name=r["what"],
            metric_type=r["metric"], metric_value=r["value"], metric_name=r["metric"],
        )
        for r in found
    ]  # fmt: skip
    data = ModelCardData(
        model_name=f"{cell.model}-{cell.method}-{cell.dataset}-seed{cell.seed}",
        base_model=base["hub"],
        library_name="transformers",
        pipeline_tag=task,
        datasets=[cell.dataset],
        tags=["halos", *(grid.manifest(made)["config"]["stage"]["loss"] for made in cell.lineage() if made.stage)],
        eval_results=results or None,
    )
    return str(data.to_yaml()) + "\n"


def stage_row(grid: Results, cell: Cell) -> dict[str, Any]:
    """How one stage was trained."""
    manifest = grid.manifest(cell)
    stage = manifest["config"]["stage"]
    own = {key: value for key, value in stage.items() if key not in Stage.model_fields}
    changed = {name: stage[name] for name in ("humanline", "sync_reference", "lora", "online") if stage.get(name)}
    arguments = ", ".join(f"{key} {value}" for key, value in stage["optimizer_args"].items())
    return {
        "label": grid.method_label(str(cell.stage)),
        "loss": stage["loss"],
        "lr": f"{stage['lr']:g}, {stage['scheduler']}, warm-up {stage['warmup']:g}",
        "optimizer": f"{stage['optimizer']} ({arguments})" if arguments else stage["optimizer"],
        "batch_size": stage["batch_size"],
        "steps": manifest["steps"],
        "tokens": manifest["tokens"],
        "hyperparameters": ", ".join(f"{key} {value}" for key, value in {**own, **changed}.items()) or "none",
    }


def evaluated(grid: Results, cell: Cell) -> Iterator[dict[str, Any]]:
    """All results of a cell: each judge's win rate, each task's metric, a last evaluation's accuracy."""
    folder = grid.folder / cell.folder
    for path in sorted(folder.glob("judged/*.json")):
        j = _read(path)
        what = f"{grid.label('judges', j['judge'])}, against {j['baseline']}"
        yield {"what": what, "metric": "win_rate", "value": j["win_rate"], "error": j["standard_error"], "n": j["n"]}
    for path in sorted(folder.glob("tasks/*.json")):
        t = _read(path)["halos"]
        yield {"what": grid.label("tasks", t["task_id"]), "metric": t["metric"].removesuffix(",none"),
               "value": t["value"], "error": t["stderr"], "n": t["n"]}  # fmt: skip
    last = grid.training
    mine = last[(last[["dataset", "model", "method"]] == [cell.dataset, cell.model, cell.method]).all(axis=1)]
    mine = mine[(mine["seed"] == cell.seed) & (mine["split"] == "eval")]
    accuracy = mine.get("rewards/accuracy")
    if accuracy is not None and accuracy.notna().any():
        yield {"what": "Held-out pairs, last evaluation", "metric": "reward_accuracy",
               "value": float(accuracy.dropna().iloc[-1]), "error": None, "n": grid.held_out_pairs(cell)}  # fmt: skip


def _shown(result: dict[str, Any]) -> dict[str, str]:
    numbers = {name: result[name] for name in ("value", "error")}
    shown = {name: "–" if number is None else f"{number:.3f}" for name, number in numbers.items()}
    return {**result, **shown, "n": "–" if result["n"] is None else str(result["n"])}


def _examples(grid: Results, cell: Cell) -> int:
    lines = (grid.folder / cell.folder / "train.jsonl").read_text().splitlines()
    return int(max(json.loads(line).get("examples", 0) for line in lines))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
