"""Distributions of two samples in the same bins, and their ratio, with errors that know copies and paired events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from calorefine import intervals, stats
from calorefine.io.sample import SampleRows
from calorefine.shares import display_edges
from calorefine.stats import FloatArray

SIGNIFICANT = 3.0  # errors that the reference has to be above 0 by, for a ratio


@dataclass(frozen=True)
class Overlay:
    """A column of two samples, both normalized to the reference's sum of weights.

    Attributes:
        edges: (b + 1,).
        generated: (2, b) values and errors.
        reference: (2, b).
        ratio: (2, b) generated over reference; NaN where the reference isn't significantly above 0.
    """

    edges: FloatArray
    generated: FloatArray
    reference: FloatArray
    ratio: FloatArray


def overlay(
    name: str, generated: SampleRows, reference: SampleRows, *, bins: int = 40, edges: FloatArray | None = None
) -> Overlay:
    """Distributions of one column, in bins with these edges (b + 1,) or as `display_edges` chooses them.

    In the errors, the weights of equal event key in a bin are summed before squaring: copies of an event, and an event
    and its pair in the ratio, count as correlated.  They hold `UNSEEN` more events of the mean weight, so that an
    empty bin has an error too; those of ratios, in which pairs cancel, only where the generated bin is empty.
    """
    edges = display_edges(reference.table[name], reference.weight, bins=bins) if edges is None else edges
    shares = _event_shares(edges, name, (generated, reference))
    unseen = [_unseen(share) for share in shares]
    values = [
        np.stack([share.sum(axis=1), np.sqrt(_squares(share) + more)])
        for share, more in zip(shares, unseen, strict=True)
    ]
    (made, _), (target, error) = values
    known = target > SIGNIFICANT * error
    ratio = np.divide(made, target, out=np.full(len(made), np.nan), where=known)
    difference = shares[0] - sparse.diags_array(np.nan_to_num(ratio)) @ shares[1]
    squares = _squares(difference) + np.where(made == 0, unseen[0], 0)
    errors = np.divide(np.sqrt(squares), target, out=np.full(len(made), np.nan), where=known)
    return Overlay(edges, values[0], values[1], np.stack([ratio, errors]))


def _event_shares(edges: FloatArray, name: str, samples: Sequence[SampleRows]) -> list[sparse.csr_array]:
    """Sum of weights (bins, events) of each event in each bin, normalized to the reference; the same events in both."""
    group = np.unique(np.concatenate([rows.event_key for rows in samples]), return_inverse=True)[1]
    total = stats.sum_w(samples[1].weight)
    shares = []
    for rows, event in zip(samples, np.split(group, [len(samples[0])]), strict=True):
        cell = np.searchsorted(edges, rows.table[name], side="right") - 1
        inside = (cell >= 0) & (cell < len(edges) - 1)
        weight = rows.weight[inside] * (total / stats.sum_w(rows.weight))
        shape = len(edges) - 1, int(group.max()) + 1
        shares.append(sparse.coo_array((weight, (cell[inside], event[inside])), shape=shape).tocsr())
    return shares


def _squares(share: sparse.csr_array) -> FloatArray:
    """Variance of each bin (bins,)."""
    return np.asarray(share.power(2).sum(axis=1))


def _unseen(share: sparse.csr_array) -> FloatArray:
    """Variance of each bin (bins,) by events that are not there."""
    n, squares = np.diff(share.indptr), _squares(share)
    w2: FloatArray = np.divide(squares, n, out=np.full(len(n), squares.sum() / max(n.sum(), 1)), where=n > 0)
    return intervals.UNSEEN * w2
