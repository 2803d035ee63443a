r"""Efficiencies and means in bins of a variable: ratios of two sums over the same events.

With the sums P of those that pass and F of those that fail, an efficiency is :math:`\epsilon = P / (P + F)`, with the
variance

.. math:: \frac{(1 - \epsilon)^2 \sum_P w^2 + \epsilon^2 \sum_F w^2}{(P + F)^2},

and a mean is :math:`\mu = \sum w v / \sum w`, of variance :math:`\sum w^2 (v - \mu)^2 / (\sum w)^2`.  Bins are
independent.  With signed weights an efficiency may be below 0 or above 1 and is left so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.io import reductions
from calorefine.observables.observable import Observable, Regular
from calorefine.stats import FloatArray, IntArray, spread_of_mean


class Efficiency(Observable):
    """Weighted share of the selected events that pass a condition, in bins of a variable."""

    n_sub = 2

    def __init__(
        self,
        passed: str,
        expression: str,
        *,
        bins: Regular | None = None,
        edges: list[float] | None = None,
        selection: str | None = None,
        title: str | None = None,
        unit: str | None = None,
    ) -> None:
        """Check the options.

        Args:
            passed: condition of the numerator.
            expression: the variable.
            bins: bins of equal width; or else
            edges: edges of the bins.
            selection: condition of numerator and denominator.
            title: name of the variable in plots; the expression if left out.
            unit: its unit; taken from the suffix of a branch such as `p_gev` if left out.
        """
        super().__init__(expression, bins=bins, edges=edges, selection=selection, title=title, unit=unit)
        reductions.branches(passed)
        self.passed = passed

    @property
    def value_label(self) -> str:
        """What the values are."""
        return f"efficiency of {self.passed}"

    def conditions(self) -> list[str]:
        """The condition of the numerator."""
        return [self.passed]

    def fill(
        self, values: Sequence[FloatArray], conditions: Sequence[NDArray[np.bool_]]
    ) -> tuple[IntArray, list[FloatArray | None]]:
        """The bin, and in it failed or passed; see `Observable.fill`."""
        return 2 * self.binning.index(values[0]) + conditions[0], [None]

    def totals(self, sums: FloatArray) -> FloatArray:
        """The denominators: (..., n_bins)."""
        return np.asarray(self._inside(sums).sum(axis=-1))

    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Efficiencies (..., n_bins); see `Observable.values`."""
        return self._inside(sums)[..., 1] / self.totals(sums)

    def covariance(self, sums: FloatArray, sums2: FloatArray) -> FloatArray:
        """Covariance (n_bins, n_bins), diagonal; see `Observable.covariance`."""
        squares, efficiency = self._inside(sums2[:, 0, 0]), self.evaluate(sums)
        variance = (1 - efficiency) ** 2 * squares[:, 1] + efficiency**2 * squares[:, 0]
        return np.diag(variance / self.totals(sums) ** 2)

    def _inside(self, sums: FloatArray) -> FloatArray:
        """Sums of those that fail and pass (..., n_bins, 2)."""
        return self._cells(sums)[..., 1:-1, :, 0]

    def options(self) -> dict[str, Any]:
        """The condition of the numerator."""
        return {"passed": self.passed}


class Mean(Observable):
    """Weighted mean of a quantity in bins of a variable.

    The variance is found from the sums of w^2, w^2 v and w^2 v^2; it loses digits where the mean is more than 10^5
    times the standard deviation.
    """

    n_amounts = 2

    def __init__(
        self,
        of: str,
        expression: str,
        *,
        bins: Regular | None = None,
        edges: list[float] | None = None,
        selection: str | None = None,
        title: str | None = None,
        unit: str | None = None,
    ) -> None:
        """Check the options.

        Args:
            of: the quantity.
            expression: the variable.
            bins: bins of equal width; or else
            edges: edges of the bins.
            selection: condition on events.
            title: name of the variable in plots; the expression if left out.
            unit: its unit; taken from the suffix of a branch such as `p_gev` if left out.
        """
        super().__init__(expression, bins=bins, edges=edges, selection=selection, title=title, unit=unit)
        reductions.branches(of)
        self.of = of

    @property
    def value_label(self) -> str:
        """What the values are."""
        return f"mean of {self.of}"

    def expressions(self) -> list[str]:
        """The variable and the quantity."""
        return [self.binning.expression, self.of]

    def fill(
        self,
        values: Sequence[FloatArray],
        conditions: Sequence[NDArray[np.bool_]],  # noqa: ARG002
    ) -> tuple[IntArray, list[FloatArray | None]]:
        """The bin, with the amounts 1 and the quantity; see `Observable.fill`."""
        return self.binning.index(values[0]), [None, values[1]]

    def totals(self, sums: FloatArray) -> FloatArray:
        """The sums of weights: (..., n_bins)."""
        return self._inside(sums)[..., 0]

    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Means (..., n_bins); see `Observable.values`."""
        return self._inside(sums)[..., 1] / self.totals(sums)

    def covariance(self, sums: FloatArray, sums2: FloatArray) -> FloatArray:
        """Covariance (n_bins, n_bins), diagonal; see `Observable.covariance`."""
        mean, squares = self.evaluate(sums), sums2[1:-1]
        variance = spread_of_mean(mean, squares[:, 0, 0], squares[:, 0, 1], squares[:, 1, 1])
        return np.diag(variance / self.totals(sums) ** 2)

    def _inside(self, sums: FloatArray) -> FloatArray:
        """Sums of w and w v (..., n_bins, 2)."""
        return self._cells(sums)[..., 1:-1, 0, :]

    def options(self) -> dict[str, Any]:
        """The quantity."""
        return {"of": self.of}
