r"""Conditional Wasserstein GAN with gradient penalty, on signed weights.

The critic maximizes :math:`\sum_i w_i [D(x_i, c_i) - D(G(z_i, c_i), c_i)] / (B \bar w)` less the penalty; the generator
minimizes the same difference.  It is linear in the weights, and the penalty, which bounds it, is evaluated without them
(Gulrajani et al., arXiv:1704.00028).
"""

from __future__ import annotations

from torch import Tensor

from calorefine import losses
from calorefine.models.adversarial import AdversarialModel
from calorefine.nets import Noise


class WGAN(AdversarialModel):
    """Weighted conditional WGAN-GP; the arguments are those of `AdversarialModel`."""

    critic_outputs = 1

    def data_term(
        self, reference: Tensor, generated: Tensor, weight: Tensor, mean_weight: float | Tensor, *, full: bool
    ) -> Tensor:
        """Weighted difference of the critic's values; the same form on a batch and on the full sample."""
        del full
        return losses.wasserstein(reference[..., 0], generated[..., 0], weight=weight, mean_weight=mean_weight)

    def penalty(self, values: Tensor, points: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002 (draws no direction)
        """Gradient of the critic's values."""
        return losses.gradient_penalty(values[..., 0], points, norm=self.penalty_norm)
