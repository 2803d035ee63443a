"""What every recipe shares: preprocessing, the validation distance, and a checkpoint that can sample on its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import nn

from calorefine import losses, stats
from calorefine.data import VALIDATION_EVENTS, Batch, EventDataModule, Prepared
from calorefine.errors import CheckpointError, ConfigError, TrainingError
from calorefine.events import Events
from calorefine.nets import Noise, n_parameters
from calorefine.ranks import Ranks
from calorefine.transforms import Preprocessing

CHECKPOINT_KEY = "calorefine"
CHECKPOINT_FORMAT = 1
EPOCHS_KEY = "calorefine_max_epochs"
LOWEST_KEY = "calorefine_lowest_validation"
SIGNIFICANT = 5.0  # standard errors by which a checkpoint has to be worse than another to be left for it


class GenerativeModel(pl.LightningModule, ABC):
    """A conditional generator of events, trained on weighted events.

    A recipe implements `build`, `generate`, and Lightning's `training_step` and `configure_optimizers`; one that has an
    objective is a `TrainedModel`.  Its constructor's arguments are its configuration.

    Args:
        latent_size: number of standard normal numbers that make one event.
    """

    signed_weights: ClassVar[bool] = True
    """Whether it can be trained on signed weights; if not, training on them is refused."""
    validated_by: ClassVar[str] = "energy distance"
    """What `validation_terms` are the terms of, for the summary of a run."""
    terms_order: ClassVar[int] = 2
    """Order of that as a U-statistic: the standard error is that of the mean of the terms, times the order."""

    features: Preprocessing
    context: Preprocessing
    noise_seed: torch.Tensor

    def __init__(self, *, latent_size: int) -> None:
        """Fix the latent space; networks are built when the data are known."""
        super().__init__()
        self.latent_size = latent_size
        self.ranks = Ranks()
        self.spec: dict[str, Any] | None = None
        self.lowest: torch.Tensor | None = None
        self.register_buffer("noise_seed", torch.tensor(torch.initial_seed() % 2**31))

    @abstractmethod
    def build(self, n_features: int, n_context: int) -> None:
        """Create the networks."""

    @abstractmethod
    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Generate events in network units: (n, latent_size) and (n, c) to (n, d)."""

    @property
    def network(self) -> nn.Module:
        """What `generate` uses: the whole model, but for recipes that have more, such as a critic or a second copy."""
        return self

    def prepare(self, prepared: Prepared) -> None:
        """Take over preprocessing and description of the training data, and build the networks."""
        self.features, self.context = prepared.features, prepared.context
        self.mean_weight = prepared.mean_weight
        self.build(prepared.features.n_columns, prepared.context.n_columns)
        self.spec = {
            "format": CHECKPOINT_FORMAT,
            "model": type(self).__name__,
            "init_args": {k: v for k, v in self.hparams.items() if not k.startswith("_")},
            "columns": prepared.columns.to_dict(),
            "domain": prepared.domain.tolist(),
            "mean_weight": prepared.mean_weight,
            "provenance": prepared.provenance,
        }

    def setup(self, stage: str) -> None:
        """Build the networks from the data module, once; share the training with other processes, if there are any.

        Raises:
            ConfigError: several processes that have nothing to train, or other data than each other.
            WeightError: a weight is negative, and the recipe can't take that.
        """
        if self.spec is None:
            self.set_up(self.trainer.datamodule)  # type: ignore[attr-defined]  # set by Lightning
        self.ranks = Ranks.of(self.trainer) if stage == "fit" else Ranks()
        if stage == "fit" and isinstance(self.trainer.strategy, ParallelStrategy) and n_parameters(self) == 0:
            msg = f"trainer.strategy ddp: found with {type(self).__name__}, which has nothing to train"
            raise ConfigError(f"{msg}; expected one device and no strategy")
        if self.ranks.n > 1:
            self.ranks.require_same(self.trainer.datamodule.identity() | self._identity())  # type: ignore[attr-defined]

    def _identity(self) -> dict[str, Any]:
        """What processes that train it together must agree on, beside the data."""
        options = {k: v for k, v in self.hparams.items() if not k.startswith("_")}
        return {"model": (type(self).__name__, options), "max_epochs": self.trainer.max_epochs}

    def set_up(self, data: EventDataModule) -> None:
        """Build the networks from a data module that is set up itself.

        Raises:
            WeightError: a weight is negative, and the recipe can't take that.
        """
        if not self.signed_weights:
            stats.require_nonnegative(data.train.weight, f"{type(self).__name__}, which needs positive weights")
        if data.prepared is None:
            raise RuntimeError("the data module is not set up")
        self.prepare(data.prepared)
        self.take_events(data.train)

    def take_events(self, train: Events) -> None:
        """Keep what sampling needs of the training events themselves, after `prepare`.

        Args:
            train: in physical units, with the weights that the recipe takes.
        """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that sampling needs, as plain containers, and the validation to compare later ones with."""
        checkpoint[CHECKPOINT_KEY] = self.spec
        checkpoint[LOWEST_KEY] = self.lowest
        checkpoint[EPOCHS_KEY] = self.trainer.max_epochs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the validations so far; refuse to resume what can't become what an uninterrupted run would be.

        Raises:
            CheckpointError: the checkpoint is from other training data, from a run of another length, whose rates fell
                otherwise, or from a finished run.
        """
        if self.spec is None or not self.trainer.training:
            return
        self.lowest = checkpoint[LOWEST_KEY]
        found = checkpoint[CHECKPOINT_KEY]["provenance"]["digest"]
        expected = self.spec["provenance"]["digest"]
        if found != expected:
            msg = (
                f"the checkpoint was trained on data with digest {found[:12]}, these have {expected[:12]}; "
                "resume with the same files, columns, cut, weights and split"
            )
            raise CheckpointError(msg)
        planned, wanted = checkpoint[EPOCHS_KEY], self.trainer.max_epochs
        if planned != wanted:
            msg = f"the checkpoint is from a run of {planned} epochs, trainer.max_epochs is {wanted}: its rates differ"
            raise CheckpointError(msg + "; resume with the same max_epochs, or start anew")
        if checkpoint["epoch"] + 1 >= planned:
            raise CheckpointError(
                f"the checkpoint is from the last of {planned} epochs: there is nothing left to train"
            )

    def step_noise(self, *position: int) -> Noise:
        """Random numbers of one training step: a function of the seed and the step, so that resuming is exact."""
        return Noise(step_seed(int(self.noise_seed), position), ranks=self.ranks)

    def dequantized(self, batch: Batch, noise: Noise) -> Batch:
        """Batch in network units with its atoms and integers spread anew, as a continuous generator makes them."""
        spread = self.features.dequantize(batch.x, noise.generators[0], noise.ranks)
        return Batch(spread, batch.context, batch.weight)

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

    @torch.no_grad()
    def distance(self, events: Batch) -> torch.Tensor:
        """Energy distance of held-out events and events generated at their contexts, event by event.

        The unbiased form: valid with signed weights, zero in expectation for a perfect generator, possibly negative.
        Of more than 8192 events the first ones are compared.  The noise is the same in every call.  Generated atoms
        and integers, which are spread, are compared as the values they stand for.

        Args:
            events: in physical units, weights of any sign.

        Returns:
            (n,) contributions of the events, in network units; their mean is the distance.
        """
        events = Batch(*(array[:VALIDATION_EVENTS] for array in events))
        context = self.context(events.context)
        latent = torch.randn(len(context), self.latent_size, generator=torch.Generator().manual_seed(0))
        generated = self.generate(latent, context)
        if self.features.is_discrete:
            generated = self.features(self.features.inverse(generated))
        return losses.energy_contributions(
            torch.cat([self.features(events.x), context], dim=1),
            torch.cat([generated, context], dim=1),
            weight=events.weight,
            mean_weight=float(events.weight.mean()),
            unbiased=True,
        )

    def excess(self, terms: torch.Tensor) -> torch.Tensor:
        """By how much () a validation loss, the mean of these terms (n,), exceeds the lowest so far beyond doubt.

        That is by more than `SIGNIFICANT` standard errors of the difference; not positive where it doesn't.  The
        standard error of a difference of U-statistics of order k is k times that of the mean of the events' terms.
        """
        if self.lowest is None or len(self.lowest) != len(terms):
            return torch.zeros(())
        difference = terms - self.lowest
        error = self.terms_order * difference.std() / len(difference) ** 0.5
        excess: torch.Tensor = difference.mean() - SIGNIFICANT * error
        return excess

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 (signature fixed by Lightning)
        """Log the validation loss, and by how much it exceeds the lowest so far significantly."""
        terms = self.validation_terms(batch)
        loss = terms.mean()
        self.check_finite(loss, f"the {self.validated_by} of held-out events")
        excess = torch.zeros(()) if self.trainer.sanity_checking else self.excess(terms)
        if not self.trainer.sanity_checking and (self.lowest is None or loss < self.lowest.mean()):
            self.lowest = terms
        self.log("val_loss", loss, prog_bar=True, batch_size=len(batch.weight), sync_dist=True)
        self.log("val_excess", excess, batch_size=len(batch.weight), sync_dist=True)

    def validation_terms(self, batch: Batch) -> torch.Tensor:
        """Terms (n,) of the held-out events, in physical units, whose mean is what validation minimizes."""
        return self.distance(batch)

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Generate one event at each context of the batch, in physical units (n, d)."""
        latent = self.step_noise(batch_idx).normal(len(batch.weight), self.latent_size)
        return self.features.inverse(self.generate(latent, self.context(batch.context)))


class TrainedModel(GenerativeModel):
    """A generator with an objective that its training minimizes."""

    @abstractmethod
    def objective(self, batch: Batch, latent: torch.Tensor) -> torch.Tensor:
        """Data term of the objective on a full sample, in network units.

        It doesn't change if a weight-2 event is replaced by two of weight 1, if events of weight 0 are added, if events
        are reordered, or if all weights are scaled.

        Args:
            batch: the whole sample.
            latent: (n, latent_size) noise of the generated events.

        Returns:
            () tensor.
        """

    @abstractmethod
    def estimate(self, batch: Batch, latent: torch.Tensor, mean_weight: float | torch.Tensor) -> torch.Tensor:
        """Estimate of the data term () from a minibatch, unbiased; arguments as for `objective`.

        Args:
            batch: some of the events.
            latent: (B, latent_size) noise of the generated events.
            mean_weight: mean weight of the whole sample.
        """


class Likelihood(ABC):
    """What a generator that knows how probable an event is has beside."""

    @abstractmethod
    def log_prob(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Log density (n,) float64 of x (n, d) given encoded context (n, c), both in physical units."""


def step_seed(seed: int, position: tuple[int, ...]) -> int:
    """Seed of one step of a training with this seed."""
    for number in position:
        seed = (seed * 6_364_136_223_846_793_005 + number + 1_442_695_040_888_963_407) % 2**64
    return seed % 2**63


def frozen(module: nn.Module) -> nn.Module:
    """Switch off gradients of a module that is never trained by an optimizer."""
    return module.requires_grad_(requires_grad=False)
