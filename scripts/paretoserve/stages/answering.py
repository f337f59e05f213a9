"""Pareto: from step latencies to deployments of the whole cluster that keep the SLA.

Reads estimates only, so a new SLA or cluster size needs no new estimate. For each experiment:
all deployments -> those within ttft -> frontier of tokens/s/user against tokens/s/gpu -> the best
ones within tpot, one per pair of worker layouts. Throughput counts every GPU that was asked for.
Where a probability of the SLA is asked for, the best are taken of those whose simulation has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import schemas
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.plan import Ask, Chunk, Refused, Work, works
from paretoserve.hardware import System, load_system
from paretoserve.pareto import frontier
from paretoserve.serving import aggregated as agg
from paretoserve.serving import disaggregated as disagg
from paretoserve.serving.mtp import expected_tokens_per_step
from paretoserve.settings import estimation
from paretoserve.stages.assuring import descend, ladders
from paretoserve.stages.simulating import with_simulations

COUNTS = ("candidates", "out_of_memory", "no_table", "estimated")


@dataclass(frozen=True)
class Worker:
    """Estimated candidates of one worker role, without gaps.

    Columns of ESTIMATES and schemas.MEMORY as arrays.
    """

    columns: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["candidate_id"])

    @property
    def ranks(self) -> np.ndarray:
        """Batches in flight: one per attention-dp rank and pipeline stage."""
        return self["dp"].astype(np.int64) * self["pp"]


@dataclass(frozen=True)
class Deployments:
    """Ways to serve one experiment, each (N,); `roles` maps a role to its rows and counts."""

    ttft_ms: np.ndarray
    tpot_ms: np.ndarray
    request_rate_per_s: np.ndarray
    concurrency_per_replica: np.ndarray
    gpus_per_replica: np.ndarray
    replicas: np.ndarray
    roles: dict[str, dict[str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.ttft_ms)

    def plus(self, other: "Deployments") -> "Deployments":
        """These and then the others, of the same workers."""
        joined = {
            field.name: np.concatenate([getattr(self, field.name), getattr(other, field.name)])
            for field in fields(self)
            if field.name != "roles"
        }
        roles = {
            role: {name: np.concatenate([of[name], other.roles[role][name]]) for name in of}
            for role, of in self.roles.items()
        }
        return Deployments(**joined, roles=roles)


def pareto(
    ask: Ask | Chunk, candidates: Mapping[str, pa.Table], estimates: Mapping[str, pa.Table]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return the frontier, best and status tables of the experiments of a run or chunk.

    `candidates` and `estimates` are those of each group of the ask, by group id.
    """
    pools = Pools(ask.group_of_work, candidates, estimates)
    parts = [_answer(experiment, pools) for experiment in ask.experiments]
    frontiers, bests, statuses = zip(*parts, strict=True)
    return (
        pa.concat_tables(frontiers).unify_dictionaries(),
        pa.concat_tables(bests).unify_dictionaries(),
        pa.concat_tables(statuses).unify_dictionaries(),
    )


def refused_status(refused: Sequence[Refused]) -> pa.Table:
    """Return the STATUS rows of experiments that could not be asked."""
    columns = {
        "experiment": [one.name for one in refused],
        "serving_mode": [one.serving_mode for one in refused],
        "status": ["unanswerable"] * len(refused),
        "reason": pa.array([one.reason for one in refused], pa.string()),
        "missing_table": pa.array([""] * len(refused), pa.string()),
        **{name: np.zeros(len(refused), int) for name in (*COUNTS, "meets_ttft", "meets_sla")},
    }
    return schemas.table(schemas.STATUS, columns)


class Pools:
    """The workers that experiments choose from, and the deployments that can be made of them.

    Experiments that differ in SLA or cluster share workers, those that differ in tpot deployments:
    each is looked up once.
    """

    def __init__(
        self,
        group_of_work: Mapping[str, str],
        candidates: Mapping[str, pa.Table],
        estimates: Mapping[str, pa.Table],
    ):
        self._group_of_work = group_of_work
        self._candidates, self._estimates = (
            {group: _RowsOfWorks(table) for group, table in tables.items()}
            for tables in (candidates, estimates)
        )
        self.pool = cache(self._pool)
        self._worker = cache(lambda work_id, total_gpus: self.pool(work_id).worker(total_gpus))
        self._deployments: dict[tuple, Deployments] = {}

    def worker(self, work: Work, total_gpus: int) -> Worker:
        """The candidates of a work that have an estimate and fit a cluster."""
        return self._worker(work.id, total_gpus)

    def deployments(
        self, experiment: Experiment, ttft_limit_ms: float, prefer: str = "rate"
    ) -> tuple[dict[str, Worker], Deployments]:
        """The workers of each role, and what can be deployed of them within a limit on ttft."""
        workers = {
            work.worker.role: self.worker(work, experiment.total_gpus) for work in works(experiment)
        }
        key = (
            tuple(work.id for work in works(experiment)),
            experiment.serving_mode,
            experiment.total_gpus,
            experiment.replica,
            experiment.tuning,
            ttft_limit_ms,
            prefer,
        )
        if key not in self._deployments:
            if experiment.serving_mode == "agg":
                made = _aggregated(experiment, workers, ttft_limit_ms)
            else:
                made = _disaggregated(experiment, workers, ttft_limit_ms, prefer)
            self._deployments[key] = made
        return workers, self._deployments[key]

    def _pool(self, work_id: str) -> "Pool":
        group = self._group_of_work[work_id]
        tried, priced = self._candidates[group][work_id], self._estimates[group][work_id]
        unpriced = priced.filter(pc.not_equal(priced["reason"], ""))
        usable = priced.filter(pc.equal(priced["reason"], ""))
        of_candidate = pc.index_in(usable["candidate_id"], value_set=tried["candidate_id"])
        memory = tried.select(list(schemas.MEMORY)).take(of_candidate)
        columns = {name: table[name] for table in (memory, usable) for name in table.column_names}
        counts = {
            "candidates": tried.num_rows,
            "out_of_memory": pc.sum(pc.equal(tried["reason"], "out of memory")).as_py() or 0,
            "no_table": unpriced.num_rows,
        }
        return Pool(
            tried,
            priced,
            Worker({name: of.to_numpy(zero_copy_only=False) for name, of in columns.items()}),
            counts,
            unpriced["reason"][0].as_py() if unpriced.num_rows else "",
        )


@dataclass(frozen=True)
class Pool:
    """Candidates of one work: all, those with estimates, and the usable ones as arrays."""

    tried: pa.Table
    priced: pa.Table
    usable: Worker
    counts: Mapping[str, int]
    missing_table: str

    def worker(self, total_gpus: int) -> Worker:
        """The usable candidates that fit a cluster."""
        fits = self.usable["gpus_per_worker"] <= total_gpus
        if fits.all():
            return self.usable
        return Worker({name: column[fits] for name, column in self.usable.columns.items()})


class _RowsOfWorks(dict):
    """Slices of a group's table by work id: the rows of a work stand together."""

    def __init__(self, table: pa.Table):
        super().__init__()
        self._empty = table.slice(0, 0)
        whole = table["work_id"].unify_dictionaries().combine_chunks()
        codes = whole.indices.to_numpy()
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        ends = np.append(starts, len(codes))[1:]
        names = whole.dictionary.to_pylist()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            self[names[codes[start]]] = table.slice(start, end - start)

    def __missing__(self, work_id: str) -> pa.Table:
        return self._empty


def _answer(experiment: Experiment, pools: Pools) -> tuple[pa.Table, pa.Table, pa.Table]:
    counts = dict.fromkeys(COUNTS, 0)
    trouble: tuple[str, str] | None = None
    missing_table = ""
    for work in works(experiment):
        pool = pools.pool(work.id)
        worker = pools.worker(work, experiment.total_gpus)
        for name, count in pool.counts.items():
            counts[name] += count
        counts["estimated"] += len(worker)
        missing_table = missing_table or pool.missing_table
        if not len(worker):
            trouble = trouble or _why_no_worker(
                work.worker.role, pool.tried, pool.priced, experiment.total_gpus
            )

    if trouble:
        nothing = schemas.DEPLOYMENTS.empty_table()
        return nothing, nothing, _status(experiment, *trouble, missing_table, counts, None)
    workers, within = pools.deployments(experiment, experiment.ttft_ms)
    speed, throughput = 1e3 / within.tpot_ms, within.request_rate_per_s
    on_frontier = frontier(speed, throughput)
    ok = np.flatnonzero(within.tpot_ms <= experiment.tpot_ms)
    best = _top(workers, within, ok, experiment.top_n)
    reason = "" if len(best) else _binding(experiment, pools)
    of_best = within
    if experiment.sla_probability is not None and len(best):
        if (
            experiment.serving_mode == "disagg"
        ):  # with more prefill workers the first token is surer
            of_best = within.plus(pools.deployments(experiment, experiment.ttft_ms, "ttft")[1])
            ok = np.flatnonzero(of_best.tpot_ms <= experiment.tpot_ms)
        best, reason = _sure(experiment, workers, of_best, ok)
    status = "ok" if len(best) else "no_feasible"
    return (
        _table(experiment, workers, within, on_frontier, np.arange(len(on_frontier))),
        _table(experiment, workers, of_best, best, np.arange(len(best)) + 1),
        _status(experiment, status, reason, missing_table, counts, within),
    )


def _aggregated(
    experiment: Experiment, workers: Mapping[str, Worker], ttft_limit_ms: float
) -> Deployments:
    """One worker is a replica."""
    worker = workers["agg"]
    batch = worker["batch_size"]
    _, served = serve_aggregated(experiment, worker)
    keep = np.flatnonzero(served.ttft_ms <= ttft_limit_ms)
    gpus = worker["gpus_per_worker"][keep].astype(np.int64)
    rate = served.seq_per_s[keep] * worker.ranks[keep]
    replicas = experiment.total_gpus // gpus
    return Deployments(
        ttft_ms=served.ttft_ms[keep],
        tpot_ms=served.tpot_ms[keep],
        request_rate_per_s=rate * replicas,
        concurrency_per_replica=batch[keep] * worker.ranks[keep],
        gpus_per_replica=gpus,
        replicas=replicas,
        roles={
            "agg": {
                "row": keep,
                "workers": np.ones_like(keep),
                "step_ms": worker["decode_step_ms"][keep],
                "seq_per_s_per_worker": rate,
            }
        },
    )


def serve_aggregated(
    experiment: Experiment, worker: Worker
) -> tuple[agg.MixedSteps, agg.Aggregated]:
    """How agg workers divide their steps, and what one rank and stage of each serves."""
    batch, tuning = worker["batch_size"], experiment.tuning
    steps = agg.mixed_steps(
        batch,
        worker["ctx_tokens"],
        experiment.isl,
        experiment.osl,
        tokens_per_step(experiment),
    )
    return steps, agg.aggregated(
        steps,
        batch,
        experiment.osl,
        worker["mixed_step_ms"],
        worker["decode_step_ms"],
        tuning.prefill_correction_scale,
        tuning.decode_correction_scale,
    )


@dataclass(frozen=True)
class Rates:
    """What the workers of a disagg experiment can do: requests/s of one worker, and tpot."""

    prefill_seq_per_s: np.ndarray  # (P,)
    decode_seq_per_s: np.ndarray  # (D,)
    tpot_ms: np.ndarray  # (D,)
    source: System
    target: System


def rates(experiment: Experiment, prefill: Worker, decode: Worker) -> Rates:
    """Rates of busy workers, and the systems that a cache goes from and to."""
    tpot_ms = decode["decode_step_ms"] / tokens_per_step(experiment)
    return Rates(
        1e3 * prefill["batch_size"] / prefill["prefill_step_ms"] * prefill.ranks,
        1e3 * decode["batch_size"] / tpot_ms / (experiment.osl - 1) * decode.ranks,
        tpot_ms,
        *(load_system(experiment.worker(role).system) for role in ("prefill", "decode")),
    )


def pairs(
    experiment: Experiment,
    shapes: disagg.Shapes,
    workers: Mapping[str, Worker],
    can: Rates,
    p: np.ndarray,
    d: np.ndarray,
) -> disagg.Pairs:
    """The prefill workers `p` with the decode workers `d` (masks or rows) in these shapes."""
    prefill, tuning = workers["prefill"], experiment.tuning
    kv_bytes = prefill["kv_bytes_per_prompt"][p]
    return disagg.Pairs(
        shapes,
        prefill["prefill_step_ms"][p],
        can.prefill_seq_per_s[p],
        prefill.ranks[p],
        disagg.transfer_ms(kv_bytes, shapes.gpus, can.source, can.target),
        can.decode_seq_per_s[d],
        tuning.prefill_correction_scale,
        tuning.decode_correction_scale,
    )


def _disaggregated(
    experiment: Experiment,
    workers: Mapping[str, Worker],
    ttft_limit_ms: float,
    prefer: str,
) -> Deployments:
    """For every decode candidate the prefill candidate and xPyD that suit the cluster best."""
    prefill, decode = workers["prefill"], workers["decode"]
    can = rates(experiment, prefill, decode)
    prefill_rate, decode_rate, tpot_ms = can.prefill_seq_per_s, can.decode_seq_per_s, can.tpot_ms

    best: dict[str, np.ndarray] = {}
    for prefill_gpus in np.unique(prefill["gpus_per_worker"]):
        for decode_gpus in np.unique(decode["gpus_per_worker"]):
            shapes = disagg.replica_shapes(
                int(prefill_gpus),
                int(decode_gpus),
                experiment.total_gpus,
                replica_rules(experiment),
            )
            if not len(shapes.x):
                continue
            p = np.flatnonzero(prefill["gpus_per_worker"] == prefill_gpus)
            d = np.flatnonzero(decode["gpus_per_worker"] == decode_gpus)
            matched = disagg.match(
                pairs(experiment, shapes, workers, can, p, d), ttft_limit_ms, prefer
            )
            found = np.flatnonzero(matched.pair >= 0)
            rows = {
                "prefill_row": p[matched.pair[found]],
                "decode_row": d[found],
                **{
                    name: getattr(matched, name)[found]
                    for name in ("x", "y", "gpus", "replicas", "seq_per_s", "ttft_ms")
                },
            }
            best = {k: np.concatenate([best[k], v]) if best else v for k, v in rows.items()}
    if not best:
        best = {
            name: np.zeros(0, int)
            for name in ("prefill_row", "decode_row", "x", "y", "gpus", "replicas")
        } | {name: np.zeros(0) for name in ("seq_per_s", "ttft_ms")}
    d, p = best["decode_row"], best["prefill_row"]
    return Deployments(
        ttft_ms=best["ttft_ms"],
        tpot_ms=tpot_ms[d],
        request_rate_per_s=best["seq_per_s"],
        concurrency_per_replica=decode["batch_size"][d] * decode.ranks[d] * best["y"],
        gpus_per_replica=best["gpus"],
        replicas=best["replicas"],
        roles={
            "prefill": {
                "row": p,
                "workers": best["x"],
                "step_ms": prefill["prefill_step_ms"][p],
                "seq_per_s_per_worker": prefill_rate[p],
            },
            "decode": {
                "row": d,
                "workers": best["y"],
                "step_ms": decode["decode_step_ms"][d],
                "seq_per_s_per_worker": decode_rate[d],
            },
        },
    )


def replica_rules(experiment: Experiment) -> disagg.ReplicaRules:
    """The limits that a disagg experiment puts on a replica."""
    replica = experiment.replica
    return disagg.ReplicaRules(
        replica.num_gpu_per_replica,
        replica.max_gpu_per_replica,
        replica.max_prefill_worker,
        replica.max_decode_worker,
    )


def tokens_per_step(experiment: Experiment) -> float:
    """Tokens that a request is expected to get in a decode step."""
    return expected_tokens_per_step(experiment.nextn, experiment.nextn_accept_rates)


def _top(
    workers: Mapping[str, Worker], found: Deployments, rows: np.ndarray, count: int
) -> np.ndarray:
    """The best rows by throughput, at most one per combination of worker layouts."""
    order, layout = _ordered(workers, found, rows)
    _, first = np.unique(layout, return_index=True)
    return order[np.sort(first)[:count]]


def _ordered(
    workers: Mapping[str, Worker], found: Deployments, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows by throughput, and a number of each that stands for its combination of worker layouts.

    Equal throughput: the smaller replica, then the faster for users.
    """
    order = rows[
        np.lexsort(
            (
                found.tpot_ms[rows],
                found.gpus_per_replica[rows],
                -np.round(found.request_rate_per_s[rows], 9),
            )
        )
    ]
    layouts = np.stack(
        [
            workers[role][name][of_role["row"][order]]
            for role, of_role in found.roles.items()
            for name in schemas.LAYOUT
        ],
        axis=1,
    )
    _, layout = np.unique(layouts, axis=0, return_inverse=True)
    return order, layout.reshape(len(order))


def _sure(
    experiment: Experiment, workers: Mapping[str, Worker], found: Deployments, rows: np.ndarray
) -> tuple[np.ndarray, str]:
    """The best of the rows that keep the SLA with the probability asked for, or why none does."""
    settings, wanted = estimation().simulation.sure, experiment.sla_probability
    order, layout = _ordered(workers, found, rows)
    clients = found.concurrency_per_replica[order] * found.replicas[order]

    def simulated(chosen: np.ndarray, asked: Experiment = experiment) -> pa.Table:
        table = _table(experiment, workers, found, order[chosen], np.arange(len(chosen)) + 1)
        return with_simulations([asked], table, True)

    def probability_of(chosen: np.ndarray) -> np.ndarray:
        return simulated(chosen)["sla_probability"].to_numpy()

    steps = ladders(layout, clients)
    tried = descend(steps, probability_of, wanted, settings.layouts, settings.simulations)
    sure = [row for row, probability in tried.items() if probability >= wanted]
    if sure:
        return _top(workers, found, order[sure], experiment.top_n), ""
    surest = max(tried, key=lambda row: np.nan_to_num(tried[row], nan=-1))
    # Of each limit alone: the other is lifted.
    both, of_ttft, of_tpot = (
        simulated(np.array([surest]), asked).to_pylist()[0]
        for asked in (
            experiment,
            replace(experiment, tpot_ms=np.inf),
            replace(experiment, ttft_ms=np.inf),
        )
    )
    kept = {"ttft": of_ttft["sla_probability"], "tpot": of_tpot["sla_probability"]}
    return np.zeros(0, int), _unsure(experiment, both, kept, len(tried))


def _unsure(
    experiment: Experiment, row: Mapping[str, Any], kept: Mapping[str, float], tried: int
) -> str:
    """Why no deployment is sure enough, of the surest of those tried; `kept`: of a limit alone."""
    wanted = f"{experiment.sla_probability * 100:.4g} %"
    none = f"none of {tried} deployments simulated keeps the SLA with {wanted} probability"
    if row["sim_reason"]:
        return f"{none}: {row['sim_reason']}"
    limits = {"ttft": experiment.ttft_ms, "tpot": experiment.tpot_ms}
    binds = min(kept, key=kept.get)
    value, low, high = (_digits(row[f"sim_{binds}{end}_ms"]) for end in ("", "_low", "_high"))
    return (
        f"{none}: the surest has {row['sla_probability'] * 100:.3g} %; "
        f"{binds} {limits[binds]:g} ms binds: a benchmark of it would measure {value} ms, "
        f"with 90 % probability between {low} and {high}"
    )


def _digits(ms: float) -> str:
    """Three of them, more only where the number is larger."""
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _table(
    experiment: Experiment,
    workers: Mapping[str, Worker],
    found: Deployments,
    rows: np.ndarray,
    ranks: np.ndarray,
) -> pa.Table:
    """DEPLOYMENTS rows of the chosen deployments."""
    replicas, gpus = found.replicas[rows], found.gpus_per_replica[rows]
    columns = {
        "experiment": [experiment.name] * len(rows),
        "rank": ranks,
        "serving_mode": [experiment.serving_mode] * len(rows),
        "tokens_per_s_per_gpu": found.request_rate_per_s[rows]
        * experiment.osl
        / experiment.total_gpus,
        "tokens_per_s_per_user": 1e3 / found.tpot_ms[rows],
        "ttft_ms": found.ttft_ms[rows],
        "tpot_ms": found.tpot_ms[rows],
        "request_rate_per_s": found.request_rate_per_s[rows],
        "concurrency": found.concurrency_per_replica[rows] * replicas,
        "concurrency_per_replica": found.concurrency_per_replica[rows],
        "total_gpus": np.full(len(rows), experiment.total_gpus),
        "gpus_used": replicas * gpus,
        "replicas": replicas,
        "gpus_per_replica": gpus,
        "meets_sla": (found.tpot_ms[rows] <= experiment.tpot_ms)
        & (found.ttft_ms[rows] <= experiment.ttft_ms),
    }
    for role, of_role in found.roles.items():
        worker, at = workers[role], of_role["row"][rows]
        for name in ("workers", "step_ms", "seq_per_s_per_worker"):
            columns[f"{role}_{name}"] = of_role[name][rows]
        for name in (
            "work_id",
            "candidate_id",
            *schemas.LAYOUT,
            "gpus_per_worker",
            "batch_size",
            "ctx_tokens",
            *schemas.MEMORY,
            *schemas.SHARES,
        ):
            columns[f"{role}_{name}"] = worker[name][at]
    return schemas.table(schemas.DEPLOYMENTS, columns)


def _status(
    experiment: Experiment,
    status: str,
    reason: str,
    missing_table: str,
    counts: Mapping[str, int],
    within_ttft: Deployments | None,
) -> pa.Table:
    meets = 0 if within_ttft is None else len(within_ttft)
    both = 0 if within_ttft is None else int((within_ttft.tpot_ms <= experiment.tpot_ms).sum())
    columns = {
        "experiment": [experiment.name],
        "serving_mode": [experiment.serving_mode],
        "status": [status],
        "reason": [reason],
        "missing_table": [missing_table],
        **{name: [value] for name, value in counts.items()},
        "meets_ttft": [meets],
        "meets_sla": [both],
    }
    return schemas.table(schemas.STATUS, columns)


def _why_no_worker(
    role: str, tried: pa.Table, priced: pa.Table, total_gpus: int
) -> tuple[str, str]:
    """Status and reason of a role without usable candidates: the furthest stage any reached."""
    reasons = [reason for reason in pc.unique(priced["reason"]).to_pylist() if reason]
    if reasons and len(reasons) == len(pc.unique(priced["reason"])):
        return "error", reasons[0]
    return "no_feasible", _why_none_fits(role, tried, priced, total_gpus)


def _why_none_fits(role: str, tried: pa.Table, priced: pa.Table, total_gpus: int) -> str:
    if priced.num_rows:
        smallest = pc.min(priced["gpus_per_worker"]).as_py()
        return (
            f"the smallest {role} worker that fits in memory takes {smallest} GPUs, "
            f"more than the {total_gpus} of total_gpus"
        )
    full = tried.filter(pc.equal(tried["reason"], "out of memory"))
    if full.num_rows:
        over = pc.subtract(full["memory_gib"], full["memory_limit_gib"])
        nearest = int(np.argmin(over.to_numpy()))
        need, limit = (full[f"memory{suffix}_gib"][nearest].as_py() for suffix in ("", "_limit"))
        return (
            f"no {role} worker fits in memory: the nearest needs {need:.1f} GiB per GPU "
            f"and may take {limit:.1f} GiB; allow more GPUs per worker or a lower precision"
        )
    refused = pc.unique(tried["reason"]).to_pylist()
    listed = "; ".join(refused) or (
        "no product of its lists has tp * pp * dp in num_gpu_per_worker and, with experts, "
        "tp * dp = moe_tp * moe_ep"
    )
    return f"no {role} worker layout is possible: {listed}"


def _binding(experiment: Experiment, pools: Pools) -> str:
    """Which limit leaves nothing, and the smallest relaxation that would help.

    Of one limit if that is enough, else of both to what one deployment reaches.
    """
    _, everything = pools.deployments(experiment, np.inf)
    if not len(everything):
        return (
            f"no replica of these workers fits the {experiment.total_gpus} of total_gpus and "
            "the sizes of replica_config"
        )
    if experiment.serving_mode == "disagg":
        _, quickest = pools.deployments(experiment, np.inf, prefer="ttft")
    else:
        quickest = everything
    ttft_limit, tpot_limit = experiment.ttft_ms, experiment.tpot_ms
    fast_enough = quickest.tpot_ms <= tpot_limit
    prompt_enough = quickest.ttft_ms <= ttft_limit
    options = []
    if prompt_enough.any():
        needed = quickest.tpot_ms[prompt_enough].min()
        options.append((needed / tpot_limit, "tpot", tpot_limit, needed, "ttft", ttft_limit))
    if fast_enough.any():
        needed = quickest.ttft_ms[fast_enough].min()
        options.append((needed / ttft_limit, "ttft", ttft_limit, needed, "tpot", tpot_limit))
    if options:
        _, name, limit, needed, other, other_limit = min(options)
        return (
            f"{name} {limit:g} ms binds: with {other} within {other_limit:g} ms the lowest "
            f"{name} is {needed:.2f} ms; raise {name} to {_rounded_up(needed):g} ms"
        )
    nearest = np.argmin(np.maximum(quickest.ttft_ms / ttft_limit, quickest.tpot_ms / tpot_limit))
    ttft, tpot = float(quickest.ttft_ms[nearest]), float(quickest.tpot_ms[nearest])
    return (
        f"ttft {ttft_limit:g} ms and tpot {tpot_limit:g} ms both bind: the nearest deployment has "
        f"{ttft:.2f} and {tpot:.2f} ms; raise ttft to {_rounded_up(ttft):g} ms and tpot to "
        f"{_rounded_up(tpot):g} ms"
    )


def _rounded_up(ms: float) -> float:
    """Three significant digits, never below the value: a limit to type in."""
    digit = 10.0 ** (np.floor(np.log10(ms)) - 2)
    return float(np.ceil(ms / digit) * digit)
