r"""Histograms.

With the sum of weights :math:`S_b` of each bin, :math:`y_b = S_b`, or as a shape :math:`y_b = S_b / S`, where S is the
sum over all selected events, below and above the edges included.  Then

.. math:: \frac{\partial y_b}{\partial S_c} = \frac{\delta_{bc} - y_b}{S},

so that the values of a shape without events outside the edges sum to 1, and their covariance has rank n - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np

from calorefine.observables.observable import Mask, Observable
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

    def covariance(self, sums: FloatArray, sums2: FloatArray) -> FloatArray:
        """Covariance (n_bins, n_bins); see `Observable.covariance`."""
        squares = sums2[:, 0, 0]
        if self.is_sum:
            return np.diag(squares[1:-1])
        total = sums.sum()
        jacobian = ((np.eye(len(sums)) - (sums / total)[:, None]) / total)[1:-1]
        return np.asarray((jacobian * squares) @ jacobian.T)
