"""All stages in one process, for the interactive command line.

The same functions in the same order as the rules; with a results folder, the same files.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from paretoserve.experiments.experiment import Experiment, Worker
from paretoserve.experiments.plan import Plan
from paretoserve.paths import ChunkPaths, RunPaths, WorkPaths
from paretoserve.progress import Advance, Part, silent
from paretoserve.provenance import identity, made_from, perf_db_digest, stage_digest
from paretoserve.records import write_bytes, write_table, write_text
from paretoserve.stages.enumerating import enumerate_candidates
from paretoserve.stages.estimating import estimate
from paretoserve.stages.gathering import ANSWERS, answer, gather


@dataclass(frozen=True)
class RunResult:
    """The tables of a run, and its folder if it was written."""

    frontier: pa.Table
    best: pa.Table
    breakdown: pa.Table
    status: pa.Table
    folder: Path | None


def run_in_process(
    plan: Plan,
    results: Path | None,
    advance: Advance = silent,
    baseline: Path | None = None,
    scope: str = "auto",
) -> RunResult:
    """Answer a plan; with `results`, leave the files that the workflow would.

    `advance` is called with the name of one of `parts_of(plan)` as its pieces are done. The report
    tells what changed since the earlier run in the folder `baseline`. `scope` says whose
    deployment files are written (`generate` in config/config.yaml).
    """
    candidates, estimates, operators = {}, {}, {}
    for group in plan.groups:
        candidates[group.id] = enumerate_candidates(group)
        estimates[group.id], operators[group.id] = estimate(group, candidates[group.id])
        if results is not None:
            files = WorkPaths(results, group.id)
            tables = perf_db_digest(work.worker for work in group.works)
            made = ("enumerate_candidates", group.digest, tables)
            _write(files.candidates, candidates[group.id], *made)
            made = ("estimate", group.digest, tables)
            _write(files.estimates, estimates[group.id], *made)
            _write(files.operators, operators[group.id], *made)
        advance("priced")
    answers = {}
    for chunk in plan.chunks:
        answers[chunk.id] = answer(
            chunk, candidates, estimates, lambda group, rows: operators[group].filter(rows)
        )
        advance("answered", len(chunk.experiments))
    whole = {
        name: gather(plan.ask, name, (part[name] for part in answers.values())) for name in ANSWERS
    }
    if results is None:
        return RunResult(**whole, folder=None)

    for chunk in plan.chunks:
        made = ("pareto", chunk.digest, perf_db_digest(_workers(chunk.experiments)))
        for name, table in answers[chunk.id].items():
            _write(ChunkPaths(results, chunk.id).table(name), table, *made)
    run, tables = RunPaths(results, plan.run), perf_db_digest(_workers(plan.ask.experiments))
    for name, table in whole.items():
        _write(run.table(name), table, "gather", plan.ask.digest, tables)
    write_text(run.plan, plan.division.encode())
    _conclude(plan, run, whole, answers, advance, baseline, scope)
    return RunResult(**whole, folder=run.folder)


def parts_of(plan: Plan, written: bool) -> dict[str, Part]:
    """What there is to do, with seconds as they were on 2 cores: only their ratio shows."""
    experiments = len(plan.ask.experiments)
    parts = {
        "priced": Part(len(plan.groups), "groups of workers", 0.25),
        "answered": Part(experiments, "experiments", 0.012),
    }
    if written:
        from paretoserve.stages.generating import ALL, scope_of

        if scope_of(plan.ask) == ALL:
            parts["written"] = Part(experiments, "experiments", 0.15)
    return parts


def _conclude(
    plan: Plan,
    run: RunPaths,
    whole: dict[str, pa.Table],
    answers: dict[str, dict[str, pa.Table]],
    advance: Advance,
    baseline: Path | None,
    scope: str,
) -> None:
    """Generate, compare, report; matplotlib takes a second, so only when files are wanted."""
    from paretoserve.stages.comparing import compare
    from paretoserve.stages.generating import ALL, WINNERS, generate, generate_winners, scope_of
    from paretoserve.stages.reporting import named_in, report

    scope, with_files = scope_of(plan.ask, scope), set()
    if scope == ALL:
        with_files = {experiment.name for experiment in plan.ask.experiments}
        for chunk in plan.chunks:
            mine = answers[chunk.id]
            for experiment in chunk.experiments:
                folder = run.experiment(experiment.name)
                generate(experiment, mine["frontier"], mine["best"], folder)
                advance("written")
    if scope == WINNERS:
        won = generate_winners(plan, whole["best"], lambda chunk, name: answers[chunk][name], run)
        write_text(run.winners, won)
        with_files = named_in(won)
    compared = compare(plan.ask, whole["frontier"], whole["best"], whole["status"])
    tables = perf_db_digest(_workers(plan.ask.experiments))
    _write(run.comparison, compared.table, "compare", plan.ask.digest, tables)
    write_text(run.report, compared.report)
    write_bytes(run.frontier_png, compared.png)
    told = report(plan.ask, whole, made_from(plan.ask.experiments), with_files, baseline)
    for name, table in told.tables.items():
        _write(run.report_table(name), table, "report", plan.ask.digest, tables)
    for file, content in told.files(run).items():
        write_bytes(file, content)


def _workers(experiments: Iterable[Experiment]) -> Iterator[Worker]:
    return (worker for experiment in experiments for worker in experiment.workers)


def _write(path: Path, table: pa.Table, stage: str, question: str, tables: str) -> None:
    write_table(table, path, identity(path.stem, question, tables, stage_digest(stage)))
