"""What can be answered: every model on every measured engine, by the code that answers questions.

Each engine version is asked one question of each model, in both serving modes: the default search,
so many GPUs that no worker is too large, and no SLA. The load lies on points that the tables were
measured at (a prompt of 4096 tokens, decoding at position 4097, batches of 1 and 64), so what is
interpolated is the model: its shapes, and what its layouts make of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve.errors import InputError, did_you_mean
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.loading import RawExperiment, Source
from paretoserve.experiments.plan import Ask, Group, works
from paretoserve.experiments.resolving import ANY, resolve
from paretoserve.hardware import canonical_name, system_names
from paretoserve.interpolation import PROVENANCE
from paretoserve.models.catalog import find_model, model_names
from paretoserve.perfdb import manifest
from paretoserve.perfdb.catalogue import ENGINES, Catalogue
from paretoserve.stages.answering import pareto
from paretoserve.stages.enumerating import enumerate_candidates
from paretoserve.stages.estimating import estimate

MODES = ("agg", "disagg")
LOAD = {"isl": 4096, "osl": 2, "total_gpus": 1024, "ttft": 1e12, "tpot": 1e12}
BATCHES = (1, 64)
NO = "no"
WORDS = tuple("formula" if name == "speed_of_light" else name for name in PROVENANCE)
WORTH_SAYING = 0.01  # share of the time above which an extrapolated operator is named

PAGE = f"""\
# What can be answered

Made by `make support`. `paretoserve support --model M --system S --backend B` prints a part of it,
`--json` with all figures.

Every model is asked of every engine version with measured tables: the default search, no SLA, and a
load on points of the tables (isl 4096, decoding at position 4097, batches of 1 and 64).
The word says where most of the step time comes from, for agg, and for disagg if it differs:

- **measured**: points of the tables; **interpolated**: between them; **extrapolated**: beyond them;
- **substituted**: from the table of another engine, version, precision or system that stands in;
- **formula**: a speed-of-light formula, not a measurement;
- **no**: no answer.

A number leads to the reason below the table: why there is no answer, which layouts of the search
have none, which operators spend {WORTH_SAYING:.0%} of the time or more beyond the tables, and what
stands in for what.
"""


@dataclass(frozen=True)
class Support:
    """Whether one model can be answered on one engine version in one serving mode.

    `answer` is `no`, or where the most of the steps' time comes from: measured, interpolated,
    extrapolated, substituted or formula. The shares are means over layouts, 0 where there is no
    answer. `reason` is empty where there is nothing to say against the answer.
    """

    model: str
    system: str
    backend: str
    version: str  # empty where the engine has no table of the system
    mode: str
    answer: str
    measured: float
    interpolated: float
    extrapolated: float
    substituted: float
    formula: float
    reason: str

    @property
    def engine(self) -> str:
        return f"{self.backend} {self.version}".strip()


def support(
    model: str | None = None, system: str | None = None, backend: str | None = None
) -> Iterator[Support]:
    """Yield what can be answered of this model, system and backend (None: of all).

    InputError for an unknown name.
    """
    models = model_names() if model is None else (find_model(model).name,)
    systems = system_names() if system is None else (canonical_name(system),)
    if backend == ANY:
        backend = None
    if backend not in (None, *ENGINES):
        raise InputError(
            f"unknown backend '{backend}'{did_you_mean(backend, ENGINES)}; "
            f"known backends: {', '.join(ENGINES)}"
        )
    catalogue = Catalogue()
    for name in systems:
        for engine in ENGINES if backend is None else (backend,):
            for version in _versions(name, engine):
                yield from _of_engine(models, name, engine, version, catalogue)


def support_json(found: Iterable[Support]) -> list[dict[str, str | float]]:
    """Return plain data, shares rounded to what they are worth."""
    return [
        {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(one).items()}
        for one in found
    ]


def support_text(found: Iterable[Support]) -> str:
    """Return an aligned table of each system and the reasons below it, ending in a newline."""
    from prettytable import PrettyTable

    parts = []
    for system, rows in _by_system(found).items():
        cells, notes = _cells(rows)
        table = PrettyTable(["model", "engine", *MODES], align="l")
        for (model, engine), of_modes in cells.items():
            table.add_row([model, engine, *of_modes])
        parts += [system, *([table.get_string()] if cells else []), *notes, ""]
    return "\n".join(parts)


def support_page(found: Iterable[Support]) -> str:
    """Return the whole page in Markdown: `PAGE`, then a section of each system."""
    return "\n".join([PAGE, *map(support_section, _by_system(found).values())])


def support_section(found: Sequence[Support]) -> str:
    """Return the section of one system: models against engine versions, and the reasons."""
    cells, notes = _cells(found)
    lines = [f"## {found[0].system}", ""]
    if cells:
        engines = list(dict.fromkeys(engine for _, engine in cells))
        lines += [_line("model", *engines), _line(*["---"] * (len(engines) + 1))]
        for model in dict.fromkeys(model for model, _ in cells):
            row = (dict.fromkeys(cells[model, engine]) for engine in engines)
            lines.append(_line(model, *map(", ".join, row)))
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


def _by_system(found: Iterable[Support]) -> dict[str, list[Support]]:
    sections: dict[str, list[Support]] = {}
    for one in found:
        sections.setdefault(one.system, []).append(one)
    return sections


def _cells(found: Sequence[Support]) -> tuple[dict[tuple[str, str], list[str]], list[str]]:
    """Answers by model and engine, one per mode, with the numbers of the notes that follow.

    An engine that answers nothing, for a single reason, has a note and no cell.
    """
    told: dict[str, set[tuple[str, str]]] = {}
    for one in found:
        told.setdefault(one.engine, set()).add((one.answer, one.reason))
    useless: dict[str, list[str]] = {}
    for engine, answers in told.items():
        [(answer, reason), *others] = answers
        if answer == NO and not others:
            useless.setdefault(reason, []).append(engine)
    cells: dict[tuple[str, str], list[str]] = {}
    numbers: dict[str, int] = {}
    for one in found:
        if one.engine in useless.get(one.reason, ()):
            continue
        number = numbers.setdefault(one.reason, len(numbers) + 1) if one.reason else 0
        note = f" ({number})" if number else ""
        cells.setdefault((one.model, one.engine), []).append(one.answer + note)
    notes = [f"({number}) {reason}" for reason, number in numbers.items()]
    return cells, notes + [f"{', '.join(engines)}: {why}" for why, engines in useless.items()]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _versions(system: str, backend: str) -> Sequence[str]:
    try:
        return manifest.load().versions(system, backend)
    except InputError:
        return ("",)


def _of_engine(
    models: Sequence[str], system: str, backend: str, version: str, catalogue: Catalogue
) -> Iterator[Support]:
    """All models and modes on one engine version, which opens each of its tables once."""

    def say(model: str, mode: str, answer: str, shares: Sequence[float], reason: str) -> Support:
        return Support(model, system, backend, version, mode, answer, *map(float, shares), reason)

    nothing = np.zeros(len(PROVENANCE))
    asked: dict[tuple[str, str], Experiment | str] = {}
    for model in models:
        for mode in MODES:
            asked[model, mode] = _question(model, mode, system, backend, version, catalogue)
    answered = _answers([e for e in asked.values() if isinstance(e, Experiment)])
    for (model, mode), question in asked.items():
        if isinstance(question, Experiment):
            yield say(model, mode, *answered[question.name])
        else:
            yield say(model, mode, NO, nothing, question)


class _Fields(Source):
    """A question that nobody wrote: an error names its field only."""

    def locate(self, path: Sequence[str | int]) -> str:
        return ".".join(map(str, path[1:]))


def _question(
    model: str, mode: str, system: str, backend: str, version: str, catalogue: Catalogue
) -> Experiment | str:
    """Return the question, or why it cannot be asked."""
    fields = {
        **LOAD,
        "serving_mode": mode,
        "model_name": model,
        "system_name": system,
        "backend_name": backend,
        "backend_version": version,
    }
    if not version:
        return "nothing was measured"
    try:
        return resolve(RawExperiment(f"{mode} {model}", fields, _Fields("")), catalogue)
    except InputError as error:
        if str(error).startswith("backend_version:"):  # that it names the others helps nobody here
            measured = manifest.load().operators(system, backend, version)
            return f"measured for {', '.join(measured)} only"
        return str(error)


def _answers(questions: Sequence[Experiment]) -> dict[str, tuple[str, np.ndarray, str]]:
    """Return answer, shares and reason of each question, all on one engine version."""
    if not questions:
        return {}
    group = Group("all", tuple({w.id: w for e in questions for w in works(e)}.values()))
    candidates = enumerate_candidates(group)
    typical = pc.is_in(candidates["batch_size"], pa.array(BATCHES, pa.int32()))
    refused = pc.equal(candidates["batch_size"], 0)
    candidates = candidates.filter(pc.or_(typical, refused))
    estimates, operators = estimate(group, candidates)
    ask = Ask("", tuple(questions), {work.id: group.id for work in group.works})
    _, _, status = pareto(ask, {group.id: candidates}, {group.id: estimates})
    return {
        question.name: _answer(question, row, estimates, operators)
        for question, row in zip(questions, status.to_pylist(), strict=True)
    }


def _answer(
    question: Experiment, status: dict[str, object], estimates: pa.Table, operators: pa.Table
) -> tuple[str, np.ndarray, str]:
    if status["status"] != "ok":
        return NO, np.zeros(len(PROVENANCE)), str(status["reason"])
    ids = [work.id for work in works(question)]
    shares, reasons = [], []
    for work_id in ids:
        mine = estimates.filter(pc.equal(estimates["work_id"], work_id))
        priced = mine.filter(pc.equal(mine["reason"], ""))
        of_work = [pc.mean(priced[f"{name}_share"]).as_py() for name in PROVENANCE]
        shares.append(of_work)
        reasons += [reason for reason in pc.unique(mine["reason"]).to_pylist() if reason]
    mean = np.mean(shares, axis=0)
    answer = WORDS[int(np.argmax(mean))]
    told = [f"some layouts have no answer: {reasons[0]}"] if reasons else []
    if beyond := _beyond(ids, operators):
        told.append(f"beyond the tables in part: {', '.join(beyond)}")
    told += _stand_ins(ids, operators)
    return answer, mean, "; ".join(told)


def _beyond(ids: Sequence[str], operators: pa.Table) -> list[str]:
    """Operators that take a share worth saying of the time, extrapolated; by name."""
    return _worth_saying(ids, operators, "extrapolated", "operator")


def _stand_ins(ids: Sequence[str], operators: pa.Table) -> list[str]:
    """What stood in for what, where that took a share worth saying of the time."""
    notes = _worth_saying(ids, operators, "substituted", "note")
    return [*dict.fromkeys(sentence for note in notes for sentence in note.split("; "))]


def _worth_saying(
    ids: Sequence[str], operators: pa.Table, provenance: str, column: str
) -> list[str]:
    """Values of a column whose time of this provenance is a share worth saying; sorted."""
    mine = operators.filter(pc.is_in(operators["work_id"], pa.array(ids)))
    of = mine.filter(pc.equal(mine["provenance"], provenance))
    by_name = of.group_by(column).aggregate([("ms", "sum")]).to_pylist()
    least = WORTH_SAYING * (pc.sum(mine["ms"]).as_py() or 0.0)
    return sorted(row[column] for row in by_name if row["ms_sum"] >= least)
