"""What positive weights changed: sums by region, moments by column, effective events."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.events import Events
from calorefine.stats import FloatArray, IntArray
from calorefine.weights.calibration import varying

_TAIL = 0.05
_N_SCORES = 10


@dataclass(frozen=True)
class RegionSums:
    """Sums of weights in a region: signed, positive, and the standard error of their difference.

    The error is that of independent events, candidates of an event summed before they are squared; it doesn't hold the
    regression's own noise, and so is the one to hold the difference against.
    """

    signed: float
    positive: float
    error: float


@dataclass(frozen=True)
class ColumnMoments:
    """Weighted mean and width of one column, for the signed weights (before) and the positive ones (after).

    `pull` is the difference of the means in standard errors of the signed one.  `width_before` is None if the signed
    weights make the variance negative.
    """

    mean_before: float
    mean_after: float
    pull: float
    width_before: float | None
    width_after: float


@dataclass(frozen=True)
class PositiveResult:
    """Positive weights, and what changed.

    Attributes:
        weight: (n,) within `bounds`, in the order of the events; the multiplicity is not included.
        bounds: the bounds.
        below: fraction of the raw predictions below the lower bound.
        above: fraction above the upper one.
        raw_factor: sum of the raw predictions, clipped to the bounds, over that of the signed weights.
        sum_factor: sum of the positive weights over that of the signed ones; 1 by construction.
        n_eff_before: effective events of the signed weights: the number to quote.
        n_eff_after: that of the positive weights; it overstates the information.
        columns: name to moments.
        regions: name to sums: tenths of the raw predictions, and the lowest and highest 5 % along each column.
        correlation: largest absolute difference of two columns' correlation; None if the signed weights have none.
        iterations: rounds of the estimator in each fold, if it counts them (`n_iter_`).
    """

    weight: FloatArray
    bounds: tuple[float, float]
    below: float
    above: float
    raw_factor: float
    sum_factor: float
    n_eff_before: float
    n_eff_after: float
    columns: dict[str, ColumnMoments]
    regions: dict[str, RegionSums]
    correlation: float | None
    iterations: tuple[int, ...]

    @property
    def diagnostics(self) -> dict[str, Any]:
        """All but the weights, as plain numbers."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "weight"}

    def summary(self) -> str:
        """Fixed-width tables for the terminal."""
        correlation = "undefined" if self.correlation is None else f"{self.correlation:.3f}"
        lines = [
            f"positive weights in [{self.bounds[0]:g}, {self.bounds[1]:g}] for {len(self.weight)} events",
            f"raw predictions below / above {100 * self.below:9.2f} / {100 * self.above:.2f} %",
            f"sum, clipped / calibrated     {self.raw_factor:9.4f} / {self.sum_factor:.4f} of the signed weights'",
            f"effective events, signed      {self.n_eff_before:9.0f}  (quote this)",
            f"effective events, positive    {self.n_eff_after:9.0f}  (overstated: their noise is in the regression)",
            f"largest change of correlation {correlation:>9}",
        ]
        if self.iterations:
            lines.append(f"rounds in each fold           {' '.join(map(str, self.iterations)):>9}")
        wide = max(map(len, self.columns), default=6)
        lines.append(f"\n{'column':<{wide}} {'mean':>11} {'positive':>11} {'pull':>6} {'width':>11} {'positive':>11}")
        for name, c in self.columns.items():
            width = "undefined" if c.width_before is None else f"{c.width_before:.5g}"
            means = f"{c.mean_before:>11.5g} {c.mean_after:>11.5g} {c.pull:>6.2f}"
            lines.append(f"{name:<{wide}} {means} {width:>11} {c.width_after:>11.5g}")
        wide = max(map(len, self.regions))
        lines.append(f"\n{'sums by region':<{wide}} {'signed':>11} {'positive':>11} {'positive - signed':>22}")
        for name, r in self.regions.items():
            difference = f"{r.positive - r.signed:.4g} +- {r.error:.3g}"
            lines.append(f"{name:<{wide}} {r.signed:>11.5g} {r.positive:>11.5g} {difference:>22}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Diagnostics as JSON types, without the weights."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name != "weight"}
        return {**values, "bounds": list(self.bounds), "iterations": list(self.iterations)}


def result_of(
    positive: FloatArray,
    raw: FloatArray,
    bounds: tuple[float, float],
    table: FloatArray,
    events: Events,
    counts: IntArray,
    labels: Sequence[str],
    iterations: tuple[int, ...],
) -> PositiveResult:
    """Compare positive weights with the events' signed ones.

    Args:
        positive: (n,) positive weights, without multiplicities.
        raw: (n,) cross-fitted predictions.
        bounds: the bounds.
        table: (n, d) columns, an array as its sum.
        events: with signed weights.
        counts: (n,) multiplicities.
        labels: names of the columns.
        iterations: rounds of the estimator in each fold.
    """
    before, after = events.weight * counts, positive * counts
    total = stats.sum_w(before)
    covariances = stats.covariance(table, before), stats.covariance(table, after)
    varies = varying(table[before != 0])
    regions = {
        name: _region_sums(before[inside], after[inside], events.event_key[inside])
        for name, inside in _regions(raw, table, counts, labels)
        if inside.any()
    }
    return PositiveResult(
        weight=positive,
        bounds=bounds,
        below=float(stats.mean(raw < bounds[0], counts)),
        above=float(stats.mean(raw > bounds[1], counts)),
        raw_factor=stats.sum_w(np.clip(raw, *bounds) * counts) / total,
        sum_factor=stats.sum_w(after) / total,
        n_eff_before=stats.n_eff(before),
        n_eff_after=stats.n_eff(after),
        columns=_moments(table, before, after, covariances, labels),
        regions=regions,
        correlation=_correlation_change(*(c[np.ix_(varies, varies)] for c in covariances)),
        iterations=iterations,
    )


def _regions(
    raw: FloatArray, table: FloatArray, counts: IntArray, labels: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Regions by name: tenths of the raw predictions, lowest first, then both tails of each column."""
    edges = stats.quantile(raw, counts, np.arange(1, _N_SCORES) / _N_SCORES)
    tenth = np.searchsorted(edges, raw)
    for number in range(_N_SCORES):
        yield f"predictions, {10 * number} to {10 * (number + 1)} %", tenth == number
    for name, column in zip(labels, table.T, strict=True):
        low, high = stats.quantile(column, counts, [_TAIL, 1 - _TAIL])
        yield f"{name} <= {low:.4g}", column <= low
        yield f"{name} >= {high:.4g}", column >= high


def _region_sums(before: FloatArray, after: FloatArray, event_key: keys.KeyArray) -> RegionSums:
    difference = stats.group_sums(after - before, keys.group(event_key))
    return RegionSums(stats.sum_w(before), stats.sum_w(after), float(np.sqrt(stats.sum_w2(difference))))


def _moments(
    table: FloatArray,
    before: FloatArray,
    after: FloatArray,
    covariances: tuple[FloatArray, FloatArray],
    labels: Sequence[str],
) -> dict[str, ColumnMoments]:
    old, new = stats.mean(table, before), stats.mean(table, after)
    variances, widths = np.diag(covariances[0]), np.sqrt(np.diag(covariances[1]))
    total, varies, found = stats.sum_w(before), varying(table[before != 0]), {}
    for j, name in enumerate(labels):
        error = np.sqrt(stats.sum_w2(before * (table[:, j] - old[j]))) / total
        found[name] = ColumnMoments(
            mean_before=float(old[j]),
            mean_after=float(new[j]),
            pull=float((new[j] - old[j]) / error) if varies[j] else 0.0,
            width_before=float(np.sqrt(variances[j])) if variances[j] >= 0 else None,
            width_after=float(widths[j]),
        )
    return found


def _correlation_change(before: FloatArray, after: FloatArray) -> float | None:
    """Largest absolute difference of the correlations; None for a variance that is not positive."""
    if min(np.diag(before).min(initial=np.inf), np.diag(after).min(initial=np.inf)) <= 0:
        return None
    old, new = (c / np.sqrt(np.outer(np.diag(c), np.diag(c))) for c in (before, after))
    return float(np.abs(new - old).max(initial=0.0))
