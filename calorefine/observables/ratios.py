r"""Efficiencies and means in bins of a variable: ratios of two sums over the same events.

With the sums P of those that pass and F of those that fail, an efficiency is :math:`\epsilon = P / (P + F)`, with the
variance

.. math:: \frac{(1 - \epsilon)^2 \sum_P w^2 + \epsilon^2 \sum_F w^2}{(P + F)^2},

and a mean is :math:`\mu = \sum w v / \sum w`, of variance :math:`\sum w^2 (v - \mu)^2 / (\sum w)^2`, where events of
equal key are summed before they are squared.  By signed weights an efficiency may be below 0 or above 1.

An efficiency of 0 or 1 has an error too: `UNSEEN` more events of the mean weight on either side, and the interval
of Clopper and Pearson (`binomial_interval`).  So has the mean of a single event: their spread is that of all bins about
their means.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from calorefine.intervals import binomial_interval
from calorefine.observables.observable import BinStatistics, Mask, Observable
from calorefine.stats import FloatArray, IntArray


class _RatioOfSums(Observable):
    """Numerator over denominator in each bin."""

    @abstractmethod
    def parts(self, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Numerators and denominators, (..., n_bins) each, from sums as in `values`."""

    @abstractmethod
    def changes(self, values: FloatArray) -> FloatArray:
        """Derivatives (n_bins, 2) with respect to a bin's two sums, times the denominators."""

    def totals(self, sums: FloatArray) -> FloatArray:
        """The denominators: (..., n_bins)."""
        return self.parts(sums)[1]

    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Ratios (..., n_bins); see `Observable.values`."""
        numerator, denominator = self.parts(sums)
        return numerator / denominator

    def jacobian(self, sums: FloatArray, squares: FloatArray) -> sparse.csr_array:  # noqa: ARG002
        """Derivatives (n_bins, 2 (n_bins + 2)) with respect to both sums of a bin; see `Observable.jacobian`."""
        changes = self.changes(self.evaluate(sums)) / self.totals(sums)[:, None]
        rows, columns = np.repeat(np.arange(self.n_bins), 2), np.arange(2, 2 + 2 * self.n_bins)
        return sparse.csr_array((changes.ravel(), (rows, columns)), shape=(self.n_bins, len(sums)))


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

    def changes(self, values: FloatArray) -> FloatArray:
        """Of those that fail, and that pass."""
        return np.stack([-values, 1 - values], axis=1)

    def unseen(self, sums: FloatArray, squares: FloatArray, variance: FloatArray, bins: BinStatistics) -> FloatArray:  # noqa: ARG002
        """A few more events that pass, and that fail; see `Observable.unseen`."""
        changes = np.sum(self.changes(self.evaluate(sums)) ** 2, axis=1)
        return np.diag(bins.unseen[1:-1] * changes / bins.sum_w[1:-1] ** 2)

    def interval(self, values: FloatArray, variance: FloatArray, errors: FloatArray, bins: BinStatistics) -> FloatArray:
        """Clopper and Pearson's; see `Observable.interval`."""
        return binomial_interval(values, variance, errors, bins.sum_w[1:-1] ** 2 / bins.sum_w2[1:-1])


@dataclass(eq=False, repr=False)
class Mean(_RatioOfSums):
    """Weighted mean of a quantity in bins of a variable.

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

    def changes(self, values: FloatArray) -> FloatArray:
        """Of the weights, and of the weights times the quantity."""
        return np.stack([-values, np.ones(len(values))], axis=1)

    def unseen(self, sums: FloatArray, squares: FloatArray, variance: FloatArray, bins: BinStatistics) -> FloatArray:  # noqa: ARG002
        """A few more events that spread as those of all bins do about their means; see `Observable.unseen`."""
        spread = np.sum(variance * bins.sum_w[1:-1] ** 2) / max(bins.sum_w2[1:-1].sum(), np.finfo(float).tiny)
        return np.diag(bins.unseen[1:-1] * spread / bins.sum_w[1:-1] ** 2)
