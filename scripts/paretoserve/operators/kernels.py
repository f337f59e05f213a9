"""All operators of one engine version on one system, opened when first used.

Each is asked with the precisions and shapes first, then the arrays of a look-up; what the engine's
own tables cannot answer comes from stand-ins (see sources).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, lru_cache, partial
from math import inf

import numpy as np

from paretoserve.errors import InputError
from paretoserve.hardware import System
from paretoserve.interpolation import SPEED_OF_LIGHT, SUBSTITUTED, Latency, gather
from paretoserve.models.dimensions import GDN, MoEFFN
from paretoserve.operators.attention import ContextAttention, GenerationAttention
from paretoserve.operators.collectives import (
    Collective,
    all_reduce,
    hand_over_ms,
    library_collective,
)
from paretoserve.operators.dsa import SparseAttention
from paretoserve.operators.elementwise import memory_ms
from paretoserve.operators.exchange import Exchange
from paretoserve.operators.experts import Experts
from paretoserve.operators.gdn import DeltaNet
from paretoserve.operators.gemm import Gemm
from paretoserve.operators.mla import Block, LatentAttention, LatentModule
from paretoserve.operators.sources import Key, Kind, Sourced
from paretoserve.perfdb.tables import PerfTables
from paretoserve.settings import StandIns, estimation


class Kernels:
    """The operators that a worker's layers are made of.

    `strict`: from the engine's own tables as they are, without stand-ins and unscreened.
    """

    def __init__(self, tables: PerfTables, strict: bool = False):
        self.tables, self._strict = tables, strict
        self._experts = cache(lambda table: Experts(tables, estimation().experts, table))
        settings = estimation().interpolation
        # It is the engine that fuses, whose tables ever stand in.
        fused = settings.gemm_fused_quantisation.items()
        mine = {} if strict else {of: types for of, types in fused if of == tables.backend}
        settings = replace(settings, gemm_fused_quantisation=mine)
        if strict:
            settings = replace(settings, gemm_spike=inf)
        # Operators of a table share what they opened of other engines.
        self._make = cache(lambda of_type, other: of_type(other, settings))

    @property
    def system(self) -> System:
        return self.tables.system

    def moved(self, moved_bytes: np.ndarray) -> Latency:
        """A kernel that only moves memory: a formula, nobody measured it."""
        return _modelled(memory_ms(self.system, moved_bytes))

    def hand_over(self, tp: np.ndarray, pp: np.ndarray, elements: np.ndarray) -> Latency:
        """Activations passed from stage to stage: a formula, nobody measured it."""
        return _modelled(hand_over_ms(self.system, tp, pp, elements))

    @cached_property
    def gemm(self) -> "Gemms":
        return Gemms(
            self.tables,
            Kind(
                name="GEMM",
                table="gemm",
                make=self._maker(Gemm),
                look_up=lambda op, key, *query: op.latency(*key, *query),
                bound_ms=lambda op, key, *query: op.bound_ms(*key, *query),
                variants=lambda key: _stand_ins("gemm", key, 0),
                columns=lambda key: {"dtype": key[0]},
            ),
            self._strict,
        )

    @cached_property
    def context_attention(self) -> "ContextAttentions":
        return ContextAttentions(
            self.tables,
            Kind(
                name="context attention",
                table="context_attention",
                make=self._maker(ContextAttention),
                look_up=lambda op, key, *query: op.latency(*key, *query),
                bound_ms=lambda op, key, *query: op.bound_ms(*key, *query),
                variants=_with_any_window(partial(_pairs, at=0), window_at=3),
                columns=lambda key: _named(key, "attn_dtype", "kv_dtype", "head_dim", "window"),
            ),
            self._strict,
        )

    @cached_property
    def generation_attention(self) -> "GenerationAttentions":
        return GenerationAttentions(
            self.tables,
            Kind(
                name="decode attention",
                table="generation_attention",
                make=self._maker(GenerationAttention),
                look_up=lambda op, key, *query: op.latency(*key[:3], *query, key[3]),
                bound_ms=lambda op, key, *query: op.bound_ms(*key[:3], *query),
                variants=_with_any_window(partial(_stand_ins, "kv_cache", at=0), window_at=2),
                columns=lambda key: _named(key, "kv_dtype", "head_dim", "window"),
            ),
            self._strict,
        )

    @cached_property
    def latent_attention(self) -> "LatentAttentions | None":
        """None where the engine's latent attention was measured as a whole block only."""
        if not self.tables.releases("context_mla") and self.tables.releases("mla_context_module"):
            return None
        return LatentAttentions(self.tables, self._maker(LatentAttention), self._strict)

    @cached_property
    def latent_module(self) -> "LatentModules":
        return LatentModules(self.tables, self._maker(LatentModule), self._strict)

    @cached_property
    def sparse_attention(self) -> "SparseAttentions":
        return SparseAttentions(self.tables, self._maker(SparseAttention), self._strict)

    @cached_property
    def delta_net(self) -> "DeltaNets":
        return DeltaNets(
            self.tables,
            Kind(
                name="gated delta net",
                table="gdn",
                make=lambda tables: DeltaNet(tables, estimation().experts.shape_neighbours),
                look_up=_measured_heads,
                estimate=lambda op, key, *query: op.latency(*key, *query),
                bound_ms=lambda op, key, *query: op.bound_ms(*key, *query),
                columns=lambda key: _named(key, "part", "phase"),
            ),
            self._strict,
        )

    @cached_property
    def _routed(self) -> "RoutedExperts":
        return RoutedExperts(
            self.tables,
            Kind(
                name="experts",
                table="moe",
                make=lambda tables: Experts(tables, estimation().experts),
                look_up=_measured_experts,
                estimate=_experts,
                bound_ms=lambda op, key, tokens: op.bound_ms(*key, tokens),
                variants=lambda key: _stand_ins("moe", key, 0),
                columns=_of_experts,
                label=lambda key: str(key[0]),
            ),
            self._strict,
        )

    def experts(self) -> "RoutedExperts":
        return self._routed

    def wide_experts(
        self, tokens_are: str, dtype: str, spec: MoEFFN, hidden: int
    ) -> "Experts | RoutedExperts":
        """The kernels of wide expert parallelism where these experts were measured with them."""
        table = estimation().experts.wide_ep_tables[self.tables.backend].get(tokens_are)
        if table and self._experts(table).measures(dtype, spec, hidden):
            return self._experts(table)
        return self._routed

    @cached_property
    def exchange(self) -> Exchange:
        return Exchange(self.tables, estimation().experts)

    @cached_property
    def all_reduce(self) -> "AllReduces":
        return AllReduces(
            self.tables,
            Kind(
                name="all-reduce",
                table="custom_allreduce",
                make=all_reduce,
                look_up=_measured_group,
                estimate=lambda op, key, elements: op.latency(key[0], elements),
                bound_ms=lambda op, key, elements: op.bound_ms(key[0], elements),
                columns=lambda key: {"num_gpus": key[0]},
                far_first=True,
                comparable=_same_link,
            ),
            self._strict,
        )

    @cached_property
    def all_gather(self) -> Collective:
        return library_collective(self.tables, "all_gather")

    @cached_property
    def reduce_scatter(self) -> Collective:
        return library_collective(self.tables, "reduce_scatter")

    def _maker(self, of_type: type) -> Callable[[PerfTables], object]:
        return lambda tables: self._make(of_type, tables)


class Gemms(Sourced):
    """GEMMs, see Gemm."""

    def latency(self, dtype: str, m: np.ndarray, n: np.ndarray, k: np.ndarray) -> Latency:
        """As Gemm.latency."""
        return self.ask((dtype,), m, n, k)


class ContextAttentions(Sourced):
    """Prefill attention, see ContextAttention."""

    def latency(self, attn_dtype, kv_dtype, head_dim, window, heads, kv_heads, isl, batch):
        """As ContextAttention.latency."""
        return self.ask((attn_dtype, kv_dtype, head_dim, window), heads, kv_heads, isl, batch)


class GenerationAttentions(Sourced):
    """Decode attention, see GenerationAttention."""

    def latency(self, kv_dtype, head_dim, window, heads, kv_heads, batch, kv_len, queries=1):
        """As GenerationAttention.latency."""
        return self.ask((kv_dtype, head_dim, window, queries), heads, kv_heads, batch, kv_len)


class LatentAttentions:
    """Latent attention in parts, see LatentAttention."""

    def __init__(
        self,
        tables: PerfTables,
        make: Callable[[PerfTables], LatentAttention],
        strict: bool = False,
    ):
        self._context = Sourced(
            tables,
            Kind(
                name="latent context attention",
                table="context_mla",
                make=make,
                look_up=lambda op, key, *query: op.context(*key, *query),
                bound_ms=lambda op, key, *query: op.context_bound_ms(*key, *query),
                variants=partial(_pairs, at=0),
                columns=lambda key: _named(key, "attn_dtype", "kv_dtype"),
            ),
            strict,
        )
        self._generation = Sourced(
            tables,
            Kind(
                name="latent decode attention",
                table="generation_mla",
                make=make,
                look_up=lambda op, key, *query: op.generation(key[0], *query, key[1]),
                bound_ms=lambda op, key, *query: op.generation_bound_ms(key[0], *query),
                variants=partial(_stand_ins, "kv_cache", at=0),
                columns=lambda key: _named(key, "kv_dtype"),
            ),
            strict,
        )
        self._product = Sourced(
            tables,
            Kind(
                name="latent product",
                table="mla_bmm",
                make=make,
                look_up=lambda op, key, *query: op.product(*key, *query),
                bound_ms=lambda op, key, *query: op.product_bound_ms(*key, *query),
                columns=lambda key: _named(key, "op", "dtype"),
            ),
            strict,
        )

    def __getattr__(self, name: str):
        """What only the engine's own tables are asked for."""
        return getattr(self._context.own, name)

    def context(self, attn_dtype: str, kv_dtype: str, heads, isl, batch) -> Latency:
        """As LatentAttention.context."""
        return self._context.ask((attn_dtype, kv_dtype), heads, isl, batch)

    def generation(self, kv_dtype: str, heads, batch, kv_len, queries: int = 1) -> Latency:
        """As LatentAttention.generation."""
        return self._generation.ask((kv_dtype, queries), heads, batch, kv_len)

    def product(self, op: str, dtype: str, heads, tokens) -> Latency:
        """As LatentAttention.product."""
        return self._product.ask((op, dtype), heads, tokens)


class LatentModules:
    """Latent attention as one block, see LatentModule."""

    def __init__(
        self, tables: PerfTables, make: Callable[[PerfTables], LatentModule], strict: bool = False
    ):
        self._context = Sourced(
            tables,
            Kind(
                name="latent attention block of prompts",
                table="mla_context_module",
                make=make,
                look_up=lambda op, key, *query: op.context(*key, *query),
                bound_ms=lambda op, key, *query: op.context_bound_ms(*key, *query),
                variants=_with_any_projection(partial(_pairs, at=1)),
                columns=lambda key: (
                    {"gemm_dtype": key[0].gemm_dtype} | _named(key[1:], "attn_dtype", "kv_dtype")
                ),
            ),
            strict,
        )
        self._generation = Sourced(
            tables,
            Kind(
                name="latent attention block of decoding",
                table="mla_generation_module",
                make=make,
                look_up=lambda op, key, *query: op.generation(key[0], key[1], *query, key[2]),
                bound_ms=lambda op, key, *query: op.generation_bound_ms(key[0], key[1], *query),
                variants=_with_any_projection(partial(_stand_ins, "kv_cache", at=1)),
                columns=lambda key: {"gemm_dtype": key[0].gemm_dtype} | _named(key[1:], "kv_dtype"),
            ),
            strict,
        )

    def context(self, block: Block, attn_dtype: str, kv_dtype: str, heads, isl, batch) -> Latency:
        """As LatentModule.context."""
        return self._context.ask((block, attn_dtype, kv_dtype), heads, isl, batch)

    def generation(self, block: Block, kv_dtype: str, heads, batch, kv_len, queries=1) -> Latency:
        """As LatentModule.generation."""
        return self._generation.ask((block, kv_dtype, queries), heads, batch, kv_len)


class SparseAttentions:
    """Sparse latent attention as one block, see SparseAttention."""

    def __init__(
        self,
        tables: PerfTables,
        make: Callable[[PerfTables], SparseAttention],
        strict: bool = False,
    ):
        self._context = Sourced(
            tables,
            Kind(
                name="sparse attention block of prompts",
                table="dsa_context_module",
                make=make,
                look_up=lambda op, key, *query: op.context(*key, *query),
                bound_ms=lambda op, key, *query: op.context_bound_ms(*key, *query),
                variants=_with_any_projection(partial(_stand_ins, "kv_cache", at=1)),
                columns=_of_sparse,
            ),
            strict,
        )
        self._generation = Sourced(
            tables,
            Kind(
                name="sparse attention block of decoding",
                table="dsa_generation_module",
                make=make,
                look_up=lambda op, key, *query: op.generation(*key, *query),
                bound_ms=lambda op, key, *query: op.generation_bound_ms(*key, *query),
                variants=_with_any_projection(partial(_stand_ins, "kv_cache", at=1)),
                columns=_of_sparse,
            ),
            strict,
        )

    def context(self, block: Block, kv_dtype: str, heads, isl, batch) -> Latency:
        """As SparseAttention.context."""
        return self._context.ask((block, kv_dtype), heads, isl, batch)

    def generation(self, block: Block, kv_dtype: str, heads, batch, kv_len) -> Latency:
        """As SparseAttention.generation."""
        return self._generation.ask((block, kv_dtype), heads, batch, kv_len)


class DeltaNets(Sourced):
    """Gated delta nets, see DeltaNet."""

    def latency(self, part: str, phase: str, spec: GDN, k_heads, v_heads, batch, isl) -> Latency:
        """As DeltaNet.latency."""
        k_heads, v_heads, batch, isl = np.broadcast_arrays(k_heads, v_heads, batch, isl)
        groups = []
        for heads in {*zip(k_heads.tolist(), v_heads.tolist(), strict=True)}:
            mine = (k_heads == heads[0]) & (v_heads == heads[1])
            key = part, phase, spec, *heads
            groups.append((mine, partial(self.ask, key, batch[mine], isl[mine])))
        return gather(batch.shape, groups)


class RoutedExperts(Sourced):
    """Routed experts, see Experts."""

    def __getattr__(self, name: str):
        """What only the engine's own table is asked for."""
        return getattr(self.own, name)

    def latency(self, dtype, distribution, spec: MoEFFN, hidden: int, moe_tp, moe_ep, tokens):
        """As Experts.latency."""
        groups = []
        for mt, me in {*zip(moe_tp.tolist(), moe_ep.tolist(), strict=True)}:
            mine = (moe_tp == mt) & (moe_ep == me)
            key = dtype, distribution, spec, hidden, mt, me
            groups.append((mine, partial(self.ask, key, tokens[mine])))
        return gather(np.shape(tokens), groups)


class AllReduces(Sourced):
    """The engine's all-reduce, see Collective."""

    def latency(self, gpus: np.ndarray, elements: np.ndarray) -> Latency:
        """As Collective.latency."""
        gpus, elements = np.broadcast_arrays(gpus, np.asarray(elements, float))
        return gather(
            gpus.shape,
            [
                (gpus == count, partial(self.ask, (int(count),), elements[gpus == count]))
                for count in np.unique(gpus[gpus > 1])
            ],
        )


def _named(key: Key, *columns: str) -> dict[str, object]:
    return dict(zip(columns, key, strict=False))


def _replaced(key: Key, at: int, value: object) -> Key:
    return (*key[:at], value, *key[at + 1 :])


def _listed(kind: str, mode: str) -> StandIns:
    return estimation().substitutes[kind].get(mode, StandIns())


def _stand_ins(kind: str, key: Key, at: int) -> tuple[Sequence[Key], Sequence[Key]]:
    """Keys with another precision at one place, as config/estimation.yaml lists them."""
    listed = _listed(kind, key[at])
    return tuple(
        tuple(_replaced(key, at, mode) for mode in modes) for modes in (listed.alike, listed.others)
    )


def _pairs(key: Key, at: int) -> tuple[Sequence[Key], Sequence[Key]]:
    """Keys with another pair of attention and KV cache precision."""
    listed = _listed("attention", f"{key[at]},{key[at + 1]}")
    return tuple(
        tuple((*key[:at], *pair.split(","), *key[at + 2 :]) for pair in pairs)
        for pairs in (listed.alike, listed.others)
    )


def _with_any_window(variants: Callable, window_at: int) -> Callable:
    """Full attention may stand in for a window, scaled to what the window leaves."""

    def of(key: Key) -> tuple[Sequence[Key], Sequence[Key]]:
        alike, others = variants(key)
        if not key[window_at]:
            return alike, others
        full = [_replaced(one, window_at, 0) for one in (key, *alike, *others)]
        return alike, (*others, *full)

    return of


def _with_any_projection(variants: Callable) -> Callable:
    """Blocks whose projections have another precision may stand in."""

    def of(key: Key) -> tuple[Sequence[Key], Sequence[Key]]:
        alike, others = variants(key)
        block: Block = key[0]
        listed = _listed("gemm", block.gemm_dtype)
        modes = dict.fromkeys((*listed.alike, *listed.others, "fp8_block", "float16"))
        blocks = [block.of(mode) for mode in modes if mode != block.gemm_dtype]
        swapped = [_replaced(one, 0, b) for b in blocks for one in (key, *alike, *others)]
        return alike, (*others, *swapped)

    return of


def _measured_heads(op: DeltaNet, key: Key, batch: np.ndarray, isl: np.ndarray) -> Latency:
    if not op.measures(*key):
        raise InputError(f"no gated delta net was measured with {key[3]} key, {key[4]} value heads")
    return op.latency(*key, batch, isl)


def _experts(op: Experts, key: Key, tokens: np.ndarray) -> Latency:
    *of, moe_tp, moe_ep = key
    return op.latency(*of, np.full(len(tokens), moe_tp), np.full(len(tokens), moe_ep), tokens)


def _measured_experts(op: Experts, key: Key, tokens: np.ndarray) -> Latency:
    dtype, distribution, spec, hidden, *_ = key
    if not op.measures(dtype, spec, hidden):
        op.tables(dtype, distribution)  # says which precisions there are if it has not this one
        raise InputError(f"no {dtype} experts of this size were measured")
    return _experts(op, key, tokens)


def _of_sparse(key: Key) -> dict[str, object]:
    block, kv_dtype = key
    columns = {"architecture": block.architecture, "gemm_dtype": block.gemm_dtype}
    return columns | {"kv_dtype": kv_dtype}


def _of_experts(key: Key) -> dict[str, object]:
    dtype, _, spec, hidden, moe_tp, _ = key
    shape = {"topk": spec.topk, "experts": spec.experts, "hidden": hidden, "inter": spec.inter}
    return {"dtype": dtype, **shape, "moe_tp": moe_tp}


def _measured_group(op: Collective, key: Key, elements: np.ndarray) -> Latency:
    """Groups of another engine are nearer than a formula."""
    if not op.measures(key[0]):
        raise InputError(f"no all-reduce was measured over {key[0]} GPUs")
    found = op.latency(key[0], elements)
    # Where an engine's choice of protocol makes a larger message faster, that bounds the smaller.
    for factor in (2, 4):
        larger = op.latency(key[0], elements * factor)
        faster = larger.ms < 0.9 * found.ms
        if faster.any():
            found = Latency(
                np.where(faster, larger.ms, found.ms),
                np.where(faster, SUBSTITUTED, found.provenance),
                found.reasons,
                (f"an all-reduce over {key[0]} GPUs of a larger message, which is faster",),
            )
    return found


def _same_link(own: System, other: System, key: Key, elements: np.ndarray) -> bool:
    """Whether the slowest links of these groups are about as fast."""
    return 0.5 < own.link_bandwidth(key[0]) / other.link_bandwidth(key[0]) < 2


def _modelled(ms: np.ndarray) -> Latency:
    return Latency(ms, np.full(np.shape(ms), SPEED_OF_LIGHT, np.int8))


@lru_cache(maxsize=6)
def kernels_of(system: str, backend: str, version: str) -> Kernels:
    """The kernels of one engine version: stages of one process share what they have opened."""
    return Kernels(PerfTables(system, backend, version))
