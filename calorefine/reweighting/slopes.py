"""Part of known shifts that linear tilts recover, in bins of the columns, measured in events that they don't know."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from calorefine import keys, stats
from calorefine.keys import KeyArray
from calorefine.reweighting.tilt import EPSILON, Weighted
from calorefine.stats import FloatArray

N_BINS, N_SLICES = 10, 5  # of each column


def slopes(generated: Weighted, event_key: KeyArray, names: list[str]) -> dict[str, float]:
    """Part of a known shift that linear tilts recover: in ten bins of each free column, and above its median.

    The latter in five bins of each given column.  Events of one half are shifted, by weights; the tilts are those of
    the other half.

    Args:
        generated: with the weights (n,) of the reference's law.
        event_key: (n,); events of equal key are in the same half.
        names: (d,) of the columns.
    """
    given = generated.terms.given
    half = keys.uniform(keys.stream(event_key, "slopes")) < 0.5
    learned, shifted = (replace(generated, table=generated.table[h], weight=generated.weight[h]) for h in (half, ~half))
    squares = learned.squares()
    every, fixed = (linalg.pinvh(squares * np.outer(mask, mask), rtol=EPSILON) for mask in (np.ones_like(given), given))
    out = {}
    for name, functions in _judged(generated, names).items():
        covariance = learned.products(functions[half])
        influence, mean = shifted.combined(every @ covariance), shifted.combined(fixed @ covariance)
        shift = shifted.weight[:, None] * (functions[~half] - mean)
        out[name] = float(np.sum(influence * shift) / np.sum(functions[~half] * shift))
    return out


def bin_edges(values: NDArray[np.float32], weight: FloatArray, n: int) -> FloatArray:
    """Inner edges (n - 1,) of bins with equal shares."""
    return stats.quantile(values, weight, np.arange(1, n) / n)


def indicators(values: NDArray[np.float32], edges: FloatArray) -> FloatArray:
    """Whether values (n,) are in each bin (n, k)."""
    return np.asarray(np.searchsorted(edges, values)[:, None] == np.arange(len(edges) + 1), np.float64)


def _judged(generated: Weighted, names: list[str]) -> dict[str, FloatArray]:
    """Indicators (n, m) whose means are shifted."""

    def bins(column: int, n: int) -> FloatArray:
        values = generated.table[:, column]
        return indicators(values, bin_edges(values, generated.weight, n))

    free, given = np.split(np.arange(len(names)), [generated.terms.n_free])
    out = {names[j]: bins(j, N_BINS) for j in free}
    for j, i in product(free, given):
        out[f"{names[j]} in bins of {names[i]}"] = bins(j, 2)[:, 1:] * bins(i, N_SLICES)
    return out
