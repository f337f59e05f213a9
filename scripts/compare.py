"""Rule compare: the deployments of a run to its comparison, report and figure."""

from pathlib import Path

from paretoserve.experiments.plan import Ask
from paretoserve.logs import job_log
from paretoserve.provenance import identity
from paretoserve.records import read_table, write_bytes, write_table, write_text
from paretoserve.stages.comparing import FRONTIER_COLUMNS, compare


def main(ask: Ask, input, output, params, log) -> None:
    """Write `output.comparison`, `output.report` and `output.frontier_png` of a run."""
    with job_log(log[0]) as note:
        frontier = read_table(Path(input.frontier), columns=FRONTIER_COLUMNS)
        best, status = (read_table(Path(file)) for file in (input.best, input.status))
        comparison = compare(ask, frontier, best, status)
        made_from = identity("comparison", params.ask, params.perf_db, params.code)
        write_table(comparison.table, Path(output.comparison), made_from)
        write_text(Path(output.report), comparison.report)
        write_bytes(Path(output.frontier_png), comparison.png)
        note(f"{comparison.table.num_rows} experiments compared")
