"""Multi-head latent attention: of a prompt on up-projected keys and values, of a new token on the
cached latent, and the two products that the latter needs.

Queries and keys have 192 values per head (128 and 64 rotary), values 128; the cache holds 512 + 64
values of a token for all heads. H heads of one GPU, c bytes per cached value:
context, `batch` prompts of `isl` tokens: arithmetic H 320 isl^2, traffic 1280 H isl bytes;
generation, `batch` sequences of l tokens: arithmetic 2176 H l, traffic 576 c l + 2176 H bytes;
product (bmm) before or after generation, T tokens: arithmetic 2 H 128 512 T, traffic
H (65536 w + 1280 T) bytes.
The module tables hold the whole block, projections included; engines without the parts have them.
Dimensions are DeepSeek-V3's, the only ones that were measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from paretoserve import quant
from paretoserve.errors import InputError
from paretoserve.interpolation import GridTable, Latency, Trend
from paretoserve.models.dimensions import MLA
from paretoserve.operators.attention import fold_queries
from paretoserve.operators.grids import Rows, grid_table, of_kernel_measured_most
from paretoserve.perfdb.tables import PerfTables
from paretoserve.settings import Interpolation

QK, V, LATENT, ROPE = 192, 128, 512, 64
CACHED = LATENT + ROPE
MEASURED_IN = "DeepseekV3ForCausalLM"
MEASURED = (LATENT, QK - ROPE, ROPE, V)


class LatentAttention:
    """The attention kernels of one engine version, without projections."""

    def __init__(self, tables: PerfTables, settings: Interpolation):
        self._tables, self._settings = tables, settings
        self.context_grid = cache(self._load_context)
        self.generation_grid = cache(self._load_generation)
        self._products = cache(self._load_product)

    def context(
        self, attn_dtype: str, kv_dtype: str, heads: np.ndarray, isl: np.ndarray, batch: np.ndarray
    ) -> Latency:
        """Latency for `batch` whole prompts of `isl` tokens each."""
        found = self.context_grid(attn_dtype, kv_dtype)(heads, isl, batch)
        return found.at_least(np.maximum(*self.context_work(attn_dtype)(heads, isl, batch)))

    def generation(
        self,
        kv_dtype: str,
        heads: np.ndarray,
        batch: np.ndarray,
        kv_len: np.ndarray,
        queries: int = 1,
    ) -> Latency:
        """Latency for `batch` sequences with `kv_len` cached tokens, `queries` new ones each."""
        grid = self.generation_grid(kv_dtype)
        query = fold_queries(grid, heads, batch, kv_len, queries)
        return grid(*query).at_least(np.maximum(*self.generation_work(kv_dtype)(*query)))

    def context_bound_ms(self, attn_dtype: str, kv_dtype: str, heads, isl, batch) -> np.ndarray:
        """Speed of light."""
        return np.maximum(*self.context_work(attn_dtype)(heads, isl, batch))

    def generation_bound_ms(self, kv_dtype: str, heads, batch, kv_len) -> np.ndarray:
        """Speed of light."""
        return np.maximum(*self.generation_work(kv_dtype)(heads, batch, kv_len))

    def product_bound_ms(self, op: str, dtype: str, heads, tokens) -> np.ndarray:
        """Speed of light."""
        return np.maximum(*self._product_work(dtype, heads, tokens))

    def product(self, op: str, dtype: str, heads: np.ndarray, tokens: np.ndarray) -> Latency:
        """Latency of `mla_gen_pre` or `mla_gen_post`; in 16 bit where `dtype` was not measured."""
        return self._products(op, dtype)(heads, tokens)

    def _load_context(self, attn_dtype: str, kv_dtype: str) -> GridTable:
        rows = self._tables.rows("context_mla", attn_dtype=attn_dtype, kv_dtype=kv_dtype)
        return _grid(
            rows,
            ("heads", "isl", "batch"),
            self._with_launch(self.context_work(attn_dtype)),
            self._settings,
        )

    def _load_generation(self, kv_dtype: str) -> GridTable:
        rows = self._tables.rows("generation_mla", kv_dtype=kv_dtype)
        return _grid(
            rows,
            ("heads", "batch", "kv_len"),
            self._with_launch(self.generation_work(kv_dtype)),
            self._settings,
        )

    def _load_product(self, op: str, dtype: str) -> GridTable:
        measured = np.unique(self._tables.rows("mla_bmm", op=op)["dtype"]).tolist()
        dtype = dtype if dtype in measured else "float16"
        rows = self._tables.rows("mla_bmm", op=op, dtype=dtype)
        launch_ms = self._tables.system.kernel_launch_s * 1e3

        def trend(heads, tokens):
            return sum(self._product_work(dtype, heads, tokens)) + launch_ms

        return _grid(rows, ("heads", "tokens"), trend, self._settings)

    def _product_work(self, dtype: str, heads, tokens) -> tuple[np.ndarray, np.ndarray]:
        """Arithmetic and traffic in ms."""
        system, mode = self._tables.system, quant.mode("weights", dtype)
        arithmetic = 2 * heads * V * LATENT * tokens / system.flops(mode.flops)
        moved = heads * (V * LATENT * mode.bytes + 2 * (V + LATENT) * tokens)
        return arithmetic * 1e3, moved / system.memory_bandwidth * 1e3

    def context_work(self, attn_dtype: str) -> Callable:
        """Arithmetic and traffic in ms, of (heads, isl, batch)."""
        system = self._tables.system
        flops = system.flops(quant.mode("attention", attn_dtype).flops)

        def work(heads, isl, batch):
            isl = np.asarray(isl, float)
            arithmetic = batch * heads * (QK + V) * isl**2 / flops
            moved = batch * heads * isl * 2 * (2 * QK + 2 * V)
            return arithmetic * 1e3, moved / system.memory_bandwidth * 1e3

        return work

    def generation_work(self, kv_dtype: str) -> Callable:
        """Arithmetic and traffic in ms, of (heads, batch, kv_len)."""
        system, mode = self._tables.system, quant.mode("kv_cache", kv_dtype)
        rates = system.tensor_flops_per_s
        flops = max(rates["float16"], rates.get(mode.flops, 0.0))

        def work(heads, batch, kv_len):
            width = CACHED + LATENT
            arithmetic = 2 * batch * heads * width * np.asarray(kv_len, float) / flops
            moved = batch * (CACHED * mode.bytes * kv_len + 2 * width * heads)
            return arithmetic * 1e3, moved / system.memory_bandwidth * 1e3

        return work

    def _with_launch(self, work) -> Trend:
        launch_ms = self._tables.system.kernel_launch_s * 1e3
        return lambda *query: sum(work(*query)) + launch_ms


class LatentModule:
    """The whole block of one engine version, projections included."""

    def __init__(self, tables: PerfTables, settings: Interpolation):
        self._tables, self._settings = tables, settings
        self._parts = LatentAttention(tables, settings)
        self.context_grid = cache(self._load_context)
        self.generation_grid = cache(self._load_generation)

    def context(self, block: "Block", attn_dtype: str, kv_dtype: str, heads, isl, batch) -> Latency:
        """Latency for `batch` whole prompts of `isl` tokens each."""
        return self.context_grid(block, attn_dtype, kv_dtype)(heads, isl, batch)

    def generation(
        self, block: "Block", kv_dtype: str, heads, batch, kv_len, queries: int = 1
    ) -> Latency:
        """Latency for `batch` sequences with `kv_len` cached tokens, `queries` new ones each.

        Every new token passes the projections, so it counts as a sequence of its own.
        """
        return self.generation_grid(block, kv_dtype)(heads, batch * queries, kv_len)

    def context_bound_ms(self, block, attn_dtype, kv_dtype, heads, isl, batch) -> np.ndarray:
        """Speed of light."""
        attention = np.maximum(*self._parts.context_work(attn_dtype)(heads, isl, batch))
        return attention + np.maximum(*self._projections(block, heads, batch * isl))

    def generation_bound_ms(self, block, kv_dtype, heads, batch, kv_len) -> np.ndarray:
        """Speed of light."""
        attention = np.maximum(*self._parts.generation_work(kv_dtype)(heads, batch, kv_len))
        return attention + np.maximum(*self._projections(block, heads, batch))

    def _load_context(self, block: "Block", attn_dtype: str, kv_dtype: str) -> GridTable:
        attention = self._parts.context_work(attn_dtype)
        trend = self._trend(
            block, lambda heads, isl, batch: (batch * isl, sum(attention(heads, isl, batch)))
        )
        rows = self._rows(
            "mla_context_module", block, {"attn_dtype": attn_dtype, "kv_dtype": kv_dtype}
        )
        return _grid(rows, ("heads", "isl", "batch"), trend, self._settings)

    def _load_generation(self, block: "Block", kv_dtype: str) -> GridTable:
        attention = self._parts.generation_work(kv_dtype)
        trend = self._trend(
            block, lambda heads, batch, kv_len: (batch, sum(attention(heads, batch, kv_len)))
        )
        rows = self._rows("mla_generation_module", block, {"kv_dtype": kv_dtype})
        return _grid(rows, ("heads", "batch", "kv_len"), trend, self._settings)

    def _rows(self, operator: str, block: "Block", where: dict[str, str]) -> Rows:
        rows = self._tables.rows(
            operator, architecture=block.architecture, gemm_dtype=block.gemm_dtype, **where
        )
        # One kernel for short prompts and another for long ones: one curve through the fastest.
        return rows | {"kernel": np.full(len(rows["kernel"]), "fastest", object)}

    def _trend(self, block: "Block", attention: Callable) -> Trend:
        """Projections' arithmetic and weights, and `attention` -> (tokens, ms)."""
        launch_ms = self._tables.system.kernel_launch_s * 1e3

        def trend(heads, *query):
            tokens, attention_ms = attention(heads, *query)
            return attention_ms + sum(self._projections(block, heads, tokens)) + launch_ms

        return trend

    def _projections(self, block: "Block", heads, tokens) -> tuple[np.ndarray, np.ndarray]:
        """Arithmetic, and traffic of the weights, in ms."""
        system, mode = self._tables.system, quant.mode("weights", block.gemm_dtype)
        params = projection_params(block.spec, block.hidden, heads)
        arithmetic = 2 * params * np.asarray(tokens, float) / system.flops(mode.flops)
        return arithmetic * 1e3, params * mode.bytes / system.memory_bandwidth * 1e3


@dataclass(frozen=True)
class Block:
    """What decides which module table serves a layer's attention."""

    architecture: str
    spec: MLA
    hidden: int
    gemm_dtype: str

    def of(self, gemm_dtype: str) -> "Block":
        """The same block with projections of another precision."""
        return replace(self, gemm_dtype=gemm_dtype)


def projection_params(spec: MLA, hidden: int, heads: np.ndarray) -> np.ndarray:
    """Parameters of one GPU with `heads` of the heads: the projections down are on every GPU."""
    down = hidden * (spec.q_rank + spec.kv_rank + spec.rope_dim)
    query = spec.q_rank * (spec.nope_dim + spec.rope_dim)
    key_value = spec.kv_rank * (spec.nope_dim + spec.v_dim)
    return down + heads * (query + key_value + spec.v_dim * hidden)


def check_measured(spec: MLA) -> None:
    """InputError unless the tables are of these dimensions."""
    asked = (spec.kv_rank, spec.nope_dim, spec.rope_dim, spec.v_dim)
    if asked != MEASURED:
        raise InputError(
            f"latent attention was measured with kv_rank, nope, rope and v of {MEASURED} only, "
            f"not {asked}"
        )


def _grid(rows: Rows, axes: tuple[str, ...], trend: Trend, settings: Interpolation) -> GridTable:
    gain = settings.attention_neighbour_gain
    return grid_table(of_kernel_measured_most(rows), axes, trend, 0, gain)
