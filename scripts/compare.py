"""Rule compare: the deployments of a run to its comparison, report and figure."""

from pathlib import Path

from paretoserve.experiments.plan import Ask
from paretoserve.logs import job_log
from paretoserve.provenance import identity
from paretoserve.records import read_table, write_table, write_text, write_whole
from paretoserve.stages.comparing import compare


def main(input, output, params, log) -> None:
    """Write `output.comparison`, `output.report` and `output.frontier_png` of `params.ask`."""
    with job_log(log[0]) as note:
        tables = (read_table(Path(file)) for file in (input.frontier, input.best, input.status))
        comparison = compare(Ask.from_dict(params.ask), *tables)
        made_from = identity("comparison", params.ask, params.perf_db, params.code)
        write_table(comparison.table, Path(output.comparison), made_from)
        write_text(Path(output.report), comparison.report)
        write_whole(Path(output.frontier_png), lambda stream: stream.write(comparison.png))
        note(f"{comparison.table.num_rows} experiments compared")
