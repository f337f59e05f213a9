"""Rule pareto: the estimates of all groups of a run to its best deployments."""

from pathlib import Path

from paretoserve.experiments.plan import Ask
from paretoserve.logs import job_log
from paretoserve.provenance import identity
from paretoserve.records import read_table, write_table
from paretoserve.stages.answering import pareto


def main(input, output, params, log) -> None:
    """Write `output.frontier`, `output.best` and `output.status` for the run `params.ask`.

    `input.candidates` and `input.estimates` are those of `params.groups`, in that order.
    """
    with job_log(log[0]) as note:
        candidates, estimates = (
            dict(zip(params.groups, map(read_table, map(Path, files)), strict=True))
            for files in (input.candidates, input.estimates)
        )
        frontier, best, status = pareto(Ask.from_dict(params.ask), candidates, estimates)
        for schema, table in (("frontier", frontier), ("best", best), ("status", status)):
            made_from = identity(schema, params.ask, params.perf_db, params.code)
            write_table(table, Path(output.get(schema)), made_from)
        for row in status.to_pylist():
            note(f"{row['experiment']}: {row['status']} {row['reason']}".rstrip())
