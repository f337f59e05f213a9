"""Attention of a prompt (context) and of one new token (generation), grouped-query heads.

Context, `batch` prompts of `isl` tokens: arithmetic 4 H d pairs, where pairs = isl^2 / 2 (causal;
with a window w < isl: isl w - w^2 / 2); traffic q and output 4 isl H d bytes, KV cache
2 isl K d c bytes of c bytes per element.
Generation, `batch` sequences with `kv_len` tokens in the cache: arithmetic 4 H d l, traffic
4 H d + 2 K d c l bytes, where l = min(kv_len, window).
H heads and K KV heads are those of one GPU. Rotary embedding and cache write are inside the
measured kernels.
"""

from collections.abc import Callable
from functools import cache, partial

import numpy as np

from paretoserve import quant
from paretoserve.errors import InputError
from paretoserve.interpolation import GridTable, Latency, gather
from paretoserve.operators.grids import Rows, grid_table, of_kernel_measured_most, select
from paretoserve.perfdb.tables import PerfTables
from paretoserve.settings import Interpolation


class ContextAttention:
    """Prefill attention of one engine version."""

    def __init__(self, tables: PerfTables, settings: Interpolation):
        self._tables, self._settings = tables, settings
        self.grid = cache(self._load)

    def latency(
        self,
        attn_dtype: str,
        kv_dtype: str,
        head_dim: int,
        window: int,
        heads: np.ndarray,
        kv_heads: np.ndarray,
        isl: np.ndarray,
        batch: np.ndarray,
    ) -> Latency:
        """Latency for `batch` whole prompts of `isl` tokens each."""

        def one(kv: int, *query: np.ndarray) -> Latency:
            grid = self.grid(attn_dtype, kv_dtype, head_dim, window, kv)
            bound = self._bound(attn_dtype, kv_dtype, head_dim, window, kv)
            return grid(*query).at_least(bound(*query))

        return _per_kv_heads(one, heads, kv_heads, isl, batch)

    def bound_ms(self, attn_dtype, kv_dtype, head_dim, window, heads, kv_heads, isl, batch):
        """Speed of light."""
        parts = self._parts(attn_dtype, kv_dtype, head_dim, window, kv_heads)
        return np.maximum(*parts(heads, isl, batch))

    def _load(self, attn_dtype: str, kv_dtype: str, head_dim: int, window: int, kv: int):
        rows = self._tables.rows(
            "context_attention",
            attn_dtype=attn_dtype,
            kv_dtype=kv_dtype,
            head_dim=head_dim,
            window=window,
        )
        trend = self._sum(attn_dtype, kv_dtype, head_dim, window, kv)
        return _grid(self._tables, rows, kv, ("heads", "isl", "batch"), trend, self._settings)

    def _parts(self, attn_dtype, kv_dtype, head_dim, window, kv):
        system = self._tables.system
        flops = system.flops(quant.mode("attention", attn_dtype).flops)
        kv_bytes = quant.mode("kv_cache", kv_dtype).bytes

        def parts(heads, isl, batch):
            kv_heads = np.where(np.asarray(kv) > 0, kv, heads)
            full = np.asarray(isl, float) ** 2 / 2
            pairs = np.where((window > 0) & (isl > window), isl * window - window**2 / 2, full)
            arithmetic = 4 * batch * heads * head_dim * pairs / flops * 1e3
            traffic = batch * isl * head_dim * (4 * heads + 2 * kv_heads * kv_bytes)
            return arithmetic, traffic / system.memory_bandwidth * 1e3

        return parts

    def _sum(self, *key) -> Callable[..., np.ndarray]:
        parts, launch_ms = self._parts(*key), self._tables.system.kernel_launch_s * 1e3
        return lambda *query: sum(parts(*query)) + launch_ms

    def _bound(self, *key) -> Callable[..., np.ndarray]:
        parts = self._parts(*key)
        return lambda *query: np.maximum(*parts(*query))


class GenerationAttention:
    """Decode attention of one engine version."""

    def __init__(self, tables: PerfTables, settings: Interpolation):
        self._tables, self._settings = tables, settings
        self.grid = cache(self._load)

    def latency(
        self,
        kv_dtype: str,
        head_dim: int,
        window: int,
        heads: np.ndarray,
        kv_heads: np.ndarray,
        batch: np.ndarray,
        kv_len: np.ndarray,
        queries: int = 1,
    ) -> Latency:
        """Latency for `batch` sequences with `kv_len` cached tokens, `queries` new ones each."""

        def one(kv: int, *query: np.ndarray) -> Latency:
            grid = self.grid(kv_dtype, head_dim, window, kv)
            # Heads with a KV head of their own share nothing.
            query = fold_queries(grid, *query, queries, share=kv > 0)
            return grid(*query).at_least(self._traffic_ms(kv_dtype, head_dim, window, kv)(*query))

        return _per_kv_heads(one, heads, kv_heads, batch, kv_len)

    def bound_ms(self, kv_dtype, head_dim, window, heads, kv_heads, batch, kv_len) -> np.ndarray:
        """Speed of light."""
        return self._traffic_ms(kv_dtype, head_dim, window, kv_heads)(heads, batch, kv_len)

    def _load(self, kv_dtype: str, head_dim: int, window: int, kv: int) -> GridTable:
        rows = self._tables.rows(
            "generation_attention", kv_dtype=kv_dtype, head_dim=head_dim, window=window
        )
        launch_ms = self._tables.system.kernel_launch_s * 1e3
        traffic_ms = self._traffic_ms(kv_dtype, head_dim, window, kv)
        return _grid(
            self._tables,
            rows,
            kv,
            ("heads", "batch", "kv_len"),
            lambda *query: traffic_ms(*query) + launch_ms,
            self._settings,
        )

    def _traffic_ms(self, kv_dtype, head_dim, window, kv) -> Callable[..., np.ndarray]:
        """Decode attention is bound by memory: 4 H d l operations never outlast their traffic."""
        bandwidth = self._tables.system.memory_bandwidth
        kv_bytes = quant.mode("kv_cache", kv_dtype).bytes

        def traffic_ms(heads, batch, kv_len):
            length = np.minimum(kv_len, window) if window else kv_len
            kv_heads = np.where(np.asarray(kv) > 0, kv, heads)
            per_sequence = head_dim * (4 * heads + 2 * kv_heads * kv_bytes * length)
            return batch * per_sequence / bandwidth * 1e3

        return traffic_ms


def _per_kv_heads(
    one: Callable[..., Latency], heads: np.ndarray, kv_heads: np.ndarray, *query: np.ndarray
) -> Latency:
    """Look up each KV head count in its own grid; 0 stands for one KV head per head."""
    heads, kv_heads, *query = np.broadcast_arrays(heads, kv_heads, *query)
    grid_of = np.where(heads == kv_heads, 0, kv_heads)

    def look_up(kv: int, mask: np.ndarray) -> Latency:
        return one(kv, heads[mask], *(q[mask] for q in query))

    masks = [(int(kv), grid_of == kv) for kv in np.unique(grid_of)]
    return gather(heads.shape, [(mask, partial(look_up, kv, mask)) for kv, mask in masks])


def _grid(
    tables: PerfTables,
    rows: Rows,
    kv: int,
    axes: tuple[str, str, str],
    trend: Callable[..., np.ndarray],
    settings: Interpolation,
) -> GridTable:
    """One grid of the rows with `kv` KV heads, from the kernel that was measured most."""
    mine = rows["kv_heads"] == (kv or rows["heads"])
    if not mine.any():
        measured = ", ".join(map(str, sorted(set(rows["kv_heads"].tolist()))))
        raise InputError(
            f"{tables}: no attention was measured with {kv or 'as many'} KV heads per GPU"
            f"{'' if kv else ' as heads'}; measured: {measured}"
        )
    return grid_table(
        of_kernel_measured_most(select(rows, mine)),
        axes,
        trend,
        neighbour_axis=0,
        neighbour_gain=settings.attention_neighbour_gain,
    )


def fold_queries(
    grid: GridTable,
    heads: np.ndarray,
    batch: np.ndarray,
    kv_len: np.ndarray,
    queries: int,
    share: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The query of a grid (heads, batch, kv_len) that costs what several new tokens each cost.

    New tokens of one sequence share the read of its cache, as heads do: they count as further
    heads as far as heads were measured, and as further sequences beyond.
    """
    as_heads = np.clip(grid.axes[0][-1] // heads, 1, queries if share else 1)
    return heads * as_heads, batch * queries / as_heads, kv_len
