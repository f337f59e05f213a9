"""Other systems, whose tables stand in last for what nobody measured on one."""

from functools import cache

import numpy as np

from paretoserve.hardware import System, load_system
from paretoserve.perfdb import manifest, screening

# Asked of other systems by the size of a head or of a group of GPUs, which no manifest tells.
BY_SIZE = ("context_attention", "generation_attention", "custom_allreduce")


@cache
def nearest_systems(name: str) -> tuple[str, ...]:
    """Other systems of the same maker with tables, those with the nearest rates first."""
    own = load_system(name)
    others = sorted({key[0] for key in manifest.load().tables} - {name})
    distance = {other: _distance(own, load_system(other)) for other in others}
    return tuple(sorted((one for one in others if np.isfinite(distance[one])), key=distance.get))


@cache
def tables_elsewhere(name: str) -> tuple[manifest.Entry, ...]:
    """Return the tables of other systems that can stand in on this one.

    These are those of operators, or of precisions of them, that no engine was measured with on
    this system, those of the operators in BY_SIZE, and those that stand in for a screened table.
    """
    tables = manifest.load().tables
    here: dict[str, set[tuple[str, str]]] = {}
    for (system, _, _, operator), entry in tables.items():
        if system == name:
            here.setdefault(operator, set()).update(_precisions(entry))
    others, screens = set(nearest_systems(name)), screening.tables_for(name)
    return tuple(
        entry
        for key, entry in tables.items()
        if key[0] in others
        and (
            key[3] in BY_SIZE
            or key[3] not in here
            or _precisions(entry) - here[key[3]]
            or key in screens
        )
    )


def _precisions(entry: manifest.Entry) -> set[tuple[str, str]]:
    return {(column, value) for column, values in entry["dtypes"].items() for value in values}


def _distance(one: System, other: System) -> float:
    if (one.sm_version is None) != (other.sm_version is None):
        return np.inf
    rates = [
        (one.memory_bandwidth, other.memory_bandwidth),
        (one.tensor_flops_per_s["float16"], other.tensor_flops_per_s["float16"]),
    ]
    generations = abs((one.sm_version or 0) // 10 - (other.sm_version or 0) // 10)
    return generations + sum(abs(np.log2(mine / its)) for mine, its in rates)
