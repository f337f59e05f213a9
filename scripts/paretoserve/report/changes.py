"""What changed against an earlier run: which winners, by how much, and because of which input."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from paretoserve.report.tables import Columns

# Columns of `experiments` that say what was asked: where a digest differs, these say how.
ASKED = (
    "serving_mode model isl osl ttft_limit_ms tpot_limit_ms sla_probability_asked total_gpus "
    "system engine precision mtp wide_ep"
).split()
INPUTS = {"question": "question", "perf_db": "measurements", "code": "code"}
SAME = 1e-5  # relative; tables hold six digits


def changes(now: Mapping[str, pa.Table], before: Mapping[str, pa.Table]) -> Columns:
    """Compare two runs' tables (those of `baseline_files`), experiment by experiment, by name.

    One row per experiment that is new, gone, or has another best deployment or throughput.
    """
    new, old = (_by_experiment(tables) for tables in (now, before))
    rows = []
    for name in dict.fromkeys((*new, *old)):
        one, other = new.get(name), old.get(name)
        if one and other and not _differs(one, other):
            continue
        rows.append(_row(name, one, other))
    columns = (
        "experiment question change because before_deployment now_deployment "
        "before_tokens_per_s_per_gpu now_tokens_per_s_per_gpu now_over_before "
        "before_winner now_winner"
    ).split()
    return {column: [row.get(column) for row in rows] for column in columns}


def _by_experiment(tables: Mapping[str, pa.Table]) -> dict[str, dict[str, Any]]:
    """What is known of each experiment: what it asked, its best row, who won its question."""
    winner = {row["question"]: row["experiment"] for row in _rows(tables["verdicts"], "experiment")}
    first = {
        row["experiment"]: row
        for row in _rows(
            tables["configurations"], "rank", "deployment", "tokens_per_s_per_gpu", "experiment"
        )
        if row["rank"] == 1
    }
    told = {}
    digests = (f"{name}_digest" for name in INPUTS)
    for row in _rows(tables["experiments"], "experiment", *ASKED, *digests):
        best = first.get(row["experiment"], {})
        told[row["experiment"]] = row | {
            "deployment": best.get("deployment"),
            "tokens_per_s_per_gpu": best.get("tokens_per_s_per_gpu"),
            "winner": winner.get(row["question"]),
        }
    return told


def _rows(table: pa.Table, *columns: str) -> list[dict[str, Any]]:
    return table.select(["question", *columns]).to_pylist()


def _differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    rates = [row["tokens_per_s_per_gpu"] or 0.0 for row in (one, other)]
    return any(one[name] != other[name] for name in ("deployment", "winner")) or abs(
        rates[0] - rates[1]
    ) > SAME * max(rates)


def _row(name: str, one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> Columns:
    now, before = one or {}, other or {}
    rates = [row.get("tokens_per_s_per_gpu") for row in (now, before)]
    return {
        "experiment": name,
        "question": now.get("question"),
        "change": _change(one, other),
        "because": _because(one, other) if one and other else "",
        **{f"now_{k}": now.get(k) for k in ("deployment", "tokens_per_s_per_gpu", "winner")},
        **{f"before_{k}": before.get(k) for k in ("deployment", "tokens_per_s_per_gpu", "winner")},
        "now_over_before": rates[0] / rates[1] if all(rates) else None,
    }


def _change(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    if other is None:
        return "new experiment"
    if one is None:
        return "no longer asked"
    if (one["deployment"] is None) != (other["deployment"] is None):
        return "no answer any more" if one["deployment"] is None else "has an answer now"
    if one["winner"] != other["winner"]:
        return "another winner"
    return (
        "another deployment" if one["deployment"] != other["deployment"] else "another throughput"
    )


def _because(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The inputs that differ; of a question, the fields."""
    told = []
    for name, word in INPUTS.items():
        if one[f"{name}_digest"] == other[f"{name}_digest"]:
            continue
        if name == "question":
            fields = [
                f"{field} {_short(other[field])} → {_short(one[field])}"
                for field in ASKED
                if one[field] != other[field]
            ]
            word += f" ({', '.join(fields) or 'search space or corrections'})"
        told.append(word)
    return ", ".join(told) or "another experiment of the same question"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
