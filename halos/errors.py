"""The one error that users see."""

from __future__ import annotations


class HalosError(Exception):
    """Something the user can put right. Its text is one sentence that says what to do; the command line prints it
    alone, without a traceback, and exits with code 1."""


class Diverged(HalosError):
    """A training whose loss or gradient is no longer finite. A trial of a sweep that diverges is not chosen."""
