"""Whether a finished run still is what its manifest says: its files, its config, its data and its parents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from halos.errors import HalosError
from halos.files import hash_content, hash_each, hash_files
from halos.manifest import environment
from halos.settings import read_slice
from halos.study.catalogue import Config
from halos.study.cells import Cell
from halos.study.slices import config_slice
from halos.tokens.store import SPLITS, Store, read_splits

SHOWN = 5
"""Changed rows that are named; of more, the number is said."""


def verify(run: Path, config: Config) -> None:
    """Recompute every hash that a run's manifest rests on, and say what changed since it was made.

    Compared are the files of its `model/`; its settings with its config.yaml and with the catalogue; the sequence store
    with its hashes; each record of the data with the store; and the same of each parent down to the base model. Other
    versions of packages, or another commit, are told but are no fault.

    Args:
        run: a run's folder, below a results folder: results/runs/DATASET/MODEL/METHOD/seedN.
        config: the catalogue.

    Raises:
        HalosError: something changed, or the run is not finished.
    """
    cell = Cell.of(run)
    results = Path(str(run.resolve()).removesuffix(cell.folder))
    found = list(changes(cell, results, config))
    for note in differing_environment(_manifest(results / cell.model_folder)):
        print(f"note: {note}")
    for line in found:
        print(line)
    if found:
        changed = "one thing has" if len(found) == 1 else f"{len(found)} things have"
        raise HalosError(f"{run}: {changed} changed since it was made; `snakemake` makes again what that concerns")
    print(f"{run}: unchanged, with all that it was made from")


def changes(cell: Cell, results: Path, config: Config) -> Iterator[str]:
    """A line for each thing that a run, or one that it was made from, no longer is."""
    stores = {}
    for made in _made_from(cell, results):
        folder = results / made.model_folder
        manifest = _manifest(folder)
        yield from _files(folder / "model", manifest["files"])
        if made.stage is None:
            continue
        yield from _settings(manifest["config"], read_slice(folder / "config.yaml"), f"{folder}/config.yaml")
        yield from _settings(manifest["config"], config_slice(config, made.folder), f"{folder}: the catalogue")
        if "rounds" not in manifest:  # its rounds have inputs of their own
            store = stores[made] = folder / "fresh/store" if made.round else results / made.store_folder / "store"
            yield from _inputs(made, results, store, manifest["inputs"])
    for store in dict.fromkeys(stores.values()):
        yield from _store(store)
    if any(not made.round for made in stores):
        yield from _records(cell, results)


def _made_from(cell: Cell, results: Path) -> Iterator[Cell]:
    """A cell and its parents; the rounds of an online one first."""
    for made in cell.lineage():
        yield made
        rounds = len(_manifest(results / made.model_folder).get("rounds", ()))
        yield from reversed(made.rounds(rounds))


def differing_environment(manifest: dict[str, Any]) -> Iterator[str]:
    """What is installed now and was not then."""
    now = environment()
    then = {"python": manifest.get("python"), "commit": manifest.get("commit"), **manifest.get("packages", {})}
    for name, version in {"python": now["python"], "commit": now["commit"], **now["packages"]}.items():
        if then.get(name) not in (None, version):
            yield f"{name} was {then[name]} and is {version}"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise HalosError(f"there is no {path}: the run is not finished; make it with `snakemake {path}`")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _files(folder: Path, then: dict[str, str]) -> Iterator[str]:
    now = hash_each(folder) if folder.is_dir() else {}
    for name in sorted({*then, *now} - {"README.md", ".snakemake_timestamp"}):
        yield from _differing(f"{folder / name}", then.get(name), now.get(name), "its content changed")


def _settings(then: Any, now: Any, where: str, name: str = "") -> Iterator[str]:
    """Each setting that differs, by its path in the slice."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted({*then, *now}):
            yield from _settings(then.get(key), now.get(key), where, f"{name}.{key}" if name else key)
    elif then != now:
        yield f"{where}: {name} was {then!r} and is {now!r}"


def _inputs(cell: Cell, results: Path, store: Path, then: dict[str, str]) -> Iterator[str]:
    """What a run was trained from, by what its inputs say of themselves."""
    assert cell.parent is not None
    parent = results / cell.parent.model_folder
    if _manifest(parent)["weights"] != then["weights"]:
        yield f"{parent}: made anew since {results / cell.folder} was trained from it"
    if Store(store).hash != then["store"]:
        yield f"{store}: made anew since {results / cell.folder} was trained on it"


def _store(folder: Path) -> Iterator[str]:
    meta = Store(folder).meta
    then, now = meta.files, hash_each(folder)
    for name in sorted({*then, *now} - {"meta.json", ".snakemake_timestamp"}):
        yield from _differing(f"{folder / name}", then.get(name), now.get(name), "its content changed")
    if hash_content(then) != meta.hash:
        yield f"{folder / 'meta.json'}: its content changed"


def _records(cell: Cell, results: Path) -> Iterator[str]:
    """The records of the data that are not those of the store, by their prompts."""
    store = Store(results / cell.store_folder / "store")
    splits = {split: results / "data" / cell.dataset / f"{split}.parquet" for split in SPLITS}
    for split, records in read_splits(store.meta.eval_examples, splits["train"], splits["test"]).items():
        if hash_files([splits[split]]) == store.meta.data[split]:
            continue
        table = pq.read_table(store.folder / f"records_{split}.parquet")
        then = list(zip(table["prompt_id"].to_pylist(), table["digest"].to_pylist(), strict=True))
        now = [(record.prompt_id, record.digest) for record in records]
        gone, come = _without(then, now), _without(now, then)
        edited = {prompt for prompt, _ in gone} & {prompt for prompt, _ in come}
        lines = [f"the record on prompt {prompt} changed" for prompt in sorted(edited)]
        lines += [f"the record on prompt {prompt} is gone" for prompt, _ in gone if prompt not in edited]
        lines += [f"the record on prompt {prompt} is new" for prompt, _ in come if prompt not in edited]
        for line in lines[:SHOWN] or ["its content changed, but no record that the store was made from"]:
            yield f"{splits[split]}: {line}"
        if len(lines) > SHOWN:
            yield f"{splits[split]}: {len(lines) - SHOWN} more records changed"


def _without(these: list[tuple[str, bytes]], those: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    known = set(those)
    return [item for item in these if item not in known]


def _differing(what: str, then: str | None, now: str | None, changed: str) -> Iterator[str]:
    if then != now:
        yield f"{what}: " + ("it is gone" if now is None else "it is new" if then is None else changed)
