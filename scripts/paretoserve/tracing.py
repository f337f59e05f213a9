"""What an estimate looked up: kernels that record each call, for one candidate at a time.

The estimator prices operators through `Kernels`. A `Trace` has some that pass every call on and
keep what was asked, what came back, and which rows of which tables were read for it; the operators
know nothing of it. A call leaves a mark among the notes of its latency, by which an operator's
latency tells the calls that it was made from. Each call goes to kernels of its own, so that tables
which an earlier call has opened are seen again: slow, and nothing for a sweep.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paretoserve import operators
from paretoserve.interpolation import Latency
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb.tables import PerfTables, reading

Scalar = str | int | float


@dataclass(frozen=True)
class Slice:
    """Rows of a table that a look-up read: those whose keys equal `where`."""

    file: Path
    operator: str
    where: Mapping[str, Scalar]
    rows: Mapping[str, np.ndarray]

    def around(self, query: Mapping[str, Scalar]) -> list[dict[str, Scalar]]:
        """The measured rows at a point; on an axis where none is at it, those on both sides."""
        kept = np.ones(len(self.rows["latency_ms"]), bool)
        between = []
        # The last keys of a table first: GEMM shapes before their row counts.
        for name in reversed(self.rows):
            at = kept & (self.rows[name] == query[name]) if name in query else kept
            if at.any():
                kept = at
            elif not isinstance(query[name], str):
                between.append(name)
        for name in between:
            there, wanted = self.rows[name][kept], query[name]
            below, above = there[there < wanted], there[there > wanted]
            kept &= np.isin(self.rows[name], [*np.sort(below)[-1:], *np.sort(above)[:1]])
        return [
            {name: _plain(column[i]) for name, column in self.rows.items()}
            for i in np.flatnonzero(kept)
        ]


@dataclass(frozen=True)
class Call:
    """One call of a kernel: its arguments by name, its result of each element, what it read."""

    kernel: str
    query: Mapping[str, Any]
    latency: Latency
    slices: tuple[Slice, ...]

    @property
    def constants(self) -> dict[str, Scalar]:
        """The arguments that are no arrays: precisions, sizes of heads or experts."""
        return {k: v for k, v in self.query.items() if not isinstance(v, np.ndarray)}

    def points(self) -> Iterator[dict[str, float]]:
        """The arguments that are arrays, element by element."""
        arrays = {k: v for k, v in self.query.items() if isinstance(v, np.ndarray)}
        flat = (array.ravel().tolist() for array in np.broadcast_arrays(*arrays.values()))
        for values in zip(*flat, strict=True):
            yield dict(zip(arrays, values, strict=True))

    def measured(self, point: Mapping[str, float]) -> list[dict[str, Scalar]]:
        """The measured rows around one of the points."""
        at = {**self.constants, **point}
        return [row for one in self.slices for row in one.around(at)]


@dataclass(frozen=True)
class Operator:
    """An operator of a step: its latency, how often it runs, and the calls that it came from."""

    name: str
    times: int
    latency: Latency
    calls: tuple[Call, ...]


class Trace:
    """Records the steps of an estimate that is made with its `kernels`."""

    def __init__(self, system: str, backend: str, version: str):
        self.steps: dict[str, list[Operator]] = {}
        self._calls: dict[_Mark, Call] = {}
        self.kernels = _Kernels(PerfTables(system, backend, version), self._record)

    def step(self, name: str) -> None:
        """The operators that follow belong to this step."""
        self.steps[name] = []

    def operator(self, name: str, times: int, latency: Latency) -> Latency:
        """Record an operator; return its latency without the marks."""
        marks = [note for note in latency.notes if isinstance(note, _Mark)]
        notes = tuple(note for note in latency.notes if not isinstance(note, _Mark))
        latency = replace(latency, notes=notes)
        operator = Operator(name, times, latency, tuple(self._calls[mark] for mark in marks))
        list(self.steps.values())[-1].append(operator)
        return latency

    def _record(self, kernel: str, call: Callable[..., Any], *args, **kwargs) -> Any:
        with reading() as read:
            result = call(*args, **kwargs)
        if not isinstance(result, Latency):
            return result
        given = inspect.signature(call).bind(*args, **kwargs).arguments
        slices = [Slice(*one) for one in read]
        mark = _Mark(f"call {len(self._calls)}")
        self._calls[mark] = Call(kernel, dict(_facts(given)), result, _narrowest(slices))
        return replace(result, notes=(*result.notes, mark))


class _Mark(str):
    """A note that stands for a call."""


class _Kernels:
    """`Kernels` whose calls are recorded."""

    def __init__(self, tables: PerfTables, record: Callable[..., Any]):
        self.tables, self.system, self._record = tables, tables.system, record

    def __getattr__(self, name: str) -> Any:
        def make() -> Any:
            return getattr(Kernels(self.tables), name)

        return _watched(name, make, self._record)


def _watched(name: str, make: Callable[[], Any], record: Callable[..., Any]) -> Any:
    """What `make` gives: a function whose calls are recorded, or an operator with such methods."""
    made = make()
    if type(made).__module__.startswith(operators.__name__):
        return _Operator(name, make, record)
    if not callable(made):
        return made

    def call(*args: Any, **kwargs: Any) -> Any:
        result = record(name, make(), *args, **kwargs)
        return _watched(name, lambda: result, record)

    return call


class _Operator:
    """An operator, made anew for each call of a method of it."""

    def __init__(self, name: str, make: Callable[[], Any], record: Callable[..., Any]):
        self._name, self._make, self._record = name, make, record

    def __getattr__(self, method: str) -> Any:
        name = self._name if method == "latency" else f"{self._name}.{method}"
        return _watched(name, lambda: getattr(self._make(), method), self._record)


def _narrowest(slices: list[Slice]) -> tuple[Slice, ...]:
    """Without those that were read only to see what another may ask for."""
    return tuple(
        one
        for one in slices
        if not any(
            other.file == one.file and one.where.items() < other.where.items() for other in slices
        )
    )


def _facts(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments by name; of a dataclass (experts, a block), its fields."""
    for name, value in given.items():
        if is_dataclass(value):
            yield from _facts({field.name: getattr(value, field.name) for field in fields(value)})
        elif value is not None:
            yield name, value


def _plain(value: Any) -> Scalar:
    return value.item() if isinstance(value, np.generic) else value
