r"""What an observable is: a function of sums of weights in cells.

An event with weight w that passes the selection falls into one *bin* b of a variable (with one bin below and one above
the edges) and one *sub-cell* of it, together its cell c, with amounts :math:`a_k` that are 1 or a value.  The sums over
events are

.. math:: S_{ck} = \sum_i w_i a_{ik}, \qquad T_{ckl} = \sum_i w_i^2 a_{ik} a_{il},

for many weights at once.  So one pass over the events suffices, memory doesn't depend on how many there are, and
weights may have any sign.  The values are functions :math:`y(S)`, and the sample's own statistics gives them, by linear
propagation (the delta method), the covariance

.. math:: V = \frac{\partial y}{\partial S} \, T \, \Big(\frac{\partial y}{\partial S}\Big)^T.

T estimates the covariance of S for independent events whose number is Poisson distributed.  Rows that share an event
key (several generated copies of one event) count as independent given their conditions: the drawing of the
conditions is counted as if there were as many of them as rows.

References: Barlow, Statistics (1989), 4.3; Bohm and Zech, arXiv:1309.1287 (sums of weights).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError, WeightError
from calorefine.events import Column, unit_of
from calorefine.io import reductions
from calorefine.io.provenance import Configured
from calorefine.stats import FloatArray, IntArray


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


@dataclass(frozen=True)
class Binning:
    """Where observables are looked at: a variable, its bins, and which events count.

    Args:
        expression: the variable; branches, arithmetic, and reductions of lists (`calorefine.io.reductions`).
        edges: (n_bins + 1,) increasing.  Bins are closed on the left; the last one on both sides.
        selection: condition on events, None for all.
        title: what the variable is called in plots.
        unit: its unit, None for none.
    """

    expression: str
    edges: FloatArray
    selection: str | None
    title: str
    unit: str | None

    @classmethod
    def of(
        cls,
        expression: str,
        *,
        bins: Regular | None,
        edges: Sequence[float] | None,
        selection: str | None,
        title: str | None,
        unit: str | None,
    ) -> Binning:
        """Check the options of an observable.

        Raises:
            ConfigError: not exactly one of bins and edges, or edges that don't increase.
            ExpressionError: expression or selection can't be parsed.
        """
        for text in (expression, selection):
            reductions.branches(text or "1")
        if (bins is None) == (edges is None):
            given = "neither" if bins is None else "both"
            raise ConfigError(f"observable of '{expression}': {given} of bins and edges given, expected one of them")
        if bins is not None and bins.n < 1:
            raise ConfigError(f"observable of '{expression}': {bins.n} bins found, expected at least 1")
        found = np.linspace(bins.low, bins.high, bins.n + 1) if bins else np.asarray(edges, np.float64)
        if len(found) < 2 or not np.all(np.isfinite(found)) or not np.all(np.diff(found) > 0):
            msg = f"observable of '{expression}': edges {found.tolist()} found, expected two or more, increasing"
            raise ConfigError(msg)
        return cls(expression, found, selection, title or expression, unit or unit_of(expression, Column()))

    @property
    def n_bins(self) -> int:
        """Number of bins between the edges."""
        return len(self.edges) - 1

    def index(self, values: FloatArray) -> IntArray:
        """Bin (n,) of each value: 0 below the edges, 1 to n_bins between them, n_bins + 1 above."""
        found = np.searchsorted(self.edges, values, side="right")
        return np.where(values == self.edges[-1], self.n_bins, found)

    def labels(self) -> list[str]:
        """What each bin is, such as "2 <= p_gev < 4"."""
        last = self.edges[-1]
        return [
            f"{low:g} <= {self.expression} {'<=' if high == last else '<'} {high:g}"
            for low, high in pairwise(self.edges)
        ]


class Observable(Configured, ABC):
    """Something that is measured in bins of a variable.

    Attributes:
        binning: the variable, its bins and the selection.
        n_sub: number of sub-cells of a bin.
        n_amounts: number of amounts that are summed in each cell.
    """

    n_sub: int = 1
    n_amounts: int = 1

    def __init__(
        self,
        expression: str,
        *,
        bins: Regular | None,
        edges: Sequence[float] | None,
        selection: str | None,
        title: str | None,
        unit: str | None,
    ) -> None:
        """Make the binning; the arguments are those of `Binning.of`."""
        self.binning = Binning.of(expression, bins=bins, edges=edges, selection=selection, title=title, unit=unit)

    @property
    def edges(self) -> FloatArray:
        """Edges (n_bins + 1,) of the bins."""
        return self.binning.edges

    @property
    def selection(self) -> str | None:
        """Condition on events, None for all."""
        return self.binning.selection

    @property
    def title(self) -> str:
        """What the variable is called in plots."""
        return self.binning.title

    @property
    def unit(self) -> str | None:
        """Unit of the variable, None for none."""
        return self.binning.unit

    @property
    def axis_label(self) -> str:
        """Title and unit of the variable."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title

    @property
    @abstractmethod
    def value_label(self) -> str:
        """What the values are, for the other axis of a plot."""

    @property
    def n_bins(self) -> int:
        """Number of bins of the variable."""
        return self.binning.n_bins

    @property
    def n_values(self) -> int:
        """Number of values."""
        return self.n_bins

    @property
    def n_cells(self) -> int:
        """Number of cells; bins below and above the edges have theirs, too."""
        return (self.n_bins + 2) * self.n_sub

    def labels(self) -> list[str]:
        """What each value is."""
        return self.binning.labels()

    def expressions(self) -> list[str]:
        """The expressions of one number per event that `fill` takes, in its order."""
        return [self.binning.expression]

    def conditions(self) -> list[str]:
        """The conditions that `fill` takes, in its order."""
        return []

    @abstractmethod
    def fill(
        self, values: Sequence[FloatArray], conditions: Sequence[NDArray[np.bool_]]
    ) -> tuple[IntArray, list[FloatArray | None]]:
        """Tell the cell and the amounts of selected events.

        Args:
            values: of `expressions`, (n,) each, finite.
            conditions: values of `conditions`, (n,) each.

        Returns:
            Cell (n,) and `n_amounts` amounts, (n,) each; None for 1.
        """

    @abstractmethod
    def totals(self, sums: FloatArray) -> FloatArray:
        """What has to be positive for the values to be defined: (..., k), of k bins, or of none."""

    @abstractmethod
    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Values from sums, as `values`, whose check has been done."""

    @abstractmethod
    def covariance(self, sums: FloatArray, sums2: FloatArray) -> FloatArray:
        """Covariance of the values from the sample's own statistics, by linear propagation.

        Args:
            sums: (n_cells * n_amounts,) sums of one weight.
            sums2: (n_cells, n_amounts, n_amounts) sums of its squares times the products of two amounts.

        Returns:
            (n_values, n_values).
        """

    def values(self, sums: FloatArray, *, rows: Sequence[str] | None = None) -> FloatArray:
        """Values from sums.

        Args:
            sums: (..., n_cells * n_amounts) sums of weights times amounts; the amounts of a cell are neighbors.
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
            where = self.binning.labels()[first[-1]] if totals.shape[-1] > 1 or self.n_bins == 1 else "all events"
            msg = f"the weights of {where} sum to {totals[first]:g}{row}, expected a positive sum"
            more = f" ({len(bad)} such sums in all)" if len(bad) > 1 else ""
            raise WeightError(f"{msg}{more}; take wider bins or a wider selection")
        return self.evaluate(sums)

    def by_bin(self, per_cell: NDArray[Any]) -> NDArray[Any]:
        """Sum what is known of each cell (n_cells,) over the sub-cells of each bin: (n_bins + 2,)."""
        return np.asarray(per_cell.reshape(self.n_bins + 2, self.n_sub).sum(axis=1))

    def by_value(self, per_bin: NDArray[Any]) -> NDArray[Any]:
        """Repeat what is known of each bin (n_bins,) for each value: (n_values,)."""
        return np.repeat(per_bin, self.n_values // self.n_bins)

    def options(self) -> dict[str, Any]:
        """Options of the kind of observable besides those of the binning."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Class and options, for JSON; as in the configuration."""
        given = asdict(self.binning) | {"edges": self.edges.tolist()} | self.options()
        return {"class_path": type(self).__name__, "init_args": given}

    def __repr__(self) -> str:
        """Show the variable and the number of bins."""
        return f"{type(self).__name__}({self.binning.expression}, {self.n_bins} bins)"

    def _cells(self, sums: FloatArray) -> FloatArray:
        """Sums as (..., n_bins + 2, n_sub, n_amounts)."""
        return sums.reshape(*sums.shape[:-1], self.n_bins + 2, self.n_sub, self.n_amounts)
