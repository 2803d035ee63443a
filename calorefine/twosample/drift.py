r"""How far means and widths of generated events are from the reference's, with errors.

The drift of a statistic is its difference :math:`(S_g - S_r) / \sigma_r` in widths of the quantity in the reference: of
a mean the shift, of a width the relative difference.  Influences of events of equal key are summed before they are
squared, and the generator's training sample adds its statistics, as in `binned`.  How much trainings differ that start
from other random numbers is not in the error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from calorefine import keys, stats
from calorefine.events import Events
from calorefine.stats import FloatArray
from calorefine.twosample.estimates import mean_estimate, std_estimate

Statistic = Literal["mean", "width"]


@dataclass(frozen=True)
class Drift:
    """A difference with its standard error; both None where signed weights leave no width.

    Attributes:
        value: generated less reference, in widths of the reference.
        error: statistics of both samples, and of the training sample if known.
    """

    value: float | None = None
    error: float | None = None


def drift(
    statistic: Statistic,
    generated: tuple[FloatArray, Events],
    reference: tuple[FloatArray, Events],
    *,
    training: float = 0.0,
) -> Drift:
    """Compare a statistic of a quantity in both samples.

    Args:
        statistic: which one.
        generated: values (n,) and events, with weights of any sign.
        reference: values (m,) and events, likewise.
        training: variance of the estimate from the generator's training sample over that of the reference.

    Raises:
        WeightError: the weights of a sample don't have a positive sum.
    """
    samples = (generated, reference)
    widths = [std_estimate(values, events.weight) for values, events in samples]
    means = [mean_estimate(values, events.weight) for values, events in samples]
    (first, second), width = (means if statistic == "mean" else widths), widths[1]
    if first is None or second is None or width is None:
        return Drift()
    group = keys.group(*(events.event_key for _, events in samples))
    influence = np.concatenate([first.influence, -second.influence])
    alone = stats.sum_w2(stats.group_sums(second.influence, group[len(first.influence) :]))
    error = np.sqrt(stats.sum_w2(stats.group_sums(influence, group)) + training * alone)
    return Drift((first.value - second.value) / width.value, float(error) / width.value)
