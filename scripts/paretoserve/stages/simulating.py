"""Simulate: what a closed-loop benchmark would measure on the best deployments.

One replica of each is driven at its concurrency: all clients start at once, lengths vary as
config/estimation.yaml says. Steps are priced anew, for every batch and length that occurs; the host
times are those of config/calibration.yaml. How far such figures were off runs that the calibration
never saw makes their 90 % intervals, and the probability that a deployment keeps its SLA. The
ranking stays that of the estimate.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from paretoserve import schemas
from paretoserve.calibration import calibration
from paretoserve.errors import InputError
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.plan import Work, works
from paretoserve.hardware import load_system
from paretoserve.layout import Layout, Precision
from paretoserve.memory import request_cache_bytes
from paretoserve.models.catalog import find_model
from paretoserve.operators.kernels import kernels_of
from paretoserve.serving.closed_loop import Disagg, Engine, Load, simulate
from paretoserve.serving.engines import (
    Limit,
    disaggregated,
    engine,
    kv_capacity_tokens,
    launches,
)
from paretoserve.serving.mtp import expected_tokens_per_step
from paretoserve.serving.surfaces import Limits, Surface, surface
from paretoserve.settings import Simulation, backend_rules, estimation
from paretoserve.stages.enumerating import precision_of
from paretoserve.uncertainty import intervals, residuals

Row = Mapping[str, Any]

NOT_SIMULATED = {"sim_reason": "not simulated: see simulation in config/estimation.yaml"}


def with_simulations(
    experiments: Sequence[Experiment], best: pa.Table, simulated: bool
) -> pa.Table:
    """Return the best deployments with the columns of schemas.SIMULATED filled.

    A row that is not simulated, or cannot be, says why in `sim_reason`. Of a run that is too large,
    only rows are `simulated` whose experiment asks for a probability of the SLA.
    """
    settings = estimation().simulation
    named = {experiment.name: experiment for experiment in experiments}
    rows = best.to_pylist()
    asked = [named[row["experiment"]] for row in rows]
    found = [
        _of_row(one, row, settings)
        if one.sla_probability is not None or (simulated and row["rank"] <= settings.ranks)
        else NOT_SIMULATED
        for one, row in zip(asked, rows, strict=True)
    ]
    found = _with_certainty(asked, found, sum(settings.lengths) / 2)
    for name, kind in schemas.SIMULATED.items():
        at = best.schema.get_field_index(name)
        values = pa.array([one.get(name) for one in found], kind)
        best = best.set_column(at, best.schema.field(at), values)
    return best


def _with_certainty(
    asked: Sequence[Experiment], found: Sequence[Row], length: float
) -> list[dict[str, Any]]:
    """The simulated figures with their intervals and the probability of the SLA.

    `length` is the mean share of the nominal osl that is simulated.
    """
    driven = [i for i, one in enumerate(found) if one["sim_reason"] == ""]
    told = [dict(one) for one in found]
    if not driven:
        return told
    ttft_ms, tpot_ms, rate = (
        np.array([found[i][f"sim_{name}"] for i in driven], float)
        for name in ("ttft_ms", "tpot_ms", "tokens_per_s_per_gpu")
    )
    ttft_limit, tpot_limit, osl = (
        np.array([getattr(asked[i], name) for i in driven], float)
        for name in ("ttft_ms", "tpot_ms", "osl")
    )
    sure = intervals(
        residuals(),
        [asked[i].workers[-1].backend for i in driven],
        [asked[i].serving_mode for i in driven],
        [True] * len(driven),  # how many workers a deployment has is known
        [found[i]["sim_clients"] for i in driven],
        ttft_ms,
        tpot_ms,
        ttft_limit,
        tpot_limit,
        osl * length,
    )
    columns = {
        **{
            f"sim_{name}_{end}_ms": getattr(sure, f"{name}_{end}_ms")
            for name in ("ttft", "tpot")
            for end in ("low", "high")
        },
        "sim_tokens_per_s_per_gpu_low": rate * sure.rate_low,
        "sim_tokens_per_s_per_gpu_high": rate * sure.rate_high,
        "sla_probability": sure.sla_probability,
    }
    for place, values in zip(driven, zip(*columns.values(), strict=True), strict=True):
        told[place] |= dict(zip(columns, map(float, values), strict=True))
    return told


def _of_row(experiment: Experiment, row: Row, settings: Simulation) -> dict[str, Any]:
    clients = row["concurrency_per_replica"]
    load = Load(
        clients,
        experiment.isl,
        experiment.osl,
        requests=clients * settings.requests_per_client,
        most_requests=settings.most_requests,
        isl_range=settings.lengths,
        osl_range=settings.lengths,
    )
    try:
        measured = simulate(load, replica(experiment, row)).summary()
    except InputError as error:
        return {"sim_reason": str(error)}
    rate = measured.pop("tokens_per_s") * row["replicas"] / row["total_gpus"]
    del measured["requests_per_s"]
    return {
        "sim_clients": clients,
        "sim_requests": load.requests,
        **{f"sim_{name}": value for name, value in measured.items()},
        "sim_tokens_per_s_per_gpu": rate,
        "sim_reason": "",
    }


def replica(experiment: Experiment, row: Row) -> Engine | Disagg:
    """One replica of a deployment; InputError where a step has no price."""
    work = {work.worker.role: work for work in works(experiment)}
    engines = {role: _engine(work[role], row) for role in work}
    if "agg" in engines:
        return engines["agg"]
    prefill, times = work["prefill"], calibration().engines[work["prefill"].worker.backend]
    cached = request_cache_bytes(
        find_model(prefill.model_name),
        precision_of(prefill),
        _layout(_sizes(row, "prefill")),
        np.array([prefill.isl]),
    )
    return disaggregated(
        engines["prefill"],
        engines["decode"],
        (row["prefill_workers"], row["decode_workers"]),
        times,
        row["decode_batch_size"],
        (prefill.isl, prefill.osl),
        float(cached[0]),
        (load_system(prefill.worker.system), load_system(work["decode"].worker.system)),
    )


def _engine(work: Work, row: Row) -> Engine:
    """The worker of a role as the row's files start it: its own batch and token budget."""
    worker, role = work.worker, work.worker.role
    rules, sizes = backend_rules(worker.backend), _sizes(row, role)
    batch, queries = row[f"{role}_batch_size"], work.nextn + 1
    prompts = batch * work.isl if role == "prefill" else row[f"{role}_ctx_tokens"]
    beside = batch * queries if role == "decode" or rules.scheduling.policy == "mixed" else 0
    budget = prompts + (0 if role == "prefill" else beside)
    limit = Limit(max_batch=batch, token_budget=budget)
    longest = work.isl + work.osl
    precision = precision_of(work)
    # Powers of two: candidates of one layout share a surface.
    reach = (
        max(prompts + beside, 1 if role == "decode" else work.isl),
        batch,
        1 if role == "decode" else work.isl,
        longest,
    )
    priced = _surface(
        work.model_name,
        precision,
        sizes,
        (worker.system, worker.backend, worker.version),
        Limits(*(1 << (n - 1).bit_length() for n in reach)),
        work.nextn,
        work.enable_wide_ep,
    )
    layout = _layout(sizes)
    kv_tokens = kv_capacity_tokens(
        find_model(work.model_name),
        precision,
        layout,
        load_system(worker.system),
        rules,
        limit,
        longest,
        work.nextn,
    )
    return engine(
        priced,
        launches(find_model(work.model_name)),
        calibration().engines[worker.backend],
        rules,
        limit,
        kv_tokens,
        dp=sizes[2],
        pp=sizes[1],
        tokens_per_step=expected_tokens_per_step(work.nextn, work.nextn_accept_rates),
    )


@lru_cache(maxsize=128)
def _surface(
    model_name: str,
    precision: Precision,
    sizes: tuple[int, ...],
    engine: tuple[str, str, str],
    limits: Limits,
    nextn: int,
    wide_ep: bool,
) -> Surface:
    return surface(
        find_model(model_name),
        precision,
        _layout(sizes),
        kernels_of(*engine),
        limits,
        nextn=nextn,
        wide_ep=wide_ep,
    )


def _sizes(row: Row, role: str) -> tuple[int, ...]:
    return tuple(row[f"{role}_{name}"] for name in schemas.LAYOUT)


def _layout(sizes: Sequence[int]) -> Layout:
    return Layout(*(np.array([size]) for size in sizes))
