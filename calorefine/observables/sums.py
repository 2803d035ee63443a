"""Sums of one observable over chunks, for all weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from calorefine.errors import EmptySelectionError, WeightError
from calorefine.io.sources import Source
from calorefine.observables.observable import BinStatistics, Mask, Observable
from calorefine.observables.quantiles import Quantile
from calorefine.observables.reading import Evaluated
from calorefine.stats import FloatArray


@dataclass(frozen=True)
class Beyond:
    """Rows beyond the edges, their sum of weights, of squares (rows of equal key first), variance of their share."""

    n: int
    sum_w: float
    sum_w2: float
    share_variance: float


@dataclass(frozen=True)
class Entries:
    """How many events an observable has, with the nominal weight.

    Attributes:
        n_selected: rows that pass the selection, also those beyond the edges.
        sum_w: sum of their weights.
        sum_w2: sum of their squared weights, where those of equal key are summed before.
        n_eff: effective number of events.
        underflow: those below the edges.
        overflow: those above.
        n_off_grid: rows within the edges, but beyond the sub-cells of a quantile; they count there as well.
    """

    n_selected: int
    sum_w: float
    sum_w2: float
    n_eff: float
    underflow: Beyond
    overflow: Beyond
    n_off_grid: int

    @property
    def n_inside(self) -> int:
        """Selected rows within the edges."""
        return self.n_selected - self.underflow.n - self.overflow.n

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class ObservableSums:
    """Sums of one observable over chunks.

    The weights have one column more than the rows of the result: the nominal weight of events inside the domain.

    Args:
        name: of the observable.
        observable: with its sub-cells chosen.
        n_weights: number of rows of the result.
    """

    def __init__(self, name: str, observable: Observable, n_weights: int) -> None:
        """Start at 0."""
        self.name, self.observable = name, observable
        n = observable.cell_count
        self.sums, self.squares = np.zeros((n * observable.n_amounts, n_weights + 1)), np.zeros(n)
        self.counts, self.outside = np.zeros((2, n), np.int64)

    def add(self, chunk: Evaluated, weights: FloatArray, inside: Mask, bad: Counter[str]) -> None:
        """Count the events of a chunk with weights (n, V + 1); those inside the domain are told by a mask (n,)."""
        keep, columns = chunk.selected(self.name, self.observable, bad)
        bad[f"{self.name}: weights"] += int(np.sum(~np.isfinite(weights[keep]).all(axis=1)))
        if bad.total():
            return
        cell, amounts = self._filled(chunk, keep, columns)
        n = self.observable.cell_count
        self.sums += amounts.T @ weights
        self.squares += np.bincount(cell, weights[keep, 0] ** 2, n)
        self.counts += np.bincount(cell, minlength=n)
        self.outside += np.bincount(cell[~inside[keep]], minlength=n)

    def amounts(self, chunk: Evaluated) -> sparse.csr_array:
        """Amounts (n, sums) of a chunk's rows, all 0 where they are not selected."""
        return self._filled(chunk, *chunk.selected(self.name, self.observable, Counter()))[1]

    def _filled(
        self, chunk: Evaluated, keep: NDArray[np.int64], columns: Sequence[FloatArray]
    ) -> tuple[NDArray[np.int64], sparse.csr_array]:
        """Cells of the selected rows, and the amounts of all rows."""
        m, conditions = self.observable.n_amounts, self.observable.conditions()
        cell, amounts = self.observable.fill(columns, [chunk.condition(text)[keep] for text in conditions])
        at = (cell * m + np.arange(m)[:, None]).ravel()
        shape = (chunk.n, len(self.sums))
        return cell, sparse.csr_array((np.concatenate(amounts), (np.tile(keep, m), at)), shape=shape)

    def values(self, source: Source, rows: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Values (V, n), and what the first row lacks without events outside the domain (n,).

        Raises:
            EmptySelectionError: no event is selected.
            WeightError: the weights of a bin don't have a positive sum.
        """
        observable, where = self.observable, f"{source}: observable '{self.name}'"
        if not self.counts.any():
            reason = f"after the selection '{observable.selection}'" if observable.selection else "in the tree"
            raise EmptySelectionError(f"{where}: no event is left {reason}, expected some")
        sums, shift, hint = np.ascontiguousarray(self.sums.T), np.zeros(observable.n_values), ""
        try:
            values = observable.values(sums[:-1], rows=rows)
            if n_outside := self.outside.sum():
                where += f": without the {n_outside} events outside the training domain, "
                hint = "; or leave out bins that lie outside"
                shift = observable.values(sums[-1]) - values[0]
        except WeightError as error:
            raise WeightError(f"{where.removesuffix(', ')}{',' if hint else ':'} {error}{hint}") from error
        return values, shift

    @property
    def nominal(self) -> FloatArray:
        """Values (n,) of the first row."""
        return self.observable.values(self.sums[:, 0])

    def jacobian(self) -> sparse.csr_array:
        """Derivatives (n, sums) of the nominal values."""
        return self.observable.jacobian(self.sums[:, 0], self.squares)

    def totals(self) -> sparse.csr_array:
        """Derivatives (n_bins + 5, sums) of each bin's sum of weights, of that of all, and of the shares beyond."""
        first = sparse.eye_array(self.observable.cell_count, format="csr")
        first = sparse.kron(first, np.eye(1, self.observable.n_amounts), format="csr")  # of the weights themselves
        bins = sparse.kron(sparse.eye_array(self.observable.n_bins + 2), np.ones((1, self.observable.n_sub))) @ first
        every, share = bins.sum(axis=0)[None], (bins @ self.sums[:, 0])[[0, -1]]
        total = float((every @ self.sums[:, 0])[0]) or np.nan
        beyond = (bins.toarray()[[0, -1]] - (share / total)[:, None] * every) / total
        return sparse.vstack([bins, sparse.csr_array(every), sparse.csr_array(beyond)], format="csr")

    @property
    def n_totals(self) -> int:
        """Number of `totals`."""
        return self.observable.n_bins + 5

    def bins(self, n: NDArray[np.int64], squares: FloatArray) -> BinStatistics:
        """What is known of the bins, from numbers and squares of `totals`."""
        sums = self.observable.by_bin(self.sums[:: self.observable.n_amounts, 0])
        return BinStatistics(n[: len(sums)], sums, squares[: len(sums)])

    def entries(self, bins: BinStatistics, squares: FloatArray) -> Entries:
        """Numbers of events, from the squares of `totals`."""
        numbers, total, sum_w2 = self.observable.by_bin(self.counts), float(bins.sum_w.sum()), float(squares[-3])
        share, more = bins.sum_w / (total or np.nan), bins.unseen
        variance = squares[-2:] + (more * (1 - 2 * share) + share**2 * more.sum())[[0, -1]] / (total or np.nan) ** 2
        low, high = (
            Beyond(int(numbers[k]), float(bins.sum_w[k]), float(bins.sum_w2[k]), float(variance[k])) for k in (0, -1)
        )
        off = int(self.observable.off_grid(self.counts).sum()) if isinstance(self.observable, Quantile) else 0
        return Entries(int(numbers.sum()), total, sum_w2, total**2 / sum_w2 if sum_w2 else 0.0, low, high, off)

    def outside_counts(self) -> NDArray[Any]:
        """Events outside the domain (n,) in the bin of each value."""
        return np.repeat(self.observable.by_bin(self.outside)[1:-1], self.observable.per_bin)
