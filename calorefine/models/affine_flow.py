r"""Conditional normalizing flow of affine couplings: a flow for hundreds of features, as the cells of a shower.

Half of the features are scaled and shifted by functions of the other half and of the context; halves are drawn once,
and each layer transforms what the one before has left as it was (Dinh et al., arXiv:1605.08803):

.. math:: z_b = u_b \, e^{s(u_a, c)} + t(u_a, c), \quad \log |\det| = \sum s .

It suits features that are close to normal numbers already, whose dependence on each other is what is left to learn.  Of
few events and many features a network remembers too much: it has dropout, and weights that decay.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from nflows.transforms import AffineCouplingTransform, CompositeTransform

from calorefine.data.batches import Batch
from calorefine.errors import ConfigError
from calorefine.models.invertible import InvertibleModel
from calorefine.models.updates import averaged, check_decay
from calorefine.nets import Activation, Noise, ResidualMLP

LARGEST_LOG_SCALE = 1.5
SEED_OF_HALVES = 0


class AffineFlow(InvertibleModel):
    """Conditional flow of affine couplings; needs positive weights.

    Args:
        n_layers: number of couplings, at least 2.
        width: of the layers of a coupling's network.
        n_blocks: its residual blocks, of two layers each.
        act: activation of its layers.
        dropout: part of the numbers within a block that are left out at random in each step of the training.
        learning_rate: initial rate of Adam, which falls to 1 % over the run like a cosine.
        weight_decay: of AdamW (Loshchilov and Hutter, arXiv:1711.05101).
        clip_norm: gradients are scaled down to this norm.
        average_decay: decay of the moving average.

    Raises:
        ConfigError: fewer than two layers; a part that is not from 0 to 1.
    """

    def __init__(
        self,
        *,
        n_layers: int = 8,
        width: int = 256,
        n_blocks: int = 1,
        act: Activation = "silu",
        dropout: float = 0.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        clip_norm: float = 5.0,
        average_decay: float = 0.998,
    ) -> None:
        """Check the options; networks are built when the data are known."""
        super().__init__(latent_size=0)
        if n_layers < 2:
            raise ConfigError(f"n_layers: {n_layers} found, expected at least 2, so that each feature is transformed")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout: {dropout} found, expected at least 0 and less than 1")
        check_decay(average_decay)
        self.n_layers, self.width, self.n_blocks, self.act, self.dropout = n_layers, width, n_blocks, act, dropout
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.clip_norm, self.average_decay = clip_norm, average_decay

    def build(self, n_features: int, n_context: int) -> None:
        """Create the layers and their moving average; the latent space has as many dimensions as there are features.

        Raises:
            ConfigError: a single feature, which a coupling can't transform.
        """
        if n_features < 2:
            raise ConfigError(f"AffineFlow: {n_features} feature found, expected at least 2; take a Flow")
        self.latent_size = n_features
        networks: dict[str, Any] = {name: getattr(self, name) for name in ("width", "n_blocks", "act", "dropout")}
        self.flow = CompositeTransform(
            [
                _Coupling(mask, lambda n_in, n_out: ResidualMLP(n_in, n_context, n_out, **networks))
                for mask in _halves(n_features, self.n_layers)
            ]
        )
        self.average = averaged(self.flow)

    @property
    def leading_axis(self) -> bool:
        """Whether nothing is left out at random, which replicas side by side could not do as they do alone."""
        return self.dropout == 0

    def estimate(self, batch: Batch, noise: Noise, mean_weight: float | torch.Tensor) -> torch.Tensor:
        """Weighted negative log likelihood of a minibatch, with what its networks leave out drawn by the step."""
        with noise.of_layers() if self.dropout else nullcontext():
            return super().estimate(batch, noise, mean_weight)


class _Coupling(AffineCouplingTransform):  # type: ignore[misc]  # nflows has no types
    """Affine coupling that is the identity at first, and scales a feature by a factor of 4.5 at most, up or down.

    The scales of nflows are at most 1, so that a feature could never be told better than by its width.
    """

    def _scale_and_shift(self, transform_params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift, raw = transform_params.split(self.num_transform_features, dim=1)  # type: ignore[no-untyped-call]
        return torch.exp(LARGEST_LOG_SCALE * torch.tanh(raw / LARGEST_LOG_SCALE)), shift


def _halves(n_features: int, n_layers: int) -> list[torch.Tensor]:
    """Which features (d,) each layer transforms: a random half, then the other one, then a new half."""
    generator = torch.Generator().manual_seed(SEED_OF_HALVES)
    masks: list[torch.Tensor] = []
    while len(masks) < n_layers:
        half = torch.zeros(n_features, dtype=torch.long)
        half[torch.randperm(n_features, generator=generator)[: n_features // 2]] = 1
        masks += [half, 1 - half]
    return masks[:n_layers]
