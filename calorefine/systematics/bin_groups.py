"""The directions in which K replicas may judge a difference: groups of neighboring bins.

A covariance of n bins from K replicas has rank K - 1 at most.  Directions that are chosen by the same replicas (their
leading principal components, say) have variances that look larger than they are, and the p-value is not flat.  The
directions here depend on the number of bins alone: neighboring bins of an observable are added up, as with a wider
binning, until at most 0.4 (K - 1) independent directions are left.  All bins are used where that many suffice.

Exactly dependent sums (all bins of a normalized histogram) don't count, so that one more group is allowed for each.
That they are dependent is a property of the bins and almost surely the same whatever the replicas, so that nothing is
selected by it.  With more observables than directions, neighboring observables are added up too, each divided by the
root mean square of its nominal values since their units differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calorefine.stats import FloatArray
from calorefine.systematics.hotelling import rank

SUPPORTED = 0.4  # directions per degree of freedom


def most_directions(dof: float) -> float:
    """Most independent directions that so many degrees of freedom support; infinite if the covariance is known.

    >>> most_directions(59), most_directions(19), most_directions(1)
    (23, 7, 1)
    """
    return np.inf if np.isinf(dof) else max(int(SUPPORTED * dof), 1)


def grouped_directions(covariance: FloatArray, nominal: FloatArray, sizes: Sequence[int], most: float) -> FloatArray:
    """As many groups of neighboring bins as have at most `most` independent sums.

    Args:
        covariance: (n, n); only which sums have no variance is read from it.
        nominal: (n,) values; they make observables comparable where several share a direction.
        sizes: bins of each observable.
        most: independent directions allowed.

    Returns:
        (g, n): the sums; the identity if all bins are allowed.
    """
    n = len(nominal)
    if n <= most:
        return np.eye(n)
    best = groups(nominal, sizes, int(most))
    for g in range(int(most) + 1, n + 1):
        matrix = groups(nominal, sizes, g)
        if rank(matrix @ covariance @ matrix.T) > most:
            break
        best = matrix
    return best


def groups(nominal: FloatArray, sizes: Sequence[int], g: int) -> FloatArray:
    """Sums (g, n) of neighboring bins.

    >>> groups(np.ones(5), [3, 2], 3)
    array([[1., 1., 0., 0., 0.],
           [0., 0., 1., 0., 0.],
           [0., 0., 0., 1., 1.]])
    """
    label = _labels(np.asarray(sizes), g)
    scale = np.ones(len(nominal))
    if g < len(sizes):
        parts = np.split(nominal, np.cumsum(sizes)[:-1])
        scale = np.concatenate([np.full(len(p), 1 / (np.sqrt(np.mean(p**2)) or 1.0)) for p in parts])
    return np.where(label == np.arange(g)[:, None], scale, 0.0)


def _labels(sizes: NDArray[np.int64], g: int) -> NDArray[np.int64]:
    """Group of each bin."""
    if g < len(sizes):
        return np.repeat(np.arange(len(sizes)) * g // len(sizes), sizes)
    counts = np.ones(len(sizes), np.int64)
    for _ in range(g - len(sizes)):  # the next group goes where groups are widest
        counts[np.argmax(np.where(counts < sizes, sizes / counts, 0))] += 1
    first = np.cumsum(counts) - counts
    inside = [np.arange(size) * count // size for size, count in zip(sizes, counts, strict=True)]
    return np.concatenate([start + group for start, group in zip(first, inside, strict=True)])
