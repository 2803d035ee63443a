from functools import partial

import torch
from torch.optim import Adam

from calorefine.models.base import TrainedModel
from calorefine.models.updates import Update
from calorefine.nets import MLP, cosine
from calorefine.stats import batch_mean


class TinyVAE(TrainedModel):
    """Conditional variational autoencoder (Kingma and Welling, arXiv:1312.6114).

    Args:
        n_code: dimensions of the code.
        hidden: widths of the hidden layers of encoder and decoder.
        learning_rate: initial rate of Adam, which falls like a cosine.
    """

    signed_weights = False  # with negative weights its objective has no lower bound
    leading_axis = True  # all parameters are those of linear layers, and all sums are over the last axes

    def __init__(self, *, n_code: int = 4, hidden: tuple[int, int] = (64, 64), learning_rate: float = 2e-3):
        super().__init__(latent_size=n_code)
        self.n_code, self.hidden, self.learning_rate = n_code, list(hidden), learning_rate

    def build(self, n_features, n_context):
        self.latent_size = self.n_code + n_features  # the code, and the noise of the decoded event
        self.encoder = MLP(n_features + n_context, 2 * self.n_code, hidden=self.hidden, act="silu")
        self.decoder = MLP(self.n_code + n_context, 2 * n_features, hidden=self.hidden, act="silu")

    def generate(self, latent, context):
        mean, log_width = self.decode(latent[:, : self.n_code], context)
        return mean + log_width.exp() * latent[:, self.n_code :]

    def decode(self, code, context):
        return self.decoder(torch.cat([code, context], dim=-1)).chunk(2, dim=-1)

    def estimate(self, batch, noise, mean_weight):
        """Evidence lower bound with the other sign, and without its constant: nats per event."""
        mean, log_width = self.encoder(torch.cat([batch.x, batch.context], dim=-1)).chunk(2, dim=-1)
        code = mean + log_width.exp() * noise.normal(batch.weight.shape[-1], self.n_code)
        divergence = 0.5 * (mean.square() + (2 * log_width).exp() - 1) - log_width
        decoded, log_error = self.decode(code, batch.context)
        error = 0.5 * ((batch.x - decoded) / log_error.exp()).square() + log_error
        return batch_mean(error.sum(-1) + divergence.sum(-1), batch.weight, mean_weight)

    def updates(self):
        adam = partial(Adam, lr=self.learning_rate)
        return [Update("loss", list(self.parameters()), self.loss, adam, cosine, clip_norm=5.0)]
