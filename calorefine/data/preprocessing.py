"""Invertible preprocessing of columns, fitted with weights, saved in the checkpoint.

Every column is mapped by a monotone piecewise linear function x(z) given by its values at K equidistant points z_k and
its slopes beyond the last of them.  A *quantile* column takes x(z_k) as the weighted quantile at the normal
distribution's level Phi(z_k), so that z is close to standard normal; a *standard* column takes mean + z * width, and is
exactly linear.  One form for both keeps the inverse, the part that runs for every generated event, to one gather.

Features are then whitened: the symmetric square root of their weighted covariance takes out linear correlations, so
that the network starts from a correlated normal distribution and the critic sees all directions at the same scale.

A *bounded* quantile column approaches its bounds beyond the last points like an exponential, so that no generated value
lies outside.  An *atom*, a value with a probability of its own (an exact zero, a saturated value), takes an interval of
z, where its knots are equal; an *integer* column is spread by half a unit to either side and rounded on the way back.
Either makes x(z) constant on intervals of z; `dequantize` spreads events over them, `intervals` tells them, and the z
of an atom is the middle of its own.

Weights matter here: the quantiles of an impure mixture stretch the tails of the signal.  With signed weights the levels
are those of `calorefine.stats.quantile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import nn

from calorefine import stats
from calorefine.ddp import Ranks
from calorefine.errors import ConfigError, ValueRangeError

Kind = Literal["quantile", "standard", "integer", "identity"]
N_KNOTS = 121
Z_MAX = 3.0
Z_CLIP = 8.0
MIN_VARIANCE = 0.01
LEAST_ATOM = 0.005
LEAST_REPEATED = 2.5  # effective events: one that is in the sample twice is no atom
BEYOND = 1.0
CHUNK = 100_000
HALF_ULP = 2.0**-25  # relative; float32 can't tell values that near to a bound from it


class Preprocessing(nn.Module):
    """Column-wise map between physical units and network units.

    Args:
        knots: (d, K) values of the columns at the points z_k, nondecreasing.
        slopes: (d, 2) slopes dx/dz below the first and above the last point, positive.
        mixing: (d + 1, d) symmetric square root of the covariance of z, and below it the mean of z: z = u mixing + mean
            for whitened u.
        bounds: (d, 2) lowest and highest possible value, infinite if there is none.
        integer: (d,) whether values are integers.
    """

    knots: torch.Tensor
    slopes: torch.Tensor
    mixing: torch.Tensor
    bounds: torch.Tensor
    integer: torch.Tensor
    unmixing: torch.Tensor
    parts: ClassVar[tuple[str, ...]] = ("knots", "slopes", "mixing", "bounds", "integer")

    def __init__(
        self,
        knots: torch.Tensor,
        slopes: torch.Tensor,
        mixing: torch.Tensor,
        bounds: torch.Tensor | None = None,
        integer: torch.Tensor | None = None,
    ) -> None:
        """Store the map as buffers, which go to the checkpoint with the network."""
        super().__init__()
        unbounded = torch.tensor([-torch.inf, torch.inf]).repeat(len(knots), 1)
        self.register_buffer("bounds", (unbounded if bounds is None else bounds).to(torch.float32))
        self.register_buffer("integer", torch.zeros(len(knots), dtype=torch.bool) if integer is None else integer)
        self.is_bounded, self.is_integer = bool(self.bounds.isfinite().any()), bool(self.integer.any())
        self.register_buffer("knots", knots.to(torch.float32))
        self.register_buffer("slopes", slopes.to(torch.float32))
        self.register_buffer("mixing", mixing.to(torch.float32))
        self.register_buffer("unmixing", torch.linalg.inv(mixing[:-1].double()).to(torch.float32), persistent=False)

    @classmethod
    def fit(
        cls,
        values: NDArray[Any],
        weight: NDArray[np.float64],
        kinds: list[Kind],
        names: list[str],
        *,
        whiten: bool = False,
        bounds: Sequence[Bounds | None] | None = None,
    ) -> Preprocessing:
        """Fit one map for each column, and on request the linear map that makes them uncorrelated.

        Args:
            values: (n, d) finite values.
            weight: (n,) weights, any sign, positive sum.
            kinds: d kinds of map.
            names: d names, for messages.
            whiten: remove the weighted correlations of the columns.
            bounds: d pairs of lowest and highest possible value, each or both None for no bound.

        Raises:
            ValueRangeError: a column takes a single value, values lie outside the bounds, or are no integers where they
                should be.
            WeightError: the weights don't have a positive sum.
        """
        knots = np.empty((len(kinds), N_KNOTS))
        slopes = np.empty((len(kinds), 2))
        limits = np.array([_limits(given) for given in bounds or [None] * len(kinds)]).reshape(-1, 2)
        for j, (kind, name) in enumerate(zip(kinds, names, strict=True)):
            column = np.asarray(values[:, j], np.float64)
            _check_column(column, kind, limits[j], name)
            if kind == "integer":
                limits[j] += (-0.5, 0.5)
            knots[j], slopes[j] = _fit_column(column, weight, kind, limits[j], name)
            if kind == "quantile":
                limits[j] = _with_ends(limits[j], knots[j], column)
        integer = torch.tensor([kind == "integer" for kind in kinds], dtype=torch.bool)
        columns = (torch.from_numpy(knots), torch.from_numpy(slopes))
        mapped = cls(*columns, torch.eye(len(kinds) + 1, len(kinds)), torch.from_numpy(limits), integer)
        if not whiten:
            return mapped
        parts = np.array_split(values, 1 + len(values) // CHUNK)
        z = np.concatenate([mapped._edges(torch.from_numpy(part)).numpy() for part in parts])
        return cls(*columns, torch.from_numpy(_mixing(z, weight)), torch.from_numpy(limits), integer)

    @cached_property
    def atoms(self) -> list[torch.Tensor]:
        """Of each column the values (k, 3) that have an interval of z, with its ends; none for an integer column.

        That of a bound reaches `BEYOND` the last point: there is nothing else beyond.
        """
        points = torch.linspace(-Z_MAX, Z_MAX, self.knots.shape[1], dtype=torch.float64, device=self.knots.device)
        found = []
        for knots, integer, bounds in zip(self.knots.double(), self.integer, self.bounds.double(), strict=True):
            value, inverse = torch.unique_consecutive(knots, return_inverse=True)
            counts = torch.bincount(inverse)
            first = torch.cumsum(counts, 0) - counts
            run = torch.stack([value, points[first], points[first + counts - 1]], dim=1)
            run[0, 1] -= BEYOND * (value[0] == bounds[0])
            run[-1, 2] += BEYOND * (value[-1] == bounds[1])
            found.append(run[counts > 1] if not integer else run[:0])
        return found

    @cached_property
    def discrete(self) -> torch.Tensor:
        """Whether each column (d,) has atoms or is integer."""
        return self.integer | torch.tensor([len(atoms) > 0 for atoms in self.atoms], device=self.integer.device)

    @cached_property
    def is_discrete(self) -> bool:
        """Whether any column has atoms or is integer."""
        return bool(self.discrete.any())

    @property
    def n_columns(self) -> int:
        """Number of columns d."""
        return len(self.knots)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map physical values (n, d) to network values (n, d), float32."""
        if self.n_columns == 0:
            return x.to(torch.float32)
        return self.whiten(self.to_normal(x).clamp(-Z_CLIP, Z_CLIP).float()).clamp(-Z_CLIP, Z_CLIP)

    def to_normal(self, x: torch.Tensor) -> torch.Tensor:
        """Map physical values (n, d) to z (n, d), float64, before whitening and without a limit."""
        columns = [self._ends(x[:, j].contiguous().double(), j).mean(dim=0) for j in range(self.n_columns)]
        return torch.stack(columns, dim=1)

    def whiten(self, z: torch.Tensor) -> torch.Tensor:
        """Take out mean and correlations: z (n, d) to network values (n, d)."""
        return (z - self.mixing[-1].to(z.dtype)) @ self.unmixing.to(z.dtype)

    def unwhiten(self, u: torch.Tensor) -> torch.Tensor:
        """Put mean and correlations back in: network values (n, d) to z (n, d)."""
        return u @ self.mixing[:-1] + self.mixing[-1]

    def intervals(self, x: torch.Tensor) -> torch.Tensor:
        """Lower and upper end (2, n, d) of the z that are mapped to x (n, d), float64; equal where x is continuous.

        They are infinite for what is impossible: beyond a bound, or no integer in an integer column.
        """
        columns = self._off_bounds(x).T.contiguous()
        return torch.stack([self._interval(column, j) for j, column in enumerate(columns)], dim=2)

    def dequantize(
        self,
        u: torch.Tensor,
        noise: torch.Generator,
        ranks: Ranks = Ranks(),  # noqa: B008 (immutable)
    ) -> torch.Tensor:
        """Spread network values (n, d) of atoms and integers uniformly over the z that belong to them."""
        if not self.is_discrete:
            return u
        x = self._off_bounds(self.inverse(u))
        low, high = x.new_zeros((2, *x.shape))
        for j in range(self.n_columns):
            if self.integer[j] or len(self.atoms[j]):
                low[:, j], high[:, j] = self._interval(x[:, j].contiguous(), j)
        z = self.unwhiten(u)
        uniform = ranks.own(torch.rand(ranks.whole(low.shape), generator=noise, dtype=low.dtype, device=noise.device))
        spread = low + (high - low) * uniform.to(low.device)
        return self.whiten(torch.where(high > low, spread.to(u.dtype), z)).clamp(-Z_CLIP, Z_CLIP)

    def log_slope(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Log of dz/dx (n, d) at x (n, d) with these `intervals` (2, n, d), float64; 0 for atoms and integers."""
        columns = self._off_bounds(x).T.contiguous()
        slope = torch.stack([self._slope(column, j) for j, column in enumerate(columns)], dim=1)
        return torch.where(ends[1] > ends[0], 0.0, -slope.log())

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        """Map network values (n, d) to physical values (n, d), float32."""
        if self.n_columns == 0:
            return z
        z = self.unwhiten(z)
        last = self.knots.shape[1] - 1
        inside = z.clamp(-Z_MAX, Z_MAX)
        position = (inside + Z_MAX) * (last / (2 * Z_MAX))
        index = position.to(torch.int32).clamp(max=last - 1)
        flat = (index + torch.arange(self.n_columns, dtype=torch.int32, device=z.device) * (last + 1)).flatten()
        low = self.knots.flatten().index_select(0, flat).view_as(z)
        step = self.knots.diff(dim=1, append=self.knots[:, -1:]).flatten().index_select(0, flat).view_as(z)
        beyond = z - inside
        x = low + (position - index) * step + self._beyond(beyond)
        return torch.where(self.integer, x.round() + 0.0, x) if self.is_integer else x  # + 0: no negative zero

    def _beyond(self, beyond: torch.Tensor) -> torch.Tensor:
        """Distance (n, d) in x of points beyond the last knots by `beyond` in z: linear, or towards a bound."""
        distance = torch.where(beyond < 0, self.slopes[:, 0], self.slopes[:, 1]) * beyond
        if not self.is_bounded:
            return distance
        room = torch.where(beyond < 0, self.bounds[:, 0] - self.knots[:, 0], self.bounds[:, 1] - self.knots[:, -1])
        bent = room * -torch.expm1(-distance / room)
        return torch.where(room.isfinite(), torch.where(room == 0, 0.0, bent), distance)

    def _edges(self, x: torch.Tensor) -> torch.Tensor:
        """Values z (n, d), float32, for the whitening: with an atom at the upper end of its interval.

        From its middle the width would be larger, and the interval of an atom at a bound end within the noise.
        """
        columns = [self._to_network(x[:, j].contiguous().double(), j) for j in range(self.n_columns)]
        return torch.stack(columns, dim=1).clamp(-Z_CLIP, Z_CLIP).float()

    def _off_bounds(self, x: torch.Tensor) -> torch.Tensor:
        """Values (n, d), float64: those at a bound, which is at infinite z, as far inside as float32 can't tell."""
        x = x.double()
        if not self.is_bounded:
            return x
        bounds = self.bounds.double().T
        room = (bounds - self.knots[:, [0, -1]].double().T).abs()
        open_end = room.isfinite() & (room > 0) & ~self.integer
        least = torch.where(open_end, HALF_ULP * torch.maximum(room, bounds.abs()), 0.0)
        inside = x.clamp(bounds[0] + least[0], bounds[1] - least[1])
        return torch.where((x < bounds[0]) | (x > bounds[1]), x, inside)

    def _cells(self, x: torch.Tensor, j: int) -> torch.Tensor:
        """Number (n,) of the last knot of column j at or below x (n,), and of the first cell or the last beyond."""
        knots = self.knots[j].double()
        return torch.searchsorted(knots, x, right=True).clamp(1, len(knots) - 1) - 1

    def _to_network(self, x: torch.Tensor, j: int) -> torch.Tensor:
        """Map x (n,) of column j to z; an atom to the upper end of its interval."""
        knots, slopes = self.knots[j].double(), self.slopes[j].double()
        spacing = 2 * Z_MAX / (len(knots) - 1)
        index = self._cells(x, j)
        low, step = knots[index], knots[index + 1] - knots[index]
        fraction = torch.where(step > 0, (x - low) / step.clamp_min(1e-300), 0.5)
        z = -Z_MAX + spacing * (index + fraction.clamp(0, 1))
        below, above = self.bounds[j].double() - knots[[0, -1]]
        z = torch.where(x < knots[0], -Z_MAX + _straight(x - knots[0], below) / slopes[0], z)
        return torch.where(x > knots[-1], Z_MAX + _straight(x - knots[-1], above) / slopes[1], z)

    def _slope(self, x: torch.Tensor, j: int) -> torch.Tensor:
        """Derivative dx/dz (n,) of column j at x (n,)."""
        knots, slopes = self.knots[j].double(), self.slopes[j].double()
        slope = knots.diff()[self._cells(x, j)] * (len(knots) - 1) / (2 * Z_MAX)
        below, above = self.bounds[j].double() - knots[[0, -1]]
        slope = torch.where(x < knots[0], slopes[0] * _room_left(x - knots[0], below), slope)
        return torch.where(x > knots[-1], slopes[1] * _room_left(x - knots[-1], above), slope)

    def _ends(self, x: torch.Tensor, j: int) -> torch.Tensor:
        """Ends (2, n) of the z that are mapped to x (n,) of column j: of atoms their interval, else twice the same."""
        z = self._to_network(x, j)
        ends = torch.stack([z, z])
        if len(self.atoms[j]):
            value, low, high = self.atoms[j].T.contiguous()
            x = x.to(torch.float32).double()
            index = torch.searchsorted(value, x).clamp(max=len(value) - 1)
            ends = torch.where(value[index] == x, torch.stack([low[index], high[index]]), ends)
        return ends

    def _interval(self, x: torch.Tensor, j: int) -> torch.Tensor:
        """Ends (2, n) of the z that are mapped to x (n,) of column j, which may be one of integers."""
        return self._unit_ends(x, j) if self.integer[j] else self._ends(x, j)

    def _unit_ends(self, x: torch.Tensor, j: int) -> torch.Tensor:
        """Ends (2, n) of the z that are mapped to x (n,) of an integer column j."""
        low, high = (self._to_network(x + shift, j) for shift in (-0.5, 0.5))
        end = x.new_tensor(Z_MAX + BEYOND)
        lowest = torch.where(torch.isneginf(low), torch.minimum(-end, high - BEYOND), low)
        highest = torch.where(torch.isposinf(high), torch.maximum(end, low + BEYOND), high)
        return torch.where(x == x.round(), torch.stack([lowest, highest]), torch.inf)


class Conditions(Preprocessing):
    """Map of the context, which is never inverted: an atom is at the upper end of its interval, not in its middle."""

    def to_normal(self, x: torch.Tensor) -> torch.Tensor:
        """Map physical values (n, d) to z (n, d), float64, before whitening and without a limit."""
        columns = [self._to_network(x[:, j].contiguous().double(), j) for j in range(self.n_columns)]
        return torch.stack(columns, dim=1)


def _straight(distance: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Inverse of the approach to a bound at `room` from the last knot: infinite at the bound and beyond."""
    if not torch.isfinite(room):
        return distance
    if room == 0:
        return torch.where(distance == 0, distance, distance * torch.inf)
    return -room * torch.log1p(-(distance / room).clamp(max=1.0))


def _room_left(distance: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Slope (n,) of the approach to a bound at `room` from the last knot, relative to that at the knot."""
    return 1 - distance / room if torch.isfinite(room) and room != 0 else torch.ones_like(distance)


def _mixing(z: NDArray[np.float32], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric square root of the weighted covariance of z (n, d), and the mean below it: (d + 1, d).

    With signed weights small eigenvalues can come out negative; all are at least 0.01, in units where the columns have
    width 1.
    """
    values, vectors = np.linalg.eigh(stats.covariance(z, weight))
    root = vectors @ np.diag(np.sqrt(np.maximum(values, MIN_VARIANCE))) @ vectors.T
    return np.concatenate([root, stats.mean(z, weight)[None]])


Bounds = tuple[float | None, float | None]


def _limits(bounds: Bounds | None) -> tuple[float, float]:
    low, high = bounds or (None, None)
    return -np.inf if low is None else low, np.inf if high is None else high


def _with_ends(
    limits: NDArray[np.float64], knots: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bounds (2,) of a column: an atom at the end of its values (saturation) is one, since nothing lies beyond."""
    low = knots[0] if knots[0] == knots[1] == values.min() else limits[0]
    high = knots[-1] if knots[-1] == knots[-2] == values.max() else limits[1]
    return np.array([low, high])


def _check_column(values: NDArray[np.float64], kind: Kind, limits: NDArray[np.float64], name: str) -> None:
    low, high = limits
    if outside := int(np.sum((values < low) | (values > high))):
        found = f"{outside} of {len(values)} values are outside [{low:g}, {high:g}], the bounds given"
        raise ValueRangeError(f"column '{name}': {found}; found {values.min():g} to {values.max():g}")
    if np.isfinite(limits).any() and kind == "standard":
        raise ConfigError(f"column '{name}': bounds need the transform 'quantile' or 'integer', found 'standard'")
    if kind == "integer" and (broken := int(np.sum(values != np.round(values)))):
        raise ValueRangeError(f"column '{name}': {broken} of {len(values)} values are no integers")


def _repeated(
    values: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """The different values (m,), whether each is that of several events, and its share of the weights.

    An event with a large weight, or twice in the sample, is not: the effective number of events decides, from absolute
    weights, so that signal and background that cancel count.
    """
    unique, group = np.unique(values, return_inverse=True)
    total, absolute, squares = (np.bincount(group, w) for w in (weight, np.abs(weight), weight**2))
    return unique, (total > 0) & (absolute**2 > LEAST_REPEATED * squares), total / stats.sum_w(weight)


def _spread(
    knots: NDArray[np.float64], unique: NDArray[np.float64], several: NDArray[np.bool_], limits: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Set equal knots apart, around the one event that they are at, unless its value repeats: then it is an atom.

    Beyond the outermost events they go on at the mean slope, at most half of the way to a bound.
    """
    z = np.linspace(-Z_MAX, Z_MAX, N_KNOTS)
    repeated = several[np.searchsorted(unique, knots)]
    first = np.searchsorted(knots, knots, side="left")
    last = np.searchsorted(knots, knots, side="right") - 1
    single = ~repeated & (last > first)
    known = ~single | (np.arange(len(knots)) == np.where(first == 0, last, np.where(last == len(z) - 1, first, -1)))
    inner = np.interp(z, z[known], knots[known])
    (low, *_, high), (least, *_, most) = z[known], knots[known]
    slope = (knots[-1] - knots[0]) / (z[-1] - z[0])
    below = min(slope, (least - limits[0]) / (2 * (low - z[0]))) if low > z[0] else slope
    above = min(slope, (limits[1] - most) / (2 * (z[-1] - high))) if high < z[-1] else slope
    outer = np.where(z < low, least + below * (z - low), most + above * (z - high))
    spread: NDArray[np.float64] = np.where((z < low) | (z > high), outer, inner)
    return spread


def _with_atoms(knots: NDArray[np.float64], atoms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each of these values that no two knots are equal to the two that enclose it."""
    for value in atoms:
        if np.sum(knots == value) < 2:
            last = min(int(np.searchsorted(knots, value, side="right")), len(knots) - 1)
            knots[max(last - 1, 0) : max(last - 1, 0) + 2] = value
    return knots


def _fit_column(
    values: NDArray[np.float64], weight: NDArray[np.float64], kind: Kind, limits: NDArray[np.float64], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots (K,) and slopes (2,) of one column, whose values lie within `limits`."""
    z = np.linspace(-Z_MAX, Z_MAX, N_KNOTS)
    if kind == "identity":
        return z, np.ones(2)
    if values.min() == values.max():
        raise ValueRangeError(f"column '{name}': all {len(values)} values are {values[0]:g}, expected it to vary")
    if kind == "standard":
        center = float(stats.mean(values, weight))
        width = np.sqrt(max(float(stats.covariance(values[:, None], weight)[0, 0]), 0.0)) or np.std(values)
        return center + width * z, np.full(2, width)
    if kind == "integer":
        values = values + (np.random.default_rng(0).permutation(len(values)) + 0.5) / len(values) - 0.5
    knots = stats.quantile(values, weight, ndtr(z))
    unique, several, share = _repeated(values, weight)
    knots = _with_atoms(_spread(knots, unique, several, limits), unique[several & (share > LEAST_ATOM)])
    outer = N_KNOTS // 6
    slopes = np.array([knots[outer] - knots[0], knots[-1] - knots[-1 - outer]]) / (z[outer] - z[0])
    return knots, np.maximum(slopes, 1e-3 * (knots[-1] - knots[0]) or np.ptp(values))
