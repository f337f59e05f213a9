"""The accuracy of predictions as data, as text and as the page docs/accuracy.md."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from prettytable import PrettyTable, TableStyle

from paretoserve.accuracy.measurements import DASHBOARD_LOADS, VARYING, Measurement, Skipped
from paretoserve.accuracy.predicting import Prediction
from paretoserve.accuracy.scoring import (
    concurrency_bucket,
    decisions,
    errors,
    interval_coverage,
    slices,
)
from paretoserve.uncertainty import Residuals, intervals

TARGET_TPOT_MS = 20.0  # of the decisions
LEAST_ROWS = 10  # of a slice that is shown
SLICED = ("backend", "mode", "system", "model", "precision", "clients", "deployment")


@dataclass(frozen=True)
class Scored:
    """Runs with what was predicted of them; arrays (N,) of `columns`, NaN where there is nothing.

    columns: backend, mode, system, model, precision, clients (a bucket), deployment (told or not),
    layout, isl, osl, concurrency, gpus, reason; measured and predicted ttft_ms and tpot_ms; their
    low and high ends, and keeps: the probability that tpot is within TARGET_TPOT_MS.
    """

    columns: Mapping[str, np.ndarray]
    skipped: Sequence[Skipped] = ()

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def rate(self, which: str) -> np.ndarray:
        """tokens/s/gpu that ttft and tpot make of the closed loop; NaN where GPUs are not known."""
        osl = self["osl"] * self["length_share"]
        answer_ms = self[f"{which}_ttft_ms"] + self[f"{which}_tpot_ms"] * (osl - 1)
        with np.errstate(divide="ignore"):
            return (
                1e3
                * self["concurrency"]
                * osl
                / answer_ms
                / np.where(self["gpus"] > 0, self["gpus"], np.nan)
            )


def scored_runs(
    runs: Sequence[Measurement],
    skipped: Sequence[Skipped],
    predictions: Sequence[Prediction],
    known: Residuals,
) -> Scored:
    """Score predictions by the calibration that is in force."""
    columns = {
        name: np.array([str(getattr(run, name)) for run in runs])
        for name in ("backend", "mode", "system", "model", "precision", "layout")
    }
    for name in ("isl", "osl", "concurrency", "gpus"):
        columns[name] = np.array([getattr(run, name) for run in runs])
    columns["settled"] = np.array([run.settled for run in runs])
    columns["reason"] = np.array([one.reason for one in predictions], object)
    for name in ("ttft_ms", "tpot_ms"):
        columns[f"measured_{name}"] = np.array([getattr(run, name) for run in runs])
        columns[f"predicted_{name}"] = np.array([getattr(one, name) for one in predictions])
    return Scored(columns | _derived(columns) | _stated(columns, known), skipped)


def scored_held_out(table: pa.Table, known: Residuals, scheme: str) -> Scored:
    """Score held-out predictions; intervals of a fold come from the residuals of the others."""
    names = {"backend", "mode", "system", "model", "precision", "layout", "reason"}
    columns = {name: np.array(table[name].to_pylist()) for name in names}
    for name in ("isl", "osl", "concurrency", "gpus", "settled", "fold"):
        columns[name] = table[name].to_numpy(zero_copy_only=False)
    for name in ("ttft_ms", "tpot_ms"):
        columns[f"measured_{name}"] = table[name].to_numpy().astype(float)
        columns[f"predicted_{name}"] = table[f"{scheme}_{name}"].to_numpy().astype(float)
    columns |= _derived(columns)
    stated: dict[str, np.ndarray] = {}
    for fold in np.unique(columns["fold"]):
        mine = columns["fold"] == fold
        part = {name: values[mine] for name, values in columns.items()}
        for name, values in _stated(part, known.without(known.fold == fold)).items():
            stated.setdefault(name, np.full(len(mine), np.nan))[mine] = values
    return Scored(columns | stated)


def _derived(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    loads = zip(columns["isl"].tolist(), columns["osl"].tolist(), strict=True)
    varying = np.array([load in DASHBOARD_LOADS for load in loads])
    return {
        "length_share": np.where(varying, sum(VARYING) / 2, 1.0),
        "clients": np.array([concurrency_bucket(c) for c in columns["concurrency"].tolist()]),
        "deployment": np.where(columns["settled"], "told", "not told"),
    }


def _stated(columns: Mapping[str, np.ndarray], known: Residuals) -> dict[str, np.ndarray]:
    found = intervals(
        known,
        columns["backend"],
        columns["mode"],
        columns["settled"],
        columns["concurrency"],
        columns["predicted_ttft_ms"],
        columns["predicted_tpot_ms"],
        tpot_limit_ms=TARGET_TPOT_MS,
    )
    ends = {
        f"{name}_ms": getattr(found, f"{name}_ms")
        for name in ("ttft_low", "ttft_high", "tpot_low", "tpot_high")
    }
    return ends | {"keeps": found.sla_probability}


def score(scored: Scored) -> dict[str, Any]:
    """All figures: `rows`, `coverage`, `reasons`, `overall`, `slices`, `decisions`."""
    rows = len(scored["backend"]) + len(scored.skipped)
    answered = np.isfinite(scored["predicted_tpot_ms"])
    reasons = Counter(scored["reason"][~answered].tolist())
    reasons.update(one.reason for one in scored.skipped)
    everything = np.ones(len(answered), bool)
    return {
        "rows": rows,
        "coverage": float(answered.sum() / rows) if rows else 0.0,
        "reasons": dict(reasons.most_common()),
        "overall": _figures(scored, everything),
        "slices": [
            {"by": by, "value": value, **_figures(scored, mask)}
            for by, value, mask in _slices(scored)
        ],
        "decisions": {
            name: asdict(_decided(scored, probability))
            for name, probability in (
                ("best estimate", None),
                ("2 in 3 sure", 2 / 3),
                ("90 % sure", 0.9),
            )
        },
    }


def _slices(scored: Scored) -> Iterable[tuple[str, str, np.ndarray]]:
    columns = {name: scored[name] for name in SLICED}
    columns["precision"] = np.where(columns["precision"] == "", "not told", columns["precision"])
    both = zip(scored["backend"].tolist(), scored["mode"].tolist(), strict=True)
    columns["backend x mode"] = np.array([" ".join(pair) for pair in both])
    return slices(columns, LEAST_ROWS)


def _figures(scored: Scored, mask: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {"runs": int(mask.sum())}
    for name in ("tpot", "ttft"):
        measured = scored[f"measured_{name}_ms"][mask]
        found[name] = asdict(errors(scored[f"predicted_{name}_ms"][mask], measured))
        found[name]["interval"] = interval_coverage(
            scored[f"{name}_low_ms"][mask], scored[f"{name}_high_ms"][mask], measured
        )
    rate = errors(scored.rate("predicted")[mask], scored.rate("measured")[mask])
    found["tokens_per_s_per_gpu"] = asdict(rate)
    return found


def _decided(scored: Scored, probability: float | None):
    if probability is None:
        keeps = scored["predicted_tpot_ms"] <= TARGET_TPOT_MS
    else:
        keeps = scored["keeps"] >= probability
    names = ("model", "system", "backend", "precision", "mode", "isl", "osl")
    workload = list(zip(*(scored[name].tolist() for name in names), strict=True))
    return decisions(
        workload,
        scored["layout"].tolist(),
        keeps,
        scored.rate("predicted"),
        scored["measured_tpot_ms"],
        scored.rate("measured"),
        TARGET_TPOT_MS,
    )


def as_text(title: str, figures: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The figures as tables for a terminal or a page."""
    lines = [
        f"{figures['rows']} runs, {_percent(figures['coverage'])} of them predicted",
        *(f"- not predicted, {count}: {reason}" for reason, count in figures["reasons"].items()),
    ]
    head = f"### {title}" if markdown else title
    parts = [head, "\n".join(lines), _table(figures, markdown), _decision_table(figures, markdown)]
    return "\n\n".join(parts) + "\n"


def _table(figures: Mapping[str, Any], markdown: bool) -> str:
    table = PrettyTable(
        [
            "slice",
            "runs",
            *(f"{n} {w}" for n in ("tpot", "ttft") for w in ("med", "mean", "bias", "in 90%")),
            "tok/s/gpu",
        ],
        align="r",
    )
    table.align["slice"] = "l"
    if markdown:
        table.set_style(TableStyle.MARKDOWN)
    for one in ({"by": "all", "value": "", **figures["overall"]}, *figures["slices"]):
        row = [f"{one['by']} {one['value']}".strip(), one["runs"]]
        for name in ("tpot", "ttft"):
            errors_of = one[name]
            row += [_percent(errors_of["median"]), _percent(errors_of["mean"])]
            row += [_percent(errors_of["bias"], signed=True), _percent(errors_of["interval"])]
        table.add_row([*row, _percent(one["tokens_per_s_per_gpu"]["median"])])
    return str(table)


def _decision_table(figures: Mapping[str, Any], markdown: bool) -> str:
    table = PrettyTable(
        [
            f"best at tpot <= {TARGET_TPOT_MS:g} ms",
            "workloads",
            "answered",
            "violations",
            "same layout",
            "given away",
        ],
        align="r",
    )
    if markdown:
        table.set_style(TableStyle.MARKDOWN)
    for name, one in figures["decisions"].items():
        shares = (_percent(one[key]) for key in ("violations", "same_layout", "given_away"))
        table.add_row([name, one["workloads"], one["answered"], *shares])
    return str(table)


def _percent(share: float, signed: bool = False) -> str:
    if not np.isfinite(share):
        return "-"
    return f"{100 * share:+.1f}%" if signed else f"{100 * share:.1f}%"
