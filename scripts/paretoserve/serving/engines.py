"""Workers as the simulation sees them: priced steps, calibrated times, batch and cache limits."""

from dataclasses import dataclass, replace

import numpy as np

from paretoserve.calibration import EngineTimes
from paretoserve.errors import InputError
from paretoserve.hardware import System
from paretoserve.layout import Layout, Precision
from paretoserve.memory import request_cache_bytes, worker_memory
from paretoserve.models.dimensions import DSA, GDN, GQA, MLA, DenseFFN, Model, MoEFFN
from paretoserve.serving.closed_loop import Disagg, Engine, Host
from paretoserve.serving.surfaces import Surface
from paretoserve.settings import BackendRules, estimation

LAYOUT = ("tp", "pp", "dp", "moe_tp", "moe_ep")


@dataclass(frozen=True)
class Limit:
    """Of one attention-dp rank: requests in its batch, and tokens that a step may take."""

    max_batch: int
    token_budget: int


def kv_capacity_tokens(
    model: Model,
    precision: Precision,
    layout: Layout,
    system: System,
    rules: BackendRules,
    limit: Limit,
    request_tokens: int,
    nextn: int = 0,
) -> float:
    """Tokens that one rank's cache holds when requests have `request_tokens`; one worker's layout.

    InputError where the weights leave no room.
    """
    none, step = np.zeros(1), np.array([limit.token_budget])
    memory = worker_memory(
        model,
        precision,
        layout,
        system,
        rules,
        estimation().activations,
        none,
        none,
        step,
        nextn=nextn,
    )
    free = float((memory.limit - memory.total)[0])
    if free <= 0:
        need, has = (x / 2**30 for x in (memory.total[0], memory.limit[0]))
        raise InputError(
            f"out of memory: {need:.1f} GiB without a cache, {has:.1f} GiB may be taken"
        )
    tokens = np.array([request_tokens])
    of_request = float(request_cache_bytes(model, precision, layout, tokens, nextn)[0])
    return free / of_request * request_tokens


# Kernels that a part of a layer is launched as, about: its operators, and what they split into.
LAUNCHES: dict[type, int] = {GQA: 6, MLA: 12, DSA: 16, GDN: 10, DenseFFN: 4, MoEFFN: 9}


def launches(model: Model) -> int:
    """Kernels of a pass that are launched one by one where no graph holds them."""
    return sum(
        count * sum(LAUNCHES[type(part)] for part in layer.parts) for count, layer in model.layers
    )


def host_of(times: EngineTimes, kernels: int) -> Host:
    """The host's part of the calibration for a model whose pass has so many kernels."""
    return Host(
        decode_step_ms=times.decode_step_ms,
        prefill_step_ms=times.decode_step_ms + kernels * times.prefill_launch_us / 1e3,
        per_request_ms=times.per_request_us / 1e3,
        per_prompt_ms=times.per_prompt_ms,
        request_ms=times.request_ms,
        per_prompt_token_ms=times.per_prompt_token_us / 1e3,
    )


def in_engine(surface: Surface, times: EngineTimes, dp: int) -> Surface:
    """The surface with the time that its kernels take beside each other in the engine."""
    decode, prefill = times.decode_kernel_scale, times.prefill_kernel_scale
    if dp > 1:
        prefill *= times.dp_prefill_scale
    return replace(
        surface,
        decode_ms=surface.decode_ms * decode,
        decode_only_ms=surface.decode_only_ms * decode,
        draft_ms=surface.draft_ms * decode,
        rows_ms=surface.rows_ms * decode,
        local_ms=surface.local_ms * prefill,
        pooled_ms=surface.pooled_ms * prefill,
        prompt_tokens_ms=surface.prompt_tokens_ms * prefill,
        prompt_ms=surface.prompt_ms * prefill,
    )


def engine(
    surface: Surface,
    kernels: int,
    times: EngineTimes,
    rules: BackendRules,
    limit: Limit,
    kv_tokens: float,
    *,
    dp: int = 1,
    pp: int = 1,
    tokens_per_step: float = 1.0,
) -> Engine:
    """One worker of a backend under its calibrated times."""
    return Engine(
        surface=in_engine(surface, times, dp),
        max_batch=limit.max_batch,
        kv_capacity_tokens=kv_tokens,
        token_budget=limit.token_budget,
        policy=rules.scheduling.policy,
        chunked=rules.chunked_prefill,
        kv_reserved=rules.scheduling.kv_reserved,
        tokens_per_step=tokens_per_step,
        poll_steps=max(round(times.poll_steps), 1),
        dp=dp,
        pp=pp,
        host=host_of(times, kernels),
    )


def disaggregated(
    prefill: Engine,
    decode: Engine,
    workers: tuple[int, int],
    times: EngineTimes,
    requests: float,
    load: tuple[int, int],
    prompt_bytes: float,
    systems: tuple[System, System],
) -> Disagg:
    """A replica of so many prefill and decode workers, with what lies between these.

    `requests` of a decode rank, `load` (isl, osl), `prompt_bytes` of a prompt's cache; `systems` of
    prefill and decode share a rack or send over the network. Nobody's answer starts in a prefill
    worker: no prompt has its own host time there. A decode worker looks for arrived caches as often
    as an aggregated one looks for requests: half that many of its steps pass on the mean.
    """
    (isl, osl), (source, target) = load, systems
    alone = replace(prefill, host=replace(prefill.host, per_prompt_ms=0.0))
    kv_len = np.array([isl + osl / 2])
    step_ms = decode.surface.decode_step_ms(np.array([max(requests, 1.0)]), kv_len)
    rack = source.name == target.name and source.gpus_per_rack is not None
    gb_per_s = times.transfer_gb_per_s if rack else times.network_gb_per_s
    return Disagg(
        alone,
        decode,
        *workers,
        transfer_ms=times.hand_over_ms + (decode.poll_steps - 1) / 2 * float(step_ms[0]),
        transfer_ms_per_token=prompt_bytes / isl / gb_per_s / 1e6,
    )
