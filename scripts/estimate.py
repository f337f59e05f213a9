"""Rule estimate: the candidates of a group to their latencies."""

from pathlib import Path

from paretoserve.experiments.plan import Group
from paretoserve.logs import job_log
from paretoserve.provenance import identity
from paretoserve.records import read_table, write_table
from paretoserve.stages.estimating import estimate


def main(group: Group, input, output, params, log) -> None:
    """Write `output.estimates` and `output.operators` for a group."""
    with job_log(log[0]) as note:
        candidates = read_table(Path(input.candidates))
        estimates, operators = estimate(group, candidates)
        for schema, table in (("estimates", estimates), ("operators", operators)):
            made_from = identity(schema, params.work, params.perf_db, params.code)
            write_table(table, Path(output.get(schema)), made_from)
        note(f"{candidates.num_rows} candidates, {estimates.num_rows} estimates")
