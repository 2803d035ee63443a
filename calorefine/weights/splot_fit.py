"""Result of a spectator fit: a record of parameters, checks and weight functions, and what can be read from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sweights import Cows

from calorefine.stats import FloatArray, chi2_p_value
from calorefine.weights.mixture import Mixture
from calorefine.weights.source import check_lines, known_name

LEAST_SEEN, LEAST_N_EFF = 5.0, 20.0


@dataclass(frozen=True)
class SPlotFit:
    """Result of a spectator fit: parameters, checks, and the weight functions of all species.

    Attributes:
        spectator: name of the spectator.
        target: species whose weight is *the* weight.
        mixture: fitted model, of all terms.
        names: parameters, yields first.
        values: their fitted values.
        errors: their standard deviations (0 if fixed).
        covariance: their covariance, (p, p).
        limits: their limits.
        fixed: names of the parameters that were fixed.
        at_limit: names of the parameters found at a limit: their errors mean nothing (0 if the fit converged only
            when they were held there).
        method: "unbinned" or "binned, N bins".
        valid: whether MIGRAD converged (`SPlot.fit` raises if not).
        n_events: events in the range, bootstrap counts included.
        n_outside: events outside of it; their weight is 0.
        edges: (b + 1,) edges of the bins of the goodness of fit, none with less than 10 events expected.
        observed: (b,) events.
        expected: (b,) events by the fit.
        cows: weight functions by `sweights`.
        sum_rule: relative deviations, one per species and "event".
        n_effective: effective number of events of each species' weights.
        inflation: (b,) variance of the observed numbers over that of independent events: above 1 where events of equal
            key share a bin.
        refit: of a replica what went wrong at first, and what was done about it; empty if nothing.
    """

    spectator: str
    target: str
    mixture: Mixture
    names: tuple[str, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...]
    covariance: FloatArray
    limits: tuple[tuple[float, float], ...]
    fixed: tuple[str, ...]
    at_limit: tuple[str, ...]
    method: str
    valid: bool
    n_events: int
    n_outside: int
    edges: FloatArray
    observed: FloatArray
    expected: FloatArray
    cows: Cows
    sum_rule: dict[str, float]
    n_effective: dict[str, float]
    inflation: FloatArray
    refit: str = ""

    @property
    def terms(self) -> dict[str, tuple[str, ...]]:
        """Species to the names of its terms in the mixture."""
        return self.mixture.terms

    @property
    def yields(self) -> dict[str, float]:
        """Fitted number of events of each species."""
        return self.mixture.by_species(self.values)

    def yield_error(self, species: str) -> float:
        """Standard deviation of a species' yield."""
        index = [list(self.mixture.shapes).index(term) for term in self.terms[species]]
        return float(np.sqrt(self.covariance[np.ix_(index, index)].sum()))

    @property
    def warnings(self) -> list[str]:
        """What is off, in plain words."""
        warnings = [f"parameter {name} is at its limit" for name in self.at_limit]
        for name, size in self.yields.items():
            if size < LEAST_SEEN * self.yield_error(name):
                warnings.append(f"the yield of {name} is {size:.0f} +- {self.yield_error(name):.0f}: hardly seen")
            if self.n_effective[name] < LEAST_N_EFF:
                warnings.append(f"the weights of {name} are equivalent to {self.n_effective[name]:.0f} events")
        if self.n_outside > self.n_events:
            warnings.append(f"{self.n_outside} of {self.n_outside + self.n_events} events are outside of the range")
        return warnings

    def densities(self, m: FloatArray) -> dict[str, FloatArray]:
        """Expected events of each species per unit of the spectator at `m` (n,)."""
        yields = self.mixture.split(self.values)[0]
        return self.mixture.by_species(yields[:, None] * self.mixture.pdfs(m, self.values))

    @property
    def pulls(self) -> FloatArray:
        """(b,) observed minus expected over the root of the variance that is expected."""
        return (self.observed - self.expected) / np.sqrt(self.expected * self.inflation)

    @property
    def chi2(self) -> float:
        """Sum of the squared pulls."""
        return float(np.sum(self.pulls**2))

    @property
    def ndf(self) -> int:
        """Bins minus free parameters."""
        return len(self.observed) - len(self.names) + len(self.fixed)

    @property
    def p_value(self) -> float:
        """Probability of a larger `chi2`; NaN without degrees of freedom."""
        return chi2_p_value(self.chi2, self.ndf) if self.ndf > 0 else float("nan")

    def weights(self, m: FloatArray, species: str | None = None) -> FloatArray:
        """sWeights; they sum to the yield over the fitted sample, and to 1 over the species for each event.

        Args:
            m: (n,) spectator.
            species: whose weights; the target's if left out.

        Returns:
            (n,) weights of any sign; 0 outside the range.

        Raises:
            ConfigError: no such species.
        """
        terms = self.terms[known_name(species or self.target, self.terms, "species")]
        m = np.asarray(m, np.float64)
        inside = (m >= self.mixture.low) & (m <= self.mixture.high)
        result = np.zeros(m.shape)
        result[inside] = sum(self.cows[k](m[inside]) for k, term in enumerate(self.mixture.shapes) if term in terms)
        return result

    def summary(self) -> str:
        """Fixed-width table of parameters and checks."""
        low, high = self.mixture.low, self.mixture.high
        lines = [
            f"spectator fit of {self.spectator} in [{low:g}, {high:g}]: {self.n_events} events, {self.method} "
            f"({self.n_outside} outside, weight 0)",
            f"{'parameter':<28}{'value':>14}{'error':>12}  note",
        ]
        for name, value, error in zip(self.names, self.values, self.errors, strict=True):
            note = "fixed" if name in self.fixed else "AT LIMIT" if name in self.at_limit else ""
            lines.append(f"{name:<28}{value:>14.6g}{error:>12.3g}  {note}".rstrip())
        pulls = f"largest of {len(self.pulls)} pulls {np.max(np.abs(self.pulls)):.1f}"
        lines.append(f"chi2/ndf = {self.chi2:.1f}/{self.ndf}, p = {self.p_value:.3g}; {pulls}")
        return "\n".join([*lines, *check_lines(self.sum_rule, self.n_effective)])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the functions, as JSON types (None for a p-value without degrees of freedom)."""
        names = ("spectator", "target", "method", "valid", "n_events", "n_outside", "refit")
        plain = {key: getattr(self, key) for key in names}
        tables = {key: list(getattr(self, key)) for key in ("names", "values", "errors", "fixed", "at_limit")}
        arrays = {key: getattr(self, key).tolist() for key in ("covariance", "edges", "observed", "expected", "pulls")}
        checks = {key: getattr(self, key) for key in ("yields", "chi2", "ndf", "p_value", "sum_rule", "n_effective")}
        checks["p_value"] = None if np.isnan(self.p_value) else self.p_value
        return plain | {"range": [self.mixture.low, self.mixture.high]} | tables | arrays | checks
