"""Training of a generator against critics, with weights: what the GAN recipes share.

Each batch updates the critics; every `n_critic`-th batch updates the generator too.  The generator that samples is
an exponential moving average of the trained one.  Rates fall linearly to one percent over the run: the game between
them oscillates with an amplitude that grows with the rate.

A recipe has one critic, of all features in network units, unless others are configured or named by a subclass
(`critics`): each has its own view of the event, such as a sum of features, and its own weight.  Auxiliary terms
(`auxiliaries`) are what the generator minimizes beside; they may have networks of their own, which are updated with the
critics.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam

from calorefine import losses
from calorefine.data.batches import Batch
from calorefine.data.module import Prepared
from calorefine.errors import ConfigError
from calorefine.events import Events
from calorefine.io.provenance import plain
from calorefine.models.auxiliary import Attribute, Auxiliary, Enforced, Matched, records
from calorefine.models.base import TrainedModel
from calorefine.models.critics import ALL_FEATURES, Critic, CriticOptions
from calorefine.models.quantities import Quantities
from calorefine.models.updates import Average, Update, averaged, check_decay
from calorefine.nets import Activation, LatentSkip, Noise


class AdversarialModel(TrainedModel, recipe=False):
    """Generator and critic, both fully connected.

    Args:
        latent_size: number of standard normal numbers that make one event.
        generator_hidden: widths of the generator's hidden layers.
        critic_hidden: widths of the critic's hidden layers.
        act: activation of both; that of `swish` is trained, layer by layer.
        critics: what each critic sees, and its weight; one of all features if left out.
        attributes: properties of the event that networks tell from its features, of generated as of reference events.
        matched: quantities whose joint distribution with the context is compared by an energy distance, with no critic.
        enforce: means and widths that generated events are to have as the training sample has them.
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
    moments: Tensor
    leading_axis = True

    def __init__(
        self,
        *,
        latent_size: int = 16,
        generator_hidden: list[int] = [64, 64, 64],  # noqa: B006 (never changed; shown by --print_config)
        critic_hidden: list[int] = [128, 128, 128],  # noqa: B006 (never changed; shown by --print_config)
        act: Activation = "leaky_relu",
        critics: list[CriticOptions] = [ALL_FEATURES],  # noqa: B006 (never changed; shown by --print_config)
        attributes: list[Attribute] = [],  # noqa: B006
        matched: list[Matched] = [],  # noqa: B006
        enforce: list[Enforced] = [],  # noqa: B006
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
        if not critics:
            raise ConfigError("critics: none given, expected at least one")
        check_decay(average_decay)
        self.critic_options, self.attributes = records(CriticOptions, critics), records(Attribute, attributes)
        self.matched, self.enforced = records(Matched, matched), records(Enforced, enforce)
        described = {"critics": self.critic_options, "attributes": self.attributes}
        described |= {"matched": self.matched, "enforce": self.enforced}
        self.hparams.update({name: plain(options) for name, options in described.items()})
        self.generator_hidden, self.critic_hidden, self.act = generator_hidden, critic_hidden, act
        self.learning_rate, self.betas = learning_rate, betas
        self.n_critic, self.average_decay = n_critic, average_decay
        self.penalty_weight, self.penalty_norm, self.penalty_stride = penalty_weight, penalty_norm, penalty_stride

    def prepare(self, prepared: Prepared) -> None:
        """Find the quantities of the options in the data, and build the networks."""
        options = self.asked
        self.quantities = Quantities(options, prepared.columns)
        if options:
            self.register_buffer("moments", torch.tensor([[0.0, 1.0]] * len(options), dtype=torch.float64))
        super().prepare(prepared)

    @property
    def asked(self) -> dict[str, str]:
        """Expressions in physical units, to the option that each is of."""
        options = {text: "critics" for critic in self.critic_options for text in critic.quantities}
        options |= {attribute.expression: "attributes" for attribute in self.attributes}
        options |= {text: "matched" for matched in self.matched for text in matched.quantities}
        return options | {enforced.expression: "enforce" for enforced in self.enforced}

    def take_events(self, train: Events) -> None:
        """Take the means and widths of the quantities."""
        if self.quantities.options:
            self.moments.copy_(self.quantities.moments(train))

    def dequantized(self, batch: Batch, noise: Noise) -> Batch:
        """Batch as critics see it: atoms that a generator can make are left as they are."""
        spread = super().dequantized(batch, noise)
        return Batch(self.features.projected(spread.x), spread.context, spread.weight)

    def build(self, n_features: int, n_context: int) -> None:
        """Create generator, critics, networks of attributes, and the averaged generator."""
        self.generator = self.make_generator(n_features, n_context)
        hidden = self.critic_hidden
        self.critic, *others = (
            each.network(
                self.features.n_observed if each.observables else n_features,
                n_context,
                self.critic_outputs,
                hidden=hidden,
                act=self.act,
            )
            for each in self.critic_options
        )
        self.other_critics = nn.ModuleList(others)
        self.regressions = nn.ModuleList(each.network(n_features, hidden, self.act) for each in self.attributes)
        self.average = averaged(self.generator)

    def make_generator(self, n_features: int, n_context: int) -> nn.Module:
        """Network that makes events (..., B, d) of latent numbers and context (..., B, latent_size + c)."""
        return LatentSkip(self.latent_size, n_context, n_features, hidden=self.generator_hidden, act=self.act)

    def critics(self) -> list[Critic]:
        """Critics, each of networks that `build` creates."""
        networks = (self.critic, *self.other_critics)
        return [
            Critic(
                network,
                options.view(self.standardized, self.observed),
                options.weight,
                eventwise=not options.similarities,
            )
            for network, options in zip(networks, self.critic_options, strict=True)
        ]

    def auxiliaries(self) -> list[Auxiliary]:
        """Auxiliary terms, of networks that `build` creates."""
        pairs = zip(self.attributes, self.regressions, strict=True)
        terms = [self._attribute(*pair) for pair in pairs] + [self._matched(matched) for matched in self.matched]
        return terms + [self._enforced(enforced) for enforced in self.enforced]

    def standardized(self, texts: list[str], x: Tensor, context: Tensor) -> Tensor:
        """Quantities (..., B, k) of events and context in network units, less their mean, in standard deviations."""
        places = [list(self.quantities.options).index(text) for text in texts]
        mean, width = self.moments[..., None, places, :].unbind(-1)
        values = self.quantities.values(texts, self.physical(x, context), self.physical_context(context))
        return ((values - mean) / width).to(x.dtype)

    def observed(self, x: Tensor, context: Tensor) -> Tensor:
        """Observables (B, m) of events (B, d) at context (B, c) in network units, as the preprocessing tells them."""
        return self.features.observed(x, self.physical_context(context)).to(x.dtype)

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
        return self.features.projected(self.average(torch.cat([latent, context], dim=1)))

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
        generated = self._generated(batch, noise).detach()
        terms = [other.loss(batch, generated) for other in self.auxiliaries() if other.loss is not None]
        for critic in self.critics():
            seen = critic.view(batch.x, batch.context), critic.view(generated, batch.context)
            distance = self._distance(critic, seen, batch, self.mean_weight, full=False)
            some = slice(None, None, self.penalty_stride if critic.eventwise else 1)
            points = losses.interpolate(*(view[..., some, :] for view in seen), noise=noise)
            equal = None if critic.eventwise else torch.full_like(batch.weight, 1 / batch.weight.shape[-1])
            (values,) = critic((points, batch.context[..., some, :]), share=equal)
            terms.append(self.penalty_weight * self.penalty(values, points, noise) - distance)
        return torch.stack(terms).sum(0)

    def _generator_terms(self, batch: Batch, noise: Noise, mean_weight: float | Tensor, *, full: bool) -> Tensor:
        generated = self._generated(batch, noise)
        terms = []
        for critic in self.critics():
            with torch.no_grad():  # what is seen of reference events doesn't depend on the generator
                reference = critic.view(batch.x, batch.context)
            seen = reference, critic.view(generated, batch.context)
            terms.append(critic.weight * self._distance(critic, seen, batch, mean_weight, full=full))
        terms += [other.weight * other.term(batch, generated, mean_weight, full=full) for other in self.auxiliaries()]
        return torch.stack(terms).sum(0)

    def _distance(
        self, critic: Critic, seen: tuple[Tensor, Tensor], batch: Batch, mean_weight: float | Tensor, *, full: bool
    ) -> Tensor:
        """Data term (...) of one critic by its views of the batch's events and of those generated at their contexts.

        Its values of reference events don't depend on the generator, and need no gradient where that is trained.
        """
        reference, generated = ((view, batch.context) for view in seen)
        share = None if critic.eventwise else losses.shares(batch.weight, mean_weight)
        if seen[1].requires_grad:
            with torch.no_grad():
                (true,) = critic(reference, share=share)
            (made,) = critic(generated, share=share)
        else:
            true, made = critic(reference, generated, share=share)
        return self.data_term(true, made, batch.weight, mean_weight, full=full)

    def _attribute(self, attribute: Attribute, network: nn.Module) -> Auxiliary:
        def error(batch: Batch, x: Tensor, mean_weight: float | Tensor) -> Tensor:
            value = self.standardized([attribute.expression], x, batch.context)[..., 0]
            return attribute.error(network(x)[..., 0], value, weight=batch.weight, mean_weight=mean_weight)

        def term(batch: Batch, generated: Tensor, mean_weight: float | Tensor, *, full: bool) -> Tensor:
            del full  # the same form on a batch and on the full sample
            return error(batch, generated, mean_weight)

        def loss(batch: Batch, generated: Tensor) -> Tensor:
            del generated
            return error(batch, batch.x, self.mean_weight)

        return Auxiliary(term, attribute.weight, network, loss)

    def _matched(self, matched: Matched) -> Auxiliary:
        def points(x: Tensor, context: Tensor) -> Tensor:
            return torch.cat([self.standardized(matched.quantities, x, context), context], dim=-1)

        def term(batch: Batch, generated: Tensor, mean_weight: float | Tensor, *, full: bool) -> Tensor:
            with torch.no_grad():
                reference = points(batch.x, batch.context)
            made, weight = points(generated, batch.context), batch.weight
            if not full:
                reference, made, weight = map(self.ranks.gathered, (reference, made, weight))
            return losses.energy_distance(reference, made, weight=weight, mean_weight=mean_weight, unbiased=not full)

        return Auxiliary(term, matched.weight)

    def _enforced(self, enforced: Enforced) -> Auxiliary:
        def term(batch: Batch, generated: Tensor, mean_weight: float | Tensor, *, full: bool) -> Tensor:
            z = self.standardized([enforced.expression], generated, batch.context)[..., 0]
            values, weight = enforced.centered(z), batch.weight
            if not full:
                values, weight = map(self.ranks.gathered, (values, weight))
            return losses.squared_mean(values, weight=weight, mean_weight=mean_weight, unbiased=not full)

        return Auxiliary(term, enforced.weight)

    def _generated(self, batch: Batch, noise: Noise) -> Tensor:
        """Events (..., B, d) of the current generator at the batch's contexts."""
        latent = noise.normal(batch.weight.shape[-1], self.latent_size)
        return self.features.projected(self.generator(torch.cat([latent, batch.context], dim=-1)))
