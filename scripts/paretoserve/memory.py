"""What one worker holds on one GPU, and whether it fits.

weights      the parameters of this GPU's shard; embeddings and vocabulary projection are split
             over tp, layers over tp and pp, routed experts over moe_tp and moe_ep. Router and the
             projections down of latent attention are on every GPU. With MTP, its layer too
kv_cache     per token, request and layer with attention: 2 (K and V) x KV heads of this GPU x
             head_dim values, or the latent and rotary part of latent attention, on every GPU, with
             an 8-bit key per token for an indexer. A window keeps no more tokens than it spans;
             a gated delta net keeps one 32-bit state per request instead.
             Pipeline stages hold 1/pp of the layers but pp batches are in flight: pp cancels out
activations  of the largest pass, a multiple of all heads' output (config/estimation.yaml)
buffers      collective library and runtime (system file)

It fits when the KV cache stays within the engine's own rule (config/backends.yaml): a fraction of
what the rest leaves free, or the GPU's fraction that engine and cache may take together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from paretoserve import quant
from paretoserve.hardware import System
from paretoserve.layout import Layout, Precision
from paretoserve.models.dimensions import (
    DSA,
    GDN,
    GQA,
    MLA,
    DenseFFN,
    LayerSpec,
    Model,
    MoEFFN,
)
from paretoserve.operators.mla import projection_params
from paretoserve.settings import Activations, BackendRules

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, each (N,); `limit` is the most that all of it may take."""

    weights: np.ndarray
    kv_cache: np.ndarray
    activations: np.ndarray
    buffers: np.ndarray
    limit: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.weights + self.kv_cache + self.activations + self.buffers


def worker_memory(
    model: Model,
    precision: Precision,
    layout: Layout,
    system: System,
    rules: BackendRules,
    activations: Activations,
    requests: np.ndarray,
    request_tokens: np.ndarray,
    step_tokens: np.ndarray,
    *,
    nextn: int = 0,
) -> Memory:
    """Memory of workers holding `requests` of `request_tokens` each, per attention-dp rank.

    `step_tokens` is the largest number of tokens in one pass, drafts to verify included. All
    arrays (N,). `nextn` > 0 adds the layers that draft.
    """
    weights = weight_bytes(model, precision, layout, nextn)
    kv_cache = requests * request_cache_bytes(model, precision, layout, request_tokens, nextn)
    if rules.routed_bytes is not None:
        activations = replace(activations, routed_bytes=rules.routed_bytes)
    live = _activation_bytes(model, layout, step_tokens, activations)
    buffers = system.collective_buffers(layout.tp * layout.dp) + system.runtime_bytes
    other = weights + live + buffers
    if rules.kv_cache_rule == "free":
        limit = other + rules.kv_cache_fraction * np.maximum(system.memory_bytes - other, 0)
    else:
        limit = np.full(np.shape(other), rules.kv_cache_fraction * system.memory_bytes)
    # Weights alone may exceed the GPU: then nothing is left for any rule to share out.
    limit = np.minimum(limit, system.memory_bytes)
    return Memory(weights, kv_cache, live, np.broadcast_to(buffers, np.shape(other)), limit)


def weight_bytes(model: Model, precision: Precision, layout: Layout, nextn: int = 0) -> np.ndarray:
    """Parameter bytes on one GPU, (N,). Embeddings and vocabulary projection stay 16-bit."""
    sixteen_bit = quant.mode("weights", "float16").bytes
    layers = sum(
        count * _layer_bytes(layer, model.hidden, precision, layout)
        for count, layer in model.distinct_layers
    )
    vocabulary = model.vocab // layout.tp * model.hidden * (1 if model.tied_embeddings else 2)
    total = layers / layout.pp + vocabulary * sixteen_bit
    if nextn:
        draft = _layer_bytes(model.layers[-1][1], model.hidden, precision, layout)
        total = total + model.mtp_layers * (draft + 2 * model.hidden**2 * sixteen_bit)
    return total


def kv_cache_bytes_per_token(
    model: Model, precision: Precision, layout: Layout, nextn: int = 0
) -> np.ndarray:
    """Bytes that one more token of a long request takes in the KV cache of one GPU, (N,).

    Layers with a window are not counted: `request_cache_bytes` has all of a request.
    """
    held = sum(
        count * token_bytes
        for count, token_bytes, window in _caches(model, precision, layout, nextn)
        if not window
    )
    return np.broadcast_to(held, layout.tp.shape)


def request_cache_bytes(
    model: Model,
    precision: Precision,
    layout: Layout,
    tokens: np.ndarray,
    nextn: int = 0,
) -> np.ndarray:
    """Bytes that one request of `tokens` (N,) takes in the cache of one GPU, (N,).

    Layers with a window hold no more than it spans, gated delta nets a state of one size.
    """
    held = sum(
        count * token_bytes * (np.minimum(tokens, window) if window else tokens)
        for count, token_bytes, window in _caches(model, precision, layout, nextn)
    )
    states = sum(
        count * state_bytes(layer.attention, layout)
        for count, layer in _attending(model, nextn)
        if isinstance(layer.attention, GDN)
    )
    return np.broadcast_to(held + states, layout.tp.shape)


def state_bytes(spec: GDN, layout: Layout) -> np.ndarray:
    """Bytes of one request's state in one layer: 32 bit, and the last inputs of the convolution."""
    state = spec.v_heads * spec.k_dim * spec.v_dim * 4
    return (state + spec.channels * (spec.conv - 1) * 2) / layout.tp


def _attending(model: Model, nextn: int) -> list[tuple[int, LayerSpec]]:
    """Groups of layers that keep something of a request, the drafting ones included."""
    groups = [*model.distinct_layers, (model.mtp_layers if nextn else 0, model.layers[-1][1])]
    return [(count, layer) for count, layer in groups if layer.attention is not None]


def _caches(
    model: Model, precision: Precision, layout: Layout, nextn: int
) -> Iterator[tuple[int, np.ndarray, int]]:
    """(layers, bytes per token, window or 0) of every group of layers with a KV cache."""
    width = quant.mode("kv_cache", precision.kv_cache).bytes
    for count, layer in _attending(model, nextn):
        spec = layer.attention
        if isinstance(spec, GQA):
            values = 2 * -(-spec.kv_heads // layout.tp) * spec.head_dim
            yield count, values * width, spec.window
        elif isinstance(spec, MLA):
            values = spec.kv_rank + spec.rope_dim
            yield count, values * width + _index_key_bytes(spec), 0


def _index_key_bytes(spec: MLA) -> int:
    """An indexer caches an 8-bit key of each token with a 32-bit scale."""
    return spec.index_dim + 4 if isinstance(spec, DSA) else 0


def _layer_bytes(
    layer: LayerSpec, hidden: int, precision: Precision, layout: Layout
) -> np.ndarray | float:
    return sum(_WEIGHTS[type(part)](part, hidden, precision, layout) for part in layer.parts)


def _gqa(spec: GQA, hidden: int, precision: Precision, layout: Layout) -> np.ndarray:
    heads, kv_heads = spec.heads // layout.tp, -(-spec.kv_heads // layout.tp)
    output = heads * spec.head_dim
    params = hidden * (output * (3 if spec.output_gate else 2) + 2 * kv_heads * spec.head_dim)
    return params * quant.mode("weights", precision.attention_gemm).bytes


def _mla(spec: MLA, hidden: int, precision: Precision, layout: Layout) -> np.ndarray:
    heads = spec.heads // layout.tp
    output = hidden * heads * spec.v_dim
    others = projection_params(spec, hidden, heads) - output
    if isinstance(spec, DSA):
        others = others + spec.indexer_params(hidden)  # on every GPU
    return (
        others * quant.mode("weights", precision.attention_gemm).bytes
        + output * quant.mode("weights", precision.output_gemm).bytes
    )


def _gdn(spec: GDN, hidden: int, precision: Precision, layout: Layout) -> np.ndarray:
    params = spec.params(hidden) / layout.tp
    return params * quant.mode("weights", precision.attention_gemm).bytes


def _dense_ffn(spec: DenseFFN, hidden: int, precision: Precision, layout: Layout) -> np.ndarray:
    return 3 * hidden * (spec.inter // layout.tp) * quant.mode("weights", precision.gemm).bytes


def _moe_ffn(spec: MoEFFN, hidden: int, precision: Precision, layout: Layout) -> np.ndarray:
    router = hidden * spec.experts * quant.mode("weights", "float16").bytes
    shared = _dense_ffn(DenseFFN(spec.shared_inter), hidden, precision, layout)
    # Experts that the GPUs cannot share out evenly: the fullest GPU.
    experts = -(-spec.experts // layout.moe_ep) * (spec.inter // layout.moe_tp)
    routed = 3 * hidden * experts * quant.mode("weights", precision.moe).bytes
    return router + shared + routed


_WEIGHTS: dict[type, Callable[..., np.ndarray]] = {
    GQA: _gqa,
    MLA: _mla,
    DSA: _mla,
    GDN: _gdn,
    DenseFFN: _dense_ffn,
    MoEFFN: _moe_ffn,
}


def _activation_bytes(
    model: Model, layout: Layout, step_tokens: np.ndarray, settings: Activations
) -> np.ndarray:
    by_size = settings.moe_coefficient if model.is_moe else settings.coefficient
    sizes = np.array(sorted(by_size))
    coefficients = np.array([by_size[size] for size in sizes])
    coefficient = coefficients[np.searchsorted(sizes, layout.tp, side="right") - 1]
    live = 2 * step_tokens * _width(model) * coefficient
    topk = max((x.ffn.topk for _, x in model.layers if isinstance(x.ffn, MoEFFN)), default=0)
    rows = step_tokens * layout.dp * topk / layout.moe_ep
    return np.maximum(live + rows * model.hidden * settings.routed_bytes, settings.floor_bytes)


def _width(model: Model) -> int:
    """Values of a token between attention and output projection; of latent attention, hidden."""
    widths = (
        layer.attention.heads * layer.attention.head_dim
        for _, layer in model.layers
        if isinstance(layer.attention, GQA)
    )
    return max(widths, default=model.hidden)
