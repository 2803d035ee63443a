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
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.errors import ConfigError, ValueRangeError
from calorefine.events import Arrays
from calorefine.stats import FloatArray
from calorefine.weights.consistency import consistency_test
from calorefine.weights.factorization import FactorizationResult, reject_if_dependent
from calorefine.weights.fraction_errors import balanced_variances, can_balance
from calorefine.weights.labels import LabelSource
from calorefine.weights.linear_weights import ProbabilityRows, ratio
from calorefine.weights.source import Dependence, WeightFit, column_of, known_name

Numbers = dict[str, dict[str, float | list[float]]]

ROW_SUM = 1e-4
"""How far a sample's fractions may sum from 1: numbers of four digits."""
DISAGREE = "the samples are not mixtures of the same species with these fractions, by"
REMEDY = (
    "Check the fractions and their errors; if a species differs between samples, find weights in bins of what it "
    "depends on (in_bins_of) or leave that sample out; `dependence: warn` goes on as it is"
)
PROBABILITY_SUM = 1e-3
"""How far an event's probabilities may sum from 1."""
PROBABILITY_ROUNDING = 1e-6
"""How far a probability may lie outside of [0, 1]: single precision."""


class LabelFractions(LabelSource):
    """Weights for samples whose fractions of the species are known.

    Attributes:
        values: (B, K, L) fractions in B bins, K samples and L species.
        errors: (B, K, L) their standard deviations.
        variances: (B, K, L) of Gaussians that have them when they sum to 0 (`fraction_errors`).
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
            problem = f"{len(self.samples)} samples ({', '.join(self.samples)}), {len(self.species)} species"
            raise ConfigError(f"fractions: {problem} found, expected no fewer samples than species; add a sample")
        for name in errors or {}:
            known_name(name, self.samples, "errors: sample")
        self.values = self._numbers(fractions, "fractions")
        both = {name: _both((errors or {}).get(name, {}), self.species) for name in fractions}
        self.errors = self._numbers(both, "errors")
        self._check()
        self.variances = np.apply_along_axis(balanced_variances, -1, self.errors)

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

    def rows(self, table: Arrays) -> ProbabilityRows:
        """One row per bin and sample."""
        number = column_of(table, self.sample, "sample:")
        good = (number >= 0) & (number < len(self.samples)) & (number == np.floor(number))
        if not good.all():
            names = ", ".join(f"{index} ({name})" for index, name in enumerate(self.samples))
            problem = f"{np.sum(~good)} of {len(good)} values are no number of a sample, such as {number[~good][0]:g}"
            raise ValueRangeError(f"sample {self.sample}: {problem}; expected {names}")
        in_bin = self.bins.index(table, len(number))
        of_event = np.where(in_bin < 0, -1, in_bin * len(self.samples) + number.astype(np.int64))
        cell = np.arange(len(self.bins) * len(self.samples))
        return ProbabilityRows(of_event, cell, cell // len(self.samples), self.values.reshape(len(cell), -1))

    def check(
        self, fit: WeightFit, table: Arrays, columns: Arrays, *, dependence: Dependence = "error", what: str = ""
    ) -> list[FactorizationResult]:
        """Test whether more samples than species agree with each other; see `WeightSource.check` and `consistency`.

        Raises:
            FactorizationError: p < 1e-3, corrected for the number of columns, if `dependence` is "error".

        Warns:
            FactorizationWarning: p < 1e-2.
        """
        del fit
        tests = consistency_test(self, table, columns)
        least = 1e-3 if dependence == "error" else 0.0
        reject_if_dependent(tests, what=what, raise_below=least, claim=DISAGREE, remedy=REMEDY)
        return tests

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
        free = np.sqrt(self.variances) * normal.reshape(self.errors.shape)
        share = ratio(self.variances, self.variances.sum(-1, keepdims=True), empty=0.0)
        drawn = copy.copy(self)
        drawn.values = self.values + free - share * free.sum(-1, keepdims=True)
        drawn.errors = np.zeros_like(self.errors)
        return drawn

    def yield_variances(self, sizes: NDArray[np.int64]) -> FloatArray:
        """Variance (B, L) of the yields that comes from the errors of the fractions."""
        return np.asarray(np.einsum("bk,bkl->bl", sizes.astype(np.float64) ** 2, self.errors**2))

    def _numbers(self, given: Mapping[str, Mapping[str, float | list[float]]], option: str) -> FloatArray:
        """(B, K, L) array of the numbers; 0 where missing."""
        out = np.zeros((len(self.bins), len(self.samples), len(self.species)))
        for k, (sample, row) in enumerate(given.items()):
            for name, value in row.items():
                index = self.species.index(known_name(name, self.species, f"{option} of sample '{sample}': species"))
                if np.ndim(value) and np.shape(value) != (len(out),):
                    problem = f"{option} of '{name}' in sample '{sample}': {np.size(value)} numbers found"
                    raise ConfigError(f"{problem}, expected one, or {len(out)}: one per bin of in_bins_of")
                out[:, k, index] = value
        return out

    def _check(self) -> None:
        """Raise if fractions or errors are out of range, or can't sum to 1."""
        labels = self.bins.labels
        balance = "equal for two, else at most the root of the sum of squares of the others"
        for b, k in np.ndindex(self.values.shape[:2]):
            row, error, where = self.values[b, k], self.errors[b, k], f"of sample '{self.samples[k]}' in {labels[b]}"
            fractions, errors, total = f"fractions {where}", f"errors {where}", row.sum()
            if not np.all((row >= 0) & (row <= 1)):
                self._refuse(fractions, row, "numbers within [0, 1]")
            if abs(total - 1) > ROW_SUM * (1 + 1e-9):
                expected = f"1 within {ROW_SUM:g}; give more digits, or all species"
                self._refuse(f"{fractions} sum to {total:g}", row, expected)
            if not np.all((error >= 0) & np.isfinite(error)):
                self._refuse(errors, error, "standard deviations, not negative")
            if not can_balance(error):
                self._refuse(errors, error, f"that the others balance the largest, as fractions sum to 1: {balance}")

    def _refuse(self, what: str, numbers: FloatArray, expected: str) -> NoReturn:
        given = ", ".join(f"{name} {value:g}" for name, value in zip(self.species, numbers, strict=True))
        raise ConfigError(f"{what}: {given} found, expected {expected}")


class LabelProbabilities(LabelSource):
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

    def rows(self, table: Arrays) -> ProbabilityRows:
        """One row per event in the bins."""
        columns = [column_of(table, name, f"probability of {species}:") for species, name in self.probabilities.items()]
        in_bin = self.bins.index(table, len(columns[0]))
        inside = in_bin >= 0
        probability = np.stack(columns, axis=1)[inside]
        for name, values in zip(self.species, probability.T, strict=True):
            bad = ~((values >= -PROBABILITY_ROUNDING) & (values <= 1 + PROBABILITY_ROUNDING))
            if bad.any():
                problem = f"{bad.sum()} of {len(bad)} values are not, such as {values[bad][0]:g}"
                raise ValueRangeError(f"probability of {name}: {problem}; expected numbers within [0, 1]")
        worst = np.max(np.abs(probability.sum(axis=1) - 1), initial=0.0)
        if worst > PROBABILITY_SUM:
            problem = f"the sum over {', '.join(self.species)} is off 1 by up to {worst:.2g}"
            raise ValueRangeError(f"probabilities: {problem}, expected below {PROBABILITY_SUM:g}; give all species")
        of_event = np.where(inside, np.cumsum(inside) - 1, -1)
        return ProbabilityRows(of_event, in_bin[inside], in_bin[inside], probability)


def _both(row: Mapping[str, float | list[float]], species: Sequence[str]) -> Mapping[str, float | list[float]]:
    """Errors of a sample; with two species and one error it is the other's, too."""
    return dict.fromkeys(species, *row.values()) | dict(row) if len(species) == 2 and len(row) == 1 else row


def _hashes(names: Sequence[str]) -> NDArray[np.int64]:
    return np.array([zlib.crc32(name.encode()) for name in names])
