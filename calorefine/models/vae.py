r"""Conditional variational autoencoder: events are decoded from codes whose distribution is known.

An *encoder* takes an event x at context c to a normal distribution q of codes h, a *decoder* takes a code to the
distribution of the event, and codes have a *prior* p(h | c).  Both are trained on the evidence lower bound (Kingma and
Welling, arXiv:1312.6114, eq. 3),

.. math:: \log p(x | c) \ge E_q[\log p(x | h, c)] - \beta \, E_q[\log q(h | x, c) - \log p(h | c)] , \qquad \beta = 1 ,

with positive weights: with signed ones it has no upper bound.  While :math:`\beta` rises from 0 to 1 along a line, over
the first part of the run, codes learn to tell events apart before they are drawn to the prior (Bowman et al.,
arXiv:1511.06349, section 3.1).

The *likelihood* has two parts, as a column may have an atom (an exact zero, a saturated value), which is set apart
(`calorefine.data.occupancy`).  Each value y that isn't at the atom is normal, with a mean and a width that are learned,
and the mask m that tells which are is of independent bits,

.. math:: \log p(x | h, c) = \sum_{j: m_j = 0} \log \mathcal{N}(y_j; \mu_j, \sigma_j)
          + \sum_j \log \mathrm{Bernoulli}(m_j; \pi_j) ,

over columns j, those without an atom only in the first sum.  Integers are spread, and rounded when they are generated.

The *prior* is standard normal noise, or a flow of couplings that takes codes to noise and is trained along with the
rest (Chen et al., arXiv:1611.02731, section 3.2): codes of reference events have no need to be normal then, and what is
sampled is what was encoded.  `latent_terms` measures how far that holds.

The parameters that are validated, saved and sampled from are an exponential moving average over the training steps.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from calorefine import losses
from calorefine.data.batches import Batch
from calorefine.data.module import VALIDATION_EVENTS
from calorefine.data.occupancy import Parts
from calorefine.errors import ConfigError
from calorefine.models.abilities import Encoding
from calorefine.models.averaged import AveragedModel
from calorefine.models.couplings import couplings, flow_log_prob
from calorefine.models.updates import averaged, check_decay
from calorefine.nets import MLP, Activation, Noise
from calorefine.stats import batch_mean

LEAST_WIDTH = 0.01  # of a decoded value, in units where its column has width 1
MOST_CODE = 32
VALIDATION_CODES = 8
Prior = Literal["normal", "flow"]


class VAE(AveragedModel, Encoding):
    """Conditional variational autoencoder; needs positive weights.

    Args:
        n_code: dimensions of a code; as many as there are features, and at most `MOST_CODE`, if left out.
        hidden: widths of the hidden layers of encoder and decoder, and of the couplings' networks.
        act: activation of the layers.
        prior: of the codes: "normal", or "flow", learned for what the encoder makes, which needs two dimensions.
        annealing: part of the run over which the weight of the codes' divergence from the prior rises from 0 to 1.
        learning_rate: initial rate of Adam, which falls to 1 % over the run like a cosine.
        clip_norm: gradients are scaled down to this norm.
        average_decay: decay of the moving average.
    """

    signed_weights = False
    validated_by = "negative evidence lower bound"
    terms_order = 1
    leading_axis = True

    def __init__(
        self,
        *,
        n_code: int | None = None,
        hidden: list[int] = [128, 128],  # noqa: B006 (never changed; shown by --print_config)
        act: Activation = "silu",
        prior: Prior = "normal",
        annealing: float = 0.25,
        learning_rate: float = 2e-3,
        clip_norm: float = 5.0,
        average_decay: float = 0.995,
    ) -> None:
        """Check the options; networks are built when the data are known."""
        super().__init__(latent_size=0)
        if n_code is not None and n_code < 1:
            raise ConfigError(f"n_code: {n_code} found, expected at least 1")
        if not 0 <= annealing <= 1:
            raise ConfigError(f"annealing: {annealing} found, expected a part of the run, from 0 to 1")
        check_decay(average_decay)
        self.n_code, self.hidden, self.act, self.prior, self.annealing = n_code, hidden, act, prior, annealing
        self.learning_rate, self.clip_norm, self.average_decay = learning_rate, clip_norm, average_decay

    def build(self, n_features: int, n_context: int) -> None:
        """Create the networks and their moving average; noise makes the code, the values and the masks."""
        size = self.n_code or min(n_features, MOST_CODE)
        if self.prior == "flow" and size < 2:
            raise ConfigError(f"n_code: {size} found with prior 'flow', expected at least 2")
        self.latent_size = size + n_features + int(self.features.maskable.sum())
        make = partial(Autoencoder, n_features, n_context, size)
        self.autoencoder = make(hidden=self.hidden, act=self.act, flow=self.prior == "flow")
        self.average = averaged(self.autoencoder)

    @property
    def trained(self) -> nn.Module:
        """Encoder, decoder and prior."""
        return self.autoencoder

    @property
    def divergence_weight(self) -> float:
        """Weight of the divergence at this part of the run."""
        return min(self.progress / self.annealing, 1.0) if self.annealing else 1.0

    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Draw codes from the prior and decode them, with the averaged networks."""
        average: Any = self.average
        maskable = self.features.maskable
        start, noise, level = latent.tensor_split([average.n_code, average.n_code + len(maskable)], dim=1)
        decoded = average.decode(average.code_of(start, context), context)
        masked = torch.zeros_like(noise, dtype=torch.bool)
        masked[:, maskable] = torch.special.ndtr(level) < torch.sigmoid(decoded.logit[:, maskable])
        return self.features.joined(decoded.mean + decoded.log_width.exp() * noise, masked)

    def estimate(self, batch: Batch, noise: Noise, mean_weight: float | torch.Tensor) -> torch.Tensor:
        """Weighted bound of a minibatch with the other sign, each event with one code: nats per event."""
        terms = self._terms(self.autoencoder, batch, noise, self.divergence_weight)
        return batch_mean(terms, batch.weight, mean_weight)

    def _terms(self, network: Any, batch: Batch, noise: Noise, divergence_weight: float) -> torch.Tensor:
        """Evidence lower bounds (..., B) of events in network units, with the other sign."""
        parts = self.parts(batch.x)
        posterior = network.encode(parts, batch.context)
        code = posterior.at(noise.normal(batch.x.shape[-2], posterior.mean.shape[-1]).to(batch.x.dtype))
        divergence = network.divergence(posterior, code, batch.context)
        terms: torch.Tensor = divergence_weight * divergence - network.decode(code, batch.context).log_prob(parts)
        return terms

    def validation_terms(self, batch: Batch) -> torch.Tensor:
        """Weighted bounds (n,) of held-out events over the mean weight, with codes that are the same in every call.

        The bound is what the events that are sampled are promised to be worth in log likelihood, with an error far
        below what the energy distance of a few thousand events can tell.
        """
        noise = Noise(0, device=batch.x.device)
        held_out = self.to_network(batch, noise.generators[0])
        bounds = torch.stack([self._terms(self.average, held_out, noise, 1.0) for _ in range(VALIDATION_CODES)])
        return batch.weight / batch.weight.mean() * bounds.mean(0)

    @torch.no_grad()
    def latent_terms(self, events: Batch) -> torch.Tensor:
        """Energy distance of codes of reference events and of the prior at the same contexts, event by event.

        Codes are taken to the prior's noise, so that both priors have one scale.  Of more than 8192 events the first
        ones are compared.
        """
        events = Batch(*(array[:VALIDATION_EVENTS] for array in events))
        average: Any = self.average
        noise = Noise(0, device=events.x.device)
        u, context, _ = self.to_network(events, noise.generators[0])
        posterior = average.encode(self.parts(u), context)
        encoded = average.noise_of(posterior.at(noise.normal(*posterior.mean.shape)), context)
        return losses.energy_contributions(
            torch.cat([encoded, context], dim=1),
            torch.cat([noise.normal(*encoded.shape), context], dim=1),
            weight=events.weight,
            mean_weight=float(events.weight.mean()),
            unbiased=True,
        )


class Posterior(NamedTuple):
    """Normal distribution of an event's code: mean and log width (..., n, k)."""

    mean: torch.Tensor
    log_width: torch.Tensor

    def at(self, noise: torch.Tensor) -> torch.Tensor:
        """Codes (..., n, k) for standard normal noise."""
        return self.mean + self.log_width.exp() * noise


class Decoded(NamedTuple):
    """Distribution of an event: mean and log width of its values, and logit of its masks (..., n, d)."""

    mean: torch.Tensor
    log_width: torch.Tensor
    logit: torch.Tensor

    def log_prob(self, parts: Parts) -> torch.Tensor:
        """Log likelihood (..., n) of events: of values that aren't at an atom, and of masks of columns with one."""
        values = _log_normal((parts.y - self.mean) / self.log_width.exp()) - self.log_width
        masks = logsigmoid(torch.where(parts.masked, self.logit, -self.logit))
        return torch.where(parts.masked, 0.0, values).sum(-1) + torch.where(parts.maskable, masks, 0.0).sum(-1)


class Autoencoder(nn.Module):
    """Encoder, decoder and prior.

    Each column has a mask, with or without an atom: replicas, whose atoms may differ, have the same networks.

    Args:
        n_features: d.
        n_context: c.
        n_code: k.
        hidden: widths of the hidden layers.
        act: activation of the layers.
        flow: whether the prior is a flow.
    """

    def __init__(
        self, n_features: int, n_context: int, n_code: int, *, hidden: list[int], act: Activation, flow: bool
    ) -> None:
        """Build the networks."""
        super().__init__()
        self.n_code = n_code
        self.encoder = MLP(2 * n_features + n_context, 2 * n_code, hidden=hidden, act=act)
        self.decoder = MLP(n_code + n_context, 3 * n_features, hidden=hidden, act=act)
        self.flow: Any = couplings(n_code, n_context, hidden=hidden, act=act) if flow else None

    def encode(self, parts: Parts, context: torch.Tensor) -> Posterior:
        """Distribution of the codes (..., n, k) of events, given context (..., n, c)."""
        event = torch.cat([parts.y, parts.masked.to(parts.y.dtype), context], dim=-1)
        return Posterior(*self.encoder(event).chunk(2, dim=-1))

    def decode(self, code: torch.Tensor, context: torch.Tensor) -> Decoded:
        """Distribution of the events (..., n, d) of codes (..., n, k), given context (..., n, c)."""
        mean, log_width, logit = self.decoder(torch.cat([code, context], dim=-1)).chunk(3, dim=-1)
        least = log_width.new_tensor(math.log(LEAST_WIDTH))
        return Decoded(mean, torch.logaddexp(2 * log_width, 2 * least) / 2, logit)

    def divergence(self, posterior: Posterior, code: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Divergence (..., n) of posteriors from the prior: exact, or with a flow its estimate by one code each."""
        mean, log_width = posterior
        if self.flow is None:
            return (0.5 * (mean.square() + (2 * log_width).exp() - 1) - log_width).sum(-1)
        entropy = (log_width + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return -entropy - flow_log_prob(self.flow, code, context)

    def code_of(self, noise: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Codes (n, k) of the prior for standard normal noise (n, k), given context (n, c)."""
        code: torch.Tensor = noise if self.flow is None else self.flow.inverse(noise, context)[0]
        return code

    def noise_of(self, code: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Inverse of `code_of`."""
        noise: torch.Tensor = code if self.flow is None else self.flow(code, context)[0]
        return noise


def _log_normal(z: torch.Tensor) -> torch.Tensor:
    """Log density of standard normal numbers, each for itself."""
    return -0.5 * (z.square() + math.log(2 * math.pi))
