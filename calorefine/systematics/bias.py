r"""Bias, not only spread: the ensemble's mean against the nominal, and the nominal against a closure truth.

**Mean of the replicas.** :math:`b = \bar y - y_0`.  Given the data, the mean of K replicas has the covariance S / K;
the nominal is one training, with a stochasticity T of its own that the mean averages out.  So b has S / K + T, where T
is the source `training`.  Without that source T is taken as 0: the flag then also sees an unlucky training.  A
bootstrap mean that is off means an estimator that is not linear in its weights, whose bias on data is likely the
same.

**Closure.** Nominal minus truth, with the total covariance and that of the truth, if it has one.

**Inflation** (`inflate`) is off unless called.  `scale`: as the Particle Data Group scales errors by
:math:`\sqrt{\chi^2 / \mathrm{ndf}}` where that exceeds 1, the errors of one source are multiplied by the factor that
brings the reduced value of the comparison (`Chi2.reduced`, which is chi2 / ndf with a finite number of replicas
accounted for) to 1.  With one source it is the square root of the reduced value.  `bias`: the deviation itself becomes
a source `closure`, fully correlated: every bin is then within one standard deviation of the truth.

References: Particle Data Group, Review of Particle Physics, introduction, section 5.2.2 (scale factor).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions
from scipy.optimize import brentq

from calorefine.errors import ConfigError
from calorefine.stats import FloatArray, sidak
from calorefine.systematics.hotelling import Chi2, CovarianceEstimate, welch_dof
from calorefine.systematics.sources import from_deviation, from_replicas
from calorefine.systematics.systematics import Systematics

InflationRule = Literal["scale", "bias"]
FLAGGED_BELOW = 0.01  # corrected for the number of bins
MATTERS = 0.01
MOST = 1e4  # largest scale factor looked for


@dataclass(frozen=True)
class Bias:
    """A difference that should be 0.

    Attributes:
        difference: (n,).
        error: (n,) its standard deviation.
        p_value: (n,) of each bin, by Student's t, not corrected for the number of bins; 1 without an error.
        flagged: (n,) whether the bin is off with a corrected p-value below `FLAGGED_BELOW`.
        chi2: of all bins.
    """

    difference: FloatArray
    error: FloatArray
    p_value: FloatArray
    flagged: NDArray[np.bool_]
    chi2: Chi2

    @property
    def significant(self) -> bool:
        """Whether any bin, or all of them together, are off."""
        return bool(self.flagged.any()) or self.chi2.p_value < FLAGGED_BELOW

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        arrays = {name: array.tolist() for name, array in asdict(self).items() if name != "chi2"}
        chi2 = {"reduced": self.chi2.reduced, "p_value": self.chi2.p_value}
        return arrays | {"chi2": chi2, "significant": self.significant}


def ensemble_bias(systematics: Systematics, source: str = "calibration") -> Bias:
    """Mean of the replicas minus the nominal.

    Raises:
        ConfigError: the source has no replicas.
    """
    if source not in systematics.replicas:
        raise ConfigError(f"source '{source}' has no replicas, only {list(systematics.replicas)} have")
    rows = systematics.replicas[source]
    spread = {name: from_replicas(name, values) for name, values in systematics.replicas.items()}  # not inflated
    factor = 1 + 1 / len(rows) if source == "training" else 1 / len(rows)
    estimates = [(spread[source].covariance * factor, spread[source].dof)]
    if source == "calibration" and "training" in spread:
        estimates.append((spread["training"].covariance, spread["training"].dof))
    return _bias(systematics, rows.mean(axis=0) - systematics.nominal, estimates, cautious=True)


def closure_bias(systematics: Systematics, truth: ArrayLike, *, truth_covariance: ArrayLike | None = None) -> Bias:
    """Nominal minus truth.

    Args:
        systematics: nominal and covariance.
        truth: (n,).
        truth_covariance: (n, n), if the truth has statistics of its own.
    """
    difference = systematics.nominal - np.asarray(truth, np.float64)
    return _bias(systematics, difference, systematics.estimates(extra=truth_covariance))


def _bias(
    systematics: Systematics,
    difference: FloatArray,
    estimates: Sequence[CovarianceEstimate],
    *,
    cautious: bool = False,
) -> Bias:
    """Difference with its errors.

    Two estimated variances with very different degrees of freedom: Welch's number is too large just where the one from
    few seeds came out too small.  Cautious takes the lowest number of any variance that matters.
    """
    variances = np.array([np.diag(covariance) for covariance, _ in estimates])
    dofs = np.array([dof for _, dof in estimates])
    error = np.sqrt(variances.sum(axis=0))
    pull = np.divide(np.abs(difference), error, out=np.zeros_like(error), where=error > 0)
    dof = welch_dof(variances, dofs)
    if cautious:
        matters = variances > MATTERS * variances.sum(axis=0)
        dof = np.minimum(dof, np.where(matters, dofs[:, None], np.inf).min(axis=0))
    p_value = 2 * distributions.t.sf(pull, dof)
    corrected = np.array([sidak(float(p), len(p_value)) for p in p_value])
    chi2 = systematics.chi2(difference, estimates=estimates)
    return Bias(difference, error, p_value, corrected < FLAGGED_BELOW, chi2)


def inflate(
    systematics: Systematics,
    truth: ArrayLike,
    *,
    truth_covariance: ArrayLike | None = None,
    rule: InflationRule = "scale",
    source: str = "calibration",
) -> Systematics:
    """Enlarge the uncertainty so that it covers a closure truth; unchanged where it does already.

    Args:
        systematics: nominal and covariance.
        truth: (n,).
        truth_covariance: (n, n), if the truth has statistics of its own.
        rule: see the module's text.
        source: whose errors `scale` multiplies.

    Returns:
        A copy with a note that says what was done.

    Raises:
        ConfigError: no such source, or no factor on it covers the difference.
    """

    def excess(factor: float) -> float:
        wider = _scaled(systematics, source, factor)
        return closure_bias(wider, truth, truth_covariance=truth_covariance).chi2.reduced - 1

    reduced, wider, note = excess(1.0) + 1, systematics, "nothing inflated"
    if reduced > 1 and rule == "bias":
        if "closure" in systematics.sources:
            raise ConfigError("there is a source 'closure' already; it was inflated before")
        closure = from_deviation("closure", systematics.nominal - np.asarray(truth, np.float64))
        wider = replace(systematics, sources=systematics.sources | {"closure": closure})
        note = "deviation added as source 'closure'"
    elif reduced > 1:
        systematics.covariance(source)  # raises if there is none
        if excess(MOST) > 0:
            raise ConfigError(
                f"no factor on the errors of '{source}' covers the difference (reduced chi2 {reduced:.3g}); "
                "scale another source, or use the rule 'bias'"
            )
        factor = float(brentq(excess, 1.0, MOST, xtol=1e-10))
        wider = _scaled(systematics, source, factor)
        note = f"errors of '{source}' multiplied by {factor:.4g}"
    return replace(wider, notes=(*systematics.notes, f"closure: reduced chi2 {reduced:.3g}, {note}"))


def _scaled(systematics: Systematics, source: str, factor: float) -> Systematics:
    """Errors of a source, and of its parts, times a factor."""
    scaled = {
        name: replace(part, covariance=part.covariance * factor**2, scale=part.scale * factor)
        for name, part in systematics.sources.items()
        if source in (name, part.part_of)
    }
    return replace(systematics, sources=systematics.sources | scaled)
