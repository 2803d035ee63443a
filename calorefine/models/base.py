"""What every recipe shares: preprocessing, the validation distance, and a checkpoint that can sample on its own."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import nn

from calorefine import losses, stats
from calorefine.data.batches import Batch
from calorefine.data.module import VALIDATION_EVENTS, EventDataModule, Prepared
from calorefine.data.occupancy import Parts
from calorefine.ddp import Ranks
from calorefine.errors import CheckpointError, ConfigError, nearest
from calorefine.events import Events
from calorefine.models.updates import UpdatedModule
from calorefine.nets import Noise, n_parameters

CHECKPOINT_KEY = "calorefine"
CHECKPOINT_FORMAT = 1
EPOCHS_KEY = "calorefine_max_epochs"
LOWEST_KEY = "calorefine_lowest_validation"
SIGNIFICANT = 5.0  # standard errors by which a checkpoint has to be worse than another to be left for it
_RECIPES: dict[str, dict[str, type[GenerativeModel]]] = {}  # by name, and by file and class


class GenerativeModel(UpdatedModule, ABC):
    """A conditional generator of events, trained on weighted events.

    A recipe implements `build`, `generate`, and `updates` if there is something to train; one that has an objective is
    a `TrainedModel`.  Its constructor's arguments are its configuration.  Its name is what a checkpoint tells, so that
    a class that has been imported, or is named when loading, is found.

    Args:
        latent_size: number of standard normal numbers that make one event.
    """

    _given: dict[str, Any]
    signed_weights: ClassVar[bool] = True
    """Whether it can be trained on signed weights; if not, training on them is refused."""
    validated_by: ClassVar[str] = "energy distance"
    """What `validation_terms` are the terms of, for the summary of a run."""
    recipes_inside: ClassVar[tuple[str, ...]] = ()
    """Arguments that are recipes themselves, which it describes in `hparams`."""
    terms_order: ClassVar[int] = 2
    """Order of that as a U-statistic: the standard error is that of the mean of the terms, times the order."""

    def __init_subclass__(cls, *, recipe: bool = True, **options: Any) -> None:
        """Remember a class that is a recipe by its name; the latest one of a file that is executed again."""
        super().__init_subclass__(**options)
        if recipe:
            file = getattr(sys.modules.get(cls.__module__), "__file__", cls.__module__)
            _RECIPES.setdefault(cls.__name__, {})[f"{file}: {cls.__qualname__}"] = cls

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Remember the arguments: Lightning's command takes those of a recipe for those of all recipes inside of it."""
        made = super().__new__(cls)
        given = inspect.signature(cls).bind_partial(*args, **options)
        given.apply_defaults()
        object.__setattr__(made, "_given", {k: v for k, v in given.arguments.items() if k not in cls.recipes_inside})
        return made

    def __init__(self, *, latent_size: int) -> None:
        """Fix the latent space and keep the recipe's arguments; networks are built when the data are known."""
        super().__init__()
        self.latent_size = latent_size
        self.spec: dict[str, Any] | None = None
        self.lowest: torch.Tensor | None = None
        self.save_hyperparameters(ignore=self.recipes_inside)
        self.hparams.update({name: value for name, value in self._given.items() if name not in self.hparams})

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {k: v for k, v in self.hparams.items() if k in inspect.signature(type(self)).parameters}

    @property
    def leading_axis(self) -> bool:
        """Whether replicas of it can train side by side, on a leading axis of all its arrays and parameters.

        Then its parameters are those of `nn.Linear` and `Swish`, its own buffers may have that axis, and its losses
        take (..., B, d) to (...), one for each replica.
        """
        return False

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
            "init_args": self.options,
            **prepared.to_dict(),
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
        return {"model": (type(self).__name__, self.options), "max_epochs": self.trainer.max_epochs}

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
        trained_on = checkpoint[CHECKPOINT_KEY]["provenance"]["digest"]
        expected = self.spec["provenance"]["digest"]
        if trained_on != expected:
            msg = (
                f"the checkpoint was trained on data with digest {trained_on[:12]}, these have {expected[:12]}; "
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

    def to_network(self, events: Batch, noise: torch.Generator) -> Batch:
        """Events in network units, from physical units, with atoms and integers spread."""
        u = self.features(events.x, events.context)
        spread = self.features.dequantize(u, noise, events.context)
        return Batch(spread, self.context(events.context), events.weight)

    def physical(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Events (..., d) in physical units, from these and context (..., c) in network units.

        It has a gradient, but for integers.
        """
        return self.features.inverse(x, self.physical_context(context))

    def parts(self, x: torch.Tensor) -> Parts:
        """Values of events (..., d) in network units, with atoms set apart; without a gradient."""
        return self.features.parts(x)

    @torch.no_grad()
    def distance(self, events: Batch) -> torch.Tensor:
        """Energy distance of held-out events and events generated at their contexts, event by event.

        The unbiased form: valid with signed weights, zero in expectation for a perfect generator, possibly negative.
        Of more than 8192 events the first ones are compared.  The noise is the same in every call.  Generated atoms
        and integers, which are spread, are compared as the values they stand for.

        Args:
            events: in physical units, weights of any sign.

        Returns:
            (n,) contributions of the events, in network units or by the observables of the preprocessing, if it has
            any; their mean is the distance.
        """
        events = Batch(*(array[:VALIDATION_EVENTS] for array in events))
        context = self.context(events.context)
        latent = Noise(0, device=context.device).normal(len(context), self.latent_size)
        generated = self.generate(latent, context)
        if self.features.is_discrete:
            generated = self.features(self.features.inverse(generated, events.context), events.context)
        samples = (
            torch.cat([self.features.observed(u, events.context), context], dim=1)
            for u in (self.features(events.x, events.context), generated)
        )
        return losses.energy_contributions(
            *samples,
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
            return terms.new_zeros(())
        difference = terms - self.lowest.to(terms.device)
        error = self.terms_order * difference.std() / len(difference) ** 0.5
        excess: torch.Tensor = difference.mean() - SIGNIFICANT * error
        return excess

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 (signature fixed by Lightning)
        """Log the validation loss, and by how much it exceeds the lowest so far significantly."""
        terms = self.validation_terms(batch)
        loss = terms.mean()
        self.check_finite(loss, f"the {self.validated_by} of held-out events")
        excess = terms.new_zeros(()) if self.trainer.sanity_checking else self.excess(terms)
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
        return self.features.inverse(self.generate(latent, self.context(batch.context)), batch.context)


class TrainedModel(GenerativeModel, recipe=False):
    """A generator with an objective that its training minimizes."""

    @abstractmethod
    def estimate(self, batch: Batch, noise: Noise, mean_weight: float | torch.Tensor) -> torch.Tensor:
        """Data term of the objective from a minibatch in network units, an unbiased estimate of that of the sample.

        Args:
            batch: some of the events.
            noise: random numbers of the batch's events; each that is drawn has one row for an event.
            mean_weight: mean weight of the whole sample.

        Returns:
            () tensor, (k,) for k replicas side by side.
        """

    def objective(self, batch: Batch, noise: Noise) -> torch.Tensor:
        """Data term () on a full sample; arguments as for `estimate`.

        It doesn't change if a weight-2 event is replaced by two of weight 1, if events of weight 0 are added, if events
        are reordered, or if all weights are scaled.
        """
        return self.estimate(batch, noise, float(batch.weight.mean()))

    def loss(self, batch: Batch, noise: Noise) -> torch.Tensor:
        """What an update minimizes: the estimate with the training sample's mean weight."""
        return self.estimate(batch, noise, self.mean_weight)


def recipe_named(name: str, models: Iterable[type[GenerativeModel]], *, where: str | Path) -> type[GenerativeModel]:
    """Find the recipe that a checkpoint names among these, or else among all that have been imported.

    Raises:
        CheckpointError: there is none, or several files have one.
    """
    known = {repr(model): model for model in models if model.__name__ == name} or _RECIPES.get(name, {})
    if len(known) == 1:
        return next(iter(known.values()))
    if known:
        msg = f"{where}: holds a '{name}', which is the name of several recipes ({', '.join(known)})"
        raise CheckpointError(f"{msg}; expected one of them as models=[{name}]")
    msg = f"{where}: holds a '{name}', which is none of {', '.join(sorted(_RECIPES))}{nearest(name, _RECIPES)}"
    raise CheckpointError(
        f"{msg}; expected its file to be imported before (--modules FILE), or models=[{name}] to be given"
    )
