"""Compare: which experiment of a run serves most within its SLA, as table, text and figure."""

from dataclasses import dataclass

import pyarrow as pa

from paretoserve import schemas
from paretoserve.experiments.plan import Ask
from paretoserve.report.plots import pareto_png
from paretoserve.report.terminal import render_report


@dataclass(frozen=True)
class Comparison:
    """The COMPARISON table, the report as text, and the frontier figure (PNG)."""

    table: pa.Table
    report: str
    png: bytes


def compare(ask: Ask, frontier: pa.Table, best: pa.Table, status: pa.Table) -> Comparison:
    """Compare the experiments of a run by the throughput of their best deployments."""
    return Comparison(
        table=_table(best, status),
        report=render_report(ask.experiments, frontier, best, status),
        png=pareto_png(ask.experiments, frontier, best),
    )


def _table(best: pa.Table, status: pa.Table) -> pa.Table:
    first = {row["experiment"]: row for row in best.to_pylist() if row["rank"] == 1}
    most = max((row["tokens_per_s_per_gpu"] for row in first.values()), default=None)
    chosen = next((e for e, row in first.items() if row["tokens_per_s_per_gpu"] == most), None)
    rows = []
    for one in status.to_pylist():
        answer = first.get(one["experiment"], {})
        throughput = answer.get("tokens_per_s_per_gpu")
        rows.append(
            {name: one.get(name, answer.get(name)) for name in schemas.COMPARISON.names}
            | {
                "chosen": one["experiment"] == chosen,
                "ratio_to_best": throughput / most if throughput else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=schemas.COMPARISON)
