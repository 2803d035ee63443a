r"""Weights from labels: samples whose fractions of the species are known, or labels with a known probability.

Sample k of K has :math:`n_k` events and the fraction :math:`F_{kl}` of species l (rows sum to 1).  Within a species the
features x don't depend on the sample, so the counts :math:`h_k` of the samples in a bin of x are
:math:`E[h_k] = n_k \sum_l F_{kl} g_l`, with :math:`g_l` the probability of the bin for species l.  Least squares with
the variances that the samples' sizes give, :math:`\sum_k (h_k - n_k \sum_l F_{kl} g_l)^2 / n_k`, are solved by

.. math:: V g = F^T h, \qquad V = F^T \mathrm{diag}(n) F ,

so each event of sample k adds :math:`w_{lk} = N_l \sum_m (V^{-1})_{lm} F_{km}` to :math:`N_l g_l`, where
:math:`N_l = \sum_k n_k F_{kl}`: the formula of `source` with :math:`P_{il} = F_{k(i) l}`.  For K = L it is the matrix
method, :math:`w = \mathrm{diag}(N) (\mathrm{diag}(n) F)^{-1}`.  Without samples, the probabilities P are given for each
event.

Sums: :math:`V 1 = N` as rows sum to 1, hence :math:`\sum_l w_{lk} = 1` and :math:`\sum_k n_k w_{lk} = N_l`.

Estimand: :math:`\sum_k n_k F_{km} w_{lk} = N_l \delta_{lm}`, so in expectation the histogram of x with weights
:math:`w_l` is the one of species l.

Variance: :math:`\sum_k n_k w_{lk} w_{mk} = N_l N_m (V^{-1})_{lm}`, so the effective number of events of species l is
:math:`1 / (V^{-1})_{ll}`.

Assumption: within each species, x *and context* together are independent of the sample (or of what P is computed from).
If the fractions depend on context, this holds in bins of context only: `in_bins_of`, with the fractions of each bin.

References: Pivk and Le Diberder, arXiv:physics/0402083; Dembinski, Kenzie, Langenbruch and Schmelling, arXiv:2112.04574
(the same weights, for a spectator); the matrix method, as in ATLAS, arXiv:2211.16178.
"""

from __future__ import annotations

import copy
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.errors import ConfigError, EmptySelectionError, ValueRangeError
from calorefine.stats import FloatArray
from calorefine.weights.bins import Bins
from calorefine.weights.fraction_errors import balanced_variances, can_balance
from calorefine.weights.linear_weights import Rows, diagonal_of, inverse_of, moments, ratio, row_weights, sum_rule_of
from calorefine.weights.source import (
    Table,
    WeightFit,
    WeightSource,
    check_lines,
    checked_counts,
    column_of,
    known_name,
)

Numbers = dict[str, dict[str, float | list[float]]]

ROW_SUM = 1e-4
"""How far a sample's fractions may sum from 1: numbers of four digits."""
PROBABILITY_SUM = 1e-3
"""How far an event's probabilities may sum from 1."""
ROUNDING = 1e-6
"""How far a probability may lie outside of [0, 1]: single precision."""


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
        sum_rule: relative deviation of the sum of each species' weights from its yield; for "event", the largest one
            of the sum over the species from 1.
    """

    target: str
    source: _LabelSource
    sizes: NDArray[np.int64]
    n_outside: int
    yields: FloatArray
    yield_errors: FloatArray
    inverse: FloatArray
    condition: FloatArray
    sum_rule: dict[str, float]

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the species."""
        return self.source.species

    @property
    def sum_w2(self) -> FloatArray:
        """(B, L) sum of the squared weights: the variance of a weighted sum of events, for given weights."""
        return self.yields**2 * diagonal_of(self.inverse)

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

    def weights(self, table: Table, species: str | None = None) -> FloatArray:
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
        labels, width = self.source.bins.labels, [max(10, len(name) + 2) for name in self.source.samples]
        title = f"label weights of {self.target}: {self.sizes.sum()} events" + (
            f" in {len(labels)} bins" if len(labels) > 1 else ""
        )
        header = "".join(f"{name:>{wide}}" for name, wide in zip(self.source.samples, width, strict=True))
        columns = f"{'species':<16}{'yield':>12}{'+-':>10}{'n_eff':>12}{'n_eff/yield':>13}"
        first = max(map(len, [*labels, "bin"]))
        lines = [f"{title} ({self.n_outside} outside, weight 0)", f"{'bin':<{first}}{header}  {columns}"]
        numbers = zip(labels, self.sizes, self.yields, self.yield_errors, self.n_eff_over_yield, strict=True)
        for label, sizes, *rows in numbers:
            left = f"{label:<{first}}" + "".join(f"{size:>{wide}}" for size, wide in zip(sizes, width, strict=True))
            for name, value, error, share in zip(self.species, *rows, strict=True):
                text = f"{value:>12.1f}{error:>10.1f}{value * share:>12.1f}{share:>13.3g}"
                lines.append(f"{left}  {name:<16}{text}")
                left = " " * len(left)
        return "\n".join([*lines, *check_lines(self.sum_rule, self.n_eff)])

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


class _LabelSource(WeightSource):
    """What fractions and probabilities have in common: all but how an event's probabilities are found."""

    def __init__(
        self, species: Iterable[str], samples: Iterable[str], in_bins_of: dict[str, list[float]] | None, target: str
    ) -> None:
        self.species, self.samples, self.bins = tuple(species), tuple(samples), Bins(in_bins_of or {})
        if len(self.species) < 2:
            raise ConfigError(f"label weights need at least two species, found {', '.join(self.species) or 'none'}")
        self.target = known_name(target, self.species, "target: species")

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Fractions or probabilities, as JSON types."""

    @abstractmethod
    def rows(self, table: Table) -> Rows:
        """Probabilities of the table's events."""

    def fit(self, table: Table, *, multiplicity: NDArray[Any] | None = None, near: WeightFit | None = None) -> LabelFit:
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
        errors = np.sqrt(diagonal_of(overlap) + self.yield_variances(sizes))
        return LabelFit(self.target, self, sizes, int(total[0]), yields, errors, inverse, condition, sum_rule)

    def yield_variances(self, sizes: NDArray[np.int64]) -> FloatArray | float:  # noqa: ARG002 (for subclasses)
        """Variance (B, L) of the yields that comes from uncertain inputs, for samples of these sizes (B, K)."""
        return 0.0

    def _place(self, number: int, sizes: NDArray[np.int64]) -> str:
        """Name of the bin for messages, with its samples without events."""
        missing = [f"'{name}'" for name, size in zip(self.samples, sizes, strict=True) if size == 0]
        empty = f" (where sample {', '.join(missing)} has no events)" if missing else ""
        return f"{self.bins.labels[number]}{empty}"


class LabelFractions(_LabelSource):
    """Weights for samples whose fractions of the species are known.

    Attributes:
        values: (B, K, L) fractions in B bins, K samples and L species.
        errors: (B, K, L) their standard deviations.
    """

    def __init__(
        self,
        *,
        fractions: Numbers,
        errors: Numbers | None = None,
        sample: str = "sample",
        in_bins_of: dict[str, list[float]] | None = None,
        target: str = "signal",
    ) -> None:
        """Describe the samples.

        Args:
            fractions: sample to species to fraction, or to a list with one fraction per bin of `in_bins_of` (numbered
                with the last column fastest).
            errors: standard deviations of the fractions, likewise; 0 where missing, but with two species one error
                stands for both.  Samples and bins are independent of each other.  With more species the largest may be
                up to the root of the sum of squares of the others; 2 % beyond count as rounding, and are not drawn.
            sample: branch or expression that is 0 for the first sample of `fractions`, 1 for the second, ...
            in_bins_of: column to edges of bins in which the weights are found independently.
            target: species whose weight is *the* weight.

        Raises:
            ConfigError: numbers that are no fractions, species that differ between samples, fewer samples than species,
                or errors that no fractions with sum 1 can have.
        """
        super().__init__(next(iter(fractions.values()), {}), fractions, in_bins_of, target)
        self.sample = sample
        for name, row in fractions.items():
            for species in [*row, *self.species]:
                known_name(species, self.species, f"fractions of sample '{name}': species")
                known_name(species, row, f"fractions of sample '{name}': species")
        if len(self.samples) < len(self.species):
            found = f"{len(self.samples)} samples ({', '.join(self.samples)}), {len(self.species)} species"
            raise ConfigError(f"fractions: {found} found, expected no fewer samples than species; add a sample")
        for name in errors or {}:
            known_name(name, self.samples, "errors: sample")
        self.values = self._numbers(fractions, "fractions")
        both = {name: _both((errors or {}).get(name, {}), self.species) for name in fractions}
        self.errors = self._numbers(both, "errors")
        self._check()
        self._variances = np.apply_along_axis(balanced_variances, -1, self.errors)

    @property
    def branches(self) -> dict[str, str]:
        """The sample, and the columns of the bins."""
        return {self.sample: self.sample, **self.bins.branches}

    @property
    def inputs(self) -> dict[str, Any]:
        """The fractions and their errors."""
        return {"fractions": self.fractions, "errors": self._named(self.errors)}

    @property
    def fractions(self) -> dict[str, dict[str, list[float]]]:
        """Sample to species to fractions, one per bin."""
        return self._named(self.values)

    def _named(self, numbers: FloatArray) -> dict[str, dict[str, list[float]]]:
        values = numbers.transpose(1, 2, 0).tolist()
        return {name: dict(zip(self.species, row, strict=True)) for name, row in zip(self.samples, values, strict=True)}

    def rows(self, table: Table) -> Rows:
        """One row per bin and sample."""
        number = column_of(table, self.sample, "sample:")
        good = (number >= 0) & (number < len(self.samples)) & (number == np.floor(number))
        if not good.all():
            names = ", ".join(f"{index} ({name})" for index, name in enumerate(self.samples))
            found = f"{np.sum(~good)} of {len(good)} values are no number of a sample, such as {number[~good][0]:g}"
            raise ValueRangeError(f"sample {self.sample}: {found}; expected {names}")
        in_bin = self.bins.index(table, len(number))
        of_event = np.where(in_bin < 0, -1, in_bin * len(self.samples) + number.astype(np.int64))
        cell = np.arange(len(self.bins) * len(self.samples))
        return Rows(of_event, cell, cell // len(self.samples), self.values.reshape(len(cell), -1))

    def varied(self, replica: int, seed: int = 0) -> LabelFractions:
        r"""Fractions drawn from their errors for this replica; itself for replica 0 or without errors.

        Each row is Gaussian with the given standard deviations and sums to what it did: independent Gaussians of
        variances a on the condition that they sum to 0, of covariance :math:`D - D 1 1^T D / \mathrm{tr} D` with
        :math:`D = \mathrm{diag}(a)`.  A draw is a function of (seed, replica, name of the sample, bin, name of the
        species) alone.  It may lie outside of [0, 1]: truncation would bias the mean, and the algebra does not mind.
        """
        if replica == 0 or not self.errors.any():
            return self
        in_bin, sample, species = np.indices(self.errors.shape).reshape(3, -1)
        key = keys.make_keys([_hashes(self.samples)[sample], in_bin, _hashes(self.species)[species]])
        normal = keys.normal(keys.stream(key, "fractions", seed=seed, replica=replica), 1).astype(np.float64)
        free = np.sqrt(self._variances) * normal.reshape(self.errors.shape)
        share = ratio(self._variances, self._variances.sum(-1, keepdims=True), empty=0.0)
        drawn = copy.copy(self)
        drawn.values = self.values + free - share * free.sum(-1, keepdims=True)
        drawn.errors = np.zeros_like(self.errors)
        return drawn

    def yield_variances(self, sizes: NDArray[np.int64]) -> FloatArray:
        """Variance (B, L) of the yields that comes from the errors of the fractions."""
        variances: FloatArray = np.einsum("bk,bkl->bl", sizes.astype(np.float64) ** 2, self.errors**2)
        return variances

    def _numbers(self, given: Mapping[str, Mapping[str, float | list[float]]], option: str) -> FloatArray:
        """(B, K, L) array of the numbers; 0 where missing."""
        out = np.zeros((len(self.bins), len(self.samples), len(self.species)))
        for k, (sample, row) in enumerate(given.items()):
            for name, value in row.items():
                index = self.species.index(known_name(name, self.species, f"{option} of sample '{sample}': species"))
                if np.ndim(value) and np.shape(value) != (len(out),):
                    found = f"{option} of '{name}' in sample '{sample}': {np.size(value)} numbers found"
                    raise ConfigError(f"{found}, expected one, or {len(out)}: one per bin of in_bins_of")
                out[:, k, index] = value
        return out

    def _check(self) -> None:
        """Raise if fractions or errors are out of range, or can't sum to 1."""
        labels = self.bins.labels
        for b, k in np.ndindex(self.values.shape[:2]):
            row, error, where = self.values[b, k], self.errors[b, k], f"of sample '{self.samples[k]}' in {labels[b]}"
            total = row.sum()
            if not np.all((row >= 0) & (row <= 1)):
                self._refuse(f"fractions {where}", row, "expected numbers within [0, 1]")
            if abs(total - 1) > ROW_SUM * (1 + 1e-9):
                expected = f"expected 1 within {ROW_SUM:g}; give more digits, or all species"
                self._refuse(f"fractions {where} sum to {total:g}", row, expected)
            if not np.all((error >= 0) & np.isfinite(error)):
                self._refuse(f"errors {where}", error, "expected standard deviations, not negative")
            if not can_balance(error):
                rule = "equal for two, else at most the root of the sum of squares of the others"
                expected = f"expected that the others balance the largest, as fractions sum to 1: {rule}"
                self._refuse(f"errors {where}", error, expected)

    def _refuse(self, what: str, numbers: FloatArray, expected: str) -> NoReturn:
        found = ", ".join(f"{name} {value:g}" for name, value in zip(self.species, numbers, strict=True))
        raise ConfigError(f"{what}: {found} found, {expected}")


class LabelProbabilities(_LabelSource):
    """Weights for events whose label is known with a probability.

    The probability must be the posterior of the label given something that is independent of the features within each
    species, with the prior of the events that are weighted together: of the sample, or of the bin with `in_bins_of`.
    """

    def __init__(
        self, *, probabilities: dict[str, str], in_bins_of: dict[str, list[float]] | None = None, target: str = "signal"
    ) -> None:
        """Describe the labels.

        Args:
            probabilities: species to branch or expression of the event's probability to be one.
            in_bins_of: column to edges of bins in which the weights are found independently.
            target: species whose weight is *the* weight.

        Raises:
            ConfigError: fewer than two species, or the target is not among them.
        """
        super().__init__(probabilities, ["events"], in_bins_of, target)
        self.probabilities = dict(probabilities)

    @property
    def branches(self) -> dict[str, str]:
        """The probabilities, and the columns of the bins."""
        return {expression: expression for expression in self.probabilities.values()} | self.bins.branches

    @property
    def inputs(self) -> dict[str, Any]:
        """Species to expression."""
        return dict(self.probabilities)

    def rows(self, table: Table) -> Rows:
        """One row per event in the bins."""
        columns = [column_of(table, name, f"probability of {species}:") for species, name in self.probabilities.items()]
        in_bin = self.bins.index(table, len(columns[0]))
        inside = in_bin >= 0
        probability = np.stack(columns, axis=1)[inside]
        for name, values in zip(self.species, probability.T, strict=True):
            bad = ~((values >= -ROUNDING) & (values <= 1 + ROUNDING))
            if bad.any():
                found = f"{bad.sum()} of {len(bad)} values are not, such as {values[bad][0]:g}"
                raise ValueRangeError(f"probability of {name}: {found}; expected numbers within [0, 1]")
        worst = np.max(np.abs(probability.sum(axis=1) - 1), initial=0.0)
        if worst > PROBABILITY_SUM:
            found = f"the sum over {', '.join(self.species)} is off 1 by up to {worst:.2g}"
            raise ValueRangeError(f"probabilities: {found}, expected below {PROBABILITY_SUM:g}; give all species")
        of_event = np.where(inside, np.cumsum(inside) - 1, -1)
        return Rows(of_event, in_bin[inside], in_bin[inside], probability)


def _both(row: Mapping[str, float | list[float]], species: Sequence[str]) -> Mapping[str, float | list[float]]:
    """Errors of a sample; with two species and one error it is the other's, too."""
    return dict.fromkeys(species, *row.values()) | dict(row) if len(species) == 2 and len(row) == 1 else row


def _hashes(names: Sequence[str]) -> NDArray[np.int64]:
    return np.array([zlib.crc32(name.encode()) for name in names])


def _plain(values: FloatArray) -> Any:
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()
