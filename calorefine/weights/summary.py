r"""Numbers of the report on weights: records of them, how they are computed, and what is off in them.

For weights w of one species, :math:`\sum w \pm \sqrt{\sum w^2}` estimates its number of events and
:math:`n_\mathrm{eff} = (\sum w)^2 / \sum w^2` is the size of the unweighted sample that would know it as well.  A
column's mean and width follow with

.. math:: \sigma^2(\bar x) = \frac{\sum w^2 (x-\bar x)^2}{(\sum w)^2} , \qquad
          \sigma^2(s) = \frac{\sum w^2 \left((x-\bar x)^2 - s^2\right)^2}{4 s^2 (\sum w)^2} ,

for weights that are functions given beforehand.  sWeights come from a fit to the same events, whose own uncertainty
these errors lack; bootstrap replicas, in which the fit is repeated, have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calorefine import stats
from calorefine.shares import Shares, display_edges
from calorefine.stats import FloatArray, IntArray
from calorefine.text import aligned, first_three, number, percent, with_error

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
N_BINS, N_LARGEST, N_WEIGHT_BINS = 5, 10, 80
UNWEIGHTED = "all, unweighted"
LEAST_N_EFF, LARGEST_SHARE, SUM_TOLERANCE, LEAST_P_VALUE = 0.01, 0.05, 5e-3, 0.01
NOT_TESTED = "not tested: give `splot`, the spectator and the shapes"


@dataclass(frozen=True)
class WeightNumbers:
    """Numbers of one species' weights; None where they are not defined, as all weights or their sum are 0.

    Attributes:
        n_events: events.
        n_zero: events of weight 0.
        sum_w: sum of the weights.
        sum_w_error: its standard deviation, the root of the sum of the squared sums of each key.
        sum_w2: sum of the squared weights.
        n_eff: effective number of events, `sum_w` over its error squared.
        n_eff_fraction: `n_eff` over the number of events whose weight is not 0.
        mean: mean weight of all events.
        minimum: smallest weight.
        maximum: largest weight.
        negative_fraction: events of negative weight, over those whose weight is not 0.
        negative_share: sum of the negative weights over `sum_w`.
        extreme_share_abs: share of the sum of |w| carried by the 1 % of events with the largest |w|.
        extreme_share_w2: their share of `sum_w2`.
        largest_share_w2: share of `sum_w2` carried by the one event with the largest |w|.
        quantiles: level to the quantile of the weight among all events.
    """

    n_events: int
    n_zero: int
    sum_w: float
    sum_w_error: float
    sum_w2: float
    n_eff: float
    n_eff_fraction: float | None
    mean: float
    minimum: float
    maximum: float
    negative_fraction: float | None
    negative_share: float | None
    extreme_share_abs: float | None
    extreme_share_w2: float | None
    largest_share_w2: float | None
    quantiles: dict[str, float]


@dataclass(frozen=True)
class MeanAndWidth:
    """Weighted mean and width of a column with their standard errors, in its unit; None where not defined.

    The mean needs a positive sum of weights, and the width a positive variance, which negative weights don't promise.
    """

    mean: float | None
    mean_error: float | None
    width: float | None
    width_error: float | None


@dataclass(frozen=True)
class BinNumbers:
    """Weights in a bin of context, [low, high) or, the last one, [low, high]; `n_events` have a weight other than 0.

    A bin that holds a single value has it as both `low` and `high`.
    """

    low: float
    high: float
    n_events: int
    sum_w: float
    sum_w_error: float
    n_eff: float


@dataclass(frozen=True)
class SpeciesNumbers:
    """All about the weights of one species.

    Attributes:
        expression: branch or expression that they are.
        weights: their numbers.
        largest: the events with the largest |w|: row among those selected, key, weight and columns.
        moments: column to its weighted mean and width.
        bins: context column to the numbers in its bins.
    """

    expression: str
    weights: WeightNumbers
    largest: list[dict[str, float | int]]
    moments: dict[str, MeanAndWidth]
    bins: dict[str, list[BinNumbers]]


@dataclass(frozen=True)
class SumRules:
    """Sums over species and over events.

    Attributes:
        n_events: events with any weight other than 0; 0 if there is only one species.
        largest_deviation: largest |sum over species - 1| among them; None for only one species.
        yields: species to sum of weights, fitted yield by the file's provenance, and their relative difference.
    """

    n_events: int
    largest_deviation: float | None
    yields: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Dependence:
    """Factorization test of one column; `deviation` of `parameter`, in standard deviations, is its largest."""

    column: str
    chi2: float
    ndf: int
    p_value: float
    p_corrected: float
    parameter: str
    deviation: float
    low: float | None
    high: float | None
    where: str

    @property
    def depends(self) -> bool:
        """Whether it is hardly chance."""
        return self.p_corrected < LEAST_P_VALUE


@dataclass(frozen=True)
class WeightsReport:
    """What the page and the JSON file beside it say.

    Attributes:
        output: the page.
        files: names of the input files.
        tree: name of the tree.
        cut: selection, if any.
        n_rows: rows in the files.
        n_events: rows selected.
        species: name to its numbers.
        sum_rules: over species and events.
        factorization_from: "test" if done now, "file" if read from the provenance, "none".
        factorization: one test per column.
        distribution: counts of the weights of each species.
        columns: column to the shares of all events, unweighted, and of each species with a positive sum of weights.
    """

    output: Path
    files: list[str]
    tree: str
    cut: str | None
    n_rows: int
    n_events: int
    species: dict[str, SpeciesNumbers]
    sum_rules: SumRules
    factorization_from: str
    factorization: list[Dependence]
    distribution: Shares
    columns: dict[str, Shares]

    @property
    def warnings(self) -> list[str]:
        """What is off, in plain words."""
        found = [text for name, one in self.species.items() for text in _verdicts(name, one.weights)]
        for name, sums in self.sum_rules.yields.items() if self.n_events == self.n_rows else ():
            if abs(sums["relative"]) > SUM_TOLERANCE:
                found.append(f"{name}: sum_w {sums['sum_w']:.6g} is not the fitted yield {sums['yield']:.6g}")
        for test in self.factorization:
            if test.depends:
                found.append(f"the spectator's shape depends on {test.column}: p = {test.p_corrected:.2g} (corrected)")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, without NaN."""
        return asdict(self) | {"output": str(self.output), "warnings": self.warnings}

    def __str__(self) -> str:
        """Summary for the terminal."""
        titles = ("species", "sum_w", "n_eff", "n_eff/n", "negative", "smallest", "largest")
        rows = [(name, *_terminal_cells(one.weights)) for name, one in self.species.items()]
        lines = [f"weights of {first_three(self.files)}, tree '{self.tree}': {self.n_events} of {self.n_rows} rows"]
        lines += aligned([titles, *rows])
        lines += [f"sum rule: {sum_rule_text(self.sum_rules)}", f"factorization: {_factorization_text(self)}"]
        lines += [f"WARNING: {text}" for text in self.warnings]
        return "\n".join([*lines, f"{self.output}: the page; its numbers in {self.output.stem}.json"])


def weight_numbers(weight: FloatArray, group: IntArray | None = None) -> WeightNumbers:
    """Numbers of the weights of one species.

    Args:
        weight: (n,), any sign, at least one.
        group: (n,) numbers from 0, equal for events of equal key, whose weights are summed before they are squared.
    """
    together = stats.summed(weight, group)
    total, squares, used = stats.sum_w(weight), stats.sum_w2(weight), int(np.count_nonzero(weight))
    size, ones = np.abs(weight), np.ones(len(weight))
    n_extreme = math.ceil(0.01 * len(weight))
    extreme = np.partition(size, len(size) - n_extreme)[len(size) - n_extreme :]
    negative = weight[weight < 0]
    return WeightNumbers(
        n_events=len(weight),
        n_zero=len(weight) - used,
        sum_w=total,
        sum_w_error=math.sqrt(stats.sum_w2(together)),
        sum_w2=squares,
        n_eff=stats.n_eff(together),
        n_eff_fraction=over(stats.n_eff(together), used),
        mean=float(stats.mean(weight, ones)),
        minimum=float(np.min(weight)),
        maximum=float(np.max(weight)),
        negative_fraction=over(len(negative), used),
        negative_share=over(stats.sum_w(negative), total),
        extreme_share_abs=over(stats.sum_w(extreme), stats.sum_w(size)),
        extreme_share_w2=over(stats.sum_w2(extreme), squares),
        largest_share_w2=over(float(np.max(size)) ** 2, squares),
        quantiles={f"{q:g}": float(v) for q, v in zip(QUANTILES, stats.quantile(weight, ones, QUANTILES), strict=True)},
    )


def weighted_moments(values: FloatArray, weight: FloatArray, group: IntArray | None = None) -> MeanAndWidth:
    """Weighted mean and width of a column, with their errors by sum w^2.

    Args:
        values: (n,).
        weight: (n,), any sign.
        group: as for `weight_numbers`.
    """
    total = stats.sum_w(weight)
    if total <= 0:
        return MeanAndWidth(None, None, None, None)
    mean = float(stats.mean(values, weight))
    squared = (values - mean) ** 2
    mean_error = math.sqrt(stats.sum_w2(stats.summed(weight * (values - mean), group))) / total
    variance = float(stats.mean(squared, weight))
    if variance <= 0:
        return MeanAndWidth(mean, mean_error, 0.0 if variance == 0 else None, None)
    width = math.sqrt(variance)
    width_error = math.sqrt(stats.sum_w2(stats.summed(weight * (squared - variance), group))) / (2 * width * total)
    return MeanAndWidth(mean, mean_error, width, width_error)


def largest(weight: FloatArray, count: int = N_LARGEST) -> IntArray:
    """Rows of the events with the largest absolute weights (at most `count`,), largest first, the earlier of equals."""
    return np.argsort(-np.abs(weight), kind="stable")[:count]


def sum_rules(weights: Mapping[str, FloatArray], yields: Mapping[str, float]) -> SumRules:
    """Sums over the species of each event, and over the events against fitted yields.

    Args:
        weights: species to its weights (n,), any sign.
        yields: species to its fitted yield, where it is known.
    """
    sums = {name: {"sum_w": stats.sum_w(weights[name]), "yield": size} for name, size in yields.items()}
    compared = {name: one | {"relative": one["sum_w"] / one["yield"] - 1} for name, one in sums.items()}
    if len(weights) < 2:
        return SumRules(0, None, compared)
    table = np.stack(list(weights.values()))
    total = table[:, (table != 0).any(axis=0)].sum(axis=0)
    return SumRules(len(total), float(np.max(np.abs(total - 1), initial=0.0)), compared)


def column_shares(values: FloatArray, weights: Mapping[str, FloatArray]) -> Shares:
    """Shares of all events, unweighted, and of each species whose weights have a positive sum.

    Args:
        values: (n,) of a column.
        weights: species to its weights (n,), any sign.
    """
    samples = {UNWEIGHTED: np.ones(len(values))} | {k: w for k, w in weights.items() if stats.sum_w(w) > 0}
    return Shares.of(display_edges(values), {name: (values, weight) for name, weight in samples.items()})


def weight_counts(weights: Mapping[str, FloatArray]) -> Shares:
    """Numbers of events in bins of the weight, from the smallest to the largest of all species."""
    low = min(float(np.min(weight)) for weight in weights.values())
    high = max(float(np.max(weight)) for weight in weights.values())
    margin = 0.01 * (high - low) or 0.5
    edges = np.linspace(low - margin, high + margin, N_WEIGHT_BINS + 1)
    counts = {name: np.histogram(weight, edges)[0].astype(np.float64) for name, weight in weights.items()}
    errors = {name: np.sqrt(values).tolist() for name, values in counts.items()}
    return Shares(edges.tolist(), {name: values.tolist() for name, values in counts.items()}, errors)


def in_bins(
    values: FloatArray, weight: FloatArray, *, edges: FloatArray, group: IntArray | None = None
) -> list[BinNumbers]:
    """Numbers of the weights in bins of a column.

    Args:
        values: (n,), within the edges.
        weight: (n,), any sign.
        edges: (b + 1,) increasing, or the single value of a constant column.
        group: as for `weight_numbers`.

    Returns:
        One record for each bin; the last one is closed on both sides.
    """
    index = np.searchsorted(edges[1:-1], values, side="right")
    highs = edges[1:] if len(edges) > 1 else edges
    bins = []
    for which, (low, high) in enumerate(zip(edges, highs, strict=False)):
        inside = index == which
        own, found = weight[inside], values[inside]
        if len(found) and found.min() == found.max():
            low = high = found[0]
        together = stats.summed(own, None if group is None else group[inside])
        sums = stats.sum_w(own), math.sqrt(stats.sum_w2(together)), stats.n_eff(together)
        bins.append(BinNumbers(float(low), float(high), int(np.count_nonzero(own)), *sums))
    return bins


def _terminal_cells(w: WeightNumbers) -> tuple[str, ...]:
    sizes = with_error(w.sum_w, w.sum_w_error, "+-"), number(w.n_eff), percent(w.n_eff_fraction)
    return *sizes, percent(w.negative_fraction), number(w.minimum), number(w.maximum)


def _verdicts(name: str, w: WeightNumbers) -> list[str]:
    """What is off with the weights of one species."""
    found = []
    if w.sum_w <= 0:
        found.append(f"{name}: the weights sum to {number(w.sum_w)}, expected a positive sum")
    if w.n_eff_fraction is not None and w.n_eff_fraction < LEAST_N_EFF:
        found.append(f"{name}: n_eff is only {percent(w.n_eff_fraction)} of the events with a weight other than 0")
    if w.largest_share_w2 is not None and w.largest_share_w2 > LARGEST_SHARE:
        found.append(f"{name}: a single event carries {percent(w.largest_share_w2)} of sum_w2")
    return found


def sum_rule_text(rules: SumRules) -> str:
    """Whether the weights of all species sum to 1, in words."""
    if rules.largest_deviation is None:
        return "there is only one species"
    deviation = number(rules.largest_deviation, 2)
    text = f"largest |sum - 1| is {deviation} over {rules.n_events} events of weights other than 0"
    return text + ("" if rules.largest_deviation <= SUM_TOLERANCE else ", so they do not sum to 1")


def _factorization_text(report: WeightsReport) -> str:
    if not report.factorization:
        return NOT_TESTED
    worst = min(report.factorization, key=lambda test: test.p_corrected)
    origin = "tested now" if report.factorization_from == "test" else "as stored in the file"
    return (
        f"{len(report.factorization)} columns, {origin}; smallest p {worst.p_corrected:.2g} (corrected), {worst.column}"
    )


def over(value: float, total: float) -> float | None:
    """Ratio; None if the total is 0."""
    return value / total if total != 0 else None
