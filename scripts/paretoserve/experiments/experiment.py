"""A resolved experiment: nothing left to default, only canonical names."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from typing import Any


@dataclass(frozen=True)
class Worker:
    """One kind of worker: where it runs, its precision, and the parallelism to search for it."""

    role: str  # 'agg', 'prefill' or 'decode'
    system: str
    backend: str
    version: str
    gemm_quant_mode: str
    moe_quant_mode: str
    kvcache_quant_mode: str
    fmha_quant_mode: str
    comm_quant_mode: str
    num_gpu_per_worker: tuple[int, ...]
    tp_list: tuple[int, ...]
    pp_list: tuple[int, ...]
    dp_list: tuple[int, ...]
    moe_tp_list: tuple[int, ...]
    moe_ep_list: tuple[int, ...]
    max_batch_size: int  # requests of one attention-dp rank


@dataclass(frozen=True)
class Replica:
    """Which xPyD make a disagg replica."""

    num_gpu_per_replica: tuple[int, ...] | None  # None: any number
    max_gpu_per_replica: int  # 0: no limit
    max_prefill_worker: int
    max_decode_worker: int


@dataclass(frozen=True)
class Tuning:
    """Factors on predicted throughput."""

    prefill_correction_scale: float
    decode_correction_scale: float


@dataclass(frozen=True)
class Experiment:
    """One serving question: model, cluster, load, SLA, and the space to search.

    `model_name` finds the model in the catalogue; `model_digest` is that of its dimensions.
    """

    name: str
    serving_mode: str  # 'agg' or 'disagg'
    model_name: str
    model_digest: str
    total_gpus: int
    isl: int
    osl: int
    ttft_ms: float
    tpot_ms: float
    enable_wide_ep: bool
    nextn: int
    nextn_accept_rates: tuple[float, ...]  # one of each of the nextn draft tokens
    workers: tuple[Worker, ...]  # agg: one; disagg: prefill, then decode
    replica: Replica | None  # None for agg: one worker is the replica
    tuning: Tuning
    top_n: int
    left_out: tuple[str, ...] = ()  # engines of `backend_name: any` without an experiment, and why
    generated_config_version: str | None = None  # None: files are for the workers' versions
    sla_probability: float | None = None  # with which the best keep the SLA; None: by estimate only

    def worker(self, role: str) -> Worker:
        """Return the worker of this role; KeyError if the serving mode has none."""
        for worker in self.workers:
            if worker.role == role:
                return worker
        raise KeyError(role)

    @cached_property
    def digest(self) -> str:
        """16 hex digits of all fields. Experiments share most parts, whose digests are kept."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["workers"] = [_digest_of(worker) for worker in self.workers]
        content["replica"] = self.replica and _digest_of(self.replica)
        content["tuning"] = _digest_of(self.tuning)
        return digest(content)


def plain(record: Any) -> dict[str, Any]:
    """Return a dataclass as JSON would hold it: dictionaries, lists, numbers, strings."""
    return json.loads(json.dumps(asdict(record)))


def digest(content: Any, length: int = 16) -> str:
    """Return so many hex digits that stand for a value made of dicts, lists and scalars."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode()).hexdigest()[:length]


@cache
def _digest_of(record: Any) -> str:
    return digest(asdict(record))
