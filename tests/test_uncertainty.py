"""Intervals and probabilities from residuals, against values settled by hand."""

import numpy as np
import pyarrow as pa
import pytest

from paretoserve.uncertainty import LEAST, Residuals, intervals, residuals_of


def slice_of(ttft, tpot, backend="vllm", mode="agg", settled=True, clients=8, fold=0):
    """Residuals of one slice."""
    count = len(ttft)
    values = (backend, mode, settled, clients, fold)
    alike = (np.full(count, value) for value in values)
    return Residuals(*alike, np.asarray(ttft, float), np.asarray(tpot, float))


def together(*slices):
    names = Residuals.__dataclass_fields__
    return Residuals(*(np.concatenate([getattr(s, name) for s in slices]) for name in names))


def stated(known, ttft_ms=100.0, tpot_ms=10.0, kind=("vllm", "agg", True, 8), **limits):
    found = intervals(
        known, *([value] for value in kind), np.array([ttft_ms]), np.array([tpot_ms]), **limits
    )
    names = ("ttft_low_ms", "ttft_high_ms", "tpot_low_ms", "tpot_high_ms", "sla_probability")
    return [float(getattr(found, name)[0]) for name in names]


@pytest.mark.parametrize(
    ("count", "from_each_end"),
    # floor((n + 1) 0.05): the smallest and largest until there are 39, then one further in.
    [(1, 1), (19, 1), (38, 1), (39, 2), (59, 3), (199, 10)],
)
def test_interval_is_between_the_kth_residuals(count, from_each_end):
    factors = 1 + np.arange(count) / 100
    shuffled = np.random.default_rng(1).permutation(factors)
    low, high, *_ = stated(slice_of(np.log(shuffled), np.zeros(count)))
    assert low == pytest.approx(100 * factors[from_each_end - 1])
    assert high == pytest.approx(100 * factors[count - from_each_end])


def test_intervals_hold_their_share_of_new_residuals():
    """Whatever the distribution: 90 % of what is drawn later, at 200 residuals within 3 points."""
    random = np.random.default_rng(2)
    drawn = random.standard_t(3, (300, 200))
    inside = []
    for past in drawn:
        low, high, *_ = stated(slice_of(past, past))
        later = 100 * np.exp(random.standard_t(3, 200))
        inside.append(((later >= low) & (later <= high)).mean())
    assert np.mean(inside) == pytest.approx(0.90, abs=0.03)


def test_probability_counts_pairs():
    """Of 40 runs 20 take five times the ttft, 10 three times the tpot, 5 of them both."""
    ttft = np.log(np.repeat([5.0, 1.0], 20))
    tpot = np.log(np.r_[np.ones(15), np.full(10, 3.0), np.ones(15)])
    known = slice_of(ttft, tpot)
    assert stated(known, ttft_limit_ms=400, tpot_limit_ms=20)[-1] == pytest.approx(15 / 40)
    assert stated(known, tpot_limit_ms=20)[-1] == pytest.approx(30 / 40)
    assert stated(known, ttft_limit_ms=400)[-1] == pytest.approx(20 / 40)
    assert stated(known)[-1] == 1
    assert stated(known, tpot_limit_ms=9)[-1] == 0


def test_slices_fall_back_to_wider_ones():
    def part(factor, count, **kind):
        values = np.full(count, np.log(factor))
        return slice_of(values, values, **kind)

    many = part(2, LEAST, clients=500)
    few = part(3, LEAST - 1, clients=8)
    other = part(5, LEAST, backend="sglang", mode="disagg", clients=8)
    known = together(many, few, other)
    # Many clients have a slice of their own.
    assert stated(known, kind=("vllm", "agg", True, 65))[2:4] == pytest.approx([20, 20])
    # Few have not: those of the backend, whatever the clients, from 2 to 3 times.
    assert stated(known, kind=("vllm", "agg", True, 64))[2:4] == pytest.approx([20, 30])
    # A backend without runs: those of the mode, then all.
    assert stated(known, kind=("trtllm", "disagg", True, 8))[2:4] == pytest.approx([50, 50])
    assert stated(known, kind=("trtllm", "disagg", False, 8))[2:4] == pytest.approx([20, 50])


def test_no_prediction_and_no_residuals_state_nothing():
    known = slice_of(np.zeros(50), np.zeros(50))
    assert np.isnan(stated(known, np.nan, np.nan)).all()
    nothing = known.without(np.ones(50, bool))
    assert np.isnan(stated(nothing)).all()


def test_residuals_of_a_table_are_measured_over_predicted():
    table = pa.table(
        {
            "backend": ["vllm", "vllm"],
            "mode": ["agg", "agg"],
            "settled": [True, True],
            "concurrency": [4, 8],
            "fold": [0, 1],
            "ttft_ms": [200.0, 200.0],
            "tpot_ms": [5.0, 5.0],
            "family_ttft_ms": [100.0, np.nan],  # the second is not predicted
            "family_tpot_ms": [10.0, np.nan],
        }
    )
    found = residuals_of(table)
    assert found.ttft.tolist() == pytest.approx([np.log(2)])
    assert found.tpot.tolist() == pytest.approx([np.log(0.5)])
    assert found.clients.tolist() == [4]
