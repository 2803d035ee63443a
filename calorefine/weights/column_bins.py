"""Bins of a column by which events are compared: equally filled, or its values if there are few."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from calorefine.stats import FloatArray, IntArray


@dataclass(frozen=True)
class ColumnBins:
    """Bins of a column: their edges, and the number (n,) of each event's."""

    edges: FloatArray
    number: IntArray

    @classmethod
    def of(cls, values: FloatArray, n_bins: int) -> ColumnBins:
        """Bins of values (n,), see `column_edges`."""
        edges = column_edges(values, n_bins)
        return cls(edges, np.searchsorted(edges[1:-1], values, side="right"))

    def __len__(self) -> int:
        """Return the number of bins."""
        return max(len(self.edges) - 1, 1)

    @property
    def labels(self) -> list[str]:
        """The bins as intervals."""
        return [f"[{low:.4g}, {high:.4g}]" for low, high in pairwise(self.edges)]


def column_edges(values: FloatArray, n_bins: int) -> FloatArray:
    """Edges of the bins of a column: quantiles, or the values themselves if there are at most `2 n_bins` of them.

    Bins are closed on the left; the last edge is the largest value.  A value that holds more than an equal share (most
    events have no second cluster, say) is a bin of its own.  Of few values, those that hold less than a fourth of an
    equal share are merged with the next.

    Args:
        values: (n,), finite or infinite, not NaN.
        n_bins: number of bins wanted.

    Returns:
        (q + 1,) increasing; two edges (or one, for a single value) if the column can't be divided.

    >>> column_edges(np.array([0.0, 0.0, 1.0, 1.0]), 5)
    array([0., 1., 1.])
    """
    unique, counts = np.unique(values, return_counts=True)
    if len(unique) > 2 * n_bins:
        heavy = counts > len(values) / n_bins
        levels = np.linspace(0, 1, max(n_bins - int(heavy.sum()), 1) + 1)
        rest = np.quantile(values[~np.isin(values, unique[heavy])], levels, method="inverted_cdf")
        after = unique[1:][heavy[:-1]]
        lower = np.unique([*rest[:-1], *unique[heavy], *after])
        return np.append(lower, unique[-1]) if heavy.any() else np.unique(rest)
    starts, held = [unique[0]], 0
    for value, count in zip(unique, counts, strict=True):
        if held >= len(values) / n_bins / 4:
            starts.append(value)
            held = 0
        held += int(count)
    if held < len(values) / n_bins / 4 and len(starts) > 1:
        starts.pop()
    return np.array([*starts, unique[-1]])
