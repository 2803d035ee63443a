"""Measure observables in ROOT files: for the nominal weight and many others at once, in one pass, streamed.

For a chunk of n rows and V weights, the sums of an observable are a sparse matrix (cells, n), with an event's amounts
in its column, times the matrix (n, V) of weights.  Only the nominal weight needs sums of squares.

The statistics of a sample correlate observables of the same events; `Measured.statistics` leaves that out: it holds one
block for each observable.  Replica weights carry all correlations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import hist
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.sparse import csr_matrix

from calorefine.errors import EmptySelectionError, WeightError, nearest
from calorefine.io.chunks import CHUNK_ROWS
from calorefine.io.sources import Source
from calorefine.observables import reading
from calorefine.observables.histogram import Histogram
from calorefine.observables.observable import Mask, Observable
from calorefine.observables.quantiles import Quantile
from calorefine.observables.reading import Evaluated, Weights
from calorefine.stats import FloatArray, IntArray

_CHUNK_WEIGHTS = 5_000_000  # rows times weights held at a time


@dataclass(frozen=True)
class Beyond:
    """Events beyond the edges: their number, sum of weights and sum of squared weights."""

    n: int
    sum_w: float
    sum_w2: float


@dataclass(frozen=True)
class Entries:
    """How many events an observable has, with the nominal weight.

    Attributes:
        n_selected: events that pass the selection, also those beyond the edges.
        sum_w: sum of their weights.
        sum_w2: sum of their squared weights.
        n_eff: effective number of them.
        underflow: those below the edges.
        overflow: those above.
        n_off_grid: events within the edges, but beyond the sub-cells of a quantile; they count there as well.
    """

    n_selected: int
    sum_w: float
    sum_w2: float
    n_eff: float
    underflow: Beyond
    overflow: Beyond
    n_off_grid: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def shares_beyond(self) -> tuple[FloatArray, FloatArray]:
        """Shares (2,) of the sum of weights below and above the edges, and variances as of a normalized `Histogram`."""
        shares = np.array([part.sum_w for part in (self.underflow, self.overflow)]) / self.sum_w
        squares = np.array([part.sum_w2 for part in (self.underflow, self.overflow)])
        return shares, (squares * (1 - 2 * shares) + shares**2 * self.sum_w2) / self.sum_w**2


@dataclass(frozen=True)
class Measured:
    """Values of all bins of all observables, in one row after the other.

    Attributes:
        observables: by name, with their sub-cells chosen; give them to `measure` again to measure another sample in the
            same cells.
        values: (V, n), one row for each weight; the first is the nominal one.
        statistics: (n, n) covariance of the first row from the sample's own statistics, one block for each observable.
        entries: by name.
        outside: (n,) what the first row would be without the events outside the training domain, minus the first row.
        outside_counts: (n,) number of selected events outside the domain in the bin of each value.
        rows: name of each weight.
    """

    observables: dict[str, Observable]
    values: FloatArray
    statistics: FloatArray
    entries: dict[str, Entries]
    outside: FloatArray
    outside_counts: IntArray
    rows: tuple[str, ...]

    def part(self, name: str) -> slice:
        """Where the values of an observable are.

        Raises:
            KeyError: there is no such observable.
        """
        if name not in self.observables:
            raise KeyError(f"there is no observable '{name}'{nearest(name, self.observables)}")
        return slices({key: observable.n_values for key, observable in self.observables.items()})[name]

    def histograms(self) -> dict[str, hist.Hist[Any]]:
        """The first row as `hist` objects, with the variances of the sample's own statistics.

        An axis of levels follows in those of several quantiles.  Histograms have the sums below and above the edges in
        their flow bins; the flow bins of other kinds are empty.
        """
        return {name: self._histogram(name, observable) for name, observable in self.observables.items()}

    def _histogram(self, name: str, observable: Observable) -> hist.Hist[Any]:
        axes: list[Any] = [hist.axis.Variable(observable.edge_array, label=observable.axis_label)]
        if isinstance(observable, Quantile) and observable.per_bin > 1:
            axes.append(hist.axis.StrCategory([f"{level:g}" for level in observable.levels], label="level"))
        filled: hist.Hist[Any] = hist.Hist(*axes, storage=hist.storage.Weight(), label=observable.value_label)
        view: Any = filled.view()
        view["value"] = self.values[0, self.part(name)].reshape(view.shape)
        view["variance"] = np.diag(self.statistics)[self.part(name)].reshape(view.shape)
        if isinstance(observable, Histogram):
            view, entries = filled.view(flow=True), self.entries[name]
            below, above = entries.underflow, entries.overflow
            sums = np.array([[below.sum_w, above.sum_w], [below.sum_w2, above.sum_w2]])
            view["value"][[0, -1]], view["variance"][[0, -1]] = sums if observable.is_sum else entries.shares_beyond()
        return filled


def slices(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Where each of several parts is that follow one another."""
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return {name: slice(*pair) for name, pair in zip(sizes, pairwise(ends), strict=True)}


class _Sums:
    """Sums of one observable over chunks.

    The weights have one column more than the rows of the result: the nominal weight of events inside the domain.
    """

    def __init__(self, name: str, observable: Observable, n_weights: int) -> None:
        self.name, self.observable = name, observable
        n, m = observable.cell_count, observable.n_amounts
        self.sums = np.zeros((n * m, n_weights + 1))
        self.sums2 = np.zeros((n, m, m))
        self.counts, self.outside = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def add(self, chunk: Evaluated, weights: FloatArray, inside: Mask, bad: Counter[str]) -> None:
        observable = self.observable
        keep, columns = chunk.selected(self.name, observable, bad)
        bad[f"{self.name}: weights"] += int(np.sum(~np.isfinite(weights[keep]).all(axis=1)))
        if bad.total():
            return
        cell, amounts = observable.fill(columns, [chunk.condition(text)[keep] for text in observable.conditions()])
        n, m = observable.cell_count, observable.n_amounts
        at = (cell * m + np.arange(m)[:, None]).ravel()
        shape = (len(self.sums), len(weights))
        self.sums += csr_matrix((np.concatenate(amounts), (at, np.tile(keep, m))), shape=shape) @ weights
        squares = weights[keep, 0] ** 2
        for a, b in np.ndindex(m, m):
            self.sums2[:, a, b] += np.bincount(cell, squares * amounts[a] * amounts[b], n)
        self.counts += np.bincount(cell, minlength=n)
        self.outside += np.bincount(cell[~inside[keep]], minlength=n)

    def values(self, source: Source, rows: Sequence[str]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Values (V, n), covariance (n, n), and what the first row lacks without events outside the domain (n,).

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
        return values, observable.covariance(sums[0], self.sums2), shift

    def entries(self) -> Entries:
        observable = self.observable
        arrays = self.counts, self.sums[:: observable.n_amounts, 0], self.sums2[:, 0, 0]
        numbers, sums, squares = (observable.by_bin(array) for array in arrays)
        low, high = (Beyond(int(numbers[k]), float(sums[k]), float(squares[k])) for k in (0, -1))
        sum_w, sum_w2 = float(sums.sum()), float(squares.sum())
        off = int(observable.off_grid(self.counts).sum()) if isinstance(observable, Quantile) else 0
        n_eff = sum_w**2 / sum_w2 if sum_w2 > 0 else 0.0
        return Entries(int(numbers.sum()), sum_w, sum_w2, n_eff, low, high, off)

    def outside_counts(self) -> NDArray[Any]:
        """Events outside the domain (n,) in the bin of each value."""
        return np.repeat(self.observable.by_bin(self.outside)[1:-1], self.observable.per_bin)


def measure(
    source: Source,
    observables: Mapping[str, Observable],
    *,
    weights: Sequence[Weights],
    in_domain: str | None = reading.IN_DOMAIN,
    rows: int | None = None,
) -> Measured:
    """Measure observables with all weights, in one pass over the files.

    Quantiles without a range need a look at the first events before.

    Args:
        source: files of events.
        observables: by name.
        weights: each gives one weight or, from an array branch, several; the first of all is the nominal one.  Weights
            may be negative.
        in_domain: branch that is false for events outside the training domain.  Where files lack the default one, all
            events are inside.  None: all are inside.
        rows: rows read at a time; chosen by the number of weights if left out.

    Returns:
        The values, their covariance from the sample's own statistics, and what is outside the domain.

    Raises:
        ConfigError: no observable, or no weight.
        BranchError: a branch is missing, or is of a type that can't be used.
        ValueRangeError: NaN or infinite values in selected events.
        EmptySelectionError: an observable has no event.
        WeightError: the weights in a bin of an efficiency, a mean, a quantile or a shape don't have a positive sum.
    """
    reading.require_some(observables, weights)
    names = tuple(reading.names_of(source, weights))
    condition = reading.domain_condition(source, in_domain)
    chosen = reading.prepared(source, observables)
    texts = [text for observable in chosen.values() for text in observable.texts()]
    texts += [*(weight.text for weight in weights), condition or "1"]
    sums = [_Sums(name, observable, len(names)) for name, observable in chosen.items()]
    bad: Counter[str] = Counter()
    for chunk in reading.chunks(source, texts, rows or max(1000, min(CHUNK_ROWS, _CHUNK_WEIGHTS // len(names)))):
        inside, columns = chunk.condition(condition), chunk.weights(weights)
        columns = np.column_stack([columns, np.where(inside, columns[:, 0], 0.0)])
        for total in sums:
            total.add(chunk, columns, inside, bad)
    reading.require_finite(source, bad)
    values, covariances, shifts = zip(*(total.values(source, names) for total in sums), strict=True)
    return Measured(
        observables=chosen,
        values=np.concatenate(values, axis=1),
        statistics=np.asarray(block_diag(*covariances)),
        entries={total.name: total.entries() for total in sums},
        outside=np.concatenate(shifts),
        outside_counts=np.concatenate([total.outside_counts() for total in sums]),
        rows=names,
    )
