"""Measure observables in ROOT files: for the nominal weight and many others at once, in one pass, streamed.

For a chunk of n rows and V weights, the sums of an observable are a sparse matrix (cells, n), with an event's amounts
in its column, times the matrix (n, V) of weights.  Only the nominal weight needs sums of squares.

The statistics of a sample correlate observables of the same events; `Measured.statistics` leaves that out: it holds one
block for each observable.  Replica weights carry all correlations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import hist
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.sparse import csr_matrix

from calorefine.errors import WeightError, nearest
from calorefine.io.chunks import CHUNK_ROWS
from calorefine.io.sources import Source
from calorefine.observables import reading
from calorefine.observables.hists import histogram_of
from calorefine.observables.observable import Observable
from calorefine.observables.quantiles import Quantile
from calorefine.observables.reading import NonFinite, Values, Weights
from calorefine.stats import FloatArray, IntArray

Mask = NDArray[np.bool_]
_CHUNK_WEIGHTS = 5_000_000  # rows times weights held at a time


@dataclass(frozen=True)
class Flow:
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
    underflow: Flow
    overflow: Flow
    n_off_grid: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
        first = 0
        for known, observable in self.observables.items():
            if known == name:
                return slice(first, first + observable.n_values)
            first += observable.n_values
        raise KeyError(f"there is no observable '{name}'{nearest(name, self.observables)}")

    def histograms(self) -> dict[str, hist.Hist[Any]]:
        """The first row as `hist` objects, with the variances of the sample's own statistics.

        An axis of levels follows in those of several quantiles.  Histograms have the sums below and above the edges in
        their flow bins; the flow bins of other kinds are empty.
        """
        variances = np.diag(self.statistics)
        return {
            name: histogram_of(one, self.values[0][self.part(name)], variances[self.part(name)], self.entries[name])
            for name, one in self.observables.items()
        }


class _Sums:
    """Sums of one observable over chunks.

    The weights have one column more than the rows of the result: the nominal weight of events inside the domain.
    """

    def __init__(self, name: str, observable: Observable, n_weights: int) -> None:
        self.name, self.observable = name, observable
        n, m = observable.n_cells, observable.n_amounts
        self.sums = np.zeros((n * m, n_weights + 1))
        self.sums2 = np.zeros((n, m, m))
        self.counts, self.outside = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def add(self, chunk: Values, weights: FloatArray, inside: Mask, finite: Mask, bad: NonFinite) -> None:
        one = self.observable
        keep = np.flatnonzero(chunk.condition(one.selection))
        columns = {text: chunk.number(text)[keep] for text in one.expressions()}
        for text, column in columns.items():
            bad.count(f"{self.name}: {text}", column)
        if not finite.all():
            bad.count(f"{self.name}: weights", np.where(finite[keep], 0.0, np.nan))
        if bad.found:
            return
        cell, amounts = one.fill(list(columns.values()), [chunk.condition(text)[keep] for text in one.conditions()])
        matrix = np.stack([np.ones(len(cell)) if amount is None else amount for amount in amounts])
        self._add_sums(cell, matrix, keep, weights)
        squares = weights[keep, 0] ** 2
        for a, left in enumerate(matrix):
            for b, right in enumerate(matrix):
                self.sums2[:, a, b] += np.bincount(cell, squares * left * right, one.n_cells)
        self.counts += np.bincount(cell, minlength=one.n_cells)
        self.outside += np.bincount(cell[~inside[keep]], minlength=one.n_cells)

    def _add_sums(self, cell: IntArray, matrix: FloatArray, keep: IntArray, weights: FloatArray) -> None:
        m = len(matrix)
        at = (cell * m + np.arange(m)[:, None]).ravel()
        shape = (len(self.sums), len(weights))
        self.sums += csr_matrix((matrix.ravel(), (at, np.tile(keep, m))), shape=shape) @ weights

    def entries(self) -> Entries:
        one = self.observable
        nominal = self.sums[:: one.n_amounts, 0]
        numbers, sums, squares = (one.by_bin(array) for array in (self.counts, nominal, self.sums2[:, 0, 0]))
        low, high = (Flow(int(numbers[k]), float(sums[k]), float(squares[k])) for k in (0, -1))
        sum_w, sum_w2 = float(sums.sum()), float(squares.sum())
        off = int(one.off_grid(self.counts).sum()) if isinstance(one, Quantile) else 0
        n_eff = sum_w**2 / sum_w2 if sum_w2 > 0 else 0.0
        return Entries(int(numbers.sum()), sum_w, sum_w2, n_eff, low, high, off)


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
    sums = [_Sums(name, one, len(names)) for name, one in chosen.items()]
    texts = [text for one in chosen.values() for text in [*one.expressions(), *one.conditions(), one.selection or "1"]]
    texts += [*[one.text for one in weights], *([condition] if condition else [])]
    bad = NonFinite()
    size = rows or max(1000, min(CHUNK_ROWS, _CHUNK_WEIGHTS // len(names)))
    for table, n in reading.tables(source, texts, size):
        chunk = Values(table, n)
        inside: Mask = chunk.condition(condition)
        columns = chunk.weights(weights)
        columns = np.column_stack([columns, np.where(inside, columns[:, 0], 0.0)])
        finite = np.isfinite(columns).all(axis=1)
        for one in sums:
            one.add(chunk, columns, inside, np.asarray(finite), bad)
    bad.report(source)
    return _finish(sums, names, source)


def _finish(sums: list[_Sums], names: tuple[str, ...], source: Source) -> Measured:
    values, blocks, outside, counts = [], [], [], []
    for one in sums:
        observable, where = one.observable, f"{source}: observable '{one.name}'"
        reading.require_events(one.name, observable, int(one.counts.sum()), source)
        transposed = np.ascontiguousarray(one.sums.T)
        try:
            found = observable.values(transposed[:-1], rows=names)
        except WeightError as error:
            raise WeightError(f"{where}: {error}") from error
        values.append(found)
        blocks.append(observable.covariance(transposed[0], one.sums2))
        outside.append(_shift(one, transposed, found[0], where))
        counts.append(observable.by_value(observable.by_bin(one.outside)[1:-1]))
    return Measured(
        observables={one.name: one.observable for one in sums},
        values=np.concatenate(values, axis=1),
        statistics=np.asarray(block_diag(*blocks)),
        entries={one.name: one.entries() for one in sums},
        outside=np.concatenate(outside),
        outside_counts=np.concatenate(counts),
        rows=names,
    )


def _shift(one: _Sums, transposed: FloatArray, nominal: FloatArray, where: str) -> FloatArray:
    """Values without the events outside the domain, minus the values (n_values,)."""
    if not one.outside.any():
        return np.zeros(len(nominal))
    try:
        return np.asarray(one.observable.values(transposed[-1]) - nominal)
    except WeightError as error:
        msg = f"{where}: without the {one.outside.sum()} events outside the training domain, {error}"
        raise WeightError(f"{msg}; or leave out bins that lie outside") from error
