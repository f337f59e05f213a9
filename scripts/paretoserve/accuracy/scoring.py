"""Errors of predictions against measured runs, and what decisions by them would have cost.

error      predicted / measured - 1; median and mean are of its size, bias is its median
interval   share of the measured values inside the stated 90 % interval
decision   in each workload (model, system, backend, precision, mode, load) the configuration that
           would be taken: most tokens/s/gpu among those that keep the TPOT target with the asked
           probability. Violation: on silicon it breaks the target. Given away: tokens/s/gpu below
           the best measured configuration that keeps it. Workloads where no or every measured
           configuration keeps the target, or with one only, decide nothing and do not count.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Errors:
    """Errors of one figure over `count` runs, as shares (0.09 is 9 %)."""

    count: int
    median: float
    mean: float
    bias: float


def errors(predicted: np.ndarray, measured: np.ndarray) -> Errors:
    """Errors of predictions (N,) where both are finite; all NaN without any."""
    both = np.isfinite(predicted) & np.isfinite(measured)
    if not both.any():
        return Errors(0, np.nan, np.nan, np.nan)
    signed = predicted[both] / measured[both] - 1
    size = np.abs(signed)
    return Errors(
        len(signed), *(float(x) for x in (np.median(size), size.mean(), np.median(signed)))
    )


def interval_coverage(low: np.ndarray, high: np.ndarray, measured: np.ndarray) -> float:
    """Share of `measured` (N,) inside [low, high]; NaN where nothing is stated."""
    stated = np.isfinite(low) & np.isfinite(high)
    if not stated.any():
        return float("nan")
    inside = (measured[stated] >= low[stated]) & (measured[stated] <= high[stated])
    return float(inside.mean())


@dataclass(frozen=True)
class Decisions:
    """What came of taking the predicted best in each of `workloads`, as shares."""

    workloads: int
    answered: int
    violations: float
    same_layout: float
    given_away: float


def decisions(
    workload: Sequence[object],
    layout: Sequence[object],
    keeps: np.ndarray,
    predicted_rate: np.ndarray,
    measured_tpot_ms: np.ndarray,
    measured_rate: np.ndarray,
    target_ms: float,
) -> Decisions:
    """Score the choice in each workload, all arguments (N,).

    `keeps` says whether a configuration is predicted to keep the target. A workload where none is
    takes none: it is not answered, and counts in no share but that. `given_away` counts a violation
    as nothing given away, as its throughput was not to be had within the target.
    """
    workload, layout = (_codes(values) for values in (workload, layout))
    usable = np.isfinite(predicted_rate) & np.isfinite(measured_rate)
    total, answered = 0, 0
    broken, same, lost = [], [], []
    for one in np.unique(workload):
        rows = np.flatnonzero((workload == one) & usable)
        good = measured_tpot_ms[rows] <= target_ms
        if len(rows) < 2 or not good.any() or good.all():
            continue
        total += 1
        allowed = rows[keeps[rows]]
        if not len(allowed):
            continue
        answered += 1
        taken = allowed[np.argmax(predicted_rate[allowed])]
        best = rows[good][np.argmax(measured_rate[rows[good]])]
        broken.append(measured_tpot_ms[taken] > target_ms)
        same.append(layout[taken] == layout[best])
        lost.append(max(1 - measured_rate[taken] / measured_rate[best], 0))
    if not answered:
        return Decisions(total, 0, *[float("nan")] * 3)
    return Decisions(total, answered, *(float(np.mean(x)) for x in (broken, same, lost)))


def slices(
    columns: Mapping[str, Sequence[object]], least: int
) -> Iterable[tuple[str, str, np.ndarray]]:
    """(column, value, mask) of every value of every column that at least `least` rows have."""
    for name, values in columns.items():
        values = np.asarray([str(value) for value in values])
        for value in sorted(set(values.tolist()), key=_numbers_by_size):
            mask = values == value
            if mask.sum() >= least:
                yield name, value, mask


def _numbers_by_size(text: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def concurrency_bucket(clients: int) -> str:
    """The bucket of powers of four that a number of clients is in, such as 5-16."""
    low, high = 0, 4
    while clients > high:
        low, high = high, high * 4
    return f"{low + 1}-{high}"


def _codes(values: Sequence[object]) -> np.ndarray:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values])
