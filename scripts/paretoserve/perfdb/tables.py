"""Open the measured tables of one (system, backend, version); each is read once, when asked for."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import paths
from paretoserve.errors import InputError
from paretoserve.hardware import System, load_system
from paretoserve.perfdb import manifest


class PerfTables:
    """Measured operator latencies of one engine version on one system."""

    def __init__(self, system: str, backend: str, version: str):
        self.backend, self.version = backend, version
        self._system_name = system
        self._tables: dict[str, pa.Table] = {}

    @cached_property
    def system(self) -> System:
        return load_system(self._system_name)

    def __str__(self) -> str:
        return f"{self.system.name} {self.backend} {self.version}"

    def rows(self, operator: str, **where: str | int) -> dict[str, np.ndarray]:
        """Columns of the rows whose keys equal `where`; text columns stay text.

        InputError says which values were measured when the filter leaves no row.
        """
        table = self._open(operator)
        for column, wanted in where.items():
            kept = table.filter(pc.equal(table[column], wanted))
            if not kept.num_rows:
                measured = pc.unique(table[column]).to_pylist()
                raise InputError(
                    f"{self}: no {operator} was measured for {column} {wanted}; measured: "
                    + ", ".join(map(str, sorted(measured)))
                )
            table = kept
        return {
            name: table[name].to_numpy(zero_copy_only=False)
            for name in table.column_names
            if name not in where
        }

    def distinct(self, operator: str, columns: tuple[str, ...]) -> set[tuple]:
        """Distinct combinations of some key columns."""
        rows = self._open(operator).select(columns).group_by(columns).aggregate([])
        return set(zip(*(rows[name].to_pylist() for name in columns), strict=True))

    def _open(self, operator: str) -> pa.Table:
        if operator not in self._tables:
            self._tables[operator] = manifest.read(self._file(operator))
        return self._tables[operator]

    def _file(self, operator: str) -> Path:
        engine = self.backend, self.version
        if operator in ("nccl", "oneccl"):
            engine = self.system.collectives(*engine)
        return paths.table_file(self.system.name, *engine, operator)
