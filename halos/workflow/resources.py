"""Resources of a job: processes and devices, and how fast a server is asked."""

from __future__ import annotations

from halos.evaluate.judging.settings import Judge
from halos.models.settings import Resources
from halos.online.settings import Labeller


def launch_options(resources: Resources) -> str:
    return " ".join(f"--{name} {getattr(resources, name)}" for name in ("nodes", "gpus", "parallel", "cpus"))


def call_limits(asker: Judge | Labeller) -> str:
    most = asker.requests_per_minute
    return f"--concurrency {asker.concurrency}" + (f" --requests-per-minute {most}" if most else "")
