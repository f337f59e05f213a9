"""From a file of measured runs to a calibration, held-out predictions and their scores."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from paretoserve import paths
from paretoserve.accuracy import report, running
from paretoserve.accuracy.calibrating import fitted
from paretoserve.accuracy.measurements import BACKENDS, Measurement, read_measurements
from paretoserve.accuracy.predicting import Predictor
from paretoserve.accuracy.validating import held_out
from paretoserve.calibration import calibration
from paretoserve.errors import InputError
from paretoserve.uncertainty import residuals_of

SAMPLE = 260  # runs of a backend that its times are fitted to: more change them by less than noise


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
    for backend in BACKENDS:
        sample = _sample([run for run in runs if run.backend == backend])
        if not sample:
            note(f"{backend}: no runs, its times stay")
            continue

        def predict(numbers, sample=sample):
            return running.predict([(one, sample) for one in numbers], cores, predictor)

        now, linear = fitted(backend, now, sample, predict, note)
        fits[backend] = (sample, linear)
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


def _sample(runs: list[Measurement]) -> list[Measurement]:
    """Different runs, so many of them drawn that a fit takes minutes; the same ones every time."""
    different = list({(run.ttft_ms, run.tpot_ms): run for run in runs}.values())
    drawn = np.random.default_rng(0).permutation(len(different))[:SAMPLE]
    return [different[i] for i in sorted(drawn)]


def _comments() -> str:
    """What the file says before its numbers stays."""
    lines = paths.CALIBRATION.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("#"))
