"""Accuracy of the look-ups on points left out."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from prettytable import PrettyTable

from paretoserve.interpolation import GridTable
from paretoserve.operators.kernels import Kernels
from paretoserve.perfdb.tables import PerfTables

HELD_OUT = ("h200_sxm", "trtllm", "1.3.0rc20")

Errors = Iterable[tuple[np.ndarray, np.ndarray]]


def accuracy() -> str:
    """Return the table of errors."""
    return _accuracy(Kernels(PerfTables(*HELD_OUT)))


def _accuracy(kernels: Kernels) -> str:
    table = PrettyTable(["held out", "points", "median error %", "90th percentile %"], align="r")
    table.align["held out"] = "l"
    table.title = f"leave one out: {' '.join(HELD_OUT)}"
    for name, pairs in _held_out(kernels):
        error = np.concatenate([np.abs(predicted / measured - 1) for predicted, measured in pairs])
        low, high = np.quantile(error, [0.5, 0.9]) * 100
        table.add_row([name, len(error), f"{low:.2f}", f"{high:.2f}"])
    return f"{table}\n"


def _held_out(kernels: Kernels) -> Iterator[tuple[str, Errors]]:
    gemm = [kernels.gemm.own.table(dtype) for dtype in ("float16", "fp8", "fp8_block")]
    yield "gemm, one m of a curve", [table.held_out_points() for table in gemm]
    yield "gemm, a whole (n, k)", [table.held_out_sites() for table in gemm]
    context = _grids(kernels, "context_attention", ("attn_dtype", "kv_dtype", "head_dim", "window"))
    yield "context attention, isl", [grid.held_out(1) for grid in context]
    yield "context attention, batch", [grid.held_out(2) for grid in context]
    generation = _grids(kernels, "generation_attention", ("kv_dtype", "head_dim", "window"))
    yield "generation attention, position", [grid.held_out(2) for grid in generation]
    yield "generation attention, batch", [grid.held_out(1) for grid in generation]
    latent = kernels.latent_attention
    context = [latent.context_grid("float16", kv) for kv in ("float16", "fp8")]
    yield "context latent attention, isl", [grid.held_out(1) for grid in context]
    generation = [latent.generation_grid(kv) for kv in ("float16", "fp8")]
    yield "generation latent attention, position", [grid.held_out(2) for grid in generation]
    yield "generation latent attention, batch", [grid.held_out(1) for grid in generation]
    experts = [
        kernels.experts().tables(dtype, distribution)
        for dtype in ("float16", "fp8", "fp8_block")
        for distribution in ("power_law_1.01", "power_law_1.2")
    ]
    curves = [table.grid(tuple(shape)) for table in experts for shape in table.shapes.tolist()]
    yield "experts, one token count", [curve.held_out(0) for curve in curves]
    yield "experts, a whole split", [table.held_out(same=6) for table in experts]
    yield "experts, a whole model", [table.held_out(same=4) for table in experts]


def _grids(kernels: Kernels, operator: str, keys: tuple[str, ...]) -> list[GridTable]:
    """All grids of an attention operator: per KV head count, and one of multi-head attention."""
    rows = kernels.tables.rows(operator)
    kv = np.where(rows["heads"] == rows["kv_heads"], 0, rows["kv_heads"])
    slices = sorted(set(zip(*(rows[key].tolist() for key in keys), kv.tolist(), strict=True)))
    grid: Callable[..., GridTable] = getattr(kernels, operator).own.grid
    return [grid(*key) for key in slices]
