r"""What is left for the cells of a layer that come later: hits, and energy over the threshold.

**Hits.**  A layer has as many as its count says.  The odds of a hit are those that a density tells, times the ratio in
which k hits left are more probable with this one than without, if the cells to come are independent and their number of
hits is binomial, with the mean :math:`\mu = \sum_j p_j` of m trials of probability q,

.. math:: \frac{k}{m - k + 1} \, \frac{1 - q}{q} , \qquad q = \frac{\sum_j p_j^2}{\mu} , \quad m = \mu / q .

**Energy.**  A hit takes the share f of what is left over the threshold, and the last one the rest.  The density is of
:math:`v = \ln \frac{f}{1 - f}`, the logarithm of its energy over that of those to come, so that the layer has its
energy, whatever is drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from calorefine.data.cells import Marginals

LARGEST_OFFSET, CERTAIN = 12.0, 1e4  # of log odds
_LEAST = 1e-12


class ToCome(NamedTuple):
    """What is expected of independent cells that come later in a layer, in the order of their blocks.

    Args:
        order: (N,) the cells in the order in which they come.
        layers: (N,) index of the layer of each cell in that order.
        stops: (N,) likewise, where its layer ends.
        blocks: (N,) likewise, where its block begins.
        hits: sums (n, N) of p and of p squared of the cells after each one, and their number (N,).
        energy: (n, N) energy over the threshold that the cells after each one are expected to have, for each hit.
        hits_of_block: (n, N) hits expected in its block and those after.
        energy_of_block: (n, N) energy over the threshold, likewise.
    """

    order: torch.Tensor
    layers: torch.Tensor
    stops: torch.Tensor
    blocks: torch.Tensor
    hits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    energy: torch.Tensor
    hits_of_block: torch.Tensor
    energy_of_block: torch.Tensor

    def left(self, hit: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hits left (n, N) from each cell on, and from its block on, for hits before (n, N) of so many (n, L)."""
        rest = _rest(hit[:, self.order].double(), self.stops)
        of_layer = rest[:, torch.searchsorted(self.layers, self.layers)]
        left = counts[:, self.layers] - (of_layer - rest)
        return self._placed(left), self._placed(left[:, self.blocks])

    def energy_left(self, over: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Energies (n, N) from each cell on, after it, and from its block on, of energies over the threshold (n, N)."""
        own = over[:, self.order].double()
        rest = _rest(own, self.stops)
        return self._placed(rest), self._placed(rest - own), self._placed(rest[:, self.blocks])

    def share_of(self, marginals: Marginals, left: torch.Tensor, at: torch.Tensor) -> Marginals:
        """Densities of v, from those of y, of cells (n, k) at these places (k,), with so many hits (n, k) left."""
        rest = (left - 1).clamp_min(1) * self.energy[:, at]
        return marginals._replace(
            mean=marginals.mean - rest.clamp_min(_LEAST).log()[..., None].to(marginals.mean.dtype)
        )

    def _placed(self, ordered: torch.Tensor) -> torch.Tensor:
        return _placed(ordered, self.order)


def to_come(marginals: Marginals, block: torch.Tensor, slices: tuple[slice, ...]) -> ToCome:
    """What is expected of cells with these densities (n, N), for the order of the blocks (N,), layer by layer."""
    order = torch.argsort(block, stable=True)
    blocks = torch.searchsorted(block[order], block[order])
    sizes = torch.tensor([at.stop - at.start for at in slices])
    layers = torch.arange(len(slices)).repeat_interleave(sizes).to(block.device)
    stops = sizes.cumsum(0).to(block.device)[layers]
    p = torch.sigmoid(marginals.logit)[:, order].double()
    over = p * expected_over(marginals)[:, order].double()
    rest, rest_over = _rest(p, stops), _rest(over, stops)
    number = stops - 1 - torch.arange(len(order), device=block.device)
    after = (rest - p, _rest(p.square(), stops) - p.square())
    mean = (rest_over - over).clamp_min(_LEAST) / after[0].clamp_min(_LEAST)
    sums = [_placed(part, order) for part in (*after, mean, rest[:, blocks], rest_over[:, blocks])]
    return ToCome(order, layers, stops, blocks, (sums[0], sums[1], _placed(number[None], order)[0]), *sums[2:])


def expected_over(marginals: Marginals) -> torch.Tensor:
    """Energy over the threshold (n, N), in thresholds, that a hit has roughly: that of its mean logarithm."""
    mean = (marginals.log_share.exp() * marginals.mean).sum(-1)
    return mean.exp()


def log_odds(left: torch.Tensor, mean: torch.Tensor, squares: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Logarithms (...,) of the factor of the odds of a hit where some (...,) are left.

    Args:
        left: (...,) hits left for a cell and those after it.
        mean: (...,) sum of the probabilities of those after it.
        squares: (...,) sum of the squares of these.
        number: (...,) of cells after it.
    """
    mean, squares = mean.clamp_min(1e-6), squares.clamp_min(_LEAST)
    q = (squares / mean).clamp(1e-6, 1 - 1e-6)
    trials = (mean / q - left + 1).clamp_min(0.1)
    odds = (left.clamp_min(0.1).log() - trials.log() + torch.log1p(-q) - q.log()).clamp(-LARGEST_OFFSET, LARGEST_OFFSET)
    odds = torch.where(left > number, CERTAIN, odds)
    return torch.where(left <= 0, -CERTAIN, odds)


def draw_hits(
    corrected: Marginals, ahead: ToCome, left: torch.Tensor, z: torch.Tensor, at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Marginals]:
    """Draw the hits of a block of cells, one after the other.

    Args:
        corrected: densities (n, k) of the cells, without the odds of what is left.
        ahead: what is expected later.
        left: (n,) hits left for this block and those after.
        z: (n, k) normal numbers.
        at: (k,) places of the cells.

    Returns:
        Hits (n, k), hits left (n, k) for each cell and those after, and the densities with their odds.
    """
    beyond = torch.special.ndtr(-z.double())
    mean, squares, number = ahead.hits
    hits, logits, lefts = [], [], []
    for place, cell in enumerate(at.tolist()):
        odds = log_odds(left, mean[:, cell], squares[:, cell], number[cell])
        logits.append(corrected.logit[:, place].double() + odds)
        hits.append((beyond[:, place] < torch.sigmoid(logits[-1])) | (odds >= CERTAIN))
        lefts.append(left)
        left = left - hits[-1].to(left.dtype)
    densities = corrected._replace(logit=torch.stack(logits, dim=1).to(z.dtype))
    return torch.stack(hits, dim=1), torch.stack(lefts, dim=1), densities


def draw_energies(v: torch.Tensor, hit: torch.Tensor, left: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Energies over the threshold (n, k) of a block of cells, float64, each a share of what those before have left.

    Args:
        v: (n, k) logarithms of shares over what they leave.
        hit: (n, k) which cells are hit.
        left: (n, k) hits left for each cell and those after; the last one takes the rest.
        over: (n,) energy over the threshold left for this block and those after.
    """
    v = torch.where(hit, v.double(), -torch.inf)
    v = torch.where(hit & (left <= 1), torch.inf, v)
    leaves = torch.sigmoid(-v)
    before = functional.pad(leaves[:, :-1], (1, 0), value=1.0).cumprod(1)
    return over[:, None] * before * torch.sigmoid(v)


def _rest(ordered: torch.Tensor, stops: torch.Tensor) -> torch.Tensor:
    """Sums (n, N) of numbers (n, N) in order from each place on until its layer stops (N,)."""
    sums = functional.pad(ordered.cumsum(1), (1, 0))
    return sums[:, stops] - sums[:, :-1]


def _placed(ordered: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Numbers (n, N) in order, brought to their cells."""
    out = torch.empty_like(ordered)
    out[:, order] = ordered
    return out
