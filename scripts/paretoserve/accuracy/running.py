"""Simulate many runs at once: by several processes that share the priced steps."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from paretoserve.accuracy.measurements import Measurement
from paretoserve.accuracy.predicting import Prediction, Predictor
from paretoserve.calibration import Calibration

PART = 40  # runs of one task

_shared: Predictor | None = None  # of the parent: forked processes have its priced steps


def predict(
    asked: Sequence[tuple[Calibration, Sequence[Measurement]]], cores: int, predictor: Predictor
) -> list[list[Prediction]]:
    """Predictions of each list of runs under its calibration."""
    global _shared
    for calibration, runs in asked:
        predictor.price(runs, calibration)
    parts = [
        (number, calibration, runs[i : i + PART])
        for number, (calibration, runs) in enumerate(asked)
        for i in range(0, len(runs), PART)
    ]
    found: list[list[Prediction]] = [[] for _ in asked]
    if cores == 1:
        for number, calibration, runs in parts:
            found[number] += predictor.simulate(runs, calibration)
        return found
    _shared = predictor
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(cores, mp_context=context) as pool:
        for (number, *_), predictions in zip(parts, pool.map(_simulate, parts), strict=True):
            found[number] += predictions
    return found


def _simulate(part: tuple[int, Calibration, Sequence[Measurement]]) -> list[Prediction]:
    _, calibration, runs = part
    return _shared.simulate(runs, calibration)
