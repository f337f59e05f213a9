"""From a file of measured runs to a calibration, held-out predictions and their scores."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from paretoserve import paths
from paretoserve.accuracy import report, running
from paretoserve.accuracy.calibrating import Predict, fitted, fitted_names, linearised
from paretoserve.accuracy.measurements import BACKENDS, Measurement, read_measurements
from paretoserve.accuracy.predicting import Predictor
from paretoserve.accuracy.validating import held_out
from paretoserve.calibration import calibration
from paretoserve.errors import InputError
from paretoserve.uncertainty import residuals_of

SAMPLE = 600  # runs of a backend that its times are searched with: more take longer


@dataclass(frozen=True)
class Fit:
    """The new calibration as its file holds it, the HELD_OUT table, and the scores as text."""

    calibration_yaml: str
    held_out: pa.Table
    text: str


def fit(file: Path, cores: int, note: Callable[[str], None]) -> Fit:
    """Fit the calibration in force anew to the runs of a file.

    InputError where the file cannot be read or has no run of any backend.
    """
    now = calibration()
    runs, skipped = read_measurements(file, now.assumed.attention_dp_from)
    if not runs:
        raise InputError(f"{file}: holds no run that can be predicted")
    predictor, fits = Predictor(), {}

    def predicts(some: list[Measurement]) -> Predict:
        return lambda numbers: running.predict([(one, some) for one in numbers], cores, predictor)

    for backend in BACKENDS:
        # Near-duplicates are often one run under two names.
        different = {(run.ttft_ms, run.tpot_ms): run for run in runs if run.backend == backend}
        # Runs whose drafts are guessed teach a time the guess's error.
        mine = [run for run in different.values() if run.settled] or list(different.values())
        if not mine:
            note(f"{backend}: no runs, its times stay")
            continue
        drawn = np.sort(np.random.default_rng(0).permutation(len(mine))[:SAMPLE])
        sample, start = [mine[i] for i in drawn], now
        now = fitted(backend, start, sample, predicts(sample), note)
        names = fitted_names(backend, mine)
        fits[backend] = mine, linearised(names, start, now, mine, predicts(mine))
        note(f"{backend}: slopes of {len(mine)} runs")
    table = held_out(runs, fits, now, lambda asked: running.predict(asked, cores, predictor))
    known = residuals_of(table)
    texts = [
        report.as_text(title, report.score(report.scored_held_out(table, known, scheme)))
        for scheme, title in (("family", "Without their family"), ("model", "Without their model"))
    ]
    told = [f"not read, {one.id}: {one.reason}" for one in skipped]
    comments = _comments()
    content = yaml.safe_dump(now.plain(), sort_keys=False)
    return Fit(comments + content, table, "\n".join([*told, *texts]))


def _comments() -> str:
    """What the file says before its numbers stays."""
    lines = paths.CALIBRATION.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("#"))
