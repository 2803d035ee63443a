r"""The mean weight of generated events at given context, which is 1 for the ratio of two conditional densities.

A log ratio estimated from finite samples has a mean :math:`N(c) = E[r(x, c) | c]` over generated x that is only about
1.  It is estimated by a Poisson regression of r on the context, with log N a sum of piecewise linear functions of each
column and of products of two, and the ratio is divided by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from sklearn.linear_model import PoissonRegressor  # type: ignore[import-untyped]  # no stubs, no py.typed

from calorefine import stats
from calorefine.errors import FitError
from calorefine.stats import FloatArray

EVENTS_PER_KNOT, FEWEST, MOST = 100, 9, 33  # as fine as ratios are, whose tilts have up to 40 hats in each column
REGULARIZATION = 1e-6


@dataclass(frozen=True)
class MeanWeight:
    """Mean weight as a function of context.

    Args:
        knots: for each context column the points between which log N is linear; it is constant beyond the last.
        coefficients: (p,) of the terms.
        intercept: of log N.
    """

    knots: list[FloatArray]
    coefficients: FloatArray
    intercept: float

    @classmethod
    def fit(cls, context: NDArray[np.float32], ratio: FloatArray, weight: FloatArray) -> MeanWeight:
        """Regress the ratio on the context.

        Args:
            context: (n, c); without columns the mean is one number.
            ratio: (n,) positive.
            weight: (n,) not negative, of the events.

        Raises:
            FitError: the regression fails.
        """
        average = float(stats.mean(ratio, weight))
        per_column = stats.n_eff(weight) / EVENTS_PER_KNOT / max(context.shape[1], 1)
        inner = ndtr(np.linspace(-2.4, 2.4, int(np.clip(per_column, FEWEST, MOST))))  # dense at the edges
        knots = [np.unique(stats.quantile(column, weight, np.array([0.0, *inner, 1.0]))) for column in context.T]
        terms = _terms(context, knots)
        if terms.shape[1] == 0:
            return cls(knots, np.zeros(0), float(np.log(average)))
        model = PoissonRegressor(alpha=REGULARIZATION, solver="newton-cholesky", tol=1e-10)
        model.fit(terms, ratio / average, sample_weight=weight / weight.mean())
        if not (np.all(np.isfinite(model.coef_)) and np.isfinite(model.intercept_)):
            raise FitError("mean weight at given context: the regression on the context gave NaN or infinite numbers")
        return cls(knots, model.coef_, float(model.intercept_) + float(np.log(average)))

    def log(self, context: NDArray[np.float32]) -> FloatArray:
        """Log of the mean weight (n,) at context (n, c)."""
        return np.asarray(self.intercept + _terms(context, self.knots) @ self.coefficients)

    def state(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        knots, coefficients = [torch.from_numpy(points) for points in self.knots], torch.from_numpy(self.coefficients)
        return {"knots": knots, "coefficients": coefficients, "intercept": self.intercept}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> MeanWeight:
        """Inverse of `state`."""
        return cls([points.numpy() for points in state["knots"]], state["coefficients"].numpy(), state["intercept"])


def _terms(context: NDArray[np.float32], knots: list[FloatArray]) -> FloatArray:
    """Terms (n, p): a hat function for each knot but the first of each column, and products of two columns' ranks."""
    n = len(context)
    ranks = [np.interp(column, points, np.arange(len(points))) for column, points in zip(context.T, knots, strict=True)]
    hats = [
        np.maximum(0, 1 - np.abs(rank[:, None] - np.arange(1, len(p)))) for rank, p in zip(ranks, knots, strict=True)
    ]
    scaled = [rank / max(len(points) - 1, 1) - 0.5 for rank, points in zip(ranks, knots, strict=True)]
    products = [(a * b)[:, None] for a, b in combinations(scaled, 2)]
    return np.concatenate([np.zeros((n, 0)), *hats, *products], axis=1)
