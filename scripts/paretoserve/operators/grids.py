"""Measured rows as look-up tables: one grid, or one grid per shape."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from paretoserve.interpolation import EXTRAPOLATED, GridTable, Latency, Trend

Rows = dict[str, np.ndarray]


def grid_table(
    rows: Rows,
    axes: Sequence[str],
    trend: Trend,
    beyond: Sequence[float] = (),
    neighbour_axis: int | None = None,
    neighbour_gain: float = 0.0,
) -> GridTable:
    """Grid over the columns `axes` of `rows`, the fastest row where a coordinate has several.

    `beyond` are coordinates of the last axis to which the last slope against the trend is carried
    on; farther out the ratio to the trend is held.
    """
    coordinates, index = zip(
        *(np.unique(rows[axis], return_inverse=True) for axis in axes), strict=True
    )
    farther = [at for at in beyond if at > coordinates[-1][-1]]
    coordinates = [*coordinates[:-1], np.append(coordinates[-1], farther)]
    values = np.full([len(axis) for axis in coordinates], np.inf)
    np.minimum.at(values, index, rows["latency_ms"].astype(float))
    values[np.isinf(values)] = np.nan
    return GridTable(coordinates, values, trend, neighbour_axis, neighbour_gain)


def of_kernel_measured_most(rows: Rows) -> Rows:
    """The rows of one kernel, that with the most points: kernels are not one curve."""
    kernels, counts = np.unique(rows["kernel"].astype(str), return_counts=True)
    return select(rows, rows["kernel"] == kernels[np.argmax(counts)])


def select(rows: Rows, mask: np.ndarray) -> Rows:
    """The rows where `mask` holds."""
    return {name: column[mask] for name, column in rows.items()}


class ShapeTables:
    """One grid per measured shape. A shape nobody measured takes the nearest one's ratio to trend.

    Parameters
    ----------
    rows : measured rows
    shape : columns that make a shape
    weights : how much a factor of two in each of them counts as distance
    grid : grid(rows of one shape, its trend) -> GridTable
    trend : trend(*shape) -> Trend
    """

    def __init__(
        self,
        rows: Rows,
        shape: Sequence[str],
        weights: Sequence[float],
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
        self._weights = np.asarray(weights)
        self._grid, self._trend = grid, trend
        self.grid = cache(self._load)

    def latency(self, shape: tuple[int, ...], *query: np.ndarray) -> Latency:
        """Latency of a shape at the query points of its grid."""
        if shape in self._index:
            return self.grid(shape)(*query)
        distance = np.abs(np.log2(self.shapes) - np.log2(shape)) @ self._weights
        near = tuple(self.shapes[np.argmin(distance)].tolist())
        factor = self._trend(*shape)(*query) / self._trend(*near)(*query)
        return self.grid(near)(*query).scaled(factor, EXTRAPOLATED)

    def _load(self, shape: tuple[int, ...]) -> GridTable:
        members = self._members[self._index[shape]]
        return self._grid(select(self._rows, members), self._trend(*shape))
