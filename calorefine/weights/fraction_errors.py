"""Errors of fractions that sum to 1: Gaussians that are independent but for their sum."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

from calorefine.stats import FloatArray

ERROR_ROUNDING = 0.02
"""By how much, relatively, the largest error may exceed what the others balance: errors of two digits."""


def can_balance(error: FloatArray) -> bool:
    """Whether Gaussians with these standard deviations (L,), independent but for it, can sum to 0."""
    used = np.sort(error[error > 0])
    rounding = ERROR_ROUNDING if len(used) > 2 else 1e-6
    return len(used) == 0 or bool(used[-1] <= (1 + rounding) * np.sqrt(np.sum(used[:-1] ** 2)))


def balanced_variances(error: FloatArray) -> FloatArray:
    r"""Variances a (L,) with :math:`a_l - a_l^2 / \sum a = \sigma_l^2`.

    With :math:`S = \sum a` and shares :math:`u = a / S` they solve :math:`u_l (1 - u_l) = \sigma_l^2 / S`.  The largest
    share, (1 + s) / 2, fixes S and with it the others; s is such that they sum to 1.  Where the largest error is all
    that the others can balance, S is infinite: s near 1, and only the largest is correlated with the others.  Two equal
    errors are those of any a; equal ones are taken.
    """
    if np.count_nonzero(error) <= 2:
        return 2 * error**2
    top = int(np.argmax(error))
    relative = (error / error[top]) ** 2

    def shares(s: float) -> FloatArray:
        share: FloatArray = 0.5 * relative * (1 - s**2) / (1 + np.sqrt(1 - relative * (1 - s**2)))
        share[top] = 0.5 * (1 + s)
        return share

    def excess(s: float) -> float:
        return float(shares(s).sum() - 1)

    end = 1 - 1e-9
    s = brentq(excess, -1, end, xtol=1e-14) if excess(end) > 0 else end
    variances: FloatArray = shares(s) * 4 * error[top] ** 2 / (1 - s**2)
    return variances
