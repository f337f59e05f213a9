"""Trade-off between generation speed per user and throughput per GPU."""

import numpy as np


def frontier(speed: np.ndarray, throughput: np.ndarray) -> np.ndarray:
    """Indices of the points that no other beats in both coordinates, by rising speed.

    Of equal points the first stays.
    """
    order = np.lexsort((np.arange(len(speed)), -throughput, -speed))
    best_so_far = np.maximum.accumulate(np.r_[-np.inf, throughput[order]])[:-1]
    return order[throughput[order] > best_so_far][::-1]
