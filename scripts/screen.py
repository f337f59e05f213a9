"""Rule screen: the tables of perf_db that timed something else than their kernel."""

import json
from pathlib import Path

from paretoserve.logs import job_log
from paretoserve.perfdb.screening_rule import screen
from paretoserve.records import write_text


def main(input, output, params, log) -> None:
    """Write `output.screening`, and the same to `params.screening` in perf_db."""
    with job_log(log[0]) as note:
        found = screen()["screened"]
        note(f"{len(found)} tables screened")
        lines = ",\n".join(json.dumps(entry) for entry in found)
        for file in (output.screening, params.screening):
            write_text(Path(file), f'{{"screened": [\n{lines}\n]}}\n')
