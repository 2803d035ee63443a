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
the one generated at the same condition then fluctuate together as they do in truth, and the noise of the conditions
that both samples share cancels.  Where equal keys are an accident, their covariance is 0 in expectation: the p-value
stays right.

Weights count as given functions of the events.  What a fit to the same events adds (sWeights) is left out; the sum of
weights, which it changes most, cancels.

References: van der Vaart and Wellner, Weak Convergence and Empirical Processes (1996), chapter 2.9; Szekely and Rizzo,
doi:10.1016/j.jspi.2013.03.018; Bonneel et al., doi:10.1007/s10851-014-0506-3 (sliced Wasserstein).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from calorefine import keys, stats
from calorefine.errors import ConfigError, EmptySelectionError
from calorefine.events import Events
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

    @classmethod
    def of(cls, events: Events) -> Points:
        """Features and context of events."""
        return cls(events.table, events.weight, events.event_key)

    def __post_init__(self) -> None:
        """Check the weights, and make one column a table."""
        if len(self.weight) == 0:
            raise EmptySelectionError("distances: a sample has no events, expected some")
        stats.require_positive_sum(self.weight, "distances")
        if self.values.ndim == 1:
            object.__setattr__(self, "values", self.values[:, None])

    def take(self, index: NDArray[Any]) -> Self:
        """Points at these indices, or where this mask is true."""
        return replace(self, values=self.values[index], weight=self.weight[index], key=self.key[index])


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


def exact_distances(a: FloatArray, b: FloatArray, *, weights: tuple[FloatArray, FloatArray]) -> FloatArray:
    r"""KS, Wasserstein-1 and energy distance (3,) in one column, on all distinct values; the last two in its unit.

    The energy distance is :math:`2 E|a-b| - E|a-a'| - E|b-b'|`, the plug-in form of `calorefine.losses.energy_distance`
    in one dimension and the square of ``scipy.stats.energy_distance``.

    Args:
        a: (n,) values.
        b: (m,) values.
        weights: (n,) and (m,), any sign, positive sums; scale is irrelevant.

    Raises:
        WeightError: weights without a positive sum.
    """
    grid = np.unique(np.concatenate([a, b]))
    first, second = (
        _function(np.searchsorted(grid, values), weight / stats.require_positive_sum(weight, "distances"), len(grid))
        for values, weight in zip((a, b), weights, strict=True)
    )
    return np.asarray(_three((first - second)[:, None], np.diff(grid, append=grid[-1]))[0])


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
    p_values = _p_values(*_null_distances(a, b, n_replicates=n_replicates, seed=seed))
    pairs = zip(a.values.T.astype(np.float64), b.values.T.astype(np.float64), strict=True)
    values = [exact_distances(*pair, weights=(a.weight, b.weight)).tolist() for pair in pairs]
    return tuple(ColumnDistances(*map(Distance, v, p)) for v, p in zip(values, p_values.tolist(), strict=True))


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
    seen, null = _null_distances(*projected, n_replicates=n_replicates, seed=seed)
    value, replicates = seen[:, 1].mean(), null[:, :, 1].mean(axis=1)
    return Distance(float(value), float(_p_values(value, replicates)))


def _null_distances(a: Points, b: Points, *, n_replicates: int, seed: int) -> tuple[FloatArray, FloatArray]:
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
    columns = [_OnGrid.of(a, b, index) for index in range(a.values.shape[1])]
    seen = np.stack([_three(column.difference[:, None], column.step)[0] for column in columns])
    blocks = []
    for number, first in enumerate(range(0, n_replicates, _BLOCK)):
        size = min(_BLOCK, n_replicates - first)
        drawn = [keys.normal(keys.stream(s.key, "multiplier", seed=seed, replica=number), size) for s in (a, b)]
        blocks.append(np.stack([_three(column.replicate(drawn), column.step) for column in columns], axis=1))
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
        weights = [points.weight / stats.sum_w(points.weight) for points in (a, b)]
        cells = [(np.searchsorted(grid, v), w, len(grid)) for v, w in zip(values, weights, strict=True)]
        first, second = (_matrix(*entries) for entries in cells)
        return cls(np.diff(grid, append=grid[-1]), (first, second), (_function(*cells[0]), _function(*cells[1])))

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


def _function(cell: IntArray, weight: FloatArray, n_cells: int) -> FloatArray:
    """Distribution function (n_cells,) of normalized weights."""
    return np.cumsum(np.bincount(cell, weight, n_cells), dtype=np.float64)


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


def _p_values(seen: ArrayLike, null: FloatArray) -> FloatArray:
    """Share of replicates (r, ...) at least as large as what is seen (...), itself counted as one."""
    return np.asarray((1 + np.sum(null >= np.asarray(seen) * (1 - 1e-9), axis=0)) / (1 + len(null)))


def standardized(reference: Points, *others: Points) -> tuple[Points, ...]:
    """Columns in units of the reference's 68 % half-width around its median.

    Args:
        reference: tells medians and widths, by its weights of any sign; a column with no such width, as most of its
            values are equal, is divided by its unweighted standard deviation, and one that is constant is only shifted.
        others: further samples of the same columns.

    Returns:
        The reference and the others.
    """
    centers, scales = np.empty((2, reference.values.shape[1]))
    for k, column in enumerate(reference.values.T.astype(np.float64)):
        low, centers[k], high = stats.quantile(column, reference.weight, [0.16, 0.5, 0.84])
        variance = stats.covariance(column[:, None], np.ones(len(column)))[0, 0]
        scales[k] = (high - low) / 2 or np.sqrt(variance) or 1.0
    return tuple(Points((p.values - centers) / scales, p.weight, p.key) for p in (reference, *others))


def nearest_distances(points: NDArray[np.floating], training: NDArray[np.floating]) -> FloatArray:
    """Euclidean distance (n,) of each point (n, k) to the nearest training event (m, k), exactly 0 for a copy.

    The tree subtracts coordinates.  scikit-learn's brute force, its default above 15 columns, subtracts squared norms.
    The training events' weights play no part: an event of any weight can be memorized.
    """
    from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]  # no stubs, no py.typed

    model = NearestNeighbors(n_neighbors=1, algorithm="kd_tree", n_jobs=1).fit(training)
    return np.asarray(model.kneighbors(points)[0][:, 0])
