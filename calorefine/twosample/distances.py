r"""Distances of two weighted samples, column by column and sliced, with their null distributions.

With the weighted distribution functions :math:`F_a(t) = \sum_i w_i 1[x_i \le t] / \sum_i w_i` and :math:`F_b`, and
their difference D,

.. math:: \mathrm{KS} = \max_t |D(t)|, \qquad W_1 = \int |D(t)| \, dt, \qquad
          \mathrm{energy} = 2 \int D(t)^2 \, dt .

Weights may be negative: D needs no monotone functions.  How large these are by accident is simulated by a multiplier
bootstrap.  In a replicate, an event has a multiplier m of mean 0 and variance 1, and D becomes

.. math:: D^*(t) = \sum_{i \in a} \frac{m_i w_i (1[x_i \le t] - F_a(t))}{\sum w} - \text{(the same for b)} ,

which fluctuates as D does where the samples agree, for any weights.  Each sample is centered at its own distribution
function: then the weighted multipliers, not the difference to be tested, are all that moves D*.  The p-value is
(1 + number of replicates at least as large) / (1 + number of replicates).

**Equal event keys share a multiplier.**  Candidates of an event, copies generated at one condition, and an event with
its twin generated at the same condition then fluctuate together as they do in truth, and the noise of the conditions
that both samples share cancels.  Where equal keys are an accident, their covariance is 0 in expectation: the p-value
stays right.

Weights count as given functions of the events.  What a fit to the same events adds (sWeights) is left out; the sum of
weights, which it changes most, cancels.

References: van der Vaart and Wellner, Weak Convergence and Empirical Processes (1996), chapter 2.9; Szekely and Rizzo,
doi:10.1016/j.jspi.2013.03.018; Bonneel et al., doi:10.1007/s10851-014-0506-3 (sliced Wasserstein).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from calorefine import keys, stats
from calorefine.errors import ConfigError, EmptySelectionError
from calorefine.stats import FloatArray, IntArray

GRID_POINTS = 2000
N_REPLICATES = 200
N_DIRECTIONS = 50
_BLOCK = 100  # replicates whose multipliers are in memory at a time


@dataclass(frozen=True)
class Points:
    """Weighted points.

    Args:
        values: (n, k), or (n,) for one column.
        weight: (n,), any sign, positive sum.
        key: (n,) uint64 event keys.

    Raises:
        EmptySelectionError: no point.
        WeightError: the weights don't have a positive sum.
    """

    values: NDArray[np.floating]
    weight: FloatArray
    key: keys.KeyArray

    def __post_init__(self) -> None:
        """Check the weights, and make one column a table."""
        if len(self.weight) == 0:
            raise EmptySelectionError("distances: a sample has no events, expected some")
        stats.require_positive_sum(self.weight, "distances")
        if self.values.ndim == 1:
            object.__setattr__(self, "values", self.values[:, None])


@dataclass(frozen=True)
class Distance:
    """A distance and the probability to find one as large where both samples have the same distribution."""

    value: float
    p_value: float


@dataclass(frozen=True)
class ColumnDistances:
    """Distances in one column: KS has no unit, the others have the column's."""

    ks: Distance
    wasserstein: Distance
    energy: Distance


def ks_distance(a: FloatArray, b: FloatArray, *, weights: tuple[FloatArray, FloatArray]) -> float:
    r"""Kolmogorov and Smirnov's :math:`\max_t |F_a(t) - F_b(t)|`.

    Args:
        a: (n,) values.
        b: (m,) values.
        weights: (n,) and (m,), any sign, positive sums; scale is irrelevant.

    Raises:
        WeightError: weights without a positive sum.
    """
    return float(np.abs(_exact(a, b, weights)[0]).max())


def wasserstein_distance(a: FloatArray, b: FloatArray, *, weights: tuple[FloatArray, FloatArray]) -> float:
    r"""Wasserstein-1 distance :math:`\int |F_a - F_b| dt`, in the values' unit; arguments as for `ks_distance`."""
    difference, step = _exact(a, b, weights)
    return float(np.abs(difference) @ step)


def energy_distance(a: FloatArray, b: FloatArray, *, weights: tuple[FloatArray, FloatArray]) -> float:
    r"""Energy distance :math:`2 E|a-b| - E|a-a'| - E|b-b'| = 2 \int (F_a - F_b)^2 dt`, in the unit of the values.

    It is the plug-in form of `calorefine.losses.energy_distance` in one dimension and the square of
    ``scipy.stats.energy_distance``; arguments as for `ks_distance`.
    """
    difference, step = _exact(a, b, weights)
    return float(2 * difference**2 @ step)


def compare_columns(
    a: Points, b: Points, *, n_replicates: int = N_REPLICATES, seed: int = 0
) -> tuple[ColumnDistances, ...]:
    """Distances in each column, with p-values.

    Values are exact.  p-values compare D with its replicates on a grid: all distinct values of the pooled sample, or
    their `GRID_POINTS` quantiles if there are more.

    Args:
        a: one sample, k columns.
        b: the other one.
        n_replicates: of the multiplier bootstrap; the smallest p-value is 1 / (1 + n_replicates).
        seed: of the multipliers.

    Returns:
        One for each column.

    Raises:
        ConfigError: no replicates, or samples of different columns.
    """
    seen, null = null_distances(a, b, n_replicates=n_replicates, seed=seed)
    p_values = _p_values(seen, null)
    found = []
    for column, p in enumerate(p_values.tolist()):
        pair = a.values[:, column].astype(np.float64), b.values[:, column].astype(np.float64)
        exact = [f(*pair, weights=(a.weight, b.weight)) for f in (ks_distance, wasserstein_distance, energy_distance)]
        found.append(ColumnDistances(*(Distance(value, one) for value, one in zip(exact, p, strict=True))))
    return tuple(found)


def sliced_wasserstein(
    a: Points,
    b: Points,
    *,
    n_directions: int = N_DIRECTIONS,
    n_replicates: int = N_REPLICATES,
    seed: int = 0,
) -> Distance:
    """Wasserstein-1 distance of the projections on random directions, averaged over the directions, with its p-value.

    Computed on the grid of `compare_columns`.

    Args:
        a: one sample, k columns of comparable scale, such as from `standardized`.
        b: the other one.
        n_directions: uniform on the unit sphere, the same for the same seed and k.
        n_replicates: of the multiplier bootstrap.
        seed: of directions and multipliers.

    Raises:
        ConfigError: no replicates or directions, or samples of different columns.
    """
    if n_directions < 1:
        raise ConfigError(f"n_directions: {n_directions} found, expected at least 1")
    axes = np.random.default_rng(seed).normal(size=(a.values.shape[1], n_directions))
    axes /= np.linalg.norm(axes, axis=0)
    projected = [Points(points.values @ axes, points.weight, points.key) for points in (a, b)]
    seen, null = null_distances(*projected, n_replicates=n_replicates, seed=seed)
    means, replicas = seen.mean(axis=0), null.mean(axis=1)
    return Distance(float(means[1]), float(_p_values(means, replicas)[1]))


def null_distances(a: Points, b: Points, *, n_replicates: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """KS, W1 and energy distance of each column on a grid, and their replicates.

    Returns:
        (k, 3) and (n_replicates, k, 3).

    Raises:
        ConfigError: no replicates, or samples of different columns.
    """
    if n_replicates < 1:
        raise ConfigError(f"n_replicates: {n_replicates} found, expected at least 1")
    if a.values.shape[1] != b.values.shape[1]:
        raise ConfigError(f"samples of {a.values.shape[1]} and {b.values.shape[1]} columns, expected equal numbers")
    columns = [_OnGrid.of(a, b, column) for column in range(a.values.shape[1])]
    seen = np.stack([_three(one.difference[:, None], one.step)[0] for one in columns])
    blocks = []
    for number, first in enumerate(range(0, n_replicates, _BLOCK)):
        size = min(_BLOCK, n_replicates - first)
        drawn = [keys.normal(keys.stream(s.key, "multiplier", seed=seed, replica=number), size) for s in (a, b)]
        blocks.append(np.stack([_three(one.replicate(drawn), one.step) for one in columns], axis=1))
    return seen, np.concatenate(blocks)


@dataclass(frozen=True)
class _OnGrid:
    """One column of both samples, binned.

    Attributes:
        step: (g,) distance of a point of the grid to the next, 0 for the last.
        matrices: (g, n) for each sample: normalized weight of event i in the cell that ends at the grid's point.
        functions: (g,) for each sample: its distribution function.
    """

    step: FloatArray
    matrices: tuple[sparse.csc_array, sparse.csc_array]
    functions: tuple[FloatArray, FloatArray]

    @classmethod
    def of(cls, a: Points, b: Points, column: int) -> _OnGrid:
        """Bin one column."""
        values = [points.values[:, column].astype(np.float64) for points in (a, b)]
        grid = _grid(np.concatenate(values))
        cells = [np.searchsorted(grid, one) for one in values]
        weights = [points.weight / stats.sum_w(points.weight) for points in (a, b)]
        first, second = (_matrix(cell, w, len(grid)) for cell, w in zip(cells, weights, strict=True))
        functions = [
            np.cumsum(np.bincount(c, w, len(grid)), dtype=np.float64) for c, w in zip(cells, weights, strict=True)
        ]
        return cls(np.diff(grid, append=grid[-1]), (first, second), (functions[0], functions[1]))

    @property
    def difference(self) -> FloatArray:
        """D on the grid, (g,)."""
        return self.functions[0] - self.functions[1]

    def replicate(self, multipliers: list[NDArray[np.float32]]) -> FloatArray:
        """D* on the grid, (g, r), for multipliers (n, r) and (m, r)."""
        parts = []
        for matrix, function, drawn in zip(self.matrices, self.functions, multipliers, strict=True):
            moved = np.cumsum(matrix @ drawn, axis=0, dtype=np.float64)
            parts.append(moved - function[:, None] * moved[-1])
        return np.asarray(parts[0] - parts[1])


def _matrix(cell: IntArray, weight: FloatArray, n_cells: int) -> sparse.csc_array:
    """Weight of event i in its cell: (n_cells, n), one entry in each column."""
    n = len(cell)
    entries = (weight.astype(np.float32), cell.astype(np.int32), np.arange(n + 1, dtype=np.int32))
    return sparse.csc_array(entries, shape=(n_cells, n))


def _grid(pooled: FloatArray) -> FloatArray:
    """All distinct values, or `GRID_POINTS` of them that hold equal numbers of events, the largest included."""
    distinct = np.unique(pooled)
    if len(distinct) <= GRID_POINTS:
        return distinct
    levels = np.linspace(0, 1, GRID_POINTS)
    return np.unique(stats.quantile(pooled, np.ones(len(pooled)), levels))


def _three(difference: FloatArray, step: FloatArray) -> FloatArray:
    """KS, W1 and energy distance (r, 3) of differences (g, r)."""
    absolute = np.abs(difference)
    return np.stack([absolute.max(axis=0), step @ absolute, 2 * (step @ absolute**2)], axis=1)


def _p_values(seen: FloatArray, null: FloatArray) -> FloatArray:
    """Share of replicates (r, ...) at least as large as what is seen (...), itself counted as one."""
    return np.asarray((1 + np.sum(null >= seen * (1 - 1e-9), axis=0)) / (1 + len(null)))


def _exact(a: FloatArray, b: FloatArray, weights: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """D at all distinct pooled values (g,), and the distance (g,) to the next one."""
    signs = (1 / stats.require_positive_sum(w, "distances") for w in weights)
    w = np.concatenate([np.asarray(one, np.float64) * s for one, s in zip(weights, signs, strict=True)])
    w[len(a) :] *= -1
    distinct, group = np.unique(np.concatenate([a, b]), return_inverse=True)
    return np.cumsum(np.bincount(group, w)), np.diff(distinct, append=distinct[-1])


def standardized(reference: Points, *others: Points) -> tuple[Points, ...]:
    """Columns in units of the reference's 68 % half-width around its median.

    Args:
        reference: tells medians and widths, by its weights of any sign; a column with no such width, as most of its
            values are equal, is divided by its unweighted standard deviation, and one that is constant is only shifted.
        others: further samples of the same columns.

    Returns:
        The reference and the others.
    """
    centers, scales = [], []
    for column in reference.values.T.astype(np.float64):
        low, middle, high = stats.quantile(column, reference.weight, [0.16, 0.5, 0.84])
        ones = np.ones((len(column), 1))
        spread = (high - low) / 2 or float(np.sqrt(stats.covariance(column[:, None], ones[:, 0])[0, 0]))
        centers.append(middle)
        scales.append(spread or 1.0)
    return tuple(Points((p.values - np.array(centers)) / scales, p.weight, p.key) for p in (reference, *others))


def nearest_distances(points: NDArray[np.floating], training: NDArray[np.floating]) -> FloatArray:
    """Euclidean distance (n,) of each point (n, k) to the nearest training event (m, k), exactly 0 for a copy.

    The tree subtracts coordinates.  scikit-learn's brute force, its default above 15 columns, subtracts squared norms.
    The training events' weights play no part: an event of any weight can be memorized.
    """
    from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]  # no stubs, no py.typed

    model = NearestNeighbors(n_neighbors=1, algorithm="kd_tree", n_jobs=1).fit(training)
    return np.concatenate([model.kneighbors(part)[0][:, 0] for part in _parts(points)])


def _parts(points: NDArray[np.floating], size: int = 10_000) -> Iterator[NDArray[np.floating]]:
    for first in range(0, len(points), size):
        yield points[first : first + size]
