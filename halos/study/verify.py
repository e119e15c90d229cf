"""Check of a finished run against its manifest: its files, settings and data, and those of its parents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from halos.errors import HalosError
from halos.files import hash_content, hash_each, hash_file, hash_files
from halos.manifest import VALUE_HEAD, Manifest, environment
from halos.settings import AnySlice
from halos.study.catalogue import Config
from halos.study.cells import Cell
from halos.study.paths import Paths
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.tokens.store import SPLITS, Store, read_splits

SHOWN = 5
"""Changed records that are named; of the rest, only the number is printed."""


def verify(run: Path, config: Config) -> None:
    """Print what changed since a run was made, by computing again every hash that its manifest rests on.

    Compared are the files of its `model/`, its settings (with its config.yaml and with the catalogue), the sequence
    store, each record of the data, and the files and settings of each parent down to the base model; of a reference
    that is no parent, and of a run that it went on from, the weights. Other versions of packages, or another commit,
    are printed as notes and are no error.

    Args:
        run: a run's folder, below a results folder: results/runs/DATASET/MODEL/METHOD/seedN.
        config: the catalogue.

    Raises:
        HalosError: something changed, or the run is not finished.
    """
    cell = Cell.of(run)
    paths = Paths(Path(str(run.resolve()).removesuffix(cell.folder)))
    lines = list(changes(cell, paths, config))
    for note in differing_environment(_manifest(cell, paths)):
        print(f"note: {note}")
    for line in lines:
        print(line)
    if lines:
        changed = "one thing has" if len(lines) == 1 else f"{len(lines)} things have"
        raise HalosError(
            f"{run}: {changed} changed since it was made; run `snakemake` to make again what depends on it"
        )
    print(f"{run}: unchanged, with all that it was made from")


def changes(cell: Cell, paths: Paths, config: Config) -> Iterator[str]:
    """One line for each difference between a run, with all that it was made from, and the manifests."""
    stores, study = {}, Study(config)
    for made in _made_from(cell, paths):
        run, manifest = paths.run(made), _manifest(made, paths)
        yield from _files(run.model, manifest.files)
        if manifest.value_head is not None:
            head = run.folder / VALUE_HEAD
            now = hash_file(head) if head.is_file() else None
            yield from _differing(str(head), manifest.value_head, now, "its content changed")
        if made.stage is None:
            continue
        yield from _settings(manifest.config, AnySlice.read(run.config).content, str(run.config))
        yield from _settings(manifest.config, config_slice(config, made.folder), f"{run.folder}: the catalogue")
        if not manifest.rounds:  # its rounds have inputs of their own
            store = stores[made] = run.fresh.store if made.round else paths.store(made.dataset, made.model).store
            yield from _inputs(made, paths, store, manifest.inputs)
            for name, other in (("reference", study.reference(made)), ("resumed", study.resumed(made))):
                if other is not None and name in manifest.inputs:
                    yield from _weights(other, paths, manifest.inputs[name], run.folder)
    for store in dict.fromkeys(stores.values()):
        yield from _store(store)
    if any(not made.round for made in stores):
        yield from _records(cell, paths)


def _made_from(cell: Cell, paths: Paths) -> Iterator[Cell]:
    """A cell and its parents, each before its rounds, of which the last comes first."""
    for made in cell.lineage():
        yield made
        yield from reversed(made.rounds(len(_manifest(made, paths).rounds)))


def differing_environment(manifest: Manifest) -> Iterator[str]:
    """One line for each package, Python or commit that is not the one that made a run."""
    now = environment()
    then = {"python": manifest.python, "commit": manifest.commit, **manifest.packages}
    for name, version in {"python": now["python"], "commit": now["commit"], **now["packages"]}.items():
        if then.get(name) not in (None, version):
            yield f"{name} was {then[name]} and is {version}"


def _manifest(cell: Cell, paths: Paths) -> Manifest:
    path = paths.run(cell).manifest
    if not path.is_file():
        raise HalosError(f"there is no {path}: the run is not finished; make it with `snakemake {path}`")
    return Manifest.read(path)


def _files(folder: Path, then: dict[str, str]) -> Iterator[str]:
    """Files of a model folder that differ from the hashes in its manifest. A card may be written at any time."""
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


def _inputs(cell: Cell, paths: Paths, store: Path, then: dict[str, str]) -> Iterator[str]:
    """Differences between the parent and the store now, and the hashes of those that a run was trained from."""
    assert cell.parent is not None
    run = paths.run(cell).folder
    yield from _weights(cell.parent, paths, then["weights"], run)
    if Store(store).hash != then["store"]:
        yield f"{store}: made anew since {run} was trained on it"


def _weights(cell: Cell, paths: Paths, then: str, run: Path) -> Iterator[str]:
    """Whether a cell that a run was trained from, or with, has other weights than it had then."""
    if _manifest(cell, paths).weights != then:
        yield f"{paths.run(cell).model.parent}: made anew since {run} was trained from it"


def _store(folder: Path) -> Iterator[str]:
    """Files of a store that differ from its own hashes."""
    meta = Store(folder).meta
    then, now = meta.files, hash_each(folder)
    for name in sorted({*then, *now} - {"meta.json", ".snakemake_timestamp"}):
        yield from _differing(f"{folder / name}", then.get(name), now.get(name), "its content changed")
    if hash_content(then) != meta.hash:
        yield f"{folder / 'meta.json'}: its content changed"


def _records(cell: Cell, paths: Paths) -> Iterator[str]:
    """Records of the data that differ from those of the store, by their prompts."""
    store = Store(paths.store(cell.dataset, cell.model).store)
    splits = {split: paths.data(cell.dataset).split(split) for split in SPLITS}
    for split, records in read_splits(store.meta.eval_examples, splits["train"], splits["validation"]).items():
        if hash_files([splits[split]]) == store.meta.data[split]:
            continue
        table = pq.read_table(store.folder / f"records_{split}.parquet")
        then = list(zip(table["prompt_id"].to_pylist(), table["digest"].to_pylist(), strict=True))
        now = [(record.prompt_id, record.digest) for record in records]
        gone, new = _without(then, now), _without(now, then)
        edited = {prompt for prompt, _ in gone} & {prompt for prompt, _ in new}
        lines = [f"the record on prompt {prompt} changed" for prompt in sorted(edited)]
        lines += [f"the record on prompt {prompt} is gone" for prompt, _ in gone if prompt not in edited]
        lines += [f"the record on prompt {prompt} is new" for prompt, _ in new if prompt not in edited]
        for line in lines[:SHOWN] or ["its content changed, but no record that the store was made from"]:
            yield f"{splits[split]}: {line}"
        if len(lines) > SHOWN:
            yield f"{splits[split]}: {len(lines) - SHOWN} more records changed"


def _without(records: list[tuple[str, bytes]], others: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    known = set(others)
    return [record for record in records if record not in known]


def _differing(where: str, then: str | None, now: str | None, changed: str) -> Iterator[str]:
    if then != now:
        yield f"{where}: " + ("it is gone" if now is None else "it is new" if then is None else changed)
