"""The fewest GPUs that serve a request rate within the SLA.

The question is the ordinary one with the cluster unknown: the smallest `total_gpus` whose best
deployment serves the rate. Neither memory nor step latencies depend on the cluster, so candidates
are priced once. A replica of G GPUs that serves r requests/s is needed ceil(rate / r) times, which
gives the clusters worth asking about, for all replicas at once.

Bisection would be wrong: more GPUs may serve less. A cluster may be one replica whatever its size,
but several replicas, or one that leaves GPUs idle, must have a size that is searched
(`num_gpu_per_replica`): 12 GPUs may serve as one replica what 13 cannot. The ordinary search at the
smallest cluster has the last word, and gives the deployment.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from paretoserve.errors import InputError
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.loading import RawExperiment
from paretoserve.experiments.plan import Ask, Group, works
from paretoserve.experiments.resolving import resolve, resolve_all
from paretoserve.perfdb.catalogue import Catalogue
from paretoserve.prices import Price, usd_per_million_tokens
from paretoserve.serving import disaggregated as disagg
from paretoserve.stages import answering
from paretoserve.stages.enumerating import enumerate_candidates
from paretoserve.stages.estimating import estimate

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """The answer on one system in one serving mode.

    `row` is the best deployment on the fewest GPUs; where there is none, `reason` says why. The
    costs, at the price of the system, are None where no price is known; that per million output
    tokens is at the asked rate, not at all that the deployment could serve.
    """

    system: str
    serving_mode: str
    engine: str
    row: Row | None
    reason: str = ""
    price: Price | None = None
    usd_per_hour: float | None = None
    usd_per_million_tokens: float | None = None


def size(
    raws: Iterable[RawExperiment], request_rate: float, prices: Mapping[str, Price]
) -> list[Size]:
    """Answer each experiment; its `total_gpus` is the most that it may take.

    The cheapest first if every answer has a price, else the smallest; those without answer last.

    Raises
    ------
    InputError
        No experiment can be asked.
    """
    catalogue = Catalogue()
    found, refused = [], []
    for raw in raws:
        try:
            experiments = resolve_all([raw], catalogue)
        except InputError as error:
            fields = raw.fields
            refused.append(
                Size(fields["system_name"], fields["serving_mode"], "", None, str(error))
            )
            continue
        for experiment in experiments:
            found.append(_size(raw, experiment, request_rate, prices, catalogue))
    if not found:
        raise InputError("\n".join(dict.fromkeys(one.reason for one in refused)))
    answered = [one for one in found if one.row]
    priced = all(one.price for one in answered)
    answered.sort(key=lambda one: one.usd_per_hour if priced else one.row["total_gpus"])
    return [*answered, *(one for one in found if not one.row), *refused]


def _size(
    raw: RawExperiment,
    experiment: Experiment,
    request_rate: float,
    prices: Mapping[str, Price],
    catalogue: Catalogue,
) -> Size:
    worker = experiment.workers[0]

    def on(gpus: int) -> Experiment:
        fields = {**raw.fields, "backend_name": worker.backend, "total_gpus": gpus}
        return replace(resolve(replace(raw, fields=fields), catalogue), top_n=1)

    row, reason = fewest_gpus(experiment, price(experiment), request_rate, on)
    of_gpu = prices.get(worker.system)
    answer = Size(
        worker.system,
        experiment.serving_mode,
        f"{worker.backend} {worker.version}",
        row,
        reason,
        of_gpu,
    )
    if row is None or of_gpu is None:
        return answer
    usd_per_hour = row["total_gpus"] * of_gpu.usd_per_gpu_hour
    tokens_per_s = request_rate * experiment.osl
    return replace(
        answer,
        usd_per_hour=usd_per_hour,
        usd_per_million_tokens=usd_per_million_tokens(usd_per_hour, tokens_per_s),
    )


@dataclass(frozen=True)
class Priced:
    """Candidates and estimates of an experiment's works, each a group of its own."""

    candidates: dict[str, pa.Table]
    estimates: dict[str, pa.Table]

    @property
    def group_of_work(self) -> dict[str, str]:
        return {work_id: work_id for work_id in self.candidates}

    def best(self, experiment: Experiment) -> tuple[list[Row], str]:
        """The ordinary answer: best deployments, or none and the reason."""
        ask = Ask("", (experiment,), self.group_of_work)
        _, best, status = answering.pareto(ask, self.candidates, self.estimates)
        return best.to_pylist(), status["reason"][0].as_py()


def price(experiment: Experiment) -> Priced:
    """Price the candidates of an experiment, for any size of its cluster."""
    groups = [Group(work.id, (work,)) for work in works(experiment)]
    candidates = {group.id: enumerate_candidates(group) for group in groups}
    estimates = {group.id: estimate(group, candidates[group.id])[0] for group in groups}
    return Priced(candidates, estimates)


def fewest_gpus(
    experiment: Experiment,
    priced: Priced,
    request_rate: float,
    on: Callable[[int], Experiment],
) -> tuple[Row | None, str]:
    """The best deployment on the fewest GPUs that serve the rate; None and the reason if none does.

    `experiment` has the most GPUs that may be; `on(gpus)` is the same question for a cluster.
    """
    for gpus in _clusters(experiment, priced, request_rate):
        found, _ = priced.best(on(gpus))
        if found and found[0]["request_rate_per_s"] >= request_rate:
            return found[0], ""
    _, reason = priced.best(experiment)
    more = f"more than {experiment.total_gpus} GPUs are needed for {request_rate:g} requests/s"
    return None, reason or more


def _clusters(experiment: Experiment, priced: Priced, request_rate: float) -> Iterator[int]:
    """Sizes of clusters that may serve the rate, the smallest first."""
    pools = answering.Pools(priced.group_of_work, priced.candidates, priced.estimates)
    workers = {
        work.worker.role: pools.worker(work, experiment.total_gpus) for work in works(experiment)
    }
    if not all(map(len, workers.values())):
        return
    of_mode = _agg_clusters if experiment.serving_mode == "agg" else _disagg_clusters
    sizes = np.unique(of_mode(experiment, request_rate, workers))
    yield from sizes[sizes <= experiment.total_gpus].tolist()


def _agg_clusters(
    experiment: Experiment, request_rate: float, workers: Mapping[str, answering.Worker]
) -> np.ndarray:
    worker = workers["agg"]
    _, served = answering.serve_aggregated(experiment, worker)
    ok = (served.ttft_ms <= experiment.ttft_ms) & (served.tpot_ms <= experiment.tpot_ms)
    rate = (served.seq_per_s * worker.ranks)[ok]
    return worker["gpus_per_worker"][ok] * replicas_needed(request_rate, rate)


def _disagg_clusters(
    experiment: Experiment, request_rate: float, workers: Mapping[str, answering.Worker]
) -> np.ndarray:
    prefill, decode = workers["prefill"], workers["decode"]
    can = answering.rates(experiment, prefill, decode)
    rules, sizes = answering.replica_rules(experiment), experiment.replica.num_gpu_per_replica
    fast_enough = can.tpot_ms <= experiment.tpot_ms
    found = [np.zeros(0, np.int64)]
    for prefill_gpus in np.unique(prefill["gpus_per_worker"]):
        for decode_gpus in np.unique(decode["gpus_per_worker"]):
            shapes = disagg.replica_shapes(
                int(prefill_gpus),
                int(decode_gpus),
                experiment.total_gpus,
                replace(rules, allowed_gpus=None),
            )
            p = prefill["gpus_per_worker"] == prefill_gpus
            d = (decode["gpus_per_worker"] == decode_gpus) & fast_enough
            rate = disagg.best_rates(
                answering.pairs(experiment, shapes, workers, can, p, d), experiment.ttft_ms
            )
            able = rate > 0
            gpus, replicas = shapes.gpus[able], replicas_needed(request_rate, rate[able])
            # Alone, a replica may have any size; several only one that is searched.
            allowed = (replicas == 1) | (sizes is None or np.isin(gpus, sizes))
            found.append((gpus * replicas)[allowed])
    return np.concatenate(found)


def replicas_needed(request_rate: float, rate: np.ndarray) -> np.ndarray:
    """How many replicas of `rate` (N,) serve `request_rate`, by the very product of the search."""
    count = np.maximum(np.ceil(request_rate / rate), 1).astype(np.int64)
    count -= (count > 1) & (rate * (count - 1) >= request_rate)
    return count + (rate * count < request_rate)


def size_json(found: Iterable[Size], request_rate: float) -> list[Row]:
    """Return plain data: the answer of each system and mode, with its whole deployment."""
    return [
        {
            "system": one.system,
            "serving_mode": one.serving_mode,
            "engine": one.engine,
            "request_rate_per_s": request_rate,
            "total_gpus": one.row and one.row["total_gpus"],
            "reason": one.reason,
            "usd_per_hour": one.usd_per_hour,
            "usd_per_million_tokens": one.usd_per_million_tokens,
            "price": one.price and vars(one.price),
            "deployment": one.row and {k: v for k, v in one.row.items() if v is not None},
        }
        for one in found
    ]
