"""Measure observables in ROOT files: for the nominal weight and many others at once, streamed.

For a chunk of n rows and V weights, the sums of an observable are a sparse matrix (n, cells), with an event's amounts
in its row, times the matrix (n, V) of weights.  A second pass, with the nominal weight alone, finds the statistics of
the sample (`statistics`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import hist
import numpy as np
from scipy import sparse

from calorefine.errors import nearest
from calorefine.intervals import UNSEEN
from calorefine.io.chunks import CHUNK_ROWS
from calorefine.io.sources import Source
from calorefine.observables import reading
from calorefine.observables.histogram import Histogram
from calorefine.observables.observable import Mask, Observable
from calorefine.observables.quantiles import Quantile
from calorefine.observables.reading import Identity, Weights
from calorefine.observables.statistics import Influences, SpreadKeys
from calorefine.observables.sums import Entries, ObservableSums
from calorefine.stats import FloatArray, IntArray

_CHUNK_NUMBERS = 5_000_000  # rows times weights, or times values, held at a time


@dataclass(frozen=True)
class Measured:
    """Values of all bins of all observables, in one row after the other.

    Attributes:
        observables: by name, with their sub-cells chosen; give them to `measure` again to measure another sample in the
            same cells.
        values: (V, n), one row for each weight; the first is the nominal one.
        statistics: (n, n) covariance of the first row from the sample's own statistics, of all observables jointly; no
            variance is 0 because a bin is empty or an efficiency is 1.
        dof: (n,) degrees of freedom of its variances, by the fourth moment of the weights.
        intervals: (2, n) ends of the central 68.27 % intervals by these: Clopper and Pearson's, Garwood's.
        entries: by name.
        outside: (n,) what the first row would be without the events outside the training domain, minus the first row.
        outside_counts: (n,) number of selected events outside the domain in the bin of each value.
        rows: name of each weight.
        unmoved: (n,) values of the first row that no event moves: of an empty bin, or an efficiency of 0 or 1.
        events: which rows count as one event.
    """

    observables: dict[str, Observable]
    values: FloatArray
    statistics: FloatArray
    dof: FloatArray
    intervals: FloatArray
    entries: dict[str, Entries]
    outside: FloatArray
    outside_counts: IntArray
    rows: tuple[str, ...]
    unmoved: Mask
    events: Identity

    def notes(self) -> list[str]:
        """What a reader of the errors has to know."""
        lines = [f"errors by the sample's own statistics: {self.events}"]
        for name, observable in self.observables.items():
            if self.entries[name].n_inside == 0:
                low, high = observable.edge_array[[0, -1]]
                what = f"'{observable.expression}' is in [{low:g}, {high:g}]"
                what += f" with {observable.selection}" if observable.selection else ""
                lines.append(f"WARNING: '{name}' has no events: none where {what}; check its edges and its unit")
            elif n := int(self.unmoved[self.part(name)].sum()):
                what = f"'{name}': {n} bins are empty, hold a single event, or all or none of their events pass; "
                lines.append(f"{what}errors are of {UNSEEN:g} events of the mean weight that are not there")
        return lines

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
            beyond = entries.underflow, entries.overflow
            scale = 1.0 if observable.is_sum else entries.sum_w
            view["value"][[0, -1]] = [part.sum_w / scale for part in beyond]
            squares = [part.sum_w2 if observable.is_sum else part.share_variance for part in beyond]
            view["variance"][[0, -1]] = squares
        return filled


def slices(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Where each of several parts is that follow one another."""
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return {name: slice(*pair) for name, pair in zip(sizes, pairwise(ends), strict=True)}


def measure(
    source: Source,
    observables: Mapping[str, Observable],
    *,
    weights: Sequence[Weights],
    in_domain: str | None = reading.IN_DOMAIN,
    key: Sequence[str] | None = None,
    rows: int | None = None,
) -> Measured:
    """Measure observables with all weights, and their joint covariance by the sample's own statistics.

    Quantiles without a range need a look at the first events before.

    Args:
        source: files of events.
        observables: by name.
        weights: each gives one weight or, from an array branch, several; the first of all is the nominal one.  Weights
            may be negative.
        in_domain: branch that is false for events outside the training domain.  Where files lack the default one, all
            events are inside.  None: all are inside.
        key: integer branches that are equal for rows of one event, which are not independent; none: each row is an
            event.  If left out, the provenance of a generated file tells, and rows of other files are events.
        rows: rows read at a time; chosen by the number of weights if left out.

    Returns:
        The values, their covariance from the sample's own statistics, and what is outside the domain.

    Raises:
        ConfigError: no observable, or no weight.
        BranchError: a branch is missing, or is of a type that can't be used.
        KeyColumnError: a key branch is no integer.
        ValueRangeError: NaN or infinite values in selected events.
        EmptySelectionError: an observable has no event.
        WeightError: the weights in a bin of an efficiency, a mean, a quantile or a shape don't have a positive sum.

    Warns:
        KeyWarning: a generated file lacks what would tell copies and candidates.
    """
    reading.require_some(observables, weights)
    names = tuple(reading.names_of(source, weights))
    condition = reading.domain_condition(source, in_domain)
    events, spread = reading.event_identity(source, key), SpreadKeys()
    chosen = reading.prepared(source, observables)
    texts = [text for observable in chosen.values() for text in observable.texts()]
    sums = [ObservableSums(name, observable, len(names)) for name, observable in chosen.items()]
    bad: Counter[str] = Counter()
    every = [*texts, *(weight.text for weight in weights), condition or "1"]
    for chunk in reading.chunks(source, every, _rows(rows, len(names)), events):
        inside, columns = chunk.condition(condition), chunk.weights(weights)
        columns = np.column_stack([columns, np.where(inside, columns[:, 0], 0.0)])
        spread.add(chunk.key)
        for total in sums:
            total.add(chunk, columns, inside, bad)
    reading.require_finite(source, bad)
    values, shifts = zip(*(total.values(source, names) for total in sums), strict=True)
    influences = Influences(sums, spread.keys())
    nominal = [*texts, weights[0].text]
    for chunk in reading.chunks(source, nominal, _rows(rows, sum(map(len, shifts))), events):
        amounts = sparse.hstack([total.amounts(chunk) for total in sums], format="csr")
        influences.add(amounts, chunk.weights(weights[:1])[:, 0], chunk.key)
    statistics = influences.result()
    return Measured(
        observables=chosen,
        values=np.concatenate(values, axis=1),
        statistics=statistics.covariance,
        dof=statistics.dof,
        intervals=statistics.intervals,
        entries=statistics.entries,
        outside=np.concatenate(shifts),
        outside_counts=np.concatenate([total.outside_counts() for total in sums]),
        rows=names,
        unmoved=statistics.unmoved,
        events=events,
    )


def _rows(rows: int | None, n: int) -> int:
    """Rows to read at a time where each has n numbers."""
    return rows or max(1000, min(CHUNK_ROWS, _CHUNK_NUMBERS // n))
