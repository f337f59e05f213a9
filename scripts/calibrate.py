"""Rule calibrate: measured runs to the times of engines and to held-out predictions."""

from pathlib import Path

from paretoserve.accuracy.fitting import fit
from paretoserve.logs import job_log
from paretoserve.records import write_table, write_text


def main(input, output, threads, log) -> None:
    """Write `output.calibration`, `output.held_out` and `output.fit`."""
    with job_log(log[0]) as note:
        found = fit(Path(input.measurements), threads, note)
        write_text(Path(output.calibration), found.calibration_yaml)
        write_table(found.held_out, Path(output.held_out), {"paretoserve.schema": "held_out"})
        write_text(Path(output.fit), found.text)
