r"""Support: which combinations of conditions the training events populate, inside the ranges of the single columns.

A context is supported if the k-th nearest of a few thousand training contexts is no farther than it is for held-out
events, but for a share `FALSE_ALARMS` of them.  Distances are Euclidean in one coordinate for each numeric column,

.. math:: u_j = \sqrt{12} \, F_j(c_j) + \tfrac{1}{2} \mathrm{arsinh} \frac{c_j - m_j}{s_j} ,

with the column's distribution function F: combinations of independent columns would be uniform in it, so that the
distance measures how much rarer a combination is than its parts.  The second term, with median m and width s, keeps
the width of a gap that no event populates.  Each combination of categories is a place of its own; one that no event has
is not supported.

*The limit* is that of two halves of the events, each of which is held out from the other one.  What is kept is both:
new events are nearer to them, and fewer than `FALSE_ALARMS` are flagged.

*Weights*: the limit is a weighted quantile, so that the rate is that of the events that the weights describe.  Where
weights are signed, events of the background populate places without signal.  An event's content is then the mean
weight of those around it (at least its standard error), and nothing where it is `LEAST_SIGNIFICANCE` standard errors
below `LEAST_SHARE` of the sample's mean weight: a place that the background alone populates supports nothing.  What the
weights can't tell keeps the benefit of the doubt, so that the signal's tails below much background stay supported.

*Measured* with sWeights, 1 to 3 columns, a background 0.7 to 2.5 times as wide as the signal, means of 3 or 4
trainings: at most 0.33 % of true signal flagged at 50 % background (300 to 24 000 events), 0.41 % at 80 % (600 and
4000); of the signal's outer 2 % at most 17 and 20 %.  Of a quarter that no event populates 84 to 87 % in two columns
and 62 to 68 % in three are flagged; of one that only background populates 42 % (24 000 events, two columns) and fewer
with fewer events.

Reference: Ramaswamy, Rastogi and Shim, doi:10.1145/342009.335437 (distance to the k-th neighbor).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from calorefine import keys, stats
from calorefine.events import Columns
from calorefine.stats import FloatArray, IntArray

FALSE_ALARMS = 0.005
POINTS, NEIGHBOR = 6000, 5
APART = 1e6  # between places; coordinates are a few units
LEAST_OWN = 100  # points of a combination of categories that is a place of its own; the rarer ones share one
MOST_AROUND, AROUND, LEAST_SIGNIFICANCE, LEAST_SHARE = 20_000, 100.0, 2.0, 0.3


@dataclass(frozen=True, eq=False)
class Support:
    """Training contexts, and how near to them a context has to be.

    Args:
        points: (m, c) encoded contexts.
        limit: largest distance to the k-th nearest of them.
        categorical: (c,) whether a column is that of a category.
        combinations: (g,) codes of the combinations of categories that training events have, ascending.
        places: (g,) where each is.
    """

    points: NDArray[np.float32]
    limit: float
    categorical: NDArray[np.bool_]
    combinations: IntArray
    places: IntArray

    @classmethod
    def fit(
        cls, context: NDArray[np.float32], weight: FloatArray, event_key: keys.KeyArray, columns: Columns
    ) -> Self | None:
        """Choose points by hash of their keys, and find the limit.

        Args:
            context: (n, c) encoded.
            weight: (n,) any sign; events of weight 0 don't count.
            event_key: (n,) events that share one are in the same half.
            columns: what the context is.

        Returns:
            The support; None without context, or of too few events.
        """
        draw = keys.stream(event_key, "support")
        order = np.argsort(draw, kind="stable")
        order = order[weight[order] != 0]
        if context.shape[1] == 0 or len(order) < 4 * NEIGHBOR:
            return None
        described = columns.context_columns.values()
        categorical = np.concatenate([np.full(len(c.categories or [0]), c.categories is not None) for c in described])
        codes = _codes(context[order], categorical)
        combinations, places = np.unique(codes), np.zeros(len(np.unique(codes)), np.int64)
        often, count = np.unique(codes[:POINTS], return_counts=True)
        own = np.isin(combinations, often[count >= LEAST_OWN])
        places[own] = 1 + np.arange(own.sum())
        around, chosen = order[:MOST_AROUND], order[:POINTS]
        whole = cls(context[around], np.inf, categorical, combinations, places)
        content = signal_content(whole.coordinates(context[around]), weight[around], len(chosen))
        kept = chosen[content > 0]
        support = replace(whole, points=context[kept])
        return replace(support, limit=support._limit(draw[kept] % 2 == 0, content[content > 0]))

    def holds(self, context: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Tell which rows of encoded context (n, c) are supported."""
        held, _ = self._located(context)
        distance = self._tree.query(self.coordinates(context[held]), k=[min(NEIGHBOR, len(self.points))])[0][:, 0]
        held[held] = distance <= self.limit
        return held

    def coordinates(self, context: NDArray[np.float32]) -> FloatArray:
        """Coordinates (n, q + 1) of encoded context (n, c) that distances are taken in, the place among them."""
        numeric = context[:, ~self.categorical].T
        out = [APART * self._located(context)[1]]
        for values, (known, share, center, width) in zip(numeric, self._scales, strict=True):
            out.append(np.sqrt(12) * np.interp(values, known, share) + np.arcsinh((values - center) / width) / 2)
        return np.stack(out, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for the checkpoint."""
        return {field.name: np.asarray(getattr(self, field.name)).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        kinds = {"points": np.float32, "categorical": bool, "combinations": np.int64, "places": np.int64}
        return cls(
            limit=float(values["limit"]), **{name: np.asarray(values[name], kind) for name, kind in kinds.items()}
        )

    def _limit(self, half: NDArray[np.bool_], content: FloatArray) -> float:
        """Weighted quantile of the points' distances from those of the other half; of what is near any."""
        points, distance = self.coordinates(self.points), np.full(len(half), np.inf)
        for side in (half, ~half):
            if side.any() and not side.all():
                distance[side] = KDTree(points[~side]).query(points[side], k=[NEIGHBOR])[0][:, 0]
        near = distance < APART / 2
        return float(stats.quantile(distance[near], content[near], 1 - FALSE_ALARMS)) if near.any() else np.inf

    def _located(self, context: NDArray[np.float32]) -> tuple[NDArray[np.bool_], IntArray]:
        """Whether training events have the categories of each row (n, c), and their place."""
        codes = _codes(context, self.categorical)
        index = np.searchsorted(self.combinations, codes).clip(max=len(self.combinations) - 1)
        return self.combinations[index] == codes, self.places[index]

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.coordinates(self.points))

    @cached_property
    def _scales(self) -> list[tuple[NDArray[np.float32], FloatArray, float, float]]:
        """Of each numeric column the distinct values, the share of the points up to the middle of each, m and s."""
        scales = []
        for values in self.points[:, ~self.categorical].T:
            known, count = np.unique(values, return_counts=True)
            low, center, high = np.quantile(values, [0.16, 0.5, 0.84])
            width = (high - low) / 2 or float(np.ptp(values)) or 1.0
            scales.append((known, (np.cumsum(count) - count / 2) / len(values), float(center), float(width)))
        return scales


def signal_content(points: FloatArray, weight: FloatArray, n: int) -> FloatArray:
    """How much the first n events count: their weights or, of signed ones, the mean weight around each.

    Around are as many events as make the sum of weights known to a tenth, on average.

    Args:
        points: (m, q) coordinates of all events.
        weight: (m,) any sign, positive sum.
        n: number of events.

    Returns:
        (n,) not negative; 0 where signed weights around an event are significantly below a share of the mean weight.
    """
    if np.all(weight >= 0):
        return weight[:n]
    k = int(np.clip(AROUND * len(weight) / stats.n_eff(weight), 1, max(1, len(weight) // 10)))
    tree, parts = KDTree(points), np.array_split(points[:n], 1 + n * k // 1_000_000)
    near = [weight[tree.query(part, k=np.arange(1, k + 1))[1]] for part in parts]
    total, squares = (np.concatenate([part.sum(axis=1) for part in sums]) for sums in (near, [w**2 for w in near]))
    error, least = np.sqrt(squares), LEAST_SHARE * k * weight.mean()
    return np.where(total + LEAST_SIGNIFICANCE * error < least, 0.0, np.maximum(total, error) / k)


def _codes(context: NDArray[np.float32], categorical: NDArray[np.bool_]) -> IntArray:
    """One integer for each combination of categories, of encoded context (n, c)."""
    words = keys.stream(np.arange(len(categorical), dtype=np.uint64), "category").view(np.int64)
    return context[:, categorical].astype(np.int64) @ words[categorical]
