"""Enumerate: the worker candidates of each work, and whether they fit the GPU's memory.

Reads model, system and backend rules, no measured table.
"""

from functools import cache

import numpy as np
import pyarrow as pa

from paretoserve import schemas
from paretoserve.experiments.plan import Group, Work
from paretoserve.hardware import load_system
from paretoserve.layout import Layout, Precision
from paretoserve.memory import GIB, worker_memory
from paretoserve.models.catalog import find_model
from paretoserve.precision import projections_modes
from paretoserve.search import Layouts, batch_sizes, layouts, prompt_budgets
from paretoserve.settings import backend_rules, estimation


def enumerate_candidates(group: Group) -> pa.Table:
    """Return the CANDIDATES table of a group."""
    return pa.concat_tables([_candidates(work) for work in group.works]).unify_dictionaries()


def precision_of(work: Work) -> Precision:
    """Return the precision modes of a work's worker."""
    worker = work.worker
    projections, output = projections_modes(
        work.model_name, worker.gemm_quant_mode, worker.moe_quant_mode
    )
    return Precision(
        gemm=worker.gemm_quant_mode,
        moe=worker.moe_quant_mode,
        kv_cache=worker.kvcache_quant_mode,
        attention=worker.fmha_quant_mode,
        projections=projections,
        output=output,
    )


def candidate_count(work: Work) -> int:
    """Return how many rows `enumerate_candidates` makes of a work."""
    found, (batch, _) = _layouts(work), _contents(work)
    return len(found.kept.tp) * len(batch) + len(found.refused)


def _layouts(work: Work) -> Layouts:
    worker = work.worker
    lists = (worker.num_gpu_per_worker, worker.tp_list, worker.pp_list, worker.dp_list)
    return _layouts_of(
        work.model_name, (*lists, worker.moe_tp_list, worker.moe_ep_list), worker.backend
    )


@cache
def _layouts_of(model_name: str, lists: tuple[tuple[int, ...], ...], backend: str) -> Layouts:
    """The works of a sweep differ in load much more often than in what is searched."""
    return layouts(find_model(model_name), *lists, backend_rules(backend))


def _candidates(work: Work) -> pa.Table:
    worker, model = work.worker, find_model(work.model_name)
    rules = backend_rules(worker.backend)
    found = _layouts(work)
    batch, ctx_tokens = _contents(work)
    count = len(found.kept.tp)
    layout = Layout(*(np.repeat(getattr(found.kept, k), len(batch)) for k in schemas.LAYOUT))
    batch, ctx_tokens = np.tile(batch, count), np.tile(ctx_tokens, count)

    decodes = worker.role != "prefill"
    memory = worker_memory(
        model,
        precision_of(work),
        layout,
        load_system(worker.system),
        rules,
        estimation().activations,
        requests=batch,
        request_tokens=work.isl + (work.osl if decodes else 0),
        step_tokens=ctx_tokens + (batch * (work.nextn + 1) if decodes else 0),
        nextn=work.nextn,
    )
    fits = memory.total <= memory.limit
    refused = np.array([key for key, _ in found.refused], np.int64).reshape(-1, 5)
    dropped = len(refused)

    def with_refused(values: np.ndarray, fill: object) -> np.ndarray:
        return np.concatenate([values, np.full(dropped, fill, values.dtype)])

    columns = {
        name: np.concatenate([getattr(layout, name), refused[:, i]])
        for i, name in enumerate(schemas.LAYOUT)
    }
    columns["gpus_per_worker"] = columns["tp"] * columns["pp"] * columns["dp"]
    columns["batch_size"] = with_refused(batch, 0)
    columns["ctx_tokens"] = with_refused(ctx_tokens, 0)
    for name in ("weights", "kv_cache", "activations", "buffers"):
        columns[f"{name}_gib"] = with_refused(getattr(memory, name) / GIB, np.nan)
    columns["memory_gib"] = with_refused(memory.total / GIB, np.nan)
    columns["memory_limit_gib"] = with_refused(memory.limit / GIB, np.nan)
    columns["fits"] = with_refused(fits, False)
    reasons = np.where(fits, "", "out of memory").astype(object)
    columns["reason"] = np.concatenate([reasons, [reason for _, reason in found.refused]])
    rows = len(reasons) + dropped
    columns["work_id"] = [work.id] * rows
    columns["candidate_id"] = np.arange(rows)
    columns["role"] = [worker.role] * rows
    return schemas.table(schemas.CANDIDATES, columns)


def _contents(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Batch sizes and prompt tokens per step, one pair per candidate of a layout.

    A prefill worker computes whole prompts, a decode worker none.
    """
    per_octave = estimation().batch_sizes_per_octave
    batch = batch_sizes(work.worker.max_batch_size, per_octave)
    if work.worker.role == "prefill":
        return batch, batch * work.isl
    if work.worker.role == "decode":
        return batch, np.zeros_like(batch)
    budgets = prompt_budgets(work.isl, batch, backend_rules(work.worker.backend))
    row, column = np.nonzero(budgets)
    return batch[row], budgets[row, column]
