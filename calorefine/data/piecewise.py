"""Monotone piecewise linear maps x(z) of many columns, and what of z belongs to an x."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from calorefine.data.knots import Z_MAX

BEYOND = 1.0
DEAD = 0.5


class Piecewise(NamedTuple):
    """Maps given by their knots at K equidistant points z, the slopes beyond, and bounds.

    Columns are rows here, (d, n) for n events, so that each is contiguous.

    Args:
        knots: (d, K) values at the points, nondecreasing.
        slopes: (d, 2) slopes dx/dz below the first and above the last point, positive.
        bounds: (d, 2) lowest and highest possible value.
    """

    knots: torch.Tensor
    slopes: torch.Tensor
    bounds: torch.Tensor

    def of(self, columns: torch.Tensor) -> Piecewise:
        """Those of these columns."""
        return Piecewise(*(part[columns] for part in self))

    @property
    def last(self) -> int:
        """Number of the last point."""
        return self.knots.shape[1] - 1

    @property
    def dead(self) -> torch.Tensor:
        """Whether each column (d,) has a single possible value."""
        return self.bounds[:, 0] == self.bounds[:, 1]

    def to_normal(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (d, n), float64, to z; an atom to the upper end of its interval."""
        index, knots = self._cells(x), self.knots.double()
        low = knots.gather(1, index)
        step = knots.gather(1, index + 1) - low
        fraction = torch.where(step > 0, (x - low) / step.clamp_min(1e-300), 0.5)
        z = -Z_MAX + 2 * Z_MAX / self.last * (index + fraction.clamp(0, 1))
        column, row, side, distance, room = self._outside(x)
        bent = -room * torch.log1p(-(distance / room).clamp(max=1.0))  # infinite at the bound and beyond
        straight = torch.where(room.isfinite(), torch.where(room == 0, distance * torch.inf, bent), distance)
        z[column, row] = Z_MAX * (2 * side - 1) + straight / self.slopes[column, side].double()
        return z

    def slope(self, x: torch.Tensor) -> torch.Tensor:
        """Derivative dx/dz (d, n) at x (d, n), float64."""
        slopes = self.knots.double().diff(dim=1).gather(1, self._cells(x)) * self.last / (2 * Z_MAX)
        column, row, side, distance, room = self._outside(x)
        left = torch.where(room.isfinite() & (room != 0), 1 - distance / room, 1.0)
        slopes[column, row] = self.slopes[column, side].double() * left
        return slopes

    def atoms(self) -> torch.Tensor:
        """Ends (2, d, K), float64, of the z that belong to the values of equal knots, which are atoms; else 0.

        The interval of a bound reaches `BEYOND` the last point: there is nothing else beyond.  That of a dead cell,
        which could have all z, is from -`DEAD` to `DEAD`.
        """
        first = torch.searchsorted(self.knots, self.knots)
        last = torch.searchsorted(self.knots, self.knots, right=True) - 1
        points = torch.linspace(-Z_MAX, Z_MAX, self.last + 1, dtype=torch.float64, device=first.device)
        closed = self.knots[:, [0, -1]] == self.bounds
        low = points[first] - BEYOND * (closed[:, :1] & (first == 0))
        high = points[last] + BEYOND * (closed[:, 1:] & (last == self.last))
        dead = self.dead[:, None]
        ends = torch.stack([low.masked_fill(dead, -DEAD), high.masked_fill(dead, DEAD)])
        return torch.where(last > first, ends, 0.0)

    def at_atoms(self, x: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """Ends (2, d, n), float64, of the z that belong to x (d, n) where it is one of these `atoms`; else 0."""
        x = x.to(self.knots.dtype)
        index = torch.searchsorted(self.knots, x).clamp_(max=self.last)
        equal = self.knots.gather(1, index) == x
        return torch.stack([torch.where(equal, ends.gather(1, index), 0.0) for ends in atoms])

    def unit_ends(self, x: torch.Tensor) -> torch.Tensor:
        """Ends (2, d, n), float64, of the z that are mapped to x (d, n) if the columns are integer ones."""
        low, high = (self.to_normal(x + shift) for shift in (-0.5, 0.5))
        end = torch.tensor(Z_MAX + BEYOND, dtype=x.dtype, device=x.device)
        lowest = torch.where(torch.isneginf(low), torch.minimum(-end, high - BEYOND), low)
        highest = torch.where(torch.isposinf(high), torch.maximum(end, low + BEYOND), high)
        return torch.where(x == x.round(), torch.stack([lowest, highest]), torch.inf)

    def _cells(self, x: torch.Tensor) -> torch.Tensor:
        """Number (d, n) of the last knot of each column at or below x (d, n); beyond, of the first or last cell."""
        after = torch.searchsorted(self.knots.double(), x.double(), right=True)
        return after.clamp(1, self.last) - 1

    def _outside(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Which x (d, n), float64, lie beyond the knots.

        Returns:
            (m,) numbers of column and row, the side (0 for below, 1 for above), the distance from the last knot there,
            and the room between that and the bound.
        """
        column, row = torch.nonzero((x < self.knots[:, :1]) | (x > self.knots[:, -1:]), as_tuple=True)
        side = (x[column, row] > self.knots[column, -1]).long()
        knot = self.knots[column, -side].double()
        return column, row, side, x[column, row] - knot, self.bounds[column, side].double() - knot


class NormalWithin:
    """Standard normal numbers that are known to lie between two ends; the end itself where both are equal.

    Args:
        low: lower ends, float64.
        high: upper ends.
    """

    def __init__(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Mirror what lies above 0, where the normal distribution function can't tell large numbers apart."""
        self.mirrored = low > 0
        self.low, self.high = torch.where(self.mirrored, -high, low), torch.where(self.mirrored, -low, high)
        self.below, top = torch.special.ndtr(self.low), torch.special.ndtr(self.high)
        self.share = (top - self.below).clamp_min(1e-300)

    def at(self, level: torch.Tensor) -> torch.Tensor:
        """Numbers with this share (0 to 1) of their distribution on one side."""
        z = torch.special.ndtri(self.below + self.share * level).clamp(self.low, self.high)
        return torch.where(self.mirrored, -z, z)

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """Log density at numbers between the ends; 0 where both are equal."""
        log_density = -0.5 * z.square() - 0.5 * math.log(2 * math.pi) - self.share.log()
        return torch.where(self.high > self.low, log_density, 0.0)


class UniformWithin:
    """Uniform numbers between two ends, as atoms were spread in the first checkpoints; otherwise as `NormalWithin`."""

    def __init__(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Take the ends."""
        self.low, self.high = low, high

    def at(self, level: torch.Tensor) -> torch.Tensor:
        """Numbers at this share (0 to 1) of the interval."""
        return self.low + (self.high - self.low) * level

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """Log density at numbers between the ends; 0 where both are equal."""
        size = self.high - self.low
        return torch.where(size > 0, -size.clamp_min(1e-300).log(), torch.zeros_like(z))
