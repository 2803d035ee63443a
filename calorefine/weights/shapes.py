r"""Shapes of a spectator variable: densities normalized on a range, with their primitives and start values.

With an unnormalized density :math:`f` and its primitive :math:`F`, on the range :math:`[a, b]`

.. math:: p(m) = f(m) / (F(b) - F(a)), \qquad P(m) = (F(m) - F(a)) / (F(b) - F(a)),

so that no shape is ever normalized numerically.  They are written in numpy and `scipy.special` by measurement: for
10^6 values a Gaussian takes 2.3 ms here, 15 ms compiled by numba-stats, whose import compiles for 4 s at each start
(Crystal Balls and distribution functions take the same time in both).

Constructor arguments are start values; those left out are guessed from the data (`Guess`).  `limits`, `fixed` and
`constraints` take parameter names, which are the argument names.  Peaks are in `peaks`, polynomials in
`polynomials`, sums of species in `mixture`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np

from calorefine.errors import ConfigError, nearest
from calorefine.io.provenance import Configured
from calorefine.stats import FloatArray

Limits = tuple[float, float]
Curve = Callable[[FloatArray], FloatArray]
Defaults = dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Parameter:
    """Start value, limits and state of one fit parameter."""

    name: str
    start: float
    limits: Limits
    fixed: bool = False
    constraint: tuple[float, float] | None = None


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


@dataclass(repr=False, eq=False)
class Shape(SpectatorModel):
    """A density on a range; subclasses give its `curve` and the parameters' defaults.

    Args:
        limits: parameter name to (lowest, highest).
        fixed: names of parameters that keep their start values.
        constraints: parameter name to (value, standard deviation) known from elsewhere, simulation say: a Gaussian
            factor of the likelihood.  Each replica draws its own value.

    Raises:
        ConfigError: a name is no parameter of this shape, limits are reversed, or a standard deviation isn't positive.
    """

    peaked: ClassVar[bool] = False
    """Whether the start values come from the data's one highest peak."""

    limits: dict[str, Limits] | None = field(default=None, kw_only=True)
    fixed: Sequence[str] = field(default_factory=list, kw_only=True)
    constraints: dict[str, tuple[float, float]] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the names and the limits."""
        kind, limits, self.fixed = type(self).__name__, self.limits or {}, tuple(self.fixed)
        for name in [*limits, *self.fixed, *(self.constraints or {})]:
            if name not in self.starts:
                known = f"only {', '.join(self.starts)}{nearest(name, self.starts)}"
                raise ConfigError(f"{kind} has no parameter '{name}', {known}")
        for name, (lowest, highest) in limits.items():
            if not lowest < highest:
                ends = f"[{lowest:g}, {highest:g}]"
                raise ConfigError(f"{kind}: limits of '{name}' are {ends}, expected lowest < highest")
        for name, (_, error) in (self.constraints or {}).items():
            if not error > 0:
                raise ConfigError(f"{kind}: constraint of '{name}' has error {error:g}, expected a positive one")

    @property
    def starts(self) -> dict[str, float | None]:
        """Start value of each parameter; None where it is to be guessed."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.kw_only}

    @property
    def probes(self) -> tuple[str, ...]:
        """The first two: what even a small sample determines, and what the factorization test lets vary."""
        return tuple(self.starts)[:2]

    def terms(self) -> list[Shape]:
        """The shape itself."""
        return [self]

    def __repr__(self) -> str:
        """Show the start values given."""
        given = ", ".join(f"{name}={value:g}" for name, value in self.starts.items() if value is not None)
        return f"{type(self).__name__}({given})"

    @abstractmethod
    def defaults(self, guess: Guess) -> Defaults:
        """Start value, lowest and highest value of each parameter."""

    @abstractmethod
    def curve(self, ends: Limits, *params: float) -> tuple[Curve, Curve]:
        """Density, not normalized, and its primitive, up to a constant, as functions of m (n,) within these ends."""

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
        density, primitive = self.curve((low, high), *params)
        start, stop = primitive(np.array([low, high]))
        return density(np.asarray(m, np.float64)) / float(stop - start)

    def cdf(self, m: FloatArray, low: float, high: float, *params: float) -> FloatArray:
        """Integral of `pdf` from `low` to `m`: (n,), 0 at `low` and 1 at `high`; arguments as for `pdf`."""
        primitive = self.curve((low, high), *params)[1]
        start, stop = primitive(np.array([low, high]))
        return np.asarray((primitive(np.asarray(m, np.float64)) - start) / (stop - start))

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
        for name, (start, *default) in self.defaults(guess).items():
            given, (lowest, highest) = self.starts[name], (self.limits or {}).get(name, default)
            known = (self.constraints or {}).get(name)
            given = known[0] if given is None and known else given
            value = float(np.clip(start, lowest, highest)) if given is None else float(given)
            if not lowest <= value <= highest:
                raise ConfigError(
                    f"{type(self).__name__}: start value {name} = {value:g} is outside its limits "
                    f"[{lowest:g}, {highest:g}]; change it or give `limits: {{{name}: [lowest, highest]}}`"
                )
            parameters.append(Parameter(name, value, (lowest, highest), name in self.fixed, known))
        return parameters


@dataclass(repr=False, eq=False)
class Exponential(Shape):
    """Exponential ``exp(slope * m)``, falling for a negative slope (as in RooFit), rising for a positive one.

    The slope is in inverse units of the spectator; see `Shape`.
    """

    slope: float | None = None

    def defaults(self, guess: Guess) -> Defaults:
        """Up to 100 e-folds in the range, either way."""
        return {"slope": (guess.slope, -100 / guess.span, 100 / guess.span)}

    def curve(self, ends: Limits, *params: float) -> tuple[Curve, Curve]:
        """Relative to the higher end, against overflow; see `Shape.curve`."""
        slope, end = params[0], ends[params[0] > 0]
        integral = (lambda m: np.expm1(slope * (m - end)) / slope) if slope else (lambda m: m - end)
        return lambda m: np.exp(slope * (m - end)), integral


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
