"""What one worker holds on one GPU, and whether it fits.

weights      the parameters of this GPU's shard; embeddings and vocabulary projection are split
             over tp, layers over tp and pp
kv_cache     2 (K and V) x KV heads of this GPU x head_dim x layers x bytes per token and request.
             Pipeline stages hold 1/pp of the layers but pp batches are in flight: pp cancels out
activations  of the largest pass, a multiple of all heads' output (config/estimation.yaml)
buffers      collective library and runtime (system file)

It fits when the KV cache stays within the engine's own rule (config/backends.yaml): a fraction of
what the rest leaves free, or the GPU's fraction that engine and cache may take together.
"""

from dataclasses import dataclass

import numpy as np

from paretoserve import quant
from paretoserve.estimator import Layout, Precision
from paretoserve.hardware import System
from paretoserve.models.dimensions import GQA, DenseFFN, Model
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
) -> Memory:
    """Memory of workers holding `requests` of `request_tokens` each, per attention-dp rank.

    `step_tokens` is the largest number of tokens in one pass. All arrays (N,).
    """
    weights = weight_bytes(model, precision, layout)
    kv_cache = kv_cache_bytes_per_token(model, precision, layout) * requests * request_tokens
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


def weight_bytes(model: Model, precision: Precision, layout: Layout) -> np.ndarray:
    """Parameter bytes on one GPU, (N,). Embeddings and vocabulary projection stay 16-bit."""
    mode = quant.mode("weights", precision.gemm)
    layers = sum(
        count
        * (
            _attention_params(layer.attention, model.hidden, layout)
            + _ffn_params(layer.ffn, model.hidden, layout)
        )
        for count, layer in model.layers
    )
    vocabulary = model.vocab // layout.tp * model.hidden * (1 if model.tied_embeddings else 2)
    return layers * mode.bytes / layout.pp + vocabulary * quant.mode("weights", "float16").bytes


def kv_cache_bytes_per_token(model: Model, precision: Precision, layout: Layout) -> np.ndarray:
    """Bytes that one token of one request takes in the KV cache of one GPU, (N,)."""
    width = quant.mode("kv_cache", precision.kv_cache).bytes
    return sum(
        count * 2 * -(-layer.attention.kv_heads // layout.tp) * layer.attention.head_dim * width
        for count, layer in model.layers
    )


def _attention_params(spec: GQA, hidden: int, layout: Layout) -> np.ndarray:
    heads, kv_heads = spec.heads // layout.tp, -(-spec.kv_heads // layout.tp)
    return hidden * spec.head_dim * (2 * heads + 2 * kv_heads)


def _ffn_params(spec: DenseFFN, hidden: int, layout: Layout) -> np.ndarray:
    return 3 * hidden * (spec.inter // layout.tp)


def _activation_bytes(
    model: Model, layout: Layout, step_tokens: np.ndarray, settings: Activations
) -> np.ndarray:
    sizes = np.array(sorted(settings.coefficient))
    coefficients = np.array([settings.coefficient[size] for size in sizes])
    coefficient = coefficients[np.searchsorted(sizes, layout.tp, side="right") - 1]
    width = max(layer.attention.heads * layer.attention.head_dim for _, layer in model.layers)
    return np.maximum(2 * step_tokens * width * coefficient, settings.floor_bytes)
