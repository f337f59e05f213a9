"""Look-ups between measured points.

What
    `GridTable`: a latency over 1 to 3 numeric axes (attention, collectives).
    `SiteTable`: latency curves over one axis, one curve per scattered site (GEMM: a curve over m
    for every measured (n, k)).

How
    Both interpolate linearly *in a trend coordinate*: a first-order roofline (arithmetic + traffic
    + launch, in ms) of the same operator. Where the trend is right the result is exact for any
    spacing of the points; outside the measured range the last point's ratio to the trend is held.
    A measured point is returned as it was measured.

    A hole, or a curve between its points, also learns from its neighbours (other head counts, other
    GEMM shapes): the neighbours' own deviation at that place corrects it, damped by a gain because
    part of the deviation is noise of the measurement.

Every look-up returns a `Latency`: milliseconds and where each came from.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paretoserve.errors import InputError

MEASURED, INTERPOLATED, EXTRAPOLATED, SUBSTITUTED, SPEED_OF_LIGHT = range(5)
PROVENANCE = ("measured", "interpolated", "extrapolated", "substituted", "speed_of_light")

Trend = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Latency:
    """Latencies in ms and their provenance codes (indices into PROVENANCE), of one shape.

    Where nothing can be said, ms is NaN and `reasons` holds pairs of (mask, sentence). `notes` are
    sentences that say what stood in for what, where something did.
    """

    ms: np.ndarray
    provenance: np.ndarray
    reasons: tuple[tuple[np.ndarray, str], ...] = ()
    notes: tuple[str, ...] = ()

    def at_least(self, bound_ms: np.ndarray) -> "Latency":
        """Raise values below a physical bound to it. A measurement below it timed warm caches."""
        low = self.ms < bound_ms
        return replace(
            self,
            ms=np.where(low, bound_ms, self.ms),
            provenance=np.where(low, SPEED_OF_LIGHT, self.provenance),
        )

    def scaled(self, factor: np.ndarray | float, at_least: int = MEASURED) -> "Latency":
        """Multiply by `factor`; the provenance becomes `at_least` or worse."""
        return replace(self, ms=self.ms * factor, provenance=np.maximum(self.provenance, at_least))


def gather(
    shape: tuple[int, ...],
    groups: Iterable[tuple[np.ndarray, Callable[[], Latency]]],
) -> Latency:
    """Assemble a latency of `shape` from (mask, look-up) groups; unmasked elements cost nothing.

    `look_up` gives the latency of the mask's elements, flat. A group whose table is missing becomes
    NaN with the reason, and does not stop the others.
    """
    ms, provenance, reasons = np.zeros(shape), np.zeros(shape, np.int8), []
    notes: dict[str, None] = {}
    for mask, look_up in groups:
        if not mask.any():
            continue
        try:
            found = look_up()
        except InputError as error:
            ms[mask] = np.nan
            reasons.append((mask, str(error)))
            continue
        if mask.all():
            ms, provenance = found.ms.reshape(shape), found.provenance.reshape(shape)
        else:
            ms[mask], provenance[mask] = found.ms, found.provenance
        notes |= dict.fromkeys(found.notes)
        for part, sentence in found.reasons:
            whole = np.zeros(shape, bool)
            whole[mask] = part
            reasons.append((whole, sentence))
    return Latency(ms, provenance, tuple(reasons), tuple(notes))


class GridTable:
    """Latency over a rectangular grid with holes.

    Parameters
    ----------
    axes : sorted coordinates of each axis
    values : (len(axis 0), len(axis 1), ...) in ms, NaN where not measured
    trend : trend(*coordinates) -> ms, broadcasting
    neighbour_axis, neighbour_gain : the axis whose neighbours correct a hole, and how much
    """

    def __init__(
        self,
        axes: Sequence[np.ndarray],
        values: np.ndarray,
        trend: Trend,
        neighbour_axis: int | None = None,
        neighbour_gain: float = 0.0,
    ):
        self.axes = [np.asarray(axis, float) for axis in axes]
        self.trend = trend
        self._measured = values
        self._trend_on_grid = trend(*np.meshgrid(*self.axes, indexing="ij", sparse=True))
        self._trend_on_grid = np.broadcast_to(self._trend_on_grid, values.shape)
        self._neighbour = (neighbour_axis, neighbour_gain)
        self.values, self.provenance = self._filled()

    def __call__(self, *query: np.ndarray) -> Latency:
        """Latency at the query points; the arguments broadcast to one shape."""
        query = np.broadcast_arrays(*query)
        shape = query[0].shape
        asked = [np.asarray(q, float).ravel() for q in query]
        inside = [np.clip(q, axis[0], axis[-1]) for q, axis in zip(asked, self.axes, strict=True)]
        lows, highs = zip(*map(_bracket, self.axes, inside), strict=True)

        def look_up(axis: int, index: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
            """Value at corner `index` of the first axes and the query of the others."""
            if axis == len(self.axes):
                return self.values[index], self.provenance[index]
            low, high = lows[axis], highs[axis]
            value, provenance = look_up(axis + 1, (*index, low))
            between = low != high
            if not between.any():
                return value, provenance
            top, top_provenance = look_up(axis + 1, (*index, high))
            corner = [self.axes[j][i] for j, i in enumerate(index)]
            rest = inside[axis + 1 :]
            at_low = self.trend(*corner, self.axes[axis][low], *rest)
            at_high = self.trend(*corner, self.axes[axis][high], *rest)
            at_query = self.trend(*corner, inside[axis], *rest)
            worst = np.maximum(np.maximum(provenance, top_provenance), INTERPOLATED)
            value = blend(value, top, at_low, at_query, at_high)
            return value, np.where(between, worst, provenance)

        value, provenance = look_up(0, ())
        outside = np.any([a != i for a, i in zip(asked, inside, strict=True)], axis=0)
        if outside.any():
            value = value * self.trend(*asked) / self.trend(*inside)
            provenance = np.where(outside, EXTRAPOLATED, provenance)
        return Latency(value.reshape(shape), provenance.reshape(shape))

    def carry_on(self, farther: np.ndarray, reach: float, slopes: tuple[float, float]) -> None:
        """Append coordinates to the last axis; values go on along a line against the trend.

        Its slope is that over the last factor `reach` of the axis, within `slopes` times the last
        ratio to the trend.
        """
        axis = self.axes[-1]
        first = np.searchsorted(axis, axis[-1] / reach)
        trend = self.trend(*np.meshgrid(*self.axes[:-1], farther, indexing="ij", sparse=True))
        trend = np.broadcast_to(trend, (*self.values.shape[:-1], len(farther)))
        last, at_last = self.values[..., -1:], self._trend_on_grid[..., -1:]
        rise = last - self.values[..., first, None]
        run = at_last - self._trend_on_grid[..., first, None]
        ratio = last / at_last
        slope = np.divide(rise, run, out=ratio.copy(), where=run > 0)
        slope = np.clip(slope, slopes[0] * ratio, slopes[1] * ratio)
        self.axes[-1] = np.concatenate([axis, farther])
        self._trend_on_grid = np.concatenate([self._trend_on_grid, trend], axis=-1)
        self._measured = np.concatenate([self._measured, np.full(trend.shape, np.nan)], axis=-1)
        self.values = np.concatenate([self.values, last + slope * (trend - at_last)], axis=-1)
        unknown = np.full(trend.shape, EXTRAPOLATED, np.int8)
        self.provenance = np.concatenate([self.provenance, unknown], axis=-1)

    def measured_points(self) -> tuple[np.ndarray, ...]:
        """Coordinates of every measured point, one array per axis, then their ms."""
        index = np.nonzero(np.isfinite(self._measured))
        coordinates = (axis[i] for axis, i in zip(self.axes, index, strict=True))
        return (*coordinates, self._measured[index])

    def held_out(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Predict each interior point along `axis` from the others; (predicted, measured) in ms."""
        predicted = self._between(self._measured, axis)
        both = np.isfinite(predicted) & np.isfinite(self._measured)
        return predicted[both], self._measured[both]

    def _between(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Every cell from the nearest known cells on both sides along `axis`, NaN without both."""
        v = np.moveaxis(values, axis, 0)
        t = np.moveaxis(self._trend_on_grid, axis, 0)
        low, high = _nearest_known(np.isfinite(v))
        ok = (low >= 0) & (high < len(v))
        low, high = np.where(ok, low, 0), np.where(ok, high, 0)
        take = np.take_along_axis
        guess = blend(take(v, low, 0), take(v, high, 0), take(t, low, 0), t, take(t, high, 0))
        guess = np.moveaxis(np.where(ok, guess, np.nan), 0, axis)

        neighbour_axis, gain = self._neighbour
        if neighbour_axis is None or neighbour_axis == axis:
            return guess
        with np.errstate(invalid="ignore"):
            deviation = np.moveaxis(np.log(values / guess), neighbour_axis, 0)
        known = np.isfinite(deviation)
        deviation = np.where(known, deviation, 0.0)
        total, count = np.zeros_like(deviation), np.zeros(deviation.shape)
        total[1:] += deviation[:-1]
        count[1:] += known[:-1]
        total[:-1] += deviation[1:]
        count[:-1] += known[1:]
        correction = np.exp(gain * total / np.maximum(count, 1))
        return guess * np.moveaxis(correction, 0, neighbour_axis)

    def _filled(self) -> tuple[np.ndarray, np.ndarray]:
        """Close the holes: between known cells first, then outwards along each axis, last first."""
        values = self._measured.copy()
        provenance = np.where(np.isfinite(values), MEASURED, INTERPOLATED).astype(np.int8)
        last_to_first = range(values.ndim - 1, -1, -1)
        for axis in last_to_first:
            if np.isfinite(values).all():
                return values, provenance
            values = np.where(np.isfinite(values), values, self._between(values, axis))
        provenance[~np.isfinite(values)] = EXTRAPOLATED
        for axis in last_to_first:
            values = _extend(values, self._trend_on_grid, axis)
        return values, provenance


class SiteTable:
    """Latency curves over one axis, one per scattered site.

    Parameters
    ----------
    sites : (S, D) coordinates of the sites in which distance means likeness
    axis : (M,) sorted coordinate of the curves
    values : (S, M) in ms, NaN where not measured
    trend : (S, M) in ms
    neighbours : how many sites a prediction uses
    own_gain : how much of a curve's deviation from its neighbours is believed between its points
    position : the axis as the coordinate in which a curve is straight between two points
    """

    def __init__(
        self,
        sites: np.ndarray,
        axis: np.ndarray,
        values: np.ndarray,
        trend: np.ndarray,
        neighbours: int,
        own_gain: float,
        position: Callable[[np.ndarray], np.ndarray],
    ):
        self.sites, self.axis = sites, np.asarray(axis, float)
        self.position = position
        self.neighbours = min(neighbours, len(sites) - 1)
        self.own_gain = own_gain
        self._measured = values
        self._trend = trend
        self._log_ratio = np.log(values / trend)
        known = np.isfinite(values)
        self.provenance = np.where(known, MEASURED, INTERPOLATED).astype(np.int8)
        self.values = values if known.all() else self._filled(~known)

    def predict(
        self, exclude_self: np.ndarray | None, at: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log ratio to trend, (Q, M), of sites at the coordinates `at` (Q, D) from measured ones.

        `exclude_self` (Q,) is the index of a site that must not be its own neighbour. Where no
        neighbour has a point, the nearest predicted ratio along the curve is held; the second array
        is False there.
        """
        distance = np.linalg.norm(at[:, None, :] - self.sites[None, :, :], axis=2)
        if exclude_self is not None:
            distance[np.arange(len(at)), exclude_self] = np.inf
        near = np.argsort(distance, axis=1, kind="stable")[:, : self.neighbours]
        ratio = self._log_ratio[near]
        supported = np.isfinite(ratio).any(axis=1)
        return _held(local_fit(self.sites[near] - at[:, None, :], ratio), supported), supported

    def held_out_points(self) -> tuple[np.ndarray, np.ndarray]:
        """Predict each interior point of each curve from the others; (predicted, measured) ms."""
        predicted = np.exp(self._between_points(np.arange(len(self.sites)))[0]) * self._trend
        both = np.isfinite(predicted) & np.isfinite(self._measured)
        both[:, [0, -1]] = False
        return predicted[both], self._measured[both]

    def held_out_sites(self) -> tuple[np.ndarray, np.ndarray]:
        """Predict each whole curve from the other sites; (predicted, measured) in ms."""
        everyone = np.arange(len(self.sites))
        predicted = np.exp(self.predict(everyone, self.sites)[0]) * self._trend
        both = np.isfinite(predicted) & np.isfinite(self._measured)
        return predicted[both], self._measured[both]

    def curves(self, at: np.ndarray, trend: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole curves of unmeasured sites `at` (Q, D) with `trend` (Q, M): (ms, provenance)."""
        ratio, supported = self.predict(None, at)
        beyond = ((at < self.sites.min(axis=0)) | (at > self.sites.max(axis=0))).any(axis=1)
        code = np.where(beyond[:, None] | ~supported, EXTRAPOLATED, INTERPOLATED).astype(np.int8)
        return np.exp(ratio) * trend, code

    def along(
        self,
        curves: tuple[np.ndarray, np.ndarray],
        row: np.ndarray,
        query: np.ndarray,
        trend: Callable[[np.ndarray], np.ndarray],
    ) -> Latency:
        """Latency of `curves` (ms, provenance) at axis values `query` (N,) of rows `row` (N,).

        `trend(values)` is the trend of each query's own site in ms, for values (N,).
        """
        ms, provenance = curves
        inside = np.clip(query, self.axis[0], self.axis[-1])
        low, high = _bracket(self.axis, inside)
        points = self.position(self.axis)
        at_query = self.position(inside)
        value = blend(ms[row, low], ms[row, high], points[low], at_query, points[high])
        worst = np.maximum(np.maximum(provenance[row, low], provenance[row, high]), INTERPOLATED)
        code = np.where(low == high, provenance[row, low], worst)
        outside = inside != query
        if outside.any():
            value = np.where(outside, value * trend(query) / trend(inside), value)
            code = np.where(outside, EXTRAPOLATED, code)
        return Latency(value, code)

    def _between_points(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log ratio to trend of the curves `row`: the neighbours' shape, raised to their level.

        The second array is False where no neighbour has a point.
        """
        shape, supported = self.predict(row, self.sites[row])
        deviation = (self._log_ratio[row] - shape).T
        low, high = _nearest_known(np.isfinite(deviation))
        has_low, has_high = low >= 0, high < len(self.axis)
        low, high = np.where(has_low, low, high), np.where(has_high, high, low)
        low, high = np.clip(low, 0, len(self.axis) - 1), np.clip(high, 0, len(self.axis) - 1)
        position = self.position(self.axis)
        here = np.broadcast_to(position[:, None], deviation.shape)
        take = np.take_along_axis
        own = blend(
            take(deviation, low, 0), take(deviation, high, 0), position[low], here, position[high]
        )
        return shape + self.own_gain * own.T, supported

    def _filled(self, holes: np.ndarray) -> np.ndarray:
        row = np.flatnonzero(holes.any(axis=1))
        values = self._measured.copy()
        ratio, supported = self._between_points(row)
        values[row] = np.where(holes[row], np.exp(ratio) * self._trend[row], values[row])
        self.provenance[row] = np.where(holes[row] & ~supported, EXTRAPOLATED, self.provenance[row])
        return values


def local_fit(offset: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at an origin, (Q, M), from those of its J neighbours (Q, J, M) at `offset` (Q, J, D).

    Local linear regression with tricube weights (Cleveland 1979), a slight ridge on the slopes for
    neighbours that lie on a line. The last neighbour is the farthest; NaN values are unknown.
    """
    reach = np.linalg.norm(offset, axis=2)
    weight = (1 - (0.98 * reach / (reach[:, -1:] + 1e-9)) ** 3) ** 3
    design = np.concatenate([np.ones((*offset.shape[:2], 1)), offset], axis=2)
    known = np.isfinite(values)
    # Each column has its own set of known neighbours, hence its own normal equations.
    w = weight[:, :, None] * known
    left = np.einsum("qjm,qja,qjb->qmab", w, design, design)
    left += np.diag([1e-9] + [0.02] * offset.shape[2])
    right = np.einsum("qjm,qja->qma", w * np.where(known, values, 0.0), design)
    fitted = np.linalg.solve(left, right[..., None])[..., 0, 0]
    return np.where(known.any(axis=1), fitted, np.nan)


def _bracket(axis: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the points around each query; equal where the query is a point."""
    low = np.clip(np.searchsorted(axis, query, side="right") - 1, 0, len(axis) - 1)
    high = np.minimum(low + (axis[low] < query), len(axis) - 1)
    return low, high


def blend(
    low: np.ndarray, high: np.ndarray, at_low: np.ndarray, at: np.ndarray, at_high: np.ndarray
) -> np.ndarray:
    """Straight line through (at_low, low) and (at_high, high), read at `at` between them."""
    return low + (high - low) * _weight(at_low, at, at_high)


def _weight(low: np.ndarray, query: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Share of the upper point, 0 where both points coincide; a trend may be flat."""
    span = high - low
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(span > 0, (query - low) / span, 0.0)
    return np.clip(share, 0.0, 1.0)


def _nearest_known(known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per cell, the index of the nearest known cell strictly before and after along axis 0.

    -1 and len(axis) where there is none.
    """
    size = len(known)
    index = np.arange(size).reshape(-1, *[1] * (known.ndim - 1))
    before = np.maximum.accumulate(np.where(known, index, -1), axis=0)
    after = np.minimum.accumulate(np.where(known, index, size)[::-1], axis=0)[::-1]
    edge = np.full((1, *known.shape[1:]), -1)
    return np.concatenate([edge, before[:-1]]), np.concatenate([after[1:], edge * 0 + size])


def _held(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Replace unknown cells of each row by the nearest known one before them, else after them."""
    before, after = _nearest_known(known.T)
    here = np.arange(values.shape[1])[:, None]
    source = np.where(known.T, here, np.where(before >= 0, before, after))
    return np.take_along_axis(values, np.minimum(source, len(here) - 1).T, axis=1)


def _extend(values: np.ndarray, trend: np.ndarray, axis: int) -> np.ndarray:
    """Carry known cells along `axis` into unknown ones, in both directions.

    Each step follows the slope against the trend of the last two cells, which has to be 0.3 to 1.5
    times the last cell's own ratio to the trend; without two cells it is that ratio. (Hiding the
    outermost measured cells of h200_sxm trtllm 1.3.0rc20 decode attention: 1.6 % median error,
    against 9.6 % for the ratio alone.)
    """
    v, t = np.moveaxis(values.copy(), axis, 0), np.moveaxis(trend, axis, 0)
    for order in (range(len(v)), range(len(v) - 1, -1, -1)):
        for before, last, here in zip([None, *order], order, order[1:], strict=False):
            unknown = np.isnan(v[here])
            ratio = v[last] / t[last]
            slope = ratio
            if before is not None:
                with np.errstate(divide="ignore", invalid="ignore"):
                    seen = (v[last] - v[before]) / (t[last] - t[before])
                slope = np.where(np.isfinite(seen), np.clip(seen, 0.3 * ratio, 1.5 * ratio), ratio)
            guess = v[last] + slope * (t[here] - t[last])
            v[here] = np.where(unknown, guess, v[here])
    return np.moveaxis(v, 0, axis)
