r"""When not to trust a reweighting: what it leaves, what it can't reach, and what it costs.

In the conditional case the samples' contexts may be distributed differently, which the weights leave alone.  For all
comparisons of the two samples, generated events are then weighted by the ratio of the context's densities as well, so
that only what the reweighting is about is compared; events at contexts without a correction are left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from calorefine.errors import FitError, WeightError
from calorefine.events import Events
from calorefine.reweighting.coverage import MOST_COVERED, Coverage, coverage
from calorefine.reweighting.residuals import Residual, residuals
from calorefine.reweighting.reweighter import Reweighter
from calorefine.reweighting.summary import (
    FactorNumbers,
    MeanWeightBin,
    column_histograms,
    factor_numbers,
    log_ratio_histogram,
    mean_weights,
)
from calorefine.shares import Shares
from calorefine.stats import FloatArray
from calorefine.text import number, share_text, with_error
from calorefine.twosample.classifier import Separation, separation
from calorefine.twosample.distances import ColumnDistances, Points, compare_columns

MOST_UNCOVERED, LEAST_N_EFF, MOST_OF_SUM, MOST_AT_BOUND = 0.01, 0.5, 0.01, 0.01
LEAST_SHIFT = 1e-3  # of a weight, or of a mean weight, that matters
LEAST_P_VALUE, MOST_SIGMA = 1e-3, 4.0
N_WORST = 10


@dataclass(frozen=True)
class BeforeAfter:
    """The separation of generated and reference events, and why it is missing (None) where it can't be computed."""

    before: Separation | None
    after: Separation | None
    refused: str | None


@dataclass(frozen=True)
class Diagnostics:
    """What is known about a reweighting.

    Attributes:
        conditional: whether the context's spectrum is left alone.
        classifier: AUC and JSD by an independent classifier.
        coverage: shares of what only one of the samples has.
        weights: effective number of events and largest weights.
        residuals: columns and pairs, the least probable first.
        distances: feature to its distances (before, after).
        mean_weights: context column to the mean factor in its bins.
        log_ratio: under the reference, and under generated events before.
        columns: column to its histogram; generated events as they were compared.
        warnings: when not to trust it.
    """

    conditional: bool
    classifier: BeforeAfter
    coverage: Coverage
    weights: FactorNumbers
    residuals: list[Residual]
    distances: dict[str, tuple[ColumnDistances, ColumnDistances]]
    mean_weights: dict[str, list[MeanWeightBin]]
    log_ratio: Shares
    columns: dict[str, Shares]
    warnings: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Draw the conclusions."""
        object.__setattr__(self, "warnings", _warnings(self))

    @property
    def worst_mean(self) -> tuple[str, MeanWeightBin] | None:
        """Context column and bin with the largest pull of the mean weight from 1; None if there is none."""
        found = [(name, one) for name, bins in self.mean_weights.items() for one in bins if one.pull is not None]
        return max(found, key=lambda item: abs(item[1].pull or 0.0), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, without NaN."""
        worst = self.worst_mean
        return asdict(self) | {"worst_mean": worst and {"context": worst[0], **asdict(worst[1])}}

    def __str__(self) -> str:
        """Warnings and the main numbers, for the terminal."""
        lines = [f"WARNING: {text}" for text in self.warnings] or ["no warnings"]
        for name, one in (("before", self.classifier.before), ("after", self.classifier.after)):
            lines.append(f"classifier {name}: {separation_text(one, '+-')}")
        lines += [f"classifier refused: {self.classifier.refused}"] if self.classifier.refused else []
        w, c = self.weights, self.coverage
        lines.append(f"n_eff {w.n_eff:.0f} of {w.n_eff_before:.0f} ({w.n_eff_fraction:.1%}), n {w.n}")
        lines.append(f"largest weight {w.largest_share:.2g} of the sum, largest factor {w.largest[0].factor:.3g}")
        lines.append(f"reference not covered: {share_text(c.uncovered.value, c.uncovered.error, '+-')}")
        lines.append(f"generated that the reference lacks: {share_text(c.invented.value, c.invented.error, '+-')}")
        if (worst := self.worst_mean) and worst[1].pull is not None:
            lines.append(f"mean weight furthest from 1: {worst[1].mean:.3f} ({worst[1].pull:+.1f} sigma) in {worst[0]}")
        for left in self.residuals[:3]:
            chi2 = f"chi2/ndf {left.chi2_before:.0f}/{left.ndf_before} -> {left.chi2:.0f}/{left.ndf}"
            lines.append(f"residual {' x '.join(left.columns)}: {chi2}, p {number(left.p_corrected, 2)} (of all)")
        return "\n".join(lines)


def diagnose(
    reweighter: Reweighter, generated: Events, reference: Events, *, repetitions: int = 4, seed: int = 0
) -> Diagnostics:
    """Compare generated with reference events, before and after the reweighting.

    Events that the reweighter was trained on are weighed by members that did not see them.

    Args:
        reweighter: to be judged.
        generated: weights that are not negative.
        reference: weights of any sign.
        repetitions: splits of the classifier.
        seed: of splits, folds and replicates.

    Raises:
        WeightError: negative generated weights, or weights without a positive sum.
        EmptySelectionError: too few events.
    """
    if bad := int(np.sum(~(generated.weight >= 0))):
        raise WeightError(
            f"diagnostics: {bad} of {len(generated)} generated weights are negative or NaN, expected none"
        )
    columns = reweighter.columns
    names = [*columns.feature_names, *columns.context_names]
    log_ratio, reference_log_ratio = reweighter.log_ratio(generated), reweighter.log_ratio(reference)
    known = reweighter.in_domain(generated.context)
    tested = _tested(reweighter, generated.take(known), reference)
    factor, pair = np.exp(log_ratio[known]), (log_ratio[known], reference_log_ratio)
    bound = reweighter.bound
    return Diagnostics(
        conditional=reweighter.conditional,
        coverage=coverage(tested, reference, pair, seed=seed),
        classifier=_classifier(tested, reference, factor, repetitions, seed),
        weights=factor_numbers(generated, log_ratio, names, known=known, bound=bound),
        residuals=residuals(tested, reference, factor, names, conditional=reweighter.conditional),
        distances=_distances(tested, reference, factor, columns.feature_names, seed),
        mean_weights=mean_weights(generated.take(known), factor, columns.context_names),
        log_ratio=log_ratio_histogram(pair, (tested.weight, reference.weight)),
        columns=column_histograms(tested, reference, factor, names),
    )


def _tested(reweighter: Reweighter, generated: Events, reference: Events) -> Events:
    """Generated events with the spectrum of the reference's context in the conditional case."""
    return replace(generated, weight=generated.weight * reweighter.context_factors(generated, reference))


def _classifier(generated: Events, reference: Events, factor: FloatArray, repetitions: int, seed: int) -> BeforeAfter:
    found: list[Separation | None] = []
    refused = None
    for weight in (generated.weight, generated.weight * factor):
        try:
            found.append(separation(replace(generated, weight=weight), reference, repetitions=repetitions, seed=seed))
        except (WeightError, FitError) as error:
            found.append(None)
            refused = str(error)
    return BeforeAfter(found[0], found[1], refused)


def _distances(
    generated: Events, reference: Events, factor: FloatArray, names: list[str], seed: int
) -> dict[str, tuple[ColumnDistances, ColumnDistances]]:
    other = Points(reference.x, reference.weight, reference.event_key)
    samples = [Points(generated.x, w, generated.event_key) for w in (generated.weight, generated.weight * factor)]
    before, after = (compare_columns(one, other, seed=seed) for one in samples)
    return dict(zip(names, zip(before, after, strict=True), strict=True))


def separation_text(one: Separation | None, sign: str = "\N{PLUS-MINUS SIGN}") -> str:
    """AUC and JSD."""
    if one is None:
        return "-"
    jsd = "-" if one.jsd is None else with_error(one.jsd, one.jsd_spread, sign)
    return f"AUC {with_error(one.auc, one.auc_error, sign)}, JSD {jsd}"


def _warnings(found: Diagnostics) -> list[str]:
    return [*_coverage_warnings(found.coverage), *_weight_warnings(found), *_residual_warnings(found)]


def _coverage_warnings(found: Coverage) -> list[str]:
    one = found.uncovered
    if one.value <= max(MOST_UNCOVERED, 2 * one.error):
        return []
    text = (
        f"{share_text(one.value, one.error, '+-')} of the reference is where almost nothing was generated (less than "
    )
    return [f"{text}1/{MOST_COVERED:g} of its density): no weight makes up for that; generate there"]


def _weight_warnings(found: Diagnostics) -> list[str]:
    w, out = found.weights, []
    if w.largest[0].factor < 1 + LEAST_SHIFT:
        out.append("nothing was corrected: held-out events don't bear out what was learned; try the other estimator")
    if w.n_eff_fraction < LEAST_N_EFF:
        out.append(f"the effective number of events falls to {w.n_eff_fraction:.1%} of that before")
    if w.largest_share > max(MOST_OF_SUM, 100 / w.n):
        out.append(f"one event has {w.largest_share:.1%} of the sum of weights, factor {w.largest[0].factor:.3g}")
    if w.at_bound > MOST_AT_BOUND:
        out.append(f"{w.at_bound:.1%} of the sum of weights has factors at the bound: they may be too small")
    worst = found.worst_mean
    if found.conditional and worst and abs(worst[1].pull or 0.0) > MOST_SIGMA and abs(worst[1].mean - 1) > LEAST_SHIFT:
        where = f"{worst[0]} in [{number(worst[1].low, 3)}, {number(worst[1].high, 3)}]"
        text = f"mean weight {with_error(worst[1].mean, worst[1].error, '+-')} at {where}, expected 1"
        out.append(f"{text}: the context's spectrum changes")
    return out


def _residual_warnings(found: Diagnostics) -> list[str]:
    out, test = [], found.classifier
    if test.refused:
        out.append(f"no classifier could be trained: {test.refused}")
    if test.before and test.after and test.after.auc - 0.5 > 3 * test.after.auc_error:
        values = [with_error(one.auc, one.auc_error, "+-") for one in (test.before, test.after)]
        no_better = "no better than" if test.after.auc >= test.before.auc else "as against"
        text = f"a classifier still tells the samples apart: AUC {values[1]} after, {no_better} {values[0]} before"
        out.append(text)
    bad = [one for one in found.residuals if one.p_corrected < LEAST_P_VALUE]
    if bad:
        names = ", ".join(" x ".join(one.columns) for one in bad[:3]) + (", ..." if len(bad) > 3 else "")
        text = f"{len(bad)} of {len(found.residuals)} columns and pairs differ after the reweighting: {names}; "
        out.append(f"{text}largest difference {max(one.difference for one in bad):.1%} of the events")
    return out
