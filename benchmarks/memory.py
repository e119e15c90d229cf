"""The memory that a process has resident, by Linux.

Not by getrusage: its ru_maxrss begins at what the parent had when it forked.
"""

from __future__ import annotations

from pathlib import Path


def resident_gb() -> float:
    """Now, GB of 1e9 bytes."""
    return _status("VmRSS")


def peak_gb() -> float:
    """The most at once since the process began, GB of 1e9 bytes."""
    return _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(kilobytes) * 1024 / 1e9
