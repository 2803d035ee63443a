"""GANs with other critics than one of all features: what options and subclasses can do."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from calorefine import WGAN, CramerGAN
from calorefine.models.auxiliary import Attribute, Auxiliary, Enforced, Matched
from calorefine.models.critics import Critic, CriticOptions
from calorefine.nets import MLP
from calorefine.stats import batch_mean

OPTIONS = {
    "QuantityWGAN": partial(WGAN, critics=[CriticOptions(weight=0.5), CriticOptions("a * p + exp(b)", hidden=[16])]),
    "SwishWGAN": partial(WGAN, act="swish"),
    "AttributeWGAN": partial(WGAN, attributes=[Attribute("q + a * p", weight=0.5)]),
    "EnforcedWGAN": partial(WGAN, enforce=[Enforced(mean="a * b"), Enforced(width="d", weight=2.0)]),
    "MatchedWGAN": partial(WGAN, matched=[Matched(["a * p", "b + d"], weight=2.0)]),
    "ObservedWGAN": partial(WGAN, critics=[CriticOptions(), CriticOptions(observables=True, also=["a + b"])]),
    "SimilarWGAN": partial(WGAN, critics=[CriticOptions(also=["a + b"], similarities=3, hidden=[16])]),
    "CramerGANWithAll": partial(
        CramerGAN,
        act="swish",
        critics=[CriticOptions(), CriticOptions("a + d", also=["q"], weight=0.2, hidden=[16])],
        attributes=[Attribute("p", hidden=[16])],
        enforce=[Enforced(width="a + d")],
    ),
}
"""Recipes of the package with their options switched on."""


class BatchCritic(nn.Module):
    """Gives an event's value from its features and from weighted means over all events of the batch."""

    def __init__(self, n_in: int, n_means: int = 4) -> None:
        super().__init__()
        self.statistics = MLP(n_in, n_means, hidden=[16])
        self.value = MLP(n_in + n_means, 1, hidden=[16])

    def forward(self, x: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        means = (share[..., None] * self.statistics(x)).sum(-2, keepdim=True)
        return self.value(torch.cat([x, means.expand(*x.shape[:-1], -1)], dim=-1))


class BatchWGAN(WGAN):
    """A WGAN whose only critic takes statistics of the batch."""

    def build(self, n_features: int, n_context: int) -> None:
        super().build(n_features, n_context)
        self.critic = BatchCritic(n_features + n_context)

    def critics(self) -> list[Critic]:
        return [Critic(self.critic)]


class SumWGAN(WGAN):
    """A WGAN with a second critic, of the sum of two features in physical units, and a network that tells contexts."""

    def build(self, n_features: int, n_context: int) -> None:
        super().build(n_features, n_context)
        self.sum_critic = MLP(1 + n_context, 1, hidden=[16])
        self.regression = MLP(n_features, n_context, hidden=[16])

    def sum(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.physical(x, context)[..., :2].sum(-1, keepdim=True)

    def critics(self) -> list[Critic]:
        return [*super().critics(), Critic(self.sum_critic, view=self.sum, weight=0.5, eventwise=True)]

    def auxiliaries(self) -> list[Auxiliary]:
        return [Auxiliary(self.told, weight=0.1, network=self.regression, loss=self.regressed)]

    def regressed(self, batch, generated):
        """Squared error of the contexts told from reference events, without weights: it has to have a lower bound."""
        del generated
        return (self.regression(batch.x) - batch.context).square().mean((-2, -1))

    def told(self, batch, generated, mean_weight, *, full):
        """Error, between 0 and 1, of the contexts told from generated events."""
        del full
        error = torch.tanh((self.regression(generated) - batch.context).square().mean(-1))
        return batch_mean(error, batch.weight, mean_weight)
