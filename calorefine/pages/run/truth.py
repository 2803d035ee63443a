r"""The truth of a closure test: the observables measured in other events, in the same bins.

Sums of weights are compared at equal totals of the selected events: with the nominal sample's sum :math:`W` and the
truth's :math:`W'`, true values are scaled by :math:`W / W'` and their covariance by its square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calorefine.io.sample import WeightedFiles
from calorefine.pages.run.propagated import Propagated
from calorefine.stats import FloatArray
from calorefine.systematics.variations import is_sum, measured_in


@dataclass(frozen=True)
class Truth:
    """True values of all bins.

    Attributes:
        values: (n,).
        covariance: (n, n) by the sample's own statistics.
        scales: factor on the sums of weights of each observable; 1 for others.
    """

    values: FloatArray
    covariance: FloatArray
    scales: dict[str, float]

    def of(self, found: Propagated) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Values and errors of each observable."""
        errors = np.sqrt(np.diag(self.covariance))
        parts = {name: found.systematics.part(name) for name in found.systematics.bins}
        return {name: (self.values[part], errors[part]) for name, part in parts.items()}


def measured_truth(found: Propagated, sample: WeightedFiles, tree: str) -> Truth:
    """Measure the truth.

    Args:
        found: of `calorefine propagate`.
        sample: events.
        tree: name of their tree, if the sample doesn't tell.

    Raises:
        ConfigError: it isn't known how the observables were measured.
        CalorefineError: they can't be measured in these events.
    """
    observables = found.require_observables()
    measured = measured_in(sample, {name: observables[name] for name in found.systematics.bins}, tree)
    scales, each = {}, []
    for name, observable in measured.observables.items():
        known = found.provenance.get("entries", {}).get(name)
        scales[name] = known["sum_w"] / measured.entries[name].sum_w if known and is_sum(observable) else 1.0
        each.append(np.full(observable.n_values, scales[name]))
    scale = np.concatenate(each)
    return Truth(measured.values[0] * scale, measured.statistics * np.outer(scale, scale), scales)
