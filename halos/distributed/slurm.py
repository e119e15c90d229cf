"""Slurm: the time left to a job, and jobs that outlived the `snakemake` that submitted them."""

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
"""Seconds that cancelled jobs may take to end. Slurm kills them after its KillWait."""


def time_limit(minutes: float | None) -> float | None:
    """The time limit of this process: the one asked for, or what Slurm leaves its job, if that is less.

    The job began before this process did, and its site may allow it less time than was asked for.

    Args:
        minutes: the limit asked for, or None.

    Returns:
        Minutes from now, or None without a limit.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return minutes
    try:
        end = datetime.fromisoformat(_run("squeue", "--noheader", f"--jobs={job}", "--format=%e").strip())
    except (HalosError, OSError, ValueError):  # no answer from the controller, no squeue on the node, no limit
        return minutes
    left = (end - datetime.now()).total_seconds() / 60
    return left if minutes is None else min(minutes, left)


def end_orphans(jobs: Iterable[Any], prefix: str) -> list[str]:
    """Cancel orphaned Slurm jobs that make files which the calling workflow is about to make, and wait for their end.

    Snakemake locks the files that it is about to make. So such a job was submitted from this folder by a `snakemake`
    that was killed, and would write the same files as its successor. Jobs that make other files are left alone, because
    another `snakemake` may wait for them.

    Args:
        jobs: Snakemake's jobs, none of which has been submitted yet.
        prefix: prefix of the names of its Slurm jobs.

    Returns:
        The Slurm ids of the jobs that were cancelled.

    Raises:
        HalosError: squeue or scancel fails, or a cancelled job does not end.
    """
    comments = {_comment(job) for job in jobs}
    orphans = _queued(comments, prefix)
    if not orphans:
        return []
    print(
        f"cancelling Slurm jobs {', '.join(orphans)}, left by a snakemake that was killed; a training saves a "
        f"checkpoint first and resumes from it",
        file=sys.stderr,
    )
    _run("scancel", *orphans)
    deadline = time.monotonic() + PATIENCE
    while _queued(comments, prefix):
        if time.monotonic() > deadline:
            raise HalosError(
                f"Slurm jobs {', '.join(orphans)} do not end: start again when `squeue --me` no longer lists them"
            )
        time.sleep(1)
    return orphans


def _comment(job: Any) -> str:
    """The comment that the Slurm plugin gives a job: its rule and wildcards."""
    from snakemake_executor_plugin_slurm.utils import get_job_wildcards  # only the driver needs it, not its jobs

    wildcards = get_job_wildcards(job)
    return f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")


def _queued(comments: set[str], prefix: str) -> list[str]:
    """Ids of this user's jobs, pending, running or ending, that were submitted from this folder with these comments."""
    lines = _run("squeue", "--me", "--noheader", "--format=%i|%j|%Z|%k").splitlines()
    jobs = (line.split("|", 3) for line in lines)
    here = Path.cwd().resolve()
    return [number for number, name, folder, comment in jobs
            if name.startswith(prefix) and Path(folder).resolve() == here and comment in comments]  # fmt: skip


def _run(*command: str) -> str:
    # variables such as SQUEUE_FORMAT would change the output that is parsed here; those that choose the cluster stay
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    environment["SLURM_TIME_FORMAT"] = "standard"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise HalosError(f"{command[0]} failed ({done.stderr.strip()}): try again when Slurm answers")
    return done.stdout
