r"""Values of all bins of all observables, and their covariance split by source.

.. math:: V = V_\mathrm{calibration} + \sum V_\mathrm{alternatives} + V_\mathrm{residual} + V_\mathrm{generated}
              + V_\mathrm{outside}

`calibration` is the spread of bootstrap replicas and holds the stochasticity of the training, which `training` (same
data, other seeds) tells apart; it is a part of `calibration` and never added.

**Intervals** in one bin take Student's t: the variance of K replicas has K - 1 degrees of freedom, a known one
infinitely many, and their sum :math:`\nu = V^2 / \sum_s V_s^2 / \nu_s` (Welch and Satterthwaite).  With 20 replicas
and nothing else, nominal +- 1.03 sigma covers 68.27 % and +- 2.14 sigma 95.45 %.  **Several bins** are compared by
`chi2` (`hotelling`, `bin_groups`).  The statistics tools that read the output files take the covariance as known.

References: Welch, doi:10.1093/biomet/34.1-2.28; Satterthwaite, doi:10.2307/3002019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from calorefine.errors import ConfigError, ValueRangeError, nearest
from calorefine.observables.measure import slices
from calorefine.stats import FloatArray, error_of_error
from calorefine.systematics import hotelling as finite
from calorefine.systematics.bin_groups import grouped_directions, most_directions
from calorefine.systematics.principal_components import FRACTION, Decomposition, decompose
from calorefine.systematics.sources import ErrorSource

MOST_ERROR_OF_ERROR = 0.2


@dataclass(frozen=True)
class ObservableBins:
    """One observable's bins.

    Attributes:
        edges: (b + 1,) of the variable on the axis.
        title: of the axis.
        unit: of the axis.
        counts: whether values are sums of weights, which a statistics tool compares with numbers of events.
        per_bin: values in each bin, as several quantiles.
    """

    edges: FloatArray
    title: str = ""
    unit: str = ""
    counts: bool = True
    per_bin: int = 1

    @property
    def n(self) -> int:
        """Number of values."""
        return (len(self.edges) - 1) * self.per_bin


@dataclass(frozen=True)
class Systematics:
    """Nominal values, and one covariance for each source.

    Attributes:
        nominal: (n,) all bins of all observables, one after the other.
        bins: observables in this order.
        sources: by name; those that are part of another one are not in the total.
        replicas: source to its replicas (K, n), where it has some.
        notes: what a reader has to know; also in the output files.
    """

    nominal: FloatArray
    bins: dict[str, ObservableBins]
    sources: dict[str, ErrorSource]
    replicas: dict[str, FloatArray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what doesn't fit together.

        Raises:
            ConfigError: numbers of bins differ.
            ValueRangeError: a nominal value is not finite.
        """
        n = sum(bins.n for bins in self.bins.values())
        sizes = {"nominal": len(self.nominal)} | {k: len(s.covariance) for k, s in self.sources.items()}
        sizes |= {f"replicas of {k}": rows.shape[1] for k, rows in self.replicas.items()}
        if wrong := {name: size for name, size in sizes.items() if size != n}:
            raise ConfigError(f"observables {list(self.bins)} have {n} bins together, but found {wrong}")
        for name in self.bins:
            if not np.isfinite(self.nominal[self.part(name)]).all():
                raise ValueRangeError(f"observable '{name}': nominal values are not finite: {self.value_of(name)}")

    def part(self, name: str) -> slice:
        """Where an observable's bins are.

        Raises:
            ConfigError: there is no such observable.
        """
        if name not in self.bins:
            raise ConfigError(f"no observable '{name}', only {list(self.bins)}{nearest(name, self.bins)}")
        return slices({key: bins.n for key, bins in self.bins.items()})[name]

    def value_of(self, name: str) -> FloatArray:
        """Nominal values of one observable."""
        return self.nominal[self.part(name)]

    def locate(self, index: int) -> tuple[str, int]:
        """Observable of a value, and its place in it."""
        return next((name, index - self.part(name).start) for name in self.bins if index < self.part(name).stop)

    def only(self, *names: str) -> Systematics:
        """Some observables, in the order of the arguments."""
        parts = [np.arange(len(self.nominal))[self.part(name)] for name in names]
        chosen = np.concatenate([np.zeros(0, np.int64), *parts])
        square = np.ix_(chosen, chosen)
        sources = {k: replace(s, covariance=s.covariance[square]) for k, s in self.sources.items()}
        replicas = {k: rows[:, chosen] for k, rows in self.replicas.items()}
        return Systematics(self.nominal[chosen], {k: self.bins[k] for k in names}, sources, replicas, self.notes)

    @property
    def added(self) -> dict[str, ErrorSource]:
        """Sources that add up to the total."""
        return {name: source for name, source in self.sources.items() if source.part_of is None}

    @property
    def total(self) -> FloatArray:
        """Total covariance (n, n)."""
        n = len(self.nominal)
        return sum((source.covariance for source in self.added.values()), np.zeros((n, n)))

    def covariance(self, source: str | None = None) -> FloatArray:
        """Covariance (n, n) of a source, or the total.

        Raises:
            ConfigError: there is no such source.
        """
        if source is None:
            return self.total
        if source not in self.sources:
            raise ConfigError(f"no source '{source}', only {list(self.sources)}{nearest(source, self.sources)}")
        return self.sources[source].covariance

    def correlation(self, source: str | None = None) -> FloatArray:
        """Correlation matrix (n, n); 1 on the diagonal and 0 elsewhere for a bin without variance."""
        covariance = self.covariance(source)
        sigma = np.sqrt(np.diag(covariance))
        product = np.outer(sigma, sigma)
        matrix: FloatArray = np.divide(covariance, product, out=np.zeros_like(covariance), where=product > 0)
        np.fill_diagonal(matrix, 1.0)
        return matrix

    def errors(self, source: str | None = None) -> FloatArray:
        """Standard deviations (n,)."""
        return np.asarray(np.sqrt(np.diag(self.covariance(source))))

    def relative_error(self, name: str, source: str | None = None) -> float:
        """Root mean square of the errors of an observable over that of its values; NaN where all values are 0."""
        part = self.part(name)
        size = float(np.mean(self.nominal[part] ** 2))
        return float(np.sqrt(np.mean(np.diag(self.covariance(source))[part]) / size)) if size else float("nan")

    def data_part(self) -> FloatArray:
        """Covariance of the calibration sample's statistics alone: `calibration` minus `training`.

        A difference of two estimates: variances may be negative by their noise, and are left so.

        Raises:
            ConfigError: one of the two is missing.
        """
        return self.covariance("calibration") - self.covariance("training")

    @property
    def dof(self) -> FloatArray:
        """Degrees of freedom (n,) of each bin's total variance; infinite where it is known, or 0."""
        variances = [np.diag(covariance) for covariance, _ in self.estimates()]
        dofs = np.array([dof for _, dof in self.estimates()])
        return finite.welch_dof(np.array(variances).reshape(-1, len(self.nominal)), dofs)

    @property
    def error_of_error(self) -> FloatArray:
        """Relative error (n,) of `errors()`: 1 / sqrt(2 (K - 1)) from K replicas, less with known parts."""
        return error_of_error(self.dof)

    def interval(self, level: float = 0.6827) -> tuple[FloatArray, FloatArray]:
        """Central interval of each bin.

        Args:
            level: probability to cover, in (0, 1).

        Returns:
            Lower and upper ends (n,).

        Raises:
            ConfigError: no such level.
        """
        if not 0 < level < 1:
            raise ConfigError(f"level {level}: expected a probability between 0 and 1, as 0.6827")
        half = distributions.t.ppf((1 + level) / 2, self.dof) * self.errors()
        return self.nominal - half, self.nominal + half

    def estimates(self, *, extra: ArrayLike | None = None) -> list[finite.CovarianceEstimate]:
        """Covariances that add up to the total, with their degrees of freedom; a known one (n, n) beside them."""
        known = [] if extra is None else [(np.asarray(extra, np.float64), np.inf)]
        return [*((source.covariance, source.dof) for source in self.added.values()), *known]

    def chi2(
        self,
        difference: ArrayLike,
        *,
        estimates: Sequence[finite.CovarianceEstimate] | None = None,
        directions: ArrayLike | None = None,
    ) -> finite.Chi2:
        """Compare a difference with a covariance.

        Args:
            difference: (n,) nominal minus truth.
            estimates: covariances (n, n) that add up; those of the sources, if not given.
            directions: (g, n) combinations of bins to look at; chosen without looking at the replicas.  Groups of
                neighboring bins, as many as the replicas support, if not given.

        Raises:
            ValueRangeError: the difference has another length, or is not finite.
            ConfigError: more directions than the replicas support.

        Warns:
            UncertaintyWarning: the difference has a part where there is no uncertainty.
        """
        values, n = np.asarray(difference, np.float64), len(self.nominal)
        if values.shape != (n,) or not np.isfinite(values).all():
            raise ValueRangeError(f"difference of shape {values.shape}, expected ({n},) finite numbers")
        if estimates is None:
            estimates = self.estimates()
        if directions is None:
            total = sum((covariance for covariance, _ in estimates), np.zeros((n, n)))
            most = most_directions(min((dof for _, dof in estimates), default=np.inf))
            directions = grouped_directions(total, self.nominal, [bins.n for bins in self.bins.values()], most)
        matrix = np.atleast_2d(np.asarray(directions, np.float64))
        projected = [(matrix @ covariance @ matrix.T, dof) for covariance, dof in estimates]
        return finite.hotelling(matrix @ values, projected, n_bins=n)

    def precision(self) -> FloatArray:
        """Inverse covariance (n, n) for a Gaussian chi2, with Hartlap's factor; the pseudo-inverse of dependent bins.

        Raises:
            ConfigError: too few replicas for so many bins; take some observables (`only`), or `chi2`.
        """
        whitening, estimates = finite.whiten(self.total).matrix, self.estimates()
        least = min((dof for _, dof in estimates), default=np.inf)
        p = len(whitening) if len(whitening) < least else len(self.nominal)  # else the rank is that of the replicas
        finite.hartlap_factor(least, p)  # the effective number means nothing unless the smallest one suffices
        factor = finite.hartlap_factor(finite.effective_dof(estimates, whitening), p)
        return factor * whitening.T @ whitening

    def components(self, *, fraction: float = FRACTION) -> Decomposition:
        """Up and down shapes of every source, and what they leave; see `principal_components`."""
        return decompose(self.sources, fraction=fraction)

    def summary(self) -> dict[str, Any]:
        """Sources, their rules and degrees of freedom, and notes, for a provenance; JSON has null for infinity."""
        sources = {
            name: {"degrees_of_freedom": source.dof if np.isfinite(source.dof) else None}
            | {key: getattr(source, key) for key in ("rule", "part_of", "scale")}
            for name, source in self.sources.items()
        }
        return {"sources": sources, "observables": list(self.bins), "notes": list(self.notes)}
