"""The report of a sweep as text: a line for each experiment, below the question that it answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import schemas
from paretoserve.deploy.target import version_notes
from paretoserve.experiments.experiment import Experiment
from paretoserve.models.catalog import find_model
from paretoserve.report.terminal import (
    NO_TERMINAL_WIDTH,
    PLOT_MAX_EXPERIMENTS,
    RULE,
    Row,
    Style,
    deployment_name,
    hardware,
    precision,
    render_report,
    title,
    wrap,
)

FEW = 4  # experiments that the guide's report shows although they answer several questions
MOST_LINES = 500  # experiments; of more, the best of each question is shown
MOST_QUESTIONS = 200
NAMES_SHOWN = 3

HEADINGS = ("tokens/s/gpu", "of best", "TPOT", "TTFT", "deployment")
SHOWN = (
    "experiment",
    "serving_mode",
    "tokens_per_s_per_gpu",
    "tpot_ms",
    "ttft_ms",
    "replicas",
    *(
        f"{role}_{name}"
        for role in ("agg", "prefill", "decode")
        for name in ("workers", *schemas.LAYOUT)
    ),
)
LEGEND = (
    "  * is the best of its question. tokens/s/gpu counts idle GPUs; TPOT and TTFT are in ms; a "
    "deployment is replicas x (prefill workers x layout + decode workers x layout), of agg "
    "replicas x layout. `paretoserve explain RUN EXPERIMENT:1` shows the arithmetic of a line; "
    "the * of a name stands for what the line says."
)


def render_run(
    experiments: Sequence[Experiment],
    frontier: pa.Table,
    best: pa.Table,
    status: pa.Table,
    *,
    width: int | None = NO_TERMINAL_WIDTH,
    color: bool = False,
) -> str:
    """Return the guide's report of one question or few experiments, else the summary.

    The parameters are those of `render_report`.
    """
    questions = {_question(experiment) for experiment in experiments}
    one = len(questions) == 1 and len(experiments) <= PLOT_MAX_EXPERIMENTS
    if one or len(experiments) <= FEW:
        return render_report(experiments, frontier, best, status, width=width, color=color)
    return render_summary(experiments, best, status, width=width, color=color)


def render_summary(
    experiments: Sequence[Experiment],
    best: pa.Table,
    status: pa.Table,
    *,
    width: int | None = NO_TERMINAL_WIDTH,
    color: bool = False,
) -> str:
    """Return a line for each experiment that has an answer, and the others by reason."""
    style = Style(color)
    first = best.filter(pc.equal(best["rank"], 1)).select(SHOWN)
    answers = {row["experiment"]: row for row in first.to_pylist()}
    groups = list(_groups(experiments, answers))
    whole = len(answers) <= MOST_LINES
    lines = [line for group in groups[:MOST_QUESTIONS] for line in group.lines(whole)]
    text = [title("paretoserve: the best deployments found", style), _counts(status)]
    text += [wrap(line, width) for line in _common(experiments)]
    text.append(RULE)
    text += _table(lines, width, style)
    if len(groups) > MOST_QUESTIONS:
        text.append(f"  and {len(groups) - MOST_QUESTIONS} questions more: comparison.parquet")
    if answers:
        text += [RULE, wrap(LEGEND, width)]
    text += [wrap(line, width) for line in _unanswered(experiments, status)]
    return "\n".join(text) + "\n"


@dataclass(frozen=True)
class _Line:
    """A line of an experiment, or a heading without cells."""

    label: str
    cells: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class _Group:
    """Experiments that answer one question, the best first, and how each is called."""

    heading: str
    verdict: str
    labels: Mapping[str, str]
    rows: Sequence[Row]
    is_moe: bool

    def lines(self, whole: bool) -> Iterator[_Line]:
        yield _Line(self.heading)
        yield _Line(f"  {self.verdict}")
        most = self.rows[0]["tokens_per_s_per_gpu"]
        for row in self.rows if whole else self.rows[:1]:
            cells = (
                f"{row['tokens_per_s_per_gpu']:.2f}",
                f"{row['tokens_per_s_per_gpu'] / most:.0%}",
                f"{row['tpot_ms']:.2f}",
                f"{row['ttft_ms']:.2f}",
                deployment_name(row, self.is_moe),
            )
            yield _Line(self.labels[row["experiment"]], cells, row is self.rows[0])


def _question(experiment: Experiment) -> tuple:
    return (
        experiment.model_name,
        experiment.isl,
        experiment.osl,
        experiment.ttft_ms,
        experiment.tpot_ms,
        experiment.sla_probability,
        experiment.total_gpus,
    )


def _groups(experiments: Iterable[Experiment], answers: Mapping[str, Row]) -> Iterator[_Group]:
    asked: dict[tuple, list[str]] = {}
    for experiment in experiments:
        asked.setdefault(_question(experiment), []).append(experiment.name)
    for (model, isl, osl, ttft, tpot, probability, gpus), names in asked.items():
        rows = [answers[name] for name in names if name in answers]
        if not rows:
            continue
        rows.sort(key=lambda row: -row["tokens_per_s_per_gpu"])
        pattern, labels = _labels(names)
        yield _Group(
            f"{model}, ISL / OSL {isl} / {osl}, TTFT <= {ttft:g} ms, TPOT <= {tpot:g} ms"
            f"{'' if probability is None else f' with {probability:.4g} probability'}, "
            f"{gpus} GPUs{f': {pattern}' if pattern else ''}",
            _verdict(rows, labels),
            labels,
            rows,
            find_model(model).is_moe,
        )


def _labels(names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What all names share, with a * for what differs, and what differs in each.

    Names are made of parts between dots; where they have not the same number, a label is the name.
    """
    parts = [name.split(".") for name in names]
    if len({len(of_name) for of_name in parts}) > 1 or len(names) == 1:
        return "", {name: name for name in names}
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    if all(differ):
        return "", {name: name for name in names}
    pattern = ["*" if other else part for part, other in zip(parts[0], differ, strict=True)]
    labels = {
        name: ".".join(part for part, other in zip(of_name, differ, strict=True) if other)
        for name, of_name in zip(names, parts, strict=True)
    }
    return ".".join(pattern), labels


def _verdict(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """Agg against disagg: the best of each."""
    first = rows[0]
    other = next((row for row in rows if row["serving_mode"] != first["serving_mode"]), None)
    if other is None:
        return f"only {first['serving_mode']} has an answer"
    ratio = first["tokens_per_s_per_gpu"] / other["tokens_per_s_per_gpu"]
    return f"{first['serving_mode']} serves {ratio:.2f}x what {other['serving_mode']} does"


def _table(lines: Sequence[_Line], width: int | None, style: Style) -> list[str]:
    """Align the lines; where they are wider than `width`, the cells go below their label."""
    rows = [line for line in lines if line.cells]
    if not rows:
        return []
    widths = [
        max(len(heading), *(len(line.cells[i]) for line in rows))
        for i, heading in enumerate(HEADINGS)
    ]
    label = max(len(line.label) for line in rows)
    stacked = width is not None and 4 + label + 2 + sum(widths) + 2 * (len(widths) - 1) > width

    def aligned(cells: Sequence[str]) -> str:
        *numbers, _ = (f"{cell:>{size}}" for cell, size in zip(cells, widths, strict=True))
        return f"{'  '.join(numbers)}  {cells[-1]}"

    indent = " " * (6 if stacked else 6 + label)
    shown = [f"{indent}{aligned(HEADINGS)}"]
    for line in lines:
        if not line.cells:
            heading = wrap(f"  {line.label}", width)
            shown.append(heading if line.label.startswith(" ") else style.bold(heading))
            continue
        mark = f"  {'*' if line.best else ' '} "
        if stacked:
            shown += [f"{mark}{line.label}", f"{indent}{aligned(line.cells)}"]
        else:
            shown.append(f"{mark}{line.label:<{label}}  {aligned(line.cells)}")
    return shown


def _counts(status: pa.Table) -> str:
    kinds = status["status"].to_pylist()
    told = {
        "ok": "answered",
        "no_feasible": "within no limit or memory",
        "error": "not measured",
        "unanswerable": "cannot be asked",
    }
    counted = (f"{kinds.count(kind)} {name}" for kind, name in told.items() if kind in kinds)
    return f"  {len(kinds)} experiments: {', '.join(counted)}"


def _common(experiments: Sequence[Experiment]) -> Iterator[str]:
    """What lines do not say: engines, precisions and the versions that files are for."""
    facts = {"System": hardware, "Precision": precision}
    for name, say in facts.items():
        yield f"    {name}: {'; '.join(dict.fromkeys(map(say, experiments)))}"
    notes = dict.fromkeys(note for one in experiments for note in version_notes(one))
    yield from (f"    Deployment files: {note}" for note in notes)


def _unanswered(experiments: Sequence[Experiment], status: pa.Table) -> Iterator[str]:
    """What has no answer, or not all layouts, by reason; the most frequent first."""
    missing: dict[str, list[str]] = {}
    partly: dict[str, list[str]] = {}
    details: dict[str, str] = {}
    for row in status.to_pylist():
        if row["status"] == "ok" and row["missing_table"]:
            partly.setdefault(row["missing_table"], []).append(row["experiment"])
        elif row["status"] != "ok":
            # Which limit binds is the reason; by how much is each experiment's own.
            binds, _, by_how_much = row["reason"].partition(": ")
            whole = row["status"] != "no_feasible"
            missing.setdefault(row["reason"] if whole else binds, []).append(row["experiment"])
            details[row["experiment"]] = "" if whole else by_how_much
    left_out = dict.fromkeys(engine for one in experiments for engine in one.left_out)
    for heading, of_reason in (("No answer", missing), ("Layouts without a table", partly)):
        if of_reason:
            yield RULE
            yield f"  {heading}:"
        for reason, names in sorted(of_reason.items(), key=lambda found: -len(found[1])):
            more = len(names) - NAMES_SHOWN
            shown = ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
            detail = f" ({details[names[0]]})" if len(names) == 1 and details.get(names[0]) else ""
            yield f"  {len(names):>5}  {reason}: {shown}{detail}"
    if left_out:
        yield RULE
        yield from (f"  Left out: {engine}" for engine in left_out)
