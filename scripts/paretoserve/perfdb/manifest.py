"""What perf_db holds, and where every row came from (perf_db/manifest.json)."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from packaging.version import InvalidVersion, Version

from paretoserve import paths
from paretoserve.errors import InputError, UnreadableTable, did_you_mean
from paretoserve.records import write_whole

SCHEMA_VERSION = 1
USER = "user"  # package name of a table that a user imported

Entry = Mapping[str, Any]
Coordinate = tuple[str, str, str, str]  # system, backend, version, operator


@dataclass(frozen=True)
class Manifest:
    """All tables of one perf_db folder, by system, backend, version and operator.

    An entry has path (relative to the folder), system, backend, version, operator, sha256, rows,
    bytes, dtypes (by key column, those that were measured), and `from`: for each source file
    package, file, sha256, rows_in, rows_used, dropped (rows by reason), and per_row where a source
    row becomes several rows of ours.
    """

    folder: Path
    sources: tuple[Entry, ...]
    tables: Mapping[Coordinate, Entry]
    not_imported: tuple[Entry, ...]

    def table_entry(self, system: str, backend: str, version: str, operator: str) -> Entry:
        """Return the entry of one table; InputError says which part is unknown."""
        if entry := self.tables.get((system, backend, version, operator)):
            return entry
        if version not in self.versions(system, backend):
            known = self.versions(system, backend)
            raise InputError(
                f"perf_db has no {backend} {version} tables of {system}"
                f"{did_you_mean(version, known)}; its versions are {', '.join(known)}"
            )
        known = self.operators(system, backend, version)
        raise InputError(
            f"perf_db has no {operator} table of {system} with {backend} {version}"
            f"{did_you_mean(operator, known)}; its operators are {', '.join(known)}"
        )

    def backends(self, system: str) -> tuple[str, ...]:
        """Backends and communication libraries with tables of a system."""
        known = sorted({key[1] for key in self.tables if key[0] == system})
        if not known:
            systems = sorted({key[0] for key in self.tables})
            raise InputError(
                f"perf_db has no tables of {system}{did_you_mean(system, systems)}; "
                f"it has tables of {', '.join(systems)}"
            )
        return tuple(known)

    def versions(self, system: str, backend: str) -> tuple[str, ...]:
        """Versions with tables of a system and backend, oldest first."""
        known = self._versions.get((system, backend))
        if known is None:
            backends = self.backends(system)
            raise InputError(
                f"perf_db has no {backend} tables of {system}{did_you_mean(backend, backends)}; "
                f"it has tables for {', '.join(backends)}"
            )
        return known

    @cached_property
    def _versions(self) -> dict[tuple[str, str], tuple[str, ...]]:
        found: dict[tuple[str, str], set[str]] = {}
        for system, backend, version, _ in self.tables:
            found.setdefault((system, backend), set()).add(version)
        return {engine: tuple(sorted(known, key=_age)) for engine, known in found.items()}

    def operators(self, system: str, backend: str, version: str) -> tuple[str, ...]:
        """Operators with a table at this system, backend and version."""
        return tuple(sorted(key[3] for key in self.tables if key[:3] == (system, backend, version)))

    def totals(self) -> dict[str, Any]:
        """Row accounts: measurements = rows + all dropped (one source row may hold several)."""
        origins = [origin for entry in self.tables.values() for origin in entry["from"]]
        dropped: Counter[str] = Counter()
        for origin in origins:
            dropped.update(origin["dropped"])
        not_imported = sum(entry["rows"] for entry in self.not_imported)
        imported = sum(origin["rows_in"] for origin in origins)
        return {
            "source_rows": imported + not_imported,
            "not_imported": not_imported,
            "measurements": sum(o["rows_in"] * o.get("per_row", 1) for o in origins),
            "dropped": dict(sorted(dropped.items())),
            "rows": sum(entry["rows"] for entry in self.tables.values()),
            "tables": len(self.tables),
            "bytes": sum(entry["bytes"] for entry in self.tables.values()),
        }

    def encode(self) -> bytes:
        """Return the file's content: one line per table, in a stable order."""
        parts = {
            "schema_version": json.dumps(SCHEMA_VERSION),
            "sources": _lines(self.sources),
            "totals": json.dumps(self.totals()),
            "tables": _lines(self.tables[key] for key in sorted(self.tables)),
            "not_imported": _lines(self.not_imported),
        }
        body = ",\n".join(f'"{name}": {part}' for name, part in parts.items())
        return f"{{\n{body}\n}}\n".encode()


def load(file: Path | None = None) -> Manifest:
    """Read a manifest, perf_db's own unless stated; InputError if it is missing or malformed."""
    return _load(file or paths.MANIFEST)


@cache
def _load(file: Path) -> Manifest:
    try:
        content = json.loads(file.read_bytes())
        if content["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{file} has schema_version {content['schema_version']}, "
                f"this version of paretoserve reads {SCHEMA_VERSION}"
            )
        return Manifest(
            folder=file.parent,
            sources=tuple(content["sources"]),
            tables={coordinate(entry): entry for entry in content["tables"]},
            not_imported=tuple(content["not_imported"]),
        )
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a perf_db manifest ({error!r})") from error


def save(manifest: Manifest) -> None:
    """Write the manifest of its folder."""
    content = manifest.encode()
    write_whole(manifest.folder / paths.MANIFEST.name, lambda stream: stream.write(content))
    _load.cache_clear()


def coordinate(entry: Entry) -> Coordinate:
    """Return the key of an entry: system, backend, version, operator."""
    return entry["system"], entry["backend"], entry["version"], entry["operator"]


def digest(entries: Iterable[Entry]) -> str:
    """Return the sha256 (hex) of a set of tables: of their paths and contents, in any order."""
    lines = sorted(f"{entry['path']} {entry['sha256']}\n" for entry in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify(table: Path) -> None:
    """Check a table file; InputError if it is missing, unreadable or not the manifest's."""
    read(table)


def read(table: Path) -> pa.Table:
    """Read a table file after checking it, text as dictionaries; InputError as in `verify`."""
    mend = "restore it from version control or import it again"
    manifest = load(table.parents[4] / paths.MANIFEST.name)
    entry = manifest.table_entry(*table.parts[-4:-1], table.stem)
    try:
        content = table.read_bytes()
    except OSError as error:
        raise UnreadableTable(f"{table} cannot be read ({error.strerror}): {mend}") from error
    try:
        text = [
            field.name
            for field in pq.read_schema(pa.BufferReader(content))
            if pa.types.is_string(field.type)
        ]
        rows = pq.read_table(pa.BufferReader(content), read_dictionary=text)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UnreadableTable(
            f"{table} is not a readable Parquet file ({reason}): {mend}"
        ) from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise UnreadableTable(
            f"{table} is not the table of {manifest.folder}/manifest.json: {mend}"
        )
    return rows


def _age(version: str) -> tuple[bool, Version | str]:
    try:
        return True, Version(version)
    except InvalidVersion:
        return False, version


def _lines(entries: Iterable[Entry]) -> str:
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]"
