r"""Shapes of a spectator variable: densities normalized on a range, with their primitives and start values.

With an unnormalized density :math:`f` and its primitive :math:`F`, on the range :math:`[a, b]`

.. math:: p(m) = f(m) / (F(b) - F(a)), \qquad P(m) = (F(m) - F(a)) / (F(b) - F(a)),

so that no shape is ever normalized numerically.  They are written in numpy and `scipy.special` by measurement: for
10^6 values a Gaussian takes 2.3 ms here, 15 ms compiled by numba-stats, whose import compiles for 4 s at each start
(Crystal Balls and distribution functions take the same time in both).

Constructor arguments are start values; those left out are guessed from the data (`Guess`).  `limits` and `fixed` take
parameter names, which are the argument names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import ClassVar

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import betainc, ndtr

from calorefine.errors import ConfigError, nearest
from calorefine.io.provenance import Configured
from calorefine.stats import FloatArray

Limits = tuple[float, float]
SQRT_2PI = np.sqrt(2 * np.pi)


@dataclass(frozen=True)
class Parameter:
    """Start value, limits and state of one fit parameter."""

    name: str
    start: float
    limits: Limits
    fixed: bool = False


@dataclass(frozen=True)
class Guess:
    """What a look at the histogram tells: position and width of the highest peak, slope of what lies under it."""

    low: float
    high: float
    mean: float
    width: float
    slope: float

    @property
    def span(self) -> float:
        """Length of the range."""
        return self.high - self.low

    @classmethod
    def from_data(cls, m: FloatArray, low: float, high: float) -> Guess:
        """Subtract an exponential through the outer tenths of the range and take the peak's full width at half maximum.

        Args:
            m: (n,) values within [low, high], each of weight 1.
            low: lower end of the range.
            high: upper end.
        """
        counts, edges = np.histogram(m, 100, (low, high))
        counts = np.convolve(counts, np.full(3, 1 / 3), mode="same")
        centers = (edges[1:] + edges[:-1]) / 2
        left, right = counts[1:10].mean() + 0.5, counts[-10:-1].mean() + 0.5
        slope = np.log(right / left) / (centers[-10:-1].mean() - centers[1:10].mean())
        excess = counts - left * np.exp(slope * (centers - centers[1:10].mean()))
        peak = int(np.argmax(excess[1:-1])) + 1
        below = np.flatnonzero(excess < excess[peak] / 2)
        start = below[below < peak].max(initial=-1)
        stop = below[below > peak].min(initial=100)
        width = (stop - start) * (high - low) / 100 / 2.355
        return cls(low, high, float(centers[peak]), float(min(width, (high - low) / 4)), float(slope))


class SpectatorModel(Configured, ABC):
    """What a species looks like in the spectator: one shape, or a sum of several, each with a yield of its own."""

    @abstractmethod
    def terms(self) -> list[Shape]:
        """Return the shapes.

        With one of them the species' shape has to be independent of the control variables; with several, only those of
        the terms have to be, and their shares may vary (COWs, arXiv:2112.04574, section 3.4).
        """


class Shape(SpectatorModel):
    """A density on a range; subclasses give `pdf`, `cdf` and the parameters' defaults."""

    peaked: ClassVar[bool] = False
    """Whether the start values come from the data's one highest peak."""
    probes: tuple[str, ...] = ()
    """Parameters that even a small sample determines; the factorization test lets these vary."""

    def __init__(
        self, starts: Mapping[str, float | None], limits: Mapping[str, Limits] | None, fixed: tuple[str, ...]
    ) -> None:
        """Keep start values, limits and names of fixed parameters.

        Args:
            starts: parameter name to start value; None where it is to be guessed.
            limits: parameter name to (lowest, highest).
            fixed: names of parameters that keep their start values.

        Raises:
            ConfigError: a name is no parameter of this shape, or limits are reversed.
        """
        self.starts, self.limits, self.fixed = dict(starts), dict(limits or {}), tuple(fixed)
        for name in [*self.limits, *self.fixed]:
            if name not in self.starts:
                msg = f"{type(self).__name__} has no parameter '{name}', only {', '.join(self.starts)}"
                raise ConfigError(msg + nearest(name, self.starts))
        for name, (lowest, highest) in self.limits.items():
            if not lowest < highest:
                kind = type(self).__name__
                msg = f"{kind}: limits of '{name}' are [{lowest:g}, {highest:g}], expected lowest < highest"
                raise ConfigError(msg)

    def terms(self) -> list[Shape]:
        """The shape itself."""
        return [self]

    def __repr__(self) -> str:
        """Show the start values given."""
        given = ", ".join(f"{name}={value:g}" for name, value in self.starts.items() if value is not None)
        return f"{type(self).__name__}({given})"

    @abstractmethod
    def defaults(self, guess: Guess) -> dict[str, tuple[float, float, float]]:
        """Start value, lowest and highest value of each parameter."""

    @abstractmethod
    def pdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:
        """Density normalized on [low, high].

        Args:
            m: (n,) values within the range.
            low: lower end of the range.
            high: upper end.
            params: values in the order of `parameters`.

        Returns:
            (n,), per unit of `m`; what it gives outside the range is not meant to be used.
        """

    @abstractmethod
    def cdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:
        """Integral of `pdf` from `low` to `m`: (n,), 0 at `low` and 1 at `high`; arguments as for `pdf`."""

    def complaint(self, low: float, high: float, *params: float) -> str:
        """What is wrong with these fitted values, or an empty string."""
        values = self.pdf(np.linspace(low, high, 101), low, high, *params)
        return "" if np.all(np.isfinite(values)) else "the density is infinite or NaN; give better start values"

    def parameters(self, guess: Guess) -> list[Parameter]:
        """Fit parameters in the order in which `pdf` takes them.

        Raises:
            ConfigError: a start value lies outside its limits.
        """
        parameters = []
        for name, (start, lowest, highest) in self.defaults(guess).items():
            given = self.starts[name]
            limits = self.limits.get(name, (lowest, highest))
            value = float(np.clip(start, *limits)) if given is None else float(given)
            if not limits[0] <= value <= limits[1]:
                msg = (
                    f"{type(self).__name__}: start value {name} = {value:g} is outside its limits "
                    f"[{limits[0]:g}, {limits[1]:g}]; change it or give `limits: {{{name}: [lowest, highest]}}`"
                )
                raise ConfigError(msg)
            parameters.append(Parameter(name, value, limits, name in self.fixed))
        return parameters


class Peak(Shape):
    """A shape defined on the whole axis by its `density` and the integral of that, `primitive`."""

    peaked = True
    probes = ("mean", "width")

    def defaults(self, guess: Guess) -> dict[str, tuple[float, float, float]]:
        """Mean within the range, width between 1/2000 of it and all of it."""
        return {"mean": (guess.mean, guess.low, guess.high), "width": (guess.width, guess.span / 2000, guess.span)}

    @abstractmethod
    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Density at `m` (n,), not normalized."""

    @abstractmethod
    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Integral of `density` from minus infinity to `m` (n,)."""

    def pdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:
        """Density normalized on [low, high]; see `Shape.pdf`."""
        ends = self.primitive(np.array([low, high]), *params)
        return self.density(np.asarray(m, np.float64), *params) / float(ends[1] - ends[0])

    def cdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:
        """Integral of `pdf` from `low`; see `Shape.cdf`."""
        ends = self.primitive(np.array([low, high]), *params)
        return _share(self.primitive(np.asarray(m, np.float64), *params), ends[0], ends[1])


class Gaussian(Peak):
    """Gaussian: `mean`, `width` (standard deviation before the range cuts it)."""

    def __init__(
        self,
        mean: float | None = None,
        width: float | None = None,
        *,
        limits: dict[str, Limits] | None = None,
        fixed: tuple[str, ...] = (),
    ) -> None:
        """Start values in the spectator's unit; see `Shape`."""
        super().__init__({"mean": mean, "width": width}, limits, fixed)

    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Gaussian of unit integral on the whole axis."""
        mean, width = params
        return _gauss(m, mean, width)

    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Gaussian distribution function."""
        mean, width = params
        primitive: FloatArray = ndtr((m - mean) / width)
        return primitive


class DoubleGaussian(Peak):
    """Two Gaussians: a share `fraction` at `mean` of `width`, the rest at `mean + offset` of `width * width_ratio`.

    The ratio is limited to above 1, so that the two can't swap their labels.  ``fixed: [offset]`` makes them share the
    mean.
    """

    def __init__(
        self,
        mean: float | None = None,
        width: float | None = None,
        width_ratio: float | None = None,
        fraction: float | None = None,
        offset: float | None = None,
        *,
        limits: dict[str, Limits] | None = None,
        fixed: tuple[str, ...] = (),
    ) -> None:
        """Start values; mean, width and offset in the spectator's unit; see `Shape`."""
        starts = {"mean": mean, "width": width, "width_ratio": width_ratio, "fraction": fraction, "offset": offset}
        super().__init__(starts, limits, fixed)

    def defaults(self, guess: Guess) -> dict[str, tuple[float, float, float]]:
        """A core somewhat narrower than the peak, and twice that width below it."""
        peak = super().defaults(guess)
        width = self.starts["width"] or 0.85 * guess.width
        peak["width"] = (width, *peak["width"][1:])
        second = {
            "width_ratio": (2.0, 1.1, 10.0),
            "fraction": (0.7, 0.01, 0.99),
            "offset": (0.0, -4 * width, 4 * width),
        }
        return peak | second

    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Sum of two Gaussians, of unit integral on the whole axis."""
        mean, width, ratio, part, offset = params
        return part * _gauss(m, mean, width) + (1 - part) * _gauss(m, mean + offset, width * ratio)

    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Sum of two Gaussian distribution functions."""
        mean, width, ratio, part, offset = params
        first, second = ndtr((m - mean) / width), ndtr((m - mean - offset) / (width * ratio))
        primitive: FloatArray = part * first + (1 - part) * second
        return primitive


class CrystalBall(Peak):
    r"""Gaussian with a power law on the left: :math:`(1 + \alpha(-\alpha - z)/n)^{-n}` below :math:`z = -\alpha`."""

    def __init__(
        self,
        mean: float | None = None,
        width: float | None = None,
        alpha: float | None = None,
        n: float | None = None,
        *,
        limits: dict[str, Limits] | None = None,
        fixed: tuple[str, ...] = (),
    ) -> None:
        """Start values; mean and width in the spectator's unit, alpha in widths; see `Shape`."""
        super().__init__({"mean": mean, "width": width, "alpha": alpha, "n": n}, limits, fixed)

    def defaults(self, guess: Guess) -> dict[str, tuple[float, float, float]]:
        """A tail from 1.5 widths on."""
        return super().defaults(guess) | {"alpha": (1.5, 0.2, 5.0), "n": (3.0, 1.05, 50.0)}

    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Density of height 1 at the mean."""
        mean, width, alpha, n = params
        return _crystal_ball((m - mean) / width, (alpha, n), None)

    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Integral from minus infinity."""
        mean, width, alpha, n = params
        return width * _crystal_ball_primitive((m - mean) / width, (alpha, n), None)


class DoubleSidedCrystalBall(Peak):
    """Gaussian with a power law on either side (`CrystalBall` for the formula)."""

    def __init__(
        self,
        mean: float | None = None,
        width: float | None = None,
        alpha_left: float | None = None,
        n_left: float | None = None,
        alpha_right: float | None = None,
        n_right: float | None = None,
        *,
        limits: dict[str, Limits] | None = None,
        fixed: tuple[str, ...] = (),
    ) -> None:
        """Start values; mean and width in the spectator's unit, alphas in widths; see `Shape`."""
        left, right = {"alpha_left": alpha_left, "n_left": n_left}, {"alpha_right": alpha_right, "n_right": n_right}
        super().__init__({"mean": mean, "width": width} | left | right, limits, fixed)

    def defaults(self, guess: Guess) -> dict[str, tuple[float, float, float]]:
        """Tails from 1.5 widths on."""
        tails = {f"{name}_{side}": value for side in ("left", "right") for name, value in _TAIL.items()}
        return super().defaults(guess) | tails

    def density(self, m: FloatArray, *params: float) -> FloatArray:
        """Density of height 1 at the mean."""
        mean, width, *tails = params
        return _crystal_ball((m - mean) / width, tuple(tails[:2]), tuple(tails[2:]))

    def primitive(self, m: FloatArray, *params: float) -> FloatArray:
        """Integral from minus infinity."""
        mean, width, *tails = params
        return width * _crystal_ball_primitive((m - mean) / width, tuple(tails[:2]), tuple(tails[2:]))


class Exponential(Shape):
    """Exponential ``exp(slope * m)``, falling for a negative slope (as in RooFit), rising for a positive one."""

    probes = ("slope",)

    def __init__(
        self,
        slope: float | None = None,
        *,
        limits: dict[str, Limits] | None = None,
        fixed: tuple[str, ...] = (),
    ) -> None:
        """Start value in inverse units of the spectator; see `Shape`."""
        super().__init__({"slope": slope}, limits, fixed)

    def defaults(self, guess: Guess) -> dict[str, tuple[float, float, float]]:
        """Up to 100 e-folds in the range, either way."""
        return {"slope": (guess.slope, -100 / guess.span, 100 / guess.span)}

    def pdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:
        """Density normalized on [low, high]; see `Shape.pdf`."""
        end, integral = self._from_higher_end(np.array([low, high]), low, high, *params)
        density: FloatArray = np.exp(params[0] * (np.asarray(m, np.float64) - end)) / (integral[1] - integral[0])
        return density

    def cdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:
        """Integral of `pdf` from `low`; see `Shape.cdf`."""
        integral = self._from_higher_end(np.append(m, [low, high]), low, high, *params)[1]
        return _share(integral[:-2], integral[-2], integral[-1])

    def _from_higher_end(self, m: FloatArray, low: float, high: float, slope: float) -> tuple[float, FloatArray]:
        """End where the density is higher (set to 1 there, against overflow), and the integral from it to `m`."""
        end = high if slope > 0 else low
        flat = abs(slope) * (high - low) < 1e-12
        return end, m - end if flat else np.expm1(slope * (m - end)) / slope


class Chebyshev(Shape):
    r"""Polynomial :math:`1 + \sum_{k=1}^n a_k T_k(t)`, with the range mapped to :math:`t \in [-1, 1]`.

    Where coefficients make it negative somewhere, the constant is raised until it is not, so that a fit never meets a
    negative density; `complaint` (and by it the fit) says so if that holds for the result.
    """

    FLOOR: ClassVar[float] = 1e-6

    def __init__(
        self,
        degree: int = 1,
        coefficients: list[float] | None = None,
        *,
        limits: dict[str, Limits] | None = None,
        fixed: tuple[str, ...] = (),
    ) -> None:
        """Degree, start values of `a_1` to `a_n` (0 if left out); see `Shape`.

        Raises:
            ConfigError: the degree is not positive, or there are not as many coefficients.
        """
        if degree < 1:
            msg = f"Chebyshev: degree is {degree}, expected at least 1"
            raise ConfigError(msg)
        if coefficients is not None and len(coefficients) != degree:
            msg = (
                f"Chebyshev: {len(coefficients)} coefficients given, expected the degree, {degree} (the constant is 1)"
            )
            raise ConfigError(msg)
        self.degree = degree
        self.probes = tuple(f"a_{k}" for k in range(1, min(degree, 2) + 1))
        starts = {f"a_{k}": coefficients[k - 1] if coefficients else None for k in range(1, degree + 1)}
        super().__init__(starts, limits, fixed)

    def defaults(self, guess: Guess) -> dict[str, tuple[float, float, float]]:
        """Slope of the data's outer tenths, no curvature; coefficients within 2 of 0."""
        first = float(np.clip(guess.slope * guess.span / 2, -0.5, 0.5))
        return {f"a_{k}": (first if k == 1 else 0.0, -2.0, 2.0) for k in range(1, self.degree + 1)}

    def pdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:
        """Polynomial, kept above `FLOOR` and normalized on [low, high]; see `Shape.pdf`."""
        series = self._positive(params)
        ends = chebyshev.chebval([-1.0, 1.0], chebyshev.chebint(series))
        density = np.asarray(chebyshev.chebval(_to_unit(m, low, high), series), np.float64)
        return density * 2 / (high - low) / float(ends[1] - ends[0])

    def cdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:
        """Integral of `pdf` from `low`; see `Shape.cdf`."""
        integral = chebyshev.chebint(self._positive(params))
        ends = chebyshev.chebval([-1.0, 1.0], integral)
        primitive = np.asarray(chebyshev.chebval(_to_unit(m, low, high), integral), np.float64)
        return _share(primitive, ends[0], ends[1])

    def complaint(self, low: float, high: float, *params: float) -> str:
        """Say where the polynomial would be negative."""
        where, value = _minimum(np.array([1.0, *params]))
        if value >= self.FLOOR:
            return ""
        m = low + (where + 1) / 2 * (high - low)
        return f"the polynomial is negative at {m:.4g} and was raised; use a lower degree, an Exponential, or `limits`"

    def _positive(self, coefficients: tuple[float, ...]) -> FloatArray:
        series = np.array([1.0, *coefficients])
        if np.abs(series[1:]).sum() > 1 - self.FLOOR:
            series[0] += max(0.0, self.FLOOR - _minimum(series)[1])
        return series


class BernsteinTerm(Shape):
    r"""Bernstein polynomial :math:`(n+1) \binom{n}{k} t^k (1-t)^{n-k}`, where :math:`t \in [0, 1]` over the range."""

    def __init__(self, k: int, degree: int) -> None:
        """Index k of 0 to `degree`; there are no parameters to fit."""
        if not 0 <= k <= degree:
            raise ConfigError(f"BernsteinTerm: k = {k} found, expected 0 to the degree, {degree}")
        self.k, self.degree = k, degree
        super().__init__({}, None, ())

    def defaults(self, guess: Guess) -> dict[str, tuple[float, float, float]]:  # noqa: ARG002 (there are none)
        """No parameters."""
        return {}

    def pdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:  # noqa: ARG002
        """Density normalized on [low, high]; see `Shape.pdf`."""
        t = (np.asarray(m, np.float64) - low) / (high - low)
        height = (self.degree + 1) * comb(self.degree, self.k) / (high - low)
        density: FloatArray = height * t**self.k * (1 - t) ** (self.degree - self.k)
        return density

    def cdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:  # noqa: ARG002
        """Integral of `pdf` from `low`; see `Shape.cdf`."""
        t = np.clip((np.asarray(m, np.float64) - low) / (high - low), 0, 1)
        integral: FloatArray = betainc(self.k + 1, self.degree - self.k + 1, t)
        return integral


class Sum(SpectatorModel):
    """Several shapes, each with a yield of its own, which may be negative; the sum may not."""

    def __init__(self, shapes: list[Shape]) -> None:
        """Take at least two shapes.

        Raises:
            ConfigError: there are fewer.
        """
        if len(shapes) < 2:
            raise ConfigError(f"Sum: {len(shapes)} shapes found, expected at least two")
        self.shapes = list(shapes)

    def terms(self) -> list[Shape]:
        """The shapes."""
        return self.shapes

    def __repr__(self) -> str:
        """Show the terms."""
        return f"Sum({self.shapes})"


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


_TAIL = {"alpha": (1.5, 0.2, 5.0), "n": (3.0, 1.05, 50.0)}


def _share(primitive: FloatArray, start: float, stop: float) -> FloatArray:
    """Integral up to each point (n,), relative to the one from `start` to `stop`."""
    return (primitive - start) / (stop - start)


def _gauss(m: FloatArray, mean: float, width: float) -> FloatArray:
    z = (m - mean) * (1 / width)
    height = 1 / (SQRT_2PI * width)
    density: FloatArray = np.exp(z * z * -0.5) * height
    return density


def _to_unit(m: FloatArray, low: float, high: float) -> FloatArray:
    return (2 * m - (low + high)) / (high - low)


def _minimum(series: FloatArray) -> tuple[float, float]:
    """Position and value of the lowest point of a Chebyshev series on [-1, 1]."""
    derivative = chebyshev.chebder(np.trim_zeros(series, "b"))
    roots = chebyshev.chebroots(derivative) if len(derivative) > 1 else np.array([])
    inside = roots.real[(np.abs(roots.imag) < 1e-9) & (np.abs(roots.real) < 1)]
    points = np.array([-1.0, 1.0, *inside])
    values = chebyshev.chebval(points, series)
    lowest = int(np.argmin(values))
    return float(points[lowest]), float(values[lowest])


Tail = tuple[float, ...]


def _crystal_ball(z: FloatArray, left: Tail, right: Tail | None) -> FloatArray:
    z = np.atleast_1d(z)
    result: FloatArray = np.exp(z * z * -0.5)
    for tail, distance in ((left, -z), (right, z)):
        if tail is not None:
            outside = distance > tail[0]
            result[outside] = _tail(distance[outside], *tail)
    return result


def _crystal_ball_primitive(z: FloatArray, left: Tail, right: Tail | None) -> FloatArray:
    z = np.atleast_1d(z)
    start = _tail_integral(left[0], *left) - SQRT_2PI * ndtr(-left[0])
    result: FloatArray = start + SQRT_2PI * ndtr(z)
    below = z < -left[0]
    result[below] = _tail_integral(-z[below], *left)
    if right is not None:
        above = z > right[0]
        total = start + SQRT_2PI * ndtr(right[0]) + _tail_integral(right[0], *right)
        result[above] = total - _tail_integral(z[above], *right)
    return result


def _tail(distance: FloatArray, alpha: float, n: float) -> FloatArray:
    density: FloatArray = np.exp(-0.5 * alpha**2) * (1 + alpha / n * (distance - alpha)) ** -n
    return density


def _tail_integral(distance: FloatArray | float, alpha: float, n: float) -> FloatArray:
    """Integral of `_tail` from `distance` to infinity."""
    scale = np.exp(-0.5 * alpha**2) * n / alpha / (n - 1)
    integral: FloatArray = scale * (1 + alpha / n * (distance - alpha)) ** (1 - n)
    return integral


@dataclass(frozen=True)
class Mixture:
    r"""Extended sum of species :math:`\sum_k N_k \, p_k(m; \theta_k)` on a range.

    Parameters are ordered as all yields, then the parameters of the first species, and so on; they are named
    ``n_<species>`` and ``<species>.<parameter>``.
    """

    shapes: Mapping[str, Shape]
    low: float
    high: float

    def parameters(self, guess: Guess) -> list[Parameter]:
        """Start values, limits and state of the shape parameters (not the yields), with full names.

        Raises:
            ConfigError: more than one peak would start at the same guess, or a shape's own complaint.
        """
        guessed = [name for name, shape in self.shapes.items() if shape.peaked and shape.starts["mean"] is None]
        if len(guessed) > 1:
            msg = f"species {', '.join(guessed)} are all peaks without a `mean`; give it for all of them but one"
            raise ConfigError(msg)
        return [
            Parameter(f"{name}.{p.name}", p.start, p.limits, p.fixed)
            for name, shape in self.shapes.items()
            for p in shape.parameters(guess)
        ]

    def split(self, values: tuple[float, ...]) -> tuple[FloatArray, list[tuple[float, ...]]]:
        """Yields (K,), and the parameter values of each species."""
        yields, rest, groups = np.array(values[: len(self.shapes)]), tuple(values[len(self.shapes) :]), []
        for shape in self.shapes.values():
            groups.append(rest[: len(shape.starts)])
            rest = rest[len(shape.starts) :]
        return yields, groups

    def pdfs(self, m: FloatArray, values: tuple[float, ...]) -> FloatArray:
        """Normalized density of each species at `m` (n,): (K, n)."""
        groups = self.split(values)[1]
        shapes = zip(self.shapes.values(), groups, strict=True)
        return np.stack([shape.pdf(m, self.low, self.high, *group) for shape, group in shapes])

    def fractions(self, edges: FloatArray, values: tuple[float, ...]) -> FloatArray:
        """Share of each species in each bin: (K, len(edges) - 1)."""
        groups = self.split(values)[1]
        shapes = zip(self.shapes.values(), groups, strict=True)
        return np.stack([np.diff(shape.cdf(edges, self.low, self.high, *group)) for shape, group in shapes])

    def total(self, m: FloatArray, values: tuple[float, ...]) -> FloatArray:
        """Expected number of events per unit of the spectator at `m` (n,)."""
        return self.split(values)[0] @ self.pdfs(m, values)

    def scaled_log_pdf(self, m: FloatArray, *values: float) -> tuple[float, FloatArray]:
        """Expected number of events, and log of its density at `m`: what `iminuit.cost.ExtendedUnbinnedNLL` takes.

        With the logarithm taken here that cost is four times as fast: it sorts and compiles otherwise.
        """
        return sum(values[: len(self.shapes)]), np.log(np.maximum(self.total(m, values), 1e-300))

    def scaled_cdf(self, edges: FloatArray, *values: float) -> FloatArray:
        """Expected number of events below each edge: what `iminuit.cost.ExtendedBinnedNLL` takes."""
        yields, groups = self.split(values)
        shapes = zip(yields, self.shapes.values(), groups, strict=True)
        species = [n * shape.cdf(edges, self.low, self.high, *group) for n, shape, group in shapes]
        expected: FloatArray = np.sum(species, axis=0)
        return expected

    def yields_only(self, m: FloatArray, starts: tuple[float, ...], *, steps: int = 30) -> FloatArray:
        """Yields (K,) for given shapes by expectation maximization on a histogram: start values that can't diverge."""
        counts, edges = np.histogram(m, 500, (self.low, self.high))
        yields = np.full(len(self.shapes), len(m) / len(self.shapes))
        fractions = self.fractions(edges, (*yields, *starts))
        for _ in range(steps):
            yields = yields * (fractions @ (counts / np.maximum(yields @ fractions, 1e-12)))
        return yields
