"""The estimator's choices and corrections (config/estimation.yaml, config/backends.yaml)."""

from dataclasses import dataclass
from functools import cache

import yaml

from paretoserve import paths


@dataclass(frozen=True)
class Interpolation:
    """See config/estimation.yaml for the source of each number."""

    gemm_tile_m: int
    gemm_neighbours: int
    gemm_k_weight: float
    gemm_own_gain: float
    attention_neighbour_gain: float


@dataclass(frozen=True)
class Activations:
    """Live activations: 2 * tokens * heads * head_dim * coefficient[tp] bytes, at least a floor."""

    coefficient: dict[int, float]
    floor_bytes: int


@dataclass(frozen=True)
class Estimation:
    """All of config/estimation.yaml."""

    interpolation: Interpolation
    activations: Activations
    decode_positions: int
    batch_sizes_per_octave: int


@dataclass(frozen=True)
class BackendRules:
    """How one serving engine schedules steps and reserves memory."""

    kv_cache_rule: str
    kv_cache_fraction: float
    chunked_prefill: bool
    step_tokens: tuple[int, ...]


@cache
def estimation() -> Estimation:
    """Read config/estimation.yaml."""
    spec = yaml.load(paths.ESTIMATION.read_bytes(), yaml.CSafeLoader)
    return Estimation(
        interpolation=Interpolation(**spec["interpolation"]),
        activations=Activations(**spec["activations"]),
        decode_positions=spec["decode_positions"],
        batch_sizes_per_octave=spec["batch_sizes_per_octave"],
    )


@cache
def backend_rules(backend: str) -> BackendRules:
    """Read the rules of one engine from config/backends.yaml."""
    spec = yaml.load(paths.BACKENDS.read_bytes(), yaml.CSafeLoader)[backend]
    return BackendRules(
        kv_cache_rule=spec["kv_cache"]["rule"],
        kv_cache_fraction=spec["kv_cache"]["fraction"],
        chunked_prefill=spec["chunked_prefill"],
        step_tokens=tuple(spec["step_tokens"]),
    )
