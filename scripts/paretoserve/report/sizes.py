"""The answers of `paretoserve size` as a table, from their plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretoserve.models.catalog import find_model
from paretoserve.report.terminal import (
    NO_TERMINAL_WIDTH,
    Cells,
    Style,
    deployment_name,
    stacked_tables,
    wrap,
)

Data = Mapping[str, Any]


def render_sizes(
    heading: str,
    model_name: str,
    found: Sequence[Data],
    *,
    width: int | None = NO_TERMINAL_WIDTH,
    color: bool = False,
) -> str:
    """Return the table and what could not be answered, ending in a newline.

    `width` and `color` are as of the report.
    """
    answered = [one for one in found if one["deployment"]]
    lines = [wrap(Style(color).bold(heading), width)]
    if answered:
        is_moe = find_model(model_name).is_moe
        costs = any(one["price"] for one in answered)
        cells = [_cells(one, is_moe, costs) for one in answered]
        systems = [{"system": one["system"], "mode": one["serving_mode"]} for one in answered]
        groups = [list(group) for group in zip(*cells, strict=True)]
        lines += stacked_tables(systems, groups, width)
    told: dict[str, list[str]] = {}
    for one in found:
        if not one["deployment"]:
            told.setdefault(one["reason"], []).append(_asked(one))
    lines += [
        wrap(f"  No answer for {', '.join(names)}: {reason}", width)
        for reason, names in told.items()
    ]
    lines += [wrap(f"  {line}", width) for line in _price_lines(answered)]
    return "\n".join(lines) + "\n"


def _cells(one: Data, is_moe: bool, costs: bool) -> list[Cells]:
    row = one["deployment"]
    cost = {
        "$/hour": f"{one['usd_per_hour']:.2f}" if one["price"] else "",
        "$/Mtoken": f"{one['usd_per_million_tokens']:.3f}" if one["price"] else "",
    }
    serves = {
        "serves/s": f"{row['request_rate_per_s']:.2f}",
        "TTFT": f"{row['ttft_ms']:.2f}",
        "TPOT": f"{row['tpot_ms']:.2f}",
    }
    return [
        {"GPUs": f"{one['total_gpus']}", **(cost if costs else {})},
        serves,
        {"engine": one["engine"], "deployment": deployment_name(row, is_moe)},
    ]


def _asked(one: Data) -> str:
    engine = f" ({one['engine']})" if one["engine"] else ""
    return f"{one['system']} {one['serving_mode']}{engine}"


def _price_lines(answered: Sequence[Data]) -> list[str]:
    """Where the prices are from, and which systems have none."""
    sources: dict[tuple[str, str], list[str]] = {}
    for one in answered:
        if price := one["price"]:
            text = f"{one['system']} ${price['usd_per_gpu_hour']:.2f}"
            sources.setdefault((price["source"], price["date"]), []).append(text)
    lines = [
        f"A GPU for an hour: {', '.join(dict.fromkeys(prices))} ({source}, {date}); "
        "a million output tokens at the asked rate."
        for (source, date), prices in sources.items()
    ]
    unknown = dict.fromkeys(one["system"] for one in answered if not one["price"])
    if unknown:
        lines.append(f"No price is known of {', '.join(unknown)} (config/prices.yaml).")
    return lines
