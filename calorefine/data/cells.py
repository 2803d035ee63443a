r"""The density of each cell of a shower given its conditions: a hurdle, and a mixture of normal densities beyond it.

A cell has no hit with the probability 1 - p.  A hit has an energy E above the threshold T, and the survival function of
:math:`y = \ln (E / T - 1)` is that of a mixture of normal distributions,

.. math:: S(y) = \sum_k \pi_k \, \Phi((\mu_k - y) / s_k) ,

where p, pi, mu and s are functions of the conditions by one small network.  Then

.. math:: z = -\Phi^{-1}(p \, S(y))

of a hit, and a standard normal number that is known to be below :math:`-\Phi^{-1}(p)` for no hit, is a standard normal
number: cells that depend on each other through the conditions alone become independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from calorefine.nets import MLP, starting_small

N_BISECTIONS, N_NEWTON = 12, 3
LOWEST, HIGHEST = -25.0, 25.0  # of y
SMALLEST = 1e-7  # probability
LARGEST_LOGIT = 15.0
LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)
BROAD, LEAST_SHARE = 0.7, 5e-4  # width of the first component at least, and share of each: no hit is impossible
CLIP = 8.0  # of normal numbers
MARGIN = 1e-3  # of log odds, by which cells become hits, or none, where there are too few or too many
_LEAST = 1e-30
LARGEST_CHANGE = 2.0  # of the logarithm of a width
LEAST_WIDTH = 0.1  # narrower ones leave no room in single precision for hits far from them


class Marginals(NamedTuple):
    """Densities of cells.

    Args:
        logit: (...,) of the probability of a hit.
        log_share: (..., K) logs of the mixture's shares.
        mean: (..., K) of its components, in y.
        width: (..., K) likewise, positive.
    """

    logit: torch.Tensor
    log_share: torch.Tensor
    mean: torch.Tensor
    width: torch.Tensor

    def of(self, mask: torch.Tensor) -> Marginals:
        """Those where a mask (...,) is true."""
        return Marginals(*(part[mask] for part in self))

    def at(self, places: torch.Tensor | slice) -> Marginals:
        """Those of the cells (n, k) at these places (k,) of all (n, N)."""
        return Marginals(*(part[:, places] for part in self))

    def corrected(self, by: torch.Tensor) -> Marginals:
        """Densities with logits, shares, means and widths changed by numbers (..., 1 + 3 K); by none for 0."""
        k = self.mean.shape[-1]
        logit, share, mean, width = by.tensor_split([1, 1 + k, 1 + 2 * k], dim=-1)
        return Marginals(
            (self.logit + logit[..., 0]).clamp(-LARGEST_LOGIT, LARGEST_LOGIT),
            _shares((self.log_share + share).mT.contiguous()).mT,
            self.mean + self.width * mean,
            (self.width * width.clamp(-LARGEST_CHANGE, LARGEST_CHANGE).exp()).clamp_min(LEAST_WIDTH),
        )

    def survival(self, y: torch.Tensor) -> torch.Tensor:
        """Probability (...,) that the energy of a hit is beyond y (...,)."""
        beyond: torch.Tensor = torch.special.ndtr((self.mean - y[..., None]) / self.width)
        return (self.log_share.exp() * beyond).sum(-1)

    def log_density(self, y: torch.Tensor) -> torch.Tensor:
        """Log density (...,) of y (...,) of a hit."""
        t = (y[..., None] - self.mean) / self.width
        return torch.logsumexp(self.log_share - self.width.log() - 0.5 * t.square(), dim=-1) - LOG_ROOT_TWO_PI

    def log_prob(self, y: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        """Log probability (...,) of no hit, or log density of a hit and its y (...,)."""
        there = functional.logsigmoid(self.logit) + self.log_density(torch.where(hit, y, 0.0))
        return torch.where(hit, there, functional.logsigmoid(-self.logit))

    def quantile(self, survival: torch.Tensor) -> torch.Tensor:
        """Inverse of `survival`: bisection, and then Newton's method within what is left."""
        low, high = torch.full_like(survival, LOWEST), torch.full_like(survival, HIGHEST)
        for _ in range(N_BISECTIONS):
            middle = (low + high) / 2
            beyond = self.survival(middle) > survival
            low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
        y = (low + high) / 2
        for _ in range(N_NEWTON):
            step = (self.survival(y) - survival) / self.log_density(y).exp().clamp_min(1e-30)
            y = torch.minimum(torch.maximum(y + step, low), high)
        return y


class CellNetwork(nn.Module):
    """Densities of N cells from the conditions: what a network gives, beside an offset for each cell.

    Args:
        n_conditions: number of conditions.
        n_cells: N.
        hidden: widths of the hidden layers.
        n_components: K, of each mixture.
    """

    offset: torch.Tensor

    def __init__(self, n_conditions: int, n_cells: int, *, hidden: list[int], n_components: int) -> None:
        """Create the network."""
        super().__init__()
        self.n_cells, self.n_components = n_cells, n_components
        self.mlp = starting_small(MLP(n_conditions, n_cells * (1 + 3 * n_components), hidden=hidden, act="silu"))
        self.register_buffer("offset", torch.zeros(1 + 3 * n_components, n_cells))

    @torch.no_grad()
    def start(self, showers: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        """Begin with the occupancy, mean and width of each cell, from y and hits (n, N) with weights (n,), in parts."""
        sums, n, n_hits = self.offset.new_zeros(3, self.n_cells).double(), 0, torch.zeros(self.n_cells)
        total = 0.0
        for y, hit, weight in showers:
            w, own = weight.double() @ hit.double(), torch.where(hit, y, 0.0).double()
            sums += torch.stack([w, weight.double() @ own, weight.double() @ own.square()])
            total, n, n_hits = total + float(weight.double().sum()), n + len(y), n_hits + hit.sum(0)
        share = (sums[0] / total * n + 0.5) / (n + 1)
        mean = sums[1] / sums[0].clamp_min(1e-12 * total)
        width = (sums[2] / sums[0].clamp_min(1e-12 * total) - mean.square()).clamp_min(0.0).sqrt()
        seen = n_hits > 1
        mean, width = torch.where(seen, mean, 0.0), torch.where(seen, width, 1.0).clamp_min(0.1)
        k = torch.linspace(-0.7, 0.7, self.n_components) if self.n_components > 1 else torch.zeros(1)
        self.offset[0] = torch.logit(share)
        self.offset[1 + self.n_components : 1 + 2 * self.n_components] = mean + width * k[:, None]
        self.offset[1 + 2 * self.n_components :] = torch.log(torch.expm1(0.8 * width))

    def forward(self, conditions: torch.Tensor) -> Marginals:
        """Densities of the cells (n, N) at conditions (n, m).

        In memory cells are the last axis: functions along a last axis as short as K are many times slower.
        """
        out: torch.Tensor = self.mlp(conditions).view(len(conditions), -1, self.n_cells) + self.offset
        logit, share, mean, width = out.tensor_split([1, 1 + self.n_components, 1 + 2 * self.n_components], dim=1)
        least = width.new_tensor([BROAD] + [LEAST_WIDTH] * (self.n_components - 1))[:, None]
        return Marginals(
            logit[:, 0].clamp(-LARGEST_LOGIT, LARGEST_LOGIT),
            _shares(share).mT,
            mean.mT,
            (functional.softplus(width) + least).mT,
        )


def _shares(raw: torch.Tensor) -> torch.Tensor:
    """Logs of shares (..., K, N) that are at least `LEAST_SHARE`."""
    return ((1 - raw.shape[-2] * LEAST_SHARE) * raw.softmax(-2) + LEAST_SHARE).log()


def to_normal(marginals: Marginals, y: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
    """Normal numbers z (n, N) of hits with energies y; of no hit the middle of its interval."""
    p = torch.sigmoid(marginals.logit)
    beyond = torch.where(hit, p * marginals.survival(torch.where(hit, y, 0.0)), (1 + p) / 2)
    z: torch.Tensor = -torch.special.ndtri(beyond.double().clamp(1e-30, 1 - 1e-12))
    return z.to(y.dtype)


def from_normal(
    marginals: Marginals, z: torch.Tensor, hit: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies y and hits (n, N) of normal numbers z (n, N), or of known hits; y of others is 0."""
    p = torch.sigmoid(marginals.logit)
    beyond = torch.special.ndtr(-z.double()).to(z.dtype)
    hit = beyond < p if hit is None else hit
    y = torch.zeros_like(z)
    y[hit] = marginals.of(hit).quantile((beyond / p)[hit].clamp(_LEAST, 1 - SMALLEST))
    return y, hit


def with_counts(marginals: Marginals, z: torch.Tensor, counts: torch.Tensor) -> tuple[Marginals, torch.Tensor]:
    """Densities of the cells (n, k) of a layer, with odds so that z has as many hits as it should.

    Args:
        marginals: densities of the cells.
        z: (n, k) normal numbers.
        counts: (n,) how many of the cells are hit.

    Returns:
        The densities, and which cells are hit.
    """
    beyond = torch.special.ndtr(-z.double()).clamp(_LEAST, 1 - SMALLEST)
    margin = marginals.logit.double() - torch.logit(beyond)
    ordered, order = margin.sort(dim=1, descending=True)
    hit = torch.empty_like(order, dtype=torch.bool)
    hit.scatter_(1, order, torch.arange(z.shape[1], device=z.device) < counts[:, None])
    ends = torch.cat([ordered[:, :1].clamp_min(0.0) + 1, ordered, ordered[:, -1:].clamp_max(0.0) - 1], dim=1)
    last, next_one = (ends.gather(1, counts[:, None] + k) for k in (0, 1))
    within = ((last - next_one) / 2).clamp_max(MARGIN)
    move = torch.where(last <= 0, within - last, torch.where(next_one > 0, -within - next_one, 0.0))
    return marginals._replace(logit=(marginals.logit + move).to(z.dtype)), hit


def spread(marginals: Marginals, z: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Normal numbers z (n, N), those of no hit anew by uniform numbers (n, N)."""
    p = torch.sigmoid(marginals.logit)
    none = torch.special.ndtr(-z) >= p
    below = -torch.special.ndtri((p + (1 - p) * uniform).double().clamp(SMALLEST, 1 - SMALLEST)).to(z.dtype)
    return torch.where(none, below, z)


def moved_below(of: Marginals, to: Marginals, z: torch.Tensor) -> torch.Tensor:
    """Normal numbers of no hit by some densities from those (n, N) by others, each in the same part of its interval."""
    p, wanted = torch.sigmoid(of.logit), torch.sigmoid(to.logit)
    share = ((torch.special.ndtr(-z) - p) / (1 - p)).clamp(0.0, 1.0)
    below = (wanted + (1 - wanted) * share).double().clamp(SMALLEST, 1 - SMALLEST)
    moved: torch.Tensor = -torch.special.ndtri(below).to(z.dtype)
    return moved
