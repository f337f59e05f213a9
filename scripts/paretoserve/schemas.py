"""Columns of the Parquet files that the stages exchange (described in docs/data.md)."""

import numpy as np
import pyarrow as pa

_NAME = pa.dictionary(pa.int32(), pa.string())

LAYOUT = {name: pa.int16() for name in ("tp", "pp", "dp", "moe_tp", "moe_ep")}
SHARES = {
    f"{name}_share": pa.float32()
    for name in ("measured", "interpolated", "extrapolated", "substituted", "speed_of_light")
}
# What a closed-loop benchmark of one replica would measure.
SIMULATED = {
    "sim_clients": pa.int32(),
    "sim_requests": pa.int32(),
    **{
        f"sim_{name}{of}_ms": pa.float64()
        for name in ("ttft", "tpot")
        for of in ("", "_p50", "_p90", "_p99")
    },
    "sim_tokens_per_s_per_gpu": pa.float64(),
    # Ends of the 90 % intervals of the means, and the probability that both are within the SLA.
    **{
        f"sim_{name}": pa.float64()
        for name in (
            "ttft_low_ms",
            "ttft_high_ms",
            "tpot_low_ms",
            "tpot_high_ms",
            "tokens_per_s_per_gpu_low",
            "tokens_per_s_per_gpu_high",
        )
    },
    "sla_probability": pa.float64(),
    "sim_reason": pa.string(),
}
MEMORY = {
    f"{name}_gib": pa.float32()
    for name in ("weights", "kv_cache", "activations", "buffers", "memory", "memory_limit")
}

CANDIDATES = pa.schema(
    {
        "work_id": _NAME,
        "candidate_id": pa.int32(),
        "role": _NAME,
        **LAYOUT,
        "gpus_per_worker": pa.int16(),
        "batch_size": pa.int32(),
        "ctx_tokens": pa.int32(),
        **MEMORY,
        "fits": pa.bool_(),
        "reason": _NAME,
    }
)

ESTIMATES = pa.schema(
    {
        "work_id": _NAME,
        "candidate_id": pa.int32(),
        "role": _NAME,
        **LAYOUT,
        "gpus_per_worker": pa.int16(),
        "batch_size": pa.int32(),
        "ctx_tokens": pa.int32(),
        "memory_gib": pa.float32(),
        "kv_bytes_per_prompt": pa.float64(),
        "prefill_step_ms": pa.float64(),
        "mixed_step_ms": pa.float64(),
        "decode_step_ms": pa.float64(),
        **SHARES,
        "reason": _NAME,
    }
)

OPERATORS = pa.schema(
    {
        "work_id": _NAME,
        "candidate_id": pa.int32(),
        "step": _NAME,
        "operator": _NAME,
        "ms": pa.float32(),
        "provenance": _NAME,
        "note": _NAME,
    }
)

_ROLE = {
    "work_id": _NAME,
    "candidate_id": pa.int32(),
    "workers": pa.int32(),
    **LAYOUT,
    "gpus_per_worker": pa.int16(),
    "batch_size": pa.int32(),
    "ctx_tokens": pa.int32(),
    **MEMORY,
    "step_ms": pa.float64(),
    "seq_per_s_per_worker": pa.float64(),
    **SHARES,
}

DEPLOYMENTS = pa.schema(
    {
        "experiment": _NAME,
        "rank": pa.int32(),
        "serving_mode": _NAME,
        "tokens_per_s_per_gpu": pa.float64(),
        "tokens_per_s_per_user": pa.float64(),
        "ttft_ms": pa.float64(),
        "tpot_ms": pa.float64(),
        "request_rate_per_s": pa.float64(),
        "concurrency": pa.int32(),
        "concurrency_per_replica": pa.int32(),
        "total_gpus": pa.int32(),
        "gpus_used": pa.int32(),
        "replicas": pa.int32(),
        "gpus_per_replica": pa.int32(),
        "meets_sla": pa.bool_(),
        **SIMULATED,
        **{f"{role}_{k}": t for role in ("agg", "prefill", "decode") for k, t in _ROLE.items()},
    }
)

BREAKDOWN = pa.schema(
    {
        "experiment": _NAME,
        "rank": pa.int32(),
        "role": _NAME,
        "step": _NAME,
        "operator": _NAME,
        "ms": pa.float32(),
        "provenance": _NAME,
    }
)

STATUS = pa.schema(
    {
        "experiment": _NAME,
        "serving_mode": _NAME,
        "status": _NAME,
        "reason": pa.string(),
        "missing_table": pa.string(),
        **{
            name: pa.int32()
            for name in (
                "candidates",
                "out_of_memory",
                "no_table",
                "estimated",
                "meets_ttft",
                "meets_sla",
            )
        },
    }
)

COMPARISON = pa.schema(
    {
        "experiment": _NAME,
        "serving_mode": _NAME,
        "status": _NAME,
        "reason": pa.string(),
        "tokens_per_s_per_gpu": pa.float64(),
        "tokens_per_s_per_user": pa.float64(),
        "ttft_ms": pa.float64(),
        "tpot_ms": pa.float64(),
        "chosen": pa.bool_(),
        "ratio_to_best": pa.float64(),
    }
)


def table(schema: pa.Schema, columns: dict) -> pa.Table:
    """Build a table of `schema`; columns that are not given are null. KeyError on unknown ones."""
    if unknown := set(columns) - set(schema.names):
        raise KeyError(f"not in the schema: {sorted(unknown)}")
    rows = len(next(iter(columns.values())))
    arrays = []
    for field in schema:
        if field.name not in columns:
            arrays.append(pa.nulls(rows, field.type))
            continue
        values = columns[field.name]
        if isinstance(values, pa.DictionaryArray):
            arrays.append(values)
        elif pa.types.is_dictionary(field.type):
            arrays.append(pa.array(list(values), pa.string()).dictionary_encode())
        else:
            arrays.append(pa.array(np.asarray(values), from_pandas=True).cast(field.type))
    return pa.table(arrays, schema=schema)
