"""What some generators can do beside sampling, as interfaces: a likelihood, and codes of events."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from calorefine.data.batches import Batch


class Likelihood(ABC):
    """What a generator that knows how probable an event is has beside."""

    @abstractmethod
    def log_prob(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Log density (n,) float64 of x (n, d) given encoded context (n, c), both in physical units."""

    @property
    def unlikely(self) -> str | None:
        """Why `log_prob` can't tell all the same, with these parts or this preprocessing; None if it can."""
        return None


def without_likelihood(model: object) -> str | None:
    """Why a model has no likelihood; None if it has one."""
    if not isinstance(model, Likelihood):
        return f"a {type(model).__name__} has no likelihood"
    return model.unlikely and f"a {type(model).__name__} has no likelihood here: {model.unlikely}"


class Encoding(ABC):
    """What a generator that encodes events, and decodes codes of a prior, has beside."""

    @abstractmethod
    def latent_terms(self, events: Batch) -> torch.Tensor:
        """How far the codes of events are from the prior that is sampled from, event by event.

        Args:
            events: reference events in physical units, weights of any sign.

        Returns:
            (n,) contributions of the events to an energy distance, which is their mean and has no bias.
        """
