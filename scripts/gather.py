"""Rule gather: the answers of all chunks of a run to its tables."""

from pathlib import Path

from paretoserve.experiments.plan import Ask
from paretoserve.logs import job_log
from paretoserve.provenance import identity
from paretoserve.records import read_table, write_table
from paretoserve.stages.gathering import ANSWERS, gather


def main(ask: Ask, input, output, params, log) -> None:
    """Write the tables of a run, `output.frontier`, `.best`, ..., from those of its chunks."""
    with job_log(log[0]) as note:
        for schema in ANSWERS:
            parts = map(read_table, map(Path, input.get(schema)))
            table = gather(ask, schema, parts)
            made_from = identity(schema, params.ask, params.perf_db, params.code)
            write_table(table, Path(output.get(schema)), made_from)
            note(f"{schema}: {table.num_rows} rows")
