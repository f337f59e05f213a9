"""Random answers to write deployment files for: any layout that a backend can run."""

import random

from paretoserve.experiments.experiment import Experiment, Replica, Tuning, Worker
from paretoserve.hardware import load_system
from paretoserve.models.catalog import find_model

# One per kind of template and definition, and some that have none of their own.
VERSIONS = {
    "trtllm": (
        "0.20.0", "1.0.0rc3", "1.0.0rc4", "1.0.0rc6", "1.0.0", "1.1", "1.1.0rc5", "1.2.0rc5", "1.2",
        "1.3.0rc10", "1.3.0rc20", "1.3.0rc23", "1.3",
    ),
    "vllm": ("0.11.0", "0.12.0", "0.14.0", "0.16.0", "0.19.0", "0.22.0", "0.24.0", "0.27.0"),
    "sglang": (
        "0.5.0rc2", "0.5.1.post1", "0.5.3.post2", "0.5.6.post2", "0.5.9", "0.5.10", "0.5.12",
        "0.5.14", "0.5.21",
    ),
}  # fmt: skip
MODELS = "QWEN3_32B LLAMA3.1_70B LLAMA3.1_8B DEEPSEEK_V3 QWEN3_235B MOE_Mixtral8x7B".split()
SYSTEMS = ("h200_sxm", "h100_sxm", "b200_sxm", "gb200", "l40s")
SIZES = ("tp", "pp", "dp", "moe_tp", "moe_ep")


def random_answer(
    seed: int, backend: str, version: str, mode: str | None = None
) -> tuple[Experiment, dict]:
    """An experiment with one row of its best table, in which gpus and concurrency add up."""
    chance = random.Random(f"{seed} {backend} {version}")
    mode = mode or chance.choice(("agg", "disagg"))
    model = chance.choice(MODELS)
    nextn = chance.choice((0, 1, 2)) if model == "DEEPSEEK_V3" else 0
    isl, osl = chance.choice(((3000, 512), (128, 1000), (8000, 200), (4096, 4096)))
    first, second = chance.choice(SYSTEMS), chance.choice(SYSTEMS)
    systems = {"agg": first, "prefill": first, "decode": chance.choice((first, second))}
    roles = ("agg",) if mode == "agg" else ("prefill", "decode")
    gemm, kv = chance.choice(("float16", "fp8", "fp8_block")), chance.choice(("float16", "fp8"))
    row: dict = {"experiment": mode, "serving_mode": mode, "rank": chance.randint(1, 3)}
    gpus = 0
    for role in roles:
        layout = _layout(chance, backend, find_model(model).is_moe, systems[role])
        batch = chance.randint(1, 4) if role == "prefill" else chance.randint(1, 600)
        if backend == "trtllm" and role == "agg":
            ctx_tokens = isl * chance.randint(1, 3)
        else:
            ctx_tokens = chance.choice((2048, 4096, 8192)) if role == "agg" else 0
        workers = 1 if role == "agg" else chance.randint(1, 5)
        values = {**layout, "batch_size": batch, "ctx_tokens": ctx_tokens, "workers": workers}
        values |= {"gpus_per_worker": layout["tp"] * layout["pp"] * layout["dp"]}
        values |= {"memory_gib": 70.0}
        row |= {f"{role}_{name}": value for name, value in values.items()}
        gpus += values["gpus_per_worker"] * workers
    last = roles[-1]
    replicas = chance.randint(1, 4)
    concurrency = row[f"{last}_batch_size"] * row[f"{last}_dp"] * row[f"{last}_workers"]
    row |= {
        "gpus_per_replica": gpus,
        "replicas": replicas,
        "gpus_used": gpus * replicas,
        "total_gpus": gpus * replicas + chance.randint(0, gpus - 1),
        "concurrency_per_replica": concurrency,
        "concurrency": concurrency * replicas,
        "ttft_ms": 210.5,
        "tpot_ms": 8.25,
        "tokens_per_s_per_user": 121.2,
        "tokens_per_s_per_gpu": 900.25,
        "request_rate_per_s": 57.1,
    }
    generated = chance.choice((None, version))
    own = version if generated is None else "1.0.0rc3" if backend == "trtllm" else version
    experiment = Experiment(
        name=mode,
        serving_mode=mode,
        model_name=model,
        model_digest="",
        total_gpus=row["total_gpus"],
        isl=isl,
        osl=osl,
        ttft_ms=1000.0,
        tpot_ms=10.0,
        enable_wide_ep=model == "DEEPSEEK_V3" and chance.random() < 0.3,
        nextn=nextn,
        nextn_accept_rates=(0.8,) * nextn,
        workers=tuple(
            Worker(
                role, systems[role], backend, own, gemm, gemm, kv, kv, "half",
                *[(1,)] * 6, max_batch_size=512,
            )
            for role in roles
        ),
        replica=None if mode == "agg" else Replica(None, 128, 32, 32),
        tuning=Tuning(0.9, 0.92),
        top_n=3,
        generated_config_version=generated,
    )  # fmt: skip
    return experiment, row


def _layout(chance: random.Random, backend: str, is_moe: bool, system: str) -> dict[str, int]:
    node = load_system(system).gpus_per_node
    while True:
        tp, pp = chance.choice((1, 2, 4, 8, 16)), chance.choice((1, 1, 2, 3))
        dp = chance.choice((1, 2, 4, 8, 16)) if is_moe else 1
        if tp * pp * dp > 64 or (dp > 1 and tp * pp > node):
            continue
        experts = tp * dp if is_moe else 1
        if backend == "vllm":
            moe_ep = chance.choice((1, experts))
        else:
            moe_ep = chance.choice([size for size in (1, 2, 4, 8, 16, 32, 64) if size <= experts])
        return dict(zip(SIZES, (tp, pp, dp, experts // moe_ep, moe_ep), strict=True))
