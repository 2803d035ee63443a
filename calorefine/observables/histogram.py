r"""Histograms.

With the sum of weights :math:`S_b` of each bin, :math:`y_b = S_b`, or as a shape :math:`y_b = S_b / S`, where S is the
sum over all selected events, below and above the edges included.  Then

.. math:: \frac{\partial y_b}{\partial S_c} = \frac{\delta_{bc} - y_b}{S},

so that the values of a shape without events outside the edges sum to 1, and their covariance has rank n - 1.

Intervals are Garwood's for a sum, with the number of events of equal weight that has the same relative error (Bohm and
Zech, arXiv:1309.1287), and Clopper and Pearson's for a share (`binomial_interval`).  An empty bin has the limits of no
event of the mean weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
from scipy import sparse

from calorefine.intervals import binomial_interval, count_interval
from calorefine.observables.observable import BinStatistics, Mask, Observable
from calorefine.stats import FloatArray, IntArray

Normalize = Literal["none", "unit"]


@dataclass(eq=False, repr=False)
class Histogram(Observable):
    """Sum of the weights in bins of a variable (not divided by bin widths).

    Args:
        expression: the variable.
        normalize: "unit" to divide by the sum of the weights of all selected events, also beyond the edges.
    """

    expression: str
    _: KW_ONLY
    normalize: Normalize = "none"

    @property
    def value_label(self) -> str:
        """What the values are."""
        return "sum of weights" if self.normalize == "none" else "share of the sum of weights"

    @property
    def is_sum(self) -> bool:
        """Whether the values are sums of weights, and not shares."""
        return self.normalize == "none"

    def fill(self, values: Sequence[FloatArray], conditions: Sequence[Mask]) -> tuple[IntArray, list[FloatArray]]:  # noqa: ARG002
        """The bin; see `Observable.fill`."""
        return self.bin_of(values[0]), [np.ones(len(values[0]))]

    def totals(self, sums: FloatArray) -> FloatArray:
        """The sum over all bins of a shape: (..., 1)."""
        return sums[..., :0] if self.is_sum else sums.sum(axis=-1, keepdims=True)

    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Sums or shares (..., n_bins); see `Observable.values`."""
        return sums[..., 1:-1] if self.is_sum else sums[..., 1:-1] / sums.sum(axis=-1, keepdims=True)

    def jacobian(self, sums: FloatArray, squares: FloatArray) -> sparse.csr_array:  # noqa: ARG002
        """Derivatives (n_bins, n_bins + 2); see `Observable.jacobian`."""
        if self.is_sum:
            return sparse.eye_array(len(sums), format="csr")[1:-1]
        return sparse.csr_array(self._of_share(sums))

    def unseen(self, sums: FloatArray, squares: FloatArray, variance: FloatArray, bins: BinStatistics) -> FloatArray:  # noqa: ARG002
        """A few more events in each bin, and beyond the edges if some are there; see `Observable.unseen`."""
        if self.is_sum:
            return np.diag(bins.unseen[1:-1])
        jacobian = self._of_share(sums)
        return np.asarray((jacobian * bins.unseen) @ jacobian.T)

    def interval(self, values: FloatArray, variance: FloatArray, errors: FloatArray, bins: BinStatistics) -> FloatArray:
        """Garwood's, or Clopper and Pearson's for a share; see `Observable.interval`."""
        if self.is_sum:
            return count_interval(values, variance, errors, np.sqrt(bins.w2[1:-1]))
        return binomial_interval(values, variance, errors, bins.sum_w.sum() ** 2 / bins.sum_w2.sum())

    def _of_share(self, sums: FloatArray) -> FloatArray:
        total = sums.sum()
        return np.asarray(((np.eye(len(sums)) - (sums / total)[:, None]) / total)[1:-1])
