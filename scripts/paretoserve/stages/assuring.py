"""Assure: the largest batches with which deployments keep their SLA with the probability asked for.

Of one layout a smaller batch serves less and is surer to keep the SLA. Its deployments are a
ladder, down which the batches left are halved: first the top, then the foot, then between the two.
What is taken was simulated itself: a ladder that is not monotone costs throughput, not certainty.
"""

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np


def ladders(layout: np.ndarray, clients: np.ndarray) -> list[np.ndarray]:
    """Return indices of the deployments of each layout, from the top down, best layouts first.

    Parameters
    ----------
    layout
        Layout of each deployment, as a number, best throughput first, (N,).
    clients
        Requests in flight of each, (N,). Each step of a ladder has fewer than those above it.
    """
    _, first = np.unique(layout, return_index=True)
    found = []
    for top in np.sort(first):
        mine = np.flatnonzero(layout == layout[top])
        fewest_above = np.minimum.accumulate(np.r_[np.inf, clients[mine]])[:-1]
        found.append(mine[clients[mine] < fewest_above])
    return found


def descend(
    steps: Sequence[np.ndarray],
    probability_of: Callable[[np.ndarray], np.ndarray],
    wanted: float,
    layouts: int,
    simulations: int,
) -> dict[int, float]:
    """Return the probability of every deployment that was tried, NaN where there is none.

    `probability_of` takes the next of several ladders at once: of the first `layouts`, and of one
    more for each whose foot is not sure either. At most so many `simulations` are tried.
    """
    tried: dict[int, float] = {}
    while len(tried) < simulations:
        hopeful = (ladder.tolist() for ladder in steps if not _hopeless(ladder, tried, wanted))
        following = (_following(ladder, tried, wanted) for ladder in islice(hopeful, layouts))
        now = [row for row in following if row is not None][: simulations - len(tried)]
        if not now:
            break
        tried |= dict(zip(now, probability_of(np.array(now)).tolist(), strict=True))
    return tried


def _hopeless(ladder: np.ndarray, tried: dict[int, float], wanted: float) -> bool:
    ends = [tried.get(int(ladder[end]), np.inf) for end in (0, -1)]
    return not any(probability >= wanted for probability in ends)


def _following(ladder: list[int], tried: dict[int, float], wanted: float) -> int | None:
    """What to try next of a ladder; None if it is decided."""
    sure = [place for place, row in enumerate(ladder) if tried.get(row, np.nan) >= wanted]
    if ladder[0] not in tried:
        return ladder[0]
    if sure and sure[0] == 0:
        return None
    if ladder[-1] not in tried:
        return ladder[-1]
    above = max(place for place in range(sure[0]) if ladder[place] in tried)
    return ladder[(above + sure[0]) // 2] if sure[0] - above > 1 else None
