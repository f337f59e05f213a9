"""Compare: which experiment of a run serves most within its SLA, as table, text and figure."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import schemas
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.plan import Ask
from paretoserve.report.plots import pareto_png
from paretoserve.report.summary import render_run

MOST_DRAWN = 10
MOST_IN_FULL = 50  # of more experiments, the figure shows the MOST_DRAWN best
# What of the frontier is shown.
FRONTIER_COLUMNS = ["experiment", "rank", "tokens_per_s_per_user", "tokens_per_s_per_gpu"]


@dataclass(frozen=True)
class Comparison:
    """The COMPARISON table, the report as text, and the frontier figure (PNG)."""

    table: pa.Table
    report: str
    png: bytes


def compare(ask: Ask, frontier: pa.Table, best: pa.Table, status: pa.Table) -> Comparison:
    """Compare the experiments of a run by the throughput of their best deployments.

    `frontier` needs the FRONTIER_COLUMNS only. Of many experiments the figure shows the best.
    """
    table = _table(best, status)
    many = len(ask.experiments) > MOST_IN_FULL
    report = render_run(ask.experiments, frontier, best, status)
    drawn = _most(ask, table, MOST_DRAWN) if many else ask.experiments
    return Comparison(table=table, report=report, png=pareto_png(drawn, frontier, best))


def _most(ask: Ask, comparison: pa.Table, count: int) -> list[Experiment]:
    """The experiments that serve most, in the order asked; all have a frontier."""
    by_throughput = [("tokens_per_s_per_gpu", "descending")]
    first = comparison.sort_by(by_throughput)["experiment"][:count].to_pylist()
    return [one for one in ask.experiments if one.name in set(first)]


def _table(best: pa.Table, status: pa.Table) -> pa.Table:
    first = best.filter(pc.equal(best["rank"], 1))
    place = pc.index_in(
        status["experiment"].cast(pa.string()), first["experiment"].cast(pa.string())
    )
    answers = first.take(place)
    columns = {
        name: status[name] if name in status.column_names else answers[name]
        for name in schemas.COMPARISON.names
        if name not in ("chosen", "ratio_to_best")
    }
    throughput = answers["tokens_per_s_per_gpu"]
    most = pc.max(throughput)
    chosen = pc.fill_null(pc.equal(throughput, most), False).to_numpy()
    chosen[np.flatnonzero(chosen)[1:]] = False  # of equals the first
    columns |= {"chosen": pa.array(chosen), "ratio_to_best": pc.divide(throughput, most)}
    return pa.table(columns).select(schemas.COMPARISON.names).cast(schemas.COMPARISON)
