"""Open the measured tables of one (system, backend, version); each is read once, when asked for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import paths
from paretoserve.errors import InputError
from paretoserve.hardware import System, load_system
from paretoserve.perfdb import manifest

# Wide expert parallelism was measured with a few releases of each engine: they stand for all.
OF_ANY_RELEASE = (
    "wideep_moe",
    "wideep_context_moe",
    "wideep_generation_moe",
    "deepep_normal",
    "deepep_ll",
    "moe_a2a",
    "trtllm_alltoall",
)


# (file, operator, where, rows) of each slice that is read while somebody wants to know.
Read = tuple[Path, str, dict[str, str | int], dict[str, np.ndarray]]
_read: ContextVar[list[Read] | None] = ContextVar("read", default=None)


@contextmanager
def reading() -> Iterator[list[Read]]:
    """Collect what is read of any tables meanwhile."""
    found: list[Read] = []
    before = _read.set(found)
    try:
        yield found
    finally:
        _read.reset(before)


class PerfTables:
    """Measured operator latencies of one engine version on one system."""

    def __init__(self, system: str, backend: str, version: str):
        self.backend, self.version = backend, version
        self.name = system
        self._tables: dict[tuple[str, str], pa.Table] = {}

    @cached_property
    def system(self) -> System:
        return load_system(self.name)

    def __str__(self) -> str:
        return f"{self.system.name} {self.backend} {self.version}"

    def releases(self, operator: str) -> Sequence[str]:
        """Versions whose table of `operator` stands for this version, the nearest first.

        The version itself; of operators OF_ANY_RELEASE also the earlier ones, newest first, then
        the later ones. Empty where there is none.
        """
        loaded = manifest.load()
        known = loaded.versions(self.system.name, self.backend)
        here = known.index(self.version) if self.version in known else len(known)
        order = [self.version]
        if operator in OF_ANY_RELEASE:
            order += [*known[:here][::-1], *known[here + 1 :]]
        return [
            version
            for version in order
            if (self.system.name, self.backend, version, operator) in loaded.tables
        ]

    def rows(
        self, operator: str, *, release: str | None = None, **where: str | int
    ) -> dict[str, np.ndarray]:
        """Columns of the rows whose keys equal `where`; text columns stay text.

        Of this version, or of another `release`. InputError says which values were measured when
        the filter leaves no row.
        """
        table = self._open(operator, release or self.version)
        for column, wanted in where.items():
            kept = table.filter(pc.equal(table[column], wanted))
            if not kept.num_rows:
                measured = pc.unique(table[column]).to_pylist()
                raise InputError(
                    f"{self}: no {operator} was measured for {column} {wanted}; measured: "
                    + ", ".join(map(str, sorted(measured)))
                )
            table = kept
        rows = {
            name: table[name].to_numpy(zero_copy_only=False)
            for name in table.column_names
            if name not in where
        }
        if (read := _read.get()) is not None:
            read.append((self.file(operator, release), operator, where, dict(rows)))
        return rows

    def distinct(self, operator: str, columns: tuple[str, ...]) -> set[tuple]:
        """Distinct combinations of some key columns, in the engine's own version."""
        rows = self._open(operator, self.version).select(columns).group_by(columns).aggregate([])
        return set(zip(*(rows[name].to_pylist() for name in columns), strict=True))

    def file(self, operator: str, release: str | None = None) -> Path:
        """Where the table of an operator is, of this version or another `release`."""
        engine = self.backend, release or self.version
        if operator in ("nccl", "oneccl"):
            engine = self.system.collectives(*engine)
        return paths.table_file(self.system.name, *engine, operator)

    def _open(self, operator: str, version: str) -> pa.Table:
        if (operator, version) not in self._tables:
            self._tables[operator, version] = manifest.read(self.file(operator, version))
        return self._tables[operator, version]
