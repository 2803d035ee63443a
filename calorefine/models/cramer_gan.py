r"""Conditional Cramer GAN on signed weights (Bellemare et al., arXiv:1705.10743).

The critic maps (x, c) to points h of R^k, and the distance is the energy distance of the points of reference and
generated events at the same contexts and weights.  It is quadratic in the weights: minibatches use the U-statistic,
which is unbiased.  Its scale is bounded by a one-sided gradient penalty on h along random directions, at points that
carry no weights.  The paper's penalty asks for a unit gradient of f(x) = E|h(x) - h(g)| - E|h(x) - h(r)|, which is flat
wherever the generator is right; here it made the training diverge.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from calorefine import losses
from calorefine.models.adversarial import AdversarialModel
from calorefine.nets import Noise


class CramerGAN(AdversarialModel):
    """Weighted conditional Cramer GAN; the arguments are those of `AdversarialModel`."""

    critic_outputs = 64  # dimension k of the space in which distances are measured

    def data_term(
        self, reference: Tensor, generated: Tensor, weight: Tensor, mean_weight: float | Tensor, *, full: bool
    ) -> Tensor:
        """Energy distance of the critic's points; unbiased on a batch, plug-in on the full sample.

        Processes that share a batch gather its points, since pairs of events count; each computes all distances.
        """
        if not full:
            reference, generated, weight = map(self.ranks.gathered, (reference, generated, weight))
        return losses.energy_distance(reference, generated, weight=weight, mean_weight=mean_weight, unbiased=not full)

    def penalty(self, values: Tensor, points: Tensor, noise: Noise) -> Tensor:
        """Gradient of h along a random direction of R^k."""
        direction = functional.normalize(noise.normal(*values.shape[-2:]), dim=-1)
        slope = (values * direction).sum(-1)
        return losses.gradient_penalty(slope, points, norm=self.penalty_norm, one_sided=True)
