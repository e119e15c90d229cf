"""What the scheduler knows better: when a job ends, and which jobs outlived the `snakemake` that submitted them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from halos.errors import HalosError

PATIENCE = 600
"""Seconds that cancelled jobs may take to end. Slurm itself kills what is left of one after its KillWait."""


def time_limit(minutes: float | None) -> float | None:
    """A time limit, cut to what Slurm leaves the job that this process is part of.

    The job began before this process did, and its site may allow it less time than was asked for.

    Args:
        minutes: the limit that was asked for, or None.

    Returns:
        Minutes from now, or None where nobody sets a limit.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return minutes
    try:
        end = datetime.fromisoformat(_run("squeue", "--noheader", f"--jobs={job}", "--format=%e").strip())
    except (HalosError, OSError, ValueError):  # a controller that does not answer, no squeue on the node, no limit
        return minutes
    left = (end - datetime.now()).total_seconds() / 60
    return left if minutes is None else min(minutes, left)


def end_orphans(jobs: Iterable[Any], prefix: str) -> list[str]:
    """Cancel Slurm jobs that make what the calling workflow is about to make, and wait until they are gone.

    Snakemake locks the files that it is about to make, so nobody looks after such a job any more: it was submitted from
    this folder by a `snakemake` that was killed, and would write the same files as its successor. Jobs that make other
    files are left alone, for another `snakemake` may wait for them.

    Args:
        jobs: Snakemake's jobs, none of which has been submitted yet.
        prefix: what the names of its Slurm jobs begin with.

    Returns:
        The Slurm ids of the jobs that were cancelled.

    Raises:
        HalosError: squeue or scancel fails, or a cancelled job does not end.
    """
    about = {_comment(job) for job in jobs}
    orphans = _queued(about, prefix)
    if not orphans:
        return []
    print(
        f"cancelling Slurm jobs {', '.join(orphans)}, left here by a snakemake that was killed; a training saves a "
        f"checkpoint first, and goes on from there",
        file=sys.stderr,
    )
    _run("scancel", *orphans)
    deadline = time.monotonic() + PATIENCE
    while _queued(about, prefix):
        if time.monotonic() > deadline:
            raise HalosError(f"Slurm jobs {', '.join(orphans)} do not end: see `squeue --me`, and start again then")
        time.sleep(1)
    return orphans


def _comment(job: Any) -> str:
    """What the Slurm plugin says that a job is about."""
    from snakemake_executor_plugin_slurm.utils import get_job_wildcards  # needed by the driver alone, not by its jobs

    wildcards = get_job_wildcards(job)
    return f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")


def _queued(comments: set[str], prefix: str) -> list[str]:
    """The ids of this user's jobs, waiting, running or ending, that were submitted from this folder with a comment."""
    lines = _run("squeue", "--me", "--noheader", "--format=%i|%j|%Z|%k").splitlines()
    found = (line.split("|", 3) for line in lines)
    here = Path.cwd().resolve()
    return [number for number, name, folder, comment in found
            if name.startswith(prefix) and Path(folder).resolve() == here and comment in comments]  # fmt: skip


def _run(*command: str) -> str:
    # which cluster is asked stays the user's choice; how squeue prints is ours
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    environment["SLURM_TIME_FORMAT"] = "standard"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise HalosError(f"{command[0]} failed ({done.stderr.strip()}): try again when Slurm answers")
    return done.stdout
