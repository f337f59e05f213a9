"""Rule enumerate: the works of a group to its candidates."""

from pathlib import Path

from paretoserve.experiments.plan import Group
from paretoserve.logs import job_log
from paretoserve.provenance import identity
from paretoserve.records import write_table
from paretoserve.stages.enumerating import enumerate_candidates


def main(group: Group, output, params, log) -> None:
    """Write `output.candidates` for a group."""
    with job_log(log[0]) as note:
        candidates = enumerate_candidates(group)
        made_from = identity("candidates", params.work, params.perf_db, params.code)
        write_table(candidates, Path(output.candidates), made_from)
        note(f"{candidates.num_rows} candidates")
