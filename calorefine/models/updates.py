"""The loop of a training: the updates that a recipe names, made batch by batch, with rates that fall and averages.

An update moves some parameters down a loss with an optimizer of its own, at every batch or at every k-th one.  While it
is made, the parameters of the other updates have no gradients: what they belong to is only passed through.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from calorefine.data.batches import Batch
from calorefine.data.preprocessing import Preprocessing
from calorefine.ddp import Ranks
from calorefine.errors import ConfigError, TrainingError
from calorefine.nets import Noise, linear


@dataclass(frozen=True)
class Average:
    """Exponential moving average of a network's parameters, over few updates at first, so that the start is forgotten.

    Args:
        of: the network that is trained.
        into: its copy, by `averaged`, that gets the average.
        decay: share of the average that an update keeps.
        warm_up: after n updates it keeps at most n / (n + warm_up).
    """

    of: nn.Module
    into: nn.Module
    decay: float
    warm_up: float = 10.0

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Move a fraction 1 - decay towards the present parameters, after `count` updates."""
        decay = min(self.decay, count / (count + self.warm_up))
        torch._foreach_lerp_(list(self.into.parameters()), list(self.of.parameters()), 1 - decay)


@dataclass(frozen=True)
class Update:
    """One of the updates that a training consists of.

    Args:
        name: of its loss, in logs and messages.
        parameters: what it moves.
        loss: from a batch in network units and the noise of the step to the loss (), or (k,) of k replicas side by
            side.
        optimizer: makes the optimizer of the parameters.
        schedule: from the part of the run that is over to the rate, as a fraction of the first one.
        every: batches from one to the next.
        clip_norm: gradients are scaled down to this norm, if it is given.
        average: moving average that follows it.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Batch, Noise], torch.Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    schedule: Callable[[float], float] = linear
    every: int = 1
    clip_norm: float | None = None
    average: Average | None = None


class UpdatedModule(pl.LightningModule):
    """A Lightning module that is trained by `updates`; without any, a training only passes over the data."""

    features: Preprocessing
    context: Preprocessing
    noise_seed: torch.Tensor
    progress: float
    """Part of the run that is over, a function of epoch and batch, for losses that change with it; 1 outside of one."""

    def __init__(self) -> None:
        """Draw the seed of the steps' noise from the global generator."""
        super().__init__()
        self.automatic_optimization = False
        self.ranks, self.progress = Ranks(), 1.0
        self.register_buffer("noise_seed", torch.tensor(torch.initial_seed() % 2**31))

    def updates(self) -> list[Update]:
        """Name the updates, in the order in which a batch makes them; called once the networks are built."""
        return []

    def physical_context(self, context: torch.Tensor) -> torch.Tensor:
        """Encoded context (..., c) in physical units, from network units."""
        return self.context.inverse(context, context)

    def dequantized(self, batch: Batch, noise: Noise) -> Batch:
        """Batch in network units with its atoms and integers spread anew, as a continuous generator makes them."""
        if not self.features.is_discrete:
            return batch
        context = self.physical_context(batch.context)
        spread = self.features.dequantize(batch.x, noise.generators[0], context, noise.ranks)
        return Batch(spread, batch.context, batch.weight)

    def configure_optimizers(self) -> Any:
        """Make optimizer and schedule of each update.

        Without updates there is an optimizer of nothing: a step has to be counted, or Lightning writes no checkpoint.

        Raises:
            ConfigError: the length of the training is not given by a number of epochs.
        """
        self._updates = self.updates()
        if not self._updates:
            return SGD([torch.zeros(0, requires_grad=True, device=self.device)])
        if len(self._updates) > 1 and self.trainer.max_steps != -1 and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning
            msg = f"trainer.max_steps: {self.trainer.max_steps} found, expected -1, since it counts both optimizers"
            raise ConfigError(msg + "; limit the training by trainer.max_epochs")
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            msg = "trainer.max_epochs: no limit found, expected a number of epochs for the rates to fall over"
            raise ConfigError(msg)
        self._n_batches = total
        optimizers = [update.optimizer(update.parameters) for update in self._updates]
        falls = [(update.schedule, total / update.every) for update in self._updates]
        rates = [lambda step, fall=fall, steps=steps: fall(step / steps) for fall, steps in falls]
        return optimizers, [LambdaLR(*pair) for pair in zip(optimizers, rates, strict=True)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Make the updates that are due."""
        optimizers, schedulers = (_listed(of()) for of in (self.optimizers, self.lr_schedulers))
        if not self._updates:
            optimizers[0].step()
            return
        noise = self.step_noise(self.current_epoch, batch_idx)
        batch = self.dequantized(batch, noise)
        count = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx + 1
        self.progress = (count - 1) / self._n_batches
        logged = batch_idx % self.trainer.log_every_n_steps < max(update.every for update in self._updates)  # type: ignore[attr-defined]  # set by Lightning
        for update, optimizer, scheduler in zip(self._updates, optimizers, schedulers, strict=True):
            if count % update.every:
                continue
            loss = self._make(update, optimizer, batch, noise)
            scheduler.step()
            if update.average is not None:
                update.average.update(count // update.every)
            if logged:
                self.log(update.name, loss.mean(), prog_bar=True, sync_dist=True)

    def _make(self, update: Update, optimizer: Any, batch: Batch, noise: Noise) -> torch.Tensor:
        """Make one update; return its loss."""
        self.toggle_optimizer(optimizer)
        loss = update.loss(batch, noise)
        self.check_finite(loss, update.name)
        optimizer.zero_grad()
        self.manual_backward(loss.sum())
        if update.clip_norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=update.clip_norm, gradient_clip_algorithm="norm")
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        return loss.detach()

    def step_noise(self, *position: int) -> Noise:
        """Random numbers of one training step: a function of the seed and the step, so that resuming is exact."""
        return Noise(step_seed(int(self.noise_seed), position), ranks=self.ranks, device=self.device)

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the loss; if processes share the batch, those of the whole batch's.

        The wrapper of `ddp` is not used for that: it expects each parameter in each backward pass, and a critic's and a
        generator's are in different ones.
        """
        strategy = self.trainer.strategy
        with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext():
            super().manual_backward(loss, *args, **kwargs)
        self.ranks.average_gradients(self)

    def check_finite(self, loss: torch.Tensor, name: str) -> None:
        """Raise `TrainingError` for a loss () or (k,) that is NaN or infinite, in each process if it is so in one."""
        loss = self.ranks.mean(loss)
        if torch.isfinite(loss).all():
            return
        msg = (
            f"{name} is {loss.tolist()} at epoch {self.current_epoch}, step {self.global_step}: training stopped, the "
            "last checkpoint is kept; try a smaller learning_rate or look for extreme weights"
        )
        raise TrainingError(msg)


def averaged(network: nn.Module) -> nn.Module:
    """Copy of a network for its moving average, which no optimizer trains."""
    return copy.deepcopy(network).requires_grad_(requires_grad=False)


def check_decay(average_decay: float) -> None:
    """Raise `ConfigError` for the decay of a moving average that is not from 0 to 1."""
    if not 0 <= average_decay < 1:
        raise ConfigError(f"average_decay: {average_decay} found, expected at least 0 and less than 1")


def step_seed(seed: int, position: tuple[int, ...]) -> int:
    """Seed of one step of a training with this seed."""
    for number in position:
        seed = (seed * 6_364_136_223_846_793_005 + number + 1_442_695_040_888_963_407) % 2**64
    return seed % 2**63


def _listed(one_or_several: Any) -> list[Any]:
    """What Lightning gives alone if it is one."""
    return one_or_several if isinstance(one_or_several, list) else [one_or_several]
