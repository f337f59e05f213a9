"""Measured rows as look-up tables: one grid, or one grid per shape."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from paretoserve.interpolation import EXTRAPOLATED, GridTable, Latency, Trend, local_fit
from paretoserve.settings import Beyond

Rows = dict[str, np.ndarray]


def grid_table(
    rows: Rows,
    axes: Sequence[str],
    trend: Trend,
    neighbour_axis: int | None = None,
    neighbour_gain: float = 0.0,
) -> GridTable:
    """Grid over the columns `axes` of `rows`, the fastest row where a coordinate has several."""
    coordinates, index = zip(
        *(np.unique(rows[axis], return_inverse=True) for axis in axes), strict=True
    )
    values = np.full([len(axis) for axis in coordinates], np.inf)
    np.minimum.at(values, index, rows["latency_ms"].astype(float))
    values[np.isinf(values)] = np.nan
    return GridTable(coordinates, values, trend, neighbour_axis, neighbour_gain)


def token_grid(rows: Rows, axes: Sequence[str], trend: Trend, beyond: Beyond) -> GridTable:
    """Grid whose last axis is tokens: its curves go on beyond their last point."""
    table = grid_table(rows, axes, trend)
    last = table.axes[-1][-1]
    if last < beyond.tokens:
        doublings = np.arange(1, np.ceil(np.log2(beyond.tokens / last)) + 1)
        table.carry_on(last * 2**doublings, beyond.reach, beyond.slopes)
    return table


def of_kernel_measured_most(rows: Rows) -> Rows:
    """The rows of one kernel, that with the most points: kernels are not one curve."""
    kernels, counts = np.unique(rows["kernel"].astype(str), return_counts=True)
    return select(rows, rows["kernel"] == kernels[np.argmax(counts)])


def select(rows: Rows, mask: np.ndarray) -> Rows:
    """The rows where `mask` holds."""
    return {name: column[mask] for name, column in rows.items()}


class ShapeTables:
    """One grid per measured shape.

    A shape that nobody measured follows its own trend, at a ratio fitted to the ratios of the
    nearest shapes at the same query.

    Parameters
    ----------
    rows : measured rows
    shape : columns that make a shape
    weights : how much a factor of two in each of them counts as distance
    neighbours : how many shapes the ratio is fitted to
    grid : grid(rows of one shape, its trend) -> GridTable
    trend : trend(*shape) -> Trend
    """

    def __init__(
        self,
        rows: Rows,
        shape: Sequence[str],
        weights: Sequence[float],
        neighbours: int,
        grid: Callable[[Rows, Trend], GridTable],
        trend: Callable[..., Trend],
    ):
        self.shapes, of_row = np.unique(
            np.stack([rows[name] for name in shape], axis=1).astype(np.int64),
            axis=0,
            return_inverse=True,
        )
        order = np.argsort(of_row.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(of_row.ravel()))
        self._rows, self._members = rows, np.split(order, ends[:-1])
        self._index = {tuple(key): i for i, key in enumerate(self.shapes.tolist())}
        self._weights, self._neighbours = np.asarray(weights), neighbours
        self._grid, self._trend = grid, trend
        self.grid = cache(self._load)

    def latency(self, shape: tuple[int, ...], *query: np.ndarray) -> Latency:
        """Latency of a shape at the query points of its grid."""
        if shape in self._index:
            return self.grid(shape)(*query)
        return self._from_others(shape, np.ones(len(self.shapes), bool), *query)

    def held_out(self, same: int) -> tuple[np.ndarray, np.ndarray]:
        """Predict each shape, at its own points, from others; (predicted, measured) in ms.

        The others are the shapes that differ in any of the first `same` columns.
        """
        predicted, measured = [], []
        for shape in self.shapes.tolist():
            others = (self.shapes[:, :same] != shape[:same]).any(axis=1)
            *points, ms = self.grid(tuple(shape)).measured_points()
            predicted.append(self._from_others(tuple(shape), others, *points).ms)
            measured.append(ms)
        return np.concatenate(predicted), np.concatenate(measured)

    def _from_others(self, shape: tuple[int, ...], others: np.ndarray, *query) -> Latency:
        offset = (np.log2(self.shapes[others]) - np.log2(shape)) * self._weights
        near = np.argsort(np.linalg.norm(offset, axis=1), kind="stable")[: self._neighbours]
        ratios = [
            np.log(self.grid(one)(*query).ms / self._trend(*one)(*query))
            for one in map(tuple, self.shapes[others][near].tolist())
        ]
        ratio = np.exp(local_fit(offset[None, near], np.stack(ratios)[None])[0])
        ms = ratio * self._trend(*shape)(*query)
        return Latency(ms, np.full(ms.shape, EXTRAPOLATED, np.int8))

    def _load(self, shape: tuple[int, ...]) -> GridTable:
        members = self._members[self._index[shape]]
        return self._grid(select(self._rows, members), self._trend(*shape))
