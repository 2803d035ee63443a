"""Likelihood of spectator histograms as a function of the shapes alone: the yields are profiled."""

from __future__ import annotations

import numpy as np
from iminuit import Minuit
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from calorefine.errors import FitError
from calorefine.stats import FloatArray
from calorefine.weights.splot_fit import SPlotFit

SPECTATOR_BINS = 200


class Profile:
    """Deviance of spectator histograms as a function of the shapes' parameters, with the yields profiled.

    It starts from a fit; what that held fixed stays fixed.  Each species of several terms gets a further one to test
    them with: the Chebyshev polynomial whose degree is the number of its terms, of either sign.

    Attributes:
        names: (p) parameters of the shapes.
        values: (p,) from the fit.
        varied: (p,) those that are not fixed.
        probes: (p,) those of species of a single term that tell its position and size, and are not fixed.
        single: (K,) terms that are all of their species; their yields are not negative.
        further: (E, b) shares of the further terms in the spectator's bins.
    """

    def __init__(self, fit: SPlotFit) -> None:
        """Take all from a fit."""
        first, sizes = len(fit.mixture.shapes), [len(terms) for terms in fit.terms.values()]
        single = {terms[0] for terms in fit.terms.values() if len(terms) == 1}
        probes = {f"{term}.{probe}" for term in single for probe in fit.mixture.shapes[term].probes}
        self.mixture, self.names, self.limits = fit.mixture, fit.names[first:], fit.limits[first:]
        self.edges = np.linspace(fit.mixture.low, fit.mixture.high, SPECTATOR_BINS + 1)
        self.values, errors = np.array(fit.values[first:]), np.array(fit.errors[first:])
        self.errors = np.where(errors > 0, errors, 0.01 * np.abs(self.values) + 1e-6)
        self.single = np.array([name in single for name in fit.mixture.shapes])
        self.further = _chebyshev_shares([size for size in sizes if size > 1])
        self.varied = np.array([name not in fit.fixed for name in self.names])
        self.probes = self.varied & [name in probes for name in self.names]

    @property
    def probe_names(self) -> list[str]:
        """Names of the probes."""
        return [name for name, probe in zip(self.names, self.probes, strict=True) if probe]

    @property
    def owners(self) -> list[int]:
        """Index of the term that each probe belongs to."""
        return [list(self.mixture.shapes).index(name.rpartition(".")[0]) for name in self.probe_names]

    def fractions(self, values: FloatArray) -> FloatArray:
        """Share of each term in each spectator bin (K, b), above 0."""
        unused_yields = (1.0,) * len(self.mixture.shapes)
        return np.maximum(self.mixture.fractions(self.edges, (*unused_yields, *values.tolist())), 1e-15)

    def extended(self, values: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Shares with those of the further terms (K + E, b), and which yields may not be negative (K + E,)."""
        single = np.append(self.single, np.zeros(len(self.further), bool))
        return np.concatenate([self.fractions(values), self.further]), single

    def deviance(self, values: FloatArray, counts: FloatArray, *, extended: bool = False) -> float:
        """Twice the negative log likelihood ratio to the saturated model, summed over column bins."""
        fractions, single = self.extended(values) if extended else (self.fractions(values), self.single)
        expected = profiled_yields(fractions, counts, single) @ fractions
        ratio = np.where(counts > 0, counts / np.maximum(expected, 1e-300), 1.0)
        return float(2 * np.sum(expected - counts + counts * np.log(ratio)))

    def minimize(
        self, start: FloatArray, counts: FloatArray, free: NDArray[np.bool_], *, extended: bool = False
    ) -> Minuit:
        """Fit the parameters marked free to `counts` (q, b), one set of parameters for all of its rows."""
        minuit = Minuit(lambda values: self.deviance(values, counts, extended=extended), start, name=self.names)
        minuit.errordef = Minuit.LEAST_SQUARES
        minuit.errors, minuit.limits, minuit.fixed = self.errors, self.limits, ~free
        with np.errstate(all="ignore"):
            minuit.migrad()
            if not minuit.valid:
                minuit.strategy = 2
                minuit.simplex().migrad()
        return minuit

    def shared(self, name: str, counts: FloatArray) -> FloatArray:
        """Values of all parameters in the fit with shared shapes; only of the probes if that does not converge."""
        for free in (self.varied | self.probes, self.probes):
            minuit = self.minimize(self.values, counts, free)
            if minuit.valid:
                return np.array(minuit.values)
        failed = f"the fit with shared shapes did not converge, distance {minuit.fmin.edm:.2g}"
        raise FitError(f"factorization of {name}: {failed}")


def information(fractions: FloatArray, counts: FloatArray, yields: FloatArray) -> FloatArray:
    """Minus the second derivatives of ln L by the yields: (q, K, K)."""
    pairs = fractions[:, None] * fractions[None, :]
    curvature = np.where(counts > 0, counts / np.maximum(yields @ fractions, 1e-150) ** 2, 0.0)
    return np.tensordot(curvature, pairs, axes=(1, 2))


def _chebyshev_shares(degrees: list[int]) -> FloatArray:
    """Integrals (E, b) of Chebyshev polynomials over the spectator's bins, for a range of length 1."""
    edges = np.linspace(-1, 1, SPECTATOR_BINS + 1)
    primitives = [chebyshev.chebval(edges, chebyshev.chebint(np.eye(degree + 1)[degree])) / 2 for degree in degrees]
    return np.diff(np.array(primitives).reshape(-1, len(edges)), axis=1)


def profiled_yields(fractions: FloatArray, counts: FloatArray, single: NDArray[np.bool_]) -> FloatArray:
    """Yields (q, K) of the greatest likelihood for given shapes (K, b): projected Newton on a concave function.

    Yields of species of a single term (K,) are not negative.
    """
    lowest = np.where(single, 0.0, -np.inf)
    norm, densities = fractions.sum(axis=1), np.all(fractions >= 0, axis=1)
    yields = np.where(densities, counts.sum(axis=1, keepdims=True) / densities.sum(), 0.0)
    for _ in range(5):
        yields = yields * ((counts / (yields @ fractions)) @ fractions.T) / np.where(densities, norm, 1.0)
    for _ in range(50):
        ratio = np.where(counts > 0, counts / np.maximum(yields @ fractions, 1e-300), 0.0)
        score = ratio @ fractions.T - norm
        held = (yields <= lowest) & (score <= 0)
        matrix = information(fractions, counts, yields)
        matrix = np.where(held[:, :, None] | held[:, None, :], np.eye(len(norm)), matrix)
        step = np.asarray(np.linalg.solve(matrix, np.where(held, 0.0, score)[..., None]), np.float64)[..., 0]
        moved = _uphill(fractions, counts, yields, step, lowest)
        change = np.max(np.abs(moved - yields) / (1 + yields))
        yields = moved
        if change < 1e-10:
            break
    return yields


def _uphill(
    fractions: FloatArray, counts: FloatArray, yields: FloatArray, step: FloatArray, lowest: FloatArray
) -> FloatArray:
    """Yields after a step, kept above the lowest, and halved in each row until the likelihood does not decrease."""
    before = _log_likelihood(fractions, counts, yields)
    for _ in range(30):
        moved = np.maximum(yields + step, lowest)
        worse = _log_likelihood(fractions, counts, moved) < before - 1e-9 * np.abs(before)
        if not worse.any():
            return moved
        step = np.where(worse[:, None], step / 2, step)
    return np.where(worse[:, None], yields, moved)


def _log_likelihood(fractions: FloatArray, counts: FloatArray, yields: FloatArray) -> FloatArray:
    expected = yields @ fractions
    return np.asarray(np.sum(counts * np.log(np.maximum(expected, 1e-300)) - expected, axis=1))
