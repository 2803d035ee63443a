"""Training of a generator against critics, with weights: what the GAN recipes share.

Each batch updates the critics; every `n_critic`-th batch updates the generator too.  The generator that samples is
an exponential moving average of the trained one.  Rates fall linearly to one percent over the run: the game between
them oscillates with an amplitude that grows with the rate.

A recipe has one critic, of all features in network units, unless it names others (`critics`): each has its own view of
the event, such as a sum of features, and its own weight.  Auxiliary terms (`auxiliaries`) are what the generator
minimizes beside; they may have networks of their own, which are updated with the critics.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam

from calorefine import losses
from calorefine.data.batches import Batch
from calorefine.errors import ConfigError
from calorefine.models.base import TrainedModel
from calorefine.models.updates import Average, Update, averaged, check_decay
from calorefine.nets import MLP, Activation, LatentSkip, Noise


@dataclass(frozen=True)
class Critic:
    """One of the critics, which sees reference and generated events apart.

    Args:
        network: maps (..., B, v + c) view and context to (..., B, k).  Unless it is `eventwise` it is also given the
            shares (..., B) of the events in the sum of weights, 1 / B each for weights that are equal: a statistic of
            the batch is a sum over the axis -2 with these.
        view: what it sees (..., B, v) of events (..., B, d) in network units.  It is computed before the network and
            the penalty, which acts on the gradient with respect to it; `physical` gives physical units.
        weight: factor of its distance in what the generator minimizes.
        eventwise: whether its output for an event depends on nothing but the event: then reference and generated events
            share a pass, which is faster.
    """

    network: nn.Module
    view: Callable[[Tensor], Tensor] = nn.Identity()  # noqa: RUF009 (has no state)
    weight: float = 1.0
    eventwise: bool = False

    def __call__(self, *samples: tuple[Tensor, Tensor], share: Tensor | None = None) -> tuple[Tensor, ...]:
        """Outputs (..., B, k) for samples of (view, context), whose events have these shares."""
        inputs = [torch.cat(sample, dim=-1) for sample in samples]
        if not self.eventwise:
            return tuple(self.network(sample, share) for sample in inputs)
        outputs: Tensor = self.network(torch.cat(inputs, dim=-2))
        return outputs.chunk(len(inputs), dim=-2)


@dataclass(frozen=True)
class Auxiliary:
    """A term that the generator minimizes beside the critics' distances.

    Args:
        term: from a batch, generated events (..., B, d) at its contexts and the mean weight to the term (...).
        weight: its factor.
        network: what it has of its own, if anything.
        loss: from a batch and generated events to what that network minimizes (...); with signed weights it needs a
            lower bound.
    """

    term: Callable[[Batch, Tensor, float | Tensor], Tensor]
    weight: float = 1.0
    network: nn.Module | None = None
    loss: Callable[[Batch, Tensor], Tensor] | None = None


class AdversarialModel(TrainedModel, recipe=False):
    """Generator and critic, both fully connected.

    Args:
        latent_size: number of standard normal numbers that make one event.
        generator_hidden: widths of the generator's hidden layers.
        critic_hidden: widths of the critic's hidden layers.
        act: activation of both.
        learning_rate: initial rate of both, for Adam.
        betas: moments of Adam.
        n_critic: critic updates for each generator update.
        penalty_weight: weight of the gradient penalty.
        penalty_norm: norm of the critic's gradient that the penalty asks for: 1 as usual, or 0, which lets the critic
            come to rest where generated events are right (Mescheder et al., arXiv:1801.04406).  A CramerGAN's may be
            smaller, too.
        penalty_stride: the penalty is taken at every so manieth event of a batch: it has no weights, and needs fewer
            events than the data term.  A critic that sees batches as a whole has it at every event.  Processes that
            share a batch take every so manieth of their own parts.
        average_decay: decay of the generator's moving average.
    """

    critic_outputs: ClassVar[int]
    leading_axis = True

    def __init__(
        self,
        *,
        latent_size: int = 16,
        generator_hidden: list[int] = [64, 64, 64],  # noqa: B006 (never changed; shown by --print_config)
        critic_hidden: list[int] = [128, 128, 128],  # noqa: B006 (never changed; shown by --print_config)
        act: Activation = "leaky_relu",
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.0, 0.9),
        n_critic: int = 3,
        penalty_weight: float = 1.0,
        penalty_norm: float = 1.0,
        penalty_stride: int = 1,
        average_decay: float = 0.998,
    ) -> None:
        """Check the options; networks are built when the data are known."""
        super().__init__(latent_size=latent_size)
        if n_critic < 1:
            raise ConfigError(f"n_critic: {n_critic} found, expected at least 1")
        if penalty_stride < 1:
            raise ConfigError(f"penalty_stride: {penalty_stride} found, expected at least 1")
        check_decay(average_decay)
        self.generator_hidden, self.critic_hidden, self.act = generator_hidden, critic_hidden, act
        self.learning_rate, self.betas = learning_rate, betas
        self.n_critic, self.average_decay = n_critic, average_decay
        self.penalty_weight, self.penalty_norm, self.penalty_stride = penalty_weight, penalty_norm, penalty_stride

    def build(self, n_features: int, n_context: int) -> None:
        """Create generator, critic, and the averaged generator."""
        self.generator = LatentSkip(self.latent_size, n_context, n_features, hidden=self.generator_hidden, act=self.act)
        self.critic = MLP(n_features + n_context, self.critic_outputs, hidden=self.critic_hidden, act=self.act)
        self.average = averaged(self.generator)

    def critics(self) -> list[Critic]:
        """Critics, each of networks that `build` creates."""
        return [Critic(self.critic, eventwise=True)]

    def auxiliaries(self) -> list[Auxiliary]:
        """Auxiliary terms, of networks that `build` creates."""
        return []

    @abstractmethod
    def data_term(
        self, reference: Tensor, generated: Tensor, weight: Tensor, mean_weight: float | Tensor, *, full: bool
    ) -> Tensor:
        """Distance (...) that a critic maximizes and the generator minimizes, from critic outputs (..., B, k)."""

    @abstractmethod
    def penalty(self, values: Tensor, points: Tensor, noise: Noise) -> Tensor:
        """Unweighted penalty (...) on the gradient of a critic's outputs (..., B, k) at points (..., B, v)."""

    @property
    def network(self) -> nn.Module:
        """The averaged generator."""
        return self.average

    def generate(self, latent: Tensor, context: Tensor) -> Tensor:
        """Generate with the averaged generator."""
        generated: Tensor = self.average(torch.cat([latent, context], dim=1))
        return generated

    def setup(self, stage: str) -> None:
        """Set up; refuse several processes for critics that take statistics of a batch, of which each has a part."""
        super().setup(stage)
        if self.ranks.n > 1 and not all(critic.eventwise for critic in self.critics()):
            msg = f"trainer.strategy ddp: found with {type(self).__name__}, whose critics see batches as a whole"
            raise ConfigError(f"{msg}; expected one device and no strategy")

    def updates(self) -> list[Update]:
        """Adam for the critics and for the generator, with linearly falling rates."""
        adam = partial(Adam, lr=self.learning_rate, betas=self.betas)
        judges = nn.ModuleList(critic.network for critic in self.critics())
        judges.extend(auxiliary.network for auxiliary in self.auxiliaries() if auxiliary.network is not None)
        average = Average(self.generator, self.average, self.average_decay, warm_up=2)
        generator = list(self.generator.parameters())
        return [
            Update("critic_loss", list(judges.parameters()), self.critic_loss, adam),
            Update("generator_loss", generator, self.loss, adam, every=self.n_critic, average=average),
        ]

    def objective(self, batch: Batch, noise: Noise) -> Tensor:
        """What the current generator minimizes against the current critics, on a full sample."""
        return self._generator_terms(batch, noise, float(batch.weight.mean()), full=True)

    def estimate(self, batch: Batch, noise: Noise, mean_weight: float | Tensor) -> Tensor:
        """Estimate of the same from a minibatch; unbiased for critics that are `eventwise`."""
        return self._generator_terms(batch, noise, mean_weight, full=False)

    def critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """What the critics and the networks of auxiliary terms minimize."""
        generated, terms = self._generated(batch, noise).detach(), []
        for critic in self.critics():
            distance = self._distance(critic, batch, generated, self.mean_weight, full=False)
            some = slice(None, None, self.penalty_stride if critic.eventwise else 1)
            ends = (critic.view(x)[..., some, :] for x in (batch.x, generated))
            points = losses.interpolate(*ends, noise=noise)
            equal = None if critic.eventwise else torch.full_like(batch.weight, 1 / batch.weight.shape[-1])
            (values,) = critic((points, batch.context[..., some, :]), share=equal)
            terms.append(self.penalty_weight * self.penalty(values, points, noise) - distance)
        terms += [other.loss(batch, generated) for other in self.auxiliaries() if other.loss is not None]
        return torch.stack(terms).sum(0)

    def _generator_terms(self, batch: Batch, noise: Noise, mean_weight: float | Tensor, *, full: bool) -> Tensor:
        generated = self._generated(batch, noise)
        terms = [c.weight * self._distance(c, batch, generated, mean_weight, full=full) for c in self.critics()]
        terms += [other.weight * other.term(batch, generated, mean_weight) for other in self.auxiliaries()]
        return torch.stack(terms).sum(0)

    def _distance(
        self, critic: Critic, batch: Batch, generated: Tensor, mean_weight: float | Tensor, *, full: bool
    ) -> Tensor:
        """Data term (...) of one critic for events generated at the batch's contexts.

        Its values of reference events don't depend on the generator, and need no gradient where that is trained.
        """
        samples = [(critic.view(x), batch.context) for x in (batch.x, generated)]
        share = None if critic.eventwise else losses.shares(batch.weight, mean_weight)
        if generated.requires_grad:
            with torch.no_grad():
                (reference,) = critic(samples[0], share=share)
            (judged,) = critic(samples[1], share=share)
        else:
            reference, judged = critic(*samples, share=share)
        return self.data_term(reference, judged, batch.weight, mean_weight, full=full)

    def _generated(self, batch: Batch, noise: Noise) -> Tensor:
        """Events (..., B, d) of the current generator at the batch's contexts."""
        latent = noise.normal(batch.weight.shape[-1], self.latent_size)
        generated: Tensor = self.generator(torch.cat([latent, batch.context], dim=-1))
        return generated
