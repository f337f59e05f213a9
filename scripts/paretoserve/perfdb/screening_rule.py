"""Find tables that timed something else than their kernel, by the rule of config/screening.yaml.

A table of one engine and precision is flagged
- where it is slower than its peers at points of little work. If it is not at points of much work it
  has a constant overhead (the host's launch, a kernel before or after); else it is another kernel
  than the engine runs today, or a badly tuned one, as it also is where it takes several times
  another engine's time at points of much work;
- where points of very different work all take one time far above their bound: that is the host's.
The stand-in is the peer with the most common points among those of the same precision that it is
slower than and that are not flagged themselves, and of these the one it is least slower than. A
table without such a peer is not listed: nothing could replace it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import yaml

from paretoserve import paths
from paretoserve.hardware import load_system
from paretoserve.perfdb import manifest
from paretoserve.perfdb.catalogue import ENGINES
from paretoserve.perfdb.tables import PerfTables

# Precisions of one width and rate: peers of each other inside an engine.
ALIKE = ({"fp8", "fp8_block"},)
EAGER = "_eager"

Group = tuple[Any, ...]


@dataclass(frozen=True)
class Curve:
    """Points of one table and group: `at` sorted, coordinates as numbers; ms and work of each."""

    at: np.ndarray
    ms: np.ndarray
    work: np.ndarray


@dataclass(frozen=True)
class Peer:
    """A comparison: median ratio of the table to the peer at light and heavy points.

    `flat`: the peer's light points take one time. `excess_us`: median difference at light points.
    """

    system: str
    backend: str
    version: str
    group: Group
    points: int
    light: float
    heavy: float
    flat: bool
    excess_us: float


def screen() -> dict[str, Any]:
    """Return what perf_db/screening.json holds: the flagged tables, each with its stand-in."""
    return {"screened": [entry for name in _rule()["tables"] for entry in of_table(name)]}


def of_table(table: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of one table."""
    columns = _rule()["tables"][table]["of"]
    found = {}
    for engine in _engines(table):
        for group, curve in _curves(table, *engine).items():
            peers = list(_peers(table, engine, group, curve))
            if verdict := _verdict(table, curve, peers, engine):
                found[engine, group] = verdict, curve, peers
    for (engine, group), (verdict, curve, peers) in found.items():
        slower = [
            p
            for p in peers
            if (p.light >= _rule()["each"] or p.heavy >= _another(table)) and p.group == group
        ]
        believed = [p for p in slower if ((p.system, p.backend, p.version), p.group) not in found]
        here = [peer for peer in believed if peer.system == engine[0]]
        if not believed:
            continue
        best = max(here or believed, key=lambda peer: (peer.points, -peer.light))
        yield {
            **dict(zip(("system", "backend", "version"), engine, strict=True)),
            "operator": table,
            "where": dict(zip(columns, group, strict=True)),
            "verdict": verdict,
            "floor_us": round(float(np.percentile(curve.ms, 1)) * 1e3, 1),
            "ratio": {"light": round(best.light, 2), "heavy": round(best.heavy, 2)},
            "stand_in": {name: getattr(best, name) for name in ("system", "backend", "version")},
        }


def _verdict(table: str, curve: Curve, peers: list[Peer], engine: tuple[str, str, str]) -> str:
    """What a table timed too, in words; "" where it agrees with its peers."""
    rule, (system, backend, _) = _rule(), engine
    least_us = rule["tables"][table].get("least_us", rule["least_us"])
    here = [p for p in peers if p.system == system]
    engines = [p for p in here if p.backend != backend]
    # The engine's other precision may share what is wrong: it counts where no two others do.
    elsewhere = [p for p in peers if p.system != system]
    for group in (engines if len(engines) > 1 else here, elsewhere):
        if not group:
            continue
        light = np.exp(np.mean([np.log(peer.light) for peer in group]))
        heavy = np.exp(np.mean([np.log(peer.heavy) for peer in group]))
        overhead = light >= rule["converges"] * heavy
        nearest = min(peer.light for peer in group)
        if max(peer.excess_us for peer in group) < least_us:
            continue
        agreed = len(group) > 1 and light >= rule["slower"] and nearest >= rule["each"]
        alone = any(
            p.light >= rule["alone"] and p.light >= rule["converges"] * p.heavy for p in group
        )
        flat = _is_flat(curve.work, curve.ms) and any(
            p.light >= rule["each"] and not p.flat for p in group
        )
        if flat:
            return "does not depend on the work"
        if agreed or (alone and nearest >= rule["each"]):
            return "constant overhead" if overhead else "slower kernel"
    if any(peer.heavy >= _another(table) for peer in engines):
        return "slower kernel"
    return ""


def _another(table: str) -> float:
    """From which ratio at heavy points on another engine's kernel is taken to be another one."""
    return _rule()["tables"][table].get("another", np.inf)


def _is_flat(work: np.ndarray, ms: np.ndarray) -> bool:
    """Whether points of very different work take one time."""
    rule, light = _rule(), _light(work)
    spread = np.percentile(ms[light], 90) / np.percentile(ms[light], 10)
    wide = work[light].max() >= 10 ** rule["decades"] * work[light].min()
    return bool(spread <= rule["flat"] and wide)


def _light(work: np.ndarray) -> np.ndarray:
    return work <= np.quantile(work, _rule()["light"])


def _peers(table: str, engine: tuple[str, str, str], group: Group, curve: Curve) -> Iterator[Peer]:
    """Comparisons with the newest version of each peer that has the group."""
    seen = set()
    for other in reversed(_engines(table)):
        same_system, same_backend = other[0] == engine[0], other[1] == engine[1]
        if not same_system and not (same_backend and _alike_systems(engine[0], other[0])):
            continue
        curves = _curves(table, *other)
        if other == engine:
            wanted = _alike(group)
        elif (same_system and same_backend) or other[:2] in seen:
            continue
        else:
            wanted = (group,)
        for one in wanted:
            found = _compare(curve, curves[one]) if one in curves else None
            if found:
                seen.add(other[:2])
                yield Peer(*other, one, *found)


def _compare(one: Curve, other: Curve) -> tuple[int, float, float, bool, float] | None:
    """The fields of a Peer from `points` on; None with too few common points."""
    rule = _rule()
    common, mine, its = np.intersect1d(one.at, other.at, assume_unique=True, return_indices=True)
    if len(common) < rule["points"]:
        return None
    ours, theirs, work = one.ms[mine], other.ms[its], one.work[mine]
    light, heavy = _light(work), work >= np.quantile(work, 1 - rule["heavy"])
    return (
        len(common),
        float(np.median((ours / theirs)[light])),
        float(np.median((ours / theirs)[heavy])),
        _is_flat(work, theirs),
        float(np.median((ours - theirs)[light])) * 1e3,
    )


def _alike(group: Group) -> Iterator[Group]:
    """Groups with a precision that runs alike in place of one."""
    for at, value in enumerate(group):
        for modes in ALIKE:
            for mode in sorted(modes - {value}) if value in modes else ():
                yield (*group[:at], mode, *group[at + 1 :])


@cache
def _alike_systems(one: str, other: str) -> bool:
    mine, its = load_system(one), load_system(other)
    if not mine.sm_version or not its.sm_version:
        return False
    near = abs(mine.memory_bandwidth / its.memory_bandwidth - 1) < _rule()["bandwidth"]
    return near and mine.sm_version // 10 == its.sm_version // 10


@cache
def _engines(table: str) -> tuple[tuple[str, str, str], ...]:
    """(system, backend, version) with this table, older versions of an engine first."""
    loaded = manifest.load()
    return tuple(
        (system, backend, version)
        for system, backend in sorted({key[:2] for key in loaded.tables})
        if backend in ENGINES
        for version in loaded.versions(system, backend)
        if (system, backend, version, table) in loaded.tables
    )


@cache
def _curves(table: str, system: str, backend: str, version: str) -> Mapping[Group, Curve]:
    """Curves of every group of a table, the fastest kernel at each coordinate."""
    spec = _rule()["tables"][table]
    rows = PerfTables(system, backend, version).rows(table)
    kept = np.ones(len(rows["latency_ms"]), bool)
    for column, value in spec.get("where", {}).items():
        kept &= rows[column] == value
    if "kernel" in rows:
        kept &= ~np.char.endswith(rows["kernel"].astype(str), EAGER)
    rows = {name: column[kept] for name, column in rows.items()}
    groups, of_row = _numbered([rows[name] for name in spec["of"]])
    at = _positions([rows[name] for name in spec["at"]])
    work = np.prod([rows[name].astype(float) for name in spec["work"]], axis=0)
    curves = {}
    for i, group in enumerate(groups):
        mine = np.flatnonzero(of_row == i)
        mine = mine[np.argsort(rows["latency_ms"][mine], kind="stable")]
        unique, first = np.unique(at[mine], return_index=True)
        mine = mine[first]
        curves[group] = Curve(unique, rows["latency_ms"][mine].astype(float), work[mine])
    return curves


def _numbered(columns: list[np.ndarray]) -> tuple[list[Group], np.ndarray]:
    """Distinct rows of some columns as plain values, and which of them each row is."""
    parts = [np.unique(column, return_inverse=True) for column in columns]
    code = np.zeros(len(columns[0]), np.int64)
    for values, index in parts:
        code = code * len(values) + index
    _, first, of_row = np.unique(code, return_index=True, return_inverse=True)
    plain = [column.tolist() for column in (c[first] for c in columns)]
    return list(zip(*plain, strict=True)), of_row


def _positions(columns: list[np.ndarray]) -> np.ndarray:
    """One number for each coordinate, the same in every table."""
    position = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        if column.dtype == object:
            values, index = np.unique(column, return_inverse=True)
            words = [int.from_bytes(str(v).encode()[-7:], "big") for v in values]
            column = np.array(words, np.uint64)[index]
        position = position * np.uint64(1_000_003) + column.astype(np.uint64)
    return position


@cache
def _rule() -> dict[str, Any]:
    return yaml.load(paths.SCREENING_RULE.read_bytes(), yaml.CSafeLoader)
