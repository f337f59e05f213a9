"""Look-ups between points, on tables small enough to do by hand."""

import numpy as np
import pytest

from paretoserve.interpolation import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    SPEED_OF_LIGHT,
    GridTable,
    Latency,
    SiteTable,
    local_fit,
)

NAN = np.nan


def test_grid_returns_its_points_and_a_straight_line_in_the_trend():
    # Trend x^2: between x=1 (2 ms) and x=3 (10 ms), x=2 is at (4-1)/(9-1) = 3/8 of the way: 5 ms.
    table = GridTable([np.array([1.0, 3.0])], np.array([2.0, 10.0]), lambda x: x**2)
    found = table(np.array([1, 2, 3]))
    assert found.ms.tolist() == [2.0, 5.0, 10.0]
    assert found.provenance.tolist() == [MEASURED, INTERPOLATED, MEASURED]


def test_grid_holds_the_last_ratio_to_the_trend_outside():
    table = GridTable([np.array([1.0, 3.0])], np.array([2.0, 10.0]), lambda x: x + 0.0)
    found = table(np.array([6.0, 0.5]))
    assert found.ms.tolist() == [20.0, 1.0]
    assert (found.provenance == EXTRAPOLATED).all()


def test_grid_of_two_axes_is_bilinear_where_the_trend_is():
    # Trend x y, values 3 x y: exact everywhere, whatever the cell.
    x, y = np.array([1.0, 2.0, 8.0]), np.array([1.0, 4.0])
    table = GridTable([x, y], 3 * x[:, None] * y[None, :], lambda a, b: a * b)
    query = np.array([1.0, 1.7, 5.0, 8.0]), np.array([4.0, 2.2, 3.0, 1.5])
    assert table(*query).ms == pytest.approx(3 * query[0] * query[1])


def test_grid_fills_an_inner_hole_from_its_line_and_an_outer_one_along_the_slope():
    # Row 0 lacks its middle: half way between 1 and 3. Row 1 lacks its end: slope (3-2)/(2-1) = 1
    # within 0.3..1.5 of the ratio 3/2, so 3 + 1 * (3 - 2) = 4.
    values = np.array([[1.0, NAN, 3.0], [2.0, 3.0, NAN]])
    axes = [np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0])]
    table = GridTable(axes, values, lambda a, b: b + 0 * a)
    found = table(np.array([1, 2]), np.array([2, 3]))
    assert found.ms.tolist() == [2.0, 4.0]
    assert found.provenance.tolist() == [INTERPOLATED, EXTRAPOLATED]


def test_a_hole_learns_half_of_its_neighbours_deviation_with_gain_half():
    # On the axis the neighbours lie 4 times above their straight line; sqrt(4) = 2 with gain 1/2.
    values = np.array([[2.0, 8.0, 2.0], [3.0, NAN, 3.0], [2.0, 8.0, 2.0]])
    axes = [np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])]
    table = GridTable(axes, values, lambda a, b: b + 0 * a, neighbour_axis=0, neighbour_gain=0.5)
    assert table(np.array([2]), np.array([2])).ms == pytest.approx(6.0)


def test_held_out_leaves_the_point_itself_out():
    table = GridTable([np.array([1.0, 2.0, 3.0])], np.array([1.0, 50.0, 3.0]), lambda x: x)
    predicted, measured = table.held_out(0)
    assert predicted.tolist() == [2.0]
    assert measured.tolist() == [50.0]


def site_table(values: np.ndarray) -> SiteTable:
    sites = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.5]])
    return SiteTable(
        sites=sites,
        axis=np.array([1.0, 2.0, 4.0]),
        values=values,
        trend=np.ones_like(values),
        neighbours=4,
        own_gain=1.0,
        position=lambda m: m,
    )


def plane(at: np.ndarray) -> np.ndarray:
    """Curves whose log is linear in the site and the same along the axis."""
    return np.exp(0.1 + at @ [0.3, -0.2])[:, None] * np.ones(3)


def test_unmeasured_site_follows_a_plane_through_its_neighbours():
    table = site_table(plane(site_table(np.ones((5, 3))).sites))
    at = np.array([[0.5, 0.5]])
    ms, provenance = table.curves(at, np.ones((1, 3)))
    # A slight ridge keeps the slopes from being exact.
    assert ms == pytest.approx(plane(at), rel=0.01)
    assert (provenance == INTERPOLATED).all()
    _, beyond = table.curves(np.array([[5.0, 0.0]]), np.ones((1, 3)))
    assert (beyond == EXTRAPOLATED).all()


def test_hole_of_a_curve_keeps_the_curves_own_level():
    values = plane(site_table(np.ones((5, 3))).sites)
    values[0] *= 2
    values[0, 1] = NAN
    table = site_table(values)
    assert table.values[0, 1] == pytest.approx(values[0, 0], rel=0.01)
    assert table.provenance[0, 1] == INTERPOLATED


def test_below_the_bound_is_raised_and_said():
    found = Latency(np.array([1.0, 3.0]), np.zeros(2, np.int8)).at_least(np.array([2.0, 2.0]))
    assert found.ms.tolist() == [2.0, 3.0]
    assert found.provenance.tolist() == [SPEED_OF_LIGHT, MEASURED]


def test_curves_go_on_with_the_slope_of_their_last_stretch():
    # From x = 4 to 16 by 2 ms per unit of the trend: that line goes on, marked.
    x, ms = np.array([1.0, 4.0, 8.0, 16.0]), np.array([4.0, 18.0, 27.0, 42.0])
    table = GridTable([x], ms, lambda at: at + 0.0)
    table.carry_on(np.array([32.0, 64.0]), reach=4, slopes=(0.3, 3.0))
    found = table(np.array([16.0, 32.0, 48.0, 64.0, 128.0]))
    # At 64 the ratio is 138 / 64, and beyond it is held.
    assert found.ms == pytest.approx([42, 74, 106, 138, 276])
    assert found.provenance.tolist() == [MEASURED, *[EXTRAPOLATED] * 4]


def test_slope_of_the_last_stretch_keeps_near_the_last_ratio():
    # Flat, then falling: 0.3 times the ratio of 2 ms per unit is the least slope that is believed.
    table = GridTable([np.array([4.0, 8.0])], np.array([20.0, 16.0]), lambda at: at + 0.0)
    table.carry_on(np.array([16.0]), reach=4, slopes=(0.3, 3.0))
    assert table(np.array([16.0])).ms == pytest.approx([16 + 0.3 * 2 * 8])


def test_local_fit_is_exact_for_a_plane():
    offset = np.array([[[1.0, 0], [0, 1], [-1, 0], [0, -1], [2, 1]]])
    plane = (5 + 3 * offset[..., 0] - 2 * offset[..., 1])[..., None]
    assert local_fit(offset, plane) == pytest.approx(np.array([[5.0]]), rel=0.02)
