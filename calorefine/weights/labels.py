"""Weights from the probabilities of labels: what `fractions` and probabilities per event have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError, EmptySelectionError
from calorefine.events import Arrays
from calorefine.stats import FloatArray, IntArray, WeightSums
from calorefine.text import aligned
from calorefine.weights.bins import ContextBins
from calorefine.weights.linear_weights import (
    ProbabilityRows,
    diagonal_of,
    inverse_of,
    moments,
    ratio,
    row_weights,
    sum_rule_of,
)
from calorefine.weights.source import (
    EVENT,
    WeightFit,
    WeightSource,
    check_lines,
    checked_counts,
    known_name,
    shared_keys,
)


@dataclass(frozen=True)
class LabelFit(WeightFit):
    """Weights of B bins and L species, found in K samples (K = 1 for probabilities per event).

    Attributes:
        target: species whose weight is *the* weight.
        source: what was fitted, with the fractions used.
        sizes: (B, K) events, bootstrap counts included.
        n_outside: events outside of the bins, likewise; their weight is 0.
        yields: (B, L) events of each species.
        yield_errors: (B, L) their standard deviations, from the sizes of the samples and the errors of the fractions.
        inverse: (B, L, L) inverse of V; 0 in bins without events.
        condition: (B,) condition number of V with its diagonal scaled to 1; NaN in bins without events.
        sum_w2: (B, L) sum of the squared weights, of events of equal key together: the variance of a weighted sum of
            events, for given weights.
        sum_rule: relative deviation of the sum of each species' weights from its yield; for "event", the largest one
            of the sum over the species from 1.
    """

    target: str
    source: LabelSource
    sizes: NDArray[np.int64]
    n_outside: int
    yields: FloatArray
    yield_errors: FloatArray
    inverse: FloatArray
    condition: FloatArray
    sum_w2: FloatArray
    sum_rule: dict[str, float]

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the species."""
        return self.source.species

    @property
    def n_eff(self) -> dict[str, float]:
        """Effective number of events of each species' weights, as `calorefine.stats.n_eff` of the events."""
        sizes = ratio(self.yields.sum(axis=0) ** 2, self.sum_w2.sum(axis=0), empty=0.0)
        return dict(zip(self.species, sizes.tolist(), strict=True))

    @property
    def n_eff_over_yield(self) -> FloatArray:
        """(B, L): 1 if the labels were certain, smaller the less they say; 0 in bins without events."""
        return ratio(self.yields, self.sum_w2, empty=0.0)

    @property
    def correlation(self) -> FloatArray:
        """(B, L, L) correlation of the yields, as weighted sums of events; NaN in bins without events."""
        width = np.sqrt(diagonal_of(self.inverse))
        return ratio(self.inverse, width[:, :, None] * width[:, None, :])

    def weights(self, table: Arrays, species: str | None = None) -> FloatArray:
        """Weight (n,) of each event, of any sign; 0 outside of the bins, and in bins that had no events in the fit.

        Args:
            table: name to (n,) values, with the names of `WeightSource.branches`.
            species: whose weight; the target's if left out.

        Raises:
            ConfigError: no such species.
            BranchError: a column is missing.
            ValueRangeError: no such sample, or values that are no probabilities.
        """
        index = self.species.index(known_name(self.target if species is None else species, self.species, "species"))
        rows = self.source.rows(table)
        factor = self.yields[:, index, None] * self.inverse[:, index]
        return np.append(row_weights(rows, factor), 0.0)[rows.of_event]

    def summary(self) -> str:
        """Fixed-width table of each bin's samples and species."""
        labels = self.source.bins.labels
        where = f" in {len(labels)} bins" if len(labels) > 1 else ""
        title = f"label weights of {self.target}: {self.sizes.sum()} events{where} ({self.n_outside} outside, weight 0)"
        rows = [("bin", *self.source.samples, "species", "yield", "+-", "n_eff", "n_eff/yield")]
        numbers = zip(labels, self.sizes, self.yields, self.yield_errors, self.n_eff_over_yield, strict=True)
        for label, sizes, *columns in numbers:
            left = (label, *map(str, sizes))
            for name, value, error, share in zip(self.species, *columns, strict=True):
                rows.append((*left, name, f"{value:.1f}", f"{error:.1f}", f"{value * share:.1f}", f"{share:.3g}"))
                left = ("",) * len(left)
        return "\n".join([title, *aligned(rows), *check_lines(self.sum_rule, self.n_eff)])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; None for what a bin without events does not have."""
        totals = dict(zip(self.species, self.yields.sum(axis=0).tolist(), strict=True))
        source = self.source
        names = {"target": self.target, "species": list(self.species), "samples": list(source.samples)}
        inputs = {"inputs": source.inputs, "bins": source.bins.labels}
        sizes = {"sizes": self.sizes.tolist(), "n_outside": self.n_outside}
        results = {"yields": totals, "n_effective": self.n_eff, "sum_rule": self.sum_rule}
        arrays = ("yields", "yield_errors", "sum_w2", "n_eff_over_yield", "condition", "correlation")
        in_bins = {key: _plain(getattr(self, key)) for key in arrays}
        return names | inputs | sizes | results | {"in_bins": in_bins}


class LabelSource(WeightSource):
    """What fractions and probabilities have in common: all but how an event's probabilities are found."""

    def __init__(
        self, species: Iterable[str], samples: Iterable[str], in_bins_of: dict[str, list[float]] | None, target: str
    ) -> None:
        """Check that there are at least two species, the target among them."""
        self.species, self.samples, self.bins = tuple(species), tuple(samples), ContextBins(in_bins_of or {})
        if len(self.species) < 2:
            raise ConfigError(f"label weights need at least two species, found {', '.join(self.species) or 'none'}")
        self.target = known_name(target, self.species, "target: species")

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Fractions or probabilities, as JSON types."""

    @abstractmethod
    def rows(self, table: Arrays) -> ProbabilityRows:
        """Probabilities of the table's events."""

    def fit(
        self, table: Arrays, *, multiplicity: NDArray[Any] | None = None, near: WeightFit | None = None
    ) -> LabelFit:
        """Solve each bin by itself; arguments as in `WeightSource.fit`, but there is nothing to start from.

        Raises:
            BranchError: a column is missing.
            ValueRangeError: no such sample, values that are no probabilities, or multiplicities that are no counts.
            EmptySelectionError: no event within the bins.
            FitError: the species of a bin can't be told apart.
        """
        del near
        rows = self.rows(table)
        counts = checked_counts(multiplicity, len(rows.of_event))
        total: FloatArray = np.bincount(rows.of_event + 1, counts, len(rows.bin) + 1).astype(np.float64)
        n, shape = total[1:], (len(self.bins), len(self.samples))
        if not n.any():
            where = f"in the bins of {', '.join(self.bins.edges)}" if self.bins.edges else "there: the input is empty"
            raise EmptySelectionError(f"label weights: none of {counts.sum()} events is {where}")
        sizes = np.bincount(rows.cell, n, shape[0] * shape[1]).astype(np.int64).reshape(shape)
        yields, overlap = moments(rows, n, len(self.bins))
        inverse, condition = inverse_of(overlap, self.species, lambda number: self._place(number, sizes[number]))
        sum_rule = dict(zip((*self.species, "event"), sum_rule_of(rows, n, yields, inverse), strict=True))
        squares = diagonal_of(overlap), yields**2 * diagonal_of(inverse)
        inside = rows.of_event >= 0
        group = shared_keys(table[EVENT][inside]) if EVENT in table and multiplicity is None else None
        if group is not None:
            squares = _squares_by_key(rows, rows.of_event[inside], group, yields[:, :, None] * inverse)
        errors = np.sqrt(squares[0] + self.yield_variances(sizes))
        outside = int(total[0])
        return LabelFit(self.target, self, sizes, outside, yields, errors, inverse, condition, squares[1], sum_rule)

    def yield_variances(self, sizes: NDArray[np.int64]) -> FloatArray | float:  # noqa: ARG002 (for subclasses)
        """Variance (B, L) of the yields that comes from uncertain inputs, for samples of these sizes (B, K)."""
        return 0.0

    def _place(self, number: int, sizes: NDArray[np.int64]) -> str:
        """Name of the bin for messages, with its samples without events."""
        missing = [f"'{name}'" for name, size in zip(self.samples, sizes, strict=True) if size == 0]
        empty = f" (where sample {', '.join(missing)} has no events)" if missing else ""
        return f"{self.bins.labels[number]}{empty}"


def _squares_by_key(
    rows: ProbabilityRows, row: IntArray, group: IntArray, factor: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Squares (B, L) of the sums of probabilities and of weights over events of equal key, summed.

    Args:
        rows: probabilities.
        row: (n,) the row of each event.
        group: (n,) numbers from 0, equal for events of equal key.
        factor: (B, L, L) what weights are of probabilities.
    """
    probability, cell = rows.probability[row], rows.bin[row]
    weight = np.einsum("nlm,nm->nl", factor[cell], probability)
    out = []
    for values in (probability, weight):
        sums = WeightSums(values.shape[1], len(factor))
        sums.add(values, cell=cell, group=group)
        out.append(sums.sum_w2)
    return out[0], out[1]


def _plain(values: FloatArray) -> Any:
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()
