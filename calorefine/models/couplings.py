r"""Conditional spline couplings: an invertible map of the features to normal noise.

A coupling transforms some of the features by monotone splines whose parameters are functions of the others and of the
context.  Each spline is rational-quadratic inside of [-B, B] and the identity beyond (Durkan et al., arXiv:1906.04032),
so that every input has a density.

Which features is not left to random permutations, which can leave one untouched: layer 2 b transforms the features
whose number has bit b set, layer 2 b + 1 the others.  Two features differ in at least one bit, so that after
:math:`2 \lceil \log_2 d \rceil` layers each has been transformed given each other one.
"""

from __future__ import annotations

from typing import Any

import torch
from nflows.transforms import CompositeTransform

from calorefine.errors import ConfigError
from calorefine.models.density import standard_normal_log_prob
from calorefine.models.splines import SMALLEST_BIN, SMALLEST_SLOPE, SplineCoupling
from calorefine.nets import Activation, Conditioner

N_BINS = 8
TAIL_BOUND = 5.0


def couplings(
    n_features: int,
    n_context: int,
    *,
    n_layers: int | None = None,
    hidden: list[int],
    act: Activation,
    n_bins: int = N_BINS,
    tail_bound: float = TAIL_BOUND,
) -> CompositeTransform:
    """Return the map of features (n, d) at context (n, c) to noise (n, d) and the log of its determinant (n,).

    Args:
        n_features: d, at least 2.
        n_context: c.
        n_layers: number of couplings; as many as let each feature depend on each other, if left out.
        hidden: widths of the hidden layers of a coupling's network.
        act: its activation.
        n_bins: bins of a spline.
        tail_bound: B, where the splines end.

    Raises:
        ConfigError: too few layers.
    """
    return CompositeTransform(
        [
            SplineCoupling(
                mask,
                lambda n_in, n_out: Conditioner(n_in + n_context, n_out, hidden=hidden, act=act),
                **splines(n_bins, tail_bound),
            )
            for mask in coupling_masks(n_features, n_layers)
        ]
    )


def splines(n_bins: int, tail_bound: float) -> dict[str, Any]:
    """Options of a layer's splines."""
    smallest = {"min_bin_width": SMALLEST_BIN, "min_bin_height": SMALLEST_BIN, "min_derivative": SMALLEST_SLOPE}
    return {"num_bins": n_bins, "tails": "linear", "tail_bound": tail_bound, **smallest}


def flow_log_prob(flow: Any, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:  # nflows has no types
    """Log density (..., n) at u (..., n, d), given context (..., n, c), of what a map takes to normal noise."""
    z, log_det = flow(u.flatten(0, -2), context.flatten(0, -2))
    log_prob: torch.Tensor = standard_normal_log_prob(z) + log_det
    return log_prob.reshape(u.shape[:-1])


def coupling_masks(n_features: int, n_layers: int | None = None) -> list[torch.Tensor]:
    """Which features (d,) each layer transforms, so that each is transformed given each other one.

    Args:
        n_features: d, at least 2.
        n_layers: how many layers; they repeat the pattern.  As many as one pattern has if left out.

    Raises:
        ConfigError: too few layers for that.

    >>> [mask.tolist() for mask in coupling_masks(3)]
    [[0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0]]
    """
    bits = (n_features - 1).bit_length()
    number = torch.arange(n_features, device="cpu")
    pattern = [(number >> bit & 1) ^ flip for bit in range(bits) for flip in (0, 1)]
    if n_layers is not None and n_layers < len(pattern):
        msg = f"n_layers: {n_layers} couplings found, expected at least {len(pattern)} for {n_features} features"
        raise ConfigError(msg + ", so that each is transformed given each other one")
    return [pattern[layer % len(pattern)] for layer in range(n_layers or len(pattern))]
