"""What a run has to do: works grouped by the tables that they read, and the question asked of them.

Works know neither SLA nor cluster, so runs that differ only in these share estimates.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any, Self

from paretoserve.experiments.experiment import Experiment, Worker, plain


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
        return _digest(asdict(self), 12)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the work whose `plain` form is `data`."""
        parts = {
            "nextn_accept_rates": tuple(data["nextn_accept_rates"]),
            "worker": Worker.from_dict(data["worker"]),
        }
        return cls(**{**data, **parts})


@dataclass(frozen=True)
class Group:
    """Works of one model that read the same tables."""

    id: str
    works: tuple[Work, ...]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the group whose `plain` form is `data`."""
        return cls(data["id"], tuple(Work.from_dict(work) for work in data["works"]))


@dataclass(frozen=True)
class Ask:
    """The experiments of one run, and where the estimates of their works are."""

    run: str
    experiments: tuple[Experiment, ...]
    group_of_work: dict[str, str]  # work id -> group id

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the ask whose `plain` form is `data`."""
        experiments = tuple(Experiment.from_dict(one) for one in data["experiments"])
        return cls(data["run"], experiments, data["group_of_work"])


@dataclass(frozen=True)
class Plan:
    """All of one run: `groups` to enumerate and estimate, then `ask` to answer from them."""

    groups: tuple[Group, ...]
    ask: Ask

    @property
    def run(self) -> str:
        """Name of the run's folder."""
        return self.ask.run

    def work_spec(self, group_id: str) -> dict[str, Any]:
        """Return what enumerate and estimate read, as plain data: a `Group`."""
        return plain(next(group for group in self.groups if group.id == group_id))

    def ask_spec(self) -> dict[str, Any]:
        """Return what pareto, generate and compare read, as plain data: an `Ask`."""
        return plain(self.ask)


def make_plan(experiments: Sequence[Experiment]) -> Plan:
    """Return the plan of these experiments. The same experiments give the same names and ids."""
    by_tables: dict[tuple[str, ...], dict[str, Work]] = {}
    for experiment in experiments:
        for work in works(experiment):
            worker = work.worker
            tables = (work.model_name, worker.system, worker.backend, worker.version)
            by_tables.setdefault(tables, {})[work.id] = work
    groups = []
    for tables, found in by_tables.items():
        ids = sorted(found)
        name = ".".join((label(tables[0]), *tables[1:], _digest(ids, 8)))
        groups.append(Group(name, tuple(found[work_id] for work_id in ids)))
    group_of_work = {work.id: group.id for group in groups for work in group.works}
    return Plan(tuple(groups), Ask(_run_name(experiments), tuple(experiments), group_of_work))


def works(experiment: Experiment) -> tuple[Work, ...]:
    """Return the work of each worker of an experiment, in the order of its workers."""
    return tuple(
        Work(
            model_name=experiment.model_name,
            model_digest=experiment.model_digest,
            isl=experiment.isl,
            osl=experiment.osl,
            nextn=experiment.nextn,
            nextn_accept_rates=experiment.nextn_accept_rates,
            enable_wide_ep=experiment.enable_wide_ep,
            worker=worker,
        )
        for worker in experiment.workers
    )


def label(model_name: str) -> str:
    """Return a model's name as part of a file name: of a folder, its last part."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", PurePath(model_name).name)


def _run_name(experiments: Sequence[Experiment]) -> str:
    first = experiments[0]
    identity = _digest([asdict(experiment) for experiment in experiments], 6)
    return (
        f"{label(first.model_name)}_isl{first.isl}_osl{first.osl}"
        f"_ttft{int(first.ttft_ms)}_tpot{int(first.tpot_ms)}_{identity}"
    )


def _digest(content: Any, length: int) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode()).hexdigest()[:length]
