"""Import of published tables: from the wheels that carry them into the schema of perf_db."""

import hashlib
import os
import re
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable
from contextlib import ExitStack
from email.parser import BytesParser
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from packaging.version import Version

from paretoserve import hardware, paths
from paretoserve.errors import InputError
from paretoserve.perfdb import encoding, manifest, operators, sources
from paretoserve.perfdb.manifest import Coordinate, Manifest
from paretoserve.perfdb.operators import LATENCY, Operator
from paretoserve.perfdb.sources import Part, Source
from paretoserve.records import write_whole

# Reasons for which a good measurement is not in perf_db.
SAME = "repeats a coordinate, same latency"
OTHER = "repeats a coordinate, other latency"

Wheel = tuple[zipfile.ZipFile, dict[str, str]]  # the archive and what the manifest says of it


def import_wheels(
    wheels: Iterable[Path],
    folder: Path = paths.PERF_DB,
    systems: Container[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Turn the tables of wheels into tables and manifest of a perf_db folder.

    A newer wheel goes before an older one where both have a coordinate. Tables that a user
    imported stay. InputError if a wheel, a table or a column is not as perf_db/operators.yaml says.

    Parameters
    ----------
    wheels : wheel files, read in place.
    folder : where `tables/` and `manifest.json` go.
    systems : our names of the systems to import; None for all that perf_db describes.
    report : called with one line per table.
    """
    old = _old_tables(folder)
    entries = {key: entry for key, entry in old.items() if _is_users(entry)}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        staging = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".import."))
        opened = sorted(map(partial(_open, stack), wheels), key=_newest_last, reverse=True)
        if not opened:
            raise InputError(
                "no wheel to import: fetch them with `pip download --no-deps "
                "aiconfigurator==0.4.0 aiconfigurator-core==0.12.0`"
            )
        wanted, not_imported = _choose(opened, systems)
        for (system, name), files in sorted(wanted.items()):
            operator = operators.load().operators[name]
            tables: dict[Coordinate, list[Part]] = defaultdict(list)
            for source, archive in files:
                content = archive.read(source.file)
                for backend, version, part in sources.parts(source, content, operator):
                    tables[system, backend, version, name].append(part)
            for coordinate, parts in sorted(tables.items()):
                if coordinate in entries:
                    not_imported += [
                        _left_out(part.source, part.rows_in, "a user's table stands in its place")
                        for part in parts
                    ]
                    continue
                entry = entries[coordinate] = _merge(Path(staging), operator, coordinate, parts)
                report(f"{entry['path']}: {entry['rows']} rows")
        for entry in entries.values():
            if not _is_users(entry):
                (folder / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(staging, entry["path"]), folder / entry["path"])
    result = Manifest(
        folder=folder,
        sources=tuple(package for _, package in opened),
        tables=entries,
        not_imported=tuple(not_imported),
    )
    manifest.save(result)
    for stale in old.keys() - entries.keys():
        (folder / old[stale]["path"]).unlink(missing_ok=True)
    report(f"{result.totals()}")
    return result


def write_table(
    folder: Path, operator: Operator, coordinate: Coordinate, table: pa.Table
) -> dict[str, Any]:
    """Write one sorted table; return its manifest entry, without origin."""
    file = paths.table_file(*coordinate, tables=folder / paths.TABLES.name)
    content = encoding.encode(table.cast(operator.schema))
    write_whole(file, lambda stream: stream.write(content))
    system, backend, version, name = coordinate
    return {
        "path": file.relative_to(folder).as_posix(),
        "system": system,
        "backend": backend,
        "version": version,
        "operator": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": table.num_rows,
        "bytes": len(content),
        "dtypes": {
            key.name: sorted(pc.unique(table[key.name]).to_pylist())
            for key in operator.keys
            if key.type == "dtype"
        },
    }


def _open(stack: ExitStack, wheel: Path) -> Wheel:
    """Open a wheel until the stack closes, and read what it says of itself."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(wheel))
        (info,) = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
        metadata = BytesParser().parsebytes(archive.read(info), headersonly=True)
        return archive, {
            "package": metadata["Name"],
            "version": metadata["Version"],
            "wheel": wheel.name,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "licence": metadata["License-Expression"],
        }
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel} is not a readable wheel ({error})") from error


def _newest_last(wheel: Wheel) -> Version:
    return Version(wheel[1]["version"])


def _choose(
    wheels: Iterable[Wheel], systems: Container[str] | None
) -> tuple[dict[tuple[str, str], list[tuple[Source, zipfile.ZipFile]]], list[dict[str, Any]]]:
    """Table files to import, by system and operator, and the account of all others."""
    schemas = operators.load()
    wanted, not_imported = defaultdict(list), []
    for rank, (archive, package) in enumerate(wheels):
        for source in sources.table_files(archive, package["package"], rank):
            system = _system(source.system)
            reason = schemas.not_imported.get(source.table)
            if system is None:
                reason = "system is not in perf_db/systems"
            elif systems is not None and system not in systems:
                continue
            elif reason is None and source.table not in schemas.by_source:
                raise InputError(f"{source.file}: its table is not in {paths.OPERATORS}")
            if reason is None:
                wanted[system, schemas.by_source[source.table].name].append((source, archive))
            else:
                rows = sources.read(archive.read(source.file), source).num_rows
                not_imported.append(_left_out(source, rows, reason))
    return wanted, not_imported


def _left_out(source: Source, rows: int, reason: str) -> dict[str, Any]:
    return {"package": source.package, "file": source.file, "rows": rows, "reason": reason}


def _system(name: str) -> str | None:
    try:
        return hardware.canonical_name(name)
    except InputError:
        return None


def _old_tables(folder: Path) -> dict[Coordinate, manifest.Entry]:
    file = folder / paths.MANIFEST.name
    return dict(manifest.load(file).tables) if file.exists() else {}


def _is_users(entry: manifest.Entry) -> bool:
    return entry["from"][0]["package"] == manifest.USER


def _merge(
    folder: Path, operator: Operator, coordinate: Coordinate, parts: list[Part]
) -> dict[str, Any]:
    """Merge the parts of a table, write it, and return its manifest entry."""
    parts = sorted(parts, key=partial(_precedence, version=coordinate[2]))
    table = pa.concat_tables([part.table for part in parts]).combine_chunks()
    origin = np.repeat(np.arange(len(parts)), [part.table.num_rows for part in parts])
    place = np.arange(len(table))
    if operator.last_duplicate_wins:
        place = -place
    order = encoding.sort(table, operator.key_names, np.lexsort((place, origin)).argsort())
    latency = table[LATENCY].to_numpy()
    same = latency[order.dropped] == latency[order.winner]
    used = np.bincount(origin[order.kept], minlength=len(parts))
    entry = write_table(folder, operator, coordinate, table.take(order.kept))
    entry["from"] = []
    for index, part in enumerate(parts):
        mine = origin[order.dropped] == index
        dropped = part.dropped + Counter(
            {SAME: int(np.sum(mine & same)), OTHER: int(np.sum(mine & ~same))}
        )
        record = {
            "package": part.source.package,
            "file": part.source.file,
            "sha256": part.sha256,
            "rows_in": part.rows_in,
            "rows_used": int(used[index]),
            "dropped": dict(sorted(dropped.items())),
        }
        if len(operator.measures) > 1:
            record["per_row"] = len(operator.measures)
        entry["from"].append(record)
    return entry


def _precedence(part: Part, version: str) -> tuple[int, bool, str]:
    """Sort newer wheels first, then files in the folder of the version that they measured."""
    source = part.source
    return source.wheel_rank, source.version != version, source.file
