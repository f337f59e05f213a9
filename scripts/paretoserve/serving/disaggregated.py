"""Disaggregated serving: x prefill workers feed y decode workers (xPyD), replicated over a cluster.

Rates: a replica serves min(prefill_scale x r_p, decode_scale y r_d) requests per second, where r_p
and r_d are what one worker of each kind can do. The scales are the largest share of the time that a
pool can be kept busy.

xPyD is chosen for the cluster: a replica of G = x g_p + y g_d GPUs fits floor(total / G) times, and
GPUs left over count as bought. Ties go to the smaller replica, then to fewer prefill workers.

ttft = prefill pass + waiting for a free prefill worker + KV cache transfer. Waiting is an M/D/c
queue at the pool's utilisation, half of M/M/c (Erlang C), where each of the x workers counts once
for every batch it has in flight; transfer moves the prompt's cache over the link between the pools,
each GPU of the prefill worker sending its shard.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from paretoserve.hardware import System

LARGEST_ARRAY = 4_000_000  # elements of one intermediate result of `match`
# More servers count as so many: at 90 % load these wait 2.4 % of a pass, 128 wait 0.7 %.
MOST_SERVERS = 64


@dataclass(frozen=True)
class ReplicaRules:
    """Limits on a replica; `allowed_gpus` None means any size, `max_gpus` 0 no limit."""

    allowed_gpus: tuple[int, ...] | None
    max_gpus: int
    max_prefill_workers: int
    max_decode_workers: int


@dataclass(frozen=True)
class Shapes:
    """The xPyD replicas that fit a cluster, sorted by preference; each (S,)."""

    x: np.ndarray
    y: np.ndarray
    gpus: np.ndarray
    replicas: np.ndarray


def replica_shapes(
    prefill_gpus: int, decode_gpus: int, total_gpus: int, rules: ReplicaRules
) -> Shapes:
    """Every xPyD of workers of these sizes that the rules and the cluster allow."""
    x, y = np.meshgrid(
        np.arange(1, rules.max_prefill_workers + 1),
        np.arange(1, rules.max_decode_workers + 1),
        indexing="ij",
    )
    x, y = x.ravel(), y.ravel()
    gpus = x * prefill_gpus + y * decode_gpus
    fits = gpus <= min(total_gpus, rules.max_gpus or total_gpus)
    if rules.allowed_gpus is not None:
        fits &= np.isin(gpus, rules.allowed_gpus)
    x, y, gpus = x[fits], y[fits], gpus[fits]
    order = np.lexsort((x, gpus))
    return Shapes(x[order], y[order], gpus[order], total_gpus // gpus[order])


@dataclass(frozen=True)
class Served:
    """What one replica does: requests per second and ttft, and what they are made of.

    supply, demand : requests/s that the prefill and the decode pool can be kept busy with
    utilisation : of the prefill pool
    wait : mean wait for a prefill worker, in prefill passes
    """

    supply: np.ndarray
    demand: np.ndarray
    rate: np.ndarray
    utilisation: np.ndarray
    wait: np.ndarray
    ttft_ms: np.ndarray


def serve(
    x: np.ndarray,
    y: np.ndarray,
    prefill_ms: np.ndarray,
    prefill_seq_per_s: np.ndarray,
    prefill_ranks: np.ndarray,
    transfer_ms: np.ndarray,
    decode_seq_per_s: np.ndarray,
    prefill_scale: float,
    decode_scale: float,
) -> Served:
    """Replicas of `x` prefill and `y` decode workers; the arrays broadcast to one shape."""
    supply = prefill_scale * x * prefill_seq_per_s
    demand = decode_scale * y * decode_seq_per_s
    rate = np.minimum(supply, demand)
    utilisation = rate / supply * prefill_scale
    wait = waiting_factor(x * prefill_ranks, utilisation)
    ttft = prefill_ms * (1 + wait) + transfer_ms
    return Served(supply, demand, rate, utilisation, wait, ttft)


@dataclass(frozen=True)
class Pairs:
    """Every prefill candidate (P,) with every decode candidate (D,), in every shape (S,).

    prefill_ranks : batches that one prefill worker has in flight
    transfer_ms : (P, S)
    """

    shapes: Shapes
    prefill_ms: np.ndarray
    prefill_seq_per_s: np.ndarray
    prefill_ranks: np.ndarray
    transfer_ms: np.ndarray
    decode_seq_per_s: np.ndarray
    prefill_scale: float
    decode_scale: float

    def served(self) -> Iterator[Served]:
        """What each does, (P, S, part of D): cut along D to bound the memory of the work."""
        most = max(LARGEST_ARRAY // max(self.transfer_ms.size, 1), 1)
        for start in range(0, len(self.decode_seq_per_s), most):
            yield serve(
                self.shapes.x[None, :, None],
                self.shapes.y[None, :, None],
                self.prefill_ms[:, None, None],
                self.prefill_seq_per_s[:, None, None],
                self.prefill_ranks[:, None, None],
                self.transfer_ms[:, :, None],
                self.decode_seq_per_s[None, None, start : start + most],
                self.prefill_scale,
                self.decode_scale,
            )


@dataclass(frozen=True)
class Matched:
    """The best replica for each decode worker candidate, (D,); `pair` is -1 where there is none."""

    pair: np.ndarray
    x: np.ndarray
    y: np.ndarray
    gpus: np.ndarray
    replicas: np.ndarray
    seq_per_s: np.ndarray
    ttft_ms: np.ndarray


def match(pairs: Pairs, ttft_limit_ms: float = np.inf, prefer: str = "rate") -> Matched:
    """For each decode candidate (D,), the best prefill candidate (P,) and shape (S,).

    Best is the cluster's highest rate within the ttft limit, or its lowest ttft (prefer="ttft").
    """
    parts = [_match(pairs.shapes, part, ttft_limit_ms, prefer) for part in pairs.served()]
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Matched(*map(np.concatenate, columns))


def _match(shapes: Shapes, served: Served, ttft_limit_ms: float, prefer: str) -> Matched:
    ttft = served.ttft_ms
    cluster = served.rate * shapes.replicas[None, :, None]
    value = cluster if prefer == "rate" else 1 / ttft
    value = np.where(ttft <= ttft_limit_ms, value, 0.0)
    # Shapes come in order of preference: the first of equals is taken. Equal up to rounding errors.
    digits = value.max() * 1e-9 or 1.0
    ranked = np.round(value / digits).transpose(1, 0, 2).reshape(-1, value.shape[2])
    best = np.argmax(ranked, axis=0)
    s, p = np.divmod(best, len(value))
    d = np.arange(value.shape[2])
    return Matched(
        pair=np.where(value[p, s, d] > 0, p, -1),
        x=shapes.x[s],
        y=shapes.y[s],
        gpus=shapes.gpus[s],
        replicas=shapes.replicas[s],
        seq_per_s=cluster[p, s, d],
        ttft_ms=ttft[p, s, d],
    )


def best_rates(pairs: Pairs, ttft_limit_ms: float) -> np.ndarray:
    """Highest rate (S,) of one replica of each shape within the ttft limit, 0 where none is."""
    best = np.zeros(len(pairs.shapes.x))
    for served in pairs.served():
        within = np.where(served.ttft_ms <= ttft_limit_ms, served.rate, 0.0)
        best = np.maximum(best, within.max(axis=(0, 2), initial=0.0))
    return best


def waiting_factor(servers: np.ndarray, utilisation: np.ndarray) -> np.ndarray:
    """Mean wait in an M/D/c queue, in service times: half of Erlang C's M/M/c (Cosmetatos 1976).

    Read from a table of 1,000 utilisations below 1; at 1 and above the queue has no mean. More than
    MOST_SERVERS count as so many.
    """
    servers = np.minimum(servers, MOST_SERVERS)
    table = _waiting_table(int(servers.max()))
    steps = table.shape[1] - 1
    index = np.clip(np.ceil(utilisation * steps - 1e-9).astype(int), 0, steps)
    return table[np.broadcast_to(servers, index.shape) - 1, index]


@cache
def _waiting_table(most: int, steps: int = 1000) -> np.ndarray:
    """(most, steps + 1) waits at utilisation 0, 1/steps, ... 1 (infinite)."""
    utilisation = np.arange(steps + 1) / steps
    servers = np.arange(1, most + 1)[:, None]
    offered = servers * utilisation
    # Erlang B by its recursion over the number of servers, kept where it equals the row's own.
    blocking, row = np.ones_like(offered), np.ones_like(offered)
    for count in range(1, most + 1):
        blocking = offered * blocking / (count + offered * blocking)
        row = np.where(servers == count, blocking, row)
    with np.errstate(divide="ignore", invalid="ignore"):
        erlang_c = row / (1 - utilisation * (1 - row))
        wait = erlang_c / (servers * (1 - utilisation)) / 2
    wait[:, -1] = np.inf
    return wait


def transfer_ms(
    kv_bytes: np.ndarray, gpus: np.ndarray, source: System, target: System
) -> np.ndarray:
    """(P, S) time to move `kv_bytes` (P,) from each prefill GPU, in replicas of `gpus` (S,) GPUs.

    The pools share a node's links if the whole replica fits a node of one system.
    """
    if source.name == target.name:
        bandwidth = source.link_bandwidth(gpus)
    else:
        slower = min(source.inter_node_bandwidth, target.inter_node_bandwidth)
        bandwidth = np.full(np.shape(gpus), slower)
    return (kv_bytes[:, None] / bandwidth[None, :] + source.p2p_latency_s) * 1e3
