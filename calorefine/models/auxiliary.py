r"""What a generator minimizes beside the critics' distances: regressed properties and enforced statistics.

**A regressed property** a of the event, such as its energy, is told by a network r from the features alone (de Oliveira
et al., arXiv:1711.08813).  Both players minimize the error :math:`\sum_i w_i (r(x_i) - a_i)^2 / (B \bar w)` on their
events, the network that of reference events, the generator that of generated ones, at the same contexts and weights.
The network is one of its own: the critic is given the context, and would have nothing to tell.  With signed weights an
error must be bounded to have a minimum: r and a are within `LARGEST` standard deviations of the mean by construction.

**An enforced statistic** is the mean or the width of a quantity over all events.  With the quantity's mean m and
standard deviation s in the whole training sample, and :math:`z = (q - m) / s` of generated events, the generator
minimizes

.. math:: d^2 = \Big(\frac{1}{B \bar w} \sum_i w_i \, y_i\Big)^2 , \qquad
          y = z \ \text{for the mean}, \quad y = (z^2 - 1) / 2 \ \text{for the width} :

the difference of the means in units of s, or the relative one of the widths to first order.

The reference's values are those of the sample, not of the batch: they have no noise, and y is centered, so that a
batch's sum of signed weights multiplies what is about 0.  (A batch's own would be less noisy only where more than half
of the variance comes from the context; better enforce a ratio to it.)  The square of a batch's mean would have its
variance as a bias, which a generator can lower by narrowing: minibatches leave out the pairs i = j, as those of the
energy distance do.  The width is that about the *reference's* mean, which keeps it linear in events: if the mean is off
by :math:`\delta` widths, the width is made :math:`\delta^2 / 2` too small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from calorefine.data.batches import Batch
from calorefine.errors import ConfigError
from calorefine.nets import MLP, Activation
from calorefine.stats import batch_mean

_R = TypeVar("_R")
LARGEST = 4.0  # standard deviations of a regressed property


class Term(Protocol):
    """A term that a generator minimizes."""

    def __call__(self, batch: Batch, generated: Tensor, mean_weight: float | Tensor, *, full: bool) -> Tensor:
        """Term (...) of generated events (..., B, d) at a batch's contexts, or at those of the full sample."""


@dataclass(frozen=True)
class Auxiliary:
    """A term that the generator minimizes beside the critics' distances.

    Args:
        term: from a batch, generated events (..., B, d) at its contexts, the mean weight, and whether they are the full
            sample, to the term (...).
        weight: its factor.
        network: what it has of its own, if anything.
        loss: from a batch and generated events to what that network minimizes (...); with signed weights it needs a
            lower bound.
    """

    term: Term
    weight: float = 1.0
    network: nn.Module | None = None
    loss: Callable[[Batch, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Attribute:
    """A property of the event that a network tells from its features.

    Args:
        expression: the property, of features and context in physical units, such as `p_gev`.
        weight: factor of its error in what the generator minimizes.
        hidden: widths of the network's hidden layers; those of `critic_hidden` if left out.

    Raises:
        ConfigError: the weight is not positive.
    """

    expression: str
    weight: float = 0.1
    hidden: list[int] | None = None

    def __post_init__(self) -> None:
        """Check the weight."""
        if self.weight <= 0:
            raise ConfigError(f"attributes: weight {self.weight} found, expected a positive number")

    def network(self, n_features: int, hidden: list[int], act: Activation) -> nn.Module:
        """Return the network, with these hidden layers if it has no others."""
        return MLP(n_features, 1, hidden=hidden if self.hidden is None else self.hidden, act=act)

    @staticmethod
    def error(told: Tensor, property_: Tensor, *, weight: Tensor, mean_weight: float | Tensor) -> Tensor:
        """Weighted squared error (...) of a network's outputs (..., B) for a property (..., B) in standard deviations.

        It is bounded for weights of any sign, by the weights times (2 `LARGEST`)^2.
        """
        difference = LARGEST * torch.tanh(told / LARGEST) - property_.clamp(-LARGEST, LARGEST)
        return batch_mean(difference.square(), weight, mean_weight)


@dataclass(frozen=True)
class Enforced:
    """A statistic that generated events are to have as the training sample has it: `mean` or `width`, one of both.

    Args:
        mean: quantity of features and context in physical units, such as `e_over_p`, whose weighted mean is enforced.
        width: one whose weighted standard deviation is.
        weight: factor of the squared difference, which is in widths of the quantity.

    Raises:
        ConfigError: both or neither is given, or the weight is not positive.
    """

    mean: str | None = None
    width: str | None = None
    weight: float = 10.0

    def __post_init__(self) -> None:
        """Check what is given."""
        if (self.mean is None) == (self.width is None):
            msg = f"enforce: mean {self.mean} and width {self.width} found, expected one of both for each statistic"
            raise ConfigError(f"{msg}, as in {{width: e_over_p}}")
        if self.weight <= 0:
            raise ConfigError(f"enforce: weight {self.weight} found, expected a positive number")

    @property
    def expression(self) -> str:
        """The quantity."""
        return self.mean or self.width or ""

    def __str__(self) -> str:
        """Name it."""
        return f"{self.kind} of {self.expression}"

    @property
    def kind(self) -> Literal["mean", "width"]:
        """Which statistic of the quantity it is."""
        return "mean" if self.width is None else "width"

    def centered(self, z: Tensor) -> Tensor:
        """Values (..., B) whose mean is 0 if the statistic is right, of a standardized quantity (..., B)."""
        return z if self.width is None else (z.square() - 1) / 2


@dataclass(frozen=True)
class Matched:
    """Quantities whose joint distribution with the context generated events are to have, by their energy distance.

    Args:
        quantities: of features and context in physical units, such as `sum(cells) / e_inc`.
        weight: factor of the distance, in which each quantity counts in standard deviations.

    Raises:
        ConfigError: no quantity, or the weight is not positive.
    """

    quantities: list[str]
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check what is given."""
        if not self.quantities:
            raise ConfigError("matched: no quantities found, expected at least one expression")
        if self.weight <= 0:
            raise ConfigError(f"matched: weight {self.weight} found, expected a positive number")


def records(kind: type[_R], values: Iterable[_R | Mapping[str, Any]]) -> list[_R]:
    """Records of an option, which are plain containers where they come from a checkpoint."""
    return [value if isinstance(value, kind) else kind(**value) for value in values]  # type: ignore[arg-type]
