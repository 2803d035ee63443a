r"""Two generators, one after the other: the first numbers of an event, and the others given these.

.. math:: p(u_1, u_2 | c) = p_1(u_1 | c) \; p_2(u_2 | u_1, c) .

For showers the first are the energies of the layers, which must be right to a percent, and the others hundreds of cells
(CaloFlow, Krause and Shih, arXiv:2106.05285).  Any two recipes can take the parts; both are trained at the same time,
the second one at the energies of the training events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from calorefine.data.batches import Batch
from calorefine.data.preprocessing import AsItIs
from calorefine.errors import ConfigError
from calorefine.models.abilities import Likelihood, without_likelihood
from calorefine.models.adversarial import AdversarialModel
from calorefine.models.base import TrainedModel, recipe_named
from calorefine.models.distillation import Taught
from calorefine.models.updates import Update
from calorefine.nets import Noise

Described = Mapping[str, Any]


class TwoStep(TrainedModel, Likelihood):
    """Generator in two steps; it takes the weights that both of its parts take.

    Args:
        first: recipe of the first network values of the preprocessing, as many as its `n_first`.
        then: recipe of the others; the first ones are part of its context.

    Raises:
        ConfigError: a part that is no recipe with an objective.
    """

    recipes_inside = ("first", "then")

    def __init__(self, *, first: TrainedModel | Described, then: TrainedModel | Described) -> None:
        """Take the parts, or make them as a checkpoint describes them."""
        super().__init__(latent_size=0)
        self.first, self.then = _recipe(first, "first"), _recipe(then, "then")
        self.hparams.update({"first": _described(self.first), "then": _described(self.then)})
        if self.likely:
            self.terms_order = 1  # type: ignore[misc]  # by instance
            self.validated_by = " + ".join(part.validated_by for part in self.parts_of_it)  # type: ignore[misc]
        self.signed_weights = self.first.signed_weights and self.then.signed_weights  # type: ignore[misc]  # by instance

    @property
    def network(self) -> nn.Module:
        """What both parts sample with."""
        return nn.ModuleList(part.network for part in self.parts_of_it)

    @property
    def parts_of_it(self) -> tuple[TrainedModel, TrainedModel]:
        """Both generators."""
        return self.first, self.then

    def build(self, n_features: int, n_context: int) -> None:
        """Build both parts.

        Raises:
            ConfigError: a preprocessing that doesn't say which numbers come first.
        """
        self.n_first = self.features.n_first
        if not 0 < self.n_first < n_features:
            msg = f"TwoStep: preprocessing {type(self.features).__name__} has {self.n_first} of {n_features} network "
            raise ConfigError(f"{msg}values that come first, expected some and not all, as of Showers")
        for place, part in enumerate(self.parts_of_it):
            given = n_context + place * self.n_first
            part.features, part.context = self.features.part(place), AsItIs(given)
            part.mean_weight = self.mean_weight
            part.build(part.features.n_columns, given)
        self.latent_size = sum(part.latent_size for part in self.parts_of_it)

    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Generate the first numbers, and the others given them."""
        noise = latent.split([part.latent_size for part in self.parts_of_it], dim=1)  # type: ignore[no-untyped-call]
        first = self.first.generate(noise[0], context)
        return torch.cat([first, self.then.generate(noise[1], torch.cat([context, first], dim=1))], dim=1)

    @property
    def unlikely(self) -> str | None:
        """What is missing to the likelihood of the cells, or of the first numbers."""
        return without_likelihood(self.then) or without_likelihood(self.first)

    def log_prob(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Log density (n,) of events x (n, d): that of their first numbers, and of the others given these.

        Args:
            x: events in physical units.
            context: (n, c) encoded conditions.

        Returns:
            (n,) float64: nats per event; see `log_prob` of the parts.

        Raises:
            ConfigError: a part has no likelihood; see `unlikely`.
        """
        if self.unlikely:
            raise ConfigError(f"log_prob: {self.unlikely}")
        first, then = self.features.in_steps(x, context)
        c, features = self.context(context), self.features.first_map
        given = torch.cat([c, features(first, context)], dim=1)
        likely: Any = self.first, self.then
        log_prob: torch.Tensor = likely[0].log_prob_by(features, first, context, c) + likely[1].log_prob(then, given)
        return log_prob

    def divided(self, batch: Batch) -> tuple[Batch, Batch]:
        """Batches in network units as the parts see them."""
        x, others = batch.x[..., : self.n_first], batch.x[..., self.n_first :]
        given = torch.cat([batch.context, x], dim=-1)
        return Batch(x, batch.context, batch.weight), Batch(others, given, batch.weight)

    def estimate(self, batch: Batch, noise: Noise, mean_weight: float | torch.Tensor) -> torch.Tensor:
        """Sum of the objectives of both parts on a minibatch."""
        parts = zip(self.parts_of_it, self.divided(batch), strict=True)
        terms = [part.estimate(own, noise, mean_weight) for part, own in parts]
        return terms[0] + terms[1]

    @property
    def likely(self) -> bool:
        """Whether both parts are validated by what their training minimizes, event by event."""
        return all(part.terms_order == 1 for part in self.parts_of_it)

    def validation_terms(self, batch: Batch) -> torch.Tensor:
        """Sum (n,) of the terms of both parts where these are of their losses, or the energy distance of events."""
        if not self.likely:
            return super().validation_terms(batch)
        own_of = self.divided(self.to_network(batch, torch.Generator().manual_seed(0)))
        first, then = (
            part.validation_terms(Batch(part.physical(own.x, own.context), own.context, own.weight))
            for part, own in zip(self.parts_of_it, own_of, strict=True)
        )
        return first + then

    def updates(self) -> list[Update]:
        """Updates of both parts, each with its own part of the events."""
        return [
            dataclasses.replace(update, name=f"{name} {update.name}", loss=self._divided_loss(place, update.loss))
            for place, name in enumerate(("first", "then"))
            for update in self.parts_of_it[place].updates()
        ]

    def _divided_loss(
        self, place: int, loss: Callable[[Batch, Noise], torch.Tensor]
    ) -> Callable[[Batch, Noise], torch.Tensor]:
        def own(batch: Batch, noise: Noise) -> torch.Tensor:
            part = self.parts_of_it[place]
            part.progress, part.ranks = self.progress, self.ranks
            return loss(self.divided(batch)[place], noise)

        return own


def _recipe(given: TrainedModel | Described, name: str) -> TrainedModel:
    """A part, made if it is only described."""
    if isinstance(given, Mapping):
        given = recipe_named(given["class_path"], (), where=f"TwoStep, {name}")(**given["init_args"])  # type: ignore[assignment]
    if not isinstance(given, TrainedModel):
        raise ConfigError(f"{name}: a {type(given).__name__} found, expected a recipe that is trained")
    if isinstance(given, Taught):
        raise ConfigError(f"{name}: a {type(given).__name__} found, expected a recipe without a teacher")
    if isinstance(given, AdversarialModel) and given.asked:
        text, option = next(iter(given.asked.items()))
        msg = f"{name}: {option} of '{text}' found, expected none: of a part of an event physical units aren't known"
        raise ConfigError(msg)
    return given


def _described(part: TrainedModel) -> dict[str, Any]:
    return {"class_path": type(part).__name__, "init_args": part.options}
