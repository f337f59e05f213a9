"""Predict measured runs: price the steps of each pool, simulate the benchmark's closed loop.

Runs that share a worker share its priced steps. What neither a run nor its recipe tells is as
`unrecorded` has it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import numpy as np

from paretoserve.accuracy.measurements import Measurement
from paretoserve.accuracy.unrecorded import (
    accept_rates,
    decode_workers,
    drafts,
    exchanges,
    slots,
    times_of,
)
from paretoserve.calibration import Calibration, EngineTimes
from paretoserve.errors import InputError
from paretoserve.hardware import load_system
from paretoserve.layout import Layout, Precision
from paretoserve.memory import request_cache_bytes
from paretoserve.models.catalog import find_model
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb import manifest
from paretoserve.perfdb.tables import PerfTables
from paretoserve.precision import default_precision
from paretoserve.serving.closed_loop import Disagg, Engine, Load, simulate
from paretoserve.serving.engines import (
    Limit,
    disaggregated,
    engine,
    in_engine,
    kv_capacity_tokens,
    launches,
)
from paretoserve.serving.mtp import expected_tokens_per_step
from paretoserve.serving.surfaces import Limits, Surface, surface
from paretoserve.settings import backend_rules, estimation


@dataclass(frozen=True)
class Worker:
    """What the steps of a pool's workers are priced from."""

    model: str
    system: str
    backend: str
    precision: Precision
    layout: tuple[int, ...]
    nextn: int
    wide_ep: bool


@dataclass(frozen=True)
class Prediction:
    """Of one run; NaN with a `reason` where there is none, rate NaN where GPUs are not known."""

    ttft_ms: float = np.nan
    tpot_ms: float = np.nan
    tokens_per_s_per_gpu: float = np.nan
    reason: str = ""
    notes: tuple[str, ...] = ()


class Predictor:
    """Predicts runs; keeps priced steps, so that another calibration only simulates anew."""

    def __init__(self) -> None:
        self._kernels = cache(lambda *engine: Kernels(PerfTables(*engine)))
        self._surfaces: dict[Worker, Surface | InputError] = {}
        self._reach: dict[Worker, tuple[int, ...]] = {}  # Limits of each

    def predict(self, runs: Sequence[Measurement], calibration: Calibration) -> list[Prediction]:
        """One prediction for each run, in their order."""
        self.price(runs, calibration)
        return self.simulate(runs, calibration)

    def simulate(self, runs: Sequence[Measurement], calibration: Calibration) -> list[Prediction]:
        """The same for runs whose workers are priced."""
        return [self._one(run, calibration) for run in runs]

    def price(self, runs: Iterable[Measurement], calibration: Calibration) -> None:
        """Price the steps of every worker once, as far as the largest of its loads reaches."""
        reach: dict[Worker, list[int]] = {}
        for run in runs:
            for role in run.pools:
                worker = worker_of(run, role, drafts(run))
                limit = _limit(worker, run, whole_budget=role == "prefill")
                most = reach.setdefault(worker, [0, 0, 0, 0])
                needs = (
                    max(limit.token_budget, run.isl) + limit.max_batch * (worker.nextn + 1),
                    limit.max_batch,
                    run.isl,
                    run.longest,
                )
                most[:] = map(max, most, needs)
        for worker, needed in reach.items():
            before = self._reach.get(worker, (0, 0, 0, 0))
            limits = tuple(map(max, before, needed))
            if limits != before:
                self._reach[worker] = limits
                self._surfaces[worker] = self._surface(worker, Limits(*limits))

    def _surface(self, worker: Worker, limits: Limits) -> Surface | InputError:
        try:
            return surface(
                find_model(worker.model),
                worker.precision,
                _layout(worker.layout),
                self._kernels(
                    worker.system, worker.backend, newest_version(worker.system, worker.backend)
                ),
                limits,
                nextn=worker.nextn,
                wide_ep=worker.wide_ep,
            )
        except InputError as error:
            return error

    def _one(self, run: Measurement, calibration: Calibration) -> Prediction:
        try:
            system, gpus = self._system(run, calibration)
            settings = estimation().simulation
            load = Load(
                run.concurrency,
                run.isl,
                run.osl,
                requests=settings.requests_per_client * run.concurrency,
                most_requests=settings.most_requests,
                isl_range=run.isl_range,
                osl_range=run.osl_range,
            )
            found = simulate(load, system)
        except InputError as error:
            return Prediction(reason=str(error))
        ttft_ms = float(np.mean(found.ttft_ms))
        tpot_ms = float(np.nanmean(found.tpot_ms))
        # By Little's law; the drain at the end of the simulation is no part of a long run.
        answer_ms = ttft_ms + tpot_ms * (found.osl.mean() - 1)
        rate = 1e3 * run.concurrency * found.osl.mean() / answer_ms
        return Prediction(ttft_ms, tpot_ms, rate / gpus if gpus else np.nan)

    def _system(self, run: Measurement, calibration: Calibration) -> tuple[Engine | Disagg, float]:
        """The deployment of a run, and its GPUs, 0 if these are not known."""
        times = times_of(run, calibration)
        if "agg" in run.pools:
            return self._engine(run, "agg", calibration, times), run.gpus
        x, y = self._workers(run, calibration)
        # A part of a worker more is whole workers that are slower.
        slower = replace(times, prefill_kernel_scale=times.prefill_kernel_scale * ceil(x) / x)
        prefill, decode = (
            self._engine(run, "prefill", calibration, slower),
            self._engine(run, "decode", calibration, times),
        )
        decode = replace(decode, max_batch=slots(run, y))
        worker = worker_of(run, "prefill", 0)
        cached = request_cache_bytes(
            find_model(worker.model), worker.precision, _layout(worker.layout), np.array([run.isl])
        )
        system = disaggregated(
            prefill,
            decode,
            (ceil(x), y),
            times,
            run.concurrency / y / decode.dp,
            (run.isl, run.osl),
            float(cached[0]),
            (load_system(run.system), load_system(run.system)),
        )
        return system, run.gpus

    def _workers(self, run: Measurement, calibration: Calibration) -> tuple[float, int]:
        """Prefill and decode workers of a run; where they are not told, as much prefill as decode
        takes at its pace, in whole or in part.
        """
        prefill, decode = run.pools["prefill"], run.pools["decode"]
        assumed, times = calibration.assumed, calibration.engines[run.backend]
        y = decode.workers or self._decode_workers(run, calibration)
        if prefill.workers:
            return prefill.workers, y
        nextn = drafts(run)
        p, d = (self._surfaces[worker_of(run, role, nextn)] for role in ("prefill", "decode"))
        for priced in (p, d):
            if isinstance(priced, InputError):
                raise priced
        one, dp = np.ones(1), prefill.layout[2]
        prompt_ms = in_engine(p, times, dp).mixed_step_ms(
            run.isl * one, one, run.isl * one, 0 * one, one
        )[0]
        batch = run.concurrency / y / decode.layout[2]
        step_ms = d.decode_step_ms(batch * one, (run.isl + run.osl / 2) * one)[0]
        rates = accept_rates(run, assumed)
        answer_ms = step_ms * run.osl / expected_tokens_per_step(nextn, rates)
        busy = run.concurrency * prompt_ms / dp / answer_ms
        return max(busy / assumed.prefill_utilisation, 1.0), y

    def _decode_workers(self, run: Measurement, calibration: Calibration) -> int:
        """As many as `Assumed` says, or more if their caches do not hold all requests."""
        assumed = calibration.assumed
        worker = worker_of(run, "decode", drafts(run))
        dp = worker.layout[2]
        held = _kv_tokens(worker, run) * dp
        needed = ceil(run.concurrency * (run.isl + run.osl) / held)
        return max(decode_workers(run, assumed), needed, 1)

    def _engine(
        self, run: Measurement, role: str, calibration: Calibration, times: EngineTimes
    ) -> Engine:
        worker = worker_of(run, role, drafts(run))
        priced, nextn = self._surfaces[worker], worker.nextn
        if isinstance(priced, InputError):
            raise priced
        rules = backend_rules(run.backend)
        limit = _limit(worker, run, whole_budget=role == "prefill")
        rates = accept_rates(run, calibration.assumed)
        found = engine(
            priced,
            launches(find_model(worker.model)),
            times,
            rules,
            limit,
            _kv_tokens(worker, run),
            dp=worker.layout[2],
            pp=worker.layout[1],
            tokens_per_step=expected_tokens_per_step(nextn, rates),
        )
        overlapped = run.host_overlaps or not nextn
        return replace(found, host=replace(found.host, overlapped=overlapped))


def _layout(sizes: Sequence[int]) -> Layout:
    return Layout(*(np.array([size]) for size in sizes))


def _kv_tokens(worker: Worker, run: Measurement) -> float:
    """Tokens that one rank's cache holds, at least one request's."""
    try:
        held = kv_capacity_tokens(
            find_model(worker.model),
            worker.precision,
            _layout(worker.layout),
            load_system(worker.system),
            backend_rules(run.backend),
            _limit(worker, run),
            run.longest,
            worker.nextn,
        )
    except InputError:  # it ran, so it fits, and how much is left our account cannot say
        return float(run.longest * run.concurrency)
    return max(held, float(run.longest))


def _limit(worker: Worker, run: Measurement, whole_budget: bool = False) -> Limit:
    """Of one rank: the engine's own token budget, and a batch that no benchmark lets bind.

    `whole_budget`: workers that only prefill give every attention rank the budget of one.
    """
    gpu, rules = load_system(worker.system), backend_rules(worker.backend)
    ranks = 1 if whole_budget else worker.layout[2]
    budget = rules.scheduling.on(gpu.name, gpu.memory_bytes, ranks).token_budget
    if not rules.chunked_prefill:
        budget = max(budget, run.isl)
    return Limit(ceil(run.concurrency / worker.layout[2]), budget)


def newest_version(system: str, backend: str) -> str:
    """The newest version of an engine on a system whose GEMMs were measured."""
    measured = manifest.load()
    versions = measured.versions(system, backend)
    return next(v for v in reversed(versions) if "gemm" in measured.operators(system, backend, v))


def worker_of(run: Measurement, role: str, nextn: int) -> Worker:
    """The worker of one pool of a run; prefill workers draft nothing."""
    pool = run.pools[role]
    _, _, dp, moe_tp, moe_ep = pool.layout
    precision = default_precision(run.model, run.system, run.backend, run.precision)
    spread = dp > 1 and moe_ep > 1 and moe_tp == 1
    wide_ep = spread and exchanges(run, precision.moe)
    nextn = 0 if role == "prefill" else nextn
    return Worker(run.model, run.system, run.backend, precision, pool.layout, nextn, wide_ep)
