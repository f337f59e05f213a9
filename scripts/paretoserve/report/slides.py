"""Figures for slides, drawn from the report's tables (PNG). The same tables give the same bytes."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve.report.plots import COLORS, DPI, LINES

KIND_COLORS = {
    "GEMM": "#0072B2",
    "attention": "#D55E00",
    "experts": "#8A6D00",
    "communication": "#009E73",
    "other": "#8793A1",
}
MOST_ROWS = 16  # of a heat map
NOTHING = "nothing within the limits"


def systems(tables: Mapping[str, pa.Table]) -> bytes:
    """Draw tokens/s/gpu of each system for each need, as a heat map."""
    rows = tables["systems"].to_pylist()
    needs = list(dict.fromkeys(row["need"] for row in rows))[:MOST_ROWS]
    names = list(dict.fromkeys(row["system"] for row in rows))
    share, rate = (np.full((len(needs), len(names)), np.nan) for _ in range(2))
    heads = {}
    for row in rows:
        if row["need"] in needs:
            at = needs.index(row["need"]), names.index(row["system"])
            heads[row["need"]] = _need(row)
            share[at], rate[at] = (
                np.nan if row[k] is None else row[k] for k in ("of_best", "tokens_per_s_per_gpu")
            )

    def draw(axes: Any) -> None:
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=20 if len(names) > 4 else 0)
        axes.set_yticks(range(len(needs)), [heads[need] for need in needs], fontsize=8)
        for (i, j), value in np.ndenumerate(rate):
            color = "white" if share[i, j] > 0.75 else "black"
            text = "–" if np.isnan(value) else f"{value:.0f}{' ★' if share[i, j] == 1 else ''}"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_title("tokens/s per GPU within the SLA, best of engines and serving modes")

    return _png(draw, height=1.6 + 0.42 * max(len(needs), 2))


def tpot_curves(tables: Mapping[str, pa.Table]) -> bytes:
    """Draw tokens/s/gpu against the TPOT target of each system, for the first model and load."""
    table = tables["tpot_curves"]
    keys = ("model", "isl", "osl", "ttft_limit_ms", "total_gpus")

    def draw(axes: Any) -> None:
        if not table.num_rows:
            axes.text(0.5, 0.5, NOTHING, ha="center")
            return
        first = {key: table[key][0].as_py() for key in keys}
        mine = [row for row in table.to_pylist() if all(row[k] == first[k] for k in keys)]
        for i, system in enumerate(dict.fromkeys(row["system"] for row in mine)):
            points = [row for row in mine if row["system"] == system]
            axes.step(
                [row["tpot_target_ms"] for row in points],
                [row["tokens_per_s_per_gpu"] for row in points],
                LINES[i % len(LINES)],
                where="post",
                color=COLORS[i % len(COLORS)],
                marker=".",
                label=system,
            )
        axes.set(xscale="log", xlabel="TPOT target (ms)", ylabel="tokens/s per GPU")
        axes.set_ylim(bottom=0)
        ticks = [t for t in (4, 6, 10, 20, 40, 100, 200) if t >= min(axes.get_xlim())]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(
            f"{first['model']}, ISL {first['isl']}, OSL {first['osl']}, "
            f"TTFT ≤ {first['ttft_limit_ms']:g} ms, {first['total_gpus']} GPUs"
        )
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend()

    return _png(draw, height=4.5)


def step_time(tables: Mapping[str, pa.Table]) -> bytes:
    """Draw where the time of the steps goes, by kind of operator, of the best configuration."""
    best = tables["configurations"]
    operators = tables["operators"]

    def draw(axes: Any) -> None:
        axes.set_title("Where the time of a step goes")
        if not best.num_rows:
            axes.text(0.5, 0.5, NOTHING, ha="center")
            return
        first = int(np.argmax(best["tokens_per_s_per_gpu"].to_numpy()))
        name, rank = best["experiment"][first].as_py(), best["rank"][first].as_py()
        mine = operators.filter((pc.field("experiment") == name) & (pc.field("rank") == rank))
        sums = mine.group_by(["role", "step", "kind"], use_threads=False).aggregate([("ms", "sum")])
        steps: dict[tuple[str, str], dict[str, float]] = {}
        for row in sums.to_pylist():
            steps.setdefault((row["role"], row["step"]), {})[row["kind"]] = row["ms_sum"]
        labels = [
            f"{step if role == step else f'{role}, {step}'}\n{sum(of.values()):.2f} ms"
            for (role, step), of in steps.items()
        ]
        left = np.zeros(len(steps))
        for kind, color in KIND_COLORS.items():
            part = np.array([of.get(kind, 0) / sum(of.values()) for of in steps.values()])
            if part.any():
                axes.barh(labels, part, left=left, color=color, label=kind, edgecolor="white")
            for i, width in enumerate(part):
                if width > 0.05:
                    at = left[i] + width / 2
                    axes.text(at, i, f"{width:.0%}", ha="center", va="center", color="white")
            left += part
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="share of the step")
        axes.set_title(f"{name}: {best['deployment'][first].as_py()}", fontsize=11)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5, frameon=False)

    return _png(draw, height=3.6)


SLIDES: dict[str, Callable[[Mapping[str, pa.Table]], bytes]] = {
    "systems": systems,
    "tpot_curves": tpot_curves,
    "step_time": step_time,
}


def _need(row: Mapping[str, Any]) -> str:
    limits = f"TTFT {row['ttft_limit_ms']:g}, TPOT {row['tpot_limit_ms']:g} ms"
    return f"{row['model']} {row['isl']}/{row['osl']}\n{limits}, {row['total_gpus']} GPUs"


def _png(draw: Callable[[Any], None], height: float) -> bytes:
    # pyplot would keep the figure in a state of the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    file = io.BytesIO()
    # The name of the drawing software, with its version, would be the only changing part.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
