r"""Weighted means, widths and quantiles with the influence of each event on them.

An estimate is `Linearized`: its value and the influence of each event on it, the change of the value per unit of the
event's multiplicity.  The squares of the influences sum to the variance, for weights of any sign:

* mean: :math:`w (x - \bar x) / \sum w`; a fraction of events that pass, an efficiency, is the mean of 0 and 1, whose
  error is the usual one from :math:`\sum w^2` of those that pass and those that fail;
* standard deviation s: :math:`w ((x - \bar x)^2 - s^2) / (2 s \sum w)`;
* quantile :math:`q_p`: :math:`-w (1[x \le q_p] - p) / (f(q_p) \sum w)`, with the density f from the slope of the
  quantiles themselves within two standard errors of p (Woodruff); the 68 % half-width is
  :math:`(q_{0.84} - q_{0.16}) / 2`.

No event that is there moves an efficiency of 0 or 1, but others might: an error holds `UNSEEN` more events, whose
influence is that of the mean event, or for an efficiency that of one that passes and one that fails.

References: Hampel, J. Am. Stat. Assoc. 69 (1974) 383; Woodruff, J. Am. Stat. Assoc. 47 (1952) 635.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from calorefine import intervals, stats
from calorefine.stats import FloatArray, IntArray

HALF_WIDTH_LEVELS = (0.16, 0.84)


@dataclass(frozen=True)
class Linearized:
    """A number and the influence (n,) of each event on it; of an efficiency also their shares (n,) of the weight."""

    value: float
    influence: FloatArray
    shares: FloatArray | None = None

    def grouped(self, group: IntArray, size: int) -> FloatArray:
        """Influences (2, size) of all events of equal group, and of those that are not there; squared, the variance."""
        unseen = self.influence
        if self.shares is not None:
            unseen = self.shares * np.hypot(self.value, 1 - self.value)
        scale = np.sqrt(intervals.UNSEEN / len(np.unique(group)))
        return np.stack([stats.group_sums(self.influence, group, size), scale * stats.group_sums(unseen, group, size)])

    def interval(self, group: IntArray) -> tuple[float, float] | None:
        """Central 68.27 % interval of an efficiency (Clopper and Pearson's, at the effective number of events)."""
        if self.shares is None:
            return None
        variance, both = np.array([stats.sum_w2(stats.group_sums(self.influence, group))]), self.grouped(group, 0)
        n_eff, error = stats.n_eff(stats.group_sums(self.shares, group)), np.sqrt([stats.sum_w2(both)])
        low, high = intervals.binomial_interval(np.array([self.value]), variance, error, n_eff)[:, 0].tolist()
        return low, high


def mean_estimate(values: FloatArray, weight: FloatArray) -> Linearized:
    """Weighted mean of values (n,); weights of any sign, positive sum."""
    mean = float(stats.mean(values, weight))
    return Linearized(mean, weight * (values - mean) / stats.sum_w(weight))


def efficiency_estimate(passed: FloatArray, weight: FloatArray) -> Linearized:
    """Weighted share of those that pass, 1, and not 0 (n,); weights of any sign, positive sum."""
    return replace(mean_estimate(passed, weight), shares=weight / stats.sum_w(weight))


def std_estimate(values: FloatArray, weight: FloatArray) -> Linearized | None:
    """Weighted standard deviation of values (n,); None if signed weights make the variance negative."""
    variance = float(stats.covariance(values[:, None], weight)[0, 0])
    if variance <= 0:
        return None
    std = float(np.sqrt(variance))
    square = (values - stats.mean(values, weight)) ** 2
    return Linearized(std, weight * (square - variance) / (2 * std * stats.sum_w(weight)))


def quantile_estimates(values: FloatArray, weight: FloatArray, levels: tuple[float, ...]) -> list[Linearized]:
    """Weighted quantiles of values (n,) at levels in (0, 1); weights of any sign, positive sum."""
    p = np.array(levels)
    quantiles = stats.quantile(values, weight, p)
    shares = weight[:, None] * ((values[:, None] <= quantiles) - p) / stats.sum_w(weight)
    step = 2 * np.sqrt(np.sum(shares**2, axis=0))
    ends = np.clip(np.stack([p - step, p + step]), 0.01, 0.99)
    around = stats.quantile(values, weight, ends.ravel()).reshape(ends.shape)
    slopes = np.diff(around, axis=0)[0] / np.maximum(np.diff(ends, axis=0)[0], 1e-9)
    return [Linearized(float(q), influence) for q, influence in zip(quantiles, (-slopes * shares).T, strict=True)]


def half_width_estimate(values: FloatArray, weight: FloatArray) -> Linearized:
    """Half the distance between the weighted 16 % and 84 % quantiles of values (n,); weights of any sign."""
    low, high = quantile_estimates(values, weight, HALF_WIDTH_LEVELS)
    return Linearized((high.value - low.value) / 2, (high.influence - low.influence) / 2)


def median_estimate(values: FloatArray, weight: FloatArray) -> Linearized:
    """Weighted median of values (n,); weights of any sign."""
    return quantile_estimates(values, weight, (0.5,))[0]
