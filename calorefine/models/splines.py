r"""Rational-quadratic splines without masks: each number takes the same way, inside of [-B, B] and beyond.

A spline of K bins is the identity beyond [-B, B]; within, it goes through K + 1 knots with a slope at each (Durkan et
al., arXiv:1906.04032, eqs. 4 to 8).  `SplineCoupling` is nflows' coupling, with its parameters in its order; only the
numbers are calculated here, with events on the last axis, so that each operation runs over many of them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform
from torch.nn.functional import softplus

SMALLEST_BIN = 0.01
SMALLEST_SLOPE = 0.01
_LEAST = 1e-30  # of a discriminant, so that rounding leaves its root a number, and a slope


class SplineCoupling(PiecewiseRationalQuadraticCouplingTransform):  # type: ignore[misc]  # nflows has no types
    """Coupling of nflows whose splines have no masks; options and parameters as there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the layer; arguments as in nflows."""
        super().__init__(*args, **kwargs)
        order = torch.cat([self.identity_features, self.transform_features]).argsort()
        self.register_buffer("order", order, persistent=False)

    def forward(self, inputs: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform features (n, d) at context (n, c); return them and the log of the determinant (n,)."""
        return self._transformed(inputs, context, inverse=False)

    def inverse(self, inputs: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Inverse of `forward`."""
        return self._transformed(inputs, context, inverse=True)

    def _transformed(
        self, inputs: torch.Tensor, context: torch.Tensor | None, *, inverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        columns = inputs.T
        kept = columns.index_select(0, self.identity_features)
        x = columns.index_select(0, self.transform_features)
        raw = self.transform_net(kept.T, context)
        parameters = raw.T.contiguous().view(len(x), 3 * self.num_bins - 1, -1)
        scale = 1 / math.sqrt(self.transform_net.hidden_features)
        y, log_slope = spline(x, parameters, bound=self.tail_bound, scale=scale, inverse=inverse)
        return torch.cat([kept, y]).index_select(0, self.order).T, log_slope.sum(0)


class _Knots(NamedTuple):
    """Where bins start, and their sizes, (d, K, n) each, along one axis."""

    starts: torch.Tensor
    sizes: torch.Tensor


def spline(
    x: torch.Tensor, parameters: torch.Tensor, *, bound: float, scale: float = 1.0, inverse: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Transform numbers by splines; return them (d, n) and the logs (d, n) of the slopes.

    Args:
        x: (d, n).
        parameters: (d, 3 K - 1, n): logits of K widths and of K heights, and K - 1 slopes before a softplus.
        bound: B.
        scale: of the logits.
        inverse: transform by the inverse.
    """
    n_bins = (parameters.shape[1] + 1) // 3
    logits = scale * parameters[:, :n_bins], scale * parameters[:, n_bins : 2 * n_bins]
    widths, heights = (_knots(each, bound) for each in logits)
    along = heights if inverse else widths
    inside = x.clamp(-bound, bound)
    index = (inside[:, None] >= along.starts[:, 1:]).sum(1, keepdim=True)
    left, width, bottom, height = (each.gather(1, index)[:, 0] for each in (*widths, *heights))
    first, last = _slopes(parameters[:, 2 * n_bins :], index)
    mean = height / width
    bend = first + last - 2 * mean
    part = _root(inside - bottom, height, mean, first, bend) if inverse else (inside - left) / width
    rest = 1 - part
    both = part * rest
    slope = mean + bend * both
    within = left + part * width if inverse else bottom + height * part * (mean * part + first * rest) / slope
    log_slope = torch.log(
        mean.square() * (last * part.square() + 2 * mean * both + first * rest.square()) / slope.square()
    )
    beyond = inside != x
    return torch.where(beyond, x, within), torch.where(beyond, 0.0, -log_slope if inverse else log_slope)


def _knots(logits: torch.Tensor, bound: float) -> _Knots:
    """Bins over [-B, B] whose sizes have these logits (d, K, n)."""
    n_bins = logits.shape[1]
    sizes = 2 * bound * (SMALLEST_BIN + (1 - SMALLEST_BIN * n_bins) * logits.softmax(1))
    starts = [torch.full_like(sizes[:, 0], -bound)]
    for size in sizes.unbind(1)[:-1]:
        starts.append(starts[-1] + size)
    return _Knots(torch.stack(starts, dim=1), sizes)


def _slopes(raw: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slopes (d, n) at both knots of a bin (d, 1, n), of those (d, K - 1, n) at the knots within, and 1 at the ends."""
    last_bin = raw.shape[1]
    first = raw.gather(1, (index - 1).clamp_min(0))
    last = raw.gather(1, index.clamp_max(last_bin - 1))
    first = torch.where(index == 0, 1.0, SMALLEST_SLOPE + softplus(first))
    last = torch.where(index == last_bin, 1.0, SMALLEST_SLOPE + softplus(last))
    return first[:, 0], last[:, 0]


def _root(
    above: torch.Tensor, height: torch.Tensor, mean: torch.Tensor, first: torch.Tensor, bend: torch.Tensor
) -> torch.Tensor:
    """Part (d, n) of a bin's width at which the spline is this much above its start (eqs. 6 to 8 of its appendix)."""
    a = above * bend + height * (mean - first)
    b = height * first - above * bend
    c = mean * above
    return 2 * c / (b + (b.square() + 4 * a * c).clamp_min(_LEAST).sqrt())
