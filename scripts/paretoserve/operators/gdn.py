"""Gated delta net: causal convolution over queries, keys and values, then the delta rule.

A prompt runs the rule in chunks (context), a new token runs one step of it (generation). On one GPU
with k key heads of a values and v value heads of b values, C = 2 k a + v b channels pass the
convolution and the state of a sequence holds v a b values of 32 bit.
context, `batch` prompts of `isl` tokens: traffic of the convolution 4 C batch isl bytes, of the
rule (2 C + 2 v b) batch isl and the state once; arithmetic of the rule 8 v a b batch isl;
generation, `batch` tokens: convolution 2 C (conv + 1) batch, the state read and written.
The table names the convolution's kernels causal_conv1d_...; all others are the rule's. The model's
hidden size does not bear on either.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from paretoserve.interpolation import GridTable, Latency, Trend
from paretoserve.models.dimensions import GDN
from paretoserve.operators.grids import Rows, ShapeTables, grid_table, select
from paretoserve.perfdb.tables import PerfTables

SHAPE = ("k_heads", "v_heads")
CONVOLUTION = "causal_conv1d"
PARTS = ("conv", "rule")


class DeltaNet:
    """The kernels of one engine version."""

    def __init__(self, tables: PerfTables, shape_neighbours: int):
        self._tables, self._neighbours = tables, shape_neighbours
        self._shapes = cache(self._load)
        self.measures = cache(self._measures)

    def latency(
        self, part: str, phase: str, spec: GDN, k_heads: int, v_heads: int, batch, isl
    ) -> Latency:
        """Latency of one part ("conv" or "rule") for `batch` sequences of `isl` new tokens each.

        `phase` is "context" or "generation" (isl 1). Heads are of one GPU; batch and isl (N,).
        """
        tables = self._shapes(part, phase, spec.k_dim, spec.v_dim, spec.conv)
        return tables.latency((k_heads, v_heads), *np.broadcast_arrays(batch, isl))

    def _measures(self, part: str, phase: str, spec: GDN, k_heads: int, v_heads: int) -> bool:
        """Whether just these heads were measured."""
        shapes = self._shapes(part, phase, spec.k_dim, spec.v_dim, spec.conv).shapes
        return (k_heads, v_heads) in map(tuple, shapes.tolist())

    def bound_ms(self, part, phase, spec, k_heads, v_heads, batch, isl) -> np.ndarray:
        """Speed of light."""
        work = self._work(part, phase, spec.k_dim, spec.v_dim, spec.conv, k_heads, v_heads)
        return np.maximum(*work(np.asarray(batch), np.asarray(isl)))

    def _load(self, part: str, phase: str, k_dim: int, v_dim: int, conv: int) -> ShapeTables:
        rows = self._tables.rows("gdn", phase=phase, k_dim=k_dim, v_dim=v_dim, d_conv=conv)
        of_conv = np.char.startswith(rows["kernel"].astype(str), CONVOLUTION)
        launch_ms = self._tables.system.kernel_launch_s * 1e3

        def trend(k_heads: int, v_heads: int) -> Trend:
            work = self._work(part, phase, k_dim, v_dim, conv, k_heads, v_heads)
            return lambda batch, isl: sum(work(batch, isl)) + launch_ms

        return ShapeTables(
            select(rows, of_conv == (part == "conv")),
            SHAPE,
            (1, 1),
            self._neighbours,
            self._grid,
            trend,
        )

    def _grid(self, rows: Rows, trend: Trend) -> GridTable:
        return grid_table(rows, ("batch", "seq_len"), trend)

    def _work(self, part, phase, k_dim, v_dim, conv, k_heads, v_heads) -> Callable:
        """Arithmetic and traffic in ms, of (batch, isl)."""
        system = self._tables.system
        channels, value = 2 * k_heads * k_dim + v_heads * v_dim, v_heads * v_dim
        state = 4 * v_heads * k_dim * v_dim

        def work(batch, isl):
            tokens = np.asarray(batch, float) * isl
            if part == "conv":
                reads = conv + 1 if phase == "generation" else 2
                return np.zeros_like(tokens), 2 * channels * reads * tokens / per_ms
            arithmetic = 8 * v_heads * k_dim * v_dim * tokens / flops
            moved = (2 * channels + 2 * value) * tokens + 2 * state * batch
            return arithmetic, moved / per_ms

        flops, per_ms = system.flops("float16") / 1e3, system.memory_bandwidth / 1e3
        return work
