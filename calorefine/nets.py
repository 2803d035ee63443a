"""Networks; no training code."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Activation = Literal["leaky_relu", "silu", "gelu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"leaky_relu": nn.LeakyReLU, "silu": nn.SiLU, "gelu": nn.GELU}


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
        for first, second in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(first, second), activation(act)]
        super().__init__(*layers, nn.Linear(widths[-1], n_out))


def n_parameters(module: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Move the parameters of `average` by a fraction 1 - decay towards those of `current` (exponential average)."""
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)
