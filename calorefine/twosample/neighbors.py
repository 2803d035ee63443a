r"""Two weighted samples compared by their nearest neighbors: precision, recall, density and coverage; memorization.

A *ball* around an event of a sample reaches to its k-th nearest neighbor in this sample: it holds k + 1 events with its
center.  With weights, it holds the weight of k + 1 events, :math:`(k + 1) \, \sum w^2 / \sum w`, that of its center
included.

* precision: weighted share of the generated events in any ball of the reference;
* recall: weighted share of the reference events in any ball of the generated events;
* density: mean number of balls of the reference that hold a generated event, by the weights of their centers, over k;
* coverage: weighted share of the reference events whose ball holds a generated event.

Precision, density and coverage are near 1 for samples of one distribution, but not at it: their floor is that of halves
of the reference, `calorefine.twosample.embedding.halves`.  They depend on n and k.  Events of weight 0 count as absent.

**Memorization**: generated events that are nearer to a training event than events that were not trained on.

References: Naeem et al., arXiv:2002.09797; Kynkaanniemi et al., arXiv:1904.06991.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.errors import ConfigError, EmptySelectionError
from calorefine.stats import FloatArray, IntArray
from calorefine.twosample.comparison import Comparison, compared
from calorefine.twosample.distances import Points
from calorefine.twosample.estimates import Linearized, efficiency_estimate, mean_estimate, median_estimate

Values = NDArray[np.floating]
_BLOCK = 4_000_000  # distances in memory at a time
_CANDIDATES = 4  # events whose distance is computed without the cancellation of squared norms


@dataclass(frozen=True)
class Estimate:
    """A number, and its standard error for given balls."""

    value: float
    error: float


@dataclass(frozen=True)
class PrecisionRecall:
    """How two samples overlap.

    Attributes:
        precision: of the generated events.
        recall: of the reference events.
        density: of the generated events; not bounded by 1.
        coverage: of the reference events.
        k: how many neighbors.
        n: numbers of generated and reference events.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    k: int
    n: tuple[int, int]


@dataclass(frozen=True)
class TrainingDistances:
    """Distances to the nearest training event.

    Attributes:
        copies: weighted share of the generated events that are copies of a training event.
        copies_error: its standard error.
        median: weighted median distance of generated events, and of reference events that were not trained on; a ratio
            below 1 means that the former are nearer.
        n: numbers of generated, reference and training events.
    """

    copies: float
    copies_error: float
    median: Comparison
    n: tuple[int, int, int]


def precision_recall(generated: Points, reference: Points, *, k: int = 5) -> PrecisionRecall:
    """Precision, recall, density and coverage.

    Args:
        generated: columns of comparable scale, such as from `calorefine.twosample.distances.standardized`; weights that
            are not negative, whose scale is irrelevant.
        reference: likewise, and the same columns.
        k: how many neighbors the balls reach to; the CaloChallenge takes 5.

    Raises:
        ConfigError: samples of different columns, or of no more events than k.
        WeightError: negative weights.
    """
    samples = [_used(points) for points in (generated, reference)]
    if samples[0].values.shape[1] != samples[1].values.shape[1]:
        raise ConfigError(f"samples of {samples[0].values.shape[1]} and {samples[1].values.shape[1]} columns")
    if not 0 < k < min(len(points.weight) for points in samples):
        msg = f"k {k} found for samples of {len(samples[0].weight)} and {len(samples[1].weight)} events"
        raise ConfigError(msg + ", expected at least 1 and fewer than events")
    units = [stats.sum_w2(points.weight) / stats.sum_w(points.weight) for points in samples]
    radii = [ball_radii(points, (k + 1) * unit) for points, unit in zip(samples, units, strict=True)]
    (made, target), (made_radii, target_radii) = samples, radii
    held, covered, recalled = np.zeros(len(made.weight)), np.zeros(len(target.weight)), np.zeros(len(target.weight))
    for rows in _blocks(len(target.weight), len(made.weight)):
        squares = _squares(target.values[rows], made.values)
        inside = squares <= target_radii[rows, None] ** 2
        held += target.weight[rows] @ inside
        covered[rows] = inside.any(axis=1)
        recalled[rows] = (squares <= made_radii**2).any(axis=1)
    return PrecisionRecall(
        precision=_estimate(efficiency_estimate((held > 0).astype(np.float64), made.weight), made.key),
        recall=_estimate(efficiency_estimate(recalled, target.weight), target.key),
        density=_estimate(mean_estimate(held / (k * units[1]), made.weight), made.key),
        coverage=_estimate(efficiency_estimate(covered, target.weight), target.key),
        k=k,
        n=(len(generated.weight), len(reference.weight)),
    )


def ball_radii(points: Points, mass: float) -> FloatArray:
    """Radius (n,) of the smallest ball around each event that holds this weight, its own included.

    Args:
        points: positive weights.
        mass: to be held, no more than all of it.

    Doubling an event's weight is the same as repeating the event.
    """
    out = np.empty(len(points.weight))
    first_guess = min(len(out), 2 + int(4 * mass / np.mean(points.weight)))
    for rows in _blocks(len(out), len(out)):
        squares = _squares(points.values[rows], points.values)
        squares[np.arange(len(squares)), np.arange(len(out))[rows]] = 0.0
        radii = _reached(squares, points.weight, mass, first_guess)
        if np.isnan(radii).any():
            radii = _reached(squares, points.weight, mass, len(out))
        out[rows] = radii
    return out


def memorization(generated: Points, reference: Points, training: Values) -> TrainingDistances:
    """Compare the distances of generated and of reference events to the nearest training event.

    Args:
        generated: columns of comparable scale; weights that are not negative.
        reference: events that were not trained on; likewise.
        training: (m, k) of the same columns; weights play no part: an event of any weight can be memorized.

    Raises:
        EmptySelectionError: no training event.
        WeightError: negative weights.
    """
    samples = [_used(points) for points in (generated, reference)]
    distances = [nearest_training(points.values, training)[0] for points in samples]
    made, group = samples[0], keys.group(samples[0].key, samples[1].key)
    copies = _estimate(efficiency_estimate((distances[0] == 0).astype(np.float64), made.weight), made.key)
    medians = [median_estimate(d, points.weight) for d, points in zip(distances, samples, strict=True)]
    n = len(generated.weight), len(reference.weight), len(training)
    return TrainingDistances(copies.value, copies.error, compared(medians[0], medians[1], group), n)


def nearest_training(values: Values, training: Values) -> tuple[FloatArray, IntArray]:
    """Euclidean distance (n,) of rows (n, k) to the nearest row of (m, k), and its index; exactly 0 for a copy.

    Squared norms find the candidates; the distances of these are sums of squared differences.  For many columns it is
    faster than a tree.

    Raises:
        EmptySelectionError: no row to be near to.
    """
    if len(training) == 0:
        raise EmptySelectionError("memorization: no training event found, expected some")
    distance, index = np.empty(len(values)), np.empty(len(values), np.int64)
    k = min(_CANDIDATES, len(training))
    for rows in _blocks(len(values), len(training)):
        near = np.argpartition(_squares(values[rows], training), k - 1, axis=1)[:, :k]
        block = values[rows].astype(np.float64)
        exact = np.stack([np.sqrt(np.square(block - training[column]).sum(axis=1)) for column in near.T], axis=1)
        best = exact.argmin(axis=1)[:, None]
        distance[rows] = np.take_along_axis(exact, best, axis=1)[:, 0]
        index[rows] = np.take_along_axis(near, best, axis=1)[:, 0]
    return distance, index


def _used(points: Points) -> Points:
    """Events whose weight is not 0.

    Raises:
        WeightError: negative weights.
    """
    stats.require_nonnegative(points.weight, "nearest neighbors, whose balls hold a given weight")
    return points.take(points.weight > 0)


def _reached(squares: FloatArray, weight: FloatArray, mass: float, size: int) -> FloatArray:
    """Distance (b,) within which rows of squares (b, n) have this weight, by the nearest ones; NaN if that is more."""
    size = min(size, squares.shape[1])
    near = np.argpartition(squares, size - 1, axis=1)[:, :size]
    ordered = np.take_along_axis(squares, near, axis=1)
    order = ordered.argsort(axis=1)
    held = np.cumsum(weight[np.take_along_axis(near, order, axis=1)], axis=1) >= mass * (1 - 1e-9)
    radii = np.sqrt(np.take_along_axis(ordered, order, axis=1)[np.arange(len(squares)), held.argmax(axis=1)])
    return np.where(held.any(axis=1), radii, np.nan)


def _blocks(n: int, m: int) -> list[slice]:
    """Rows of n whose distances to m others fit in memory."""
    step = max(1, _BLOCK // m)
    return [slice(first, first + step) for first in range(0, n, step)]


def _squares(first: Values, second: Values) -> FloatArray:
    """Squared distances (n, m) of rows (n, k) and (m, k)."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.maximum(squares, 0.0, out=squares))


def _estimate(estimate: Linearized, key: keys.KeyArray) -> Estimate:
    variance = stats.sum_w2(estimate.grouped(keys.group(key), 0))
    return Estimate(estimate.value, float(np.sqrt(variance)))
