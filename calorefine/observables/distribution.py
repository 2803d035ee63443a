"""Distribution functions known in sub-cells, and their inverse; the formulas are in `quantiles`."""

from __future__ import annotations

import numpy as np
from scipy.optimize import isotonic_regression

from calorefine.stats import FloatArray

_STEPS = 2.0  # standard errors of p over which the slope is taken


def distribution(sums: FloatArray) -> FloatArray:
    """Monotone distribution function at the upper ends of sub-cells.

    Args:
        sums: (..., n_sub) sums of weights, any sign, of positive total.

    Returns:
        (..., n_sub), within [0, 1], nondecreasing.
    """
    function = np.ascontiguousarray(np.cumsum(sums, axis=-1) / sums.sum(axis=-1, keepdims=True))
    flat, flat_sums = function.reshape(-1, function.shape[-1]), sums.reshape(-1, sums.shape[-1])
    for k in np.flatnonzero(np.any(flat_sums < 0, axis=-1)):
        used = flat_sums[k] != 0
        monotone = isotonic_regression(flat[k][used]).x
        flat[k] = np.concatenate([[0.0], monotone])[np.cumsum(used)]
    return np.asarray(np.clip(function, 0, 1))


def inverse(function: FloatArray, edges: FloatArray, levels: FloatArray) -> FloatArray:
    """Quantiles, by linear interpolation in sub-cells.

    Args:
        function: (..., n_cells + 2) as from `distribution`; the outermost cells are unbounded.
        edges: (n_cells + 1,) between the cells.
        levels: (k,).

    Returns:
        (..., k); infinite beyond the edges.
    """
    quantiles = []
    for level in levels - 1e-12:
        cell = np.minimum(np.sum(function < level, axis=-1), function.shape[-1] - 1)
        upper = np.take_along_axis(function, cell[..., None], -1)[..., 0]
        lower = np.where(cell > 0, np.take_along_axis(function, np.maximum(cell - 1, 0)[..., None], -1)[..., 0], 0.0)
        part = np.clip((level - lower) / np.where(upper > lower, upper - lower, 1.0), 0, 1)
        inside = np.clip(cell, 1, len(edges) - 1)
        at = edges[inside - 1] + part * (edges[inside] - edges[inside - 1])
        quantiles.append(np.where(cell == 0, -np.inf, np.where(cell == len(edges), np.inf, at)))
    return np.stack(quantiles, axis=-1)


def share_below(at: FloatArray, edges: FloatArray) -> FloatArray:
    """Share of each sub-cell (k, n_cells + 2) below the values (k,)."""
    share = np.clip((at[:, None] - edges[:-1]) / np.diff(edges), 0, 1)
    return np.pad(share, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))


def slope(function: FloatArray, edges: FloatArray, levels: FloatArray, error: FloatArray) -> FloatArray:
    """Change of the quantiles (k,) per unit of the level, within two standard errors (k,) of it."""
    limits = np.stack([np.minimum(0.01, levels / 2), np.maximum(0.99, (1 + levels) / 2)])
    ends = np.clip(np.stack([levels - _STEPS * error, levels + _STEPS * error]), *limits[:, None])
    around = inverse(function, edges, ends.ravel())
    around = np.clip(around, edges[0], edges[-1]).reshape(ends.shape)
    return np.asarray((around[1] - around[0]) / np.maximum(ends[1] - ends[0], 1e-12))
