"""Tables that timed something else than their kernel (perf_db/screening.json), found by rule."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from paretoserve import paths
from paretoserve.perfdb.tables import PerfTables


@dataclass(frozen=True)
class Screen:
    """Whose rows stand in for screened ones, and what was found about those."""

    system: str
    backend: str
    version: str
    verdict: str


def find(tables: PerfTables, operator: str, columns: Mapping[str, Any]) -> Screen | None:
    """The stand-in for rows with these columns of an engine's table; None: they are believed."""
    for entry in _entries().get((tables.name, tables.backend, tables.version, operator), ()):
        if all(columns.get(name) == value for name, value in entry["where"].items()):
            return Screen(**entry["stand_in"], verdict=entry["verdict"])
    return None


@cache
def tables_for(system: str) -> frozenset[tuple[str, str, str, str]]:
    """Keys (system, backend, version, operator) of what stands in for screened tables here."""
    return frozenset(
        (*(entry["stand_in"][name] for name in ("system", "backend", "version")), operator)
        for (screened, _, _, operator), entries in _entries().items()
        for entry in entries
        if screened == system
    )


@cache
def _entries() -> dict[tuple[str, str, str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    if not paths.SCREENING.is_file():
        return found
    for entry in json.loads(paths.SCREENING.read_bytes())["screened"]:
        key = entry["system"], entry["backend"], entry["version"], entry["operator"]
        found.setdefault(key, []).append(entry)
    return found
