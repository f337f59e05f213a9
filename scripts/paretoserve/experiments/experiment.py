"""A resolved experiment: nothing left to default, only canonical names."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self


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

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the worker whose `plain` form is `data`."""
        return cls(**{key: _tupled(value) for key, value in data.items()})


@dataclass(frozen=True)
class Replica:
    """Which xPyD make a disagg replica."""

    num_gpu_per_replica: tuple[int, ...] | None  # None: any number
    max_gpu_per_replica: int  # 0: no limit
    max_prefill_worker: int
    max_decode_worker: int

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the replica whose `plain` form is `data`."""
        return cls(**{key: _tupled(value) for key, value in data.items()})


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

    def worker(self, role: str) -> Worker:
        """Return the worker of this role; KeyError if the serving mode has none."""
        for worker in self.workers:
            if worker.role == role:
                return worker
        raise KeyError(role)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the experiment whose `plain` form is `data`."""
        replica = data["replica"]
        parts = {
            "nextn_accept_rates": tuple(data["nextn_accept_rates"]),
            "workers": tuple(Worker.from_dict(worker) for worker in data["workers"]),
            "replica": None if replica is None else Replica.from_dict(replica),
            "tuning": Tuning(**data["tuning"]),
            "left_out": tuple(data["left_out"]),
        }
        return cls(**{**data, **parts})


def plain(record: Any) -> dict[str, Any]:
    """Return a dataclass as JSON would hold it: dictionaries, lists, numbers, strings."""
    return json.loads(json.dumps(asdict(record)))


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
