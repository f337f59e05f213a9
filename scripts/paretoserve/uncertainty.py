"""How far predictions are off: intervals and probabilities from held-out residuals.

A residual is log(measured / predicted) of ttft and of tpot, of one run by a calibration that never
saw its like (perf_db/silicon/held_out.parquet). Runs of one backend, mode and knowledge of the
workers make a slice, split where clients are many; a slice of too few runs is that of all backends.
The 90 % interval lies between the 5 % and 95 % quantiles, moved out to the next residual as befits
a sample of that size; the probability of keeping an SLA is the share of the slice's pairs of
residuals with which both figures keep it. Of the closed loop's rate the interval lies between the
same quantiles over those pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paretoserve import paths

SHARE = 0.90  # of the interval
LEAST = 40  # runs that make a slice
MANY_CLIENTS = 64


@dataclass(frozen=True)
class Intervals:
    """Ends of the 90 % intervals and the probability of keeping the SLA, each (N,).

    The rate of requests is told as a share of the predicted one, NaN where no osl was given.
    """

    ttft_low_ms: np.ndarray
    ttft_high_ms: np.ndarray
    tpot_low_ms: np.ndarray
    tpot_high_ms: np.ndarray
    sla_probability: np.ndarray
    rate_low: np.ndarray
    rate_high: np.ndarray


@dataclass(frozen=True)
class Residuals:
    """Residuals of runs, each (R,); `fold` tells those apart that were held out together."""

    backend: np.ndarray
    mode: np.ndarray
    settled: np.ndarray
    clients: np.ndarray
    fold: np.ndarray
    ttft: np.ndarray
    tpot: np.ndarray

    def like(self, backend: str, mode: str, settled: bool, clients: float) -> np.ndarray:
        """Runs whose residuals stand for such a deployment, (R,): the nearest large slice."""
        same_mode = (self.mode == mode) & (self.settled == settled)
        own = same_mode & (self.backend == backend)
        many = (self.clients > MANY_CLIENTS) == (clients > MANY_CLIENTS)
        return next(
            (chosen for chosen in (own & many, own, same_mode) if chosen.sum() >= LEAST),
            np.ones(len(self.mode), bool),
        )

    def without(self, left_out: np.ndarray) -> "Residuals":
        """The residuals of the other runs."""
        return Residuals(*(getattr(self, name)[~left_out] for name in self.__dataclass_fields__))


@cache
def residuals(file: Path = paths.HELD_OUT) -> Residuals:
    """Read the held-out residuals, by family."""
    return residuals_of(pq.read_table(file))


def residuals_of(table: pa.Table) -> Residuals:
    """The residuals of held-out predictions (accuracy.validating.HELD_OUT), by family."""
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    ttft, tpot = (
        np.log(columns[f"{name}_ms"] / columns[f"family_{name}_ms"]).astype(float)
        for name in ("ttft", "tpot")
    )
    known = np.isfinite(ttft) & np.isfinite(tpot)
    return Residuals(
        columns["backend"][known].astype(str),
        columns["mode"][known].astype(str),
        columns["settled"][known].astype(bool),
        columns["concurrency"][known],
        columns["fold"][known],
        ttft[known],
        tpot[known],
    )


def intervals(
    known: Residuals,
    backend: Sequence[str],
    mode: Sequence[str],
    settled: Sequence[bool],
    clients: Sequence[float],
    ttft_ms: np.ndarray,
    tpot_ms: np.ndarray,
    ttft_limit_ms: float | np.ndarray = np.inf,
    tpot_limit_ms: float | np.ndarray = np.inf,
    osl: float | np.ndarray = np.nan,
) -> Intervals:
    """Intervals of predictions (N,), and the probability that both are within their limits.

    Limits and osl, the tokens of an answer, are those of all or of each (N,). A closed loop serves
    clients / (ttft + tpot * (osl - 1)) requests: what a pair of residuals makes of that is a share
    of what is predicted.
    """
    ends = np.full((4, len(ttft_ms)), np.nan)
    rate = np.full((2, len(ttft_ms)), np.nan)
    probability = np.full(len(ttft_ms), np.nan)
    ttft_limit, tpot_limit, tokens = (
        np.broadcast_to(of, len(ttft_ms)) for of in (ttft_limit_ms, tpot_limit_ms, osl)
    )
    many = np.asarray(clients) > MANY_CLIENTS
    kinds = list(zip(backend, mode, settled, many.tolist(), strict=True))
    for kind in sorted(set(kinds)):
        mine = np.array([one == kind for one in kinds])
        of_backend, of_mode, of_settled, of_many = kind
        like = known.like(of_backend, of_mode, of_settled, MANY_CLIENTS + of_many)
        ttft, tpot = known.ttft[like], known.tpot[like]
        for i, (values, predicted) in enumerate(((ttft, ttft_ms), (tpot, tpot_ms))):
            ends[2 * i : 2 * i + 2, mine] = np.exp(_ends(values))[:, None] * predicted[mine]
        ttft_of_pair = ttft_ms[mine, None] * np.exp(ttft)
        tpot_of_pair = tpot_ms[mine, None] * np.exp(tpot)
        keeps = (ttft_of_pair <= ttft_limit[mine, None]) & (tpot_of_pair <= tpot_limit[mine, None])
        known_here = np.isfinite(tpot_ms[mine]) & bool(like.sum())
        share = keeps.sum(axis=1) / max(like.sum(), 1)
        probability[mine] = np.where(known_here, share, np.nan)
        after_first = tokens[mine, None] - 1
        answer_ms = ttft_ms[mine, None] + tpot_ms[mine, None] * after_first
        rate[:, mine] = _ends(answer_ms / (ttft_of_pair + tpot_of_pair * after_first))
    return Intervals(*ends, probability, *rate)


def _ends(values: np.ndarray) -> np.ndarray:
    """The k-th of n values (..., n) from either side, k = floor((n + 1) (1 - SHARE) / 2).

    NaN of none.
    """
    if not values.shape[-1]:
        return np.full((2, *values.shape[:-1]), np.nan)
    ordered = np.sort(values, axis=-1)
    # Rounded: 40 * 0.05 is 1.9999... in floating point.
    k = max(int(round((values.shape[-1] + 1) * (1 - SHARE) / 2, 9)), 1)
    return np.array([ordered[..., k - 1], ordered[..., -k]])
