"""How a run's work is divided into jobs, and how it was divided before.

A division says which works are estimated together (groups) and which experiments are answered
together (chunks). It changes no result, so what an earlier run of the same results folder had
together stays together as long as all of it is asked for again: what is added to a sweep makes
groups and chunks of its own, and nothing that was there runs again. `{run}/plan.json` keeps it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from paretoserve.errors import InputError
from paretoserve.paths import RunPaths

AUTO = "auto"
# Jobs cost 20 ms each, so parts grow with the question: about so many, of at least so much.
PARTS, SMALLEST = 200, 20

Parts = Mapping[str, Sequence[str]]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Division:
    """Ids of works by group, and digests of experiments by chunk; both in a fixed order.

    `chunk_size` is what was asked for: a number or "auto".
    """

    chunk_size: int | str
    groups: Parts
    chunks: Parts

    def encode(self) -> str:
        """Return the content of plan.json."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"


def earlier_divisions(results: Path, run: str, chunk_size: int | str) -> list[Division]:
    """Return the divisions that a results folder remembers, this run's own first.

    Only of runs that asked for the same `chunk_size`. A file that is no division is passed over:
    it steers how jobs are cut, and no result.
    """
    own = RunPaths(results, run).plan
    others = sorted(results.glob(f"*/{own.name}"))
    found = []
    for file in dict.fromkeys([own, *others]):
        division = decode(file.read_bytes()) if file.is_file() else None
        if division and division.chunk_size == chunk_size:
            found.append(division)
    return found


def decode(content: bytes) -> Division | None:
    """Return the division that a plan.json holds; None if it holds none."""
    try:
        return Division(**json.loads(content))
    except (ValueError, TypeError):
        return None


def checked_chunk_size(given: object, where: str) -> int | str:
    """Return a chunk size as it was given, "auto" or a number; InputError if it is neither."""
    text = str(given)
    if given is True or not (text == AUTO or (text.isdecimal() and int(text) > 0)):
        raise InputError(f"{where} is {given!r}, it must be '{AUTO}' or 1 or more")
    return AUTO if text == AUTO else int(text)


def part_size(count: int, chunk_size: int | str) -> int:
    """Return the most that a part of `count` works or experiments may hold."""
    return max(math.ceil(count / PARTS), SMALLEST) if chunk_size == AUTO else int(chunk_size)


def divide(
    cells: Mapping[Key, Sequence[str]], most: int, earlier: Iterable[Sequence[str]]
) -> list[tuple[Key, list[str]]]:
    """Cut each cell into parts of at most `most` ids, after the parts that were cut earlier.

    An earlier part stays whole if all its ids lie in one cell and in no other part.
    """
    cell_of = {name: key for key, names in cells.items() for name in names}
    parts = []
    for part in earlier:
        keys = {cell_of.get(name) for name in part}
        if len(keys) == 1 and None not in keys:
            parts.append((keys.pop(), list(part)))
            for name in part:
                del cell_of[name]
    for key, names in cells.items():
        rest = [name for name in names if name in cell_of]
        count = math.ceil(len(rest) / most)
        bounds = [len(rest) * i // count for i in range(count + 1)] if count else [0]
        parts += [(key, rest[a:b]) for a, b in pairwise(bounds)]
    return parts
