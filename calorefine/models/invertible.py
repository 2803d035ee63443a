"""Generators that are trained by maximum likelihood, such as invertible maps of events to normal noise."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from calorefine import losses
from calorefine.data.batches import Batch
from calorefine.models.couplings import flow_log_prob
from calorefine.models.density import DensityModel
from calorefine.nets import Noise


class LikelihoodModel(DensityModel, recipe=False):
    """A recipe whose training minimizes the negative log likelihood; needs positive weights."""

    signed_weights = False
    validated_by = "negative log likelihood"
    terms_order = 1

    @abstractmethod
    def network_log_prob(self, u: torch.Tensor, context: torch.Tensor, *, trained: bool = False) -> torch.Tensor:
        """Log density (..., n) at u (..., n, d) in network units, given context (..., n, c).

        Args:
            u: events.
            context: conditions.
            trained: use the parameters as trained instead of their moving average.
        """

    def validation_terms(self, batch: Batch) -> torch.Tensor:
        """Weighted negative log likelihood (n,) of held-out events, in network units, over the mean weight."""
        u, context, weight = self.to_network(batch, torch.Generator().manual_seed(0))
        return -weight / weight.mean() * self.network_log_prob(u, context)

    def estimate(self, batch: Batch, noise: Noise, mean_weight: float | torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Weighted negative log likelihood of a minibatch, which needs no noise."""
        log_prob = self.network_log_prob(batch.x, batch.context, trained=True)
        return losses.negative_log_likelihood(log_prob, batch.weight, mean_weight)


class InvertibleModel(LikelihoodModel, recipe=False):
    """A recipe whose `build` makes `flow`, a transform of nflows, and `average`, its copy by `averaged`."""

    flow: Any  # nflows has no types

    @property
    def trained(self) -> nn.Module:
        """The layers."""
        layers: nn.Module = self.flow
        return layers

    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map noise to events with the averaged flow."""
        average: Any = self.average  # nflows has no types
        generated: torch.Tensor = average.inverse(latent, context)[0]
        return generated

    def network_log_prob(self, u: torch.Tensor, context: torch.Tensor, *, trained: bool = False) -> torch.Tensor:
        """Log density (..., n) by the change of variables; arguments as in the base."""
        return flow_log_prob(self.flow if trained else self.average, u, context)
