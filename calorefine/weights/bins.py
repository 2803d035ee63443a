"""Bins of the context in which weights are found independently of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError, ValueRangeError
from calorefine.events import Arrays
from calorefine.stats import FloatArray
from calorefine.weights.source import column_of


@dataclass(frozen=True)
class ContextBins:
    """Rectangular bins, numbered with the last column running fastest; without columns there is one bin, of everything.

    Args:
        edges: column (branch or expression) to its edges, increasing.  Bins are closed on the left; the last one on
            both sides.

    Raises:
        ConfigError: fewer than two edges, or edges that do not increase.
    """

    edges: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the edges."""
        for name, edges in self.edges.items():
            if len(edges) < 2 or not np.all(np.diff(edges) > 0):
                raise ConfigError(f"in_bins_of {name}: edges {list(edges)} found, expected two or more, increasing")

    def __len__(self) -> int:
        """Return the number of bins."""
        return int(np.prod([len(edges) - 1 for edges in self.edges.values()], dtype=int))

    @property
    def branches(self) -> dict[str, str]:
        """The columns, under their own names."""
        return {name: name for name in self.edges}

    @property
    def labels(self) -> list[str]:
        """What each bin is, such as "2 <= p_gev < 4"; "all events" if there is but one."""
        ranges = [
            [f"{low:g} <= {name} {'<=' if high == edges[-1] else '<'} {high:g}" for low, high in pairwise(edges)]
            for name, edges in self.edges.items()
        ]
        return [", ".join(parts) or "all events" for parts in product(*ranges)]

    def index(self, table: Arrays, n_events: int) -> NDArray[np.int64]:
        """Number of each event's bin (n,); -1 outside.

        Raises:
            BranchError: a column is not in the table.
            ValueRangeError: NaN in a column.
        """
        number, inside = np.zeros(n_events, np.int64), np.ones(n_events, bool)
        for name, edges in self.edges.items():
            values = _values(table, name)
            inside &= (values >= edges[0]) & (values <= edges[-1])
            position = np.searchsorted(np.asarray(edges, float), values, side="right") - 1
            number = number * (len(edges) - 1) + np.minimum(position, len(edges) - 2)
        return np.where(inside, number, -1)


def _values(table: Arrays, name: str) -> FloatArray:
    values = column_of(table, name, "in_bins_of:")
    if missing := int(np.isnan(values).sum()):
        raise ValueRangeError(f"in_bins_of {name}: {missing} of {len(values)} values are NaN, expected none; add a cut")
    return values
