"""Numbers of the diagnostics: weights, where they are largest, mean weights at given context, histograms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.events import Events
from calorefine.shares import Shares, display_edges
from calorefine.stats import FloatArray

N_LARGEST, N_BINS, LOG_RATIO_BINS = 10, 10, 50
AT_BOUND = 0.1  # of the log ratio: within 10 % of the largest factor


@dataclass(frozen=True)
class LargestFactor:
    """A generated event: its factor, its weight after, that weight's share of the sum, its columns."""

    factor: float
    weight: float
    share: float
    values: dict[str, float]


@dataclass(frozen=True)
class FactorNumbers:
    """Weights of the generated events.

    Attributes:
        n: number of events.
        n_eff_before: effective number of events without factors; those of equal key count as one.
        n_eff: with them.
        n_eff_fraction: of the one before.
        mean_factor: weighted by the weights before.
        largest_share: largest weight over the sum.
        at_bound: share of the sum of weights after whose factor is within 10 % of the largest possible one.
        outside: share of the weights before at contexts without a correction (factor 1).
        largest: events with the largest factors.
    """

    n: int
    n_eff_before: float
    n_eff: float
    n_eff_fraction: float
    mean_factor: float
    largest_share: float
    at_bound: float
    outside: float
    largest: list[LargestFactor]


@dataclass(frozen=True)
class MeanWeightBin:
    """Mean factor of the generated events with context in [low, high], and its pull from 1 (None without error).

    The error is that of the mean weight at these contexts, for the weights as they are.  Where the events are those
    that the normalization N(c) was learned from, as in a fit, it is also N(c)'s own noise: a mean in new events is away
    from 1 by as much, while the one here is nearer to 1, as N(c) has followed these events.
    """

    low: float
    high: float
    mean: float
    error: float
    pull: float | None


def factor_numbers(
    generated: Events, log_ratio: FloatArray, names: list[str], *, known: NDArray[np.bool_], bound: float
) -> FactorNumbers:
    """Numbers of the weights after.

    Args:
        generated: weights before.
        log_ratio: (n,) log factors.
        names: of features and context.
        known: (n,) whether there is a correction at the event's context.
        bound: largest possible log factor.
    """
    factor = np.exp(log_ratio)
    weight = generated.weight * factor
    group = keys.group(generated.event_key)
    before, n_eff = (stats.n_eff(stats.group_sums(w, group)) for w in (generated.weight, weight))
    total = stats.sum_w(weight)
    table = generated.table
    order = np.argsort(-np.where(generated.weight > 0, factor, -1.0), kind="stable")[:N_LARGEST]
    largest = [
        LargestFactor(
            float(factor[i]),
            float(weight[i]),
            float(weight[i] / total),
            dict(zip(names, table[i].tolist(), strict=True)),
        )
        for i in order.tolist()
    ]
    return FactorNumbers(
        n=len(generated),
        n_eff_before=before,
        n_eff=n_eff,
        n_eff_fraction=n_eff / before,
        mean_factor=float(stats.mean(factor, generated.weight)),
        largest_share=float(weight.max() / total),
        at_bound=stats.sum_w(weight[log_ratio > bound - AT_BOUND]) / total,
        outside=float(stats.mean(~known, generated.weight)),
        largest=largest,
    )


def mean_weights(generated: Events, factor: FloatArray, names: list[str]) -> dict[str, list[MeanWeightBin]]:
    """Mean factors in bins of equal generated weight, for each column of the context.

    Factors of events of equal key, copies at the same conditions, are summed before squaring for the error.

    Args:
        generated: weights before; at contexts with a correction.
        factor: (n,) factors.
        names: of the context.
    """
    return {
        name: _bins(column.astype(np.float64), generated, factor)
        for name, column in zip(names, generated.context.T, strict=True)
    }


def _bins(column: FloatArray, generated: Events, factor: FloatArray) -> list[MeanWeightBin]:
    weight, group = generated.weight, keys.group(generated.event_key)
    edges = np.unique(stats.quantile(column, weight, np.arange(1, N_BINS) / N_BINS))
    cell = np.searchsorted(edges, column)
    found = []
    for number in range(len(edges) + 1):
        inside = (cell == number) & (weight > 0)
        if not inside.any():
            continue
        own = weight[inside]
        mean = float(stats.mean(factor[inside], own))
        influence = np.bincount(group[inside], own * (factor[inside] - mean))
        error = float(np.sqrt(stats.sum_w2(influence)) / stats.sum_w(own))
        pull = (mean - 1) / error if error > 0 else None
        found.append(MeanWeightBin(float(column[inside].min()), float(column[inside].max()), mean, error, pull))
    return found


def log_ratio_histogram(log_ratios: tuple[FloatArray, FloatArray], weights: tuple[FloatArray, FloatArray]) -> Shares:
    """Log ratios under the reference, and under the generated events before the reweighting."""
    low, high = (float(f(np.concatenate(log_ratios))) for f in (np.min, np.max))
    margin = 0.01 * (high - low) or 0.5
    edges = np.linspace(low - margin, high + margin, LOG_RATIO_BINS + 1)
    return Shares.of(edges, {"reference": (log_ratios[1], weights[1]), "generated": (log_ratios[0], weights[0])})


def column_histograms(generated: Events, reference: Events, factor: FloatArray, names: list[str]) -> dict[str, Shares]:
    """Each column of the reference, of the generated events, and of those after the reweighting."""
    tables = [e.table.astype(np.float64) for e in (generated, reference)]
    found = {}
    for name, own, other in zip(names, tables[0].T, tables[1].T, strict=True):
        samples = {
            "reference": (other, reference.weight, reference.event_key),
            "generated": (own, generated.weight, generated.event_key),
            "reweighted": (own, generated.weight * factor, generated.event_key),
        }
        found[name] = Shares.of(display_edges(np.concatenate([own, other])), samples)
    return found
