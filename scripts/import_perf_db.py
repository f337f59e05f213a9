"""Rule import_perf_db: published wheels to perf_db/."""

from pathlib import Path

from paretoserve.logs import job_log
from paretoserve.perfdb.importer import import_wheels
from paretoserve.records import write_text


def main(input, output, params, log) -> None:
    """Import `input.wheels` into the folder `params.perf_db`, and write `output.receipt`."""
    with job_log(log[0]) as note:
        totals = import_wheels(map(Path, input.wheels), Path(params.perf_db), report=note).totals()
        lines = (f"{name}: {value}\n" for name, value in totals.items())
        write_text(Path(output.receipt), "".join(lines))
