"""Matrix multiplication: (m, k) activations times (k, n) weights.

Arithmetic 2 m n k. Traffic: weights w n k bytes, activations in a m k and out 2 m n bytes, where w
is the weight's and a the activation's width (1 byte if the tensor cores run below 16 bit).
The bound counts arithmetic and weights only, since activations may stay in the cache; weights of a
whole model never do, so a measurement that beats the bound timed a warm cache and is raised to it.
Where a table's GEMMs quantise their activations and the engine fuses that into the operator before,
the time of moving 3 m k bytes is taken off.
"""

from dataclasses import replace
from functools import cache

import numpy as np

from paretoserve import quant
from paretoserve.hardware import System
from paretoserve.interpolation import INTERPOLATED, Latency, SiteTable, blend
from paretoserve.operators.elementwise import memory_ms
from paretoserve.perfdb.tables import PerfTables
from paretoserve.settings import Interpolation

SHAPE_BASE = 2**31  # n * SHAPE_BASE + k is one number for each (n, k)


class Gemm:
    """Latency of GEMMs of one engine version."""

    def __init__(self, tables: PerfTables, settings: Interpolation):
        self._tables, self._settings = tables, settings
        self._curves = cache(self._load)

    def latency(self, dtype: str, m: np.ndarray, n: np.ndarray, k: np.ndarray) -> Latency:
        """Latency for `m` rows and (n, k) weights; arrays of one shape."""
        m, n, k = (np.asarray(x, np.int64).ravel() for x in np.broadcast_arrays(m, n, k))
        key = n * SHAPE_BASE + k
        keys = np.unique(
            key
        )  # by hashing: few shapes are asked for many times, and sorting is slow
        shapes = np.stack(np.divmod(keys, SHAPE_BASE), axis=1)
        sites, table = self._curves(dtype)
        curves = self._rows(dtype, sites, table, shapes)
        row = np.searchsorted(keys, key)
        found = table.along(curves, row, m, lambda at: self._trend(dtype, at, n, k))
        if dtype in self._settings.gemm_fused_quantisation.get(self._tables.backend, ()):
            quantised_ms = memory_ms(self._tables.system, 3 * m * k)
            provenance = np.maximum(found.provenance, INTERPOLATED)
            found = replace(found, ms=found.ms - quantised_ms, provenance=provenance)
        return found.at_least(bound_ms(self._tables.system, dtype, m, n, k))

    def bound_ms(self, dtype: str, m: np.ndarray, n: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Speed of light."""
        return bound_ms(self._tables.system, dtype, m, n, k)

    def table(self, dtype: str) -> SiteTable:
        """The measured curves of one precision, for held-out checks."""
        return self._curves(dtype)[1]

    def _rows(
        self, dtype: str, sites: dict[tuple[int, int], int], table: SiteTable, shapes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Curves (ms, provenance), one row per (n, k) of `shapes`, measured or from neighbours."""
        index = np.array([sites.get((n, k), -1) for n, k in shapes.tolist()])
        ms, provenance = table.values[index].copy(), table.provenance[index].copy()
        new = np.flatnonzero(index < 0)
        if len(new):
            n, k = shapes[new, :1].astype(float), shapes[new, 1:].astype(float)
            trend = self._trend(dtype, table.axis[None, :], n, k)
            ms[new], provenance[new] = table.curves(self._position(shapes[new]), trend)
        for i in new:
            if (cell := self._cell(dtype, sites, table, shapes[i])) is not None:
                ms[i], provenance[i] = cell, INTERPOLATED
        return ms, provenance

    def _cell(
        self, dtype: str, sites: dict[tuple[int, int], int], table: SiteTable, shape: np.ndarray
    ) -> np.ndarray | None:
        """Curve of a shape inside a rectangle of four measured ones; None if a corner lacks.

        Better than the nearest shapes where the table is a lattice with wide gaps.
        """
        measured = np.array(list(sites))
        around = [_around(np.unique(measured[:, i]), shape[i]) for i in (0, 1)]
        if None in around:
            return None
        corners = [(n, k) for n in around[0] for k in around[1]]
        if any(corner not in sites for corner in corners):
            return None
        ms = table.values[[sites[corner] for corner in corners]]
        (n0, n1), (k0, k1), (n, k) = *around, shape.tolist()

        def trend(n: int, k: int) -> np.ndarray:
            return self._trend(dtype, table.axis, n, k)

        low = blend(ms[0], ms[1], trend(n0, k0), trend(n0, k), trend(n0, k1))
        high = blend(ms[2], ms[3], trend(n1, k0), trend(n1, k), trend(n1, k1))
        return blend(low, high, trend(n0, k), trend(n, k), trend(n1, k))

    def _load(self, dtype: str) -> tuple[dict[tuple[int, int], int], SiteTable]:
        rows = self._tables.rows("gemm", dtype=dtype)
        shapes, site = np.unique(
            np.stack([rows["n"], rows["k"]], axis=1).astype(np.int64), axis=0, return_inverse=True
        )
        axis, column = np.unique(rows["m"], return_inverse=True)
        values = np.full((len(shapes), len(axis)), np.inf)
        # Several kernels of one shape: the engine's tuner takes the fastest.
        np.minimum.at(values, (site.ravel(), column), rows["latency_ms"].astype(float))
        # The first point has one neighbour; the last, with the most rows, may well be the slowest.
        after = np.pad(values[:, 1:], ((0, 0), (0, 1)), constant_values=np.inf)
        before = np.pad(values[:, :-1], ((0, 0), (1, 0)))
        spike = values > self._settings.gemm_spike * np.maximum(before, after)
        values[np.isinf(values) | spike] = np.nan
        tile = self._settings.gemm_tile_m
        table = SiteTable(
            sites=self._position(shapes),
            axis=axis,
            values=values,
            trend=self._trend(dtype, axis[None, :].astype(float), shapes[:, :1], shapes[:, 1:]),
            neighbours=self._settings.gemm_neighbours,
            own_gain=self._settings.gemm_own_gain,
            position=lambda m: (m + tile * np.ceil(m / tile)) / 2,
        )
        return {(n, k): i for i, (n, k) in enumerate(shapes.tolist())}, table

    def _position(self, shapes: np.ndarray) -> np.ndarray:
        return np.log2(shapes) * [1.0, self._settings.gemm_k_weight]

    def _trend(self, dtype: str, m: np.ndarray, n: np.ndarray, k: np.ndarray) -> np.ndarray:
        system = self._tables.system
        arithmetic, weights, activations = _work_ms(system, dtype, m, n, k)
        return arithmetic + weights + activations + system.kernel_launch_s * 1e3


def bound_ms(system: System, dtype: str, m: np.ndarray, n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Speed of light: arithmetic at the tensor cores' rate or weights at the memory's."""
    arithmetic, weights, _ = _work_ms(system, dtype, m, n, k)
    return np.maximum(arithmetic, weights)


def _around(values: np.ndarray, wanted: int) -> tuple[int, int] | None:
    """The two values that enclose `wanted`; None if it lies outside."""
    high = int(np.searchsorted(values, wanted))
    if high == len(values) or wanted < values[0]:
        return None
    low = high if values[high] == wanted else high - 1
    return int(values[low]), int(values[high])


def _work_ms(system, dtype, m, n, k) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mode = quant.mode("weights", dtype)
    m, n, k = (np.asarray(x, float) for x in (m, n, k))
    activation_bytes = 2 if mode.flops == "float16" else 1
    arithmetic = 2 * m * n * k / system.flops(mode.flops)
    weights = mode.bytes * n * k / system.memory_bandwidth
    activations = (activation_bytes * m * k + 2 * m * n) / system.memory_bandwidth
    return arithmetic * 1e3, weights * 1e3, activations * 1e3
