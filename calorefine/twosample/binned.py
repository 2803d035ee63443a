r"""Means, widths and efficiencies of two weighted samples in bins of the context, with errors.

Each number is an estimate with the influence of each event on it (`estimates`).

A difference or ratio of both samples has influences, too.  Those of equal event key are summed before squaring, so that
an event and the one generated at the same conditions, whose noise is partly common, are treated as what they are.

A generator knows no more than its training sample does.  Where the effective number of training events is given, the
reference's variance, scaled by the ratio of the effective numbers, is one more term of the error of a difference or
ratio: a perfect generator then has pulls of width 1.

What a fit of the weights to the same events (sWeights) adds to the errors is left out.

Reference: Maevskiy et al., arXiv:1905.11825 (efficiencies against the context, of generated particle identification).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from calorefine import keys, stats
from calorefine.errors import ConfigError
from calorefine.events import Columns, Events
from calorefine.stats import FloatArray
from calorefine.twosample.comparison import Comparison, compared
from calorefine.twosample.estimates import (
    Linearized,
    efficiency_estimate,
    half_width_estimate,
    mean_estimate,
    std_estimate,
)

CUT_LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
N_MOMENT_BINS, N_EFFICIENCY_BINS = 5, 6
LEAST_EFFICIENCY = 3.0  # of a reference efficiency in a ratio, in standard errors


@dataclass(frozen=True)
class ContextBin:
    """Bin (low, high] of a context column; the outermost ones include all beyond them.

    Attributes:
        low: lower edge.
        high: upper edge.
        center: weighted median of the reference within.
    """

    low: float
    high: float
    center: float


@dataclass(frozen=True)
class BinWidths:
    """Weighted mean, 68 % half-width and standard deviation of a feature in a bin."""

    mean: Comparison
    half_width: Comparison
    std: Comparison


@dataclass(frozen=True)
class Efficiencies:
    """Fractions above a cut on a feature, in each bin of each context column.

    Attributes:
        cut: the reference's quantile.
        bins: context column to one comparison per bin.
    """

    cut: float
    bins: dict[str, list[Comparison]]


@dataclass(frozen=True)
class Deviation:
    """Deviation of the efficiency from the reference's, averaged over bins; None if no bin is known.

    Attributes:
        mean: average of |generated / reference - 1|.
        expected: this average for two samples that differ by accident only.
        worst: largest one.
        absolute: average of |generated - reference|.
        n_bins: bins in the averages.
        n_left_out: bins left out, as the reference is not `significant`.
    """

    mean: float | None = None
    expected: float | None = None
    worst: float | None = None
    absolute: float | None = None
    n_bins: int = 0
    n_left_out: int = 0


def context_values(columns: Columns, events: Events) -> dict[str, FloatArray]:
    """Context columns (n,) by name, categories by their value instead of one-hot encoded."""
    values, first = {}, 0
    for name, column in columns.context_columns.items():
        encoded = events.context[:, first : first + len(column.categories or [0])]
        first += encoded.shape[1]
        known = column.categories and np.asarray(column.categories, np.float64)
        values[name] = (
            encoded[:, 0] + np.float64(column.offset or 0) if known is None else known[np.argmax(encoded, axis=1)]
        )
    return values


class PairedBins:
    """Both samples in bins of one context column that hold equal sums of the reference's weights.

    A column with no more values than bins gets one bin for each value.

    Args:
        generated: (n,) values of the context column.
        reference: (m,) values.
        weights: (n,) and (m,), any sign, positive sums.
        event_keys: (n,) and (m,).
        n_bins: number of bins.
        training: effective number of the reference's events over that of the training events, 0 if unknown.

    Raises:
        ConfigError: no bin.
        WeightError: reference weights without a positive sum.
    """

    def __init__(
        self,
        generated: FloatArray,
        reference: FloatArray,
        *,
        weights: tuple[FloatArray, FloatArray],
        event_keys: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        n_bins: int,
        training: float = 0.0,
    ) -> None:
        """Sort the events into bins."""
        if n_bins < 1:
            raise ConfigError(f"n_bins: {n_bins} found, expected at least 1")
        inner = _inner_edges(reference, weights[1], n_bins)
        index = [np.searchsorted(inner, values) for values in (generated, reference)]
        self._weights, self._training = weights, training
        self._events = [[np.flatnonzero(numbers == k) for numbers in index] for k in range(len(inner) + 1)]
        self._groups = [
            keys.group(event_keys[0][simulated], event_keys[1][target]) for simulated, target in self._events
        ]
        edges = np.concatenate([[reference.min()], inner, [reference.max()]])
        centers = [_median(reference[target], weights[1][target]) for _, target in self._events]
        self.bins = [ContextBin(*ends, c) for ends, c in zip(pairwise(edges.tolist()), centers, strict=True)]

    def compare(
        self,
        generated: FloatArray,
        reference: FloatArray,
        estimator: Callable[[FloatArray, FloatArray], Linearized | None],
    ) -> list[Comparison]:
        """Estimate a number in each bin of both samples, from values (n,) and (m,)."""
        comparisons = []
        for inside, group in zip(self._events, self._groups, strict=True):
            samples = zip((generated, reference), self._weights, inside, strict=True)
            pairs = [(values[at], weight[at]) for values, weight, at in samples]
            estimates = [estimator(v, w) if len(w) > 1 and stats.sum_w(w) > 0 else None for v, w in pairs]
            comparisons.append(compared(estimates[0], estimates[1], group, training=self._training))
        return comparisons


def _inner_edges(values: FloatArray, weight: FloatArray, n_bins: int) -> FloatArray:
    distinct = np.unique(values)
    if len(distinct) <= n_bins:
        return (distinct[1:] + distinct[:-1]) / 2
    edges = np.unique(stats.quantile(values, weight, np.arange(1, n_bins) / n_bins))
    return np.asarray(edges[edges < distinct[-1]])


def _median(values: FloatArray, weight: FloatArray) -> float:
    if len(values) == 0 or stats.sum_w(weight) <= 0:
        weight = np.ones(len(values))
    return float(stats.quantile(values, weight, [0.5])[0])


def binned_moments(
    generated: FloatArray, reference: FloatArray, binnings: Mapping[str, PairedBins]
) -> dict[str, list[BinWidths]]:
    """Moments of a feature, values (n,) and (m,), in the bins of each context column."""
    moments = {}
    for name, binning in binnings.items():
        numbers = (binning.compare(generated, reference, f) for f in (mean_estimate, half_width_estimate, std_estimate))
        moments[name] = [BinWidths(*three) for three in zip(*numbers, strict=True)]
    return moments


def binned_efficiencies(
    generated: FloatArray, reference: FloatArray, binnings: Mapping[str, PairedBins], *, weight: FloatArray
) -> dict[str, Efficiencies]:
    """Fractions above the reference's quantiles of a feature in the bins of each context column.

    Args:
        generated: (n,) values.
        reference: (m,) values.
        binnings: context column to its bins.
        weight: (m,) of the reference, for its quantiles.

    Returns:
        One for each of `CUT_LEVELS`, written as text.
    """
    efficiencies = {}
    for level, cut in zip(CUT_LEVELS, stats.quantile(reference, weight, CUT_LEVELS).tolist(), strict=True):
        passed = [(values > cut).astype(np.float64) for values in (generated, reference)]
        bins = {name: binning.compare(passed[0], passed[1], efficiency_estimate) for name, binning in binnings.items()}
        efficiencies[f"{level:g}"] = Efficiencies(cut, bins)
    return efficiencies


def significant(comparison: Comparison) -> bool:
    """Whether the reference is more than `LEAST_EFFICIENCY` errors above 0, so that a ratio to it says something."""
    if comparison.reference is None or comparison.reference_error is None or comparison.ratio is None:
        return False
    return comparison.reference > LEAST_EFFICIENCY * comparison.reference_error


def deviation(comparisons: list[Comparison]) -> Deviation:
    """Average deviation over bins with a significant reference efficiency."""
    known = [comparison for comparison in comparisons if significant(comparison)]
    left_out = len(comparisons) - len(known)
    if not known:
        return Deviation(n_left_out=left_out)
    names = ("ratio", "ratio_error", "generated", "reference")
    ratio, error, generated, reference = (np.array([getattr(c, name) for c in known]) for name in names)
    size, expected = np.abs(ratio - 1), float(np.sqrt(2 / np.pi) * error.mean())
    absolute = float(np.abs(generated - reference).mean())
    return Deviation(float(size.mean()), expected, float(size.max()), absolute, len(known), left_out)


def corrected_p_value(pull: float, n_pulls: int) -> float:
    """Probability that the largest of so many independent pulls is as large as this one."""
    return stats.sidak(float(erfc(abs(pull) / np.sqrt(2))), n_pulls)


def corrected_smallest(p_values: Sequence[float]) -> float:
    """Probability that the smallest of so many independent p-values is as small as theirs (Sidak).

    >>> round(corrected_smallest([0.01, 0.5]), 6)
    0.0199
    """
    return stats.sidak(min(p_values), len(p_values))
