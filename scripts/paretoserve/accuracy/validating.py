"""Held-out predictions: every run is predicted by a calibration that never saw its like.

`family` folds keep near-duplicates together (architecture, system, backend, precision, mode,
layout), `model` folds leave a whole architecture out. A fold's calibration is that of all runs,
refitted without the fold's along the linearisation at the optimum.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from paretoserve.accuracy.calibrating import Linear, values
from paretoserve.accuracy.measurements import Measurement
from paretoserve.accuracy.predicting import Prediction
from paretoserve.calibration import Calibration

FOLDS = 5
SCHEMES: Mapping[str, Callable[[Measurement], str]] = {
    "family": lambda run: str(_hash(run.family) % FOLDS),
    "model": lambda run: run.architecture,
}

HELD_OUT = pa.schema(
    {
        "id": pa.string(),
        "backend": pa.dictionary(pa.int16(), pa.string()),
        "system": pa.dictionary(pa.int16(), pa.string()),
        "model": pa.dictionary(pa.int16(), pa.string()),
        "precision": pa.dictionary(pa.int16(), pa.string()),
        "mode": pa.dictionary(pa.int16(), pa.string()),
        "layout": pa.dictionary(pa.int16(), pa.string()),
        "isl": pa.int32(),
        "osl": pa.int32(),
        "concurrency": pa.int32(),
        "settled": pa.bool_(),
        "gpus": pa.int32(),
        "fold": pa.int16(),
        "ttft_ms": pa.float32(),
        "tpot_ms": pa.float32(),
        **{
            f"{scheme}_{name}": pa.float32()
            for scheme in SCHEMES
            for name in ("ttft_ms", "tpot_ms")
        },
        "reason": pa.string(),
    }
)


def held_out(
    runs: Sequence[Measurement],
    fits: Mapping[str, tuple[Sequence[Measurement], Linear]],
    calibration: Calibration,
    predict: Callable[
        [Sequence[tuple[Calibration, Sequence[Measurement]]]], list[list[Prediction]]
    ],
) -> pa.Table:
    """Return the HELD_OUT table.

    Parameters
    ----------
    fits
        By backend, the runs that its times were fitted to, and the last linearisation.
    predict
        Predictions of each list of runs under its calibration.
    """
    found = {
        scheme: _predicted(runs, fold_of, fits, calibration, predict)
        for scheme, fold_of in SCHEMES.items()
    }
    columns = {
        "id": [run.id for run in runs],
        **{
            name: [getattr(run, name) for run in runs]
            for name in ("backend", "system", "model", "precision", "mode", "isl", "osl")
        },
        "layout": [run.layout for run in runs],
        "concurrency": [run.concurrency for run in runs],
        "settled": [run.settled for run in runs],
        "gpus": [run.gpus for run in runs],
        "fold": [int(SCHEMES["family"](run)) for run in runs],
        "ttft_ms": [run.ttft_ms for run in runs],
        "tpot_ms": [run.tpot_ms for run in runs],
        **{
            f"{scheme}_{name}": [getattr(one, name) for one in predictions]
            for scheme, predictions in found.items()
            for name in ("ttft_ms", "tpot_ms")
        },
        "reason": [one.reason for one in found["family"]],
    }
    return pa.table(
        [pa.array(columns[field.name]).cast(field.type) for field in HELD_OUT], schema=HELD_OUT
    )


def _predicted(runs, fold_of, fits, calibration, predict) -> list[Prediction]:
    folds = [fold_of(run) for run in runs]
    asked, members = [], []
    for fold in sorted(set(folds)):
        numbers: dict[str, float] = {}
        for fitted_to, linear in fits.values():
            keep = np.array([fold_of(run) != fold for run in fitted_to])
            moved = linear.solved(keep) - linear.solved(np.ones(len(keep), bool))
            numbers |= values(linear.names, linear.log + moved)
        mine = [i for i, of_run in enumerate(folds) if of_run == fold]
        members.append(mine)
        asked.append((calibration.with_values(numbers), [runs[i] for i in mine]))
    predictions: list[Prediction] = [Prediction()] * len(runs)
    for mine, found in zip(members, predict(asked), strict=True):
        for i, one in zip(mine, found, strict=True):
            predictions[i] = one
    return predictions


def _hash(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=4).digest(), "big")
