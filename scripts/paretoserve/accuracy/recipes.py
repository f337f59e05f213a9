"""Published recipes of the dashboards' runs: what a row of a run leaves out.

A dashboard's row tells the load and the GPUs of a worker, often not how many workers there were,
and never drafts (MTP) or slots. The recipe that was benchmarked tells all of it, and is public:
perf_db/silicon/recipes.csv has one row per recipe, with the clients that it was run for. A run is
of a recipe if engine, model, system, precision, load and all sizes that its row tells agree. Of
several those of the run's own engine version come first (of the oldest, where it tells none), then
those that were run for as many clients, or for nearly as many.

Where several are left, most often one with drafts and one without, runs of one recipe that are
numbered one after the other settle it together. What is left open is taken to draft: of a tpot 1.7
times larger or smaller than predicted, the larger is the smaller error.
"""

import re
from collections.abc import Mapping, Sequence
from csv import DictReader
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from math import log

from paretoserve.models.catalog import find_model
from paretoserve.paths import RECIPES

LARGEST_WORKER = 32  # GPUs of an aggregated one


@dataclass(frozen=True)
class Side:
    """Workers of one role: how many, GPUs of each, and how these split attention and experts."""

    workers: int
    gpus: int
    attention_dp: bool
    expert_parallel: bool

    @property
    def layout(self) -> tuple[int, int, int, int, int]:
        """(tp, pp, dp, moe_tp, moe_ep) of a worker."""
        tp, dp = (1, self.gpus) if self.attention_dp else (self.gpus, 1)
        moe_tp, moe_ep = (1, self.gpus) if self.expert_parallel else (self.gpus, 1)
        return (tp, 1, dp, moe_tp, moe_ep)


@dataclass(frozen=True)
class Recipe:
    """One deployment and the load that it was run for.

    sides : by role, agg or prefill and decode
    slots : requests that an attention rank of a decode worker may hold, None where not told
    draft_tokens : of a step
    host_overlaps : whether the host prepares a step with drafts while the GPU computes another
    """

    backend: str
    version: str
    architecture: str
    system: str
    precision: str
    load: tuple[int, int]  # isl, osl
    clients: frozenset[int]
    sides: Mapping[str, Side]
    slots: int | None
    draft_tokens: int
    host_overlaps: bool

    @property
    def gpus(self) -> int:
        """GPUs of all workers."""
        return sum(side.workers * side.gpus for side in self.sides.values())


@dataclass(frozen=True)
class Told:
    """What the row of a run tells: `gpus` of a worker by role, and `workers` and `attention_dp` by
    role where it tells them. All GPUs of prefill and decode may be told as the size of each, or of
    one worker; of 1 GPU for each, nothing is told.
    """

    id: str
    backend: str
    version: str
    architecture: str
    system: str
    precision: str
    load: tuple[int, int]
    clients: int
    gpus: Mapping[str, int]
    workers: Mapping[str, int]
    attention_dp: Mapping[str, bool]

    def agrees(self, recipe: Recipe) -> bool:
        """Whether the recipe has all that is told but the version and the clients."""
        return (
            (self.backend, self.architecture, self.system, self.precision, self.load)
            == (recipe.backend, recipe.architecture, recipe.system, recipe.precision, recipe.load)
            and not (self.drafts_left_out and recipe.draft_tokens)
            and (self._is_whole(recipe) or self._is_of_workers(recipe))
        )

    def _is_whole(self, recipe: Recipe) -> bool:
        sizes = set(self.gpus.values())
        no_worker = len(sizes) == 1 and (len(self.gpus) > 1 or max(sizes) > LARGEST_WORKER)
        return no_worker and not self.workers and sizes <= {recipe.gpus, 1}

    def _is_of_workers(self, recipe: Recipe) -> bool:
        sides = recipe.sides
        return (
            {role: side.gpus for role, side in sides.items()} == self.gpus
            and all(sides[role].workers == count for role, count in self.workers.items())
            and all(sides[role].attention_dp == dp for role, dp in self.attention_dp.items())
        )

    @property
    def drafts_left_out(self) -> bool:
        """Whether it is of a collection that has no runs with drafts: one tells workers and has ids
        that end in cfg and a number, one is of single workers and does not tell the version.
        """
        of_old = "agg" in self.gpus and not self.version
        return bool(self.workers) or of_old or re.search(r"_cfg\d+$", self.id) is not None

    @property
    def place(self) -> tuple[str, int]:
        """Its series and its number in it. Runs of a series differ in clients and number only; one
        collection numbers them by recipe.
        """
        found = re.fullmatch(r"(2026_03_25_.*)_c\d+_(.*?)_?(\d+)", self.id)
        return (f"{found[1]} {found[2]}", int(found[3])) if found else (self.id, 0)


def recipes_of(runs: Sequence[Told]) -> list[tuple[Recipe, ...]]:
    """The recipes that each run may be of, first the one it is taken to be of."""
    choices = [_agreeing(run) for run in runs]
    in_order = sorted(range(len(runs)), key=lambda index: runs[index].place)
    for _, series in groupby(in_order, key=lambda index: runs[index].place[0]):
        _settle(list(series), runs, choices)
    return [tuple(sorted(agree, key=lambda r: -r.draft_tokens)) for agree in choices]


def _agreeing(run: Told) -> tuple[Recipe, ...]:
    """The recipes that a run may be of, of those that come first."""
    agree = [recipe for recipe in recipes() if run.agrees(recipe)]
    version = run.version or min((recipe.version for recipe in agree), default="")
    agree = [recipe for recipe in agree if recipe.version == version] or agree
    away = [min(abs(log(run.clients / one)) for one in recipe.clients) for recipe in agree]
    return tuple(recipe for recipe, far in zip(agree, away, strict=True) if far == min(away))


def _settle(series: Sequence[int], runs: Sequence[Told], choices: list[tuple[Recipe, ...]]) -> None:
    """Leave the runs of a series whose numbers follow each other what is common to them."""
    part: list[int] = []
    common: tuple[Recipe, ...] = ()
    for index in series:
        both = tuple(recipe for recipe in common if recipe in choices[index])
        follows = part and runs[index].place[1] == runs[part[-1]].place[1] + 1
        if follows and both and runs[index].clients not in {runs[i].clients for i in part}:
            part.append(index)
            common = both
        else:
            part, common = [index], choices[index]
        for member in part:
            choices[member] = common


@cache
def recipes() -> tuple[Recipe, ...]:
    """All of perf_db/silicon/recipes.csv."""
    with RECIPES.open(encoding="utf-8") as lines:
        return tuple(_recipe(row) for row in DictReader(lines))


def _recipe(row: Mapping[str, str]) -> Recipe:
    roles = ("prefill", "decode") if row["prefill_workers"] else ("decode",)
    sides = {
        role: Side(
            int(row[f"{role}_workers"]),
            int(row[f"{role}_gpus"]),
            row[f"{role}_attention"] == "dp",
            row[f"{role}_experts"] == "ep",
        )
        for role in roles
    }
    return Recipe(
        backend=row["backend"],
        version=row["version"],
        architecture=find_model(row["model_path"]).digest,
        system=row["system"],
        precision=row["precision"],
        load=(int(row["isl"]), int(row["osl"])),
        clients=frozenset(map(int, row["concurrency"].split())),
        sides=sides if len(sides) > 1 else {"agg": sides["decode"]},
        slots=int(row["decode_slots"]) if row["decode_slots"] else None,
        draft_tokens=int(row["draft_tokens"]),
        host_overlaps=row["host_overlaps"] != "no",
    )
