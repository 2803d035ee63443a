r"""Preprocessing of showers for generators that make all cells at once: logarithms of their energies, cut at 0.

In the canonical frame (`frame`), a cell of the energy E with the threshold T has :math:`v = \max(0, \ln (E / T))`: none
below the threshold is 0, and a hit just above it nearly so.  Of the standard normal number u that a generator begins
with, :math:`v = \max(0, m + s u)` has the cell's occupancy and the mean of v, by

.. math:: \Phi(m / s) = \text{occupancy} , \qquad s \, [\varphi(m / s) + (m / s) \, \Phi(m / s)] = \text{mean} .

Network values are u, those of no hit at -m / s.  A generator makes exact zeros by values below it, which critics see as
if they were at it: there is no gap that tells them from those of reference showers, and a gradient on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch

from calorefine.data.occupancy import Parts
from calorefine.data.preprocessing import ALONE
from calorefine.data.showers import Showers, _mev
from calorefine.data.preprocessing import Preprocessing
from calorefine.data.shower_conditions import part_of
from calorefine.data.shower_sums import ShowerSums
from calorefine.ddp import Ranks
from calorefine.events import Columns, Events

LEAST, MOST = 0.3, 1.5
HIGHEST = 14.0
APART = 1e-4


class PlainCells(Showers):
    def __init__(self, geometry, *, e_inc: str, entry: list[str] = []) -> None:
        super().__init__(geometry, e_inc=e_inc, entry=entry)
        self.sums = ShowerSums(self.calorimeter, self.threshold)

    def fit(self, events: Events, columns: Columns) -> Self:
        self._check(events, columns)
        self.context_map.fit(events, columns)
        place = columns.context_names.index(self.e_inc)
        offset = columns.context_columns[self.e_inc].offset or 0.0
        self.register_buffer("incident", torch.tensor([place, _mev(self.e_inc, columns), offset], dtype=torch.float64))
        x, context = torch.from_numpy(events.x), torch.from_numpy(events.context)
        w = torch.from_numpy(events.weight)
        v = self._logs(x, context).double()
        share = w / w.sum()
        mean, square = share @ v, share @ v.square()
        at = _over_width(square / mean.square().clamp_min(1e-12))
        density = torch.exp(-at.square() / 2) / (2 * torch.pi) ** 0.5
        s = (mean / (density + at * torch.special.ndtr(at))).clamp(LEAST, MOST)
        self.register_buffer("scale", s.float())
        self.register_buffer("floor", -at.float())
        seen = self.sums(self._canon(x, context), self._e_inc(context)).double()
        m = share @ seen
        sd = (share @ (seen - m).square()).sqrt().clamp_min(1e-3)
        self.register_buffer("moments", torch.stack([m, sd]).float())
        return self

    def _canon(self, x, context):
        return self.frame.canonical(self._read(x), self.context_map.entry_of(context))

    def _logs(self, x, context):
        own = self._canon(x, context)
        return torch.where(own > 0, torch.log(own.clamp_min(self.threshold) / self.threshold).clamp_min(1e-5), 0.0)

    def forward(self, x, context):
        return self._logs(x, context) / self.scale + self.floor

    def cells_in_frame(self, u):
        v = (u - self.floor) * self.scale
        return torch.where(v > 0, self.threshold * v.clamp(0, HIGHEST).exp(), 0.0)

    def inverse(self, u, context):
        return self.frame.restored(self.cells_in_frame(u), self.context_map.entry_of(context))

    def projected(self, u):
        return torch.maximum(u, self.floor)

    def observed(self, u, context):
        mean, width = self.moments
        return (self.sums(self.cells_in_frame(u), self._e_inc(context)) - mean) / width

    @property
    def n_observed(self):
        return self.moments.shape[1]

    def dequantize(self, u, noise, context, ranks=ALONE):
        uniform = ranks.own(torch.rand(ranks.whole(u.shape), generator=noise, device=noise.device)).to(u.device)
        below = torch.special.ndtri((uniform * torch.special.ndtr(self.floor)).clamp_min(1e-7))
        return torch.where(u > self.floor, u, torch.minimum(below, self.floor))

    @property
    def n_columns(self):
        return self.calorimeter.n_cells

    @property
    def n_first(self):
        return 0

    @property
    def maskable(self):
        return torch.ones(self.n_columns, dtype=torch.bool)

    def parts(self, u):
        masked = u <= self.floor
        return Parts(torch.where(masked, 0.0, u), masked, torch.ones_like(masked))

    def joined(self, y, masked):
        return torch.where(masked, self.floor, torch.maximum(y, self.floor + APART))

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        for name in ("incident", "scale", "floor", "moments"):
            self.register_buffer(name, state[name])
        self.context_map.restore(part_of(state, "context_map"))
        return self


def _over_width(ratio):
    """m / s (N,) of the normal number whose positive part has these ratios (N,) of mean square to squared mean."""
    low, high = torch.full_like(ratio, -4.0), torch.full_like(ratio, 40.0)
    for _ in range(60):
        at = (low + high) / 2
        density, above = torch.exp(-at.square() / 2) / (2 * torch.pi) ** 0.5, torch.special.ndtr(at)
        found = ((1 + at.square()) * above + at * density) / (density + at * above).square()
        low, high = torch.where(found > ratio, at, low), torch.where(found > ratio, high, at)
    return (low + high) / 2
