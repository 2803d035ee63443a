r"""What an observable is: a function of sums of weights in cells.

An event with weight w that passes the selection falls into one *bin* b of a variable (with one bin below and one above
the edges) and one *sub-cell* of it, together its cell c, with amounts :math:`a_k` that are 1 or a value.  The sums over
events are

.. math:: S_{ck} = \sum_i w_i a_{ik}

for many weights at once, of any sign.  The values are functions :math:`y(S)`; with their derivatives
:math:`\partial y / \partial S` follow the errors by the sample's own statistics (`statistics`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from calorefine.errors import ConfigError, WeightError
from calorefine.events import Column, unit_of
from calorefine.intervals import UNSEEN
from calorefine.io import reductions
from calorefine.io.provenance import Configured
from calorefine.stats import FloatArray, IntArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class BinStatistics:
    """Sums over events, those of equal key first, in each of n_bins + 2 bins.

    Attributes:
        n: number of events, or of groups of equal key.
        sum_w: sum of the weights.
        sum_w2: sum of the squares.
    """

    n: IntArray
    sum_w: FloatArray
    sum_w2: FloatArray

    @property
    def w2(self) -> FloatArray:
        """Mean square of an event's weight; that of all bins in an empty one."""
        mean = self.sum_w2.sum() / max(int(self.n.sum()), 1)
        w2: FloatArray = np.divide(self.sum_w2, self.n, out=np.full(len(self.n), mean), where=self.n > 0)
        return w2

    @property
    def unseen(self) -> FloatArray:
        """Variance of each sum by a few events that are not there; 0 beyond the edges if all events lie between."""
        return UNSEEN * self.w2 * (np.pad(np.ones(len(self.n) - 2, bool), 1) | (self.n > 0))


@dataclass(frozen=True)
class Regular:
    """Bins of equal width.

    Args:
        n: number of bins.
        low: lowest edge.
        high: highest edge.
    """

    n: int
    low: float
    high: float


class _OfVariable:
    """Every observable has a variable; it is no field here since it comes after other arguments in some."""

    expression: str


@dataclass(kw_only=True, eq=False, repr=False)
class Observable(_OfVariable, Configured, ABC):
    """Something that is measured in bins of a variable: `expression`, the first or second argument of each kind.

    Expressions hold branches, arithmetic, and reductions of lists (`calorefine.io.reductions`).  Bins are closed on the
    left; the last one on both sides.

    Args:
        bins: bins of equal width; or else
        edges: edges of the bins.
        selection: condition on events.
        title: name of the variable in plots; the expression if left out.
        unit: its unit; taken from the suffix of a branch such as `p_gev` if left out.

    Attributes:
        edge_array: (n_bins + 1,) edges of the bins, however they were given.
        n_sub: number of sub-cells of a bin.
        n_amounts: number of amounts that are summed in each cell.
        per_bin: number of values in each bin.

    Raises:
        ConfigError: not exactly one of bins and edges, or edges that don't increase.
        ExpressionError: an expression or condition can't be parsed.
    """

    bins: Regular | None = None
    edges: list[float] | None = None
    selection: str | None = None
    title: str | None = None
    unit: str | None = None
    edge_array: FloatArray = field(init=False)
    n_sub = 1
    n_amounts = 1
    per_bin = 1

    def __post_init__(self) -> None:
        """Check the options, and fill in those that follow from others."""
        for text in self.texts():
            reductions.branches(text)
        what = f"observable of '{self.expression}'"
        if (self.bins is None) == (self.edges is None):
            given = "neither" if self.bins is None else "both"
            raise ConfigError(f"{what}: {given} of bins and edges given, expected one of them")
        if self.bins is not None and self.bins.n < 1:
            raise ConfigError(f"{what}: {self.bins.n} bins found, expected at least 1")
        regular = self.bins and np.linspace(self.bins.low, self.bins.high, self.bins.n + 1)
        edges = np.asarray(self.edges if regular is None else regular, np.float64)
        if len(edges) < 2 or not np.all(np.isfinite(edges)) or not np.all(np.diff(edges) > 0):
            raise ConfigError(f"{what}: edges {edges.tolist()} found, expected two or more, increasing")
        self.bins, self.edges, self.edge_array = None, edges.tolist(), edges
        self.title, self.unit = self.title or self.expression, self.unit or unit_of(self.expression, Column())

    @property
    def axis_label(self) -> str:
        """Title and unit of the variable."""
        return f"{self.title} [{self.unit}]" if self.unit else str(self.title)

    @property
    @abstractmethod
    def value_label(self) -> str:
        """What the values are, for the other axis of a plot."""

    @property
    def n_bins(self) -> int:
        """Number of bins between the edges."""
        return len(self.edge_array) - 1

    @property
    def n_values(self) -> int:
        """Number of values."""
        return self.n_bins * self.per_bin

    @property
    def cell_count(self) -> int:
        """Number of cells; bins below and above the edges have theirs, too."""
        return (self.n_bins + 2) * self.n_sub

    def bin_of(self, values: FloatArray) -> IntArray:
        """Bin (n,) of each value of the variable: 0 below the edges, 1 to n_bins between them, n_bins + 1 above."""
        bins = np.searchsorted(self.edge_array, values, side="right")
        return np.where(values == self.edge_array[-1], self.n_bins, bins)

    def bin_labels(self) -> list[str]:
        """What each bin is, such as "2 <= p_gev < 4"."""
        ends = ["<"] * (self.n_bins - 1) + ["<="]
        pairs = zip(pairwise(self.edge_array), ends, strict=True)
        return [f"{low:g} <= {self.expression} {end} {high:g}" for (low, high), end in pairs]

    def labels(self) -> list[str]:
        """What each value is."""
        return self.bin_labels()

    def expressions(self) -> list[str]:
        """The expressions of one number per event that `fill` takes, in its order."""
        return [self.expression]

    def conditions(self) -> list[str]:
        """The conditions that `fill` takes, in its order."""
        return []

    def texts(self) -> list[str]:
        """All that has to be evaluated for each event."""
        return [*self.expressions(), *self.conditions(), self.selection or "1"]

    @abstractmethod
    def fill(self, values: Sequence[FloatArray], conditions: Sequence[Mask]) -> tuple[IntArray, list[FloatArray]]:
        """Tell the cell and the amounts of selected events.

        Args:
            values: of `expressions`, (n,) each, finite.
            conditions: values of `conditions`, (n,) each.

        Returns:
            Cell (n,) and `n_amounts` amounts, (n,) each.
        """

    @abstractmethod
    def totals(self, sums: FloatArray) -> FloatArray:
        """What has to be positive for the values to be defined: (..., k), of k bins, or of none."""

    @abstractmethod
    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Values from sums, as `values`, whose check has been done."""

    @abstractmethod
    def jacobian(self, sums: FloatArray, squares: FloatArray) -> sparse.csr_array:
        """Derivatives of the values with respect to the sums: the influence of an event of weight 1 and amount 1.

        Args:
            sums: (cell_count * n_amounts,) sums of one weight.
            squares: (cell_count,) sums of its squares.

        Returns:
            (n_values, cell_count * n_amounts).
        """

    @abstractmethod
    def unseen(self, sums: FloatArray, squares: FloatArray, variance: FloatArray, bins: BinStatistics) -> FloatArray:
        """Covariance (n_values, n_values) by which the events that a bin happens not to hold may move the values.

        Args:
            sums: as in `jacobian`.
            squares: as in `jacobian`.
            variance: (n_values,) of the events that there are.
            bins: what is known of each bin.
        """

    def interval(self, values: FloatArray, variance: FloatArray, errors: FloatArray, bins: BinStatistics) -> FloatArray:  # noqa: ARG002
        """Central 68.27 % intervals (2, n_values); by the symmetric errors (n_values,), unless a kind knows better."""
        return np.stack([values - errors, values + errors])

    def values(self, sums: FloatArray, *, rows: Sequence[str] | None = None) -> FloatArray:
        """Values from sums.

        Args:
            sums: (..., cell_count * n_amounts) sums of weights times amounts; the amounts of a cell are neighbors.
            rows: names of the weights along the first axis, for messages.

        Returns:
            (..., n_values), finite.

        Raises:
            WeightError: the weights of a bin whose sum is divided by don't have a positive sum.
        """
        totals = self.totals(sums)
        if len(bad := np.argwhere(~(totals > 0))):
            first = tuple(bad[0])
            row = "" if len(first) == 1 else f" with {rows[first[0]] if rows else f'weight {first[0]}'}"
            where = self.bin_labels()[first[-1]] if totals.shape[-1] > 1 or self.n_bins == 1 else "all events"
            msg = f"the weights of {where} sum to {totals[first]:g}{row}, expected a positive sum"
            more = f" ({len(bad)} such sums in all)" if len(bad) > 1 else ""
            raise WeightError(f"{msg}{more}; take wider bins or a wider selection")
        return self.evaluate(sums)

    def by_bin(self, per_cell: NDArray[Any]) -> NDArray[Any]:
        """Sum what is known of each cell (cell_count,) over the sub-cells of each bin: (n_bins + 2,)."""
        return np.asarray(per_cell.reshape(self.n_bins + 2, self.n_sub).sum(axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Class and options, for JSON; as in the configuration, with `edges` also where `bins` were given."""
        options = {item.name: getattr(self, item.name) for item in fields(self) if item.init and item.name != "bins"}
        return {"class_path": type(self).__name__, "init_args": options}

    def __repr__(self) -> str:
        """Show the variable and the number of bins."""
        return f"{type(self).__name__}({self.expression}, {self.n_bins} bins)"

    def _inside(self, sums: NDArray[Any]) -> NDArray[Any]:
        """Sums as (..., n_bins, n_sub, n_amounts), without what is below and above the edges."""
        return np.asarray(sums.reshape(*sums.shape[:-1], self.n_bins + 2, self.n_sub, self.n_amounts)[..., 1:-1, :, :])
