"""Print what this machine and account can run."""

from __future__ import annotations

from pathlib import Path

from halos import __version__
from halos.errors import HalosError


def doctor(
    config: Path = Path("config.yaml"),
    grid: str | None = None,
    results: Path = Path("results"),
    offline: bool = False,
) -> None:
    """Print what this machine and account can run, and what a grid lacks, as a table for bug reports.

    It takes a minute, changes nothing and prints no key.

    Args:
        config: the catalogue.
        grid: id of the grid; by default the config's own.
        results: the results folder.
        offline: leave the Hugging Face hub alone.

    Raises:
        HalosError: something that the grid needs is missing.
    """
    try:
        import halos.doctor.checks  # noqa: F401  # they register themselves
        from halos.doctor.lines import TO_DO, examine, row
        from halos.doctor.setup import Setup
    except ImportError as error:
        from halos.doctor.packages import LOCK, ROOT, deviations, installed, listed, locked

        lacking = deviations(installed(), locked(ROOT / LOCK)) if (ROOT / LOCK).is_file() else {}
        why = "; ".join(filter(None, (str(error), listed([*lacking.values()]))))
        raise HalosError(f"this environment cannot run halos ({why}): `make env`") from None
    setup = Setup(config, grid, results, offline)
    print(f"halos {__version__}: what is `ok`, what is not there and not needed (`-`), and what is `to do`\n")
    print(row("state", "about", "what was found"))
    print(row("-----", "------------------", "---"))
    missing = 0
    try:
        setup.start()
        for line in examine(setup):
            missing += line.state == TO_DO
            print(row(line.state, line.about, line.text), flush=True)
    finally:
        for probe in setup.probes.values():
            probe.end()
    if missing:
        what = f"the grid {setup.study.grid} needs" if setup.study else "a grid needs"
        raise HalosError(f"{missing} of these lines are to do: {what} what they name")
