"""Training of a generator against a critic, with weights: what the GAN recipes share.

Each batch updates the critic; every `n_critic`-th batch updates the generator too.  The generator that samples is
an exponential moving average of the trained one.  Rates fall linearly to one percent over the run: the game between the
two oscillates with an amplitude that grows with the rate.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from calorefine.data import Batch
from calorefine.errors import ConfigError
from calorefine.models.base import TrainedModel, frozen
from calorefine.nets import MLP, Activation, LatentSkip, Linear, Noise, update_average


class AdversarialModel(TrainedModel):
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
            events than the data term.
        average_decay: decay of the generator's moving average.
    """

    critic_outputs: ClassVar[int]

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
        if not 0 <= average_decay < 1:
            raise ConfigError(f"average_decay: {average_decay} found, expected at least 0 and less than 1")
        self.automatic_optimization = False
        self.generator_hidden, self.critic_hidden, self.act = generator_hidden, critic_hidden, act
        self.learning_rate, self.betas = learning_rate, betas
        self.n_critic, self.average_decay = n_critic, average_decay
        self.penalty_weight, self.penalty_norm, self.penalty_stride = penalty_weight, penalty_norm, penalty_stride
        self.save_hyperparameters()

    def build(self, n_features: int, n_context: int) -> None:
        """Create generator, critic, and the averaged generator."""
        self.generator = LatentSkip(self.latent_size, n_context, n_features, hidden=self.generator_hidden, act=self.act)
        self.critic = MLP(n_features + n_context, self.critic_outputs, hidden=self.critic_hidden, act=self.act)
        self.average = frozen(copy.deepcopy(self.generator))

    @property
    def network(self) -> nn.Module:
        """The averaged generator."""
        return self.average

    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Generate with the averaged generator."""
        generated: torch.Tensor = self.average(torch.cat([latent, context], dim=1))
        return generated

    def evaluate_critic(self, *samples: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Critic outputs (..., B, k) of several (x, context) samples, in one pass."""
        stacked = torch.cat([torch.cat(sample, dim=-1) for sample in samples], dim=-2)
        outputs: torch.Tensor = self.critic(stacked)
        return outputs.chunk(len(samples), dim=-2)

    @abstractmethod
    def data_term(
        self,
        reference: torch.Tensor,
        generated: torch.Tensor,
        weight: torch.Tensor,
        mean_weight: float | torch.Tensor,
        *,
        full: bool,
    ) -> torch.Tensor:
        """Distance (...) that the critic maximizes and the generator minimizes, from critic outputs (..., B, k)."""

    @abstractmethod
    def penalty(self, batch: Batch, generated: torch.Tensor, noise: Noise) -> torch.Tensor:
        """Unweighted penalty (...) on the critic's gradient."""

    def objective(self, batch: Batch, latent: torch.Tensor) -> torch.Tensor:
        """Full-sample data term with the current generator and critic."""
        generated = self.generator(torch.cat([latent, batch.context], dim=-1))
        return self._distance(batch, generated, float(batch.weight.mean()), full=True)

    def estimate(self, batch: Batch, latent: torch.Tensor, mean_weight: float | torch.Tensor) -> torch.Tensor:
        """Minibatch data term with the current generator and critic."""
        generated = self.generator(torch.cat([latent, batch.context], dim=-1))
        return self._distance(batch, generated, mean_weight, full=False)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the critic, and every `n_critic`-th time the generator."""
        noise = self.step_noise(self.current_epoch, batch_idx)
        batch = self.dequantized(batch, noise)
        optimizers: Any = self.optimizers()  # two of each, as configured
        schedulers: Any = self.lr_schedulers()
        self._update(self._critic_loss(batch, noise), optimizers[0], schedulers[0], "critic_loss", batch_idx)
        if self.n_updates(batch_idx) % self.n_critic == 0:
            self.critic.requires_grad_(requires_grad=False)  # only passed through
            self._update(self._generator_loss(batch, noise), optimizers[1], schedulers[1], "generator_loss", batch_idx)
            self.critic.requires_grad_(requires_grad=True)
            count = self.n_updates(batch_idx) // self.n_critic
            update_average(self.average, self.generator, min(self.average_decay, count / (count + 2)))

    def n_updates(self, batch_idx: int) -> int:
        """Critic updates so far, this one included."""
        return self.current_epoch * int(self.trainer.num_training_batches) + batch_idx + 1

    def configure_optimizers(self) -> Any:
        """Adam for critic and generator, with linearly falling rates."""
        if self.trainer.max_steps != -1:
            msg = f"trainer.max_steps: {self.trainer.max_steps} found, expected -1, since it counts both optimizers"
            raise ConfigError(msg + "; limit the training by trainer.max_epochs")
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ConfigError(
                "trainer.max_epochs: no limit found, expected a number of epochs for the rates to fall over"
            )
        pairs = []
        for network, steps in ((self.critic, total), (self.generator, total / self.n_critic)):
            optimizer = Adam(network.parameters(), lr=self.learning_rate, betas=self.betas)
            pairs.append((optimizer, LambdaLR(optimizer, Linear(steps))))
        return [optimizer for optimizer, _ in pairs], [scheduler for _, scheduler in pairs]

    def _critic_loss(self, batch: Batch, noise: Noise) -> torch.Tensor:
        with torch.no_grad():
            generated = self._generate_trained(batch, noise)
        distance = self._distance(batch, generated, self.mean_weight, full=False)
        some = slice(None, None, self.penalty_stride)
        part = Batch(batch.x[..., some, :], batch.context[..., some, :], batch.weight[..., some])
        return self.penalty_weight * self.penalty(part, generated[..., some, :], noise) - distance

    def _generator_loss(self, batch: Batch, noise: Noise) -> torch.Tensor:
        return self.generator_term(batch, self._generate_trained(batch, noise))

    def generator_term(self, batch: Batch, generated: torch.Tensor) -> torch.Tensor:
        """What the generator minimizes (...) on a batch: the data term, or what of it depends on generated events."""
        return self._distance(batch, generated, self.mean_weight, full=False)

    def _distance(
        self, batch: Batch, generated: torch.Tensor, mean_weight: float | torch.Tensor, *, full: bool
    ) -> torch.Tensor:
        """Data term (...) for events generated at the batch's contexts."""
        real, made = self.evaluate_critic((batch.x, batch.context), (generated, batch.context))
        return self.data_term(real, made, batch.weight, mean_weight, full=full)

    def _generate_trained(self, batch: Batch, noise: Noise) -> torch.Tensor:
        latent = noise.normal(batch.weight.shape[-1], self.latent_size)
        generated: torch.Tensor = self.generator(torch.cat([latent, batch.context], dim=-1))
        return generated

    def _update(self, loss: torch.Tensor, optimizer: Any, scheduler: Any, name: str, batch_idx: int) -> None:
        self.check_finite(loss, name)
        optimizer.zero_grad()
        self.manual_backward(loss.sum())
        optimizer.step()
        scheduler.step()
        if batch_idx % self.trainer.log_every_n_steps < self.n_critic:  # type: ignore[attr-defined]  # set by Lightning
            self.log(name, loss.detach().mean(), prog_bar=True, sync_dist=True)
