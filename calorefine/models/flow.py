r"""Conditional normalizing flow of rational-quadratic splines: a generator that knows how probable an event is.

An invertible map :math:`z = f(u; c)` takes an event in network units u at context c to standard normal noise, so that

.. math:: \log p(u | c) = \log \mathcal{N}(f(u; c)) + \log |\det \partial f / \partial u| .

It is trained by maximum likelihood, which has no upper bound with signed weights: it takes positive ones.

Its layers are *couplings* (`couplings`), or *autoregressive* ones (MADE) with the same splines, which transform each
feature given the context and those before it, but the first one given nothing: it takes a second layer, in reverse
order, for each to depend on the context and on each other one.  Sampling takes d passes for each layer.

The parameters that are validated, saved and sampled from are an exponential moving average over the training steps.
"""

from __future__ import annotations

from typing import Any, Literal

from nflows.transforms import (
    CompositeTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    ReversePermutation,
)
from torch import nn

from calorefine.errors import ConfigError
from calorefine.models.couplings import N_BINS, TAIL_BOUND, couplings, splines
from calorefine.models.invertible import InvertibleModel
from calorefine.models.updates import averaged, check_decay
from calorefine.nets import Activation


class Flow(InvertibleModel):
    """Conditional spline flow; needs positive weights.

    Args:
        kind: "coupling", or "autoregressive", whose sampling takes as many passes as there are features.
        n_layers: number of layers; if left out, as many couplings as let each feature depend on each other, or two
            autoregressive layers.
        hidden: widths of the hidden layers of a coupling's network; an autoregressive one has as many of the first.
        n_bins: bins of a spline.
        tail_bound: B, in network units, where the splines end.
        act: activation of the couplings' networks.
        learning_rate: initial rate of Adam, which falls to 1 % over the run like a cosine.
        clip_norm: gradients are scaled down to this norm.
        average_decay: decay of the moving average.
    """

    def __init__(
        self,
        *,
        kind: Literal["coupling", "autoregressive"] = "coupling",
        n_layers: int | None = None,
        hidden: list[int] = [64, 64],  # noqa: B006 (never changed; shown by --print_config)
        n_bins: int = N_BINS,
        tail_bound: float = TAIL_BOUND,
        act: Activation = "silu",
        learning_rate: float = 2e-3,
        clip_norm: float = 5.0,
        average_decay: float = 0.995,
    ) -> None:
        """Check the options; networks are built when the data are known."""
        super().__init__(latent_size=0)
        if n_bins < 2:
            raise ConfigError(f"n_bins: {n_bins} found, expected at least 2")
        check_decay(average_decay)
        self.kind, self.n_layers, self.hidden, self.act = kind, n_layers, hidden, act
        self.n_bins, self.tail_bound = n_bins, tail_bound
        self.learning_rate, self.clip_norm, self.average_decay = learning_rate, clip_norm, average_decay

    def build(self, n_features: int, n_context: int) -> None:
        """Create the layers and their moving average; the latent space has as many dimensions as there are features."""
        self.latent_size = n_features
        self.flow = self._couplings(n_features, n_context) if self.coupled else self._made(n_features, n_context)
        self.average = averaged(self.flow)

    @property
    def coupled(self) -> bool:
        """Whether the layers are couplings, which one feature can't have."""
        return self.kind == "coupling" and self.latent_size > 1

    @property
    def leading_axis(self) -> bool:
        """Whether the layers are couplings: the others have masks of their own."""
        return self.coupled

    def _couplings(self, n_features: int, n_context: int) -> Any:
        return couplings(
            n_features,
            n_context,
            n_layers=self.n_layers,
            hidden=self.hidden,
            act=self.act,
            n_bins=self.n_bins,
            tail_bound=self.tail_bound,
        )

    def _made(self, n_features: int, n_context: int) -> Any:
        least = min(n_features, 2)
        n_layers = 2 if self.n_layers is None else self.n_layers
        if n_layers < least:
            msg = f"n_layers: {n_layers} autoregressive found, expected at least {least} for {n_features} features"
            raise ConfigError(msg + ", so that each is transformed given the context")
        layers: list[nn.Module] = []
        for _ in range(n_layers):
            layer = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                n_features,
                self.hidden[0],
                context_features=n_context or None,
                num_blocks=len(self.hidden),
                **splines(self.n_bins, self.tail_bound),
            )
            layers += [layer, ReversePermutation(n_features)]
        return CompositeTransform(layers)
