r"""The share of one sample that another one doesn't cover, however large its weights.

An event can't be weighted up where none was generated: such a hole is reported as a fraction, not as a weight.  The
share of the reference that even K = 10 times the generated density doesn't cover is

.. math:: U = \int \max(p_\mathrm{ref} - K p_\mathrm{gen}, 0) = \max_A \left(R(A) - K G(A)\right) ,

with the probabilities R and G of a region A.  It is 0 where no ratio is above K, and the share of the hole where
nothing was generated.  Regions are those where a score exceeds a threshold: the score of boosted trees, cross-fitted,
on features, context and the reweighter's own log ratio.  Any region gives a lower bound, so that a bad score misses a
hole but doesn't invent one.  Only the order of the scores matters: a bounded or a badly calibrated ratio does no harm.

Trees resolve what is cut in a feature or two, with a loss of some events next to the edge; of holes that are slanted in
many features, or round, they find a part.  Two other estimators were measured with sharp holes: the share of the
reference above a threshold of the network's log ratio, and one minus the mean ratio over generated events.  They find a
half or less, since the edge of a network is soft.

The error is that of the shares in the region found, from the influences of all events, those of equal key (copies at
the same conditions, twins in the other sample) summed before squaring.

With exchanged roles it is the share of the generated events that the reference doesn't have.

References: Polyanskiy, Poor and Verdu, doi:10.1109/TIT.2010.2043769 (this divergence, for any K).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calorefine import keys, stats
from calorefine.events import Events
from calorefine.reweighting.boosting import BoostingRatio
from calorefine.reweighting.ratio import WeightedRows, fit_ratio
from calorefine.stats import FloatArray

MOST_COVERED = 10.0
TIE_BREAKER = 0.1  # trees are constant in their bins: there the reweighter's log ratio decides the order


@dataclass(frozen=True)
class Share:
    """A share of a sample, with its standard error for the region that was found."""

    value: float
    error: float


@dataclass(frozen=True)
class Coverage:
    """What one sample has and the other one lacks.

    Attributes:
        uncovered: share of the reference that no weight of at most `MOST_COVERED` makes up for.
        invented: share of the generated sample of which the reference has less than 1 / `MOST_COVERED`.
    """

    uncovered: Share
    invented: Share


def coverage(generated: Events, reference: Events, log_ratios: tuple[FloatArray, FloatArray], *, seed: int) -> Coverage:
    """Both shares.

    Args:
        generated: weights that are not negative.
        reference: weights of any sign.
        log_ratios: (n,) and (m,) of the reweighter, cross-fitted.
        seed: of folds and trees.

    Raises:
        WeightError, EmptySelectionError: as `fit_ratio`.
    """
    tables = [_table(*pair) for pair in zip((generated, reference), log_ratios, strict=True)]
    smaller = min(len(table) for table in tables)
    trees = BoostingRatio(n_trees=200, max_leaf_nodes=31, min_samples_leaf=max(min(40, smaller // 50), 5), n_repeats=1)
    ratio = fit_ratio(tables[0], tables[1], trees, seed=seed)
    scores = [ratio(t.values, t.event_key) + TIE_BREAKER * f for t, f in zip(tables, log_ratios, strict=True)]
    own, other = (scores[1], reference.weight), (scores[0], generated.weight)
    event_keys = reference.event_key, generated.event_key
    reverse = (-other[0], other[1]), (-own[0], own[1])
    return Coverage(excess(own, other, event_keys=event_keys), excess(*reverse, event_keys=event_keys[::-1]))


def _table(events: Events, log_ratio: FloatArray) -> WeightedRows:
    columns = [events.x, events.context, log_ratio[:, None].astype(np.float32)]
    return WeightedRows(np.concatenate(columns, axis=1), events.weight, events.event_key)


def excess(
    own: tuple[FloatArray, FloatArray],
    other: tuple[FloatArray, FloatArray],
    *,
    event_keys: tuple[keys.KeyArray, keys.KeyArray],
) -> Share:
    """Largest R(A) - K G(A) of all regions A above a threshold of the score; 0 if none is positive.

    Args:
        own: scores and weights (n,) of the sample whose share it is.
        other: scores and weights (m,) of the one that should cover it.
        event_keys: (n,) and (m,); events of equal key count as correlated.

    >>> scores, event_keys = np.array([0.0, 1.0, 2.0, 3.0]), np.arange(8, dtype=np.uint64)
    >>> excess((scores, np.ones(4)), (scores - 1, np.ones(4)), event_keys=(event_keys[:4], event_keys[4:])).value
    0.25
    """
    scores = np.concatenate([own[0], other[0]])
    parts = [w / stats.require_positive_sum(w, "coverage") for w in (own[1], other[1])]
    distinct, group = np.unique(scores, return_inverse=True)
    n = len(own[0])
    sums = np.bincount(group[:n], parts[0], len(distinct)) - MOST_COVERED * np.bincount(
        group[n:], parts[1], len(distinct)
    )
    above = np.cumsum(sums[::-1])[::-1]
    best = int(np.argmax(above))
    inside = [one[0] >= distinct[best] if above[best] > 0 else np.zeros(len(one[0]), bool) for one in (own, other)]
    influence = [part * (mask - np.sum(part[mask])) for part, mask in zip(parts, inside, strict=True)]
    signed = np.concatenate([influence[0], -MOST_COVERED * influence[1]])
    error = np.sqrt(stats.sum_w2(stats.group_sums(signed, keys.group(*event_keys))))
    return Share(max(float(above[best]), 0.0), float(error))
