r"""Flow matching: a velocity field carries noise to events (Lipman et al., arXiv:2210.02747).

Standard normal noise :math:`x_0` and an event :math:`x_1` in network units, at context c, are joined by the straight
path :math:`x_t = (1 - t) x_0 + t x_1`, whose velocity is :math:`x_1 - x_0` (conditional optimal transport, eq. 20 to
23 for a width of 0 at t = 1).  A network :math:`v_t(x; c)` is fitted to it by least squares,

.. math:: \sum_i w_i \, |v_t(x_{t, i}; c_i) - (x_{1, i} - x_{0, i})|^2 \, / \, (B \bar w d) ,

and has at its minimum the mean velocity at each place, which carries the whole of the noise to the events.  With a
negative weight the square has no lower bound: positive weights are needed.

*Events* come from a few steps of a solver along the field.  The *likelihood* is that of the field (eq. 3 and Chen et
al., arXiv:1806.07366), solved in finer steps:

.. math:: \log p(x_1 | c) = \log \mathcal{N}(x_0) - \int_0^1 \nabla \cdot v_t(x_t; c) \, dt .

The divergence is exact up to `EXACT_FEATURES` features, and beyond the mean over `PROBES` random directions of signs
(Hutchinson), which are a function of the event alone.  Events sampled in few steps have that density but for the error
of the steps.

The parameters that are validated, saved and sampled from are an exponential moving average over the training steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import nn
from torchdiffeq import odeint  # type: ignore[import-untyped]  # neither py.typed nor stubs exist

from calorefine import keys
from calorefine.data.batches import Batch
from calorefine.errors import ConfigError
from calorefine.models.density import DensityModel, standard_normal_log_prob
from calorefine.models.updates import averaged, check_decay
from calorefine.nets import Activation, Noise, ResidualMLP
from calorefine.stats import batch_mean

EXACT_FEATURES, PROBES = 32, 16
DENSITY_STEPS = 8
VALIDATION_TIMES = 8
FREQUENCIES = (1, 2, 4)
State = tuple[torch.Tensor, ...]


class FlowMatching(DensityModel):
    """Conditional flow matching; needs positive weights.

    Args:
        width: of the layers of the velocity's network.
        n_blocks: its residual blocks, of two layers each.
        act: activation of its layers.
        solver: of the steps that make an event; both ask for the velocity twice in each.
        n_steps: how many of them.
        from_normal: the network adds to the velocity between noise and independent standard normal numbers, which it
            need not learn: for hundreds of features that are close to these, as the cells of `Showers`.
        learning_rate: initial rate of Adam, which falls to 1 % over the run like a cosine.
        clip_norm: gradients are scaled down to this norm.
        average_decay: decay of the moving average.
    """

    signed_weights = False
    validated_by = "flow matching loss"
    terms_order = 1
    lattice_points: ClassVar[int] = 32
    leading_axis = True

    def __init__(
        self,
        *,
        width: int = 128,
        n_blocks: int = 3,
        act: Activation = "silu",
        solver: Literal["midpoint", "heun2"] = "midpoint",
        n_steps: int = 4,
        from_normal: bool = False,
        learning_rate: float = 2e-3,
        clip_norm: float = 5.0,
        average_decay: float = 0.998,
    ) -> None:
        """Check the options; networks are built when the data are known."""
        super().__init__(latent_size=0)
        for name, number in (("width", width), ("n_blocks", n_blocks), ("n_steps", n_steps)):
            if number < 1:
                raise ConfigError(f"{name}: {number} found, expected at least 1")
        check_decay(average_decay)
        self.width, self.n_blocks, self.act = width, n_blocks, act
        self.solver, self.n_steps, self.from_normal = solver, n_steps, from_normal
        self.learning_rate, self.clip_norm, self.average_decay = learning_rate, clip_norm, average_decay

    def build(self, n_features: int, n_context: int) -> None:
        """Create the velocity and its moving average; the noise has as many dimensions as there are features."""
        self.latent_size = n_features
        n_conditions = n_context + 1 + 2 * len(FREQUENCIES)
        size = {"width": self.width, "n_blocks": self.n_blocks}
        self.velocity = ResidualMLP(n_features, n_conditions, n_features, act=self.act, **size)
        self.average = averaged(self.velocity)

    @property
    def trained(self) -> nn.Module:
        """The velocity."""
        return self.velocity

    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Carry noise (n, d) along the averaged field."""

        def field(t: torch.Tensor, state: State) -> State:
            return (self._velocity(self.average, state[0], t.expand(len(latent), 1), context),)

        return _solved(field, (latent,), (0.0, 1.0), self.solver, self.n_steps)[0]

    def estimate(self, batch: Batch, noise: Noise, mean_weight: float | torch.Tensor) -> torch.Tensor:
        """Weighted squared error of the velocity on a minibatch, each event at a time of its own."""
        return batch_mean(self._errors(self.velocity, batch, noise), batch.weight, mean_weight)

    def _errors(self, network: nn.Module, batch: Batch, noise: Noise) -> torch.Tensor:
        """Squared errors (..., B) of a velocity, averaged over the features and over a noise and its opposite.

        Each event has a random time.  Errors of opposite noise vary against each other, so that their mean is known
        better than from two noises of their own.
        """
        n, d = batch.x.shape[-2:]
        t = noise.uniform(n, 1).to(batch.x.dtype)
        start = noise.normal(n, d).to(batch.x.dtype)

        def errors(start: torch.Tensor) -> torch.Tensor:
            velocity = self._velocity(network, torch.lerp(start, batch.x, t), t, batch.context)
            return (velocity - (batch.x - start)).square().mean(-1)

        return (errors(start) + errors(-start)) / 2

    def _velocity(self, network: nn.Module, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Velocity (..., n, d) at x, time t (..., n, 1) and context; the network sees waves of the time as well."""
        angles = [math.pi * k * t for k in FREQUENCIES]
        waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
        velocity: torch.Tensor = network(x, torch.cat([context, t, *waves], dim=-1))
        return velocity + (2 * t - 1) / (t**2 + (1 - t) ** 2) * x if self.from_normal else velocity

    def validation_terms(self, batch: Batch) -> torch.Tensor:
        """Weighted squared errors (n,) of held-out events over the mean weight, at times and noise of every call."""
        noise = Noise(0, device=batch.x.device)
        held_out = self.to_network(batch, noise.generators[0])
        errors = torch.stack([self._errors(self.average, held_out, noise) for _ in range(VALIDATION_TIMES)])
        return batch.weight / batch.weight.mean() * errors.mean(0)

    def network_log_prob(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Log density (n,) at u (n, d) in network units, given context (n, c), of the averaged field."""
        with torch.inference_mode(mode=False), torch.no_grad():
            x, c = u.clone(), context.clone()
            along = _directions(x)

            def field(t: torch.Tensor, state: State) -> State:
                def velocity(x: torch.Tensor) -> torch.Tensor:
                    return self._velocity(self.average, x, t.expand(len(x), 1), c)

                return velocity(state[0]), _divergence(velocity, state[0], along)

            begin, gained = _solved(field, (x, x.new_zeros(len(x))), (1.0, 0.0), "rk4", DENSITY_STEPS)
            return standard_normal_log_prob(begin) + gained


def _solved(
    field: Callable[[torch.Tensor, State], State],
    start: State,
    times: tuple[float, float],
    solver: str,
    n_steps: int,
) -> State:
    """State at the end of an ordinary differential equation, in equal steps: each row is solved on its own."""
    t = torch.tensor(times, dtype=start[0].dtype, device=start[0].device)
    path = odeint(field, start, t, method=solver, options={"step_size": 1 / n_steps})
    return tuple(part[-1] for part in path)


def _directions(x: torch.Tensor) -> torch.Tensor:
    """Directions (k, n, d) whose mean of products is the unit matrix, over k: axes, or signs that depend on the event.

    An axis is d ** 0.5 long for that.
    """
    n, d = x.shape
    if d <= EXACT_FEATURES:
        axes = torch.eye(d, dtype=x.dtype, device=x.device) * math.sqrt(d)
        return axes[:, None].expand(d, n, d)
    bits = x.float().cpu().contiguous().view(torch.int32).numpy().astype("int64")
    of_event = keys.make_keys([*bits.T])
    signs = [keys.normal(keys.stream(of_event, "probe", copy=k), d) >= 0 for k in range(PROBES)]
    return torch.stack([2 * torch.from_numpy(sign) - 1 for sign in signs]).to(x)


def _divergence(velocity: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """Divergence (n,) of a field at x (n, d), from its slopes along directions (k, n, d)."""

    def slope(direction: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = torch.func.jvp(velocity, (x,), (direction,))[1]
        return (changed * direction).sum(-1)

    divergence: torch.Tensor = torch.func.vmap(slope)(along).mean(0)
    return divergence
