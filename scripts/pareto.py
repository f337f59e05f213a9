"""Rule pareto: the estimates of a chunk's groups to the best deployments of its experiments."""

from pathlib import Path

from paretoserve.experiments.plan import Chunk
from paretoserve.logs import job_log
from paretoserve.provenance import identity
from paretoserve.records import read_table, write_table
from paretoserve.stages.gathering import answer


def main(chunk: Chunk, input, output, params, log) -> None:
    """Write the tables that answer the experiments of a chunk: `output.frontier`, `.best`, ...

    `input.candidates`, `.estimates` and `.operators` are those of `chunk.groups`, in that order.
    """
    with job_log(log[0]) as note:
        candidates, estimates = (
            dict(zip(chunk.groups, map(read_table, map(Path, files)), strict=True))
            for files in (input.candidates, input.estimates)
        )
        operators = dict(zip(chunk.groups, map(Path, input.operators), strict=True))
        tables = answer(
            chunk,
            candidates,
            estimates,
            lambda group, rows: read_table(operators[group], rows=rows),
        )
        for schema, table in tables.items():
            made_from = identity(schema, params.chunk, params.perf_db, params.code)
            write_table(table, Path(output.get(schema)), made_from)
        for row in tables["status"].to_pylist():
            note(f"{row['experiment']}: {row['status']} {row['reason']}".rstrip())
