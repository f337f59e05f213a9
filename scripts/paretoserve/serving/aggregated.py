"""Aggregated serving: prefill and decode share a worker, step by step (in-flight batching).

A worker keeps `batch` requests. A request takes `chunks` passes for its prompt and then
decode_steps = (osl - 1) / e steps, e tokens in each (1 without MTP): together its lifetime. During
one lifetime the worker starts `batch` requests, so batch / r of its steps are mixed, with r prompts
each (r < 1: split prompts):

    lifetime_ms = mixed_steps * mixed_ms + (lifetime_steps - mixed_steps) * decode_ms
    tpot        = (lifetime_ms - chunks * mixed_ms) / (osl - 1)     the request's own prompt apart
    rate        = batch / lifetime_ms                               Little's law

If that takes more mixed steps than a lifetime has, the worker is bound by prefill: every step is
mixed, tpot = mixed_ms / e, and a request waits for its turn so that Little's law still holds.

ttft is the prompt's own passes, half a step until the running one ends, and the queue of prompts
(M/D/1 at the share of mixed steps, which like a prefill pool is never busier than
prefill_correction_scale).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MixedSteps:
    """How prompts and decoding requests share passes, each (N,).

    prompts : r, prompts of one mixed step
    chunks : passes of one prompt
    mixed, lifetime : mixed and all steps during one request's lifetime
    decoding : requests that decode in a mixed step
    tokens_per_step : e, tokens that a decoding request gets in each
    """

    prompts: np.ndarray
    chunks: np.ndarray
    mixed: np.ndarray
    lifetime: np.ndarray
    decoding: np.ndarray
    tokens_per_step: float


def mixed_steps(
    batch: np.ndarray, ctx_tokens: np.ndarray, isl: int, osl: int, tokens_per_step: float = 1.0
) -> MixedSteps:
    """Divide the steps of workers with `batch` requests and `ctx_tokens` prompt tokens per step."""
    decode_steps = (osl - 1) / tokens_per_step
    prompts = ctx_tokens / isl
    chunks = np.ceil(1 / prompts)
    lifetime = chunks + decode_steps
    needed = batch / prompts
    mixed = np.maximum(needed, chunks)
    free_slots = batch - np.ceil(prompts)
    shared_out = batch * decode_steps / mixed
    decoding = np.where(mixed >= lifetime, np.minimum(shared_out, free_slots), free_slots)
    decoding = np.maximum(np.round(decoding), 0)
    return MixedSteps(prompts, chunks, mixed, lifetime, decoding, tokens_per_step)


@dataclass(frozen=True)
class Aggregated:
    """ttft_ms, tpot_ms and requests per second of one worker, and their parts, each (N,).

    ttft = own (the prompt's passes) + running + queue + turn; `busy` is the correction of the rate
    for a lifetime of which `prefill_share` is prefill.
    """

    ttft_ms: np.ndarray
    tpot_ms: np.ndarray
    seq_per_s: np.ndarray
    lifetime_ms: np.ndarray
    own_ms: np.ndarray
    running_ms: np.ndarray
    queue_ms: np.ndarray
    turn_ms: np.ndarray
    prefill_share: np.ndarray
    busy: np.ndarray


def aggregated(
    steps: MixedSteps,
    batch: np.ndarray,
    osl: int,
    mixed_ms: np.ndarray,
    decode_ms: np.ndarray,
    prefill_scale: float,
    decode_scale: float,
) -> Aggregated:
    """Combine the latencies of mixed and decode-only steps, per attention-dp rank and stage."""
    bound = steps.mixed >= steps.lifetime
    mixed_time = steps.mixed * mixed_ms
    lifetime_ms = mixed_time + np.where(bound, 0, steps.lifetime - steps.mixed) * decode_ms
    own_ms = steps.chunks * mixed_ms
    tpot_ms = np.where(bound, mixed_ms / steps.tokens_per_step, (lifetime_ms - own_ms) / (osl - 1))

    utilisation = np.minimum(steps.mixed / steps.lifetime, prefill_scale)
    alone = steps.mixed <= steps.chunks
    with np.errstate(divide="ignore"):  # never idle (scale 1): the queue has no end
        queue_steps = utilisation / (2 * (1 - utilisation))
    queue_ms = np.where(alone, 0.0, mixed_ms / steps.prompts * queue_steps)
    turn_ms = np.where(bound, (steps.mixed - steps.lifetime) * mixed_ms, 0.0)
    running_ms = np.where(alone, 0.0, lifetime_ms / steps.mixed.clip(steps.lifetime) / 2)
    ttft_ms = own_ms + running_ms + queue_ms + turn_ms

    prefill_share = np.clip(steps.mixed * (mixed_ms - decode_ms) / lifetime_ms, 0, 1)
    busy = 1 / (prefill_share / prefill_scale + (1 - prefill_share) / decode_scale)
    return Aggregated(
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        seq_per_s=1e3 * batch / lifetime_ms * busy,
        lifetime_ms=lifetime_ms,
        own_ms=own_ms,
        running_ms=running_ms,
        queue_ms=queue_ms,
        turn_ms=turn_ms,
        prefill_share=prefill_share,
        busy=busy,
    )
