"""Rule report: the tables of a run to its comparison report."""

from pathlib import Path

from paretoserve.experiments.plan import Ask
from paretoserve.logs import job_log
from paretoserve.paths import RunPaths
from paretoserve.provenance import identity, made_from
from paretoserve.records import read_table, write_bytes, write_table
from paretoserve.report.tables import FRONTIER_COLUMNS
from paretoserve.stages.reporting import named_in, report


def main(ask: Ask, input, output, params, log) -> None:
    """Write the report of a run into the folder in which `output.page` lies.

    `params.baseline` is the folder of an earlier run, or None. Experiments with files are all,
    if `params.all_have_files`, or those that `input.winners` names.
    """
    with job_log(log[0]) as note:
        page = Path(output.page)
        run = RunPaths(page.parent.parent, page.parent.name)
        tables = {
            name: read_table(Path(input.get(name))) for name in ("best", "breakdown", "status")
        }
        tables["frontier"] = read_table(Path(input.frontier), list(FRONTIER_COLUMNS))
        baseline = None if params.baseline is None else Path(params.baseline)
        with_files = {one.name for one in ask.experiments} if params.all_have_files else set()
        for file in input.winners:
            with_files |= named_in(Path(file).read_text(encoding="utf-8"))
        told = report(ask, tables, made_from(ask.experiments), with_files, baseline)
        for name, table in told.tables.items():
            identified = identity(name, params.ask, params.perf_db, params.code)
            write_table(table, run.report_table(name), identified)
        for file, content in told.files(run).items():
            write_bytes(file, content)
        note(f"{page}: {len(told.page) / 1e6:.1f} MB, {len(ask.experiments)} experiments")
