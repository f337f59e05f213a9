"""Latency of one forward pass, operator by operator, for arrays of steps.

A pass may hold prompts, decoding requests, or both; prefill, decode and mixed steps are the same
computation with different contents. GEMMs, norms and collectives see all tokens of the pass;
attention is priced apart for prompts and for decoding requests.

Per layer: norm, QKV projection, attention, output projection, all-reduce, norm, gate and up
projection, activation, down projection, all-reduce; around the layers: embedding, vocabulary
projection (one row per request) and the hand-over between pipeline stages. A pass visits all
layers whatever the pipeline depth, so its latency is the plain sum.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from paretoserve.interpolation import PROVENANCE, SPEED_OF_LIGHT, Latency, gather
from paretoserve.models.dimensions import GQA, DenseFFN, Model
from paretoserve.operators.collectives import hand_over_ms
from paretoserve.operators.elementwise import memory_ms
from paretoserve.operators.kernels import Kernels

Operators = Iterator[tuple[str, Latency]]


@dataclass(frozen=True)
class Layout:
    """How workers split the model; each field (N,)."""

    tp: np.ndarray
    pp: np.ndarray
    dp: np.ndarray
    moe_tp: np.ndarray
    moe_ep: np.ndarray


@dataclass(frozen=True)
class Precision:
    """Precision modes of one worker (names of config/quant_modes.yaml)."""

    gemm: str
    moe: str
    kv_cache: str
    attention: str


@dataclass(frozen=True)
class Step:
    """What one pass holds on one attention-data-parallel rank.

    prefill_tokens (N,) prompt tokens computed; prompts (N,) how many prompts of length `isl` (N,)
    they make, a fraction when a prompt is split; decoding (N,) requests that each get one token;
    kv_len (N, P) their cached tokens at P moments over which attention is averaged.
    """

    prefill_tokens: np.ndarray
    prompts: np.ndarray
    isl: np.ndarray
    decoding: np.ndarray
    kv_len: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        return self.prefill_tokens + self.decoding

    @property
    def requests(self) -> np.ndarray:
        """Rows that reach the vocabulary projection."""
        return np.ceil(self.prompts) + self.decoding


@dataclass(frozen=True)
class StepLatency:
    """Latency of N steps: `operators` (O names), `ms` and `provenance` (N, O), `reasons` (N,)."""

    operators: tuple[str, ...]
    ms: np.ndarray
    provenance: np.ndarray
    reasons: np.ndarray

    @property
    def total_ms(self) -> np.ndarray:
        """(N,) NaN where an operator has no table; `reasons` says which."""
        return self.ms.sum(axis=1)

    def shares(self) -> dict[str, np.ndarray]:
        """Share of the time by provenance, each (N,)."""
        total = self.total_ms
        return {
            name: np.where(self.provenance == code, self.ms, 0).sum(axis=1) / total
            for code, name in enumerate(PROVENANCE)
        }


def step_latency(
    model: Model, precision: Precision, layout: Layout, step: Step, kernels: Kernels
) -> StepLatency:
    """Price N steps, each with its own layout and contents."""
    priced: dict[str, list[Latency]] = {}
    for name, latency in _operators(model, precision, layout, step, kernels):
        priced.setdefault(name, []).append(latency)
    reasons = np.full(len(layout.tp), "", object)
    for name, latencies in priced.items():
        for latency in latencies:
            for mask, sentence in latency.reasons:
                reasons[mask] = sentence
            reasons[~np.isfinite(latency.ms) & (reasons == "")] = f"{name} has no finite latency"
    return StepLatency(
        operators=tuple(priced),
        ms=np.stack([sum(x.ms for x in same) for same in priced.values()], axis=1),
        provenance=np.stack(
            [np.max([x.provenance for x in same], axis=0) for same in priced.values()], axis=1
        ),
        reasons=reasons,
    )


def _operators(
    model: Model, precision: Precision, layout: Layout, step: Step, kernels: Kernels
) -> Operators:
    hidden, system = model.hidden, kernels.system
    yield "embedding", _moved(kernels, 2 * step.tokens * hidden)
    for count, layer in model.layers:
        for spec in (layer.attention, layer.ffn):
            block = _BLOCKS[type(spec)]
            for name, latency in block(spec, hidden, precision, layout, step, kernels):
                yield name, latency.scaled(count)
    yield (
        "logits_gemm",
        kernels.gemm.latency("float16", step.requests, model.vocab // layout.tp, hidden),
    )
    between_stages = hand_over_ms(system, layout.tp, layout.pp, step.tokens * hidden)
    yield "p2p", _modelled(between_stages)


def _gqa(
    spec: GQA, hidden: int, precision: Precision, layout: Layout, step: Step, kernels: Kernels
) -> Operators:
    heads, kv_heads = spec.heads // layout.tp, -(-spec.kv_heads // layout.tp)
    width = heads * spec.head_dim
    yield "add_norm_1", _moved(kernels, 8 * step.tokens * hidden)
    qkv = width + 2 * kv_heads * spec.head_dim
    yield "qkv_gemm", kernels.gemm.latency(precision.gemm, step.tokens, qkv, hidden)
    yield "context_attention", _context_attention(spec, precision, heads, kv_heads, step, kernels)
    yield (
        "generation_attention",
        _generation_attention(spec, precision, heads, kv_heads, step, kernels),
    )
    yield "proj_gemm", kernels.gemm.latency(precision.gemm, step.tokens, hidden, width)
    yield "ar_1", kernels.all_reduce.latency(layout.tp, step.tokens * hidden)


def _context_attention(spec, precision, heads, kv_heads, step, kernels) -> Latency:
    """Whole prompts at once; of a split prompt, its even share of the whole."""
    on = step.prompts > 0

    def whole() -> Latency:
        return kernels.context_attention.latency(
            precision.attention,
            precision.kv_cache,
            spec.head_dim,
            spec.window,
            heads[on],
            kv_heads[on],
            step.isl[on],
            np.maximum(step.prompts[on], 1),
        )

    return gather(on.shape, [(on, whole)]).scaled(np.minimum(step.prompts, 1))


def _generation_attention(spec, precision, heads, kv_heads, step, kernels) -> Latency:
    """Mean over the moments `kv_len`."""
    on = step.decoding > 0

    def mean() -> Latency:
        every = kernels.generation_attention.latency(
            precision.kv_cache,
            spec.head_dim,
            spec.window,
            heads[on, None],
            kv_heads[on, None],
            step.decoding[on, None],
            step.kv_len[on],
        )
        reasons = tuple((mask.any(axis=1), sentence) for mask, sentence in every.reasons)
        return Latency(every.ms.mean(axis=1), every.provenance.max(axis=1), reasons)

    return gather(on.shape, [(on, mean)])


def _dense_ffn(
    spec: DenseFFN, hidden: int, precision: Precision, layout: Layout, step: Step, kernels: Kernels
) -> Operators:
    inter = spec.inter // layout.tp
    yield "add_norm_2", _moved(kernels, 8 * step.tokens * hidden)
    yield "gate_ffn1_gemm", kernels.gemm.latency(precision.gemm, step.tokens, 2 * inter, hidden)
    yield "act_gate", _moved(kernels, 2 * step.tokens * 3 * inter)
    yield "ffn2_gemm", kernels.gemm.latency(precision.gemm, step.tokens, hidden, inter)
    yield "ar_2", kernels.all_reduce.latency(layout.tp, step.tokens * hidden)


# A family is priced by the kinds of layers it is made of; a new kind is one more line here.
_BLOCKS: dict[type, Callable[..., Operators]] = {GQA: _gqa, DenseFFN: _dense_ffn}


def _moved(kernels: Kernels, moved_bytes: np.ndarray) -> Latency:
    return _modelled(memory_ms(kernels.system, moved_bytes))


def _modelled(ms: np.ndarray) -> Latency:
    """A latency from a roofline formula: nobody measured it."""
    return Latency(ms, np.full(np.shape(ms), SPEED_OF_LIGHT, np.int8))
