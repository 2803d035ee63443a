r"""Peaks of a natural width, seen with a Gaussian resolution.

Both are written with the Faddeeva function w of `scipy.special`.  The relativistic Breit-Wigner
:math:`1 / ((m^2 - M^2)^2 + M^2 \Gamma^2)` has its poles at :math:`\pm z, \pm \bar z` with
:math:`z^2 = M^2 + i M \Gamma`, and each of its partial fractions is convolved in closed form,

.. math:: \int \frac{1}{t - z} G(m - t) \, dt = \frac{i \sqrt\pi}{\sqrt 2 \sigma} \,
          w\!\left(\frac{z - m}{\sqrt 2 \sigma}\right), \qquad \mathrm{Im}\, z > 0 .

Primitives are Gauss-Legendre sums over intervals that are narrow at the peak.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy.special import voigt_profile, wofz

from calorefine.stats import FloatArray
from calorefine.weights.peaks import Peak
from calorefine.weights.shapes import Curve, Defaults, Guess, Limits

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(10)


@dataclass(repr=False, eq=False)
class Resonance(Peak):
    """A peak at `mean` of full natural width `gamma`, seen with a Gaussian resolution of standard deviation `width`."""

    gamma: float | None = None

    def defaults(self, guess: Guess) -> Defaults:
        """Half of the peak's width at half maximum from each."""
        peak = super().defaults(guess)
        width, gamma = 0.6 * guess.width, 1.2 * guess.width
        return peak | {"width": (width, *peak["width"][1:]), "gamma": (gamma, guess.span / 2000, guess.span)}

    @abstractmethod
    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Density at `m` (n,), not normalized."""

    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Not used: `curve` integrates within the range."""
        raise NotImplementedError

    def curve(self, ends: Limits, *params: float) -> tuple[Curve, Curve]:
        """Density and its integral from the lower end, to 1e-10; see `Shape.curve`."""
        mean, scale = params[0], params[1] + params[2]
        near = mean + scale * np.sinh(np.linspace(-8, 8, 97)) / 100
        knots = np.unique(np.concatenate([ends, near[(near > ends[0]) & (near < ends[1])]]))

        def integral(low: FloatArray, high: FloatArray) -> FloatArray:
            half = (high - low) / 2
            at = (low + high)[:, None] / 2 + half[:, None] * POINTS
            return half * (self.density(at.ravel(), *params).reshape(at.shape) @ WEIGHTS)

        sums = np.append(0.0, np.cumsum(integral(knots[:-1], knots[1:])))

        def primitive(m: FloatArray) -> FloatArray:
            place = np.clip(np.searchsorted(knots, m, side="right") - 1, 0, len(knots) - 2)
            return np.asarray(sums[place] + integral(knots[place], m))

        return lambda m: self.density(m, *params), primitive


@dataclass(repr=False, eq=False)
class Voigt(Resonance):
    """Voigt profile: a Breit-Wigner (Lorentzian) of full width `gamma`, convolved with a Gaussian of `width`.

    All are in the spectator's unit; ``fixed: [gamma]`` for a known natural width.  See `Shape`.
    """

    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Voigt profile of unit integral on the whole axis."""
        mean, width, gamma = params
        return np.asarray(voigt_profile(m - mean, width, gamma / 2))


@dataclass(repr=False, eq=False)
class BreitWigner(Resonance):
    """Relativistic Breit-Wigner ``1 / ((m^2 - mean^2)^2 + mean^2 gamma^2)``, convolved with a Gaussian of `width`.

    All are in the spectator's unit; ``fixed: [gamma]`` for a known natural width.  See `Shape`.
    """

    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Sum over the poles, in units in which the peak's height is about 1 without resolution."""
        mean, width, gamma = params
        pole, scale = np.sqrt(mean**2 + 1j * mean * gamma), np.sqrt(2) * width
        right = 1j * np.sqrt(np.pi) / scale * wofz((pole - m) / scale)
        left = np.conj(1j * np.sqrt(np.pi) / scale * wofz((-np.conj(pole) - m) / scale))
        return np.asarray(((right - left) / (2 * pole)).imag * mean * gamma)
