r"""Atoms set apart: of each column its largest atom, as a mask, and all other values on a normal scale of their own.

An atom takes an interval [a, b] of z, with a share :math:`\Phi(b) - \Phi(a)` of the normal law that z is mapped to.  A
model that gives the atom a probability of its own has nothing to learn within, and the other values should leave no
gap: their levels :math:`\Phi(z)` without those of the atom, stretched to 0 to 1, are those of

.. math:: y = \Phi^{-1}\!\left(\frac{\Phi(z)}{1 - \Phi(b) + \Phi(a)}\right) \text{ below}, \qquad
          y = -\Phi^{-1}\!\left(\frac{\Phi(-z)}{1 - \Phi(b) + \Phi(a)}\right) \text{ above the atom},

which is standard normal where z is, up to the spacing of knots, at which atoms end.  Each y belongs to a z outside of
the interval, so that an exact zero has the probability of its mask and no other.  In a column without atoms y is z;
atoms beside the largest one, and integers, are intervals of y as they are of z.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from calorefine.data.knots import Z_MAX

APART = 1e-4  # from the end of an atom's interval in z, where rounding can't tell; as much as 0.2 % of a step of knots
LEAST_SHARE = 1e-12
FARTHEST = 8.0  # as far as normal levels can be told


class Parts(NamedTuple):
    """An event's values, and which of them are at the atom of their column.

    Args:
        y: (..., n, d) values; 0 at the atom.
        masked: (..., n, d) whether a value is at the atom.
        maskable: (..., n, d) whether its column has one.
    """

    y: torch.Tensor
    masked: torch.Tensor
    maskable: torch.Tensor


class Occupancy(NamedTuple):
    """The interval of z of each column's largest atom; both ends are 0 where there is none.

    Args:
        low: (d,) lower ends; -infinite where there is nothing else below.
        high: (d,) upper ends, likewise.
    """

    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, atom_ends: torch.Tensor) -> Occupancy:
        """Find the largest atoms among the intervals (2, d, K) of all."""
        low, high = atom_ends
        largest = (torch.special.ndtr(high) - torch.special.ndtr(low)).argmax(dim=1, keepdim=True)
        low, high = (ends.gather(1, largest)[:, 0] for ends in (low, high))
        infinite = low.new_tensor(torch.inf)
        return cls(torch.where(low < -Z_MAX, -infinite, low), torch.where(high > Z_MAX, infinite, high))

    @property
    def maskable(self) -> torch.Tensor:
        """Whether each column (d,) has an atom."""
        return self.high > self.low

    @property
    def rest(self) -> torch.Tensor:
        """Share (d,) of the normal law outside of the atom."""
        share: torch.Tensor = torch.special.ndtr(self.low) + torch.special.ndtr(-self.high)
        return share.clamp_min(LEAST_SHARE)

    def parts(self, z: torch.Tensor) -> Parts:
        """Set the atoms of z (n, d) apart."""
        maskable = self.maskable.expand_as(z)
        masked = maskable & (z > self.low - APART / 2) & (z < self.high + APART / 2)
        y = _stretched(z, 1 / self.rest, above=z > self.high)
        return Parts(torch.where(maskable, y, z).masked_fill(masked, 0.0), masked, maskable)

    def joined(self, y: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Return z (n, d): the middle of the atom's interval where it is masked, and outside of it elsewhere."""
        edge = torch.special.ndtri(torch.special.ndtr(self.low) / self.rest)
        above = y > edge
        z = _stretched(y, self.rest, above=above)
        z = torch.where(above, torch.maximum(z, self.high + APART), torch.minimum(z, self.low - APART))
        middle = (self.low.clamp_min(-Z_MAX) + self.high.clamp_max(Z_MAX)) / 2
        return torch.where(masked, middle, torch.where(self.maskable, z, y))


def _stretched(z: torch.Tensor, factor: torch.Tensor, *, above: torch.Tensor) -> torch.Tensor:
    """Numbers (n, d) whose normal levels are `factor` (d,) times those of z, counted from the other end `above`."""
    side = torch.where(above, -1.0, 1.0).double()
    stretched: torch.Tensor = side * torch.special.ndtri(torch.special.ndtr(side * z) * factor)
    return stretched.clamp(-FARTHEST, FARTHEST).to(z.dtype)
