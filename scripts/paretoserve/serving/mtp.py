"""Multi-token prediction: how many tokens a decode step gives a request.

A step verifies nextn drafts. The i-th is accepted with probability r_i if all before it were, and
one token more comes from the model itself: 1 + r_1 + r_1 r_2 + ... tokens are expected.
"""

from collections.abc import Sequence

import numpy as np


def expected_tokens_per_step(nextn: int, accept_rates: Sequence[float]) -> float:
    """Tokens of one request in one decode step, from 1 to nextn + 1.

    `accept_rates` are those of the drafts in their order; the first `nextn` count.
    """
    return 1.0 + float(np.cumprod(accept_rates[:nextn]).sum())
