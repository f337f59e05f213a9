"""All stages in one process, for the interactive command line.

The same functions in the same order as the rules; with a results folder, the same files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from paretoserve.experiments.plan import Plan
from paretoserve.paths import RunPaths, WorkPaths
from paretoserve.provenance import identity, perf_db_digest, stage_digest
from paretoserve.records import write_table, write_text, write_whole
from paretoserve.stages.answering import pareto
from paretoserve.stages.enumerating import enumerate_candidates
from paretoserve.stages.estimating import estimate


@dataclass(frozen=True)
class RunResult:
    """The tables of a run, and its folder if it was written."""

    frontier: pa.Table
    best: pa.Table
    status: pa.Table
    folder: Path | None


def run_in_process(plan: Plan, results: Path | None) -> RunResult:
    """Answer a plan; with `results`, leave the files that the workflow would."""
    candidates, estimates, operators = {}, {}, {}
    for group in plan.groups:
        candidates[group.id] = enumerate_candidates(group)
        estimates[group.id], operators[group.id] = estimate(group, candidates[group.id])
    frontier, best, status = pareto(plan.ask, candidates, estimates)
    if results is None:
        return RunResult(frontier, best, status, None)

    for group in plan.groups:
        files = WorkPaths(results, group.id)
        spec = plan.work_spec(group.id)
        tables = perf_db_digest(work.worker for work in group.works)
        _write(files.candidates, candidates[group.id], "enumerate_candidates", spec, tables)
        _write(files.estimates, estimates[group.id], "estimate", spec, tables)
        _write(files.operators, operators[group.id], "estimate", spec, tables)
    run, spec = RunPaths(results, plan.run), plan.ask_spec()
    tables = perf_db_digest(w for e in plan.ask.experiments for w in e.workers)
    _write(run.frontier, frontier, "pareto", spec, tables)
    _write(run.best, best, "pareto", spec, tables)
    _write(run.status, status, "pareto", spec, tables)
    _conclude(plan, run, frontier, best, status, spec, tables)
    return RunResult(frontier, best, status, run.folder)


def _conclude(
    plan: Plan,
    run: RunPaths,
    frontier: pa.Table,
    best: pa.Table,
    status: pa.Table,
    spec: dict[str, Any],
    tables: str,
) -> None:
    """Generate and compare; matplotlib takes a second to start, so only when files are wanted."""
    from paretoserve.stages.comparing import compare
    from paretoserve.stages.generating import generate

    for experiment in plan.ask.experiments:
        generate(experiment, frontier, best, run.experiment(experiment.name))
    compared = compare(plan.ask, frontier, best, status)
    _write(run.comparison, compared.table, "compare", spec, tables)
    write_text(run.report, compared.report)
    write_whole(run.frontier_png, lambda stream: stream.write(compared.png))


def _write(path: Path, table: pa.Table, stage: str, question: dict[str, Any], tables: str) -> None:
    write_table(table, path, identity(path.stem, question, tables, stage_digest(stage)))
