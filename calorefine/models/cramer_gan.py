r"""Conditional Cramer GAN on signed weights (Bellemare et al., arXiv:1705.10743).

The critic maps (x, c) to points h of R^k, and the distance is the energy distance of the points of reference and generated
events at the same contexts and weights.  It is quadratic in the weights: minibatches use the U-statistic, which is unbiased.
The gradient penalty acts on

.. math:: f(x, c) = \frac{1}{B \bar w} \sum_j w_j \, [ |h(x, c) - h(g_j, c_j)| - |h(x, c) - h(x_j, c_j)| ] ,

whose weighted mean difference is the energy distance; the points where it is evaluated carry no weights.
"""

from __future__ import annotations

import torch

from calorefine import losses
from calorefine.data import Batch
from calorefine.models.adversarial import AdversarialModel


class CramerGAN(AdversarialModel):
    """Weighted conditional Cramer GAN; the arguments are those of `AdversarialModel`."""

    critic_outputs = 64  # dimension k of the space in which distances are measured

    def data_term(
        self, reference: torch.Tensor, generated: torch.Tensor, weight: torch.Tensor, mean_weight: float, *, full: bool
    ) -> torch.Tensor:
        """Energy distance of the critic's points; unbiased on a batch, plug-in on the full sample."""
        return losses.energy_distance(reference, generated, weight=weight, mean_weight=mean_weight, unbiased=not full)

    def penalty(self, batch: Batch, generated: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
        """Gradient of f with respect to x, between reference and generated events."""
        points = losses.interpolate(batch.x, generated, noise=noise)
        between, reference, made = self.evaluate_critic(
            (points, batch.context), (batch.x, batch.context), (generated, batch.context)
        )
        difference = losses.distances(between, made) - losses.distances(between, reference)
        values = difference @ batch.weight / (len(batch.weight) * self.mean_weight)
        return losses.gradient_penalty(values, points)
