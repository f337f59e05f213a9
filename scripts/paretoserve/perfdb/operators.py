"""Which operators perf_db has tables for, and what their columns are (perf_db/operators.yaml)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pyarrow as pa
import yaml

from paretoserve import paths
from paretoserve.errors import InputError, did_you_mean

LATENCY = "latency_ms"
_ARROW = {
    "string": pa.string(),
    "dtype": pa.string(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
}


@dataclass(frozen=True)
class Key:
    """One key column of an operator's table.

    `values` are all that a string may be (empty: anything); a whole number is at least `minimum`.
    `source` says how the importer fills the column.
    """

    name: str
    type: str
    meaning: str
    unit: str
    minimum: int
    values: tuple[str, ...]
    source: Any

    @property
    def categorical(self) -> bool:
        """Whether the column holds strings."""
        return self.type in ("string", "dtype")

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of the column in the table."""
        return _ARROW[self.type]


@dataclass(frozen=True)
class Operator:
    """One kind of table: its key columns in sort order, and how the importer fills it."""

    name: str
    meaning: str
    keys: tuple[Key, ...]
    sources: tuple[str, ...]
    measures: Mapping[str, Mapping[str, Any]]
    unit: str
    last_duplicate_wins: bool
    zero_allowed: bool
    constant: Mapping[str, Any]
    ignored: frozenset[str]
    library: Mapping[str, str] | None

    @cached_property
    def key_names(self) -> tuple[str, ...]:
        """Key columns in sort order."""
        return tuple(key.name for key in self.keys)

    @cached_property
    def categorical(self) -> tuple[str, ...]:
        """String columns; worth passing to a Parquet reader as `read_dictionary`."""
        return tuple(key.name for key in self.keys if key.categorical)

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the Parquet file: the keys, then the latency."""
        fields = [pa.field(key.name, key.arrow_type, nullable=False) for key in self.keys]
        return pa.schema([*fields, pa.field(LATENCY, pa.float32(), nullable=False)])


@dataclass(frozen=True)
class Schemas:
    """All of operators.yaml."""

    operators: Mapping[str, Operator]
    dtypes: tuple[str, ...]
    spellings: Mapping[str, str]
    not_imported: Mapping[str, str]

    def operator(self, name: str) -> Operator:
        """Return the operator of this name; InputError names the nearest known one."""
        if name not in self.operators:
            raise InputError(
                f"unknown operator '{name}'{did_you_mean(name, self.operators)}; "
                f"perf_db has tables for {', '.join(self.operators)}"
            )
        return self.operators[name]

    @cached_property
    def by_source(self) -> Mapping[str, Operator]:
        """Operators by the name of their source table."""
        return {source: op for op in self.operators.values() for source in op.sources}

    def allowed(self, key: Key) -> tuple[str, ...]:
        """All strings that a key column may hold (empty: anything)."""
        return self.dtypes if key.type == "dtype" else key.values


@cache
def load() -> Schemas:
    """Read perf_db/operators.yaml."""
    spec = yaml.load(paths.OPERATORS.read_bytes(), yaml.CSafeLoader)
    return Schemas(
        operators={
            name: _operator(name, entry, spec["keys"], spec["ignored"])
            for name, entry in spec["operators"].items()
        },
        dtypes=tuple(spec["dtypes"]),
        spellings=spec["spellings"],
        not_imported={
            table: entry["reason"] for entry in spec["not_imported"] for table in entry["tables"]
        },
    )


def _operator(
    name: str, entry: dict[str, Any], vocabulary: dict[str, Any], ignored: Iterable[str]
) -> Operator:
    value = entry.get("value", "latency")
    measures = value if isinstance(value, dict) else {"": {"sum": [value]}}
    keys = []
    for key, source in entry["keys"].items():
        word = vocabulary[key]
        keys.append(
            Key(
                name=key,
                type=word["type"],
                meaning=word["meaning"],
                unit=word.get("unit", ""),
                minimum=word.get("minimum", 1),
                values=tuple(entry.get("values", {}).get(key, word.get("values", ()))),
                source=source,
            )
        )
    return Operator(
        name=name,
        meaning=entry["meaning"],
        keys=tuple(keys),
        sources=tuple(entry["sources"]),
        measures=measures,
        unit=entry.get("unit", "ms"),
        last_duplicate_wins=entry.get("duplicates", "first") == "last",
        zero_allowed=entry.get("zero", False),
        constant=entry.get("constant", {}),
        ignored=frozenset(ignored) | frozenset(entry.get("ignored", ())),
        library=entry.get("library"),
    )
