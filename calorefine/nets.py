"""Networks, and what their trainings share: noise, rates that fall."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from calorefine.ddp import Ranks
from calorefine.errors import ConfigError

FINAL_RATE = 0.01


class Swish(nn.Module):
    """Activation x sigmoid(beta x), whose beta is trained (Ramachandran et al., arXiv:1710.05941); 1 at first."""

    def __init__(self) -> None:
        """Start as SiLU."""
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to each number."""
        return x * torch.sigmoid(self.beta * x)


Activation = Literal["leaky_relu", "silu", "gelu", "swish"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "swish": Swish,
}


def activation(name: Activation) -> nn.Module:
    """Return a new activation layer; the slope of the leaky one is 0.2, as usual for critics."""
    return nn.LeakyReLU(0.2) if name == "leaky_relu" else _ACTIVATIONS[name]()


class MLP(nn.Sequential):
    """Fully connected network (n, n_in) -> (n, n_out), linear at its end.

    Args:
        n_in: number of inputs.
        n_out: number of outputs.
        hidden: widths of the hidden layers.
        act: activation between the layers.
    """

    def __init__(self, n_in: int, n_out: int, *, hidden: list[int], act: Activation = "leaky_relu") -> None:
        """Build the layers."""
        widths = [n_in, *hidden]
        layers: list[nn.Module] = []
        for first, second in pairwise(widths):
            layers += [nn.Linear(first, second), activation(act)]
        super().__init__(*layers, nn.Linear(widths[-1], n_out))


@torch.no_grad()
def starting_small(mlp: MLP) -> MLP:
    """Return a new network with the weights of its last layer scaled to a tenth."""
    last: Any = mlp[-1]  # a Linear; Sequential does not tell
    last.weight.mul_(0.1)
    return mlp


class LatentSkip(nn.Module):
    """Generator that starts as the identity on its noise, and learns the rest.

    The first inputs are the latent numbers; a linear map of them, at first the identity, is added to an MLP of all
    inputs whose last layer starts small.  Training thus begins from standard normal events: every region has support.

    Args:
        latent_size: how many of the inputs are noise.
        n_context: how many are context.
        n_out: number of outputs.
        hidden: widths of the hidden layers.
        act: activation between the layers.
    """

    def __init__(
        self, latent_size: int, n_context: int, n_out: int, *, hidden: list[int], act: Activation = "leaky_relu"
    ) -> None:
        """Build both paths."""
        super().__init__()
        self.latent_size = latent_size
        self.linear = nn.Linear(latent_size, n_out)
        self.mlp = starting_small(MLP(latent_size + n_context, n_out, hidden=hidden, act=act))
        with torch.no_grad():
            nn.init.eye_(self.linear.weight)
            self.linear.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., latent_size + n_context) to (..., n_out)."""
        y: torch.Tensor = self.linear(x[..., : self.latent_size]) + self.mlp(x)
        return y


class Conditioner(nn.Module):
    """Parameters of a coupling: an MLP of the features that stay and the context, whose last layer starts small.

    Args:
        n_in: number of features that stay, plus that of the context columns.
        n_out: number of parameters.
        hidden: widths of the hidden layers.
        act: activation between the layers.
    """

    def __init__(self, n_in: int, n_out: int, *, hidden: list[int], act: Activation = "silu") -> None:
        """Build the layers."""
        super().__init__()
        self.hidden_features = hidden[-1]  # nflows divides some of the parameters by its root
        self.mlp = starting_small(MLP(n_in, n_out, hidden=hidden, act=act))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in - c) and context (n, c) to (n, n_out)."""
        y: torch.Tensor = self.mlp(torch.cat([x, context], dim=1))
        return y


class ResidualMLP(nn.Module):
    """Residual network of a state and conditions, whose last layer is 0 at first (He et al., arXiv:1512.03385).

    Conditions are inputs beside the state, and an embedding of them scales what is within each block (Perez et al.,
    arXiv:1709.07871), so that the result can change sharply with them.

    Args:
        n_state: numbers of the state.
        n_conditions: numbers that it is conditional on.
        n_out: number of outputs.
        width: of the layers.
        n_blocks: blocks of two layers, each of which adds to what it is given.
        act: activation before each layer but the first.
        dropout: part of the numbers within a block that are left out at random in each step of a training.
    """

    def __init__(
        self,
        n_state: int,
        n_conditions: int,
        n_out: int,
        *,
        width: int,
        n_blocks: int,
        act: Activation = "silu",
        dropout: float = 0.0,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.first = nn.Linear(n_state + n_conditions, width)
        embed = MLP(n_conditions, width, hidden=[width], act=act) if n_conditions else None
        self.embedding = nn.Sequential(embed, activation(act)) if embed else None
        self.blocks = nn.ModuleList(
            _Block(width, act, scaled=embed is not None, dropout=dropout) for _ in range(n_blocks)
        )
        self.last = nn.Sequential(activation(act), nn.Linear(width, n_out))
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, state: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """Map (..., n_state) and (..., n_conditions) to (..., n_out)."""
        y = self.first(torch.cat([state, conditions], dim=-1))
        embedded = self.embedding(conditions) if self.embedding else conditions
        for block in self.blocks:
            y = block(y, embedded)
        out: torch.Tensor = self.last(y)
        return out


class _Block(nn.Module):
    """Two layers that add to their input, scaled between them by what is conditioned on, if there is anything."""

    def __init__(self, width: int, act: Activation, *, scaled: bool, dropout: float) -> None:
        super().__init__()
        self.before = nn.Sequential(activation(act), nn.Linear(width, width))
        self.scale = nn.Linear(width, width) if scaled else None
        left_out = [nn.Dropout(dropout)] if dropout else []
        self.after = nn.Sequential(activation(act), *left_out, nn.Linear(width, width))

    def forward(self, y: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        inner = self.before(y)
        changed: torch.Tensor = self.after(inner * (1 + self.scale(embedded)) if self.scale else inner)
        return y + changed


class Noise:
    """Random numbers of one step: of one training, or of several side by side, each with its own generator.

    Args:
        *seeds: of the generators.  One gives arrays as asked for; several give them with a leading axis, on which a
            training finds the same numbers as it would alone.
        ranks: processes that share the batch: one draws the numbers of all events, and takes those of its own.
        device: where the numbers are wanted; they are drawn on the CPU, and the same for each.
    """

    def __init__(self, *seeds: int, ranks: Ranks = Ranks(), device: torch.device | str = "cpu") -> None:  # noqa: B008 (immutable)
        """Make the generators."""
        self.ranks, self.device = ranks, device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @contextmanager
    def of_layers(self) -> Iterator[None]:
        """Have layers that are random by themselves (dropout) draw what belongs to the step."""
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.generators[0])))
            yield

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers for the events of a batch."""
        return self._drawn(torch.randn, shape)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Numbers uniform in [0, 1) for the events of a batch."""
        return self._drawn(torch.rand, shape)

    def _drawn(self, draw: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        whole = self.ranks.whole(shape)
        drawn = [self.ranks.own(draw(whole, generator=generator, device="cpu")) for generator in self.generators]
        return (drawn[0] if len(drawn) == 1 else torch.stack(drawn)).to(self.device)


class Linears(nn.Module):
    """Linear layers of k networks side by side: (k, B, n_in) -> (k, B, n_out), or the same with k B rows in order.

    Args:
        layers: one of each network, of the same shape.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """Stack their parameters."""
        super().__init__()
        trained = layers[0].weight.requires_grad
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]), trained)
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]), trained)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply each network's layer to its rows."""
        k, n_out, n_in = self.weight.shape
        y = torch.baddbmm(self.bias[:, None], x.reshape(k, -1, n_in), self.weight.mT)
        return y if x.dim() == 3 else y.reshape(-1, n_out)


class Swishes(nn.Module):
    """Swish of k networks side by side, on (k, B, n), or the same with k B rows in order.

    Args:
        layers: one of each network.
    """

    def __init__(self, layers: Sequence[Swish]) -> None:
        """Stack their parameters."""
        super().__init__()
        beta = torch.stack([layer.beta.detach() for layer in layers])
        self.beta = nn.Parameter(beta, layers[0].beta.requires_grad)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply each network's to its rows."""
        rows = x.reshape(len(self.beta), -1, x.shape[-1])
        return x * torch.sigmoid(self.beta[:, None] * rows).view_as(x)


_STACKED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {nn.Linear: Linears, Swish: Swishes}


def side_by_side(networks: Sequence[nn.Module]) -> nn.Module:
    """Return one network that holds these, of the same make, whose only parameters are those of `Linear` and `Swish`.

    Parameter `name` of network i becomes row i of parameter `name`.

    Raises:
        ConfigError: there are other parameters.
    """
    joined = copy.deepcopy(networks[0])
    for name, module in list(joined.named_modules()):
        if stacked := _STACKED.get(type(module)):  # a subclass may do more
            joined.set_submodule(name, stacked([network.get_submodule(name) for network in networks]))
        elif others := [parameter for parameter, _ in module.named_parameters(recurse=False)]:
            where = f"{type(networks[0]).__name__} with leading_axis: {type(module).__name__} {name}".rstrip()
            raise ConfigError(f"{where} has parameters {', '.join(others)}, expected those of Linear and Swish only")
    return joined


def linear(progress: float) -> float:
    """Learning rate after this part of a run, as a fraction of the first one: down to `FINAL_RATE` along a line."""
    return max(1 - progress, FINAL_RATE)


def cosine(progress: float) -> float:
    """Learning rate after this part of a run, as a fraction of the first one: down like half a cosine."""
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def n_parameters(module: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
