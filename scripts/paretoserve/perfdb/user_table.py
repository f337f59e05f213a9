"""Import of a table that a user measured: a CSV or Parquet file in the columns of perf_db."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from paretoserve import hardware, paths
from paretoserve.errors import InputError, did_you_mean
from paretoserve.perfdb import encoding, manifest, operators
from paretoserve.perfdb.catalogue import ENGINES
from paretoserve.perfdb.importer import write_table
from paretoserve.perfdb.operators import LATENCY, Key, Operator

_WHOLE = r"^[+-]?[0-9]{1,18}$"


def import_user_table(
    file: Path,
    system: str,
    backend: str,
    version: str,
    operator: str,
    out: Path = paths.PERF_DB,
    replace_published: bool = False,
) -> manifest.Entry:
    """Check a table, write it into a perf_db folder, and enter it in the manifest.

    The file has the operator's key columns and latency_ms, in any order (docs/data_perf_db.md).
    Nothing is written unless every row is good. A table that a user imported before is replaced; a
    published one only with `replace_published`.

    Returns
    -------
    The manifest entry of the table.

    Raises
    ------
    InputError
        Names the file, and the column and row (counted from 1 below the header) that are wrong.
    """
    schema = operators.load().operator(operator)
    system = hardware.canonical_name(system)
    backends = (schema.library["backend"],) if schema.library else ENGINES
    if backend not in backends:
        raise InputError(
            f"{operator} tables belong to {' or '.join(backends)}, not '{backend}'"
            f"{did_you_mean(backend, backends)}"
        )
    if version != Path(version).name or version.startswith("."):
        raise InputError(f"'{version}' cannot be a version: it names a folder of perf_db")
    coordinate = system, backend, version, operator
    current = manifest.load(out / paths.MANIFEST.name)
    standing = current.tables.get(coordinate)
    if standing and standing["from"][0]["package"] != manifest.USER and not replace_published:
        raise InputError(
            f"{standing['path']} is a published table: "
            "give yours a version of its own or ask to replace it"
        )

    content, rows = _read(file)
    table = _checked(file, rows, schema)
    order = encoding.sort(table, schema.key_names, np.arange(len(table)))
    if len(order.dropped):
        first, second = sorted((order.winner[0] + 1, order.dropped[0] + 1))
        raise InputError(
            f"{file}: rows {first} and {second} have the same {', '.join(schema.key_names)}"
        )
    entry = write_table(out, schema, coordinate, table.take(order.kept))
    entry["from"] = [
        {
            "package": manifest.USER,
            "file": file.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "rows_in": len(table),
            "rows_used": len(table),
            "dropped": {},
        }
    ]
    manifest.save(replace(current, tables={**current.tables, coordinate: entry}))
    return entry


def _read(file: Path) -> tuple[bytes, pa.Table]:
    """Read the file; a CSV's columns are all text."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from error
    buffer = pa.BufferReader(content)
    try:
        if file.suffix == ".parquet":
            return content, pq.read_table(buffer)
        header = pacsv.open_csv(pa.BufferReader(content)).schema.names
        text = pacsv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()))
        return content, pacsv.read_csv(buffer, convert_options=text)
    except (pa.ArrowException, OSError) as error:
        kind = "Parquet" if file.suffix == ".parquet" else "CSV"
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{file} is not a readable {kind} file ({reason})") from error


def _checked(file: Path, rows: pa.Table, operator: Operator) -> pa.Table:
    """Return the table in the operator's columns and types."""
    wanted = (*operator.key_names, LATENCY)
    columns_are = f"a {operator.name} table has the columns {', '.join(wanted)}"
    missing = [name for name in wanted if name not in rows.column_names]
    for name in rows.column_names:
        if name not in wanted:
            raise InputError(
                f"{file}: unknown column '{name}'{did_you_mean(name, missing)}; {columns_are}"
            )
        if rows.column_names.count(name) > 1:
            raise InputError(f"{file} has several columns '{name}'; {columns_are}")
    if missing:
        raise InputError(f"{file} has no column '{missing[0]}'; {columns_are}")
    if not rows.num_rows:
        raise InputError(f"{file} holds no rows")
    columns = {name: rows[name].combine_chunks() for name in wanted}
    for name, column in columns.items():
        if pa.types.is_nested(column.type) or pa.types.is_temporal(column.type):
            raise InputError(f"{file}, column '{name}': {column.type} is neither text nor number")
        _refuse(file, name, column, column.is_null(nan_is_null=True), "a value")
    checked = {
        key.name: (_words if key.categorical else _whole_numbers)(file, key, columns[key.name])
        for key in operator.keys
    }
    checked[LATENCY] = _latency(file, columns[LATENCY], operator)
    return pa.table(checked)


def _words(file: Path, key: Key, column: pa.Array) -> pa.Array:
    schemas = operators.load()
    words = pc.utf8_trim_whitespace(column.cast(pa.string()))
    if key.type == "dtype":
        encoded = words.dictionary_encode()
        names = [schemas.spellings.get(w, w) for w in encoded.dictionary.to_pylist()]
        words = pa.array(names, pa.string()).take(encoded.indices)
    allowed = schemas.allowed(key)
    bad = pc.equal(words, "")
    if allowed:
        bad = pc.invert(pc.is_in(words, pa.array(allowed)))
    _refuse(file, key.name, column, bad, f"one of {', '.join(allowed)}" if allowed else "a name")
    return words


def _whole_numbers(file: Path, key: Key, column: pa.Array) -> pa.Array:
    if pa.types.is_integer(column.type):
        numbers = column
    elif pa.types.is_floating(column.type):
        whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**53))
        _refuse(file, key.name, column, pc.invert(whole), "a whole number")
        numbers = column
    else:
        text = pc.utf8_trim_whitespace(column.cast(pa.string()))
        bad = pc.invert(pc.match_substring_regex(text, _WHOLE))
        _refuse(file, key.name, column, bad, "a whole number")
        numbers = text
    numbers = numbers.cast(pa.int64())
    most = 2 ** (key.arrow_type.bit_width - 1) - 1
    bad = pc.or_(pc.less(numbers, key.minimum), pc.greater(numbers, most))
    _refuse(file, key.name, column, bad, f"a whole number from {key.minimum} to {most}")
    return numbers


def _latency(file: Path, column: pa.Array, operator: Operator) -> pa.Array:
    at_least = "zero or more" if operator.zero_allowed else "more than zero"
    wanted = f"milliseconds, {at_least}"
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        numbers = np.array([_number(word) for word in column.to_pylist()])
    else:
        numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        latency = numbers.astype(np.float32)
    good = np.isfinite(latency) & ((latency > 0) | (operator.zero_allowed & (latency == 0)))
    _refuse(file, LATENCY, column, pa.array(~good), wanted)
    return pa.array(latency)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return np.nan


def _refuse(file: Path, name: str, column: pa.Array, bad: pa.Array, wanted: str) -> None:
    """InputError for the first row that is bad, if any."""
    row = pc.index(bad, True).as_py()
    if row >= 0:
        value = column[row].as_py()
        given = "nothing" if value is None else repr(value)
        raise InputError(f"{file}, row {row + 1}, column '{name}': got {given}, wanted {wanted}")
