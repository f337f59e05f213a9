"""The Pareto frontier as a picture."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.plan import label

SIZE_INCHES = (8, 5)
DPI = 150
# Okabe and Ito's colours, told apart with any kind of colour blindness; black last for contrast.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
SHADE = "#bbbbbb"


def pareto_png(experiments: Sequence[Experiment], frontier: pa.Table, best: pa.Table) -> bytes:
    """Draw tokens/s/gpu against tokens/s/user for each experiment, as a PNG.

    The best configuration of each experiment is marked, and the speeds that miss the TPOT target
    are shaded (as far as they miss the loosest target, where experiments differ). The same
    tables give the same bytes.
    """
    # pyplot would keep the figure in a state of the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, experiment in enumerate(experiments):
        color, line = COLORS[i % len(COLORS)], LINES[i % len(LINES)]
        users, gpus = _points(frontier, experiment.name)
        if len(users) == 0:
            continue
        # Steps, because nothing between two points was found: a slower user gets the next point.
        axes.step(users, gpus, line, color=color, marker=".", markersize=5, label=experiment.name)
        at_user, at_gpu = _points(best.filter(pc.field("rank") == 1), experiment.name)
        if len(at_user):
            axes.plot(
                at_user,
                at_gpu,
                marker="X",
                markersize=11,
                color=color,
                markeredgecolor="black",
                linestyle="none",
                label=f"{experiment.name} best: {at_gpu[0]:.1f} tokens/s/gpu",
                zorder=5,
            )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    slowest_allowed = min(1000 / e.tpot_ms for e in experiments)
    axes.axvspan(
        0,
        slowest_allowed,
        color=SHADE,
        alpha=0.35,
        linewidth=0,
        zorder=0,
        label=f"misses TPOT ≤ {1000 / slowest_allowed:g} ms",
    )
    models = ", ".join(dict.fromkeys(label(e.model_name) for e in experiments))
    lengths = ", ".join(dict.fromkeys(f"ISL {e.isl}, OSL {e.osl}" for e in experiments))
    limits = ", ".join(dict.fromkeys(f"TTFT ≤ {e.ttft_ms:g} ms" for e in experiments))
    sizes = ", ".join(dict.fromkeys(f"{e.total_gpus} x {_systems(e)}" for e in experiments))
    axes.set_title(f"{models} Pareto frontier\n{sizes}, {lengths}, {limits}", fontsize=11)
    axes.set_xlabel("speed of one user (tokens/s/user)")
    axes.set_ylabel("throughput (tokens/s/gpu)")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=True, framealpha=0.9, fontsize=9)
    file = io.BytesIO()
    # The name of the drawing software, with its version, would be the only changing part.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _systems(experiment: Experiment) -> str:
    return " + ".join(dict.fromkeys(worker.system for worker in experiment.workers))


def _points(table: pa.Table, experiment: str) -> tuple[object, object]:
    rows = table.filter(pc.field("experiment") == experiment).sort_by("tokens_per_s_per_user")
    return (
        rows["tokens_per_s_per_user"].to_numpy(),
        rows["tokens_per_s_per_gpu"].to_numpy(),
    )
