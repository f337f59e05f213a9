"""Sparse latent attention (DSA): the whole block, projections and indexer included.

The indexer scores all l cached tokens with I heads of D values, the `index_topk` best are attended
to. On one GPU with H heads, rates of the projections' precision unless named:
projections, T tokens: those of latent attention, and T (q I D + h (D + I)) for the indexer;
indexer: arithmetic 2 I D per token and token before it, at the 8-bit rate, once there are more than
`index_topk`;
attention: 2176 H per token and token attended to; traffic 576 c bytes for each of those.
The tables hold two architectures; the rows without cached prefix are used, and those whose indexer
runs.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from paretoserve import quant
from paretoserve.interpolation import GridTable, Latency, Trend
from paretoserve.models.dimensions import DSA
from paretoserve.operators.grids import grid_table, select
from paretoserve.operators.mla import CACHED, LATENT, Block, projection_params
from paretoserve.perfdb.tables import PerfTables
from paretoserve.settings import Interpolation


class SparseAttention:
    """The block of one engine version."""

    def __init__(self, tables: PerfTables, settings: Interpolation):
        self._tables, self._settings = tables, settings
        self.context_grid = cache(self._load_context)
        self.generation_grid = cache(self._load_generation)

    def context(self, block: Block, kv_dtype: str, heads, isl, batch) -> Latency:
        """Latency for `batch` whole prompts of `isl` tokens each."""
        return self.context_grid(block, kv_dtype)(heads, isl, batch)

    def generation(self, block: Block, kv_dtype: str, heads, batch, kv_len) -> Latency:
        """Latency for `batch` new tokens, each of a sequence with `kv_len` cached ones."""
        return self.generation_grid(block, kv_dtype)(heads, batch, kv_len)

    def context_bound_ms(self, block: Block, kv_dtype: str, heads, isl, batch) -> np.ndarray:
        """Speed of light."""
        return np.maximum(*self._context_work(block, kv_dtype)(heads, isl, batch))

    def generation_bound_ms(self, block: Block, kv_dtype: str, heads, batch, kv_len) -> np.ndarray:
        """Speed of light."""
        return np.maximum(*self._generation_work(block, kv_dtype)(heads, batch, kv_len))

    def _load_context(self, block: Block, kv_dtype: str) -> GridTable:
        rows = self._rows("dsa_context_module", block, kv_dtype, prefix=0)
        return self._grid(rows, ("heads", "isl", "batch"), self._context_work(block, kv_dtype))

    def _load_generation(self, block: Block, kv_dtype: str) -> GridTable:
        rows = self._rows("dsa_generation_module", block, kv_dtype)
        return self._grid(
            rows, ("heads", "batch", "kv_len"), self._generation_work(block, kv_dtype)
        )

    def _rows(self, operator: str, block: Block, kv_dtype: str, **where: int):
        rows = self._tables.rows(
            operator,
            architecture=block.architecture,
            gemm_dtype=block.gemm_dtype,
            kv_dtype=kv_dtype,
            **where,
        )
        return select(rows, rows["indexer"] == "run")

    def _grid(self, rows, axes: tuple[str, ...], work: Callable) -> GridTable:
        # Kernels for short prompts and for long ones, and per batch: one curve through the fastest.
        launch_ms = self._tables.system.kernel_launch_s * 1e3
        gain = self._settings.attention_neighbour_gain
        return grid_table(rows, axes, lambda *query: sum(work(*query)) + launch_ms, 0, gain)

    def _context_work(self, block: Block, kv_dtype: str) -> Trend:
        spec: DSA = block.spec
        topk = spec.index_topk

        def work(heads, isl, batch):
            isl = np.asarray(isl, float)
            full = isl**2 / 2
            attended = np.where(isl > topk, topk * isl - topk**2 / 2, full)
            scored = np.where(isl > topk, full, 0)
            return self._work(
                block, kv_dtype, heads, batch * isl, batch * attended, batch * scored, batch * isl
            )

        return work

    def _generation_work(self, block: Block, kv_dtype: str) -> Trend:
        topk = block.spec.index_topk

        def work(heads, batch, kv_len):
            attended = batch * np.minimum(np.asarray(kv_len, float), topk)
            scored = batch * np.where(kv_len > topk, kv_len, 0)
            return self._work(block, kv_dtype, heads, batch, attended, scored, attended)

        return work

    def _work(self, block: Block, kv_dtype: str, heads, tokens, attended, scored, read):
        """Arithmetic and traffic in ms: pairs `attended` and `scored`, cached tokens `read`."""
        system, spec = self._tables.system, block.spec
        mode, cache_bytes = (
            quant.mode("weights", block.gemm_dtype),
            quant.mode("kv_cache", kv_dtype),
        )
        params = projection_params(spec, block.hidden, heads) + spec.indexer_params(block.hidden)
        arithmetic = 2 * params * np.asarray(tokens, float) / system.flops(mode.flops)
        pairs = 2 * heads * (CACHED + LATENT) * attended
        arithmetic = arithmetic + pairs / system.flops("float16")
        index = 2 * spec.index_heads * spec.index_dim * scored / system.flops("fp8")
        moved = params * mode.bytes + read * CACHED * cache_bytes.bytes
        return (arithmetic + index) * 1e3, moved / system.memory_bandwidth * 1e3
