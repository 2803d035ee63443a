r"""Efficiencies and means in bins of a variable: ratios of two sums over the same events.

With the sums P of those that pass and F of those that fail, an efficiency is :math:`\epsilon = P / (P + F)`, with the
variance

.. math:: \frac{(1 - \epsilon)^2 \sum_P w^2 + \epsilon^2 \sum_F w^2}{(P + F)^2},

and a mean is :math:`\mu = \sum w v / \sum w`, of variance :math:`\sum w^2 (v - \mu)^2 / (\sum w)^2`.  Bins are
independent.  With signed weights an efficiency may be below 0 or above 1 and is left so.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calorefine.observables.observable import Mask, Observable
from calorefine.stats import FloatArray, IntArray, spread_of_mean


class _RatioOfSums(Observable):
    """Numerator over denominator in each bin."""

    @abstractmethod
    def parts(self, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Numerators and denominators, (..., n_bins) each, from sums as in `values`."""

    @abstractmethod
    def spread(self, values: FloatArray, sums2: FloatArray) -> FloatArray:
        """Variances (n_bins,) of these values times the squared denominators, from sums as in `covariance`."""

    def totals(self, sums: FloatArray) -> FloatArray:
        """The denominators: (..., n_bins)."""
        return self.parts(sums)[1]

    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Ratios (..., n_bins); see `Observable.values`."""
        numerator, denominator = self.parts(sums)
        return numerator / denominator

    def covariance(self, sums: FloatArray, sums2: FloatArray) -> FloatArray:
        """Covariance (n_bins, n_bins), diagonal; see `Observable.covariance`."""
        return np.diag(self.spread(self.evaluate(sums), sums2) / self.totals(sums) ** 2)


@dataclass(eq=False, repr=False)
class Efficiency(_RatioOfSums):
    """Weighted share of the selected events that pass a condition, in bins of a variable.

    Args:
        passed: condition of the numerator.
        expression: the variable.
    """

    passed: str
    expression: str
    n_sub = 2

    @property
    def value_label(self) -> str:
        """What the values are."""
        return f"efficiency of {self.passed}"

    def conditions(self) -> list[str]:
        """The condition of the numerator."""
        return [self.passed]

    def fill(self, values: Sequence[FloatArray], conditions: Sequence[Mask]) -> tuple[IntArray, list[FloatArray]]:
        """The bin, and in it failed or passed; see `Observable.fill`."""
        return 2 * self.bin_of(values[0]) + conditions[0], [np.ones(len(values[0]))]

    def parts(self, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Sums of those that pass, and of all."""
        inside = self._inside(sums)[..., 0]
        return inside[..., 1], inside.sum(axis=-1)

    def spread(self, values: FloatArray, sums2: FloatArray) -> FloatArray:
        """Binomial spread of the weights."""
        failed, passed = sums2[:, 0, 0].reshape(-1, 2)[1:-1].T
        return np.asarray((1 - values) ** 2 * passed + values**2 * failed)


@dataclass(eq=False, repr=False)
class Mean(_RatioOfSums):
    """Weighted mean of a quantity in bins of a variable.

    The variance is found from the sums of w^2, w^2 v and w^2 v^2; it loses digits where the mean is more than 10^5
    times the standard deviation.

    Args:
        of: the quantity.
        expression: the variable.
    """

    of: str
    expression: str
    n_amounts = 2

    @property
    def value_label(self) -> str:
        """What the values are."""
        return f"mean of {self.of}"

    def expressions(self) -> list[str]:
        """The variable and the quantity."""
        return [self.expression, self.of]

    def fill(self, values: Sequence[FloatArray], conditions: Sequence[Mask]) -> tuple[IntArray, list[FloatArray]]:  # noqa: ARG002
        """The bin, with the amounts 1 and the quantity; see `Observable.fill`."""
        return self.bin_of(values[0]), [np.ones(len(values[0])), values[1]]

    def parts(self, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Sums of w v and of w."""
        inside = self._inside(sums)[..., 0, :]
        return inside[..., 1], inside[..., 0]

    def spread(self, values: FloatArray, sums2: FloatArray) -> FloatArray:
        """Sum of w^2 (v - mean)^2."""
        squares = sums2[1:-1]
        return spread_of_mean(values, squares[:, 0, 0], squares[:, 0, 1], squares[:, 1, 1])
