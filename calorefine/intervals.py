"""Intervals of counts and shares of weighted events, none of which has no width."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from calorefine.stats import FloatArray

UNSEEN = 1.5
"""Events of the mean weight by which a symmetric error is larger than that of the events that there are.

A count k has the error sqrt(k + 1.5): k +- it covers at least 0.64 for any expectation from 0.7 on, and an efficiency
at least 0.63 (`tests/observables/test_intervals.py`); with 1 it is 0.60 and 0.55."""


def count_interval(sums: FloatArray, variance: FloatArray, errors: FloatArray, unit: FloatArray) -> FloatArray:
    """Garwood's central 68.27 % interval (2, n) of sums of weights: of as many events as have this relative error.

    Args:
        sums: (n,) of weights.
        variance: (n,) sums of their squares.
        errors: (n,) symmetric errors, for negative sums, for which there is no number of events.
        unit: (n,) weight of one event, for sums of 0.

    References: Garwood, Biometrika 28 (1936) 437; Bohm and Zech, arXiv:1309.1287.
    """
    from hist import intervals

    ends, filled = np.stack([sums - errors, sums + errors]), (sums > 0) & (variance > 0)
    ends[:, filled] = intervals.poisson_interval(sums[filled], variance[filled])
    empty = (sums == 0) & (variance == 0)
    ends[:, empty] = intervals.poisson_interval(np.zeros(int(empty.sum()))) * unit[empty]
    return ends


def binomial_interval(share: FloatArray, variance: FloatArray, errors: FloatArray, n_eff: ArrayLike) -> FloatArray:
    r"""Clopper and Pearson's central 68.27 % interval (2, n) of a share of weighted events, at their effective number.

    It is :math:`p (1 - p) / \sigma^2`, that of equal weights with the same variance, which knows correlated events too;
    at a share of 0 or 1 that of the denominator.

    Args:
        share: (n,), by signed weights possibly not from 0 to 1; then its interval is the symmetric one.
        variance: (n,) of the shares, by linear propagation.
        errors: (n,) symmetric errors.
        n_eff: () or (n,) effective number of events of the denominator.

    References: Clopper and Pearson, Biometrika 26 (1934) 404; Korn and Graubard, Survey Methodology 24 (1998) 193.
    """
    from hist import intervals

    ends, inside = np.stack([share - errors, share + errors]), (share > 0) & (share < 1) & (variance > 0)
    size = np.broadcast_to(np.asarray(n_eff, np.float64), share.shape).copy()
    size[inside] = (share * (1 - share))[inside] / variance[inside]
    known = inside | (((share == 0) | (share == 1)) & (variance == 0))
    ends[:, known] = intervals.clopper_pearson_interval((share * size)[known], size[known])
    return ends
