r"""CaloGAN: a generator with one stream per layer, each of which attends to the layer before (arXiv:1712.10321).

Every stream makes the cells of its layer from all latent numbers and the context; one before them makes the energies of
the layers.  From the second one on, what a stream makes is mixed, cell by cell, with a linear map of what the one
before has made, in parts that the stream chooses itself:

.. math:: y_l = (1 - a_l) \odot g_l(z, c) + a_l \odot W_l \, y_{l - 1} , \qquad a_l = \sigma(h_l(z, c)) .

The paper's streams are locally connected, its energies are sums of their cells, and its critic is a classifier; here
they are fully connected, cells are scaled to the energies, and it is a WGAN.  Its sparsity is that of the
preprocessing, which makes exact zeros; minibatch discrimination (`similarities` of a critic) and regression of
attributes are options of all GANs.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from calorefine.data.plain_cells import PlainCells
from calorefine.errors import ConfigError
from calorefine.models.wgan import WGAN
from calorefine.nets import MLP, Activation, LatentSkip, starting_small

START = -2.0  # of h: at first little comes from the layer before


class CaloGAN(WGAN):
    """WGAN of showers with a stream for the energies of the layers, and one per layer.

    Arguments as of `AdversarialModel`, widths those of each stream.
    """

    def make_generator(self, n_features: int, n_context: int) -> nn.Module:
        """Return the streams.

        Raises:
            ConfigError: a preprocessing that has no layers.
        """
        if not isinstance(self.features, PlainCells):
            msg = f"CaloGAN: preprocessing {type(self.features).__name__} with {n_features} network values found"
            raise ConfigError(f"{msg}, expected the layers of preprocessing PlainCells")
        layers = self.features.calorimeter.layers
        sizes = [len(layers), *(len(layer) for layer in layers)]
        return LayerStreams(self.latent_size, n_context, sizes, hidden=self.generator_hidden, act=self.act)


class LayerStreams(nn.Module):
    """Generator of energies and layers, one after the other; see the module's formula.

    Args:
        latent_size: how many of the inputs are noise; where there are as many as outputs, each begins with its own.
        n_context: how many are context.
        sizes: numbers of outputs of the streams: energies of the layers, and cells of each.
        hidden: widths of the hidden layers of each stream.
        act: activation of the layers.
    """

    def __init__(
        self, latent_size: int, n_context: int, sizes: list[int], *, hidden: list[int], act: Activation
    ) -> None:
        """Build the streams."""
        super().__init__()
        self.latent_size, self.sizes = latent_size, sizes
        n_in = latent_size + n_context
        self.streams = nn.ModuleList(LatentSkip(latent_size, n_context, n, hidden=hidden, act=act) for n in sizes)
        self.transfers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.attentions = nn.ModuleList(starting_small(MLP(n_in, n, hidden=hidden[:1], act=act)) for n in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., latent_size + n_context) to energies and cells (..., L + N)."""
        latent, context = x[..., : self.latent_size], x[..., self.latent_size :]
        layers: list[Tensor] = []
        for number, stream in enumerate(self.streams):
            rolled = latent.roll(-sum(self.sizes[:number]), dims=-1)
            y = stream(torch.cat([rolled, context], dim=-1))
            if layers:
                share = torch.sigmoid(self.attentions[number - 1](x) + START)
                y = torch.lerp(y, self.transfers[number - 1](layers[-1]), share)
            layers.append(y)
        return torch.cat(layers, dim=-1)
