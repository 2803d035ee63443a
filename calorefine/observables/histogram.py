r"""Histograms.

With the sum of weights :math:`S_b` of each bin, :math:`y_b = S_b`, or as a shape :math:`y_b = S_b / S`, where S is the
sum over all selected events, below and above the edges included.  Then

.. math:: \frac{\partial y_b}{\partial S_c} = \frac{\delta_{bc} - y_b}{S},

so that the values of a shape without events outside the edges sum to 1, and their covariance has rank n - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calorefine.observables.observable import Observable, Regular
from calorefine.stats import FloatArray, IntArray

Normalize = Literal["none", "unit"]


class Histogram(Observable):
    """Sum of the weights in bins of a variable (not divided by bin widths)."""

    def __init__(
        self,
        expression: str,
        *,
        bins: Regular | None = None,
        edges: list[float] | None = None,
        selection: str | None = None,
        normalize: Normalize = "none",
        title: str | None = None,
        unit: str | None = None,
    ) -> None:
        """Check the options.

        Args:
            expression: the variable.
            bins: bins of equal width; or else
            edges: edges of the bins.
            selection: condition on events.
            normalize: "unit" to divide by the sum of the weights of all selected events, also beyond the edges.
            title: name of the variable in plots; the expression if left out.
            unit: its unit; taken from the suffix of a branch such as `p_gev` if left out.
        """
        super().__init__(expression, bins=bins, edges=edges, selection=selection, title=title, unit=unit)
        self.normalize = normalize

    @property
    def value_label(self) -> str:
        """What the values are."""
        return "sum of weights" if self.normalize == "none" else "share of the sum of weights"

    def fill(
        self,
        values: Sequence[FloatArray],
        conditions: Sequence[NDArray[np.bool_]],  # noqa: ARG002
    ) -> tuple[IntArray, list[FloatArray | None]]:
        """The bin; see `Observable.fill`."""
        return self.binning.index(values[0]), [None]

    def totals(self, sums: FloatArray) -> FloatArray:
        """The sum over all bins of a shape: (..., 1)."""
        return sums[..., :0] if self.normalize == "none" else sums.sum(axis=-1, keepdims=True)

    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Sums or shares (..., n_bins); see `Observable.values`."""
        inside = sums[..., 1:-1]
        return inside if self.normalize == "none" else inside / sums.sum(axis=-1, keepdims=True)

    def covariance(self, sums: FloatArray, sums2: FloatArray) -> FloatArray:
        """Covariance (n_bins, n_bins); see `Observable.covariance`."""
        return self.with_flow(sums, sums2)[1][1:-1, 1:-1]

    def with_flow(self, sums: FloatArray, sums2: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values (n_bins + 2,) and their covariance, with the bins below and above the edges."""
        squares = sums2[:, 0, 0]
        if self.normalize == "none":
            return sums, np.diag(squares)
        total = sums.sum()
        jacobian = (np.eye(len(sums)) - (sums / total)[:, None]) / total
        return sums / total, (jacobian * squares) @ jacobian.T

    def options(self) -> dict[str, Any]:
        """The normalization."""
        return {"normalize": self.normalize}
