r"""Tilts: factors on generated events that give them the reference's means of some functions, and those of replicas.

The functions, or *terms*, are hat functions of each column, and products of coarser ones of two columns.  What a
classifier leaves in them is taken out by exponential tilting: weights :math:`u_i e^{\beta \cdot b_i}` of the generated
events whose means of the terms b are the reference's,

.. math:: \frac{\sum_i u_i e^{\beta \cdot b_i} b_i}{\sum_i u_i e^{\beta \cdot b_i}} = m =
          \frac{\sum_j w_j b_j}{\sum_j w_j} .

They are what minimizes a convex function, with a penalty as from one effective event, which matters where hardly any
reference event is.  Reference weights enter in m alone, and may have any sign.

A *replica* of the reference has other means :math:`m + d`.  Its weights are the nominal ones times :math:`1 + \gamma
\cdot b`, which is linear in d: :math:`\gamma = C^{-1} d` with the covariance C of the terms.  There is no training and
no penalty in it, so that any average of the terms moves as much as the replica's.  How much other averages follow is
the *slope*: of a known shift in bins of a column, the part that is recovered.  It is the share of the bin's variance
that the terms explain.

Terms of given columns alone, the context of a conditional correction, take up what a replica's context is different in.
They are projected out of the others, so that the mean of :math:`\gamma \cdot b` is 0 at given context.

References: Deville and Saerndal, J. Am. Stat. Assoc. 87 (1992) 376 (calibration of weights, exponential and linear);
Sugiyama et al., doi:10.1007/s10463-008-0197-x (density ratio by this objective).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from scipy.optimize import minimize

from calorefine import stats
from calorefine.errors import FitError
from calorefine.stats import FloatArray

MOST_FINE, MOST_COARSE = 40, 16
_BLOCK_ROWS = 20_000
TOLERANCE = 1e-6  # of the means, before a last step
LEAST_SLOPE = 0.9
Sample = tuple[NDArray[np.float32], FloatArray]  # rows (n, d) and weights (n,)
EPSILON = 1e-9  # of the largest eigenvalue: terms that depend on others


@dataclass(frozen=True)
class Detail:
    """How many terms a sample bears.

    Args:
        events_per_hat: effective ones, at least.
        events_per_product: likewise.
        most_products: of all pairs of columns together.
        most_error: of the coefficient of one term alone; terms that are known less well are left out.
    """

    events_per_hat: int
    events_per_product: int
    most_products: int
    most_error: float


NOMINAL = Detail(40, 100, 300, 0.25)  # each term adds to the variance of the corrected density
COPIES = Detail(20, 20, 600, 0.5)  # an average of a linear tilt has no more variance for more terms


@dataclass(frozen=True)
class Terms:
    """Hat functions of columns, and products of two columns' coarser ones.

    Args:
        fine: for each column the points between which its terms are linear; they are constant beyond the last.
        coarse: those of the functions that products are made of.
        n_free: number of columns before those that are given.
        kept: which of all these terms (p,) to take; all, if left out.
    """

    fine: list[FloatArray]
    coarse: list[FloatArray]
    n_free: int
    kept: NDArray[np.bool_] | None = None

    @classmethod
    def chosen(cls, generated: Sample, reference: Sample, n_free: int, detail: Detail = NOMINAL) -> Terms:
        """As many as the effective number of events bears, and the reference knows well enough.

        Args:
            generated: columns (n, d) and weights (n,) that are not negative; points are quantiles of these events.
            reference: columns (m, d) and weights (m,) of any sign.
            n_free: number of columns before those that are given.
            detail: how many.
        """
        (table, weight), d = generated, generated[0].shape[1]
        n_eff = min(stats.n_eff(weight), stats.n_eff(reference[1]))
        pairs = max(d * (d - 1) // 2, 1)
        products = min(n_eff / detail.events_per_product, detail.most_products)
        fine = int(np.clip(n_eff / detail.events_per_hat / d, 2, MOST_FINE))
        coarse = int(np.clip(np.sqrt(products / pairs), 1, MOST_COARSE))
        levels = [(np.arange(size + 1) + 0.5) / (size + 1) for size in (fine, coarse)]  # ends with enough events
        fine_points, coarse_points = (
            [np.unique(stats.quantile(column, weight, one)) for column in table.T] for one in levels
        )
        terms = cls(fine_points, coarse_points, n_free)
        own, other = Weighted(terms, *generated), Weighted(terms, *reference)
        error = np.sqrt(np.diag(replace(other, weight=other.weight**2).squares()) * stats.sum_w2(reference[1]))
        error /= stats.sum_w(reference[1])
        return replace(terms, kept=error < detail.most_error * np.diag(own.squares()))

    def __call__(self, table: NDArray[np.float32]) -> FloatArray:
        """Terms (n, p), a constant 1 first."""
        hats = [_hats(*pair) for pair in zip(table.T, self.fine, strict=True)]
        coarse = [_hats(*pair) for pair in zip(table.T, self.coarse, strict=True)]
        products = [(a[:, :, None] * b[:, None, :]).reshape(len(table), -1) for a, b in combinations(coarse, 2)]
        return np.concatenate([np.ones((len(table), 1)), *hats, *products], axis=1)[:, self._kept]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        points = {name: [one.tolist() for one in getattr(self, name)] for name in ("fine", "coarse")}
        return {**points, "n_free": self.n_free, "kept": None if self.kept is None else self.kept.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Terms:
        """Inverse of `to_dict`."""
        fine, coarse = ([np.array(points) for points in values[name]] for name in ("fine", "coarse"))
        return cls(fine, coarse, values["n_free"], None if values["kept"] is None else np.array(values["kept"]))

    @property
    def _kept(self) -> NDArray[np.bool_] | slice:
        return slice(None) if self.kept is None else self.kept

    @property
    def given(self) -> NDArray[np.bool_]:
        """Which terms (p,) are functions of the given columns alone."""
        columns = np.arange(len(self.fine)) >= self.n_free
        hats = np.repeat(columns, [len(points) - 1 for points in self.fine])
        sizes = [len(points) - 1 for points in self.coarse]
        products = [np.full(sizes[i] * sizes[j], columns[i]) for i, j in combinations(range(len(sizes)), 2)]
        return np.concatenate([[True], hats, *products]).astype(bool)[self._kept]


def _hats(column: NDArray[np.float32], points: FloatArray) -> FloatArray:
    """Hat functions (n, k - 1) of all points but the first."""
    rank = np.interp(column, points, np.arange(len(points)))
    return np.asarray(np.maximum(0, 1 - np.abs(rank[:, None] - np.arange(1, len(points)))))


@dataclass(frozen=True)
class Weighted:
    """Rows of a sample, whose terms are made block by block.

    Args:
        terms: functions of the columns.
        table: (n, d) columns.
        weight: (n,) or (n, K); means divide by their sums.
    """

    terms: Terms
    table: NDArray[np.float32]
    weight: FloatArray

    def means(self) -> FloatArray:
        """Means of the terms, (p,) or (p, K)."""
        parts = [self.terms(self.table[rows]).T @ self.weight[rows] for rows in self._blocks()]
        return np.asarray(np.sum(parts, axis=0) / np.sum(self.weight, axis=0))

    def squares(self) -> FloatArray:
        """Means of products of two terms (p, p), for weights (n,)."""
        out: FloatArray = np.zeros(())
        for rows in self._blocks():
            b = self.terms(self.table[rows])
            out = out + b.T @ (b * self.weight[rows, None])
        return out / stats.sum_w(self.weight)

    def combined(self, coefficients: FloatArray) -> FloatArray:
        """Sums of the terms, (n,) or (n, K), with these coefficients (p,) or (p, K)."""
        parts = [self.terms(self.table[rows]) @ coefficients for rows in self._blocks()]
        return np.concatenate(parts) if parts else np.zeros((0, *coefficients.shape[1:]))

    def products(self, functions: FloatArray) -> FloatArray:
        """Means of products of the terms and of functions (n, m): (p, m)."""
        parts = [self.terms(self.table[r]).T @ (functions[r] * self.weight[r, None]) for r in self._blocks()]
        return np.asarray(np.sum(parts, axis=0) / stats.sum_w(self.weight))

    def _blocks(self) -> list[slice]:
        return [slice(first, first + _BLOCK_ROWS) for first in range(0, len(self.table), _BLOCK_ROWS)]


def exponential(generated: Weighted, reference: Weighted) -> FloatArray:
    """Coefficients (p,) of the exponential tilt that gives generated events the reference's means of the terms.

    Args:
        generated: weights (n,) that are not negative.
        reference: weights (m,) of any sign, positive sum.

    Raises:
        FitError: there is no solution, which happens with numbers that are not finite only.
    """
    share, wanted = generated.weight / stats.sum_w(generated.weight), reference.means()
    n_eff = min(stats.n_eff(sample.weight) for sample in (generated, reference))

    def tilted(beta: FloatArray) -> Weighted:
        return replace(generated, weight=share * np.exp(generated.combined(beta)))

    def objective(beta: FloatArray) -> tuple[float, FloatArray]:
        now = tilted(beta)
        total = stats.sum_w(now.weight)
        return float(total - wanted @ beta + beta @ beta / (2 * n_eff)), total * now.means() - wanted + beta / n_eff

    def curvature(beta: FloatArray) -> FloatArray:
        now = tilted(beta)
        return stats.sum_w(now.weight) * now.squares() + np.eye(len(beta)) / n_eff

    start = np.zeros(len(wanted))
    options = {"gtol": TOLERANCE, "max_trust_radius": 10.0}
    found = minimize(objective, start, jac=True, hess=curvature, method="trust-exact", options=options)
    if not (found.success and np.all(np.isfinite(found.x))):
        raise FitError(f"tilt of {len(wanted)} terms: the fit ended with '{found.message}'")
    return np.asarray(found.x - linalg.solve(curvature(found.x), objective(found.x)[1], assume_a="pos"))


def shift_coefficients(squares: FloatArray, shifts: FloatArray, given: NDArray[np.bool_]) -> FloatArray:
    """Coefficients (p, K) of linear tilts that shift the means of the terms by as much, of mean 0 at given columns.

    Args:
        squares: (p, p) means of products of the terms, of generated events with the reference's law.
        shifts: (p, K) of the means.
        given: (p,) terms of given columns alone.
    """
    out = linalg.pinvh(squares, rtol=EPSILON) @ shifts
    projection = linalg.pinvh(squares[np.ix_(given, given)], rtol=EPSILON) @ squares[np.ix_(given, ~given)]
    out[given] = -projection @ out[~given]
    return np.asarray(out)


@dataclass(frozen=True)
class Tilt:
    """Sums of terms with these coefficients, (p,) or (p, K)."""

    terms: Terms
    coefficients: FloatArray

    def __call__(self, table: NDArray[np.float32]) -> FloatArray:
        """Sums, (n,) or (n, K), of rows (n, d)."""
        return Weighted(self.terms, table, np.ones(len(table))).combined(self.coefficients)

    def state(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        points = {name: [torch.from_numpy(p) for p in getattr(self.terms, name)] for name in ("fine", "coarse")}
        kept = self.terms.kept if self.terms.kept is None else torch.from_numpy(self.terms.kept)
        return {
            **points,
            "n_free": self.terms.n_free,
            "kept": kept,
            "coefficients": torch.from_numpy(self.coefficients),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Tilt:
        """Inverse of `state`."""
        fine, coarse = ([points.numpy() for points in state[name]] for name in ("fine", "coarse"))
        return cls(Terms(fine, coarse, state["n_free"], state["kept"].numpy()), state["coefficients"].numpy())
