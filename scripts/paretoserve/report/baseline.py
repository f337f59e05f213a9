"""An earlier run that a report is compared with: which of its files are read."""

from pathlib import Path

from paretoserve.errors import InputError
from paretoserve.paths import RunPaths

COMPARED = ("experiments", "configurations", "verdicts")


def baseline_files(folder: Path) -> dict[str, Path]:
    """Return the tables (COMPARED) of an earlier run's report, by name.

    InputError where the folder holds no report.
    """
    run = RunPaths(folder.parent, folder.name)
    files = {name: run.report_table(name) for name in COMPARED}
    for file in files.values():
        if not file.is_file():
            raise InputError(
                f"baseline: '{folder}' is no folder of a run with a report: {file} is missing"
            )
    return files
