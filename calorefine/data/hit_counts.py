r"""How many cells of each layer of a shower are hit, given its energies: densities that make the counts normal numbers.

The number n of hits of a layer with energy lies between 1 and what its energy has room for above the threshold.  With
the survival function S of a mixture of normal distributions of :math:`\ln n`, whose parameters are functions of
conditions, energies and the counts of the layers before by a small network,

.. math:: P(n) = \frac{S(\ln(n - 1/2)) - S(\ln(n + 1/2))}{S(\ln(1/2)) - S(\ln(n_{max} + 1/2))} ,

and a standard normal number that is known to be in the interval of n stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from calorefine.data.cells import CLIP, SMALLEST, CellNetwork, Marginals

LEAST_SPREAD = 0.3  # of the logarithm of a count: with it all counts stay within the range of the mixture
_LEAST = 1e-30


class HitCounts(nn.Module):
    """Densities of the numbers of hits in the layers.

    Args:
        n_conditions: number of conditions.
        n_layers: number of layers L.
        hidden: widths of the hidden layers of each network.
        n_components: normal distributions in the mixture of each layer.
    """

    center: torch.Tensor
    spread: torch.Tensor

    def __init__(self, n_conditions: int, n_layers: int, *, hidden: list[int], n_components: int) -> None:
        """Create the networks."""
        super().__init__()
        self.networks = nn.ModuleList(
            CellNetwork(n_conditions + index, 1, hidden=hidden, n_components=n_components) for index in range(n_layers)
        )
        self.register_buffer("center", torch.zeros(n_layers, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(n_layers, dtype=torch.float64))

    @torch.no_grad()
    def start(self, counts: torch.Tensor, weight: torch.Tensor) -> None:
        """Begin with the mean and the width of the logarithm of each count, of counts (n, L) with weights (n,)."""
        w, seen = weight[:, None].double(), counts > 0
        log = torch.where(seen, counts, 1).double().log()
        total = (w * seen).sum(0).clamp_min(1e-12)
        self.center = (w * seen * log).sum(0) / total
        variance = (w * seen * (log - self.center).square()).sum(0) / total
        self.spread = variance.sqrt().clamp_min(LEAST_SPREAD)
        for index, network in enumerate(cast("list[CellNetwork]", list(self.networks))):
            y = self._scaled(counts[:, index].clamp_min(1), index).float()
            network.start([(y[:, None], seen[:, index, None], weight)])

    def log_prob(self, given: torch.Tensor, counts: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
        """Log probability (n,) of counts (n, L), at conditions (n, m), of at most so many (n, L); float64."""
        terms = []
        for index, marginals in self._densities(given, counts):
            low, high = self._interval(marginals, counts[:, index], most[:, index], index)
            terms.append(torch.where(most[:, index] > 0, (high - low).clamp_min(_LEAST).log(), 0.0))
        return torch.stack(terms, dim=1).sum(1)

    def to_normal(self, given: torch.Tensor, counts: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
        """Normal numbers (n, L) in the middle of the counts' intervals; arguments as of `log_prob`."""
        return self.spread_over(given, counts, most, torch.full(counts.shape, 0.5, device=given.device))

    def spread_over(
        self, given: torch.Tensor, counts: torch.Tensor, most: torch.Tensor, uniform: torch.Tensor
    ) -> torch.Tensor:
        """Normal numbers (n, L) by uniform numbers (n, L) in the counts' intervals; any for a layer without energy."""
        numbers = []
        for index, marginals in self._densities(given, counts):
            low, high = self._interval(marginals, counts[:, index], most[:, index], index)
            beyond = low + (high - low) * uniform[:, index].double()
            beyond = torch.where(most[:, index] > 0, beyond, uniform[:, index].double())
            numbers.append(-torch.special.ndtri(beyond.clamp(SMALLEST, 1 - SMALLEST)))
        return torch.stack(numbers, dim=1).to(given.dtype).clamp(-CLIP, CLIP)

    def from_normal(self, given: torch.Tensor, z: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
        """Counts (n, L) of normal numbers z (n, L), layer after layer."""
        counts = torch.zeros_like(most)
        for index, _ in enumerate(self.networks):
            marginals = self._density(given, counts, index)
            bottom, top = self._range(marginals, most[:, index], index)
            survival = top + torch.special.ndtr(-z[:, index].double()) * (bottom - top)
            log = marginals.quantile(survival.clamp_min(_LEAST)) * self.spread[index] + self.center[index]
            found = torch.floor(log.exp() + 0.5).long()
            found = torch.minimum(found.clamp_min(1), most[:, index])
            low, high = self._interval(marginals, found, most[:, index], index)
            beyond = torch.special.ndtr(-z[:, index].double())
            found = found + (beyond < low).long() - (beyond > high).long()  # where the quantile isn't exact enough
            counts[:, index] = torch.minimum(found.clamp_min(1), most[:, index])
        return counts

    def _densities(self, given: torch.Tensor, counts: torch.Tensor) -> Iterator[tuple[int, Marginals]]:
        for index, _ in enumerate(self.networks):
            yield index, self._density(given, counts, index)

    def _density(self, given: torch.Tensor, counts: torch.Tensor, index: int) -> Marginals:
        """Mixture (n,) of a layer in float64, given the counts before."""
        before = scaled_logs(counts[:, :index]).to(given.dtype)
        marginals: Marginals = self.networks[index](torch.cat([given, before], dim=1))
        return Marginals(*(part[:, 0].double() for part in marginals))

    def _scaled(self, count: torch.Tensor, index: int) -> torch.Tensor:
        return (count.double().log() - self.center[index]) / self.spread[index]

    def _range(self, marginals: Marginals, most: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Survival (n,) at the lower end of 1 and at the upper end of the largest count."""
        half = torch.full(most.shape, 0.5, dtype=torch.float64, device=most.device)
        bottom, top = (marginals.survival(self._scaled(end, index)) for end in (half, most + half))
        return bottom, top

    def _interval(
        self, marginals: Marginals, count: torch.Tensor, most: torch.Tensor, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Survival (n,) at the upper and at the lower end of a count, of those possible."""
        bottom, top = self._range(marginals, most, index)
        whole = (bottom - top).clamp_min(_LEAST)
        low, high = (
            (marginals.survival(self._scaled((count + side).clamp_min(0.5), index)) - top) / whole
            for side in (0.5, -0.5)
        )
        return low, high


def scaled_logs(counts: torch.Tensor) -> torch.Tensor:
    """Counts (n, L) as inputs of networks."""
    return torch.log1p(counts.double()) / 2 - 1
