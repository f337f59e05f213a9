"""What an engine has to be told so that it runs what was estimated: one worker's settings."""

import math
from dataclasses import dataclass, replace

from paretoserve.deploy.settings import deploy_settings
from paretoserve.errors import InputError
from paretoserve.experiments.experiment import Experiment
from paretoserve.models.catalog import find_model
from paretoserve.settings import backend_rules

Row = dict[str, object]


@dataclass(frozen=True)
class Engine:
    """Settings of one worker. Counts are per attention-dp rank unless the name says otherwise."""

    role: str  # 'agg', 'prefill' or 'decode'
    tp: int
    pp: int
    dp: int
    moe_tp: int
    moe_ep: int
    is_moe: bool
    wide_ep: bool
    batch: int
    ctx_tokens: int  # prompt tokens of one step
    step_tokens: int  # most tokens of one step
    sequence: int  # longest sequence
    buffer_tokens: int  # longest sequence whose KV cache is handed over
    gemm_mode: str
    kv_mode: str
    memory_fraction: float  # in the engine's own sense, as in the memory test
    chunked: bool
    nextn: int
    graphs: tuple[int, ...]  # batch sizes with a CUDA graph of their own

    @property
    def gpus(self) -> int:
        """GPUs of the worker."""
        return self.tp * self.pp * self.dp


def engine_of(experiment: Experiment, role: str, row: Row) -> Engine:
    """Return the settings of a role's workers in the deployment `row`."""
    worker, model = experiment.worker(role), find_model(experiment.model_name)
    settings, rules = deploy_settings(), backend_rules(worker.backend)
    isl, osl, nextn = experiment.isl, experiment.osl, experiment.nextn
    batch, ctx_tokens = row[f"{role}_batch_size"], row[f"{role}_ctx_tokens"] or 0

    margin = math.ceil(max(settings.margin["tokens"], settings.margin["share"] * (isl + osl)))
    least = isl + osl + nextn
    sequence = max(least, min(_blocks(least + margin), model.max_position_embeddings))
    drafted = batch * (1 + nextn)
    chunked = rules.chunked_prefill and role == "agg"
    if role == "decode":
        step_tokens = drafted
    elif role == "prefill":
        ctx_tokens = batch * isl
        step_tokens = batch * (isl + margin)
    elif chunked:
        step_tokens = drafted + ctx_tokens
    else:
        step_tokens = drafted + math.ceil(ctx_tokens / isl) * (isl + margin)
    return Engine(
        role=role,
        **{name: row[f"{role}_{name}"] for name in ("tp", "pp", "dp", "moe_tp", "moe_ep")},
        is_moe=model.is_moe,
        wide_ep=experiment.enable_wide_ep,
        batch=batch,
        ctx_tokens=ctx_tokens,
        step_tokens=_blocks(step_tokens),
        sequence=sequence,
        buffer_tokens=_blocks(sequence),
        gemm_mode=worker.gemm_quant_mode,
        kv_mode=worker.kvcache_quant_mode,
        memory_fraction=rules.kv_cache_fraction,
        chunked=chunked,
        nextn=nextn,
        graphs=graph_sizes(batch),
    )


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Batch sizes from 1 to `largest`, both included, in strides that widen."""
    sizes, size = [], 0
    for limit, stride in sorted(deploy_settings().graph_sizes.items()):
        while size + stride <= min(limit, largest):
            size += stride
            sizes.append(size)
    while size + stride <= largest:
        size += stride
        sizes.append(size)
    return tuple(sorted({*sizes, largest}))


def checked(engine: Engine, backend: str) -> Engine:
    """Return the engine if the backend can run its layout; InputError says why not."""
    experts = engine.moe_tp * engine.moe_ep
    if engine.is_moe and experts != engine.tp * engine.dp:
        raise InputError(
            f"{engine.role} worker: moe_tp {engine.moe_tp} * moe_ep {engine.moe_ep} is not "
            f"tp {engine.tp} * dp {engine.dp}"
        )
    if engine.is_moe and backend == "vllm" and engine.moe_ep > 1 and engine.moe_tp > 1:
        raise InputError(
            f"{engine.role} worker: vLLM spreads experts over all GPUs or none, "
            f"it has no moe_tp {engine.moe_tp} beside moe_ep {engine.moe_ep}"
        )
    return engine if engine.is_moe else replace(engine, moe_tp=1, moe_ep=1)


def _blocks(tokens: int) -> int:
    block = deploy_settings().token_block
    return -(-tokens // block) * block
