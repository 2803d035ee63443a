r"""Bias, not only spread: the ensemble's mean against the nominal, and the nominal against a closure truth.

**Mean of the replicas.** :math:`b = \bar y - y_0` estimates the bias of the estimator: a bootstrap mean that is off
means one that is not linear in its weights, whose bias on data is likely the same.  A bias matters where it is above
0.25 of the standard error :math:`\sigma` of the replicas (Efron and Tibshirani, section 10.3; below, a 95 % interval
covers 94 % or more).  The mean of K replicas has the error :math:`\sigma / \sqrt K`, so that :math:`|b| > 0.25 \sigma`
happens by chance: for K = 20 without a bias in 28 % of the bins.  A bin therefore *exceeds* if so large a :math:`b
\sqrt K / \hat\sigma` has a p-value below 0.01, corrected for the number of bins, for a bias of 0.25 :math:`\sigma`, by
the noncentral t distribution: where no bias is larger, that happens in less than 1 % of ensembles.  The nominal is one
training, with a stochasticity T of its own that the mean averages out: whether it is biased, or an unlucky training,
trainings with other seeds tell; a bin is *flagged* if it exceeds by the error :math:`\sqrt{S / K + T}` as well.  Where
samples have noise of their own (`noise`), the nominal's is in either error.  On
request (`with_bias`) the deviation is a source: what the bias-corrected estimate :math:`2 y_0 - \bar y` would move.

**Closure.** Nominal minus truth, with the total covariance and that of the truth, if it has one.

**Inflation** (`inflate`) is off unless called.  `scale`: as the Particle Data Group scales errors by
:math:`\sqrt{\chi^2 / \mathrm{ndf}}` where that exceeds 1, the errors of one source are multiplied by the factor that
brings the reduced value of the comparison (`Chi2.reduced`, which is chi2 / ndf with a finite number of replicas
accounted for) to 1.  With one source it is the square root of the reduced value.  `bias`: the deviation itself becomes
a source `closure`, fully correlated: every bin is then within one standard deviation of the truth.

References: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 10.3 and 10.6; Particle Data Group,
Review of Particle Physics, introduction, section 5.2.2 (scale factor).
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
from calorefine.systematics.sources import NOISE, beyond_noise, from_deviation, from_replicas
from calorefine.systematics.systematics import Systematics

OF_MEAN = "mean of the replicas - nominal"
OF_NOMINAL = "nominal - truth"
InflationRule = Literal["scale", "bias"]
ALLOWED = 0.25  # errors that a bias of the replicas' mean may have
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
        chi2: of all bins; None where it isn't looked at (the mean of replicas) or replicas are too few.
        unit: (n,) what the difference is to be compared with: its error, or the replicas' for their mean.
        exceeds: (n,) whether the nominal is off, be it by a bias or as an unlucky training; as `flagged` elsewhere.
        allowed: largest difference, in this unit, that is no bias.
        untested: why there is no chi2, if there should be one.
    """

    difference: FloatArray
    error: FloatArray
    p_value: FloatArray
    flagged: NDArray[np.bool_]
    chi2: Chi2 | None
    unit: FloatArray
    exceeds: NDArray[np.bool_]
    allowed: float = 0.0
    untested: str = ""

    @property
    def significant(self) -> bool:
        """Whether any bin is off; where no difference is allowed, also all of them together."""
        return bool(self.flagged.any()) or self._together

    @property
    def off(self) -> bool:
        """Whether it is significant, or may be an unlucky training."""
        return bool(self.exceeds.any()) or self._together

    @property
    def _together(self) -> bool:
        return self.chi2 is not None and self.chi2.p_value < FLAGGED_BELOW

    @property
    def pulls(self) -> FloatArray:
        """Differences in their units (n,), NaN where that is 0."""
        pulls: FloatArray = np.divide(
            self.difference, self.unit, out=np.full(len(self.unit), np.nan), where=self.unit > 0
        )
        return pulls

    @property
    def above(self) -> NDArray[np.bool_]:
        """Bins (n,) above what is allowed, be it by chance."""
        return np.nan_to_num(np.abs(self.pulls)) > self.allowed

    def numbers(self) -> str:
        """Size in words: the chi2; of the mean of replicas, the largest bias with its error."""
        if self.chi2:
            return f"chi2 / ndf {self.chi2.reduced:.2f}, p {self.chi2.p_value:.2g}"
        sizes = np.nan_to_num(self.pulls)
        worst = int(np.argmax(np.abs(sizes)))
        largest = f"up to {sizes[worst]:+.2f} +- {self.error[worst] / (self.unit[worst] or 1.0):.2f} errors"
        counts = f"{self.above.sum()} of {len(sizes)} bins, beyond doubt in {self.exceeds.sum()}"
        told = f"{largest}, above {self.allowed:g} in {counts}" if self.allowed else f"off in {counts}"
        return f"{told}; all bins together not tested: {self.untested}" if self.untested else told

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: np.asarray(value).tolist() for name, value in asdict(self).items() if name != "chi2"}
        chi2 = self.chi2 and {"reduced": self.chi2.reduced, "p_value": self.chi2.p_value}
        return plain | {"chi2": chi2, "significant": self.significant}


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
    replicas = (spread[source].covariance * factor, spread[source].dof)
    unit, difference = np.sqrt(np.diag(spread[source].covariance)), rows.mean(axis=0) - systematics.nominal
    seeds = [name for name in spread if (source, name) == ("calibration", "training")]
    noise = [(part.covariance, part.dof) for name, part in systematics.sources.items() if name == NOISE]
    training = noise if not seeds else [(spread[name].covariance, spread[name].dof) for name in seeds]  # seeds hold it
    error, p_value = _p_values(difference, [replicas, *training], ALLOWED * unit)
    exceeds = _flagged(_p_values(difference, [replicas, *noise], ALLOWED * unit)[1])
    return Bias(difference, error, p_value, _flagged(p_value), None, unit, exceeds, ALLOWED)


def with_bias(systematics: Systematics) -> Systematics:
    """Add the bias of the replicas' mean, beyond the error of that, as a source: all bins together.

    Raises:
        ConfigError: there are no replicas, or another source has the name.
    """
    if "bias" in systematics.sources:
        raise ConfigError("there is a source 'bias' already, expected another name for it")
    bias = ensemble_bias(systematics)
    source = from_deviation("bias", beyond_noise(bias.difference, bias.error**2))
    return replace(systematics, sources=systematics.sources | {"bias": source})


def closure_bias(systematics: Systematics, truth: ArrayLike, *, truth_covariance: ArrayLike | None = None) -> Bias:
    """Nominal minus truth.

    Args:
        systematics: nominal and covariance.
        truth: (n,).
        truth_covariance: (n, n), if the truth has statistics of its own.
    """
    difference = systematics.nominal - np.asarray(truth, np.float64)
    estimates, untested, chi2 = systematics.estimates(extra=truth_covariance), "", None
    error, p_value = _p_values(difference, estimates)
    try:
        chi2 = systematics.chi2(difference, estimates=estimates)
    except ConfigError as few:
        untested = str(few)
    flagged = _flagged(p_value)
    return Bias(difference, error, p_value, flagged, chi2, error, flagged, untested=untested)


def _p_values(
    difference: FloatArray, estimates: Sequence[CovarianceEstimate], allowed: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Errors (n,), and p-values (n,) of differences that are 0, or at most those allowed.

    Two estimated variances with very different degrees of freedom: Welch's number is too large just where the one from
    few seeds came out too small.  With something allowed, the lowest number of any variance that matters is taken.
    """
    variances = np.array([np.diag(covariance) for covariance, _ in estimates])
    dofs = np.array([dof for _, dof in estimates])
    error, dof = np.sqrt(variances.sum(axis=0)), welch_dof(variances, dofs)
    unit = np.divide(1, error, out=np.zeros_like(error), where=error > 0)
    pull = np.abs(difference) * unit
    if allowed is None:
        return error, 2 * distributions.t.sf(pull, dof)
    matters = variances > MATTERS * variances.sum(axis=0)
    dof = np.minimum(dof, np.where(matters, dofs[:, None], np.inf).min(axis=0))
    both = distributions.nct.sf([pull, pull], dof, [allowed * unit, -allowed * unit]).sum(axis=0)
    return error, np.where(error > 0, np.clip(both, 0, 1), 1.0)


def _flagged(p_values: FloatArray) -> NDArray[np.bool_]:
    """Whether each of n p-values is low for the smallest of n."""
    return np.array([sidak(float(p), len(p_values)) < FLAGGED_BELOW for p in p_values], bool)


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
        wider, difference = _scaled(systematics, source, factor), systematics.nominal - np.asarray(truth, np.float64)
        return wider.chi2(difference, estimates=wider.estimates(extra=truth_covariance)).reduced - 1

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
