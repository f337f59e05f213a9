"""The report of a run as text, laid out as in the user's guide."""

import math
import re
import textwrap
import threading
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa

from paretoserve import schemas
from paretoserve.deploy.target import version_notes
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.plan import label
from paretoserve.models.catalog import find_model
from paretoserve.serving.mtp import expected_tokens_per_step
from paretoserve.settings import estimation

Row = dict[str, object]
Cells = dict[str, str]

NO_TERMINAL_WIDTH = 100  # columns of report.txt, and of output that goes to no terminal
FRAME_WIDTH = 80
PLOT_HEIGHT = 30
PLOT_MAX_EXPERIMENTS = 10
PLOT_MARKERS = ("dot", *"fhsoadeg*")  # x is the best point
PLOT_COLORS = (33, 208, 34, 162, 51, 220, 129, 124, 94, 247)  # of the 256-colour table
PLOT_BEST_COLOR = 196

RULE = "  " + "-" * (FRAME_WIDTH - 4)
LEGEND = """\
    (p) stands for prefill, (d) stands for decode, bs stands for batch size, \
a replica stands for the smallest scalable unit xPyD of the disagg system
    Some math: total gpus used = replicas * gpus/replica
               gpus/replica = (p)gpus/worker * (p)workers + (d)gpus/worker * (d)workers; \
for Agg, gpus/replica = gpus/worker
               gpus/worker = tp * pp * dp = etp * ep * pp for MoE models; \
tp * pp for dense models ({marked} are the actual values in math)"""

CERTAINTY = (
    "In brackets: where 90 % of such means lay on real runs that the calibration had not seen; "
    "from the same runs, the probability that ttft and tpot both keep the SLA. The ranks above are "
    "by the planner's estimates, which have no interval."
)


def render_report(
    experiments: Sequence[Experiment],
    frontier: pa.Table,
    best: pa.Table,
    status: pa.Table,
    *,
    width: int | None = NO_TERMINAL_WIDTH,
    color: bool = False,
) -> str:
    """Return the whole report, ending in a newline.

    Parameters
    ----------
    experiments
        The experiments of the run, in the order they are shown.
    frontier, best, status
        Result tables of the run.
    width
        Columns of the terminal: tables wider than this are shown in parts. None: no limit.
    color
        Mark by ANSI codes (bold, underline, colours); without, the text holds none.
    """
    style = Style(color)
    ranked = _by_experiment(best)
    winners = sorted(
        (rows[0] for rows in ranked.values()), key=lambda row: -row["tokens_per_s_per_gpu"]
    )
    sections = [
        title("paretoserve: the best deployments found", style),
        _question(experiments, width, style) + "\n" + _choice(winners, len(experiments)),
    ]
    if winners:
        sections += [RULE, _overall_best(winners[0], style)]
    if unanswered := _unanswered(status, width):
        sections += [RULE, unanswered]
    sections += [RULE, _frontier_plot(experiments, frontier, winners, width, color, style)]
    if winners:
        sections += [RULE, _legend(width, style)]
    for experiment in experiments:
        if experiment.name in ranked:
            sections += ["", _top_configurations(experiment, ranked[experiment.name], width, style)]
    return "\n".join(sections) + "\n"


class Style:
    """ANSI marks, or none."""

    def __init__(self, color: bool) -> None:
        self.color = color

    def bold(self, text: object) -> str:
        return f"\033[1m{text}\033[0m" if self.color else f"{text}"

    def underline(self, text: object) -> str:
        return f"\033[4m{text}\033[0m" if self.color else f"{text}"


def _by_experiment(best: pa.Table) -> dict[str, list[Row]]:
    """Return the rows of each experiment in the order of rank."""
    rows: dict[str, list[Row]] = {}
    for row in best.sort_by("rank").to_pylist():
        rows.setdefault(row["experiment"], []).append(row)
    return rows


def title(text: str, style: Style) -> str:
    """Return the frame that a report begins with."""
    stars = "*" * FRAME_WIDTH
    line = text.center(FRAME_WIDTH - 2)
    return f"{stars}\n*{style.bold(line)}*\n{stars}"


def _shared(experiments: Sequence[Experiment], say: Callable[[Experiment], str]) -> str:
    """Return what `say` tells of all experiments, or of each where they differ."""
    told = {experiment.name: say(experiment) for experiment in experiments}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{name}: {text}" for name, text in told.items())


def _question(experiments: Sequence[Experiment], width: int | None, style: Style) -> str:
    facts: dict[str, Callable[[Experiment], str]] = {
        "Model": lambda e: f"{e.model_name} (is_moe: {find_model(e.model_name).is_moe})",
        "Total GPUs": lambda e: f"{e.total_gpus}",
        "System": hardware,
        "Precision": precision,
        "ISL / OSL": _lengths,
        "MTP": _drafts,
        "Wide EP": lambda e: "on" if e.enable_wide_ep else "off",
        "SLA": lambda e: (
            f"TTFT <= {e.ttft_ms:g} ms, TPOT <= {e.tpot_ms:g} ms "
            f"(>= {1000 / e.tpot_ms:.4g} tokens/s/user)"
            + (
                ""
                if e.sla_probability is None
                else f", with {_percent(e.sla_probability)} probability"
            )
        ),
    }
    models = [find_model(experiment.model_name) for experiment in experiments]
    if not any(model.mtp_layers for model in models):
        del facts["MTP"]
    if not any(model.is_moe for model in models):
        del facts["Wide EP"]
    if any(version_notes(experiment) for experiment in experiments):
        facts["Deployment files"] = lambda e: " ".join(version_notes(e)) or "as estimated"
    lines = [style.bold("  Input Configuration & SLA Target:")]
    lines += [
        wrap(f"    {name}: {_shared(experiments, say)}", width) for name, say in facts.items()
    ]
    left_out = dict.fromkeys(engine for experiment in experiments for engine in experiment.left_out)
    lines += [wrap(f"    Left out: {engine}", width) for engine in left_out]
    return "\n".join(lines)


def hardware(experiment: Experiment) -> str:
    """Return the systems of the workers, with engine and version."""
    used = (f"{w.system} ({w.backend} {w.version})" for w in experiment.workers)
    return " + ".join(dict.fromkeys(used))


def precision(experiment: Experiment) -> str:
    """Return the precisions of the workers."""
    experts = find_model(experiment.model_name).is_moe
    used = (
        f"{w.gemm_quant_mode} weights, "
        + (f"{w.moe_quant_mode} experts, " if experts else "")
        + f"{w.kvcache_quant_mode} KV cache, {w.fmha_quant_mode} attention"
        for w in experiment.workers
    )
    return " + ".join(dict.fromkeys(used))


def _drafts(experiment: Experiment) -> str:
    if not experiment.nextn:
        return "off"
    rates = ", ".join(f"{rate:g}" for rate in experiment.nextn_accept_rates)
    tokens = expected_tokens_per_step(experiment.nextn, experiment.nextn_accept_rates)
    return f"nextn {experiment.nextn}, accepted {rates}: {tokens:.4g} tokens per step"


def _lengths(experiment: Experiment) -> str:
    most = find_model(experiment.model_name).max_position_embeddings
    longer = experiment.isl + experiment.osl > most
    note = f" (together more than the {most} positions of its configuration)" if longer else ""
    return f"{experiment.isl} / {experiment.osl} tokens{note}"


def _choice(winners: Sequence[Row], asked: int) -> str:
    """Say which experiment is best, and by how much it beats the next."""
    if not winners:
        return "    Best Experiment Chosen: none, no experiment has an answer"
    first = winners[0]
    text = (
        f"    Best Experiment Chosen: {first['experiment']} at "
        f"{first['tokens_per_s_per_gpu']:.2f} tokens/s/gpu"
    )
    if len(winners) > 1:
        second = winners[1]
        ratio = first["tokens_per_s_per_gpu"] / second["tokens_per_s_per_gpu"]
        than = "" if asked == 2 else f" than {second['experiment']}"
        text += f" ({ratio:.2f}x better{than})"
    return text


def _overall_best(row: Row, style: Style) -> str:
    return "\n".join(
        [
            style.bold("  Overall Best Configuration:"),
            f"    - Best Throughput: {row['tokens_per_s_per_gpu']:.2f} tokens/s/gpu",
            f"    - User Throughput: {row['tokens_per_s_per_user']:.2f} tokens/s/user",
            f"    - TTFT: {row['ttft_ms']:.2f}ms",
            f"    - TPOT: {row['tpot_ms']:.2f}ms",
        ]
    )


def _unanswered(status: pa.Table, width: int | None) -> str:
    lines = [
        wrap(f"  No answer for {row['experiment']}: {row['reason']}", width)
        for row in status.to_pylist()
        if row["status"] != "ok"
    ]
    lines += [
        wrap(f"  Left out of {row['experiment']}, no table: {row['missing_table']}", width)
        for row in status.to_pylist()
        if row["status"] == "ok" and row["missing_table"]
    ]
    return "\n".join(lines)


_plotext_lock = threading.Lock()  # plotext draws on one figure of the whole process


def _frontier_plot(
    experiments: Sequence[Experiment],
    frontier: pa.Table,
    winners: Sequence[Row],
    width: int | None,
    color: bool,
    style: Style,
) -> str:
    heading = style.bold("  Pareto Frontier:")
    if frontier.num_rows == 0:
        return f"{heading}\n    (nothing to draw)"
    if len(experiments) > PLOT_MAX_EXPERIMENTS:
        return f"{heading}\n    (too many experiments for a plot of characters)"

    import plotext

    points = {e.name: ([], []) for e in experiments}
    for row in frontier.sort_by("tokens_per_s_per_user").to_pylist():
        users, gpus = points[row["experiment"]]
        users.append(row["tokens_per_s_per_user"])
        gpus.append(row["tokens_per_s_per_gpu"])
    models = ", ".join(dict.fromkeys(label(e.model_name) for e in experiments))
    with _plotext_lock:
        plotext.clear_figure()
        plotext.limit_size(False, False)
        plotext.plot_size(min(FRAME_WIDTH, width or FRAME_WIDTH), PLOT_HEIGHT)
        plotext.theme("clear")
        plotext.title(f"{models} Pareto Frontier: tokens/s/gpu vs tokens/s/user")
        for (name, (users, gpus)), marker, hue in zip(
            points.items(), PLOT_MARKERS, PLOT_COLORS, strict=False
        ):
            if users:
                plotext.plot(users, gpus, label=name, marker=marker, color=hue)
        for row in winners[:1]:
            plotext.scatter(
                [row["tokens_per_s_per_user"]],
                [row["tokens_per_s_per_gpu"]],
                label=f"{row['experiment']} best",
                marker="x",
                color=PLOT_BEST_COLOR,
            )
        plotext.xlim(0, _axis_end(points.values(), 0, room=1.1, intervals=4))
        plotext.ylim(0, _axis_end(points.values(), 1, room=1.2, intervals=6))
        plotext.xlabel("tokens/s/user")
        plotext.ylabel("tokens/s/gpu")
        drawn = plotext.build()
        if not color:
            drawn = plotext.uncolorize(drawn)
    return "\n".join([heading, *(line.rstrip() for line in drawn.splitlines())])


def _axis_end(
    points: Iterable[tuple[list[float], list[float]]], axis: int, room: float, intervals: int
) -> float:
    """Return an end above all points that makes the ticks between round numbers."""
    width = room * max(max(point[axis], default=0.0) for point in points) / intervals
    digits = math.floor(math.log10(width))
    unit = 10**digits / (4 if digits > 1 else 2)
    return math.ceil(width / unit) * unit * intervals


def _legend(width: int | None, style: Style) -> str:
    marked = "underlined numbers" if style.color else "numbers behind the equals signs"
    lines = LEGEND.format(marked=marked).splitlines()
    lines = [style.bold("  Deployment Details:"), *(wrap(line, width) for line in lines)]
    return "\n".join(lines)


def wrap(line: str, width: int | None) -> str:
    """Break a line between words; what follows is indented a little more."""
    if width is None:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _top_configurations(
    experiment: Experiment, rows: Sequence[Row], width: int | None, style: Style
) -> str:
    is_moe = find_model(experiment.model_name).is_moe
    cells = [_cells(row, is_moe, style) for row in rows]
    ranks = [{"Rank": f"{row['rank']}"} for row in rows]
    groups = [list(group) for group in zip(*cells, strict=True)]
    heading = f"{experiment.name} Top Configurations: (Sorted by tokens/s/gpu)"
    tables = "\n".join(stacked_tables(ranks, groups, width))
    told = f"{style.bold(heading)}\n{tables}\n{wrap(_provenance(rows[0]), width)}"
    return "\n".join([told, *_benchmark(rows, width)])


def _benchmark(rows: Sequence[Row], width: int | None) -> list[str]:
    """What a benchmark of one replica would measure, for the rows that were simulated."""
    driven = [row for row in rows if row["sim_reason"] == ""]
    if not driven:
        return []
    ranks = [{"Rank": f"{row['rank']}"} for row in driven]
    load = [
        {
            "clients": f"{row['sim_clients']}",
            "requests": f"{row['sim_requests']}",
            "tokens/s/gpu": _with_interval(row, "sim_tokens_per_s_per_gpu{}", 0),
            "keeps the SLA": _percent(row["sla_probability"]),
        }
        for row in driven
    ]
    spreads = [
        [{f"{name.upper()} mean / p50 / p90 / p99": _spread(row, name, digits)} for row in driven]
        for name, digits in (("ttft", 0), ("tpot", 1))
    ]
    heading = f"A benchmark of one replica would measure (ms), {estimation().simulation.told}:"
    return [
        wrap(heading, width),
        *stacked_tables(ranks, [load, *spreads], width),
        wrap(CERTAINTY, width),
    ]


def _spread(row: Row, name: str, digits: int) -> str:
    values = (row[f"sim_{name}_p{share}_ms"] for share in (50, 90, 99))
    mean = _with_interval(row, f"sim_{name}{{}}_ms", digits)
    return " / ".join((mean, *(f"{value:.{digits}f}" for value in values)))


def _with_interval(row: Row, name: str, digits: int) -> str:
    """`264 (180-600)`: a simulated figure and its interval."""
    value, low, high = (row[name.format(end)] for end in ("", "_low", "_high"))
    return f"{value:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _provenance(row: Row) -> str:
    """Say how much of the step time of each worker was measured, interpolated, ..."""
    told = []
    for role, short in _roles(row).items():
        shares = {name: row[f"{role}_{name}"] for name in schemas.SHARES}
        kinds = (
            f"{name.removesuffix('_share').replace('_', ' ')} {share:.0%}"
            for name, share in shares.items()
            if share >= 0.005
        )
        told.append(f"{short} {', '.join(kinds)}".strip())
    return f"Step time of rank 1: {'; '.join(told)}"


def _roles(row: Row) -> dict[str, str]:
    """Return the worker roles of a deployment, and how the report marks their columns."""
    if row["serving_mode"] == "agg":
        return {"agg": ""}
    return {"prefill": "(p)", "decode": "(d)"}


def _cells(row: Row, is_moe: bool, style: Style) -> list[Cells]:
    """Return the cells of one deployment, in groups that a narrow terminal keeps together."""
    u = style.underline
    performance = {
        "tokens/s/gpu": f"{row['tokens_per_s_per_gpu']:.2f}",
        "tokens/s/user": f"{row['tokens_per_s_per_user']:.2f}",
        "TTFT": f"{row['ttft_ms']:.2f}",
        "concurrency": (
            f"{row['concurrency']}(={u(row['concurrency_per_replica'])}x{u(row['replicas'])})"
        ),
    }
    used = f"{row['gpus_used']}={u(row['replicas'])}x{u(row['gpus_per_replica'])}"
    gpus = {
        "total_gpus(used)": f"{row['total_gpus']} ({used})",
        "replicas": f"{row['replicas']}",
        "gpus/replica": f"{row['gpus_per_replica']}",
    }
    workers = [_worker_cells(row, role, is_moe, style) for role in _roles(row)]
    if row["serving_mode"] == "disagg":
        parts = "+".join(
            f"{u(row[f'{role}_workers'])}x{u(row[f'{role}_gpus_per_worker'])}"
            for role in _roles(row)
        )
        gpus["gpus/replica"] += f" (={parts})"
    return [performance, gpus, *workers]


def _worker_cells(row: Row, role: str, is_moe: bool, style: Style) -> Cells:
    factors = ("tp", "pp", "dp") if is_moe else ("tp", "pp")
    product = "x".join(style.underline(row[f"{role}_{factor}"]) for factor in factors)
    cells = {
        "workers": f"{row[f'{role}_workers']}",
        "gpus/worker": f"{row[f'{role}_gpus_per_worker']} (={product})",
        "parallel": parallel_name(row, role, is_moe),
        "bs": f"{row[f'{role}_batch_size']}",
    }
    if role == "agg":
        del cells["workers"]  # a replica is one worker
    return {_roles(row)[role] + name: cell for name, cell in cells.items()}


def parallel_name(row: Row, role: str, is_moe: bool) -> str:
    """Return the guide's name of a parallelism: tp4pp1, and for MoE tp1pp1dp8etp1ep8."""
    tp, pp, dp, moe_tp, moe_ep = (row[f"{role}_{name}"] for name in schemas.LAYOUT)
    return f"tp{tp}pp{pp}" + (f"dp{dp}etp{moe_tp}ep{moe_ep}" if is_moe else "")


def deployment_name(row: Row, is_moe: bool) -> str:
    """Return a deployment in one word: 4x(4xtp1+1xtp4), of agg 8xtp4.

    Layouts are the guide's names without what is 1: tp1pp1dp8etp1ep8 is dp8ep8.
    """
    names = [
        "".join(re.findall(r"[a-z]+(?!1(?!\d))\d+", parallel_name(row, role, is_moe))) or "tp1"
        for role in _roles(row)
    ]
    if row["serving_mode"] == "agg":
        return f"{row['replicas']}x{names[0]}"
    counts = (row[f"{role}_workers"] for role in _roles(row))
    pools = "+".join(f"{count}x{name}" for count, name in zip(counts, names, strict=True))
    return f"{row['replicas']}x({pools})"


def stacked_tables(ranks: list[Cells], groups: list[list[Cells]], width: int | None) -> list[str]:
    """Return the table, or where it is wider than `width` its parts, each with the rank.

    Parts are packed without blanks around the cells; a cell is never broken.
    """
    whole = _table([ranks, *groups], padding=1)
    if width is None or _columns(whole) <= width:
        return [whole]
    parts: list[list[list[Cells]]] = []
    for group in groups:
        if parts and _columns(_table([ranks, *parts[-1], group], padding=0)) <= width:
            parts[-1].append(group)
        else:
            parts.append([group])
    return [_table([ranks, *part], padding=0) for part in parts]


def _table(groups: list[list[Cells]], padding: int) -> str:
    from prettytable import PrettyTable

    rows = [{k: v for cells in row for k, v in cells.items()} for row in zip(*groups, strict=True)]
    table = PrettyTable(list(rows[0]), padding_width=padding)
    table.add_rows([list(row.values()) for row in rows])
    return table.get_string()


def _columns(table: str) -> int:
    return len(table.partition("\n")[0])
