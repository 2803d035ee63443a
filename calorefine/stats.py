"""Weighted sample statistics: the only place that averages over events.

Two ways to average exist, and each has one helper here.  *Statistics of a sample* divide by the sum of its weights
(`mean`, `covariance`, `quantile`).  *Minibatch losses* divide by the batch size times the global mean weight
(`batch_mean`), since a batch of signed weights can sum to zero or less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calorefine.errors import WeightError

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def sum_w(weight: ArrayLike) -> float:
    """Sum of the weights, in float64."""
    return float(np.sum(weight, dtype=np.float64))


def sum_w2(weight: ArrayLike) -> float:
    """Sum of the squared weights: the variance of `sum_w` for independent events."""
    return float(np.sum(np.square(weight, dtype=np.float64)))


def n_eff(weight: ArrayLike) -> float:
    r"""Effective number of events :math:`(\sum w)^2 / \sum w^2`; 0 where all weights are 0.

    Signed weights are allowed and count as they are: it is the size of an unweighted sample with the same relative
    error on its number of events.

    >>> n_eff([2.0, 2.0, 2.0])
    3.0
    """
    squares = sum_w2(weight)
    return sum_w(weight) ** 2 / squares if squares > 0 else 0.0


def group_sums(values: ArrayLike, group: IntArray, size: int | None = None) -> FloatArray:
    """Sum of values (n,) in each group: what is squared where events of a group are correlated.

    Args:
        values: (n,), such as weights, or influences of events on a number.
        group: (n,) numbers from 0, as `calorefine.keys.group` gives them for events of equal key.
        size: number of groups, where some may be empty.

    >>> group_sums([1.0, 2.0, 4.0], np.array([1, 0, 1]))
    array([2., 5.])
    """
    return np.asarray(np.bincount(group, np.asarray(values, np.float64), size or 0), np.float64)


def summed(values: ArrayLike, group: IntArray | None) -> FloatArray:
    """Sums over events of equal key (groups,), as of `group_sums`; the values themselves (n,) without groups."""
    return np.asarray(values, np.float64) if group is None else group_sums(values, group)


class WeightSums:
    r"""Sums over events for K weights at once, gathered chunk by chunk, in C cells.

    Attributes:
        n: (C,) number of events, or of groups of them.
        sum_w: (C, K) sum of each weight.
        sum_w2: (C, K) sum of its squares.
        sum_w0w: (C, K) sum of its products with the first weight, such as the one before a correction.
    """

    def __init__(self, n_weights: int, n_cells: int = 1) -> None:
        """Start at 0."""
        self.n = np.zeros(n_cells, np.int64)
        self.sum_w, self.sum_w2, self.sum_w0w = np.zeros((3, n_cells, n_weights))

    def add(self, weight: FloatArray, *, cell: IntArray | None = None, group: IntArray | None = None) -> None:
        """Count events.

        Args:
            weight: (n, K), any sign.
            cell: (n,) numbers of their cells, from 0; all are in the first without.
            group: (n,) numbers from 0: correlated events are summed before they are squared, within each cell.  A chunk
                has to hold all events of its groups.
        """
        cell = np.zeros(len(weight), np.int64) if cell is None else cell
        if group is not None:
            pairs, group = np.unique(cell + len(self.n) * group, return_inverse=True)
            weight, cell = row_sums(weight, group, len(pairs)), pairs % len(self.n)
        self.n += np.bincount(cell, minlength=len(self.n))
        for sums, values in ((self.sum_w, weight), (self.sum_w2, weight**2), (self.sum_w0w, weight[:, :1] * weight)):
            sums += row_sums(values, cell, len(self.n))

    @property
    def n_eff(self) -> FloatArray:
        """Effective number of events (C, K); 0 where all weights are 0."""
        return np.divide(self.sum_w**2, self.sum_w2, out=np.zeros_like(self.sum_w), where=self.sum_w2 > 0)

    def ratios(self) -> tuple[FloatArray, FloatArray]:
        """Sum of each weight over that of the first (C, K), and its error; NaN where the latter is not positive."""
        total = np.where(self.sum_w[:, :1] > 0, self.sum_w[:, :1], np.nan)
        ratio = self.sum_w / total
        return ratio, np.sqrt(spread_of_mean(ratio, self.sum_w2[:, :1], self.sum_w0w, self.sum_w2)) / total


def row_sums(values: Any, index: IntArray, size: int) -> Any:
    """Sums (size, K) of rows (n, K) with the same index (n,); of a sparse array, as one."""
    from scipy import sparse

    one_hot = sparse.csr_array((np.ones(len(index)), (index, np.arange(len(index)))), shape=(size, len(index)))
    return one_hot @ values


def require_positive_sum(weight: ArrayLike, what: str) -> float:
    """Return the sum of the weights, or raise.

    Args:
        weight: (n,) weights, any sign.
        what: what the weights belong to, for the message.

    Raises:
        WeightError: the sum is not positive, or not finite.
    """
    total = sum_w(weight)
    if not np.isfinite(total) or total <= 0:
        msg = (
            f"{what}: the weights of {np.size(weight)} events sum to {total:g}, expected a positive sum; "
            "check the weight branch or expression, and that it is the weight of the species you want"
        )
        raise WeightError(msg)
    return total


def require_nonnegative(weight: ArrayLike, what: str) -> None:
    """Raise if any weight is negative.

    Args:
        weight: (n,) weights.
        what: what needs them so and why, for the message.

    Raises:
        WeightError: some weights are negative, or NaN.
    """
    values = np.asarray(weight, np.float64)
    if np.all(values >= 0):
        return
    bad = int(np.sum(~(values >= 0)))
    problem = "negative or NaN" if np.isnan(values).any() else f"negative, the smallest {np.min(values):.3g}"
    msg = (
        f"{what}: {bad} of {values.size} weights are {problem}; train on positive "
        "ones, E[w | x, context]: `data.positive: {class_path: PositiveWeights}` (calorefine.weights.PositiveWeights)"
    )
    raise WeightError(msg)


def mean(values: ArrayLike, weight: ArrayLike) -> FloatArray:
    r"""Weighted mean :math:`\sum_i w_i x_i / \sum_i w_i`.

    Args:
        values: (n,) or (n, d).
        weight: (n,), any sign, positive sum.

    Returns:
        () or (d,), in the units of `values`.

    Raises:
        WeightError: the weights don't have a positive sum.
    """
    total = require_positive_sum(weight, "weighted mean")
    return np.tensordot(np.asarray(weight, np.float64), np.asarray(values, np.float64), axes=(0, 0)) / total


def covariance(values: ArrayLike, weight: ArrayLike) -> FloatArray:
    r"""Weighted covariance :math:`\sum_i w_i (x_i-\bar x)(x_i-\bar x)^T / \sum_i w_i`.

    With signed weights the diagonal is not guaranteed to be positive.

    Args:
        values: (n, d).
        weight: (n,), any sign, positive sum.

    Returns:
        (d, d), in the squared units of `values`; no small-sample correction.
    """
    centred = np.asarray(values, np.float64) - mean(values, weight)
    return (centred * np.asarray(weight, np.float64)[:, None]).T @ centred / sum_w(weight)


def quantile(values: ArrayLike, weight: ArrayLike, levels: ArrayLike) -> FloatArray:
    """Weighted quantiles: the inverse of the weighted distribution function.

    With signed weights the weighted distribution function is not monotone; its nearest monotone function in the least
    squares sense over the distinct values (isotonic regression) is used, clipped to [0, 1]. It has the same expectation
    in large samples and doesn't ratchet up on every upward fluctuation as a running maximum does.

    Args:
        values: (n,).
        weight: (n,), any sign, positive sum; events of weight 0 change nothing.
        levels: (k,) in [0, 1].

    Returns:
        (k,), nondecreasing in `levels`; each is a value of the sample.

    Raises:
        WeightError: the weights don't have a positive sum.

    >>> quantile([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1], [0.5, 1.0])
    array([2., 4.])
    """
    total = require_positive_sum(weight, "weighted quantile")
    values, weight = np.asarray(values, np.float64), np.asarray(weight, np.float64)
    used = weight != 0
    unique, group = np.unique(values[used], return_inverse=True)
    cumulative = np.cumsum(np.bincount(group, weight[used])) / total
    if np.any(np.diff(cumulative) < 0):
        cumulative = _isotonic(cumulative)
    index = np.searchsorted(np.clip(cumulative, 0, 1), np.asarray(levels) - 1e-12)
    return unique[np.minimum(index, len(unique) - 1)]


def _isotonic(cumulative: FloatArray) -> FloatArray:
    from scipy.optimize import isotonic_regression

    nearest: FloatArray = isotonic_regression(cumulative).x
    return nearest


def sidak(p_value: float, n_tests: int) -> float:
    """Probability that the smallest of n independent p-values is as small.

    >>> round(sidak(0.01, 10), 4)
    0.0956
    """
    return float(-np.expm1(n_tests * np.log1p(-p_value))) if p_value < 1 else 1.0


def chi2_p_value(chi2: float, ndf: int) -> float:
    """Probability of a chi2 as large; 1 without degrees of freedom."""
    from scipy.special import chdtrc

    return float(chdtrc(ndf, max(chi2, 0.0))) if ndf > 0 else 1.0


def weights_dof(weight: ArrayLike, group: IntArray | None = None) -> float:
    r"""Degrees of freedom that a sample's weights allow to a variance that is estimated from it, by whatever method.

    Of g independent groups (runs, events), with weights W summed in each,

    .. math:: \nu = \min\Big(g - 1, \; \frac{2}{3 \sum W^4 / (\sum W^2)^2 - 1 / g}\Big),

    which matches the variance of :math:`\sum W^2 a^2` for Gaussian a (Satterthwaite): g - 1 for equal weights, few
    where some events carry most of :math:`\sum W^2`, at least 1 (doi:10.2307/3002019).

    Args:
        weight: (n,) any sign.
        group: (n,) numbers from 0; each event by itself if left out.

    >>> round(weights_dof(np.ones(30)))
    29
    """
    sums = summed(weight, group)
    sums = sums[sums != 0]
    if len(sums) < 2:
        return 1.0
    return max(1.0, min(len(sums) - 1.0, 2 / (3 * sum_w2(sums**2) / sum_w2(sums) ** 2 - 1 / len(sums))))


def error_of_error(dof: ArrayLike) -> FloatArray:
    """Relative error of a standard error with these degrees of freedom, 1 / sqrt(2 dof); 0 if it is known.

    >>> error_of_error(50 - 1).round(2)
    np.float64(0.1)
    """
    return np.asarray(np.divide(1.0, np.sqrt(2 * np.asarray(dof, np.float64))))[()]


def spread_of_mean(mean: ArrayLike, w2: ArrayLike, w2f: ArrayLike, w2f2: ArrayLike) -> FloatArray:
    r"""Sum :math:`\sum w^2 (f - m)^2` from the sums of w^2, w^2 f and w^2 f^2; below 0 by rounding it is 0.

    Over :math:`(\sum w)^2` it is the variance of the weighted mean m of independent events.
    """
    mean, w2, w2f, w2f2 = (np.asarray(values, np.float64) for values in (mean, w2, w2f, w2f2))
    return np.maximum(w2f2 - 2 * mean * w2f + mean**2 * w2, 0.0)


def batch_mean(values: torch.Tensor, weight: torch.Tensor, mean_weight: float | torch.Tensor) -> torch.Tensor:
    r"""Minibatch estimate :math:`\sum_{i \in B} w_i v_i / (|B| \, \bar w)` of the weighted mean over the whole sample.

    Unbiased for any batch of events drawn uniformly, whatever the sign of the batch's own sum of weights; on the full
    sample it is the weighted mean.

    Args:
        values: (..., B) per-event values; leading axes number replicas, each with a batch of its own.
        weight: (..., B), any sign.
        mean_weight: (...) mean weight of the *whole* training sample, positive.

    Returns:
        (...) tensor.
    """
    return (weight * values).sum(-1) / (weight.shape[-1] * mean_weight)
