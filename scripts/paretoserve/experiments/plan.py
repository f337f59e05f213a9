"""What a run has to do: works grouped by the tables that they read, experiments in chunks.

Works know neither SLA nor cluster, so runs that differ only in these share estimates.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import PurePath

from paretoserve.experiments.division import AUTO, Division, divide, part_size
from paretoserve.experiments.experiment import Experiment, Worker, digest
from paretoserve.settings import estimation


@dataclass(frozen=True)
class Work:
    """What the estimation of one worker's candidates depends on."""

    model_name: str
    model_digest: str
    isl: int
    osl: int
    nextn: int
    nextn_accept_rates: tuple[float, ...]
    enable_wide_ep: bool
    worker: Worker

    @cached_property
    def id(self) -> str:
        """12 hex digits of the content."""
        return digest(asdict(self), 12)

    @property
    def tables(self) -> tuple[str, str, str, str]:
        """Model, system, backend and version: works that share these read the same tables."""
        return self.model_name, self.worker.system, self.worker.backend, self.worker.version


@dataclass(frozen=True)
class Group:
    """Works of one model that read the same tables and are estimated by one job."""

    id: str
    works: tuple[Work, ...]

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the works."""
        return digest([work.id for work in self.works])


@dataclass(frozen=True)
class Refused:
    """An experiment of a sweep that cannot be asked, and why."""

    name: str
    serving_mode: str
    reason: str


@dataclass(frozen=True)
class Chunk:
    """Experiments that one job answers, and where the estimates of their works are.

    Of a run that is not too large for it, the best deployments are `simulated`.
    """

    id: str
    experiments: tuple[Experiment, ...]
    group_of_work: Mapping[str, str]  # work id -> group id
    simulated: bool

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Ids of the groups that hold the works of these experiments."""
        return tuple(dict.fromkeys(self.group_of_work.values()))

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the experiments, and whether they are simulated."""
        return digest([[experiment.digest for experiment in self.experiments], self.simulated])


@dataclass(frozen=True)
class Ask:
    """The experiments of one run, those that were refused, and where estimates are."""

    run: str
    experiments: tuple[Experiment, ...]
    group_of_work: Mapping[str, str]  # work id -> group id
    refused: tuple[Refused, ...] = ()

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the question."""
        asked = [experiment.digest for experiment in self.experiments]
        return digest([asked, [asdict(one) for one in self.refused]])


@dataclass(frozen=True)
class Plan:
    """All of one run: `groups` to enumerate and estimate, `chunks` to answer, `ask` to compare."""

    groups: tuple[Group, ...]
    chunks: tuple[Chunk, ...]
    ask: Ask
    division: Division

    @property
    def run(self) -> str:
        """Name of the run's folder."""
        return self.ask.run


def make_plan(
    experiments: Sequence[Experiment],
    refused: Sequence[Refused] = (),
    title: str | None = None,
    chunk_size: int | str = AUTO,
    earlier: Iterable[Division] = (),
) -> Plan:
    """Return the plan of these experiments. The same arguments give the same names and ids.

    Parameters
    ----------
    experiments, refused
        What is asked, and what cannot be.
    title
        Name of a sweep, which begins the name of its run; else the first experiment's question.
    chunk_size
        Most works of a group and experiments of a chunk; "auto" derives it from their number.
    earlier
        Divisions whose groups and chunks stay together where all of them is asked for again.
    """
    earlier = list(earlier)
    found: dict[str, Work] = {}
    cells: dict[tuple[str, ...], list[str]] = {}
    for experiment in experiments:
        for work in works(experiment):
            if work.id not in found:
                found[work.id] = work
                cells.setdefault(work.tables, []).append(work.id)
    groups = []
    for tables, ids in divide(
        cells, part_size(len(found), chunk_size), (p for d in earlier for p in d.groups.values())
    ):
        ids = sorted(ids)
        name = _part_name(tables, ids)
        groups.append(Group(name, tuple(found[work_id] for work_id in ids)))
    group_of_work = {work.id: group.id for group in groups for work in group.works}
    chunks = _chunks(experiments, group_of_work, chunk_size, earlier)
    division = Division(
        chunk_size,
        {group.id: [work.id for work in group.works] for group in groups},
        {chunk.id: [one.digest for one in chunk.experiments] for chunk in chunks},
    )
    run = run_name(experiments, refused, title)
    ask = Ask(run, tuple(experiments), group_of_work, tuple(refused))
    return Plan(tuple(groups), tuple(chunks), ask, division)


def _chunks(
    experiments: Sequence[Experiment],
    group_of_work: Mapping[str, str],
    chunk_size: int | str,
    earlier: Iterable[Division],
) -> list[Chunk]:
    """Few experiments are one chunk; of many, those that read the same tables are together."""
    asked = {experiment.digest: experiment for experiment in experiments}
    most = part_size(len(asked), chunk_size)
    cells: dict[tuple, list[str]] = {}
    for name, experiment in asked.items():
        tables = tuple(dict.fromkeys(work.tables for work in works(experiment)))
        cells.setdefault(tables if len(asked) > most else (), []).append(name)
    simulated = len(asked) <= estimation().simulation.experiments
    parts = divide(cells, most, (part for d in earlier for part in d.chunks.values()))
    chunks = []
    for _, names in parts:
        mine = tuple(asked[name] for name in names)
        ids = dict.fromkeys(work.id for experiment in mine for work in works(experiment))
        name = _part_name(works(mine[0])[0].tables, [*sorted(names), *["simulated"] * simulated])
        group_of = {work_id: group_of_work[work_id] for work_id in ids}
        chunks.append(Chunk(name, mine, group_of, simulated))
    return chunks


def _part_name(tables: Sequence[str], ids: Sequence[str]) -> str:
    return ".".join((label(tables[0]), *tables[1:], digest(ids, 8)))


def works(experiment: Experiment) -> tuple[Work, ...]:
    """Return the work of each worker of an experiment, in the order of its workers."""
    return tuple(
        _work(
            experiment.model_name,
            experiment.model_digest,
            experiment.isl,
            experiment.osl,
            experiment.nextn,
            experiment.nextn_accept_rates,
            experiment.enable_wide_ep,
            worker,
        )
        for worker in experiment.workers
    )


# Experiments that differ in SLA or cluster have the same works, and a digest costs 50 us.
_work = cache(Work)


def label(model_name: str) -> str:
    """Return a model's name as part of a file name: of a folder, its last part."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", PurePath(model_name).name)


def run_name(
    experiments: Sequence[Experiment], refused: Sequence[Refused] = (), title: str | None = None
) -> str:
    """Return the name of the folder of a question: what it is about, and a digest of all of it."""
    asked = [experiment.digest for experiment in experiments]
    identity = digest([asked, [asdict(one) for one in refused]], 6)
    if title is not None:
        return f"{label(title)}_{len(asked) + len(refused)}_experiments_{identity}"
    first = experiments[0]
    return (
        f"{label(first.model_name)}_isl{first.isl}_osl{first.osl}"
        f"_ttft{int(first.ttft_ms)}_tpot{int(first.tpot_ms)}_{identity}"
    )
