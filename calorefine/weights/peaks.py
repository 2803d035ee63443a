"""Peaks in a spectator variable."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from calorefine.stats import FloatArray
from calorefine.weights.shapes import Curve, Defaults, Guess, Limits, Shape

SQRT_2PI = np.sqrt(2 * np.pi)
ALPHA, N = (1.5, 0.2, 5.0), (3.0, 1.05, 50.0)
"""Start value, lowest and highest value of a tail's parameters."""


@dataclass(repr=False, eq=False)
class Peak(Shape):
    """A shape defined on the whole axis by its `density` and the integral of that, `primitive`."""

    peaked = True

    mean: float | None = None
    width: float | None = None

    def defaults(self, guess: Guess) -> Defaults:
        """Mean within the range, width between 1/2000 of it and all of it."""
        return {"mean": (guess.mean, guess.low, guess.high), "width": (guess.width, guess.span / 2000, guess.span)}

    @abstractmethod
    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Density at `m` (n,), not normalized."""

    @abstractmethod
    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Integral of `density` to `m` (n,), from any point."""

    def curve(self, _ends: Limits, *params: float) -> tuple[Curve, Curve]:
        """Density and primitive; see `Shape.curve`."""
        return lambda m: self.density(m, *params), lambda m: self.primitive(m, *params)


@dataclass(repr=False, eq=False)
class Gaussian(Peak):
    """Gaussian: `mean`, `width` (standard deviation before the range cuts it), in the spectator's unit; see `Shape`."""

    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Gaussian of unit integral on the whole axis."""
        return _normal_density(m, *params)

    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Gaussian distribution function."""
        return _normal_cdf(m, *params)


@dataclass(repr=False, eq=False)
class DoubleGaussian(Peak):
    """Two Gaussians: a share `fraction` at `mean` of `width`, the rest at `mean + offset` of `width * width_ratio`.

    The ratio is limited to above 1, so that the two can't swap their labels.  ``fixed: [offset]`` makes them share the
    mean.  Mean, width and offset are in the spectator's unit; see `Shape`.
    """

    width_ratio: float | None = None
    fraction: float | None = None
    offset: float | None = None

    def defaults(self, guess: Guess) -> Defaults:
        """A core somewhat narrower than the peak, and twice that width below it."""
        peak = super().defaults(guess)
        width = self.width or 0.85 * guess.width
        core = {"width": (width, *peak["width"][1:]), "width_ratio": (2.0, 1.1, 10.0), "fraction": (0.7, 0.01, 0.99)}
        return peak | core | {"offset": (0.0, -4 * width, 4 * width)}

    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Sum of two Gaussians, of unit integral on the whole axis."""
        return _double(_normal_density, m, *params)

    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Sum of two Gaussian distribution functions."""
        return _double(_normal_cdf, m, *params)


class TailedPeak(Peak):
    r"""Gaussian with power laws for tails: :math:`(1 + \alpha (d - \alpha) / n)^{-n}` at d > alpha widths off the mean.

    After mean and width follow alpha and n of the left tail, then those of the right one, if any.
    """

    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Density of height 1 at the mean."""
        mean, width, *tails = params
        z = (np.atleast_1d(m) - mean) / width
        density: FloatArray = np.exp(z * z * -0.5)
        for side, alpha, n in zip((-1, 1), tails[::2], tails[1::2], strict=False):
            beyond = side * z > alpha
            density[beyond] = np.exp(-0.5 * alpha**2) * (1 + alpha / n * (side * z[beyond] - alpha)) ** -n
        return density

    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Integral of the density, up to a constant."""
        mean, width, *tails = params
        z = (np.atleast_1d(m) - mean) / width
        primitive: FloatArray = SQRT_2PI * ndtr(z)
        for side, alpha, n in zip((-1, 1), tails[::2], tails[1::2], strict=False):
            beyond = side * z > alpha
            scale = np.exp(-0.5 * alpha**2) * n / alpha / (n - 1)
            tail = scale * (1 - (1 + alpha / n * (side * z[beyond] - alpha)) ** (1 - n))
            primitive[beyond] = SQRT_2PI * ndtr(side * alpha) + side * tail
        return width * primitive


@dataclass(repr=False, eq=False)
class CrystalBall(TailedPeak):
    r"""Gaussian with a power law on the left: :math:`(1 + \alpha(-\alpha - z)/n)^{-n}` below :math:`z = -\alpha`.

    Mean and width are in the spectator's unit, alpha in widths; see `Shape`.
    """

    alpha: float | None = None
    n: float | None = None

    def defaults(self, guess: Guess) -> Defaults:
        """A tail from 1.5 widths on."""
        return super().defaults(guess) | {"alpha": ALPHA, "n": N}


@dataclass(repr=False, eq=False)
class DoubleSidedCrystalBall(TailedPeak):
    """Gaussian with a power law on either side (`CrystalBall` for the formula).

    Mean and width are in the spectator's unit, alphas in widths; see `Shape`.
    """

    alpha_left: float | None = None
    n_left: float | None = None
    alpha_right: float | None = None
    n_right: float | None = None

    def defaults(self, guess: Guess) -> Defaults:
        """Tails from 1.5 widths on."""
        tails = {"alpha_left": ALPHA, "n_left": N, "alpha_right": ALPHA, "n_right": N}
        return super().defaults(guess) | tails


def _normal_density(m: FloatArray, mean: float, width: float) -> FloatArray:
    z = (m - mean) * (1 / width)
    return np.asarray(np.exp(z * z * -0.5) * (1 / (SQRT_2PI * width)))


def _normal_cdf(m: FloatArray, mean: float, width: float) -> FloatArray:
    return np.asarray(ndtr((m - mean) / width))


def _double(f: Callable[[FloatArray, float, float], FloatArray], m: FloatArray, *params: float) -> FloatArray:
    """Add a function of mean and width for two Gaussians."""
    mean, width, ratio, part, offset = params
    return part * f(m, mean, width) + (1 - part) * f(m, mean + offset, width * ratio)
