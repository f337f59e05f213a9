"""generator_config.yaml: what the writers of deployment files need to know of one answer."""

from paretoserve import schemas
from paretoserve.deploy.settings import deploy_settings
from paretoserve.experiments.experiment import Experiment, Worker
from paretoserve.models.catalog import find_model

Row = dict[str, object]


def generator_config(experiment: Experiment, row: Row) -> dict[str, object]:
    """Describe one deployment: a row of the best table, with what the row's experiment adds.

    The result holds only plain values, in the order in which they are to be written.
    """
    workers = {worker.role: worker for worker in experiment.workers}
    first, last = experiment.workers[0], experiment.workers[-1]
    blocks = {BLOCK_NAMES[role]: _worker_block(worker, row) for role, worker in workers.items()}
    return {
        "model_name": experiment.model_name,
        "system_name": first.system,
        "decode_system_name": last.system if experiment.serving_mode == "disagg" else None,
        "backend_name": first.backend,
        "backend_version": first.version,
        "decode_backend_version": last.version if experiment.serving_mode == "disagg" else None,
        "generated_config_version": experiment.generated_config_version or first.version,
        "total_gpus": experiment.total_gpus,
        "gpus_used": row["gpus_used"],
        "gpus_per_replica": row["gpus_per_replica"],
        "replicas": row["replicas"],
        "serving_mode": experiment.serving_mode,
        "enable_wide_ep": experiment.enable_wide_ep,
        "nextn": experiment.nextn,
        "is_moe": find_model(experiment.model_name).is_moe,
        "isl": experiment.isl,
        "osl": experiment.osl,
        **blocks,
        "exp_config": {
            "ttft": round(row["ttft_ms"], 3),
            "tpot": round(row["tpot_ms"], 3),
            "tps_per_user": round(row["tokens_per_s_per_user"], 3),
            "tps_per_gpu": round(row["tokens_per_s_per_gpu"], 3),
            "concurrency": row["concurrency"],
            "concurrency_per_replica": row["concurrency_per_replica"],
            "num_requests_multiplier": deploy_settings().benchmark["requests_per_concurrency"],
        },
    }


BLOCK_NAMES = {
    "agg": "agg_worker_config",
    "prefill": "disagg_prefill_worker_config",
    "decode": "disagg_decode_worker_config",
}


def _worker_block(worker: Worker, row: Row) -> dict[str, object]:
    prefix = f"{worker.role}_"
    block = {
        f"{kind}_quant_mode": getattr(worker, f"{kind}_quant_mode")
        for kind in ("gemm", "moe", "kvcache", "fmha", "comm")
    }
    block["bs"] = row[prefix + "batch_size"]
    block["workers"] = row[prefix + "workers"]
    block |= {name: row[prefix + name] for name in schemas.LAYOUT}
    if worker.role == "agg":
        # The engine's token limit must admit the step that was priced.
        block["ctx_tokens"] = row[prefix + "ctx_tokens"]
    return block | {"memory": round(row[prefix + "memory_gib"], 3)}
