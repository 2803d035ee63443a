"""Shares of weighted samples in bins, and bins in which a column can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.stats import FloatArray

INSIDE = (0.002, 0.998)  # quantiles that the bins span
MARGIN = 0.05
TAILS = (0.01, 0.5, 0.99)  # quantiles that tell whether a column spans decades
DECADES, CROWDED = 30.0, 1 / 8  # least ratio of the outer two; share of a linear axis that holds half of the events


@dataclass(frozen=True)
class Shares:
    """Shares of samples in bins, each of its own sum of weights.

    Attributes:
        edges: (b + 1) of the bins.
        values: sample to its shares (b).
        errors: sample to the roots of their sums of squares (b), where rows of one event are summed before.
    """

    edges: list[float]
    values: dict[str, list[float]]
    errors: dict[str, list[float]]

    @classmethod
    def of(cls, edges: FloatArray, samples: Mapping[str, tuple[NDArray[Any], ...]]) -> Shares:
        """Fill values and weights of each sample; those outside count in the sum alone.

        Args:
            edges: (b + 1,) of the bins.
            samples: values (n,), weights (n,) of any sign and positive sum and, if rows may be of one event, event keys
                (n,).
        """
        values, errors = {}, {}
        for name, (column, weight, *event_key) in samples.items():
            part = weight / stats.require_positive_sum(weight, f"histogram, {name}")
            cell = np.where(column == edges[-1], len(edges) - 1, np.searchsorted(edges, column, side="right"))
            sums = stats.WeightSums(1, len(edges) + 1)
            sums.add(part[:, None], cell=cell, group=keys.group(*event_key) if event_key else None)
            values[name] = sums.sum_w[1:-1, 0].tolist()
            errors[name] = np.sqrt(sums.sum_w2[1:-1, 0]).tolist()
        return cls(np.asarray(edges).tolist(), values, errors)

    def outside(self, sample: str) -> float:
        """Share of a sample that is in no bin; rounding is not."""
        return max(round(1 - sum(self.values[sample]), 9), 0.0)


def display_edges(values: FloatArray, weight: FloatArray | None = None, *, bins: int = 40) -> FloatArray:
    """Bins over the central 99.6 % of a sample and a margin; whole numbers of integers where values are integers.

    Bins of values that span decades are equally wide in the logarithm.

    Args:
        values: (n,), at least one.
        weight: (n,), any sign, positive sum; 1 if left out.
        bins: their number, or the largest one for integers.

    >>> display_edges(np.array([0.0, 1.0, 1.0, 3.0]))
    array([-0.5,  0.5,  1.5,  2.5,  3.5])
    """
    weight = np.ones(len(values)) if weight is None else weight
    low, high = map(float, stats.quantile(values, weight, INSIDE))
    if np.all(values == np.rint(values)):
        step = max(1, -(-int(high - low + 1) // bins))
        return (np.arange(-(-int(high - low + 1) // step) + 1) * step + (low - 0.5)).astype(np.float64)
    log = low > 0 and _decades(*map(float, stats.quantile(values, weight, TAILS)))
    spaced = np.geomspace if log else np.linspace
    return np.asarray(spaced(*widened(low, high, log=log), bins + 1), np.float64)


def spans_decades(edges: FloatArray) -> bool:
    """Whether bins (b + 1,) are to be seen on a logarithmic axis: positive, over decades, half of them in an eighth.

    >>> spans_decades(np.geomspace(1.0, 1000.0, 11)), spans_decades(np.linspace(1.0, 1000.0, 11))
    (True, False)
    """
    return bool(edges[0] > 0) and _decades(*np.quantile(edges, TAILS).tolist())


def _decades(low: float, middle: float, high: float) -> bool:
    """Whether quantiles say so: a uniform sample, and most of an exponential one, are seen on a linear axis."""
    return low > 0 and high > DECADES * low and middle - low < CROWDED * (high - low)


def widened(low: float, high: float, *, log: bool, margin: float = MARGIN) -> tuple[float, float]:
    """Ends with a margin on both sides, of the distance or, on a logarithmic axis, of the ratio.

    >>> widened(1.0, 3.0, log=False, margin=0.5), widened(1.0, 100.0, log=True, margin=0.5)
    ((0.0, 4.0), (0.1, 1000.0))
    """
    if log:
        factor = (high / low) ** margin
        return low / factor, high * factor
    more = margin * (high - low) or 0.5
    return low - more, high + more


def middles(edges: FloatArray) -> FloatArray:
    """Middles of bins (b,) as they are seen."""
    return np.sqrt(edges[1:] * edges[:-1]) if spans_decades(edges) else 0.5 * (edges[1:] + edges[:-1])
