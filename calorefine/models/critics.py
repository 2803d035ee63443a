r"""Critics of a GAN: what each sees of an event, and how a configuration describes them.

A critic of a quantity in physical units (the total energy, say) is computed outside of its network, so that the
gradient penalty acts on one input, as in the GAN of ATLAS (arXiv:2210.06204).

Minibatch discrimination (Salimans et al., arXiv:1606.03498, section 3.2; for showers CaloGAN, arXiv:1712.10321) gives a
critic, for each event, how similar it is to the others of its batch: with points :math:`M_{ib}` of event i that a
network makes of its inputs, the features

.. math:: o_{ib} = \sum_j \frac{w_j}{B \bar w} \, e^{-|M_{ib} - M_{jb}|} ,

by which it notices a generator that makes too few different events.  The distance is Euclidean here, not the paper's
:math:`L_1`: it needs a matrix product only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from calorefine import losses
from calorefine.errors import ConfigError
from calorefine.nets import MLP, Activation

DIMENSIONS = 8  # of the points whose distances tell similarity

View = Callable[[Tensor, Tensor], Tensor]


def features(x: Tensor, context: Tensor) -> Tensor:
    """The view of all features (..., B, d) in network units."""
    del context
    return x


@dataclass(frozen=True)
class Critic:
    """One of the critics, which sees reference and generated events apart.

    Args:
        network: maps (..., B, v + c) view and context to (..., B, k).  Unless it is `eventwise` it is also given the
            shares (..., B) of the events in the sum of weights, 1 / B each for weights that are equal: a statistic of
            the batch is a sum over the axis -2 with these.
        view: what it sees (..., B, v) of events (..., B, d) and context (..., B, c) in network units.  It is computed
            before the network and the penalty, which acts on the gradient with respect to it.
        weight: factor of its distance in what the generator minimizes.
        eventwise: whether its output for an event depends on nothing but the event: then reference and generated events
            share a pass, which is faster.
    """

    network: nn.Module
    view: View = features
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
class CriticOptions:
    """A critic as a configuration describes it.

    Args:
        expression: what it sees: a quantity of features and context in physical units, such as `e_over_p * p_gev` or
            `sum(cells)`; all features, in network units, if left out.
        observables: it sees what the preprocessing tells of an event in their place: of `PlainCells` energies, centers,
            widths and occupancies of layers.
        also: quantities that it sees beside, such as the soft number of cells above 0.1,
            `sum(cells**4 / (cells**4 + 0.1**4))`.
        weight: factor of its distance in what the generator minimizes.
        hidden: widths of its hidden layers; those of `critic_hidden` if left out.
        similarities: number of features of minibatch discrimination, 0 for none.  They take time and memory as the
            square of the batch.

    Raises:
        ConfigError: a negative number, or observables and an expression.
    """

    expression: str | None = None
    observables: bool = False
    also: list[str] = field(default_factory=list)
    weight: float = 1.0
    hidden: list[int] | None = None
    similarities: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.observables and self.expression is not None:
            msg = f"critics: observables and the expression '{self.expression}' found, expected one of both"
            raise ConfigError(f"{msg}; `also` names quantities beside")
        if self.weight <= 0:
            raise ConfigError(f"critics: weight {self.weight} found, expected a positive number")
        if self.similarities < 0:
            raise ConfigError(f"critics: similarities {self.similarities} found, expected 0 or more")

    @property
    def quantities(self) -> list[str]:
        """The quantities that it sees."""
        return [*([] if self.expression is None else [self.expression]), *self.also]

    def network(self, n_seen: int, n_context: int, n_out: int, *, hidden: list[int], act: Activation) -> nn.Module:
        """Return the network for features or observables (n_seen,), with these hidden layers if it has no others."""
        n_in = len(self.quantities) + (n_seen if self.expression is None else 0) + n_context
        hidden = hidden if self.hidden is None else self.hidden
        if self.similarities:
            return SimilarityCritic(n_in, n_out, self.similarities, hidden=hidden, act=act)
        return MLP(n_in, n_out, hidden=hidden, act=act)

    def view(self, standardized: Callable[[list[str], Tensor, Tensor], Tensor], observed: View = features) -> View:
        """Return what it sees, by functions that give quantities (..., B, k) and observables of events and context."""
        whole = observed if self.observables else features
        if not self.quantities:
            return whole

        def view(x: Tensor, context: Tensor) -> Tensor:
            seen = standardized(self.quantities, x, context)
            return seen if self.expression is not None else torch.cat([whole(x, context), seen], dim=-1)

        return view


ALL_FEATURES = CriticOptions()


class SimilarityCritic(nn.Module):
    """A critic that is told how similar an event is to the others of its batch; see the module's formula.

    Args:
        n_in: number of inputs.
        n_out: number of outputs.
        n_similarities: number of those features.
        hidden: widths of the hidden layers; the points are made of the inputs by one of the first width.
        act: activation between the layers.
    """

    def __init__(self, n_in: int, n_out: int, n_similarities: int, *, hidden: list[int], act: Activation) -> None:
        """Build both networks."""
        super().__init__()
        self.points = MLP(n_in, n_similarities * DIMENSIONS, hidden=hidden[:1], act=act)
        self.value = MLP(n_in + n_similarities, n_out, hidden=hidden, act=act)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        """Map (..., B, n_in) with shares (..., B) of the sum of weights, of any sign, to (..., B, n_out)."""
        points = self.points(x).unflatten(-1, (-1, DIMENSIONS)).movedim(-2, 0)
        similar = torch.exp(-losses.distances(points, points)) @ share[..., None]
        output: Tensor = self.value(torch.cat([x, similar[..., 0].movedim(0, -1)], dim=-1))
        return output
