"""Where an operator's latency comes from when the engine's own table cannot say, or cannot be
believed.

The engine's own table is asked first. What it cannot answer is asked of stand-ins, one after the
other, until one can:
1. other versions of the engine on the same system, the nearest first;
2. its kernels of a precision or window that runs alike (config/estimation.yaml, `substitutes`);
3. other engines on the same system, of their newest version;
4. precisions and windows that are less alike, of the engine and of others;
5. other systems, those of the nearest rates first: the same engine, then others.
A stand-in's latency is multiplied by the ratio of the two speed-of-light bounds, max(arithmetic,
traffic), at the same point: 1 on one system in one precision.

A table that perf_db/screening.json lists timed something else than its kernel: what it says is
replaced by its stand-in where that is faster.

All of this is of provenance `substituted`, and a note says what stood in for what.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from paretoserve.errors import InputError, UnreadableTable
from paretoserve.interpolation import SUBSTITUTED, Latency
from paretoserve.perfdb import manifest, screening
from paretoserve.perfdb.catalogue import ENGINES
from paretoserve.perfdb.elsewhere import nearest_systems
from paretoserve.perfdb.screening import Screen
from paretoserve.perfdb.tables import PerfTables

Key = tuple[Any, ...]
Query = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Kind:
    """One operator as the sources see it.

    Parameters
    ----------
    name : in notes and in the screening
    table : of perf_db
    make : PerfTables -> the operator of one engine version
    look_up : (operator, key, *query) -> Latency; InputError or NaN where it cannot say
    bound_ms : (operator, key, *query) -> speed of light, where stand-ins can differ in it
    variants : key -> other keys that may stand in, the best first: those alike, then the rest
    columns : key -> the screened columns with their values
    label : key -> its words in notes; those of `columns` unless stated
    estimate : like look_up, but may guess from other shapes: asked once no engine on the system
        can answer, or with `far_first` once none on any system can
    comparable : (own system, other system, key, *query) -> whether the other can stand in
    """

    name: str
    table: str
    make: Callable[[PerfTables], Any]
    look_up: Callable[..., Latency]
    bound_ms: Callable[..., np.ndarray]
    variants: Callable[[Key], tuple[Sequence[Key], Sequence[Key]]] = lambda key: ((), ())
    columns: Callable[[Key], dict[str, Any]] = lambda key: {}
    label: Callable[[Key], str] | None = None
    estimate: Callable[..., Latency] | None = None
    far_first: bool = False
    comparable: Callable[..., bool] = lambda *anything: True


@dataclass(frozen=True)
class Source:
    """One operator of one engine version, asked by one key."""

    tables: PerfTables
    operator: Any
    key: Key


class Sourced:
    """An operator of one engine version, with stand-ins; `strict`: without, and unscreened."""

    def __init__(self, tables: PerfTables, kind: Kind, strict: bool = False):
        self._tables, self._kind, self._strict = tables, kind, strict
        self._operators: dict[tuple[str, str, str], Any] = {}
        self._failed: dict[tuple[tuple[str, str, str], Key], str] = {}
        self._screens: dict[tuple[tuple[str, str, str], Key], Screen | None] = {}

    @cached_property
    def own(self) -> Any:
        """The operator from the engine's own table alone."""
        return self._operator(self._tables)

    def ask(self, key: Key, *query: np.ndarray) -> Latency:
        """Latency at the query points, which broadcast; NaN with the reason where nobody can say.

        InputError where nobody can say anything.
        """
        query = tuple(np.broadcast_arrays(*(np.atleast_1d(q) for q in query)))
        shape = query[0].shape
        own = Source(self._tables, self.own, key)
        if self._strict:
            return (self._kind.estimate or self._kind.look_up)(own.operator, key, *query)
        found = self._asked(own, self._kind.look_up, query)
        for source, look_up in self._stand_ins(own):
            missing = ~np.isfinite(found.ms)
            if not missing.any():
                return found
            part = tuple(q[missing] for q in query)
            if not self._kind.comparable(self._tables.system, source.tables.system, key, *part):
                continue
            other = self._asked(source, look_up, part)
            if np.isfinite(other.ms).any():
                if source is not own:
                    other = self._scaled(own, source, other, part)
                found = _filled(found, missing, other, shape)
        if found.reasons and not np.isfinite(found.ms).any():
            raise InputError(found.reasons[0][1])
        return found

    def _asked(self, own: Source, look_up: Callable[..., Latency], query: Query) -> Latency:
        """What a table says; a screened one's stand-in where that is faster."""
        found, screen = self._ask(own, look_up, query), self._screen(own)
        if screen is None or not np.isfinite(found.ms).any():
            return found
        tables = PerfTables(screen.system, screen.backend, screen.version)
        source = Source(tables, self._operator(tables), own.key)
        other = self._ask(source, self._kind.look_up, query)
        if not np.isfinite(other.ms).any():
            return found
        other = self._scaled(own, source, other, query)
        faster = other.ms < found.ms
        if not faster.any():
            return found
        verdict = f"{self._label(own)} is screened ({screen.verdict})"
        note = f"{verdict}: where {_engine(tables)} is faster, it stands in"
        return Latency(
            np.where(faster, other.ms, found.ms),
            np.where(faster, other.provenance, found.provenance),
            found.reasons,
            (*found.notes, note),
        )

    def _screen(self, source: Source) -> Screen | None:
        tables, key = source.tables, source.key
        id = (tables.name, tables.backend, tables.version), key
        if id not in self._screens:
            columns = self._kind.columns(key)
            self._screens[id] = screening.find(tables, self._kind.table, columns)
        return self._screens[id]

    def _scaled(self, own: Source, source: Source, found: Latency, query: Query) -> Latency:
        """A stand-in's latency, by the ratio of the bounds."""
        bound = self._kind.bound_ms
        try:
            mine = bound(own.operator, own.key, *query)
            its = bound(source.operator, source.key, *query)
        except InputError as error:
            return _nothing(query[0].shape, str(error))
        ratio = np.divide(mine, its, out=np.ones(np.shape(its)), where=its > 0)
        scaled = found.scaled(ratio, SUBSTITUTED)
        how = "" if np.allclose(ratio, 1) else ", scaled by the speed-of-light ratio"
        note = f"{self._label(source)} stands in for {self._label(own)}{how}"
        return Latency(scaled.ms, scaled.provenance, found.reasons, (*found.notes, note))

    def _label(self, source: Source) -> str:
        of, columns = self._kind.label, self._kind.columns
        modes = of(source.key) if of else ", ".join(map(str, columns(source.key).values()))
        return f"{_engine(source.tables)} {self._kind.name}" + (f" ({modes})" if modes else "")

    def _ask(self, source: Source, look_up: Callable[..., Latency], query: Query) -> Latency:
        shape = query[0].shape
        tables = source.tables
        id = (tables.name, tables.backend, tables.version), source.key, look_up
        if id in self._failed:
            return _nothing(shape, self._failed[id])
        try:
            return look_up(source.operator, source.key, *query)
        except UnreadableTable:
            raise
        except InputError as error:
            # Of the key, not of the query: what cannot be asked once cannot be asked again.
            self._failed[id] = str(error)
            return _nothing(shape, str(error))

    def _stand_ins(self, own: Source) -> Iterator[tuple[Source, Callable[..., Latency]]]:
        """Whom to ask, and how, the best first."""
        kind = self._kind
        alike, others = kind.variants(own.key)
        ways = [way for way in (kind.look_up, kind.estimate) if way]
        if kind.far_first:
            for way in ways:
                yield from self._near(own, way, alike, others)
                yield from self._far(own, way, alike, others)
            return
        for way in ways:
            yield from self._near(own, way, alike, others)
        for way in ways:
            yield from self._far(own, way, alike, others)

    def _near(self, own: Source, way: Callable, alike: Sequence[Key], others: Sequence[Key]):
        """Sources of the same system, asked one way."""
        tables, kind, key = own.tables, self._kind, own.key
        if way is kind.estimate:
            yield own, way
        for version in _versions(tables.name, tables.backend, kind.table):
            if version != tables.version:
                yield self._source(tables.name, tables.backend, version, key), way
        for one in alike:
            yield Source(tables, own.operator, one), way
        for one in (key, *alike, *others):
            for backend in _engines(tables.backend):
                if one in others or backend != tables.backend:
                    for version in _versions(tables.name, backend, kind.table):
                        yield self._source(tables.name, backend, version, one), way

    def _far(self, own: Source, way: Callable, alike: Sequence[Key], others: Sequence[Key]):
        """Sources of other systems, asked one way."""
        tables = own.tables
        for system in nearest_systems(tables.name):
            for backend in _engines(tables.backend):
                for version in _versions(system, backend, self._kind.table):
                    for one in (own.key, *alike, *others):
                        yield self._source(system, backend, version, one), way

    def _source(self, system: str, backend: str, version: str, key: Key) -> Source:
        tables = PerfTables(system, backend, version)
        return Source(tables, self._operator(tables), key)

    def _operator(self, tables: PerfTables) -> Any:
        id = tables.name, tables.backend, tables.version
        if id not in self._operators:
            self._operators[id] = self._kind.make(tables)
        return self._operators[id]


def _filled(found: Latency, missing: np.ndarray, other: Latency, shape: tuple) -> Latency:
    ms, provenance = found.ms.copy(), found.provenance.copy()
    ms[missing], provenance[missing] = other.ms, other.provenance
    still = np.isnan(ms)
    reasons = tuple(
        (mask & still, sentence) for mask, sentence in found.reasons if (mask & still).any()
    )
    return Latency(ms, provenance, reasons, tuple(dict.fromkeys((*found.notes, *other.notes))))


def _nothing(shape: tuple[int, ...], reason: str) -> Latency:
    return Latency(
        np.full(shape, np.nan), np.zeros(shape, np.int8), ((np.ones(shape, bool), reason),)
    )


def _engine(tables: PerfTables) -> str:
    return f"{tables.name} {tables.backend} {tables.version}"


def _engines(first: str) -> tuple[str, ...]:
    return (first, *(engine for engine in ENGINES if engine != first))


def _versions(system: str, backend: str, table: str) -> list[str]:
    """Versions of an engine with this table, newest first."""
    loaded = manifest.load()
    try:
        known = loaded.versions(system, backend)
    except InputError:
        return []
    return [v for v in reversed(known) if (system, backend, v, table) in loaded.tables]
