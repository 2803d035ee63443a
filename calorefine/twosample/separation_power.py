r"""Separation power of two weighted histograms, with its error and what it is by accident.

With the shares :math:`h_1, h_2` of both samples in bins b,

.. math:: S = \frac12 \sum_b \frac{(h_{1b} - h_{2b})^2}{h_{1b} + h_{2b}} ,

0 for equal histograms, 1 for those that have no bin in common (Diefenbacher et al., arXiv:2009.03796, eq. 15; the
triangular discrimination).  It is never negative, so that it is above 0 by accident as well.  For samples of one
distribution its mean and variance are, with the covariance C of :math:`h_1 - h_2` and
:math:`A = \mathrm{diag}(1 / (2 (h_1 + h_2)))`,

.. math:: \mathrm{floor} = \mathrm{tr}(A C) , \qquad \sigma_0^2 = 2 \, \mathrm{tr}(A C A C) .

The influences of all events, :math:`w (g_b - \sum_{b'} h_{b'} g_{b'}) / \sum w` with the derivatives g of S by the
shares, have the sum of squares V; of samples of one distribution its mean is :math:`2 \sigma_0^2`, since the g are
computed from what was found.  The error is that of the variance :math:`\max(V - \sigma_0^2, \sigma_0^2)`: right where
the distributions are equal or far apart.  `UNSEEN` more events, with the shares of both samples together, hold it above
0 where each sample is in bins of its own.  Events of equal key count as one, and their covariance is in C.

Events beyond the outer edges are in two more bins: a tail can't be hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calorefine import keys, stats
from calorefine.errors import ConfigError, WeightError
from calorefine.intervals import UNSEEN
from calorefine.stats import FloatArray
from calorefine.twosample.cells import shares_in_cells
from calorefine.twosample.distances import Points


@dataclass(frozen=True)
class SeparationPower:
    """Separation power of one column.

    Attributes:
        value: 0 to 1 for weights that are not negative.
        error: its standard error.
        floor: its mean for two samples of one distribution, with these numbers of events and weights.
        floor_error: the standard deviation of these.
        n: numbers of generated and reference events.
    """

    value: float
    error: float
    floor: float
    floor_error: float
    n: tuple[int, int]


def separation_power(generated: Points, reference: Points, edges: FloatArray) -> SeparationPower:
    """Compare one column of two samples in bins.

    Args:
        generated: one column; weights of any sign, whose scale is irrelevant.
        reference: likewise; events of weight 0 change nothing.
        edges: (b + 1,) rising edges of the bins, such as from `calorefine.shares.display_edges` of the reference.

    Raises:
        ConfigError: samples of several columns, or edges that don't rise.
        WeightError: a bin in which signed weights of both samples sum to 0 or less.
    """
    columns = generated.values.shape[1], reference.values.shape[1]
    if columns != (1, 1) or not np.all(np.diff(edges) > 0):
        msg = f"separation power: samples of {columns[0]} and {columns[1]} columns and edges {edges} found, "
        raise ConfigError(msg + "expected one column and edges that rise")
    cells = [np.searchsorted(edges, points.values[:, 0], side="right") for points in (generated, reference)]
    weights = generated.weight, reference.weight
    group = keys.group(generated.key, reference.key)
    shares, covariance = shares_in_cells((cells[0], cells[1]), weights, group, len(edges) + 1)
    used = np.concatenate(cells)[np.concatenate(weights) != 0]
    total, filled = shares.sum(axis=0), np.bincount(used, minlength=len(edges) + 1) > 0
    if bad := int(np.sum(filled & (total <= 0))):
        raise WeightError(f"separation power: weights in {bad} bins sum to 0 or less, expected more; take wider bins")
    half = np.divide(0.5, total, out=np.zeros_like(total), where=total > 0)
    difference = shares[0] - shares[1]
    product = half[:, None] * covariance
    second = 2 * float(np.sum(product * product.T))
    slopes = [2 * half * sign * difference - 2 * np.square(half * difference) for sign in (1, -1)]
    away = [slope - share @ slope for slope, share in zip(slopes, shares, strict=True)]
    influence = [w * values[cell] / stats.sum_w(w) for w, values, cell in zip(weights, away, cells, strict=True)]
    first = stats.sum_w2(stats.group_sums(np.concatenate(influence), group))
    unseen = sum(
        UNSEEN / stats.n_eff(w) ** 2 * float(total @ values**2) / 2 for w, values in zip(weights, away, strict=True)
    )
    return SeparationPower(
        value=float(np.sum(half * difference**2)),
        error=float(np.sqrt(max(first - second, second) + unseen)),
        floor=float(np.trace(product)),
        floor_error=float(np.sqrt(second)),
        n=(len(cells[0]), len(cells[1])),
    )
