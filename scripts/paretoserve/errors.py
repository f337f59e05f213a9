"""Errors that are the user's to mend, each one sentence long."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Bad input. `str(error)` is one sentence: where, what was given, what is allowed."""


class UnreadableTable(InputError):
    """A table of perf_db that is missing, unreadable or not the manifest's: nothing stands in."""


def did_you_mean(given: str, options: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the option nearest to `given`, "" if none is near.

    Case and the choice of `-`, `_`, `.` do not count: people type names from memory.
    """
    folded: dict[str, str] = {}
    for option in options:
        folded.setdefault(_fold(option), option)
    near = difflib.get_close_matches(_fold(given), folded, n=1, cutoff=0.6)
    return f" (did you mean '{folded[near[0]]}'?)" if near else ""


def _fold(name: str) -> str:
    return name.lower().translate(str.maketrans("-.", "__"))
