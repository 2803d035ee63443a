r"""Alternatives that were trained anew, without the training's noise.

Another training of the *same* model differs from the nominal one by the noise of both, so that a difference is an
effect of the choice only if it is larger than what other seeds do.  With the nominal :math:`y_0`, trainings
:math:`y_1 \ldots y_S` with other seeds, their mean :math:`\bar y` and their covariance :math:`\hat T` (all S + 1, so
S degrees of freedom), an alternative is compared with the mean, which is better known than the nominal alone:

.. math:: d = y_\mathrm{alternative} - \bar y, \qquad N = \hat T \, \big(1 + \tfrac{1}{S + 1}\big) .

For each observable Hotelling's test says whether d is more than its noise N.  If it isn't, with a p-value above
`SIGNIFICANT` that is corrected for the number of alternatives and observables, the alternative has passed a check and
adds nothing; else its deviation counts, less the noise's expected square in each bin.  With fewer than `LEAST_SEEDS`
seeds nothing can be told, and deviations count in full.  The same model as an alternative then adds at most 0.24 of the
training's standard deviation in the root mean square of toys (one bin, one to five alternatives, any number of seeds),
where its deviation from the nominal is 1.4 to 2.2 of it.

References: Barlow, hep-ex/0207026, section 4 (a check that is passed is no uncertainty).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import t as student_t

from calorefine.stats import FloatArray, sidak
from calorefine.systematics.sources import beyond_noise, from_replicas
from calorefine.systematics.systematics import ObservableBins, Systematics

SIGNIFICANT = 0.005
LEAST_SEEDS = 8


def beyond_seeds(
    name: str, nominal: FloatArray, rows: FloatArray, seeds: FloatArray | None, bins: Mapping[str, ObservableBins]
) -> tuple[FloatArray, list[str]]:
    """Deviations of alternatives from the nominal that trainings with other seeds don't explain.

    Args:
        name: of the choice, for what is said.
        nominal: (n,) values.
        rows: (m, n) values under each alternative, one training each.
        seeds: (S, n) values of trainings as the nominal one with other seeds; None if there are none.
        bins: observables.

    Returns:
        Deviations (m, n), and what to say of each alternative.
    """
    if seeds is None or len(seeds) < LEAST_SEEDS:
        n_seeds = 0 if seeds is None else len(seeds)
        why = f"{n_seeds} trainings with other seeds can't tell them from the training's noise, which is in them "
        return rows - nominal, [f"alternatives of '{name}' count in full: {why}(expected {LEAST_SEEDS} or more)"]
    trainings = np.vstack([nominal, seeds])
    center, spread = trainings.mean(axis=0), from_replicas(name, trainings)
    noise, everything = spread.covariance * (1 + 1 / len(trainings)), Systematics(center, dict(bins), {})
    deviations, notes = rows - center, []
    for number, deviation in enumerate(deviations, 1):
        p_values = {}
        for observable in bins:
            part = everything.part(observable)
            estimate = (noise[part, part], spread.dof)
            chi2 = everything.only(observable).chi2(deviation[part], estimates=[estimate])
            pull = np.abs(deviation[part]) / np.sqrt(np.maximum(np.diag(noise)[part], 1e-300))
            largest = sidak(float(2 * student_t.sf(pull.max(), spread.dof)), pull.size)
            p_values[observable] = sidak(min(chi2.p_value, largest), 2 * len(rows) * len(bins))
            fixed = np.diag(noise)[part] == 0  # where nothing varies, any deviation is one
            deviation[part] *= fixed | (p_values[observable] < SIGNIFICANT)
        notes.append(f"alternative {number} of '{name}': {_verdict(p_values)}")
    return beyond_noise(deviations, np.diag(noise)), notes


def _verdict(p_values: Mapping[str, float]) -> str:
    """Where an alternative differs from what seeds do."""
    told = [f"{observable} (p {p:.2g})" for observable, p in p_values.items() if p < SIGNIFICANT]
    if told:
        return f"differs by more than other seeds do in {', '.join(told)}; what they do is taken off, the rest adds"
    return f"not told from trainings with other seeds (lowest corrected p {min(p_values.values()):.2g}): adds nothing"
