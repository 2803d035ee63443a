r"""Calibration of predictions p of a weight's conditional mean: a logistic map that keeps sums of weights by region.

It minimizes the cross entropy, penalized by :math:`\lambda \beta^2 / 2`,

.. math:: \sum_i n_i \, [\ln(1 + e^{\eta_i}) - w_i \eta_i], \quad \eta = \mathrm{logit}(p) + \beta \cdot \phi(x, c, p) ,

which is convex in :math:`\beta` for weights w of any sign, since its second derivative doesn't contain them.  Where the
gradient vanishes, :math:`\sum_i n_i (w_i - q_i) \, \phi_i = \lambda \beta`: sums of :math:`q \phi` are those of the
signed weights, up to the penalty (calibration of weights to known totals: Deville and Sarndal, JASA 87, 376 (1992)).

:math:`\phi` holds 1, the columns, their squares and products, logit(p), and *hats*: functions that are 1 at one of five
to twenty quantiles of the prediction, or ten of a column, and fall to 0 at its neighbors; the first and last stay 1
beyond.  They let q follow the signed sums along each of these into the tails, where two moments know nothing; where
signed weights sum to nothing or less, q goes to 0.  Few of them in small samples: the positive parts of noise in
neighboring intervals add up.  Their number doesn't depend on bootstrap counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from calorefine import stats
from calorefine.errors import FitError
from calorefine.stats import FloatArray, IntArray

_FLOOR = 0.03
"""Predictions are moved this fraction of the mean inside of the bounds, where the logit is finite."""
_RIDGE = 0.5
"""A coefficient of 1 leaves the sum of a standardized column this many of its standard errors off.

The cross entropy takes weights for noisiest where q is near 1/2, but signed ones are as noisy elsewhere: nearly exact
sums (0.03) move q far from the truth where it is near 0 or 1, looser ones (3) leave sums off by 0.4 of their errors.
"""
_SCORE_KNOTS, _EVENTS_PER_KNOT = (5, 20), 200
"""Quantiles of the prediction with hats, at least and at most; one for as many effective events in between."""
_COLUMN_KNOTS, _LEAST_KNOTS, _MOST_KNOTS = 10, 4, 200
"""Quantiles of each column with hats, fewer with so many columns that they are more in all."""
_MOST_PRODUCTS = 20
"""With more columns than that only their squares are calibrated, not their products: the cost is cubic in them."""
_LEAST_DAMPING = 1e-12
_BLOCK = 4096


@dataclass(frozen=True)
class Calibration:
    """Cross entropy of `unit` for the probabilities with offset `start`, with its derivatives, block by block.

    Args:
        table: (n, d) standardized columns.
        places: (n, d + 1) places of the prediction and the columns among their knots, which are at 0, 1, ...
        start: (n,) logit of the predictions.
        unit: (n,) signed weights, in units of the bounds.
        counts: (n,) multiplicities.
        ridge: penalty of all coefficients but the constant's.
    """

    table: FloatArray
    places: FloatArray
    start: FloatArray
    unit: FloatArray
    counts: IntArray
    ridge: float

    @property
    def _pairs(self) -> tuple[IntArray, IntArray]:
        d = self.table.shape[1]
        first, second = np.triu_indices(d) if d <= _MOST_PRODUCTS else (np.arange(d), np.arange(d))
        return first, second

    @cached_property
    def _n_knots(self) -> list[int]:
        return [int(last) + 1 for last in self.places.max(axis=0)]

    def _basis(self, rows: slice) -> FloatArray:
        block, start = self.table[rows], self.start[rows, None]
        first, second = self._pairs
        places = zip(self.places[rows].T, self._n_knots, strict=True)
        hats = [np.maximum(1 - np.abs(place[:, None] - np.arange(n)), 0) for place, n in places]
        return np.concatenate([np.ones_like(start), block, block[:, first] * block[:, second], start, *hats], axis=1)

    def _blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        for low in range(0, len(self.start), _BLOCK):
            rows = slice(low, low + _BLOCK)
            yield rows, self._basis(rows)

    @cached_property
    def scale(self) -> FloatArray:
        """Inverse widths (k,) of the basis, 1 for what is constant: coefficients are for a basis of unit width."""
        sums = sum(
            np.stack([self.counts[rows] @ basis, self.counts[rows] @ basis**2]) for rows, basis in self._blocks()
        )
        mean, square = np.asarray(sums) / self.counts.sum()
        variance = square - mean**2
        varies = variance > 1e-9 * square
        return np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 1.0)

    @cached_property
    def penalty(self) -> FloatArray:
        """Penalty (k,) of each coefficient."""
        return np.append(0.0, np.full(len(self.scale) - 1, self.ridge))

    def derivatives(self, beta: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Value, gradient (k,) and second derivatives (k, k) at coefficients beta (k,)."""
        value, gradient = 0.0, np.zeros_like(beta)
        second = np.zeros((len(beta), len(beta)))
        for rows, basis in self._blocks():
            counts, unit = self.counts[rows], self.unit[rows]
            eta = self.start[rows] + basis @ (beta * self.scale)
            q = expit(eta)
            value += float(counts @ (np.logaddexp(0, eta) - unit * eta))
            gradient += (counts * (q - unit)) @ basis
            second += (basis * (counts * q * (1 - q))[:, None]).T @ basis
        value += 0.5 * float(self.penalty @ beta**2)
        gradient = gradient * self.scale + self.penalty * beta
        return value, gradient, second * np.outer(self.scale, self.scale) + np.diag(self.penalty)

    def probabilities(self, beta: FloatArray) -> FloatArray:
        """Calibrated probabilities (n,)."""
        coefficients = beta * self.scale
        return np.concatenate([expit(self.start[rows] + basis @ coefficients) for rows, basis in self._blocks()])

    def solve(self) -> FloatArray:
        """Minimize by Newton's method, damped where a step overshoots (Levenberg and Marquardt).

        Raises:
            FitError: no convergence in 200 steps.
        """
        n = float(self.counts.sum())
        beta, damping = np.zeros_like(self.scale), _LEAST_DAMPING
        value, gradient, second = self.derivatives(beta)
        for _ in range(200):
            if np.abs(gradient).max() < 1e-11 * n:
                return beta
            step = np.linalg.solve(second + damping * n * np.eye(len(beta)), gradient)
            new = self.derivatives(beta - step)
            if new[0] <= value - 1e-4 * (gradient @ step) + 1e-14 * (n + abs(value)):
                beta, (value, gradient, second), damping = beta - step, new, max(damping / 10, _LEAST_DAMPING)
            else:
                damping = max(10 * damping, 1e-6)
        raise FitError("positive weights: the calibration of the predictions does not converge in 200 steps")


def varying(table: FloatArray) -> NDArray[np.bool_]:
    """Which columns (d,) are not constant."""
    varies: NDArray[np.bool_] = table.min(axis=0) < table.max(axis=0)
    return varies


def _place(values: FloatArray, counts: IntArray, n_knots: int) -> FloatArray:
    """Places (n,) of values among their quantiles, linear in between, constant beyond the first and the last."""
    knots = np.unique(stats.quantile(values, counts, (np.arange(n_knots) + 0.5) / n_knots))
    return np.interp(values, knots, np.arange(len(knots)))


def calibrated(table: FloatArray, raw: FloatArray, unit: FloatArray, counts: IntArray) -> FloatArray:
    """Probabilities (n,) from raw predictions: within 0 and 1, with the weights' sum and nearly those of all regions.

    Args:
        table: (n, d) columns.
        raw: (n,) cross-fitted predictions in units of the bounds.
        unit: (n,) signed weights in these units.
        counts: (n,) multiplicities.
    """
    width = np.sqrt(np.diag(stats.covariance(table, counts)))
    varies = varying(table[counts > 0])
    standardized = np.where(varies, (table - stats.mean(table, counts)) / np.where(varies, width, 1.0), 0.0)
    n_knots = min(_COLUMN_KNOTS, max(_MOST_KNOTS // max(table.shape[1], 1), _LEAST_KNOTS))
    n_scores = int(np.clip(stats.n_eff(unit) / _EVENTS_PER_KNOT, *_SCORE_KNOTS))
    places = [_place(raw, counts, n_scores), *(_place(column, counts, n_knots) for column in table.T)]
    mean = float(stats.mean(unit, counts))
    floor = _FLOOR * min(mean, 1 - mean)
    inside = np.clip(raw, floor, 1 - floor)
    error = np.sqrt(stats.sum_w((unit - inside) ** 2 * counts))
    ridge = max(_RIDGE * error, 1e-3)
    problem = Calibration(standardized, np.stack(places, axis=1), logit(inside), unit, counts, ridge)
    return problem.probabilities(problem.solve())
