"""The arithmetic of one configuration as text, from the plain data of `paretoserve explain`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paretoserve.report.terminal import NO_TERMINAL_WIDTH, Style, parallel_name, wrap

Data = Mapping[str, Any]

MOST_SHOWN = 4  # measured points of one query that are named; JSON has all


def render_explanation(
    told: Data, *, width: int | None = NO_TERMINAL_WIDTH, color: bool = False
) -> str:
    """Return the explanation, ending in a newline. `width` and `color` as of the report."""
    style, tables = Style(color), {}
    lines = [*_heading(told, style)]
    for role, worker in told["workers"].items():
        name = parallel_name(told["deployment"], role, told["question"]["is_moe"])
        lines += [
            "",
            style.bold(f"{role} worker {name}, {_contents(role, worker)}"),
            _memory(worker),
        ]
        for step, of_step in worker["steps"].items():
            lines += ["", style.bold(f"{step} step of the {role} worker: {of_step['ms']:.4f} ms")]
            for operator in of_step["operators"]:
                lines += _operator(operator, of_step["ms"], tables)
    lines += ["", style.bold("From the steps to tokens/s/gpu")]
    lines += map(_term, told["arithmetic"])
    lines += ["", style.bold("Tables")]
    lines += [f"  [{number}] {file}" for file, number in tables.items()]
    return "\n".join(wrap(line, width) for line in lines) + "\n"


def _heading(told: Data, style: Style) -> Iterator[str]:
    row, question = told["deployment"], told["question"]
    place = "the frontier" if told["table"] == "frontier" else "the best"
    yield style.bold(
        f"{told['experiment']}, rank {row['rank']} of {place}: "
        f"{row['tokens_per_s_per_gpu']:.2f} tokens/s/gpu, "
        f"{row['tokens_per_s_per_user']:.2f} tokens/s/user"
    )
    yield (
        f"  {question['model_name']} on {question['total_gpus']} GPUs, "
        f"ISL / OSL {question['isl']} / {question['osl']} tokens, "
        f"TTFT {row['ttft_ms']:.2f} ms (<= {question['ttft_ms']:g}), "
        f"TPOT {row['tpot_ms']:.2f} ms (<= {question['tpot_ms']:g})"
    )
    if told["differences"]:
        changed = ", ".join(
            f"{name} {of['run']} then, {of['now']} now" for name, of in told["differences"].items()
        )
        yield f"  Not as in the run, since when tables or code have changed: {changed}"


def _contents(role: str, worker: Data) -> str:
    prompts = f", {worker['ctx_tokens']} prompt tokens a step" if role == "agg" else ""
    return (
        f"batch {worker['batch_size']}{prompts}, "
        f"{worker['system']} ({worker['backend']} {worker['version']})"
    )


def _memory(worker: Data) -> str:
    memory = dict(worker["memory_gib"])
    total, limit = memory.pop("total"), memory.pop("limit")
    parts = " + ".join(f"{name} {gib:.2f}" for name, gib in memory.items())
    return f"  memory of a GPU: {parts} = {total:.2f} GiB of {limit:.2f} GiB allowed"


def _operator(operator: Data, step_ms: float, tables: dict[str, int]) -> Iterator[str]:
    yield (
        f"  {operator['operator']:<26}{operator['times']:>4} x {operator['ms_each']:.6f} "
        f"= {operator['ms']:>9.4f} ms {operator['ms'] / step_ms:>4.0%}  {operator['provenance']}"
    )
    yield from (f"      note: {note}" for note in operator["notes"])
    for look_up in operator["look_ups"]:
        if any(point["ms"] > 0 for point in look_up["points"]):
            yield f"      {_query(look_up, tables)}{_share(look_up, operator)}"
            if around := _around(look_up):
                yield f"        {around}"


def _share(look_up: Data, operator: Data) -> str:
    """What the look-up gives where the operator takes more or less of it."""
    points = look_up["points"]
    ms = sum(point["ms"] for point in points) / len(points)
    share = operator["ms_each"] / ms
    if len(operator["look_ups"]) > 1 or abs(share - 1) < 1e-9:
        return ""
    return f": {ms:.6f} ms, of which {share:.4g}"


def _query(look_up: Data, tables: dict[str, int]) -> str:
    numbers = [
        f"[{tables.setdefault(table['file'], len(tables) + 1)}]" for table in look_up["tables"]
    ]
    source = " ".join(dict.fromkeys(numbers)) or "formula"
    constants = ", ".join(f"{name} {value}" for name, value in look_up["of"].items())
    points = look_up["points"]
    at = ", ".join(f"{name} {_range([p['at'][name] for p in points])}" for name in points[0]["at"])
    mean = f": mean of {len(points)} points" if len(points) > 1 else ""
    return f"{source} {look_up['kernel']}{f' ({constants})' if constants else ''} at {at}{mean}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.10g}" if low == high else f"{low:.10g} to {high:.10g}"


def _around(look_up: Data) -> str:
    """The measured rows at or around a query, by what distinguishes them."""
    points = look_up["points"]
    rows = points[0]["measured"]
    if len(points) > 1 or not rows:
        return ""
    if len(rows) > MOST_SHOWN:
        return f"{len(rows)} measured rows around it, which --json lists"
    asked = {**look_up["of"], **points[0]["at"]}
    told = []
    for row in rows:
        names = [
            name
            for name, value in row.items()
            if name != "latency_ms"
            and (asked.get(name, value) != value or any(other[name] != value for other in rows))
        ]
        where = " ".join(f"{name} {row[name]}" for name in names)
        told.append(f"{where or 'there'}: {row['latency_ms']:.6f} ms")
    return f"measured {'; '.join(told)}"


def _term(term: Data) -> str:
    value = f"{term['value']:,.6g}" if abs(term["value"]) < 1e6 else f"{term['value']:.6g}"
    return f"  {term['name']} = {term['formula']} = {value} {term['unit']}".rstrip()
