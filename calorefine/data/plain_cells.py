r"""Preprocessing of showers for generators that make all cells at once: energies of layers, and logarithms of cells.

A shower is

* L *energies* of the layers, as response and logarithms of ratios (`layer_energies`);
* N *cells*: in the canonical frame (`frame`), a cell of the energy E above the threshold T has v = ln(E / T) and the
  network value u of

  .. math:: v = a \, [(u - f + \delta)^p - \delta^p] , \qquad u > f ,

  and no hit is all of u below f.  Of each cell, f, a and p are such that standard normal numbers have its occupancy
  and, of hits, its mean of v and of v^2.  A generator begins near the right spectrum of each cell.

On the way back the cells of each layer are scaled to its energy, as in the GAN of ATLAS (arXiv:2210.06204), and those
that come below the threshold have no hit: the response is one number that the generator makes, not a sum of hundreds.

No hit is an atom, and critics see it at one place, `GAP` below the lowest hit: no noise tells zeros that a generator
makes from those of reference showers, and hits that are too many, just above the threshold, differ from them.  The step
between has no gradient; in its place is that of a ramp of the same length, down to where the atom is.

An event comes back from its network values as it was, to single precision, but for layers with no more than the
threshold to that precision, which may come back empty.

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
WITHIN = 1e-4  # of the threshold, relative: rounding makes no hit from none there, and none from a hit


class PlainCells(ShowerMap):
    """Map of a shower to energies of its layers and logarithms of its cells in the canonical frame, and back."""

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
        """Fit the energies; find f, a and p of each cell, mean and width of each observable, with weights of any sign.

        Raises:
            ConfigError: columns that say nothing of showers, or have further features, or an offset on a point of
                entry.
            ValueRangeError: negative energies.
        """
        self._check_showers(events, columns)
        self._fit_energies(events, columns)
        x, context = torch.from_numpy(events.x), torch.from_numpy(events.context)
        share = torch.from_numpy(events.weight / events.weight.sum())
        sums, seen = torch.zeros(3, self.calorimeter.n_cells, dtype=torch.float64), []
        for rows in row_blocks(len(x)):
            own = self._in_frame(x[rows], context[rows])
            v = self._logs(own).double()
            sums += torch.stack([share[rows] @ (v > 0).double(), share[rows] @ v, share[rows] @ v.square()])
            seen.append(self.sums(own, self.energies.incident_of(context[rows])).double())
        for name, value in zip(("floor", "scale", "power"), _spectrum(*sums), strict=True):
            self.register_buffer(name, value.float())
        self.register_buffer("moments", _moments(torch.cat(seen), share).float())
        return self

    def _logs(self, own: torch.Tensor) -> torch.Tensor:
        """Logarithms v (n, N) of cells (n, N) in MeV, in the canonical frame."""
        logs = torch.log(own.clamp_min(self.threshold) / self.threshold).clamp_min(LEAST)
        return torch.where(own > 0, logs, 0.0)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map showers (n, N) in MeV to network values (n, L + N)."""
        own = self._in_frame(x, context)
        v = self._logs(own)
        beyond = (v / self.scale + SOFT**self.power) ** (1 / self.power) - SOFT
        cells = torch.where(v > 0, self.floor + beyond.clamp_min(LEAST), self.atom)
        return torch.cat([self.energies(self.layers_of(own), context), cells], dim=1)

    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, L + N) to showers (n, N) in MeV."""
        return self.frame.restored(self.own_cells(u, context), self.context_map.entry_of(context))

    def own_cells(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Cells (n, N) in MeV, in the canonical frame, of network values (n, L + N): scaled to the layers' energies."""
        energies, cells = self._split(u)
        totals = self.energies.inverse(energies, context).to(u.dtype)
        beyond, made = cells - self.floor, self.unscaled(cells)
        parts = zip(self.calorimeter.slices, totals.T, strict=True)
        return torch.cat([self._scaled(made[:, at], beyond[:, at], total[:, None]) for at, total in parts], dim=1)

    def unscaled(self, cells: torch.Tensor) -> torch.Tensor:
        """Energies (..., N) in MeV of network values (..., N) of cells, as each alone tells."""
        beyond = cells - self.floor
        v = self.scale * ((beyond.clamp_min(0.0) + SOFT) ** self.power - SOFT**self.power)
        return torch.where(beyond > 0, self.threshold * v.clamp_max(HOTTEST).exp(), 0.0)

    def _scaled(self, made: torch.Tensor, beyond: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Cells (n, k) of a layer scaled to its total (n, 1), all in MeV; those that come below the threshold are cut.

        Where no cell has a hit, but the layer has energy, all of it goes to the one whose u - f (n, k) is highest.
        """
        hottest = torch.where(made > 0, made, beyond).argmax(1, keepdim=True)
        made = made.scatter(1, hottest, made.gather(1, hottest).clamp_min(self.threshold))
        least = (1 - WITHIN) * self.threshold
        kept = (made * (total / made.sum(1, keepdim=True)) >= least).scatter(1, hottest, value=True) & (total > 0)
        left = torch.where(kept, made, 0.0)
        scaled = left * (total / left.sum(1, keepdim=True).clamp_min(self.threshold))
        return torch.where(kept, scaled.clamp_min(self.threshold), 0.0)

    def _split(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Network values (..., L) of energies and (..., N) of cells."""
        n = self.energies.n_columns
        return u[..., :n], u[..., n:]

    @property
    def atom(self) -> torch.Tensor:
        """Where (N,) cells without a hit are seen."""
        return self.floor - GAP

    def projected(self, u: torch.Tensor) -> torch.Tensor:
        """Network values (..., L + N), cells without a hit made equal, with the gradient of the ramp between."""
        energies, cells = self._split(u)
        ramp = torch.maximum(cells, self.atom)
        seen = torch.where(cells > self.floor, cells, self.atom + (ramp - ramp.detach()))
        return torch.cat([energies, seen], dim=-1)

    def observed(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Observables (n, k) of network values (n, L + N), in standard deviations from their mean in the training."""
        mean, width = self.moments
        sums = self.sums(self.own_cells(u, context), self.energies.incident_of(context))
        seen: torch.Tensor = (sums - mean) / width
        return seen

    @property
    def n_observed(self) -> int:
        """Number k of observables."""
        return self.moments.shape[1]

    @property
    def n_columns(self) -> int:
        """Number of network values: energies of layers, and cells."""
        return self.energies.n_columns + self.calorimeter.n_cells

    @property
    def is_discrete(self) -> bool:
        """Cells without a hit have a probability of their own."""
        return True

    def dequantize(
        self,
        u: torch.Tensor,
        noise: torch.Generator,
        context: torch.Tensor,
        ranks: Ranks = ALONE,
    ) -> torch.Tensor:
        """Spread network values (n, L + N) of empty layers and of no hit like the normal numbers that mean them."""
        energies, cells = self._split(u)
        energies = self.energies.dequantize(energies, noise, context, ranks)
        uniform = ranks.own(torch.rand(ranks.whole(cells.shape), generator=noise, device=noise.device)).to(u.device)
        below = torch.special.ndtri((uniform * torch.special.ndtr(self.floor)).clamp_min(1e-7))
        spread = torch.where(cells > self.floor, cells, torch.minimum(below, self.floor))
        return torch.cat([energies, spread], dim=1)

    @property
    def maskable(self) -> torch.Tensor:
        """Every cell may have no hit; energies (L + N,) of layers are never masked."""
        return torch.arange(self.n_columns) >= self.energies.n_columns

    def parts(self, u: torch.Tensor) -> Parts:
        """Network values (..., L + N) of energies and hits, and which cells have none."""
        energies, cells = self._split(u)
        maskable = self.maskable.to(u.device).expand(u.shape)
        masked = torch.cat([torch.zeros_like(energies, dtype=torch.bool), cells <= self.floor], dim=-1)
        return Parts(torch.where(masked, 0.0, u), masked, maskable)

    def joined(self, y: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Network values (..., L + N) of `parts`."""
        energies, cells = self._split(y)
        hits = torch.maximum(cells, self.floor + LEAST)
        return torch.cat([energies, torch.where(self._split(masked)[1], self.atom, hits)], dim=-1)

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Take over what was fitted."""
        self._restore_energies(state)
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
