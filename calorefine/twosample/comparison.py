"""A number in two samples, whose events of equal key are correlated: difference and ratio with their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calorefine import stats
from calorefine.stats import IntArray
from calorefine.twosample.estimates import Linearized


@dataclass(frozen=True)
class Comparison:
    """A number in both samples, with standard errors; None where not defined.

    Attributes:
        generated: in the generated sample, None for less than two events or a sum of weights that is not positive.
        generated_error: its error.
        reference: in the reference sample.
        reference_error: its error.
        ratio: generated over reference; None if the reference is not above 0.
        ratio_error: of both, and of the generator's training sample if known.
        pull: difference over its error, of all these.
        generated_interval: central 68.27 % interval of an efficiency in the generated sample.
        reference_interval: in the reference sample.
    """

    generated: float | None = None
    generated_error: float | None = None
    reference: float | None = None
    reference_error: float | None = None
    ratio: float | None = None
    ratio_error: float | None = None
    pull: float | None = None
    generated_interval: tuple[float, float] | None = None
    reference_interval: tuple[float, float] | None = None


def compared(
    generated: Linearized | None, reference: Linearized | None, group: IntArray, *, training: float = 0.0
) -> Comparison:
    """Compare two estimates.

    Args:
        generated: with influences (n,).
        reference: with influences (m,).
        group: (n + m,) number of the event that each row of both belongs to.
        training: variance of the estimate from the generator's training sample over that of the reference.
    """
    n = len(group) - len(reference.influence) if reference else len(generated.influence) if generated else 0
    (simulated, inner), (target, outer) = _alone(generated, group[:n]), _alone(reference, group[n:])
    if generated is None or reference is None:
        return Comparison(*simulated, *target, generated_interval=inner, reference_interval=outer)
    size = int(group.max()) + 1
    first, second = generated.grouped(group[:n], size), reference.grouped(group[n:], size)
    learned = training * stats.sum_w2(second)
    error = float(np.sqrt(stats.sum_w2(first - second) + learned))
    pull = (generated.value - reference.value) / error if error > 0 else None
    ratio = ratio_error = None
    if reference.value > 0:
        ratio = generated.value / reference.value
        ratio_error = float(np.sqrt(stats.sum_w2(first - ratio * second) + learned)) / reference.value
    return Comparison(*simulated, *target, ratio, ratio_error, pull, inner, outer)


def _alone(
    estimate: Linearized | None, group: IntArray
) -> tuple[tuple[float | None, float | None], tuple[float, float] | None]:
    """Value and error of one sample's estimate, and its interval."""
    if estimate is None:
        return (None, None), None
    return (estimate.value, float(np.sqrt(stats.sum_w2(estimate.grouped(group, 0))))), estimate.interval(group)
