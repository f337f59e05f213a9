"""Source files of perf_db: table files inside wheels, read into our columns and units."""

import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from paretoserve import paths
from paretoserve.errors import InputError
from paretoserve.perfdb import operators
from paretoserve.perfdb.operators import LATENCY, Key, Operator

# Below data/: <system>/<backend>/<version>/, or <system>/<family>/<backend>/<version>/ since 0.12.
_TABLE = re.compile(
    r".*/systems/data/(?P<system>[^/]+)/(?:[^/]+/)?(?P<backend>[^/]+)/(?P<version>[^/]+)/"
    r"(?P<table>[^/]+_perf)\.(?:txt|parquet)"
)
_MILLISECONDS = {"ms": 1.0, "us": 1e-3}

# Reasons for which a row is not in perf_db.
NOT_POSITIVE = "latency not positive"
NO_KEY = "key missing or below its minimum"


@dataclass(frozen=True)
class Source:
    """One table file in a wheel."""

    package: str
    wheel_rank: int
    file: str
    system: str
    backend: str
    version: str
    table: str


@dataclass(frozen=True)
class Part:
    """The measurements of one source file for one table of ours.

    table : key columns (whole numbers still int64) and latency_ms (float32) of M measurements.
    rows_in : rows of the source file that they come from.
    """

    source: Source
    sha256: str
    rows_in: int
    table: pa.Table
    dropped: Counter[str]


def table_files(archive: zipfile.ZipFile, package: str, wheel_rank: int) -> Iterator[Source]:
    """All table files of a wheel, by name."""
    for file in sorted(archive.namelist()):
        if match := _TABLE.fullmatch(file):
            yield Source(package, wheel_rank, file, **match.groupdict())


def read(content: bytes, source: Source) -> pa.Table:
    """Rows of a table file, as they are."""
    if source.file.endswith(".parquet"):
        return pq.read_table(pa.BufferReader(content))
    # A version such as 2.23 would be read as a number.
    options = pacsv.ConvertOptions(column_types={"version": pa.string()})
    return pacsv.read_csv(pa.BufferReader(content), convert_options=options)


def parts(source: Source, content: bytes, operator: Operator) -> Iterator[tuple[str, str, Part]]:
    """Yield backend, version and measurements of one source file."""
    rows = read(content, source)
    _check_columns(rows, source, operator)
    backend, labels = source.backend, pa.repeat(source.version, len(rows))
    if operator.library:
        # A folder of one library version may hold measurements of another: the row knows best.
        backend = operator.library["backend"]
        column = operator.library.get("version")
        if column in rows.column_names:
            labels = pc.coalesce(rows[column].cast(pa.string()), labels)
    sha256 = hashlib.sha256(content).hexdigest()
    for version in sorted(pc.unique(labels).to_pylist()):
        chosen = rows.filter(pc.equal(labels, version))
        table, dropped = _measurements(chosen, source, operator)
        yield backend, version, Part(source, sha256, len(chosen), table, dropped)


def _check_columns(rows: pa.Table, source: Source, operator: Operator) -> None:
    """Refuse columns that nobody described, and constants that are none."""
    spellings = operators.load().spellings
    described = {name for key in operator.keys for name in _columns(key, operator)}
    described |= {name for measure in operator.measures.values() for name in measure["sum"]}
    for name in rows.column_names:
        if name in operator.constant:
            for value in pc.unique(rows[name]).to_pylist():
                if value is not None and spellings.get(value, value) != operator.constant[name]:
                    raise InputError(
                        f"{source.file}, column '{name}': {value!r} instead of "
                        f"{operator.constant[name]!r}, the only value that {paths.OPERATORS} knows"
                    )
        elif name not in operator.ignored | described:
            raise InputError(f"{source.file}: column '{name}' is not in {paths.OPERATORS}")


def _columns(key: Key, operator: Operator) -> list[str]:
    """Source columns that a key is made of."""
    match key.source:
        case str(column):
            return [column]
        case {"sum": list(columns)}:
            return columns
        case {"measure": str(field)}:
            return [measure[field] for measure in operator.measures.values() if field in measure]
        case {"column": str(column), "otherwise": [_, str(other)]}:
            return [column, other]
        case {"column": str(column)}:
            return [column]
    raise InputError(f"{paths.OPERATORS}, {operator.name}.{key.name}: {key.source} is not a source")


def _measurements(
    rows: pa.Table, source: Source, operator: Operator
) -> tuple[pa.Table, Counter[str]]:
    """Key columns and latency_ms of the valid measurements, and the count of the others."""
    tables, dropped = [], Counter()
    for name, measure in operator.measures.items():
        columns = {key.name: _fill(rows, key, name, measure, source) for key in operator.keys}
        values = sum(rows[column].cast(pa.float64()).to_numpy() for column in measure["sum"])
        latency = (values * _MILLISECONDS[operator.unit]).astype(np.float32)
        measured = np.isfinite(latency) & ((latency > 0) | (operator.zero_allowed & (latency == 0)))
        placed = np.ones(len(rows), bool)
        for key in operator.keys:
            column = columns[key.name]
            placed &= column.is_valid().to_numpy(zero_copy_only=False)
            if not key.categorical:
                enough = pc.fill_null(pc.greater_equal(column, key.minimum), False)
                placed &= enough.to_numpy(zero_copy_only=False)
        dropped[NOT_POSITIVE] += int(np.sum(~measured))
        dropped[NO_KEY] += int(np.sum(measured & ~placed))
        table = pa.table({**columns, LATENCY: latency})
        tables.append(table.filter(pa.array(measured & placed)))
    return pa.concat_tables(tables), +dropped


def _fill(rows: pa.Table, key: Key, name: str, measure: dict[str, Any], source: Source) -> pa.Array:
    """Make one key column (N): strings in our spelling, or int64."""
    match key.source:
        case {"measure": str(field)}:
            column = rows[measure[field]] if field in measure else pa.repeat(name, len(rows))
        case {"sum": list(columns)}:
            column = pc.add(*(rows[part] for part in columns))
        case {"column": str(column), "otherwise": [total, other]} if (
            column not in rows.column_names
        ):
            column = pc.divide(pa.scalar(total, pa.int64()), rows[other])
        case {"column": str(column), "missing": value} if column not in rows.column_names:
            column = pa.repeat(value, len(rows))
        case {"column": str(column), "missing": value}:
            column = pc.fill_null(rows[column], value)
        case {"column": str(column)} | str(column):
            if column not in rows.column_names:
                raise InputError(f"{source.file} has no column '{column}'")
            column = rows[column]
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not key.categorical:
        most = 2 ** (key.arrow_type.bit_width - 1) - 1
        if (pc.max(column).as_py() or 0) > most:
            raise InputError(f"{source.file}: {key.name} holds more than {most} ({key.type})")
        return column.cast(pa.int64())
    return _spell(column.cast(pa.string()), key, source)


def _spell(column: pa.Array, key: Key, source: Source) -> pa.Array:
    """Put strings into our spelling; InputError for one that the key may not hold."""
    schemas = operators.load()
    names = schemas.spellings if key.type == "dtype" else {}
    if isinstance(key.source, dict):
        names = key.source.get("names", names)
    encoded = column.dictionary_encode()
    words = [names.get(word, word) for word in encoded.dictionary.to_pylist()]
    allowed = schemas.allowed(key)
    for word in words:
        if allowed and word not in allowed:
            raise InputError(
                f"{source.file}: '{word}' as {key.name} is not among {', '.join(allowed)} "
                f"({paths.OPERATORS})"
            )
    return pa.array(words, pa.string()).take(encoded.indices)
