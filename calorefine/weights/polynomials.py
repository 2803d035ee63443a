r"""Polynomial shapes of a spectator variable, of one term or of several."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.polynomial import Chebyshev as Series
from scipy.special import betainc

from calorefine.errors import ConfigError
from calorefine.stats import FloatArray
from calorefine.weights.shapes import Curve, Defaults, Guess, Limits, Shape, Sum

FLOOR = 1e-6
"""Lowest value of a `Chebyshev` density, whose constant is 1 before it is normalized."""


@dataclass(repr=False, eq=False)
class Chebyshev(Shape):
    r"""Polynomial :math:`1 + \sum_{k=1}^n a_k T_k(t)`, with the range mapped to :math:`t \in [-1, 1]`.

    Where coefficients make it negative somewhere, the constant is raised until it is not, so that a fit never meets a
    negative density; `complaint` (and by it the fit) says so if that holds for the result.

    Args:
        degree: of the polynomial.
        coefficients: start values of `a_1` to `a_n`; 0 if left out.

    Raises:
        ConfigError: the degree is not positive, or there are not as many coefficients.
    """

    degree: int = 1
    coefficients: list[float] | None = None

    def __post_init__(self) -> None:
        """Check the degree."""
        if self.degree < 1:
            raise ConfigError(f"Chebyshev: degree is {self.degree}, expected at least 1")
        if self.coefficients is not None and len(self.coefficients) != self.degree:
            given = f"{len(self.coefficients)} coefficients given"
            raise ConfigError(f"Chebyshev: {given}, expected the degree, {self.degree} (the constant is 1)")
        super().__post_init__()

    @property
    def starts(self) -> dict[str, float | None]:
        """Start value of each coefficient."""
        return {f"a_{k + 1}": self.coefficients[k] if self.coefficients else None for k in range(self.degree)}

    def defaults(self, guess: Guess) -> Defaults:
        """Slope of the data's outer tenths, no curvature; coefficients within 2 of 0."""
        first = float(np.clip(guess.slope * guess.span / 2, -0.5, 0.5))
        return {name: (first if name == "a_1" else 0.0, -2.0, 2.0) for name in self.starts}

    def curve(self, ends: Limits, *params: float) -> tuple[Curve, Curve]:
        """Polynomial, kept above `FLOOR`; see `Shape.curve`."""
        series = Series([1.0, *params], ends)
        if np.abs(params).sum() > 1 - FLOOR:
            series += max(0.0, FLOOR - _minimum(series)[1])
        return series, series.integ()

    def complaint(self, low: float, high: float, *params: float) -> str:
        """Say where the polynomial would be negative."""
        where, value = _minimum(Series([1.0, *params], (low, high)))
        if value >= FLOOR:
            return ""
        return (
            f"the polynomial is negative at {where:.4g} and was raised; use a lower degree, an Exponential, or `limits`"
        )


@dataclass(repr=False, eq=False)
class BernsteinTerm(Shape):
    r"""Bernstein polynomial :math:`(n+1) \binom{n}{k} t^k (1-t)^{n-k}`, where :math:`t \in [0, 1]` over the range.

    It has no parameters to fit.

    Args:
        k: index, from 0 to the degree.
        degree: n.

    Raises:
        ConfigError: there is no such index.
    """

    k: int
    degree: int

    def __post_init__(self) -> None:
        """Check the index."""
        if not 0 <= self.k <= self.degree:
            raise ConfigError(f"BernsteinTerm: k = {self.k} found, expected 0 to the degree, {self.degree}")

    @property
    def starts(self) -> dict[str, float | None]:
        """No parameters."""
        return {}

    def defaults(self, guess: Guess) -> Defaults:  # noqa: ARG002 (there are none)
        """No parameters."""
        return {}

    def curve(self, ends: Limits, *_params: float) -> tuple[Curve, Curve]:
        """Bernstein polynomial and incomplete beta function; see `Shape.curve`."""
        k, n, span = self.k, self.degree, ends[1] - ends[0]
        height = (n + 1) * comb(n, k) / span

        def density(m: FloatArray) -> FloatArray:
            t = (m - ends[0]) / span
            return height * t**k * (1 - t) ** (n - k)

        return density, lambda m: betainc(k + 1, n - k + 1, np.clip((m - ends[0]) / span, 0, 1))


class Bernstein(Sum):
    """All polynomials of a degree: the sum of `degree` + 1 Bernstein polynomials, each with a yield of its own.

    For a background whose spectator shape depends on the features: whatever the features are, its shape has to be close
    to some polynomial of this degree.  Every further term costs effective events.  The factorization test asks whether
    one more term would improve any bin of a column; what it accepts can still be biased by about the statistical error,
    so vary the degree (`alternatives`) and see what it does to the result.
    """

    def __init__(self, degree: int = 2) -> None:
        """Degree of the polynomials, at least 1.

        Raises:
            ConfigError: the degree is smaller.
        """
        if degree < 1:
            raise ConfigError(f"Bernstein: degree is {degree}, expected at least 1")
        super().__init__([BernsteinTerm(k, degree) for k in range(degree + 1)])

    def __repr__(self) -> str:
        """Show the degree."""
        return f"Bernstein({len(self.shapes) - 1})"


def _minimum(series: Series) -> tuple[float, float]:
    """Position and value of the lowest point of a polynomial on its domain."""
    low, high = series.domain
    roots = series.trim().deriv().roots()
    inside = roots.real[(np.abs(roots.imag) < 1e-9 * (high - low)) & (roots.real > low) & (roots.real < high)]
    points = np.array([low, high, *inside])
    values = series(points)
    lowest = int(np.argmin(values))
    return float(points[lowest]), float(values[lowest])
