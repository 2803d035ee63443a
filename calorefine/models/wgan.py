r"""Conditional Wasserstein GAN with gradient penalty, on signed weights.

The critic maximizes :math:`\sum_i w_i [D(x_i, c_i) - D(G(z_i, c_i), c_i)] / (B \bar w)` less the penalty; the generator
minimizes the same difference.  It is linear in the weights, and the penalty, which bounds it, is evaluated without them
(Gulrajani et al., arXiv:1704.00028).
"""

from __future__ import annotations

import torch

from calorefine import losses
from calorefine.data import Batch
from calorefine.models.adversarial import AdversarialModel
from calorefine.nets import Noise


class WGAN(AdversarialModel):
    """Weighted conditional WGAN-GP; the arguments are those of `AdversarialModel`."""

    critic_outputs = 1

    def data_term(
        self,
        reference: torch.Tensor,
        generated: torch.Tensor,
        weight: torch.Tensor,
        mean_weight: float | torch.Tensor,
        *,
        full: bool,
    ) -> torch.Tensor:
        """Weighted difference of the critic's values; the same form on a batch and on the full sample."""
        del full
        return losses.wasserstein(reference[..., 0], generated[..., 0], weight=weight, mean_weight=mean_weight)

    def generator_term(self, batch: Batch, generated: torch.Tensor) -> torch.Tensor:
        """The data term without the critic's values of reference events, which don't depend on the generator."""
        (made,) = self.evaluate_critic((generated, batch.context))
        return self.data_term(torch.zeros_like(made), made, batch.weight, self.mean_weight, full=False)

    def penalty(self, batch: Batch, generated: torch.Tensor, noise: Noise) -> torch.Tensor:
        """Gradient of the critic with respect to x, between reference and generated events."""
        points = losses.interpolate(batch.x, generated, noise=noise)
        (values,) = self.evaluate_critic((points, batch.context))
        return losses.gradient_penalty(values[..., 0], points, norm=self.penalty_norm)
