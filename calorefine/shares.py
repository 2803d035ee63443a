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

    Args:
        values: (n,), at least one.
        weight: (n,), any sign, positive sum; 1 if left out.
        bins: their number, or the largest one for integers.

    >>> display_edges(np.array([0.0, 1.0, 1.0, 3.0]))
    array([-0.5,  0.5,  1.5,  2.5,  3.5])
    """
    low, high = map(float, stats.quantile(values, np.ones(len(values)) if weight is None else weight, INSIDE))
    if np.all(values == np.rint(values)):
        step = max(1, -(-int(high - low + 1) // bins))
        return (np.arange(-(-int(high - low + 1) // step) + 1) * step + (low - 0.5)).astype(np.float64)
    margin = MARGIN * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, bins + 1).astype(np.float64)
