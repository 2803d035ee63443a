r"""One source of uncertainty: a covariance of all bins, and how well it is known.

* *Replicas* y_k, k = 1 ... K: the sample covariance about their mean, :math:`S = \sum_k (y_k - \bar y)(y_k - \bar
  y)^T / (K - 1)`, has K - 1 degrees of freedom and at most that rank.  Bootstrap replicas estimate a variance from the
  data, of which few blocks or a few heavy events tell little however many replicas there are: with the data's own
  :math:`\nu` (`stats.weights_dof`) there are :math:`1 / (1 / (K - 1) + 1 / \nu)`.
* A *deviation* d from the nominal (closure of a reweighting, events outside the domain): :math:`d d^T`, one nuisance
  parameter that moves all bins together, or :math:`\mathrm{diag}(d^2)`.
* *Alternatives* of the same choice, d_1 ... d_m: they are not draws of a distribution.  The default is the envelope:
  errors are the largest deviation in each bin, correlations those of :math:`\sum_j d_j d_j^T`.  Errors never shrink
  when an alternative is added, and naming one twice leaves them alone.  `mean` divides by m instead; `separate` makes
  each a nuisance parameter of its own, for alternatives of different choices.  All agree for m = 1.  Alternatives that
  are trainings of their own hold the training's noise, which `alternatives` takes off before.
* A *known* covariance, such as the generated sample's own statistics.

The covariance of replicas is an estimate; all others count as known: their degrees of freedom are infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from calorefine.errors import ConfigError, ValueRangeError
from calorefine.stats import FloatArray

AlternativesRule = Literal["envelope", "mean", "separate"]
NOISE = "noise"  # name of the part of the members' spread that is their samples' statistics
GENERATED = "generated"  # name of the source that the generated sample's own statistics are
FEW_OF_DATA = 0.8  # of the replicas' degrees of freedom: what is left of them is said
NEGATIVE = 1e-8  # eigenvalues of the correlation matrix: what is below -NEGATIVE is not rounding


@dataclass(frozen=True)
class ErrorSource:
    """A covariance with a name.

    Attributes:
        name: as in `calibration`; becomes part of the names of histograms and nuisance parameters.
        covariance: (n, n), symmetric and positive semidefinite.
        dof: degrees of freedom of its estimate; infinite if it is known.
        part_of: source that holds it already; None if it is to be added to the total.
        rule: how it came about, for the provenance.
        scale: factor on its errors that `inflate` has applied.
    """

    name: str
    covariance: FloatArray
    dof: float = np.inf
    part_of: str | None = None
    rule: str = "known"
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is not a covariance.

        Raises:
            ConfigError: the name can't be one of a histogram.
            ValueRangeError: not finite, not symmetric, or with a negative eigenvalue.
        """
        if not self.name.isidentifier():
            raise ConfigError(f"source '{self.name}': names have letters, digits and underscores")
        _require_covariance(self.covariance, f"source '{self.name}'")


def _require_covariance(matrix: FloatArray, what: str) -> None:
    """Raise unless `matrix` is a covariance."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        bad = int(np.sum(~np.isfinite(matrix)))
        msg = f"{what}: covariance of shape {matrix.shape} with {bad} entries that are not finite"
        raise ValueRangeError(f"{msg}, expected (n, n) finite numbers")
    sigma = np.sqrt(np.clip(np.diag(matrix), 0, None))
    unit = np.divide(1, sigma, out=np.zeros_like(sigma), where=sigma > 0)
    scaled = matrix * unit * unit[:, None]
    if np.any(np.diag(matrix) < 0) or np.any(matrix[sigma == 0] != 0):
        raise ValueRangeError(f"{what}: the covariance has a negative variance, or a covariance without a variance")
    if not np.allclose(scaled, scaled.T, rtol=0, atol=1e-9):
        raise ValueRangeError(f"{what}: the covariance is not symmetric")
    lowest = float(np.linalg.eigvalsh(scaled).min(initial=0.0))
    if lowest < -NEGATIVE * max(len(matrix), 1):
        raise ValueRangeError(f"{what}: the correlation matrix has the eigenvalue {lowest:.2g}, expected none below 0")


def from_replicas(name: str, rows: ArrayLike, *, part_of: str | None = None, data_dof: float = np.inf) -> ErrorSource:
    """Sample covariance of replicas about their mean.

    Args:
        name: of the source.
        rows: (K, n) values of each replica, without the nominal one.
        part_of: source that holds this one.
        data_dof: degrees of freedom that the data allow; infinite for replicas that don't stand for a variance of data.

    Raises:
        ConfigError: fewer than two replicas.
        ValueRangeError: a value is not finite.
    """
    values = finite_rows(name, rows)
    if len(values) < 2:
        raise ConfigError(f"source '{name}': {len(values)} replica, expected at least 2; a covariance needs a spread")
    centred = values - values.mean(axis=0)
    rounding = np.abs(centred) <= 1e-14 * np.abs(values).max(axis=0)
    centred[:, rounding.all(axis=0)] = 0.0
    rule = f"covariance of {len(values)} replicas about their mean"
    dof = 1 / (1 / (len(values) - 1) + 1 / data_dof)
    if dof < FEW_OF_DATA * (len(values) - 1):
        rule += f"; {dof:.3g} degrees of freedom, as the data's weights or blocks allow {data_dof:.3g}"
    return ErrorSource(name, centred.T @ centred / (len(values) - 1), dof, part_of, rule)


def from_deviation(name: str, row: ArrayLike, *, correlated: bool = True) -> ErrorSource:
    """One deviation from the nominal.

    Args:
        name: of the source.
        row: (n,) deviation.
        correlated: all bins move together; otherwise each by itself.
    """
    deviation = finite_rows(name, row)[0]
    covariance = np.outer(deviation, deviation) if correlated else np.diag(deviation**2)
    how = "all bins together" if correlated else "each bin by itself"
    return ErrorSource(name, covariance, rule=f"deviation, {how}")


def from_alternatives(
    name: str, nominal: FloatArray, rows: ArrayLike, *, rule: AlternativesRule = "envelope"
) -> list[ErrorSource]:
    """Alternatives of one choice, by a rule of the module's text.

    Args:
        name: of the source.
        nominal: (n,).
        rows: (m, n) values under each alternative, or (n,) for a single one.
        rule: how several of them combine.

    Returns:
        One source; with `separate`, as many as alternatives, named `<name>_alternative<i>`.

    Raises:
        ConfigError: no such rule.
    """
    deviations = finite_rows(name, rows) - nominal
    if rule not in get_args(AlternativesRule):
        raise ConfigError(f"source '{name}': there is no rule '{rule}', expected one of {get_args(AlternativesRule)}")
    if rule == "separate" and len(deviations) > 1:
        return [from_deviation(f"{name}_alternative{i}", row) for i, row in enumerate(deviations, 1)]
    covariance = deviations.T @ deviations / len(deviations)
    if rule == "envelope":
        spread = np.sqrt(np.diag(covariance))
        factor = np.divide(np.abs(deviations).max(axis=0), spread, out=np.zeros_like(spread), where=spread > 0)
        covariance = covariance * factor * factor[:, None]
    return [ErrorSource(name, covariance, rule=f"{rule} of {len(deviations)} alternatives")]


def less(covariance: FloatArray, part: FloatArray) -> FloatArray:
    """Covariance without a part of it that is estimated elsewhere; what comes out below 0, or is rounding, is 0."""
    sigma = np.sqrt(np.diag(covariance))
    unit = np.divide(1, sigma, out=np.zeros_like(sigma), where=sigma > 0)
    values, vectors = np.linalg.eigh((covariance - part) * unit * unit[:, None])
    root = vectors * np.sqrt(np.where(values > NEGATIVE, values, 0)) * sigma[:, None]
    return np.asarray(root @ root.T)


def beyond_noise(deviation: FloatArray, variance: FloatArray) -> FloatArray:
    r"""What of a deviation its noise doesn't explain: :math:`\mathrm{sign}(d) \sqrt{d^2 - \sigma^2}`, or 0 within it.

    The square of a deviation is its noise's variance too large on average (Barlow, hep-ex/0207026, section 4).
    """
    return np.sign(deviation) * np.sqrt(np.maximum(deviation**2 - variance, 0))


def finite_rows(name: str, rows: ArrayLike) -> FloatArray:
    """(k, n) finite numbers."""
    values = np.atleast_2d(np.asarray(rows, np.float64))
    if len(bad := np.argwhere(~np.isfinite(values))):
        row, column = bad[0].tolist()
        raise ValueRangeError(
            f"source '{name}': {len(bad)} values are not finite, the first in row {row}, bin {column}; "
            "take wider bins, or find out why this variation failed"
        )
    return values
