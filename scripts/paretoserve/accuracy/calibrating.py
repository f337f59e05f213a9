"""Fit the times of config/calibration.yaml to measured runs.

Minimises over a sample of the runs the robust size (Cauchy) of log(predicted / measured) of tpot
and ttft, each in units of what a good prediction misses (`UNITS`): runs are contaminated in part.
One number after the other is moved up and down by a step while that helps, then by a smaller one: a
simulation has steps, so slopes mislead far from the optimum. There, slopes of all runs say how the
numbers would change without some of them (`Linear`), as held-out predictions need: differences of
simulations that draw the same lengths, weighted as the fit weights them.

A backend's times depend on its runs alone, so each is fitted by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paretoserve.accuracy.measurements import Measurement
from paretoserve.accuracy.predicting import Prediction
from paretoserve.calibration import Calibration

# What a good prediction misses, in logarithms: tpot, ttft.
UNITS = np.array([0.08, 0.2])
STEPS = (0.4, 0.15)  # of a number's logarithm
LEAST_GAIN = 1e-3  # of the cost: less is the noise of a sample
OF_DISAGG = ("hand_over_ms",)
CAUCHY = 2.0  # residuals beyond so many units count less and less: runs are contaminated in part
STEP = 0.12  # of a number's logarithm, for derivatives: above the grain of whole steps
# How far a number may be from its start, as a standard deviation of its logarithm.
SPREAD = {
    "decode_kernel_scale": 0.1,
    "prefill_kernel_scale": 0.2,
    "dp_prefill_scale": 0.3,
    "hand_over_ms": 0.2,
}
OTHER_SPREAD = 0.3
FITTED = (
    "decode_kernel_scale",
    "prefill_kernel_scale",
    "dp_prefill_scale",
    "decode_step_ms",
    "prefill_launch_us",
    "per_request_us",
    "per_prompt_ms",
    "request_ms",
    "per_prompt_token_us",
    "hand_over_ms",
)

Predict = Callable[[Sequence[Calibration]], list[list[Prediction]]]


@dataclass(frozen=True)
class Linear:
    """Residuals of runs around numbers: `log` (P,) of `names`, residual (R, 2), slope (R, 2, P)."""

    names: tuple[str, ...]
    log: np.ndarray
    start: np.ndarray
    residual: np.ndarray
    slope: np.ndarray

    def solved(self, keep: np.ndarray, passes: int = 8) -> np.ndarray:
        """The logarithms that fit the runs of `keep` (R,) best, by this linearisation, (P,)."""
        spread = np.array([_spread(name) for name in self.names])
        log = self.log
        for _ in range(passes):
            residual = (self.residual + self.slope @ (log - self.log)) / UNITS
            known = np.isfinite(residual) & keep[:, None]
            weight = np.where(known, 1 / (1 + (residual / CAUCHY) ** 2), 0)
            rows = np.sqrt(weight)[..., None] * self.slope / UNITS[:, None]
            rows = np.where(known[..., None], rows, 0).reshape(-1, len(log))
            right = np.where(known, np.sqrt(weight) * residual, 0).ravel()
            normal = rows.T @ rows + np.diag(1 / spread**2)
            pull = rows.T @ right + (log - self.start) / spread**2
            log = log - np.clip(np.linalg.solve(normal, pull), -0.5, 0.5)
        return log


def linearised(
    names: Sequence[str],
    start: Calibration,
    now: Calibration,
    runs: Sequence[Measurement],
    predict: Predict,
) -> Linear:
    """Simulate the runs at `now` and with each number a step away."""
    log = np.log([now.value(name) for name in names])
    moved = [now]
    for i, name in enumerate(names):
        moved.append(now.with_values({name: float(np.exp(log[i] + STEP))}))
    found = [_residuals(runs, predictions) for predictions in predict(moved)]
    slope = np.stack([(one - found[0]) / STEP for one in found[1:]], axis=-1)
    return Linear(
        tuple(names),
        log,
        np.log([start.value(name) for name in names]),
        found[0],
        np.nan_to_num(slope),
    )


def fitted(
    backend: str,
    start: Calibration,
    runs: Sequence[Measurement],
    predict: Predict,
    report: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """The calibration with this backend's times fitted to its runs."""
    names = fitted_names(backend, runs)
    now, least = start, _cost(_residuals(runs, predict([start])[0]))
    report(f"{backend}: {len(runs)} runs, cost {least:.3f}")
    for step in STEPS:
        for name in names:
            tried = [
                now.with_values(values([name], np.log([now.value(name)]) + way * step))
                for way in (1, -1)
            ]
            costs = [_cost(_residuals(runs, found)) for found in predict(tried)]
            best = int(np.argmin(costs))
            if costs[best] < least - LEAST_GAIN:
                now, least = tried[best], costs[best]
        report(f"{backend}: step {step}, cost {least:.3f}")
    return now


def fitted_names(backend: str, runs: Sequence[Measurement]) -> list[str]:
    """Dotted names of the numbers that these runs of a backend tell something about."""
    fields = FITTED
    if all(run.mode == "agg" for run in runs):
        fields = [field for field in FITTED if field not in OF_DISAGG]
    return [f"{backend}.{field}" for field in fields]


def _cost(residual: np.ndarray) -> float:
    """Mean robust size of residuals (R, 2); a run that is not predicted costs nothing."""
    return float(np.nanmean(np.log1p((residual / UNITS / CAUCHY) ** 2)))


def values(names: Sequence[str], log: np.ndarray) -> Mapping[str, float]:
    """Numbers by name, to four digits: what the file holds."""
    return {name: float(f"{number:.4g}") for name, number in zip(names, np.exp(log), strict=True)}


def _residuals(runs: Sequence[Measurement], predictions: Sequence[Prediction]) -> np.ndarray:
    predicted = np.array([(one.tpot_ms, one.ttft_ms) for one in predictions])
    measured = np.array([(run.tpot_ms, run.ttft_ms) for run in runs])
    return np.log(predicted / measured)


def _spread(name: str) -> float:
    return SPREAD.get(name.split(".")[1], OTHER_SPREAD)
