"""The answer of a run as plain data, for `--json`."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from paretoserve.experiments.experiment import Experiment, plain

FRONTIER = ("tokens_per_s_per_user", "tokens_per_s_per_gpu", "ttft_ms", "tpot_ms", "rank")


def report_json(
    experiments: Sequence[Experiment], frontier: pa.Table, best: pa.Table, status: pa.Table
) -> dict[str, Any]:
    """Return the question, status, best deployments and frontier of each experiment.

    `chosen` is the experiment that serves most per GPU, None without an answer. Columns have the
    names of docs/data.md; those that a serving mode lacks are absent.
    """
    of_best, of_frontier = (
        _by_experiment(best),
        _by_experiment(frontier.select(["experiment", *FRONTIER])),
    )
    told = {row["experiment"]: row for row in status.to_pylist()}
    first = {name: rows[0]["tokens_per_s_per_gpu"] for name, rows in of_best.items()}
    return {
        "chosen": max(first, key=first.get, default=None),
        "experiments": [
            {
                **told[experiment.name],
                "question": plain(experiment),
                "best": of_best.get(experiment.name, []),
                "frontier": of_frontier.get(experiment.name, []),
            }
            for experiment in experiments
        ],
    }


def _by_experiment(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.sort_by("rank").to_pylist():
        filled = {name: value for name, value in row.items() if value is not None}
        rows.setdefault(filled.pop("experiment"), []).append(filled)
    return rows
