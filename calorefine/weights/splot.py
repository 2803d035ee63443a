r"""sWeights: a fit of the spectator, and per event the weight that makes a sample of one species of the whole.

With densities :math:`g_k` of the spectator :math:`m`, yields :math:`N_k` and total :math:`f = \sum_k N_k g_k`

.. math:: w_k(m) = \sum_l A_{kl} \, g_l(m) / f(m), \qquad (A^{-1})_{kl} = \sum_i n_i \, g_k(m_i) g_l(m_i) / f(m_i)^2 ,

with :math:`n_i = 1`, or the bootstrap count of event :math:`i`.  Estimand: for a control variable x that is
independent of m within each species, the histogram of x with weights :math:`w_k` is the one of species k, in
expectation.  Independence is what `calorefine.weights.factorization` tests.  The sum runs over the whole fitted sample:
weigh first, cut later.

References: Pivk and Le Diberder, arXiv:physics/0402083; Dembinski, Kenzie, Langenbruch and Schmelling,
arXiv:2112.04574 (variant B of the W matrix).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from iminuit import Minuit
from iminuit.cost import ExtendedBinnedNLL, ExtendedUnbinnedNLL
from numpy.typing import NDArray
from sweights import Cows

from calorefine.errors import (
    BranchError,
    ConfigError,
    EmptySelectionError,
    FitError,
    SumRuleWarning,
    ValueRangeError,
    nearest,
)
from calorefine.stats import n_eff
from calorefine.weights.shapes import FloatArray, Guess, Mixture, Parameter, Shape
from calorefine.weights.splot_fit import SPlotFit, known_species

__all__ = ["SPlot", "SPlotFit", "WeightSource"]

SUM_RULE_WARNING = 5e-3
SUM_RULE_ERROR = 5e-2


class WeightSource(ABC):
    """Where an event's weight comes from."""

    @property
    @abstractmethod
    def branches(self) -> dict[str, str]:
        """Name in the table to the branch or expression that it is read from."""

    @abstractmethod
    def weights(self, table: Mapping[str, NDArray[Any]], *, multiplicity: NDArray[Any] | None = None) -> FloatArray:
        """Weight (n,) of each event of the table, any sign.

        Args:
            table: name to (n,) values, with the names of `branches`.
            multiplicity: (n,) bootstrap counts with which to redo what is fitted; the result does not include them.
        """


class SPlot(WeightSource):
    """Extended maximum-likelihood fit of the spectator, and sWeights from it."""

    def __init__(
        self,
        *,
        spectator: str,
        range: tuple[float, float],
        species: dict[str, Shape],
        target: str = "signal",
        max_unbinned: int = 200_000,
        bins: int = 2000,
    ) -> None:
        """Describe the fit.

        Args:
            spectator: branch or expression.
            range: lowest and highest value fitted, both included, in the spectator's unit.
            species: name to shape, at least two.
            target: species whose weight `weights` returns.
            max_unbinned: events above which the fit is binned.  Measured for a double Gaussian on an exponential, on
                one core: unbinned, 31 000 events take 0.15 s, 200 000 take 1.3 s and 10^6 take 6 s; binned, 10^6 take
                0.4 s (and once per installation 4 s for the compilation of iminuit's cost function).
            bins: number of bins then; they should be much narrower than the narrowest peak.

        Raises:
            ConfigError: the range is reversed, or species are too few or don't include the target.
        """
        if not range[0] < range[1]:
            msg = f"range of the spectator {spectator} is [{range[0]:g}, {range[1]:g}], expected lowest < highest"
            raise ConfigError(msg)
        if len(species) < 2:
            msg = f"sWeights need at least two species, found {', '.join(species) or 'none'}"
            raise ConfigError(msg)
        self.spectator, self.range, self.species = spectator, (float(range[0]), float(range[1])), dict(species)
        self.target = known_species(target, species)
        self.max_unbinned, self.bins = max_unbinned, bins

    @property
    def branches(self) -> dict[str, str]:
        """The spectator, under its own name."""
        return {self.spectator: self.spectator}

    def weights(self, table: Mapping[str, NDArray[Any]], *, multiplicity: NDArray[Any] | None = None) -> FloatArray:
        """Fit the table's spectator and return the target's sWeights (n,), 0 outside the range; see `fit`.

        Raises:
            BranchError: the spectator is not in the table.
        """
        if self.spectator not in table:
            msg = f"spectator '{self.spectator}' is not among {', '.join(table)}" + nearest(self.spectator, table)
            raise BranchError(msg)
        return self.fit(table[self.spectator], multiplicity=multiplicity).weights(table[self.spectator])

    def fit(self, spectator: NDArray[Any], *, multiplicity: NDArray[Any] | None = None) -> SPlotFit:
        """Fit yields and shapes, unbinned or binned by the number of events, and compute the weight functions.

        Args:
            spectator: (n,) values; those outside the range are left out.
            multiplicity: (n,) nonnegative integer bootstrap counts: each event counts that often in the fit and in the
                W matrix, as if repeated.  The weight functions do not include the count.

        Returns:
            The fit, converged, with sum rules that hold within 5e-2.

        Raises:
            ValueRangeError: NaN in the spectator, or multiplicities that are no counts.
            EmptySelectionError: no event within the range.
            FitError: no convergence, or a sum rule is broken.
        """
        m, n_outside = self._select(spectator, multiplicity)
        mixture = Mixture(self.species, *self.range)
        parameters = self._start(mixture, m)
        method, cost = self._cost(mixture, m)
        minuit = _minimize(cost, parameters, self.spectator)
        values = tuple(float(value) for value in minuit.values)
        _check_species(mixture, values)
        cows = _weight_functions(mixture, values, m)
        weights = {name: cows[index](m) for index, name in enumerate(self.species)}
        edges, observed, expected = _binned(mixture, values, m)
        return SPlotFit(
            spectator=self.spectator,
            target=self.target,
            mixture=mixture,
            names=tuple(minuit.parameters),
            values=values,
            errors=tuple(0.0 if fixed else float(e) for e, fixed in zip(minuit.errors, minuit.fixed, strict=True)),
            covariance=np.array(minuit.covariance),
            limits=tuple(p.limits for p in parameters),
            fixed=tuple(p.name for p in parameters if p.fixed),
            at_limit=_at_limit(parameters, values),
            method=method,
            valid=minuit.valid,
            n_events=len(m),
            n_outside=n_outside,
            edges=edges,
            observed=observed,
            expected=expected,
            cows=cows,
            sum_rule=_check_sum_rule(weights, values, self.spectator),
            n_effective={name: n_eff(weight) for name, weight in weights.items()},
        )

    def _select(self, spectator: NDArray[Any], multiplicity: NDArray[Any] | None) -> tuple[FloatArray, int]:
        """Events within the range, repeated by their multiplicity; and the number of those outside."""
        m = np.asarray(spectator, np.float64)
        missing = int(np.isnan(m).sum())
        if missing:
            msg = f"spectator {self.spectator}: {missing} of {len(m)} values are NaN, expected none; add a cut"
            raise ValueRangeError(msg)
        if multiplicity is not None:
            m = np.repeat(m, _counts(multiplicity, len(m)))
        inside = (m >= self.range[0]) & (m <= self.range[1])
        if not inside.any():
            found = f"they lie in [{m.min():g}, {m.max():g}]" if len(m) else "the input is empty"
            msg = (
                f"spectator {self.spectator}: none of {len(m)} events is in the range "
                f"[{self.range[0]:g}, {self.range[1]:g}], {found}; check the unit"
            )
            raise EmptySelectionError(msg)
        return m[inside], int(np.sum(~inside))

    def _start(self, mixture: Mixture, m: FloatArray) -> list[Parameter]:
        shapes = mixture.parameters(Guess.from_data(m, *self.range))
        yields = mixture.yields_only(m, tuple(p.start for p in shapes))
        named = zip(self.species, np.maximum(yields, 1e-3 * len(m)), strict=True)
        return [Parameter(f"n_{name}", float(value), (0.0, np.inf)) for name, value in named] + shapes

    def _cost(self, mixture: Mixture, m: FloatArray) -> tuple[str, ExtendedUnbinnedNLL | ExtendedBinnedNLL]:
        if len(m) <= self.max_unbinned:
            return "unbinned", ExtendedUnbinnedNLL(m, mixture.scaled_log_pdf, log=True)
        counts, edges = np.histogram(m, self.bins, self.range)
        return f"binned, {self.bins} bins", ExtendedBinnedNLL(counts, edges, mixture.scaled_cdf)


@dataclass(frozen=True)
class _Density:
    """A species' density, or the total's, as a function of the spectator alone (and so that it can be pickled)."""

    mixture: Mixture
    values: tuple[float, ...]
    index: int | None

    def __call__(self, x: FloatArray) -> FloatArray:
        if self.index is not None:
            shape = list(self.mixture.shapes.values())[self.index]
            return shape.pdf(x, self.mixture.low, self.mixture.high, *self.mixture.split(self.values)[1][self.index])
        return self.mixture.total(x, self.values) / sum(self.values[: len(self.mixture.shapes)])


def _counts(multiplicity: NDArray[Any], n_events: int) -> NDArray[np.int64]:
    counts = np.asarray(multiplicity)
    if counts.shape != (n_events,):
        msg = f"multiplicity has shape {counts.shape}, expected ({n_events},), one count per event"
        raise ValueRangeError(msg)
    if not np.all((counts >= 0) & (counts == np.floor(counts))):
        msg = "multiplicity holds values that are no counts (negative, fractional or NaN), expected 0, 1, 2, ..."
        raise ValueRangeError(msg)
    return counts.astype(np.int64)


def _minimize(cost: ExtendedUnbinnedNLL | ExtendedBinnedNLL, parameters: list[Parameter], spectator: str) -> Minuit:
    """MIGRAD and HESSE; if that fails SIMPLEX and MIGRAD with strategy 2, then with parameters held at their limits."""
    minuit = Minuit(cost, *(p.start for p in parameters), name=[p.name for p in parameters])
    for p in parameters:
        minuit.limits[p.name], minuit.fixed[p.name] = p.limits, p.fixed
        minuit.errors[p.name] = np.sqrt(p.start) if p.name.startswith("n_") else 0.02 * (p.limits[1] - p.limits[0])
    with np.errstate(all="ignore"):
        minuit.migrad()
        if not minuit.valid:
            minuit.simplex()
            minuit.strategy = 2
            minuit.migrad(ncall=20_000)
        stuck = [name for name in _at_limit(parameters, tuple(minuit.values)) if not name.startswith("n_")]
        if not minuit.valid and stuck:
            for name in stuck:
                minuit.fixed[name] = True
            minuit.migrad(ncall=20_000)
        if minuit.valid:
            minuit.hesse()
    if not minuit.valid or minuit.covariance is None:
        raise FitError(_failure(minuit, parameters, spectator))
    return minuit


def _failure(minuit: Minuit, parameters: list[Parameter], spectator: str) -> str:
    reasons = {
        "the number of calls ran out": minuit.fmin.has_reached_call_limit,
        f"the distance to the minimum is still {minuit.fmin.edm:.2g}": minuit.fmin.is_above_max_edm,
        "the covariance is not positive": not minuit.fmin.has_posdef_covar,
    }
    found = [reason for reason, holds in reasons.items() if holds] or ["MIGRAD reports an invalid minimum"]
    limits = _at_limit(parameters, tuple(minuit.values))
    where = f"; at a limit: {', '.join(limits)}" if limits else ""
    values = ", ".join(f"{name} = {value:.4g}" for name, value in minuit.values.to_dict().items())
    return (
        f"the fit of {spectator} did not converge, also with SIMPLEX and strategy 2: {', '.join(found)}{where}. "
        f"Last values: {values}. Give better start values, fix a parameter or choose a shape with fewer"
    )


def _at_limit(parameters: list[Parameter], values: tuple[float, ...]) -> tuple[str, ...]:
    names = []
    for p, value in zip(parameters, values, strict=True):
        scale = p.limits[1] - p.limits[0] if np.isfinite(p.limits[1]) else max(p.start, 1.0)
        if not p.fixed and min(value - p.limits[0], p.limits[1] - value) < 1e-4 * scale:
            names.append(p.name)
    return tuple(names)


def _check_species(mixture: Mixture, values: tuple[float, ...]) -> None:
    yields, groups = mixture.split(values)
    for (name, shape), size, group in zip(mixture.shapes.items(), yields, groups, strict=True):
        complaint = shape.complaint(mixture.low, mixture.high, *group)
        if size < 0.5:
            complaint = f"its fitted yield is {size:.2g} events, expected some; remove it, or check the shapes"
        if complaint:
            msg = f"species '{name}': {complaint}"
            raise FitError(msg)


def _weight_functions(mixture: Mixture, values: tuple[float, ...], m: FloatArray) -> Cows:
    """W matrix by summation over the sample, and its inverse, by `sweights`."""
    densities = [_Density(mixture, values, index) for index in range(len(mixture.shapes))]
    total = _Density(mixture, values, None)
    try:
        return Cows(m, densities[:1], densities[1:], total, range=(mixture.low, mixture.high), summation=True)
    except np.linalg.LinAlgError as error:
        msg = "the W matrix of the sWeights can't be inverted: two species have the same shape, or one has no events"
        raise FitError(msg) from error


def _check_sum_rule(weights: dict[str, FloatArray], values: tuple[float, ...], spectator: str) -> dict[str, float]:
    r"""Relative deviations of :math:`\sum_i w_k(m_i) = N_k` and of :math:`\sum_k w_k(m) = 1`.

    Both hold where the yields are at their maximum (arXiv:physics/0402083, properties of the sWeights;
    arXiv:2112.04574).  A yield below the root of the number of events counts as that.
    """
    least = np.sqrt(len(next(iter(weights.values()))))
    deviations = {
        name: float(abs(weight.sum() - value) / max(value, least))
        for (name, weight), value in zip(weights.items(), values, strict=False)
    }
    deviations["event"] = float(np.max(np.abs(sum(weights.values()) - 1)))
    name, worst = max(deviations.items(), key=lambda item: item[1])
    msg = (
        f"sWeights of {spectator}: the sum rule for {name} is off by {worst:.2g}, expected below {SUM_RULE_WARNING:g} "
        "(arXiv:physics/0402083, arXiv:2112.04574): the yields are not at their maximum"
    )
    if not worst <= SUM_RULE_ERROR:
        raise FitError(msg)
    if worst > SUM_RULE_WARNING:
        warnings.warn(msg, SumRuleWarning, stacklevel=4)
    return deviations


def _binned(mixture: Mixture, values: tuple[float, ...], m: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Up to 100 bins of equal width, merged with their neighbors until 10 events are expected in each."""
    observed, edges = np.histogram(m, int(np.clip(len(m) // 20, 20, 100)), (mixture.low, mixture.high))
    cumulative = mixture.scaled_cdf(edges, *values)
    kept = [0]
    for index in range(1, len(edges) - 1):
        if min(cumulative[index] - cumulative[kept[-1]], cumulative[-1] - cumulative[index]) >= 10:
            kept.append(index)
    kept.append(len(edges) - 1)
    total = np.concatenate([[0], np.cumsum(observed)])[kept]
    return edges[kept], np.diff(total).astype(np.float64), np.diff(cumulative[kept])
