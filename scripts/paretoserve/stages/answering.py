"""Pareto: from step latencies to deployments of the whole cluster that keep the SLA.

Reads estimates only, so a new SLA or cluster size needs no new estimate. For each experiment:
all deployments -> those within ttft -> frontier of tokens/s/user against tokens/s/gpu -> the best
ones within tpot, one per pair of worker layouts. Throughput counts every GPU that was asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import schemas
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.plan import Ask, works
from paretoserve.hardware import load_system
from paretoserve.pareto import frontier
from paretoserve.serving import aggregated as agg
from paretoserve.serving import disaggregated as disagg
from paretoserve.serving.mtp import expected_tokens_per_step


@dataclass(frozen=True)
class Worker:
    """Estimated candidates of one worker role: columns of ESTIMATES as arrays, without gaps."""

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


def pareto(
    ask: Ask, candidates: Mapping[str, pa.Table], estimates: Mapping[str, pa.Table]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return the frontier, best and status tables of a run.

    `candidates` and `estimates` are those of each group of the ask, by group id.
    """
    parts = [
        _answer(experiment, ask.group_of_work, candidates, estimates)
        for experiment in ask.experiments
    ]
    frontiers, bests, statuses = zip(*parts, strict=True)
    return (
        pa.concat_tables(frontiers).unify_dictionaries(),
        pa.concat_tables(bests).unify_dictionaries(),
        pa.concat_tables(statuses).unify_dictionaries(),
    )


def _answer(
    experiment: Experiment,
    group_of_work: Mapping[str, str],
    candidates: Mapping[str, pa.Table],
    estimates: Mapping[str, pa.Table],
) -> tuple[pa.Table, pa.Table, pa.Table]:
    workers = {}
    counts = dict.fromkeys(("candidates", "out_of_memory", "no_table", "estimated"), 0)
    trouble: tuple[str, str] | None = None
    missing_table = ""
    for work in works(experiment):
        group, role = group_of_work[work.id], work.worker.role
        tried = candidates[group].filter(pc.equal(candidates[group]["work_id"], work.id))
        priced = estimates[group].filter(pc.equal(estimates[group]["work_id"], work.id))
        workers[role] = _worker(priced, experiment.total_gpus)
        counts["candidates"] += tried.num_rows
        counts["out_of_memory"] += pc.sum(pc.equal(tried["reason"], "out of memory")).as_py() or 0
        unpriced = priced.filter(pc.not_equal(priced["reason"], ""))
        counts["no_table"] += unpriced.num_rows
        counts["estimated"] += len(workers[role])
        if unpriced.num_rows:
            missing_table = missing_table or unpriced["reason"][0].as_py()
        if not len(workers[role]):
            trouble = trouble or _why_no_worker(role, tried, priced, experiment.total_gpus)

    if trouble:
        nothing = schemas.DEPLOYMENTS.empty_table()
        return nothing, nothing, _status(experiment, *trouble, missing_table, counts, None)
    serve = _aggregated if experiment.serving_mode == "agg" else _disaggregated
    within = serve(experiment, workers, experiment.ttft_ms)
    speed, throughput = 1e3 / within.tpot_ms, within.request_rate_per_s
    on_frontier = frontier(speed, throughput)
    ok = np.flatnonzero(within.tpot_ms <= experiment.tpot_ms)
    best = _top(workers, within, ok, experiment.top_n)
    reason = "" if len(best) else _binding(experiment, serve, workers)
    status = "ok" if len(best) else "no_feasible"
    return (
        _table(experiment, workers, within, on_frontier, np.arange(len(on_frontier))),
        _table(experiment, workers, within, best, np.arange(len(best)) + 1),
        _status(experiment, status, reason, missing_table, counts, within),
    )


def _worker(priced: pa.Table, total_gpus: int) -> Worker:
    """The candidates that have an estimate and fit the cluster."""
    usable = pc.and_(
        pc.equal(priced["reason"], ""), pc.less_equal(priced["gpus_per_worker"], total_gpus)
    )
    kept = priced.filter(usable)
    return Worker({name: kept[name].to_numpy(zero_copy_only=False) for name in kept.column_names})


def _aggregated(
    experiment: Experiment, workers: Mapping[str, Worker], ttft_limit_ms: float
) -> Deployments:
    """One worker is a replica."""
    worker, tuning = workers["agg"], experiment.tuning
    batch = worker["batch_size"]
    served = agg.aggregated(
        agg.mixed_steps(
            batch,
            worker["ctx_tokens"],
            experiment.isl,
            experiment.osl,
            _tokens_per_step(experiment),
        ),
        batch,
        experiment.osl,
        worker["mixed_step_ms"],
        worker["decode_step_ms"],
        tuning.prefill_correction_scale,
        tuning.decode_correction_scale,
    )
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


def _disaggregated(
    experiment: Experiment,
    workers: Mapping[str, Worker],
    ttft_limit_ms: float,
    prefer: str = "rate",
) -> Deployments:
    """For every decode candidate the prefill candidate and xPyD that suit the cluster best."""
    prefill, decode, tuning = workers["prefill"], workers["decode"], experiment.tuning
    prefill_rate = 1e3 * prefill["batch_size"] / prefill["prefill_step_ms"] * prefill.ranks
    tpot_ms = decode["decode_step_ms"] / _tokens_per_step(experiment)
    decode_rate = 1e3 * decode["batch_size"] / tpot_ms / (experiment.osl - 1) * decode.ranks
    source, target = (load_system(experiment.worker(role).system) for role in ("prefill", "decode"))

    best: dict[str, np.ndarray] = {}
    for prefill_gpus in np.unique(prefill["gpus_per_worker"]):
        for decode_gpus in np.unique(decode["gpus_per_worker"]):
            shapes = disagg.replica_shapes(
                int(prefill_gpus),
                int(decode_gpus),
                experiment.total_gpus,
                disagg.ReplicaRules(
                    experiment.replica.num_gpu_per_replica,
                    experiment.replica.max_gpu_per_replica,
                    experiment.replica.max_prefill_worker,
                    experiment.replica.max_decode_worker,
                ),
            )
            if not len(shapes.x):
                continue
            p = np.flatnonzero(prefill["gpus_per_worker"] == prefill_gpus)
            d = np.flatnonzero(decode["gpus_per_worker"] == decode_gpus)
            matched = disagg.match(
                shapes,
                prefill["prefill_step_ms"][p],
                prefill_rate[p],
                prefill.ranks[p],
                disagg.transfer_ms(prefill["kv_bytes_per_prompt"][p], shapes.gpus, source, target),
                decode_rate[d],
                tuning.prefill_correction_scale,
                tuning.decode_correction_scale,
                ttft_limit_ms,
                prefer,
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


def _tokens_per_step(experiment: Experiment) -> float:
    return expected_tokens_per_step(experiment.nextn, experiment.nextn_accept_rates)


def _top(
    workers: Mapping[str, Worker], found: Deployments, rows: np.ndarray, count: int
) -> np.ndarray:
    """The best rows by throughput, at most one per combination of worker layouts.

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
    _, first = np.unique(layouts, axis=0, return_index=True)
    return order[np.sort(first)[:count]]


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
            "memory_gib",
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


def _binding(experiment: Experiment, serve, workers: Mapping[str, Worker]) -> str:
    """Which limit leaves nothing, and the smallest relaxation that would help.

    Of one limit if that is enough, else of both to what one deployment reaches.
    """
    everything = serve(experiment, workers, np.inf)
    if not len(everything):
        return (
            f"no replica of these workers fits the {experiment.total_gpus} of total_gpus and "
            "the sizes of replica_config"
        )
    if experiment.serving_mode == "disagg":
        quickest = _disaggregated(experiment, workers, np.inf, prefer="ttft")
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
