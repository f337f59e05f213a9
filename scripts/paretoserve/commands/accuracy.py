"""`paretoserve accuracy`: how well predictions meet measured deployments."""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from paretoserve.commands.common import ANSWERED, add_debug, add_mode


def add(doors: Any) -> None:
    """Add the command to the parser's choices."""
    door = add_mode(doors, "accuracy", "score predictions against measured deployments", "")
    door.add_argument(
        "--measurements",
        type=Path,
        metavar="FILE",
        help="CSV or Parquet of measured runs; docs/accuracy.md has the columns. Default: the runs "
        "that the calibration was fitted to, each predicted without its like.",
    )
    door.add_argument(
        "--cores",
        type=_cores,
        default=os.cpu_count() or 1,
        metavar="N",
        help="Processes to simulate with. Default: all cores.",
    )
    form = door.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="Print all figures as JSON.")
    form.add_argument("--markdown", action="store_true", help="Print docs/accuracy.md's tables.")
    add_debug(door)
    door.set_defaults(run=_run)


def _cores(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got '{text}', must be a whole number from 1")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    from paretoserve.accuracy import report

    if arguments.measurements is None:
        found = _held_out()
    else:
        found = {str(arguments.measurements): _scored(arguments.measurements, arguments.cores)}
    if arguments.json:
        print(json.dumps(_without_nan(found), indent=1, allow_nan=False))
    else:
        texts = (report.as_text(*item, markdown=arguments.markdown) for item in found.items())
        print("\n".join(texts), end="")
    return ANSWERED


def _without_nan(figures: Any) -> Any:
    """The figures with null where nothing is known: JSON has no NaN."""
    if isinstance(figures, dict):
        return {name: _without_nan(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [_without_nan(value) for value in figures]
    return None if isinstance(figures, float) and math.isnan(figures) else figures


def _scored(file: Path, cores: int) -> dict[str, Any]:
    from paretoserve.accuracy import report, running
    from paretoserve.accuracy.measurements import read_measurements
    from paretoserve.accuracy.predicting import Predictor
    from paretoserve.calibration import calibration
    from paretoserve.uncertainty import residuals

    numbers = calibration()
    runs, skipped = read_measurements(file, numbers.assumed.attention_dp_from)
    predictions = running.predict([(numbers, runs)], cores, Predictor())[0]
    return report.score(report.scored_runs(runs, skipped, predictions, residuals()))


def _held_out() -> dict[str, Any]:
    import pyarrow.parquet as pq

    from paretoserve import paths
    from paretoserve.accuracy import report
    from paretoserve.uncertainty import residuals

    table, known = pq.read_table(paths.HELD_OUT), residuals()
    titles = {"family": "Without their family", "model": "Without their model"}
    return {
        title: report.score(report.scored_held_out(table, known, scheme))
        for scheme, title in titles.items()
    }
