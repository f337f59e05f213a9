"""Every number that the comparison report shows, as tables.

The page, the CSV and Parquet files and the slides' figures are made of these tables and compute
nothing. Floats have six significant digits, so that the page's JSON holds the same numbers.
Throughput counts all GPUs that were asked for; costs are of output tokens.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import schemas
from paretoserve.experiments.plan import Refused
from paretoserve.paths import BENCHMARK_SCRIPT, VERIFY, RunPaths
from paretoserve.prices import Price, usd_per_million_tokens
from paretoserve.report.questions import FACTS, MODES, NEED, Question

ROLES = ("agg", "prefill", "decode")
DIGITS = 6
# Throughputs closer than this are called equal: the estimates are not better than that.
EQUAL = 0.01

# What a row of `best` says of the whole deployment, as far as this module knows it by name.
DEPLOYMENT = (
    "tokens_per_s_per_gpu",
    "tokens_per_s_per_user",
    "ttft_ms",
    "tpot_ms",
    "request_rate_per_s",
    "concurrency",
    "concurrency_per_replica",
    "total_gpus",
    "gpus_used",
    "replicas",
    "gpus_per_replica",
)
# What is read of the frontier, which is large.
FRONTIER_COLUMNS = (
    "experiment",
    "serving_mode",
    "meets_sla",
    *DEPLOYMENT,
    *(f"{r}_{n}" for r in ROLES for n in ("workers", "gpus_per_worker", *schemas.LAYOUT)),
)
# Types of columns, so that an empty table has them too; all other known ones are float64.
TYPES = {
    **dict.fromkeys(
        """experiment serving_mode deployment generator_config start_files verify
        benchmark role step operator provenance kind model workload system engine
        precision mtp status reason missing_table left_out question_digest
        perf_db_digest code_digest verdict mode agg_experiment disagg_experiment
        next_system next_engine next_mode cheapest_system cheapest_engine cheapest_mode
        group change because before_deployment now_deployment before_winner now_winner
        agg_layout prefill_layout decode_layout""".split(),
        pa.string(),
    ),
    **dict.fromkeys(
        """question need rank concurrency concurrency_per_replica total_gpus gpus_used replicas
        gpus_per_replica isl osl options cheapest_question candidates out_of_memory no_table
        estimated meets_ttft gpus""".split(),
        pa.int64(),
    ),
    **dict.fromkeys("wide_ep meets_sla answered equal".split(), pa.bool_()),
}
KINDS = {
    "attention": ("attention", "bmm"),
    "communication": ("ar_", "all_reduce", "p2p", "dispatch"),
    "GEMM": ("gemm",),
    "experts": ("moe",),
}

Columns = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Deployments (`best` or `frontier`) with what the report says of each; arrays are (N,)."""

    table: pa.Table
    question: np.ndarray
    usd_per_gpu_hour: np.ndarray  # of its mix of GPUs; NaN: unknown

    def __getitem__(self, name: str) -> np.ndarray:
        return self.table[name].to_numpy()

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def usd_per_million_tokens(self) -> np.ndarray:
        return usd_per_million_tokens(self.usd_per_gpu_hour, self["tokens_per_s_per_gpu"])

    @property
    def deployment(self) -> list[str]:
        """How each is made up, in words."""
        return _in_words(self.table)

    def take(self, rows: np.ndarray) -> "Rows":
        return Rows(self.table.take(rows), self.question[rows], self.usd_per_gpu_hour[rows])

    def plus(self, other: "Rows") -> "Rows":
        """These and the others; columns that both have."""
        names = [name for name in self.table.column_names if name in other.table.column_names]
        tables = [rows.table.select(names) for rows in (self, other)]
        return Rows(
            pa.concat_tables(tables).unify_dictionaries(),
            np.concatenate([self.question, other.question]),
            np.concatenate([self.usd_per_gpu_hour, other.usd_per_gpu_hour]),
        )


@dataclass(frozen=True)
class Asked:
    """The questions of a run, and what their experiments are called."""

    questions: tuple[Question, ...]

    def __post_init__(self) -> None:
        pairs = [(e, q.number) for q in self.questions for e in q.experiments]
        names = [experiment.name for experiment, _ in pairs]
        object.__setattr__(self, "experiments", [experiment for experiment, _ in pairs])
        object.__setattr__(self, "names", pa.array(names, pa.string()))
        object.__setattr__(self, "question", np.array([number for _, number in pairs], np.int64))
        object.__setattr__(self, "need", np.array([q.need for q in self.questions], np.int64))

    def facts(self, numbers: Sequence[int] | np.ndarray, *names: str) -> Columns:
        """Columns with the facts of the questions of these numbers."""
        wanted = names or FACTS
        by_question = {
            name: np.array([q.facts[name] for q in self.questions], object) for name in wanted
        }
        return {name: by_question[name][np.asarray(numbers, int)].tolist() for name in wanted}


def of_deployments(asked: Asked, table: pa.Table, prices: Mapping[str, Price]) -> Rows:
    """Join a table of deployments with its questions; a row's price is of the GPUs it uses."""
    at = pc.index_in(table["experiment"].cast(pa.string()), value_set=asked.names)
    experiment = at.to_numpy().astype(np.int64)
    usd, gpus = np.zeros(len(experiment)), np.zeros(len(experiment))
    for role in ROLES:
        of_role = np.array(
            [
                next((_usd(prices, w.system) for w in e.workers if w.role == role), 0.0)
                for e in asked.experiments
            ]
        )
        used = _filled(table[f"{role}_workers"]) * _filled(table[f"{role}_gpus_per_worker"])
        usd += np.where(used > 0, of_role[experiment], 0) * used
        gpus += used
    with np.errstate(invalid="ignore"):
        per_gpu = usd / gpus
    return Rows(table, asked.question[experiment], per_gpu)


def _usd(prices: Mapping[str, Price], system: str) -> float:
    return prices[system].usd_per_gpu_hour if system in prices else np.nan


def _filled(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(column, 0).to_numpy().astype(np.int64)


def _in_words(table: pa.Table) -> list[str]:
    """`4 × (4 prefill tp1 + 1 decode tp4)`, or `8 × tp4`."""
    layouts = {role: _layouts(table, role) for role in ROLES}
    workers = {role: _filled(table[f"{role}_workers"]).tolist() for role in ROLES}
    told = []
    for i, replicas in enumerate(table["replicas"].to_pylist()):
        if workers["agg"][i]:
            told.append(f"{replicas} × {layouts['agg'][i]}")
            continue
        parts = (f"{workers[role][i]} {role} {layouts[role][i]}" for role in ROLES[1:])
        told.append(f"{replicas} × ({' + '.join(parts)})")
    return told


def _layouts(table: pa.Table, role: str) -> list[str]:
    """`tp4`, `tp1 dp8 ep8`: the factors above one."""
    factors = [_filled(table[f"{role}_{name}"]).tolist() for name in schemas.LAYOUT]
    names = [name.replace("moe_tp", "etp").replace("moe_ep", "ep") for name in schemas.LAYOUT]
    return [
        " ".join(f"{name}{n}" for name, n in zip(names, of, strict=True) if n > 1) or "tp1"
        for of in zip(*factors, strict=True)
    ]


def configurations(best: Rows, with_files: Collection[str]) -> Columns:
    """One row per best configuration: its figures, memory, provenance and files.

    `with_files` are the experiments whose files were written; others have none.
    """
    table = best.table
    known = {"experiment", "rank", "serving_mode", "meets_sla", *DEPLOYMENT}
    names, ranks, modes = (table[k].to_pylist() for k in ("experiment", "rank", "serving_mode"))
    folders = [RunPaths(Path(), "").experiment(name) for name in names]
    files = [
        of if name in with_files else None
        for name, *of in zip(names, folders, ranks, modes, strict=True)
    ]
    more = [
        name
        for name in table.column_names
        if name not in known and not name.startswith(tuple(f"{role}_" for role in ROLES))
    ]
    columns: Columns = {
        "question": best.question,
        "experiment": names,
        "rank": ranks,
        "serving_mode": modes,
        "deployment": best.deployment,
        **{name: table[name] for name in (*DEPLOYMENT, *more)},
        "usd_per_million_tokens": best.usd_per_million_tokens,
        **_links(files),
    }
    for role in ROLES:
        has = table[f"{role}_workers"].is_valid().to_numpy()
        columns[f"{role}_layout"] = np.where(has, _layouts(table, role), None)
        for name in ("workers", "gpus_per_worker", "batch_size", "ctx_tokens", "step_ms"):
            columns[f"{role}_{name}"] = table[f"{role}_{name}"]
        for name in (*schemas.MEMORY, *schemas.SHARES):
            columns[f"{role}_{name}"] = table[f"{role}_{name}"]
    return columns


def _links(files: Sequence[Any]) -> Columns:
    """Paths below the run's folder, of each (experiment's folder, rank, mode) or None."""
    makers = {
        "generator_config": lambda of, rank, mode: of.generator_config(rank).as_posix(),
        "start_files": lambda of, rank, mode: f"{of.deployment(rank, mode).as_posix()}/",
        "verify": lambda of, rank, mode: (of.deployment(rank, mode) / VERIFY).as_posix(),
        "benchmark": lambda of, rank, mode: (
            of.deployment(rank, mode) / BENCHMARK_SCRIPT
        ).as_posix(),
    }
    return {
        name: [None if one is None else make(*one) for one in files]
        for name, make in makers.items()
    }


def frontier_points(frontier: Rows, detailed: np.ndarray) -> Columns:
    """One row per point of the frontiers of the detailed questions."""
    frontier = frontier.take(np.flatnonzero(np.isin(frontier.question, detailed)))
    names = ("experiment", "tokens_per_s_per_user", "tokens_per_s_per_gpu", "ttft_ms", "tpot_ms")
    return {
        "question": frontier.question,
        **{name: frontier.table[name] for name in (*names, "concurrency", "meets_sla")},
        "deployment": frontier.deployment,
        "usd_per_million_tokens": frontier.usd_per_million_tokens,
    }


def operators(asked: Asked, breakdown: pa.Table, detailed: np.ndarray) -> Columns:
    """One row per operator of each step of each best configuration of the detailed questions."""
    at = pc.index_in(breakdown["experiment"].cast(pa.string()), value_set=asked.names)
    question = asked.question[at.to_numpy().astype(np.int64)]
    rows = np.flatnonzero(np.isin(question, detailed))
    breakdown, question = breakdown.take(rows), question[rows]
    names = ("experiment", "rank", "role", "step", "operator", "ms", "provenance")
    kinds = {name: _kind(name) for name in pc.unique(breakdown["operator"]).to_pylist()}
    ms = breakdown["ms"].to_numpy().astype(np.float64)
    keys = (
        pc.cast(breakdown[name], pa.string()) for name in ("experiment", "rank", "role", "step")
    )
    steps = pc.binary_join_element_wise(*keys, "\n").combine_chunks().dictionary_encode()
    of_step = steps.indices.to_numpy()
    total = np.bincount(of_step, ms)[of_step] if len(ms) else ms
    return {
        "question": question,
        **{name: breakdown[name] for name in names},
        "kind": [kinds[name] for name in breakdown["operator"].to_pylist()],
        "of_step": ms / total,
        "step_total_ms": total,
    }


def _kind(operator: str) -> str:
    for kind, parts in KINDS.items():
        if any(part in operator for part in parts):
            return kind
    return "other"


def experiments(
    asked: Asked, status: pa.Table, made_from: Mapping[str, Mapping[str, str]]
) -> Columns:
    """One row per experiment: what it asked, what became of it, and what it was made from."""
    rows = _by_experiment(asked, status)
    facts = asked.facts(asked.question)
    names = asked.names.to_pylist()
    counts = [n for n in schemas.STATUS.names if n not in ("experiment", "serving_mode")]
    return {
        "question": asked.question,
        "experiment": names,
        "serving_mode": [e.serving_mode for e in asked.experiments],
        **facts,
        **{name: status[name].take(rows) for name in counts},
        "left_out": ["; ".join(e.left_out) for e in asked.experiments],
        **{
            f"{what}_digest": [made_from.get(name, {}).get(what, "") for name in names]
            for what in ("question", "perf_db", "code")
        },
    }


def _by_experiment(asked: Asked, table: pa.Table) -> np.ndarray:
    """Row of each experiment in a table that has one of each."""
    return pc.index_in(asked.names, value_set=table["experiment"].cast(pa.string())).to_numpy()


def verdicts(asked: Asked, best: Rows, status: pa.Table) -> Columns:
    """One row per question: agg against disagg, the winner's figures, and the verdict in a line."""
    count = len(asked.questions)
    first = best.take(_largest(best["tokens_per_s_per_gpu"], best.question * 2 + _is_disagg(best)))
    at = {mode: np.full(count, -1) for mode in MODES}
    for i, mode in enumerate(MODES):
        mine = np.flatnonzero(_is_disagg(first) == i)
        at[mode][first.question[mine]] = mine
    rate = {mode: _taken(first["tokens_per_s_per_gpu"], at[mode], np.nan) for mode in MODES}
    disagg = np.nan_to_num(rate["disagg"], nan=-1) > np.nan_to_num(rate["agg"], nan=-1)
    winner = np.where(disagg, at["disagg"], at["agg"])
    asked_modes = [{e.serving_mode for e in q.experiments} for q in asked.questions]
    reasons = dict(zip(status["experiment"].to_pylist(), status["reason"].to_pylist(), strict=True))
    text = [
        _verdict(modes, *figures, next((reasons[e.name] for e in q.experiments), ""))
        for q, modes, *figures in zip(
            asked.questions, asked_modes, rate["agg"].tolist(), rate["disagg"].tolist(), strict=True
        )
    ]
    names = np.array(first.table["experiment"].to_pylist(), object)
    return {
        "question": np.arange(count),
        "need": asked.need,
        **asked.facts(range(count)),
        "verdict": text,
        "mode": np.where(winner >= 0, np.where(disagg, "disagg", "agg"), None),
        "disagg_over_agg": rate["disagg"] / rate["agg"],
        "ahead": np.maximum(rate["disagg"], rate["agg"]) / np.minimum(rate["disagg"], rate["agg"]),
        "equal": np.abs(np.log(rate["disagg"] / rate["agg"])) < np.log(1 + EQUAL),
        **{f"{mode}_tokens_per_s_per_gpu": rate[mode] for mode in MODES},
        **{f"{mode}_experiment": _taken(names, at[mode], None) for mode in MODES},
        "experiment": _taken(names, winner, None),
        **{
            name: _taken(first[name], winner, np.nan)
            for name in DEPLOYMENT
            if name not in ("total_gpus", "concurrency_per_replica")
        },
        "deployment": _taken(np.array(first.deployment, object), winner, None),
        "usd_per_million_tokens": _taken(first.usd_per_million_tokens, winner, np.nan),
    }


def _is_disagg(rows: Rows) -> np.ndarray:
    return pc.equal(rows.table["serving_mode"], "disagg").to_numpy().astype(np.int64)


def _taken(values: np.ndarray, at: np.ndarray, absent: Any) -> np.ndarray:
    """`values[at]`, and `absent` where `at` is -1."""
    taken = np.full(len(at), absent, object if values.dtype == object else float)
    taken[at >= 0] = values[at[at >= 0]]
    return taken


def _largest(value: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Row of the largest value of each group, by group; of equals the first."""
    order = np.lexsort((np.arange(len(value)), -value, group))
    return order[np.flatnonzero(np.diff(group[order], prepend=-1))]


def _verdict(modes: set[str], agg: float, disagg: float, reason: str) -> str:
    rate = {"agg": agg, "disagg": disagg}
    found = {mode: value for mode, value in rate.items() if value == value}
    if not found:
        return f"no answer: {reason}"
    best = max(found, key=found.__getitem__)
    told = f"{best}: {rate[best]:.1f} tokens/s/gpu"
    other = "agg" if best == "disagg" else "disagg"
    if other in found:
        ratio = rate[best] / rate[other]
        if ratio < 1 + EQUAL:
            return f"agg and disagg are equal within {EQUAL:.0%}: {rate[best]:.1f} tokens/s/gpu"
        against = f"{rate[best]:.1f} against {rate[other]:.1f} tokens/s/gpu"
        return f"{best}, {ratio:.2f} times {other}: {against}"
    return told + (f"; {other} has no answer" if other in modes else f"; {other} was not asked")


def decisions(verdict: Columns) -> Columns:
    """One row per need: the option that serves most per GPU, the cheapest, and what comes next."""
    rate = _nan_low(verdict["tokens_per_s_per_gpu"])
    need = verdict["need"]
    order = np.lexsort((np.arange(len(rate)), -rate, need))
    start = np.flatnonzero(np.diff(need[order], prepend=-1))
    size = np.diff(start, append=len(order))
    first = order[start]
    second = np.where(size > 1, order[np.minimum(start + 1, len(order) - 1)], -1)
    second = np.where((second >= 0) & (rate[second] > 0), second, -1)
    usd = np.asarray(verdict["usd_per_million_tokens"], float)
    cheapest = _largest(-np.where(np.isnan(usd), np.inf, usd), need)
    cheapest = np.where(np.isnan(usd[cheapest]), -1, cheapest)
    answered = rate[first] > 0
    chosen = np.where(answered, first, -1)

    def of(name: str, rows: np.ndarray, absent: Any = None) -> np.ndarray:
        values = np.asarray(verdict[name])
        return _taken(values if values.dtype.kind == "f" else values.astype(object), rows, absent)

    return {
        "need": need[first],
        "question": first,
        **{name: [verdict[name][i] for i in first] for name in NEED},
        "options": size,
        "answered": answered,
        **{
            name: of(name, chosen)
            for name in ("system", "engine", "precision", "mode", "experiment", "deployment")
        },
        **{
            name: of(name, chosen, np.nan)
            for name in ("tokens_per_s_per_gpu", "tokens_per_s_per_user", "ttft_ms", "tpot_ms")
        },
        "usd_per_million_tokens": of("usd_per_million_tokens", chosen, np.nan),
        "next_system": of("system", second),
        "next_engine": of("engine", second),
        "next_mode": of("mode", second),
        "times_next": of("tokens_per_s_per_gpu", chosen, np.nan)
        / of("tokens_per_s_per_gpu", second, np.nan),
        "cheapest_question": np.where(cheapest >= 0, cheapest, -1),
        "cheapest_system": of("system", cheapest),
        "cheapest_engine": of("engine", cheapest),
        "cheapest_mode": of("mode", cheapest),
        "cheapest_usd_per_million_tokens": of("usd_per_million_tokens", cheapest, np.nan),
    }


def _nan_low(values: Any) -> np.ndarray:
    return np.nan_to_num(np.asarray(values, float), nan=-1.0)


def detailed(verdict: Columns, decision: Columns, most: int) -> np.ndarray:
    """Numbers of the questions with details: the winners of the needs first, then the best."""
    rate = _nan_low(verdict["tokens_per_s_per_gpu"])
    numbers = np.arange(len(rate))
    wins = np.isin(numbers, decision["question"])
    return np.sort(np.lexsort((numbers, -rate, ~wins))[:most])


def systems(verdict: Columns) -> Columns:
    """One row per need and system: the best of its engines, precisions and modes."""
    rate = _nan_low(verdict["tokens_per_s_per_gpu"])
    system = np.asarray(verdict["system"], object)
    names, code = np.unique(system.astype(str), return_inverse=True)
    group = verdict["need"] * len(names) + code
    rows = _largest(rate, group)
    most = np.full(int(verdict["need"].max(initial=0)) + 1, -1.0)
    np.maximum.at(most, verdict["need"], rate)
    best = most[verdict["need"][rows]]
    columns = {
        name: [verdict[name][i] for i in rows]
        for name in ("need", "question", *NEED, "system", "engine", "mode", "tokens_per_s_per_gpu")
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(rate[rows] > 0, rate[rows] / best, np.nan)
    return {
        **columns,
        "of_best": share,
        "usd_per_million_tokens": [verdict["usd_per_million_tokens"][i] for i in rows],
    }


def modes(verdict: Columns) -> Columns:
    """Agg against disagg by (model, system, isl, osl, tpot): of several questions the best."""
    rows = np.flatnonzero([experiment is not None for experiment in verdict["experiment"]])
    keys = ("model", "system", "workload", "isl", "osl", "tpot_limit_ms")
    cells = list(zip(*([verdict[k][i] for i in rows] for k in keys), strict=True))
    codes = {cell: i for i, cell in enumerate(dict.fromkeys(cells))}
    group = np.array([codes[cell] for cell in cells], np.int64)
    rows = rows[_largest(_nan_low(verdict["tokens_per_s_per_gpu"])[rows], group)]
    names = ("question", *keys, "engine", "ttft_limit_ms", "total_gpus", "mode")
    ratios = ("disagg_over_agg", "ahead", "equal")
    rates = tuple(f"{mode}_tokens_per_s_per_gpu" for mode in MODES)
    return {name: [verdict[name][i] for i in rows] for name in (*names, *ratios, *rates)}


# What curves over TPOT are told apart by: everything but the TPOT limit, engine and mode.
CURVE = ("model", "system", "workload", "isl", "osl", "ttft_limit_ms", "total_gpus")


def at_targets(asked: Asked, frontier: Rows, targets_ms: Sequence[float], name: str) -> Columns:
    """The most tokens/s/gpu within each TPOT target, per model, system, load and TTFT limit.

    Exact, because the frontier holds, for every TPOT, the best deployment within the TTFT limit.
    Returns one row per curve and target that something meets; `name` heads the targets' column.
    """
    facts = asked.facts(range(len(asked.questions)), *CURVE)
    cells = list(zip(*facts.values(), strict=True))
    codes = {cell: i for i, cell in enumerate(dict.fromkeys(cells))}
    curve = np.array([codes[cell] for cell in cells], np.int64)[frontier.question]
    tpot, rate = frontier["tpot_ms"], frontier["tokens_per_s_per_gpu"]
    grid = np.asarray(targets_ms, float)
    # Of each row the first target that it meets; then the best row up to each target.
    met = np.searchsorted(grid, tpot * (1 - 1e-12))
    rows = np.flatnonzero(met < len(grid))
    best = np.full((len(codes), len(grid)), -1)
    order = rows[np.lexsort((-rows, rate[rows]))]
    best[curve[order], met[order]] = order  # the last one written is the largest
    value = np.full(best.shape, -1.0)
    value[best >= 0] = rate[best[best >= 0]]
    before = np.maximum.accumulate(np.insert(value, 0, -1, axis=1), axis=1)[:, :-1]
    column = np.maximum.accumulate(np.where(value > before, np.arange(len(grid)), 0), axis=1)
    best = np.take_along_axis(best, column, axis=1)
    at, target = np.nonzero(best >= 0)
    found = frontier.take(best[at, target])
    engines = asked.facts(found.question, "engine")
    heads = list(codes)
    return {
        **{key: [heads[i][k] for i in at] for k, key in enumerate(CURVE)},
        name: grid[target],
        "tokens_per_s_per_gpu": found["tokens_per_s_per_gpu"],
        "tokens_per_s_per_user": found["tokens_per_s_per_user"],
        "tpot_ms": found["tpot_ms"],
        "mode": found.table["serving_mode"],
        **engines,
        "experiment": found.table["experiment"],
        "deployment": found.deployment,
        "usd_per_million_tokens": found.usd_per_million_tokens,
    }


def user_speeds(asked: Asked, frontier: Rows, speeds: Sequence[float]) -> Columns:
    """The most tokens/s/gpu at each speed of one user (tokens/s), and its cost."""
    targets = 1e3 / np.asarray(speeds, float)[::-1]
    columns = at_targets(asked, frontier, targets, "speed")
    columns["speed"] = np.round(1e3 / columns["speed"], 9)
    return columns


def fewest_gpus(asked: Asked, found: Rows, rates: Sequence[float]) -> Columns:
    """The fewest GPUs that carry each request rate, per need and system.

    `found` must be within the SLA. Whole replicas of the configurations found, so an upper bound:
    they were chosen for throughput on the cluster that was asked for.
    """
    per_replica = found["request_rate_per_s"] / found["replicas"]
    system = np.array(asked.facts(found.question, "system")["system"], object)
    names, code = np.unique(system.astype(str), return_inverse=True)
    group = asked.need[found.question] * max(len(names), 1) + code
    parts: list[Columns] = []
    for rate in rates:
        replicas = np.ceil(rate / per_replica - 1e-9)
        gpus = replicas * found["gpus_per_replica"]
        # Of equally many GPUs, those that could carry more.
        rows = _largest(-gpus + per_replica * replicas / 1e9, group)
        parts.append(
            {
                "row": rows,
                "rate": np.full(len(rows), rate),
                "gpus": gpus[rows],
                "replicas": replicas[rows],
            }
        )
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    order = np.lexsort((joined["rate"], group[joined["row"]]))
    joined = {name: values[order] for name, values in joined.items()}
    rows = found.take(joined["row"].astype(int))
    hourly = joined["gpus"] * rows.usd_per_gpu_hour
    return {
        "need": asked.need[rows.question],
        "question": rows.question,
        **asked.facts(rows.question, *NEED[:-1], "system", "engine"),
        "request_rate_per_s": joined["rate"],
        "gpus": joined["gpus"].astype(int),
        "replicas": joined["replicas"].astype(int),
        "gpus_per_replica": rows.table["gpus_per_replica"],
        "mode": rows.table["serving_mode"],
        "deployment": [re.sub(r"^\d+ × ", "", text) for text in rows.deployment],
        "usd_per_hour": hourly,
        "experiment": rows.table["experiment"],
    }


def unanswered(asked: Asked, status: pa.Table, refused: Sequence[Refused]) -> Columns:
    """One row per experiment without an answer, not asked, or with a part of it left out."""
    rows = _by_experiment(asked, status)
    states, reasons, missing = (
        status[name].take(rows).to_pylist() for name in ("status", "reason", "missing_table")
    )
    found = []
    for i, experiment in enumerate(asked.experiments):
        if states[i] != "ok":
            found.append((i, "no answer", reasons[i]))
        elif missing[i]:
            found.append((i, "part of the search left out", missing[i]))
        found += [(i, "engine left out", why) for why in experiment.left_out]
    at = [i for i, _, _ in found]
    named = [asked.experiments[i] for i in at]
    kinds, reasons = [kind for _, kind, _ in found], [reason for _, _, reason in found]
    reasons += [one.reason for one in refused]
    return {
        "question": [*asked.question[at].tolist(), *(None for _ in refused)]
        if at or refused
        else [],
        "experiment": [one.name for one in (*named, *refused)],
        "serving_mode": [one.serving_mode for one in (*named, *refused)],
        "kind": [*kinds, *("cannot be asked" for _ in refused)],
        "group": [_group(reason) for reason in reasons],
        "reason": reasons,
    }


def _group(reason: str) -> str:
    """The reason up to its figures: what reasons that differ in numbers only have in common."""
    head = re.split(r"[:;]", reason, maxsplit=1)[0]
    return re.sub(r"(?<![\w.])\d[\d.,]*", "…", head).strip()


def as_table(columns: Columns) -> pa.Table:
    """Arrow table of the columns, floats to DIGITS significant digits, NaN as null."""
    return pa.table({name: _column(name, values) for name, values in columns.items()})


def _column(name: str, values: Any) -> pa.Array:
    if isinstance(values, pa.ChunkedArray | pa.Array):
        array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    else:
        listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
        array = pa.array(listed, from_pandas=True)
    if pa.types.is_null(array.type) or name in TYPES:
        array = array.cast(TYPES.get(name, pa.float64()))
    if pa.types.is_floating(array.type):
        return pa.array(_rounded(array.to_numpy(zero_copy_only=False)), from_pandas=True)
    return array


def _rounded(values: np.ndarray) -> np.ndarray:
    """Float64 with DIGITS significant digits, each the double nearest to its decimal."""
    exact = np.asarray(values, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = DIGITS - 1 - np.floor(np.log10(np.abs(exact)))
    digits = np.where(np.isfinite(digits), digits, 0).astype(int)
    scale = 10.0 ** np.abs(digits)
    return np.where(digits >= 0, np.round(exact * scale) / scale, np.round(exact / scale) * scale)
