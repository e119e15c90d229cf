"""Lines of the doctor's table, and the list of its checks. A check is one function: a new one needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from halos.doctor.answers import first_line
from halos.doctor.setup import Setup
from halos.errors import HalosError

OK, ABSENT, TO_DO = "ok", "-", "to do"


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        about: what was looked at.
        state: OK; ABSENT for what is not there, or not as it could be, and not needed; TO_DO for what the grid needs.
        text: what was found, and what to do about it.
    """

    about: str
    state: str
    text: str


Check = Callable[[Setup], Iterable[Line]]
CHECKS: dict[str, Check] = {}
"""name -> check, in the order of the table."""


def check(name: str) -> Callable[[Check], Check]:
    """Put a function into CHECKS."""

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def unless(needed: bool) -> str:
    """The state of something that is not there."""
    return TO_DO if needed else ABSENT


def examine(setup: Setup) -> Iterator[Line]:
    """The lines of all checks. A check that fails is a line, too: TO_DO if the user can put it right."""
    for name, function in CHECKS.items():
        try:
            yield from function(setup)
        except HalosError as error:
            yield Line(name, TO_DO, str(error))
        except Exception as error:
            yield Line(name, ABSENT, f"could not be found out: {first_line(error)}")


def row(*fields: str) -> str:
    """A row of the table, which is Markdown that can be read as it is."""
    state, about, text = (" ".join(field.split()).replace("|", "\\|") for field in fields)
    return f"| {state:5} | {about:18} | {text} |"
