"""How far long work is: a bar on the terminal, nothing anywhere else."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

Advance = Callable[..., None]  # advance(name of the part, pieces done: 1)

LONG_S = 3.0  # work that is expected to take less has no bar
DELAY_S = 1.0


@dataclass(frozen=True)
class Part:
    """A part of the work: how many pieces it has, what they are, and about how long each takes."""

    count: int
    what: str
    seconds: float


def silent(part: str, count: int = 1) -> None:
    """Advance nothing."""


@contextmanager
def progress(parts: Mapping[str, Part]) -> Iterator[Advance]:
    """Give a function that is called with the name of a part whenever a piece of it is done."""
    expected_s = sum(part.count * part.seconds for part in parts.values())
    if expected_s < LONG_S or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield silent
        return
    from tqdm import tqdm

    done = dict.fromkeys(parts, 0)
    form = "{desc} |{bar}| {percentage:3.0f} %, {remaining} left"
    with tqdm(
        total=expected_s, bar_format=form, delay=DELAY_S, leave=False, dynamic_ncols=True
    ) as bar:

        def advance(name: str, count: int = 1) -> None:
            part = parts[name]
            done[name] += count
            bar.set_description_str(f"{name} {done[name]}/{part.count} {part.what}", refresh=False)
            bar.update(count * part.seconds)

        yield advance
