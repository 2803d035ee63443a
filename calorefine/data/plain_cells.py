r"""Preprocessing of showers for generators that make all cells at once: logarithms of their energies, cut at 0.

In the canonical frame (`frame`), a cell of the energy E above the threshold T has v = ln(E / T) and the network value u
of

.. math:: v = a \, [(u - f + \delta)^p - \delta^p] , \qquad u > f ,

and no hit is all of u below f.  Of each cell, f, a and p are such that standard normal numbers have its occupancy and,
of hits, its mean of v and of v^2.  A generator begins near the right spectrum of each cell.

That is an atom, and critics see it at one place, `GAP` below the lowest hit: no noise tells zeros that a generator
makes from those of reference showers, and hits that are too many, just above the threshold, differ from them.  The step
between has no gradient; in its place is that of a ramp of the same length, down to where the atom is.

An event comes back from its network values as it was, to single precision.

Critics and checkpoints may go by the event's observables (`shower_sums`), in standard deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch

from calorefine.data.occupancy import Parts
from calorefine.data.preprocessing import ALONE
from calorefine.data.shower_map import ShowerMap, row_blocks
from calorefine.data.shower_sums import ShowerSums
from calorefine.ddp import Ranks
from calorefine.events import Columns, Events

LEAST_POWER, MOST_POWER = 0.2, 3.0  # p
SOFT = 0.05  # delta: the slope is finite at the threshold
N_LEVELS = 200  # of normal numbers at which the spectrum is matched
HOTTEST = 14.0  # v, that of 120 GeV for a threshold of 0.1 MeV
RAREST = 1e-5  # occupancy, and that of cells without a hit
GAP = 0.5  # between the atom and the lowest hit, in u
LEAST = 1e-5  # v, and u - f, of a hit at the threshold itself


class PlainCells(ShowerMap):
    """Map of the cells of a shower to their logarithms in the canonical frame, and back."""

    scale: torch.Tensor
    power: torch.Tensor
    floor: torch.Tensor
    moments: torch.Tensor

    def bind(self, columns: Columns) -> Self:
        """Take geometry, incident energy and point of entry; errors as in the base."""
        super().bind(columns)
        self.sums = ShowerSums(self.calorimeter, self.threshold)
        return self

    def fit(self, events: Events, columns: Columns) -> Self:
        """Find f, a and p of each cell, and mean and width of each observable, with weights of any sign.

        Raises:
            ConfigError: columns that say nothing of showers, or have further features, or an offset on a point of
                entry.
            ValueRangeError: negative energies.
        """
        self._fit_context(events, columns)
        x, context = torch.from_numpy(events.x), torch.from_numpy(events.context)
        share = torch.from_numpy(events.weight / events.weight.sum())
        sums, seen = torch.zeros(3, self.n_columns, dtype=torch.float64), []
        for rows in row_blocks(len(x)):
            own = self._in_frame(x[rows], context[rows])
            v = self._logs(own).double()
            sums += torch.stack([share[rows] @ (v > 0).double(), share[rows] @ v, share[rows] @ v.square()])
            seen.append(self.sums(own, self._e_inc(context[rows])).double())
        for name, value in zip(("floor", "scale", "power"), _spectrum(*sums), strict=True):
            self.register_buffer(name, value.float())
        self.register_buffer("moments", _moments(torch.cat(seen), share).float())
        return self

    def _logs(self, own: torch.Tensor) -> torch.Tensor:
        """Logarithms v (n, N) of cells (n, N) in MeV, in the canonical frame."""
        logs = torch.log(own.clamp_min(self.threshold) / self.threshold).clamp_min(LEAST)
        return torch.where(own > 0, logs, 0.0)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map showers (n, N) in MeV to network values (n, N)."""
        v = self._logs(self._in_frame(x, context))
        beyond = (v / self.scale + SOFT**self.power) ** (1 / self.power) - SOFT
        return torch.where(v > 0, self.floor + beyond.clamp_min(LEAST), self.atom)

    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, N) to showers (n, N) in MeV."""
        return self.frame.restored(self.own_cells(u), self.context_map.entry_of(context))

    def own_cells(self, u: torch.Tensor) -> torch.Tensor:
        """Cells (..., N) in MeV, in the canonical frame, of network values (..., N)."""
        beyond = u - self.floor
        v = self.scale * ((beyond.clamp_min(0.0) + SOFT) ** self.power - SOFT**self.power)
        return torch.where(beyond > 0, self.threshold * v.clamp_max(HOTTEST).exp(), 0.0)

    @property
    def atom(self) -> torch.Tensor:
        """Where (N,) cells without a hit are seen."""
        return self.floor - GAP

    def projected(self, u: torch.Tensor) -> torch.Tensor:
        """Network values (..., N), those of no hit made equal, with the gradient of the ramp between."""
        ramp = torch.maximum(u, self.atom)
        return torch.where(u > self.floor, u, self.atom + (ramp - ramp.detach()))

    def observed(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Observables (n, k) of network values (n, N), in standard deviations from the mean of the training sample."""
        mean, width = self.moments
        seen: torch.Tensor = (self.sums(self.own_cells(u), self._e_inc(context)) - mean) / width
        return seen

    @property
    def n_observed(self) -> int:
        """Number k of observables."""
        return self.moments.shape[1]

    @property
    def n_columns(self) -> int:
        """Number of cells N."""
        return self.calorimeter.n_cells

    @property
    def is_discrete(self) -> bool:
        """Cells without a hit have a probability of their own."""
        return True

    def dequantize(
        self,
        u: torch.Tensor,
        noise: torch.Generator,
        context: torch.Tensor,  # noqa: ARG002
        ranks: Ranks = ALONE,
    ) -> torch.Tensor:
        """Spread network values (n, N) of no hit like the normal numbers below where a hit begins."""
        uniform = ranks.own(torch.rand(ranks.whole(u.shape), generator=noise, device=noise.device)).to(u.device)
        below = torch.special.ndtri((uniform * torch.special.ndtr(self.floor)).clamp_min(1e-7))
        return torch.where(u > self.floor, u, torch.minimum(below, self.floor))

    @property
    def maskable(self) -> torch.Tensor:
        """Every cell (N,) may have no hit."""
        return torch.ones(self.n_columns, dtype=torch.bool)

    def parts(self, u: torch.Tensor) -> Parts:
        """Network values (..., N) of hits, and which cells have none."""
        masked = u <= self.floor
        return Parts(torch.where(masked, 0.0, u), masked, torch.ones_like(masked))

    def joined(self, y: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Network values (..., N) of `parts`."""
        return torch.where(masked, self.atom, torch.maximum(y, self.floor + LEAST))

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Take over what was fitted."""
        self._restore_context(state)
        for name in ("floor", "scale", "power", "moments"):
            self.register_buffer(name, state[name])
        return self


def _moments(values: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Means and standard deviations (2, k) of values (n, k) with shares (n,) of the sum of weights."""
    mean = share @ values
    return torch.stack([mean, (share @ (values - mean).square()).clamp_min(1e-6).sqrt()])


def _spectrum(
    occupancy: torch.Tensor, mean: torch.Tensor, square: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers f, a and p (N,) for occupancies (N,) and the mean of v and v^2 (N,), which are 0 of no hit.

    A cell that has next to no hits gets those of a typical spectrum.
    """
    seen = occupancy > RAREST
    occupancy = occupancy.clamp(RAREST, 1 - RAREST)
    floor = -torch.special.ndtri(occupancy)
    mean = torch.where(seen, mean / occupancy, 1.0).clamp_min(LEAST)
    square = torch.where(seen, square / occupancy, 1.5)
    levels = (torch.arange(N_LEVELS, dtype=torch.float64)[:, None] + 0.5) / N_LEVELS
    beyond = (-torch.special.ndtri(levels * occupancy) - floor).clamp_min(0.0) + SOFT
    low, high = torch.full_like(mean, LEAST_POWER), torch.full_like(mean, MOST_POWER)
    for _ in range(40):
        power = (low + high) / 2
        v = beyond**power - SOFT**power
        too_narrow = v.square().mean(0) / v.mean(0).square() < square / mean.square()
        low, high = torch.where(too_narrow, power, low), torch.where(too_narrow, high, power)
    return floor, mean / v.mean(0), power
