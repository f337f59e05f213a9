"""What the report says first: the decision in a title, a sentence and a few figures."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

MODE_WORDS = {"agg": "aggregated", "disagg": "disaggregated"}


def headline(
    run: str, tables: Mapping[str, pa.Table], refused: int, priced: Mapping[str, str]
) -> dict[str, Any]:
    """Return `title`, `sentence`, `tiles`, `asked` and the notes of the page.

    `refused` experiments could not be asked.
    """
    decisions = tables["decisions"].to_pylist()
    head = _one(decisions[0], tables) if len(decisions) == 1 else _many(tables, refused)
    return head | {
        "run": run,
        "asked": f"{run}: {_asked(tables)}",
        "single": tables["verdicts"].num_rows == 1,
        **priced,
        "changed": _changed(tables),
    }


def _one(row: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Of a single need: what to run."""
    verdict = tables["verdicts"].slice(row["question"], 1).to_pylist()[0]
    if not row["answered"]:
        many = tables["verdicts"].num_rows
        return {
            "title": f"Nothing serves {row['model']} within these limits",
            "sentence": verdict["verdict"]
            if many == 1
            else f"None of {many} options has an answer.",
            "tiles": [],
        }
    mode = MODE_WORDS[row["mode"]]
    sentence = f"{row['deployment']}. {_sentence(verdict['verdict'])}"
    if row["times_next"] is not None:
        sentence += (
            f" It serves {row['times_next']:.2f} times as much as the next of {row['options']} "
            f"options, {row['next_system']} ({row['next_engine']}, {row['next_mode']})."
        )
    tiles = [
        _tile(
            "tokens_per_s_per_gpu",
            "Throughput",
            f"{row['tokens_per_s_per_gpu']:.1f}",
            "tokens/s/gpu",
        ),
        _tile(
            "tokens_per_s_per_user", "One user", f"{row['tokens_per_s_per_user']:.1f}", "tokens/s"
        ),
        _tile("ttft_ms", f"TTFT, limit {row['ttft_limit_ms']:g} ms", f"{row['ttft_ms']:.1f}", "ms"),
        _tile("tpot_ms", f"TPOT, limit {row['tpot_limit_ms']:g} ms", f"{row['tpot_ms']:.2f}", "ms"),
        _tile("gpus_used", "GPUs used", f"{verdict['gpus_used']:.0f}", f"of {row['total_gpus']}"),
        _tile("request_rate_per_s", "Load", f"{verdict['request_rate_per_s']:.1f}", "requests/s"),
    ]
    if row["usd_per_million_tokens"] is not None:
        usd = f"${row['usd_per_million_tokens']:.2f}"
        tiles.append(_tile("usd_per_million_tokens", "Cost", usd, "per million output tokens"))
    return {
        "title": f"Serve {row['model']} {mode} on {row['system']}",
        "sentence": sentence,
        "tiles": tiles,
    }


def _many(tables: Mapping[str, pa.Table], refused: int) -> dict[str, Any]:
    """Of several needs: how many are met, and who wins."""
    decisions, verdicts = tables["decisions"], tables["verdicts"]
    answered = [row for row in decisions.to_pylist() if row["answered"]]
    total = decisions.num_rows
    ratio = verdicts["disagg_over_agg"].drop_null().to_numpy()
    wins = int((ratio > 1).sum())
    systems = Counter(row["system"] for row in answered)
    cheapest = Counter(row["cheapest_system"] for row in answered if row["cheapest_system"])
    compared = len(set(verdicts["system"].to_pylist())) > 1
    told = []
    if len(ratio):
        told.append(f"Disagg beats agg in {wins} of the {len(ratio)} questions that both answer.")
    if compared and systems:
        told.append(f"Most tokens/s per GPU: {_counted(systems, total)}.")
    if compared and cheapest:
        told.append(f"Cheapest per token: {_counted(cheapest, total)}.")
    experiments = tables["experiments"]["status"].to_pylist()
    tiles = [
        _tile("needs", "Needs met", f"{len(answered)}", f"of {total}"),
        _tile("questions", "Options compared", f"{verdicts.num_rows}", ""),
        _tile(
            "experiments",
            "Experiments answered",
            f"{experiments.count('ok')}",
            f"of {len(experiments) + refused}",
        ),
    ]
    if len(ratio):
        tiles += [
            _tile("disagg_wins", "Disagg ahead of agg", f"{wins}", f"of {len(ratio)}"),
            _tile("disagg_over_agg", "Disagg / agg, median", f"{np.median(ratio):.2f}", "times"),
        ]
    return {
        "title": f"{len(answered)} of {total} needs have a deployment within their SLA",
        "sentence": " ".join(told),
        "tiles": tiles,
    }


def _counted(counts: Counter, total: int) -> str:
    return ", ".join(f"{name} for {n}" for name, n in counts.most_common(3)) + f" of {total} needs"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _tile(name: str, label: str, value: str, unit: str) -> dict[str, str]:
    return {"name": name, "label": label, "value": value, "unit": unit}


def _asked(tables: Mapping[str, pa.Table]) -> str:
    """What the run spans, a few words for each thing; many are only counted."""
    facts = tables["verdicts"]
    loads = list(
        dict.fromkeys(zip(facts["isl"].to_pylist(), facts["osl"].to_pylist(), strict=True))
    )
    parts = [
        *(_several(name, facts[name].to_pylist()) for name in ("model", "system", "engine")),
        _several("ISL / OSL", [f"{isl} / {osl}" for isl, osl in loads]),
    ]
    return "; ".join(parts) + "."


def _several(what: str, names: list[str], most: int = 6) -> str:
    distinct = list(dict.fromkeys(names))
    if len(distinct) > most:
        return f"{what}: {len(distinct)}"
    return f"{what} {', '.join(distinct)}"


def _changed(tables: Mapping[str, pa.Table]) -> str:
    counts = Counter(tables["changes"]["change"].to_pylist())
    told = [f"{n} × {change}" for change, n in counts.most_common()]
    unchanged = tables["experiments"].num_rows - sum(
        n for change, n in counts.items() if change != "no longer asked"
    )
    return "; ".join([*told, f"{unchanged} unchanged"]) + "."
