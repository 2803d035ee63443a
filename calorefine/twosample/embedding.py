r"""Frechet and kernel physics distance of two weighted samples in a space of high-level features.

Both are those of the package jetnet (Kansal et al., arXiv:2211.10295), with weights.  Each feature is divided by the
largest absolute value that it has in the reference.

**FPD**: the Frechet distance of two normal distributions with the samples' means and covariances,

.. math:: d = |\mu_1 - \mu_2|^2 + \mathrm{tr}\big(C_1 + C_2 - 2 (C_1 C_2)^{1/2}\big) ,

has a bias that is proportional to 1 / b in samples of b events.  It is averaged over random samples of each of several
sizes b, drawn from the events with replacement, and extrapolated along a line to 1 / b = 0 (Chong and Forsyth,
arXiv:1911.07023).

**KPD**: the unbiased square of the maximum mean discrepancy with the kernel :math:`(x \cdot y / d + 1)^4` in d features
(Binkowski et al., arXiv:1801.01401), its median over random samples, and half the width of the central 67.45 % of them.

What is extrapolated is the size of the samples that are *drawn*: both distances are those of the events that there
are, which fluctuate.  They have a floor that falls with the number of events, and is to be quoted as well: the distance
of two halves of the reference (`halves`).

**Weights** tell how often an event is drawn, in proportion to :math:`|w|`; an event of negative weight counts with a
negative sign in all sums.  Weights that are counts are repetitions of the event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from calorefine import keys, stats
from calorefine.errors import ConfigError, ValueRangeError, WeightError
from calorefine.stats import FloatArray, IntArray
from calorefine.twosample.distances import Points
from calorefine.weights.bootstrap import counts

N_SIZES, N_PER_SIZE = 10, 20
N_BATCHES, CENTRAL = 10, (16.275, 83.725)
N_REPLICAS = 20
Values = NDArray[np.floating]
_ROWS = 64  # of a kernel's matrix at a time, which a processor's cache holds


@dataclass(frozen=True)
class PhysicsDistance:
    """FPD or KPD.

    Attributes:
        value: the distance; it has no unit.
        error: for FPD, the spread of the Frechet distance over Poisson bootstrap replicas of the events, those of equal
            key together; for KPD, the spread of the batches: that of as many events as a batch has.
        jetnet_error: jetnet's; for FPD that of the extrapolated line, which doesn't know the number of events.
        n: numbers of generated and reference events.
    """

    value: float
    error: float
    jetnet_error: float
    n: tuple[int, int]


def halves(points: Points, *, seed: int = 0) -> tuple[Points, Points]:
    """Random halves of a sample, by event key: what a distance or an AUC is by accident with half as many events.

    Halves of a half need another seed.
    """
    first = keys.uniform(keys.stream(points.key, "floor", seed=seed)) < 0.5
    return points.take(first), points.take(~first)


def frechet_distance(generated: Points, reference: Points) -> float:
    """Frechet distance of the normal distributions that have the samples' means and covariances; as they are.

    Args:
        generated: weights of any sign, whose scale is irrelevant.
        reference: likewise, and the same columns.

    Raises:
        ConfigError: samples of different columns.
        WeightError: signed weights give a covariance that is none, with an eigenvalue below 0.
    """
    _check(generated, reference)
    return _frechet(*(_moments(points.values, points.weight) for points in (generated, reference)))


def frechet_physics_distance(
    generated: Points, reference: Points, *, sizes: tuple[int, int] = (20_000, 50_000), seed: int = 0
) -> PhysicsDistance:
    """FPD, the Frechet distance extrapolated to draws of infinite size.

    Args:
        generated: weights of any sign, whose scale is irrelevant.
        reference: likewise, and the same columns; it tells the scale of each.
        sizes: smallest and largest draw; the CaloChallenge takes 10 000 and 50 000.
        seed: of the draws.

    Raises:
        ConfigError: samples of different columns, or sizes that don't rise.
        ValueRangeError: values that are NaN or infinite.
        WeightError: signed weights give a covariance that is none.
    """
    if not 1 < sizes[0] < sizes[1]:
        raise ConfigError(f"FPD: sizes {sizes} found, expected two that rise")
    scaled = _scaled(generated, reference)
    inverse = np.linspace(1 / sizes[0], 1 / sizes[1], N_SIZES)
    numbers, rng = (1 / inverse).astype(np.int64), np.random.default_rng(seed)
    means = [
        np.mean([_frechet(*(_drawn_moments(points, size, rng) for points in scaled)) for _ in range(N_PER_SIZE)])
        for size in numbers
    ]
    value, error = _intercept(1 / numbers, np.array(means))
    return PhysicsDistance(value, _bootstrap_error(scaled, seed), error, (len(generated.weight), len(reference.weight)))


def kernel_physics_distance(
    generated: Points, reference: Points, *, batch_size: int = 5000, seed: int = 0
) -> PhysicsDistance:
    """KPD, the median over batches of the squared maximum mean discrepancy; it may be negative.

    Args:
        generated: weights of any sign, whose scale is irrelevant.
        reference: likewise, and the same columns; it tells the scale of each.
        batch_size: events of each sample in a batch, at most as many as the smaller one has, so that the spread of the
            batches is not below the error of the sample; the CaloChallenge takes 10 000.
        seed: of the draws.

    Raises:
        ConfigError: samples of different columns, or batches of less than 2 events.
        ValueRangeError: values that are NaN or infinite.
    """
    if batch_size < 2:
        raise ConfigError(f"KPD: batch_size {batch_size} found, expected at least 2")
    scaled, rng = _scaled(generated, reference), np.random.default_rng(seed)
    n = len(generated.weight), len(reference.weight)
    batches = [_drawn_discrepancy(scaled, min(batch_size, *n), rng) for _ in range(N_BATCHES)]
    low, high = np.percentile(batches, CENTRAL)
    error = float((high - low) / 2)
    return PhysicsDistance(float(np.median(batches)), error, error, n)


def _check(generated: Points, reference: Points) -> None:
    """Raise for different columns, and for values that are no numbers."""
    columns = generated.values.shape[1], reference.values.shape[1]
    if columns[0] != columns[1]:
        raise ConfigError(f"samples of {columns[0]} and {columns[1]} columns, expected equal numbers")
    for points, name in ((generated, "generated"), (reference, "reference")):
        if bad := int(np.sum(~np.isfinite(points.values))):
            raise ValueRangeError(f"{name}: {bad} of {points.values.size} values are NaN or infinite, expected none")


def _scaled(generated: Points, reference: Points) -> tuple[Points, Points]:
    """Both in units of the largest absolute values of the reference; a column that is 0 there stays as it is."""
    _check(generated, reference)
    largest = np.abs(reference.values[reference.weight != 0].astype(np.float64)).max(axis=0)
    largest[largest == 0] = 1.0
    first, second = (replace(points, values=points.values / largest) for points in (generated, reference))
    return first, second


def _drawn(points: Points, size: int, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
    """Indices (size,) of events drawn in proportion to the size of their weights, and the signs of these."""
    cumulative = np.cumsum(np.abs(points.weight))
    index = np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right")
    index = np.minimum(index, len(cumulative) - 1)
    return index, np.sign(points.weight[index])


def _drawn_moments(points: Points, size: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Mean (d,) and covariance (d, d) of a random sample, without bias."""
    index, signs = _drawn(points, size, rng)
    count = stats.group_sums(signs, index, len(points.weight))
    mean, covariance = _moments(points.values[count != 0], count[count != 0])
    return mean, covariance / (1 - size / stats.sum_w(signs) ** 2)


def _moments(values: Values, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    return stats.mean(values, weight), stats.covariance(values, weight)


def _frechet(first: tuple[FloatArray, FloatArray], second: tuple[FloatArray, FloatArray]) -> float:
    """Distance of two normal distributions, given by mean and covariance."""
    root = _root(first[1])
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second[1] @ root), 0.0)).sum()
    _root(second[1])  # which raises if there is none
    return float(np.sum((first[0] - second[0]) ** 2) + np.trace(first[1]) + np.trace(second[1]) - 2 * mixed)


def _root(covariance: FloatArray) -> FloatArray:
    """Square root (d, d) of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    if values[0] < -1e-9 * max(values[-1], 0.0):
        msg = f"Frechet distance: a covariance has an eigenvalue of {values[0]:.3g} (the largest is {values[-1]:.3g}), "
        raise WeightError(msg + "which signed weights of few events can give; expected none below 0")
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _intercept(inverse: FloatArray, values: FloatArray) -> tuple[float, float]:
    """Value at 0 of the line through values (k,) that has neither value nor slope below 0, and its standard error."""
    design = np.stack([np.ones(len(inverse)), inverse], axis=1)
    parameters, distance = nnls(design, values)
    covariance = np.linalg.inv(design.T @ design) * distance**2 / (len(values) - 2)
    return float(parameters[0]), float(np.sqrt(covariance[0, 0]))


def _bootstrap_error(samples: tuple[Points, Points], seed: int) -> float:
    """Standard deviation of the Frechet distance over replicas of the events."""
    values = []
    for replica in range(1, N_REPLICAS + 1):
        weights = [points.weight * counts(points.key, replica=replica, seed=seed) for points in samples]
        pairs = zip(samples, weights, strict=True)
        values.append(_frechet(*(_moments(points.values, weight) for points, weight in pairs)))
    return float(np.std(values, ddof=1))


def _drawn_discrepancy(samples: tuple[Points, Points], size: int, rng: np.random.Generator) -> float:
    """Squared maximum mean discrepancy of a random batch of each sample, as a U-statistic."""
    own, batches = 0.0, []
    for points in samples:
        index, signs = _drawn(points, size, rng)
        values, factor = points.values[index], signs * (stats.sum_w(np.abs(points.weight)) / stats.sum_w(points.weight))
        itself = float(factor**2 @ _kernel(np.sum(values * values, axis=1), values.shape[1]))
        own += (_kernel_sum(values, values, factor, factor) - itself) / (size * (size - 1))
        batches.append((values, factor))
    (x, s), (y, t) = batches
    return own - 2 * _kernel_sum(x, y, s, t) / size**2


def _kernel_sum(x: Values, y: Values, s: FloatArray, t: FloatArray) -> float:
    """Sum of the kernel over all pairs of points (n, d) and (m, d) with factors (n,) and (m,)."""
    blocks = (slice(first, first + _ROWS) for first in range(0, len(x), _ROWS))
    return float(sum(s[rows] @ (_kernel(x[rows] @ y.T, x.shape[1]) @ t) for rows in blocks))


def _kernel(product: Values, n_columns: int) -> Values:
    """Polynomial kernel of the scalar products of points, in their place."""
    product /= n_columns
    product += 1
    np.square(product, out=product)
    return np.square(product, out=product)
