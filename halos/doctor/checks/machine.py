"""The machine: disk, memory, cores, and whether its file systems do what the workflow and the hub's cache rely on."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from halos.doctor.answers import first_line
from halos.doctor.checks.hub import cached
from halos.doctor.lines import ABSENT, OK, TO_DO, Line, check, unless
from halos.doctor.setup import Setup
from halos.errors import HalosError
from halos.plan.devices import GB, HALF
from halos.study.paths import Paths
from halos.workflow.machine import memory


def existing(folder: Path) -> Path:
    """A folder, or the nearest of its parents that exists."""
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())


def cache_folder() -> Path:
    """The folder of the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


@check("disk")
def disk(setup: Setup) -> Iterator[Line]:
    """Free space beside what the plan's jobs and downloads will take."""
    free = shutil.disk_usage(existing(setup.results)).free
    cache = cache_folder()
    left = shutil.disk_usage(existing(cache)).free
    shared = existing(setup.results).stat().st_dev == existing(cache).stat().st_dev
    plan = setup.plan
    if plan is None or isinstance(plan, HalosError):
        why = "" if plan is None else f"; no estimate of what the grid takes: {plan}"
        yield Line("disk of results", ABSENT if why else OK, f"{free / GB:.1f} GB free{why}")
        yield Line("disk of the cache", OK, f"{left / GB:.1f} GB free")
        return
    paths = Paths(setup.results)
    jobs = [job for job in plan.jobs if job.kind != job.cell.stage or not paths.run(job.cell).manifest.exists()]
    takes = sum(job.disk for job in jobs)
    gone = {where for where, about in cached(setup).items() if isinstance(about, list) and about[1] == "missing"}
    downloads = sum(HALF * size.parameters for name, size in plan.sizes.items() if f"models.{name}" in gone)
    fits = takes + downloads * shared <= free
    text = f"{free / GB:.1f} GB free, and the jobs to do take {takes / GB:.1f} GB by the plan, beside checkpoints"
    remedy = "" if fits else ": make room, or put results on another disk (a link will do)"
    yield Line("disk of results", OK if fits else TO_DO, text + remedy)
    fits = downloads + takes * shared <= left
    text = f"{left / GB:.1f} GB free"
    if downloads:
        text += f", and models to download take some {downloads / GB:.1f} GB at two bytes a weight"
    if shared:
        text += ", on the same disk as results"
    remedy = "" if fits else ": make room, or set HF_HOME to another disk"
    yield Line("disk of the cache", OK if fits else TO_DO, text + remedy)


@check("memory")
def main_memory(setup: Setup) -> Iterator[Line]:
    """Main memory and cores beside the largest job's."""
    have, cores = memory(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(setup.resources.items(), key=lambda item: item[1].mem_gb, default=None)
    text = f"{have / GB:.1f} GB"
    if most is None:
        yield Line("memory", OK, text)
        yield Line("cores", OK, str(cores))
        return
    name, resources = most
    fits = have >= resources.mem_gb * GB
    remedy = "" if fits or setup.on_cluster else ": run it where there is more, or lower mem_gb if the plan says so"
    text += f", and the largest job ({name}) asks for {resources.mem_gb} GB{remedy}"
    yield Line("memory", OK if fits else unless(not setup.on_cluster), text)
    wanted = max(resources.cpus for resources in setup.resources.values())
    note = "" if cores >= wanted else f", and the largest job asks for {wanted}: it runs on fewer, and slower"
    yield Line("cores", ABSENT if note else OK, f"{cores}{note}")


def _replaces(folder: Path) -> bool:
    """Whether a rename replaces a file at once: a reader that has the old one open keeps it, a new one sees the new."""
    old, new = folder / "old", folder / "new"
    old.write_text("old")
    new.write_text("new")
    with old.open() as reader:
        os.rename(new, old)
        return reader.read() == "old" and old.read_text() == "new" and not new.exists()


def _links(folder: Path) -> bool:
    (folder / "file").write_text("content")
    (folder / "symbolic").symlink_to("file")
    return (folder / "symbolic").read_text() == "content"


def _links_hard(folder: Path) -> bool:
    (folder / "one").write_text("content")
    os.link(folder / "one", folder / "two")
    return os.stat(folder / "one").st_nlink == 2


def _locks(folder: Path) -> bool:
    """Whether a file that is locked cannot be locked by another who opened it."""
    with (folder / "lock").open("w") as one, (folder / "lock").open("w") as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


NEEDS = {"replacing a file by a rename": _replaces, "symbolic links": _links, "locks (flock)": _locks}
"""What the workflow and the hub's cache rely on."""
USES = {"hard links": _links_hard}
"""What is used where it works; files are copied elsewhere."""


@check("file systems")
def file_systems(setup: Setup) -> Iterator[Line]:
    """Try out the file systems of the results and of the hub's cache, in a temporary folder of each."""
    for about, place, remedy in (
        ("files of results", setup.results, "put results on another file system (a link will do)"),
        ("files of the cache", cache_folder(), "set HF_HOME to a folder on another file system"),
    ):
        yield from _tried(about, existing(place), remedy)


def _tried(about: str, folder: Path, remedy: str) -> Iterator[Line]:
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor.", dir=folder) as name:
            failed = {what: why for what, works in {**NEEDS, **USES}.items() if (why := _why_not(works, Path(name)))}
    except OSError as error:
        yield Line(about, TO_DO, f"nothing can be written there ({first_line(error)}): {remedy}")
        return
    for what, why in failed.items():
        if what in NEEDS:
            yield Line(about, TO_DO, f"{what}: {why}; {remedy}")
        else:
            yield Line(about, ABSENT, f"{what}: {why}; files are copied instead")
    if not failed:
        yield Line(about, OK, f"{', '.join([*NEEDS, *USES])} work")


def _why_not(works: Callable[[Path], bool], folder: Path) -> str | None:
    try:
        return None if works(folder) else "they do not do what they should"
    except OSError as error:
        return first_line(error)
