"""The estimator's choices and corrections (config/estimation.yaml, config/backends.yaml)."""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import yaml

from paretoserve import paths


@dataclass(frozen=True)
class Interpolation:
    """See config/estimation.yaml for the source of each number."""

    gemm_tile_m: int
    gemm_spike: float
    gemm_neighbours: int
    gemm_k_weight: float
    gemm_own_gain: float
    gemm_fused_quantisation: dict[str, list[str]]
    attention_neighbour_gain: float


@dataclass(frozen=True)
class Beyond:
    """How curves over tokens go on beyond their last point, up to `tokens`."""

    tokens: int
    reach: float
    slopes: tuple[float, float]


@dataclass(frozen=True)
class ExchangeTable:
    """A table of an engine's exchange of tokens between experts, and which of its rows.

    With `rates` only for experts that compute at one of these.
    """

    table: str
    where: dict[str, str | int]
    rates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experts:
    """How tokens spread over experts and travel to them; see config/estimation.yaml."""

    distribution: dict[str, str]
    wide_ep_distribution: dict[str, str]
    wide_ep_tables: dict[str, dict[str, str]]
    exchange: dict[str, dict[str, tuple[ExchangeTable, ...]]]
    dispatched_bytes: dict[str, float]
    dispatched_dtypes: dict[str, tuple[str, ...]]
    gathered_bytes: dict[str, dict[str, float]]
    shape_neighbours: int
    beyond: Beyond
    shared_beside_routed_tokens: dict[str, int]


@dataclass(frozen=True)
class StandIns:
    """Precisions that stand in for one that was not measured, those alike before the others."""

    alike: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Activations:
    """Live activations: 2 * tokens * width * coefficient[tp] bytes, at least a floor.

    `moe_coefficient` is that of models with experts, which also hold `routed_bytes` for each value
    of a row that their GPU's experts compute.
    """

    coefficient: dict[int, float]
    floor_bytes: int
    moe_coefficient: dict[int, float] = field(default_factory=dict)
    routed_bytes: float = 0


@dataclass(frozen=True)
class Sure:
    """How far deployments are looked for that keep the SLA with the probability asked for."""

    layouts: int
    simulations: int


@dataclass(frozen=True)
class Simulation:
    """Which of the best deployments are simulated, and under which load."""

    ranks: int
    experiments: int
    requests_per_client: int
    most_requests: int
    lengths: tuple[float, float]
    sure: Sure

    @property
    def told(self) -> str:
        """The load in words, as reports say it."""
        low, high = self.lengths
        return (
            "in a closed loop that all clients start at once, with lengths between "
            f"{low:g} and {high:g} of the nominal ones"
        )


@dataclass(frozen=True)
class Estimation:
    """All of config/estimation.yaml."""

    interpolation: Interpolation
    experts: Experts
    activations: Activations
    substitutes: dict[str, dict[str, StandIns]]
    decode_positions: int
    batch_sizes_per_octave: int
    simulation: Simulation


@dataclass(frozen=True)
class Scheduling:
    """How an engine fills a step when nobody says otherwise; see config/backends.yaml."""

    policy: str
    token_budget: int
    max_batch: int
    kv_reserved: float
    other_gpus: tuple[dict[str, Any], ...] = ()
    split_over_ranks: tuple[str, ...] = ()

    def on(self, system: str, memory_bytes: int, dp: int = 1) -> "Scheduling":
        """The same on these GPUs, for one of the `dp` attention ranks of a worker."""
        limits = {"token_budget": self.token_budget, "max_batch": self.max_batch}
        for other in self.other_gpus:
            if (
                memory_bytes < other.get("below_gib", 0) * 2**30
                or memory_bytes >= other.get("from_gib", float("inf")) * 2**30
                or system in other.get("systems", ())
            ):
                limits |= {name: other[name] for name in limits if name in other}
        limits |= {name: max(limits[name] // dp, 1) for name in self.split_over_ranks}
        return replace(self, **limits, other_gpus=(), split_over_ranks=())


@dataclass(frozen=True)
class BackendRules:
    """How one serving engine schedules steps and reserves memory."""

    kv_cache_rule: str
    kv_cache_fraction: float
    chunked_prefill: bool
    step_tokens: tuple[int, ...]
    exclusive: tuple[tuple[str, str], ...] = ()  # kinds of parallelism that exclude each other
    scheduling: Scheduling | None = None  # only a simulation asks for it
    routed_bytes: float | None = None  # that of Activations, where the engine's own is known


@cache
def estimation() -> Estimation:
    """Read config/estimation.yaml."""
    spec = yaml.load(paths.ESTIMATION.read_bytes(), yaml.CSafeLoader)
    return Estimation(
        interpolation=Interpolation(**spec["interpolation"]),
        experts=_experts(spec["experts"]),
        activations=Activations(**spec["activations"]),
        substitutes={
            kind: {
                mode: StandIns(**{k: tuple(v) for k, v in stand_ins.items()})
                for mode, stand_ins in modes.items()
            }
            for kind, modes in spec["substitutes"].items()
        },
        decode_positions=spec["decode_positions"],
        batch_sizes_per_octave=spec["batch_sizes_per_octave"],
        simulation=Simulation(
            **{
                **spec["simulation"],
                "lengths": tuple(spec["simulation"]["lengths"]),
                "sure": Sure(**spec["simulation"]["sure"]),
            }
        ),
    )


def _experts(spec: dict[str, Any]) -> Experts:
    exchange = {
        backend: {
            tokens_are: tuple(
                ExchangeTable(
                    source["table"], source.get("where", {}), tuple(source.get("rates", ()))
                )
                for source in sources
            )
            for tokens_are, sources in variants.items()
        }
        for backend, variants in spec["exchange"].items()
    }
    return Experts(
        **{
            **spec,
            "exchange": exchange,
            "dispatched_dtypes": {k: tuple(v) for k, v in spec["dispatched_dtypes"].items()},
            "beyond": Beyond(**spec["beyond"]),
        }
    )


def _scheduling(spec: dict[str, Any]) -> Scheduling:
    listed = {name: tuple(spec.get(name, ())) for name in ("other_gpus", "split_over_ranks")}
    return Scheduling(**{**spec, **listed})


@cache
def backend_rules(backend: str) -> BackendRules:
    """Read the rules of one engine from config/backends.yaml."""
    spec = yaml.load(paths.BACKENDS.read_bytes(), yaml.CSafeLoader)[backend]
    return BackendRules(
        kv_cache_rule=spec["kv_cache"]["rule"],
        kv_cache_fraction=spec["kv_cache"]["fraction"],
        chunked_prefill=spec["chunked_prefill"],
        step_tokens=tuple(spec["step_tokens"]),
        scheduling=_scheduling(spec["scheduling"]),
        exclusive=tuple((one, other) for one, other in spec["exclusive"]),
        routed_bytes=spec.get("routed_bytes"),
    )
