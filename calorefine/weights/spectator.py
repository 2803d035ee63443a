"""Extended maximum-likelihood fit of a spectator, with the checks that its result has to pass.

References: Pivk and Le Diberder, arXiv:physics/0402083 (sum rules); Dembinski, Kenzie, Langenbruch and Schmelling,
arXiv:2112.04574 (variant B of the W matrix, and COWs).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from iminuit import Minuit
from iminuit.cost import Cost, ExtendedBinnedNLL, ExtendedUnbinnedNLL, NormalConstraint
from numpy.typing import NDArray
from sweights import Cows

from calorefine import keys
from calorefine.errors import EmptySelectionError, FitError, SumRuleWarning, ValueRangeError
from calorefine.stats import FloatArray, IntArray, WeightSums, n_eff, summed
from calorefine.weights.mixture import Mixture
from calorefine.weights.scores import covariance_by_key
from calorefine.weights.shapes import Guess, Parameter
from calorefine.weights.source import SUM_RULE_WARNING, checked_counts, shared_keys, sum_rules
from calorefine.weights.splot_fit import SPlotFit

SUM_RULE_ERROR = 5e-2
POSITIVE, ANY_SIGN = (0.0, np.inf), (-np.inf, np.inf)


@dataclass(frozen=True)
class SpectatorFit:
    """What to fit.

    Args:
        spectator: its name, for messages.
        mixture: species and range, both ends included; the yield of a species' only term is not negative, those of
            several may be.
        target: species whose weight is *the* weight.
        max_unbinned: events above which the fit is binned.
        bins: number of bins then.
        drawn: replica and seed for which values of constraints are drawn; as they are for replica 0.
    """

    spectator: str
    mixture: Mixture
    target: str
    max_unbinned: int
    bins: int
    drawn: tuple[int, int] = (0, 0)

    def fit(
        self,
        spectator: NDArray[Any],
        *,
        multiplicity: NDArray[Any] | None = None,
        near: SPlotFit | None = None,
        held: Collection[str] = (),
        key: NDArray[Any] | None = None,
    ) -> SPlotFit:
        """Fit yields and shapes, unbinned or binned by the number of events, and compute the weight functions.

        Args:
            spectator: (n,) values; those outside the range are left out.
            multiplicity: (n,) nonnegative integer bootstrap counts: each event counts that often in the fit and in the
                W matrix, as if repeated.  The weight functions do not include the count.
            near: a result from which to start, and whose limits to keep.
            held: names of shape parameters that keep the values they start from.
            key: (n,) keys of the events, without multiplicities: errors, chi2 and effective numbers then are those of
                sums over events of equal key, such as the candidates of an event.

        Returns:
            The fit, converged, with sum rules that hold within 5e-2.

        Raises:
            ValueRangeError: NaN in the spectator, or multiplicities that are no counts.
            EmptySelectionError: no event within the range.
            FitError: no convergence, or a sum rule is broken.
        """
        m, n_outside, group = self._select(spectator, multiplicity, key)
        parameters = self._start(m, near, held)
        method, cost = self._cost(m, parameters)
        minuit = _minimize(cost, parameters, self.spectator, near)
        values = tuple(float(value) for value in minuit.values)
        self._check_species(values)
        cows = _weight_functions(self.mixture, values, m)
        weights = self.mixture.by_species(cows[k](m) for k in range(len(self.mixture.shapes)))
        edges, observed, expected, inflation = _binned(self.mixture, values, m, group)
        covariance = np.array(minuit.covariance)
        if group is not None:
            covariance = covariance_by_key(self.mixture, minuit, m, group)
        return SPlotFit(
            spectator=self.spectator,
            target=self.target,
            mixture=self.mixture,
            names=tuple(minuit.parameters),
            values=values,
            errors=tuple(np.where(minuit.fixed, 0.0, np.sqrt(np.diagonal(covariance))).tolist()),
            covariance=covariance,
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
            sum_rule=_check_sum_rule(weights, self.mixture.by_species(values), self.spectator),
            n_effective={name: n_eff(summed(weight, group)) for name, weight in weights.items()},
            inflation=inflation,
        )

    def _select(
        self, spectator: NDArray[Any], multiplicity: NDArray[Any] | None, key: NDArray[Any] | None
    ) -> tuple[FloatArray, int, IntArray | None]:
        """Events within the range, repeated by their multiplicity; the number of those outside; groups of equal key."""
        m, low, high = np.asarray(spectator, np.float64), self.mixture.low, self.mixture.high
        if missing := int(np.isnan(m).sum()):
            problem = f"{missing} of {len(m)} values are NaN"
            raise ValueRangeError(f"spectator {self.spectator}: {problem}, expected none; add a cut")
        if multiplicity is not None:
            m = np.repeat(m, checked_counts(multiplicity, len(m)))
        inside = (m >= low) & (m <= high)
        if not inside.any():
            where = f"they lie in [{m.min():g}, {m.max():g}]" if len(m) else "the input is empty"
            none = f"none of {len(m)} events is in the range [{low:g}, {high:g}]"
            raise EmptySelectionError(f"spectator {self.spectator}: {none}, {where}; check the unit")
        group = shared_keys(key[inside]) if key is not None and multiplicity is None else None
        return m[inside], int(np.sum(~inside)), group

    def _start(self, m: FloatArray, near: SPlotFit | None, held: Collection[str]) -> list[Parameter]:
        shapes = self.mixture.parameters(Guess.from_data(m, self.mixture.low, self.mixture.high))
        if near is not None:
            known = dict(zip(near.names, zip(near.values, near.limits, strict=True), strict=True))
            shapes = [Parameter(p.name, *known[p.name], p.fixed or p.name in held, p.constraint) for p in shapes]
        yields = self.mixture.yields_only(m, tuple(p.start for p in shapes))
        limits = [POSITIVE if len(terms) == 1 else ANY_SIGN for terms in self.mixture.terms.values() for _ in terms]
        named = zip(self.mixture.shapes, np.maximum(yields, 1e-3 * len(m)), limits, strict=True)
        return [Parameter(f"n_{name}", float(value), limit) for name, value, limit in named] + shapes

    def _cost(self, m: FloatArray, parameters: list[Parameter]) -> tuple[str, Cost]:
        """Twice the negative log likelihood, with the constraints."""
        names = [p.name for p in parameters]
        method, cost = "unbinned", ExtendedUnbinnedNLL(m, self.mixture.scaled_log_pdf, log=True, name=names)
        if len(m) > self.max_unbinned:
            counts, edges = np.histogram(m, self.bins, (self.mixture.low, self.mixture.high))
            method, cost = (
                f"binned, {self.bins} bins",
                ExtendedBinnedNLL(counts, edges, self.mixture.scaled_cdf, name=names),
            )
        known = [self._constraint(p.name, *p.constraint) for p in parameters if p.constraint and not p.fixed]
        return method, sum(known, start=cost)

    def _constraint(self, name: str, value: float, error: float) -> NormalConstraint:
        replica, seed = self.drawn
        key = keys.stream(
            keys.make_keys([np.array([zlib.crc32(name.encode())])]), "constraint", seed=seed, replica=replica
        )
        return NormalConstraint(name, value + error * float(keys.normal(key, 1)[0, 0]) * (replica > 0), error)

    def _check_species(self, values: tuple[float, ...]) -> None:
        ends = self.mixture.low, self.mixture.high
        groups = dict(zip(self.mixture.shapes, self.mixture.split(values)[1], strict=True))
        for name, size in self.mixture.by_species(values).items():
            terms = {term: self.mixture.shapes[term] for term in self.mixture.terms[name]}
            complaints = [shape.complaint(*ends, *groups[term]) for term, shape in terms.items()]
            if size < 0.5:
                complaints = [f"its fitted yield is {size:.2g} events, expected some; remove it, or check the shapes"]
            if text := "; ".join(filter(None, complaints)):
                raise FitError(f"species '{name}': {text}")
        grid = np.linspace(*ends, 201)
        if np.min(total := self.mixture.total(grid, values)) <= 0:
            where = grid[int(np.argmin(total))]
            below = f"the fitted density of {self.spectator} is negative at {where:.4g}"
            raise FitError(f"{below}; take fewer terms in a Sum")


def _minimize(cost: Cost, parameters: list[Parameter], spectator: str, near: SPlotFit | None) -> Minuit:
    """MIGRAD and HESSE; if that fails SIMPLEX and MIGRAD with strategy 2, then with parameters held at their limits."""
    minuit = Minuit(cost, *(p.start for p in parameters), name=[p.name for p in parameters])
    known = dict(zip(near.names, near.errors, strict=True)) if near else {}
    for p in parameters:
        minuit.limits[p.name], minuit.fixed[p.name] = p.limits, p.fixed
        step = np.sqrt(p.start) if p.name.startswith("n_") else 0.02 * (p.limits[1] - p.limits[0])
        minuit.errors[p.name] = known.get(p.name) or step
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
    problem = [reason for reason, holds in reasons.items() if holds] or ["MIGRAD reports an invalid minimum"]
    limits = _at_limit(parameters, tuple(minuit.values))
    where = f"; at a limit: {', '.join(limits)}" if limits else ""
    values = ", ".join(f"{name} = {value:.4g}" for name, value in minuit.values.to_dict().items())
    return (
        f"the fit of {spectator} did not converge, also with SIMPLEX and strategy 2: {', '.join(problem)}{where}. "
        f"Last values: {values}. Give better start values, fix a parameter or choose a shape with fewer"
    )


def _at_limit(parameters: list[Parameter], values: tuple[float, ...]) -> tuple[str, ...]:
    names = []
    for p, value in zip(parameters, values, strict=True):
        scale = p.limits[1] - p.limits[0] if np.isfinite(p.limits[1]) else max(p.start, 1.0)
        if not p.fixed and min(value - p.limits[0], p.limits[1] - value) < 1e-4 * scale:
            names.append(p.name)
    return tuple(names)


def _weight_functions(mixture: Mixture, values: tuple[float, ...], m: FloatArray) -> Cows:
    """W matrix by summation over the sample, and its inverse, by `sweights`."""
    signal, *others = (partial(_density, mixture, values, k) for k in range(len(mixture.shapes)))
    total = partial(_density, mixture, values, None)
    try:
        return Cows(m, [signal], others, total, range=(mixture.low, mixture.high), summation=True)
    except np.linalg.LinAlgError as error:
        alike = "two species have the same shape, or one has no events"
        raise FitError(f"the W matrix of the sWeights can't be inverted: {alike}") from error


def _density(mixture: Mixture, values: tuple[float, ...], index: int | None, m: FloatArray) -> FloatArray:
    """Density (n,) of a term, or of all, at `m` (n,); a function of the module, so that it can be pickled."""
    yields, groups = mixture.split(values)
    if index is None:
        return np.asarray(mixture.total(m, values) / sum(yields))
    return list(mixture.shapes.values())[index].pdf(m, mixture.low, mixture.high, *groups[index])


def _check_sum_rule(weights: dict[str, FloatArray], yields: dict[str, float], spectator: str) -> dict[str, float]:
    r"""Relative deviations of :math:`\sum_i w_k(m_i) = N_k` and of :math:`\sum_k w_k(m) = 1`.

    Both hold where the yields are at their maximum (arXiv:physics/0402083, properties of the sWeights;
    arXiv:2112.04574).  A yield below the root of the number of events counts as that.
    """
    weight, sums = np.stack(list(weights.values())), np.array([yields[name] for name in weights])
    off = sum_rules(weight, np.ones(weight.shape[1]), sums)
    deviations = dict(zip((*weights, "event"), off, strict=True))
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


def _binned(
    mixture: Mixture, values: tuple[float, ...], m: FloatArray, group: IntArray | None
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Up to 100 bins of equal width, merged with their neighbors until 10 events are expected in each.

    The last array is the variance of the observed numbers over that of independent events.
    """
    observed, edges = np.histogram(m, int(np.clip(len(m) // 20, 20, 100)), (mixture.low, mixture.high))
    cumulative = mixture.scaled_cdf(edges, *values)
    kept = [0]
    for index in range(1, len(edges) - 1):
        if min(cumulative[index] - cumulative[kept[-1]], cumulative[-1] - cumulative[index]) >= 10:
            kept.append(index)
    kept.append(len(edges) - 1)
    total = np.concatenate([[0], np.cumsum(observed)])[kept]
    sums = WeightSums(1, len(kept) - 1)
    cell = np.clip(np.searchsorted(edges[kept], m, side="right") - 1, 0, len(kept) - 2)
    sums.add(np.ones((len(m), 1)), cell=cell, group=group)
    inflation = np.divide(sums.sum_w2, sums.sum_w, out=np.ones_like(sums.sum_w), where=sums.sum_w > 0)[:, 0]
    return edges[kept], np.diff(total).astype(np.float64), np.diff(cumulative[kept]), inflation
