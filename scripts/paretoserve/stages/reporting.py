"""Report: the comparison of a run's experiments as one HTML page, its tables, and slides' figures.

Everything shown is a table first (report/tables.py); page and figures are drawn from the tables.
"""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paretoserve import __version__
from paretoserve.experiments.plan import Ask
from paretoserve.paths import REPORT_SLIDES, REPORT_TABLES, RunPaths
from paretoserve.prices import Price, load_prices
from paretoserve.records import csv_bytes, read_table
from paretoserve.report import tables as shown
from paretoserve.report.baseline import baseline_files
from paretoserve.report.changes import changes
from paretoserve.report.choices import load_choices
from paretoserve.report.headline import headline
from paretoserve.report.page import render_page
from paretoserve.report.questions import questions
from paretoserve.report.slides import SLIDES
from paretoserve.settings import estimation


@dataclass(frozen=True)
class Report:
    """The page, the tables by name, and the figures (PNG) by name."""

    page: bytes
    tables: dict[str, pa.Table]
    slides: dict[str, bytes]

    def files(self, run: RunPaths) -> dict[Path, bytes]:
        """Content of the files that are not Parquet."""
        return {
            run.report_html: self.page,
            **{run.report_table(name, "csv"): csv_bytes(of) for name, of in self.tables.items()},
            **{run.slide(name): png for name, png in self.slides.items()},
        }


def report(
    ask: Ask,
    tables: Mapping[str, pa.Table],
    made_from: Mapping[str, Mapping[str, str]],
    with_files: Collection[str],
    baseline: Path | None = None,
) -> Report:
    """Report a run.

    Parameters
    ----------
    ask
        The run's experiments.
    tables
        Its `frontier`, `best`, `breakdown` and `status`.
    made_from
        Of each experiment the digests of its `question`, `perf_db` and `code`.
    with_files
        Experiments whose deployment files were written.
    baseline
        Folder of an earlier run with a report, to tell what changed.
    """
    choices, prices = load_choices(), load_prices()
    before = None if baseline is None else _read(baseline)
    found, detailed = _tables(ask, tables, made_from, with_files, choices, prices)
    found["changes"] = shown.as_table(changes(found, before or found))
    found = {name: found[name] for name in REPORT_TABLES}
    head = headline(ask.run, found, len(ask.refused), _priced(ask, prices)) | {
        "detailed": detailed,
        "simulated": estimation().simulation.told,
        "slides": REPORT_SLIDES,
        "equal": f"{shown.EQUAL:.0%}",
        "baseline": baseline.resolve().name if baseline else "",
        "made": f"Made by paretoserve {__version__}.",
    }
    page = render_page(found, head)
    return Report(page, found, {name: SLIDES[name](found) for name in REPORT_SLIDES})


def named_in(winners: str) -> set[str]:
    """Experiments whose files were written, by the text of winners.csv."""
    rows = csv.DictReader(io.StringIO(winners))
    return {row["winner"] for row in rows if row["files"] == row["winner"]}


def _read(baseline: Path) -> dict[str, pa.Table]:
    return {name: read_table(file) for name, file in baseline_files(baseline).items()}


def _tables(
    ask: Ask,
    tables: Mapping[str, pa.Table],
    made_from: Mapping[str, Mapping[str, str]],
    with_files: Collection[str],
    choices: Any,
    prices: Mapping[str, Price],
) -> tuple[dict[str, pa.Table], list[int]]:
    """All tables but `changes`, and the numbers of the detailed questions."""
    asked = shown.Asked(questions(ask.experiments))
    best, frontier = (shown.of_deployments(asked, tables[k], prices) for k in ("best", "frontier"))
    within = frontier.take(np.flatnonzero(frontier["meets_sla"])).plus(best)
    status = tables["status"]
    verdicts = shown.verdicts(asked, best, status)
    decisions = shown.decisions(verdicts)
    detailed = shown.detailed(verdicts, decisions, choices.detailed_questions)
    columns = {
        "experiments": shown.experiments(asked, status, made_from),
        "configurations": shown.configurations(best, with_files),
        "frontier": shown.frontier_points(frontier, detailed),
        "operators": shown.operators(asked, tables["breakdown"], detailed),
        "verdicts": verdicts,
        "decisions": decisions,
        "systems": shown.systems(verdicts),
        "modes": shown.modes(verdicts),
        "tpot_curves": shown.at_targets(asked, frontier, choices.tpot_targets_ms, "tpot_target_ms"),
        "user_speeds": shown.user_speeds(asked, frontier, choices.user_speeds),
        "fewest_gpus": shown.fewest_gpus(asked, within, choices.request_rates_per_s),
        "unanswered": shown.unanswered(asked, status, ask.refused),
    }
    return {name: shown.as_table(of) for name, of in columns.items()}, detailed.tolist()


def _priced(ask: Ask, prices: Mapping[str, Price]) -> dict[str, str]:
    """What the page says of the prices behind its costs."""
    used = dict.fromkeys(w.system for e in ask.experiments for w in e.workers)
    by_source: dict[tuple[str, str], list[str]] = {}
    for system in used:
        if system in prices:
            price = prices[system]
            told = f"{system} ${price.usd_per_gpu_hour:g}"
            by_source.setdefault((price.source, price.date), []).append(told)
    listed = (
        f"{', '.join(systems)} per GPU hour ({source}, read {date})"
        for (source, date), systems in by_source.items()
    )
    return {
        "prices": "; ".join(listed),
        "unpriced": _listed([system for system in used if system not in prices]),
    }


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
