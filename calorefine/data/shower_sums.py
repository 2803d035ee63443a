r"""Observables of showers by torch, with a gradient: what critics of showers see, and what checkpoints are chosen by.

They are those of `shower_observables` (response, depth, and for each layer energy, center, width, number of hits and
shares of the hottest cells), on scales on which they are of order 1: energies as logarithms, places in cells, numbers
as roots.  The number of hits has the gradient of a soft one, in which a hit counts :math:`v / (v + 1/2)` with
:math:`v = \ln (E / T)`, from 0 at the threshold T.  Beside it are soft numbers of hits above some multiples of T, the
spectrum of the cells: critics of single cells hardly see that hits near the threshold are too many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calorefine.geometry import AXES, Geometry, Layer, pitches

ABOVE = (0.3, 1.0, 2.5)  # ln(E / T) beyond which hits are counted
STEP = 0.1  # width of that step
RANKS = (1, 2, 5, 20)  # hottest cells whose share of a layer is told


class ShowerSums:
    """Observables (n, k) of cells of a geometry.

    Args:
        geometry: of the cells.
        threshold_mev: energy of a cell that counts as 1, positive.
    """

    def __init__(self, geometry: Geometry, threshold_mev: float) -> None:
        """Keep the geometry."""
        self.geometry, self.threshold_mev = geometry, threshold_mev

    def __call__(self, cells: Tensor, e_inc: Tensor) -> Tensor:
        """Observables (n, k) of cells (n, N) in MeV, those below the threshold at 0, at incident energies (n,)."""
        parts = [cells[..., at] for at in self.geometry.slices]
        layers = torch.stack([part.sum(1) for part in parts], dim=1)
        total = layers.sum(1, keepdim=True)
        response = total / e_inc[:, None].to(total)
        depth = layers @ torch.arange(layers.shape[1]).to(layers) / total.clamp_min(self.threshold_mev)[:, 0]
        first = [response, depth[:, None], torch.log1p(layers / self.threshold_mev)]
        return torch.cat(
            [*first, *(self._of_layer(*pair) for pair in zip(self.geometry.layers, parts, strict=True))], dim=1
        )

    def _of_layer(self, layer: Layer, cells: Tensor) -> Tensor:
        """Centers and widths along the axes that are divided, occupancy, and shares (n, m) of one layer."""
        share = cells / cells.sum(1, keepdim=True).clamp_min(self.threshold_mev)
        told = []
        for axis, pitch, resolved in zip(AXES, pitches(layer), layer.resolved, strict=True):
            if resolved:
                where = torch.from_numpy(getattr(layer, axis)).to(share) / pitch
                mean = share @ where
                told += [mean, (share @ where.square() - mean.square()).clamp_min(1e-4).sqrt()]
        v = torch.log((cells / self.threshold_mev).clamp_min(1.0))
        soft = (v / (v + 0.5)).sum(1)
        hit = cells > 0
        hits = hit.sum(1) + (soft - soft.detach())
        told.append(hits.clamp_min(0.25).sqrt())
        told += [((hit * torch.sigmoid((v - above) / STEP)).sum(1) + 0.25).sqrt() for above in ABOVE]
        ranks = [k for k in RANKS if k < len(layer)]
        top = share.topk(max(ranks), dim=1).values.cumsum(1) if ranks else share[:, :0]
        told += [top[:, k - 1] for k in ranks]
        return torch.stack(told, dim=1)
