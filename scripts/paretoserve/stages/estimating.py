"""Estimate: latency of each candidate's steps, operator by operator, from the measured tables.

prefill worker   prefill_step_ms: one pass over its batch of whole prompts
decode worker    decode_step_ms: one step of every request, averaged over a request's positions
agg worker       mixed_step_ms: `ctx_tokens` of prompts beside decoding requests; decode_step_ms
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paretoserve import schemas
from paretoserve.errors import InputError
from paretoserve.estimator import Mtp, Step, StepLatency, step_latency
from paretoserve.experiments.plan import Group, Work
from paretoserve.interpolation import PROVENANCE
from paretoserve.layout import Layout
from paretoserve.memory import request_cache_bytes
from paretoserve.models.catalog import find_model
from paretoserve.operators.kernels import Kernels, kernels_of
from paretoserve.serving.aggregated import mixed_steps
from paretoserve.serving.mtp import expected_tokens_per_step
from paretoserve.settings import estimation
from paretoserve.stages.enumerating import precision_of
from paretoserve.tracing import Trace


def estimate(group: Group, candidates: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the ESTIMATES and OPERATORS tables of a group's candidates that fit."""
    estimates, operators = [], []
    for work in group.works:
        mine = pc.and_(pc.equal(candidates["work_id"], work.id), candidates["fits"])
        worker = work.worker
        one = estimate_work(
            work,
            candidates.filter(mine),
            kernels_of(worker.system, worker.backend, worker.version),
        )
        estimates.append(one[0])
        operators.append(one[1])
    return (
        pa.concat_tables(estimates).unify_dictionaries(),
        pa.concat_tables(operators).unify_dictionaries(),
    )


def estimate_work(
    work: Work, candidates: pa.Table, kernels: Kernels, trace: Trace | None = None
) -> tuple[pa.Table, pa.Table]:
    """Return ESTIMATES and OPERATORS of candidates of one work; `trace` is told of every step."""
    ids = candidates["candidate_id"].to_numpy()
    try:
        steps = _price(work, candidates, kernels, trace) if len(ids) else {}
    except InputError as error:
        # The whole work lacks a table: every candidate carries the reason, the sweep goes on.
        steps, why = {}, np.full(len(ids), str(error), object)
    else:
        why = np.full(len(ids), "", object)
        for latency in steps.values():
            why = np.where(why == "", latency.reasons, why)
    columns = {
        name: candidates[name]
        for name in ("candidate_id", *schemas.LAYOUT, "gpus_per_worker", "batch_size", "ctx_tokens")
    }
    columns |= {name: candidates[name].to_pylist() for name in ("work_id", "role")}
    columns |= {
        "memory_gib": candidates["memory_gib"],
        "kv_bytes_per_prompt": _kv_bytes(work, candidates),
        "reason": why,
        **{f"{name}_step_ms": latency.total_ms for name, latency in steps.items()},
        **_shares(steps),
    }
    return schemas.table(schemas.ESTIMATES, columns), _operator_rows(work, ids, steps)


def _price(
    work: Work, candidates: pa.Table, kernels: Kernels, trace: Trace | None
) -> dict[str, StepLatency]:
    """Latency of the steps that this role runs, by name."""
    model, precision, layout = find_model(work.model_name), precision_of(work), _layout(candidates)
    batch, ctx_tokens = candidates["batch_size"].to_numpy(), candidates["ctx_tokens"].to_numpy()
    count = len(batch)
    isl = np.full(count, work.isl)
    none = np.zeros(count)

    def price(name, prefill_tokens, prompts, decoding, kv_len) -> StepLatency:
        if trace:
            trace.step(name)
        step = Step(
            prefill_tokens, prompts, isl, decoding, np.broadcast_to(kv_len, (count, len(kv_len)))
        )
        return step_latency(
            model,
            precision,
            layout,
            step,
            kernels,
            mtp=Mtp(work.nextn),
            wide_ep=work.enable_wide_ep,
            trace=trace,
        )

    if work.worker.role == "prefill":
        return {"prefill": price("prefill", ctx_tokens, batch, none, np.ones(1))}
    moments = work.isl + 1 + _strides(work.osl - 1, estimation().decode_positions)
    if work.worker.role == "decode":
        return {"decode": price("decode", none, none, batch, moments)}
    # The requests of an aggregated worker are spread evenly over their decode.
    middle = np.array([moments.mean()])
    tokens_per_step = expected_tokens_per_step(work.nextn, work.nextn_accept_rates)
    mixed = mixed_steps(batch, ctx_tokens, work.isl, work.osl, tokens_per_step)
    return {
        "mixed": price("mixed", ctx_tokens, mixed.prompts, mixed.decoding, middle),
        "decode": price("decode", none, none, batch, middle),
    }


def _strides(steps: int, most: int) -> np.ndarray:
    """Middles of at most `most` equal strides over decode steps 0 .. steps - 1."""
    count = min(steps, most)
    return (np.arange(count) + 0.5) / count * steps - 0.5


def _layout(candidates: pa.Table) -> Layout:
    return Layout(*(candidates[name].to_numpy().astype(np.int64) for name in schemas.LAYOUT))


def _kv_bytes(work: Work, candidates: pa.Table) -> np.ndarray:
    """Of one prompt on one GPU, which holds the layers of its pipeline stage."""
    layout = _layout(candidates)
    isl = np.full(len(layout.tp), work.isl)
    held = request_cache_bytes(
        find_model(work.model_name), precision_of(work), layout, isl, work.nextn
    )
    return held / layout.pp


def _shares(steps: dict[str, StepLatency]) -> dict[str, np.ndarray]:
    """Provenance of the time, as the mean over the candidate's kinds of steps."""
    if not steps:
        return {}
    of_steps = [latency.shares() for latency in steps.values()]
    return {f"{name}_share": np.mean([s[name] for s in of_steps], axis=0) for name in PROVENANCE}


def _operator_rows(work: Work, ids: np.ndarray, steps: dict[str, StepLatency]) -> pa.Table:
    parts = [schemas.OPERATORS.empty_table()]
    for step, latency in steps.items():
        ran = latency.ms > 0
        row, column = np.nonzero(ran)
        codes = latency.provenance[ran]
        columns = {
            "work_id": _coded([work.id], np.zeros(len(row), np.int32)),
            "candidate_id": ids[row],
            "step": _coded([step], np.zeros(len(row), np.int32)),
            "operator": _coded(latency.operators, column),
            "ms": latency.ms[ran],
            "provenance": _coded(PROVENANCE, codes),
            "note": _notes(latency, column, codes),
        }
        parts.append(schemas.table(schemas.OPERATORS, columns))
    return pa.concat_tables(parts).unify_dictionaries()


def _notes(latency: StepLatency, column: np.ndarray, codes: np.ndarray) -> pa.DictionaryArray:
    """What stood in, for the values that something stood in for; null for the others."""
    without = codes != PROVENANCE.index("substituted")
    return pa.DictionaryArray.from_arrays(
        pa.array(column.astype(np.int32), mask=without), list(latency.notes)
    )


def _coded(names: list[str] | tuple[str, ...], codes: np.ndarray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(codes.astype(np.int32), list(names))
