r"""Weighted sums of distances over pairs of points, in tiles of rows: their matrix is never stored.

Of points a_i with weights w_i, and b_j with v_j, the sums :math:`\sum_j v_j |a_i - b_j|` and the gradient of
:math:`\sum_{ij} w_i v_j |a_i - b_j|` with respect to a_i,

.. math:: w_i \Big( a_i \sum_j \frac{v_j}{|a_i - b_j|} - \sum_j \frac{v_j b_j}{|a_i - b_j|} \Big) ,

come from one pass.  Distances within one sample are symmetric: each is calculated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 1 << 18  # distances at a time: they stay in the processor's cache
_LEAST = 1e-8  # of a squared distance, whose root has a finite slope


def energy_kernel(reference: Tensor, generated: Tensor, weight: Tensor, *, paired: bool) -> Tensor:
    """Sum (k,) of w_i w_j k_ij (`losses.energy_distance`): points (k, B, d), weights (k, B), i = j if `paired`."""
    apply: Callable[..., Tensor] = _EnergyKernel.apply
    return apply(reference, generated, weight, paired)


class _EnergyKernel(torch.autograd.Function):
    """`energy_kernel`, whose gradient with respect to both samples is found in the same pass over the pairs."""

    @staticmethod
    def forward(ctx: Any, reference: Tensor, generated: Tensor, weight: Tensor, paired: bool) -> Tensor:  # noqa: FBT001
        """Sum over all pairs (k,), of points (k, B, d) with weights (k, B); without pairs i = j unless `paired`."""
        of_reference, of_generated = ctx.needs_input_grad[:2]
        sums, slopes = kernel_sums(reference, generated, weight, paired=paired, slopes=(of_reference, of_generated))
        ctx.save_for_backward(*slopes)
        return (weight * sums).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """Gradients of both samples' points."""
        factor = 2 * upstream[:, None, None]
        slopes = zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
        return *((factor * slope if wanted else None) for slope, wanted in slopes), None, None


def kernel_sums(
    reference: Tensor, generated: Tensor, weight: Tensor, *, paired: bool, slopes: tuple[bool, bool] = (False, False)
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Sums (k, B) over j of w_j k_ij, and half of the gradients (k, B, d) of their sum with weights w_i.

    Args:
        reference: (k, B, d) points.
        generated: (k, B, d) points.
        weight: (k, B), any sign, the same for both.
        paired: whether pairs i = j count.
        slopes: whether the gradients with respect to reference and generated points are wanted; else they are empty.
    """
    across = _between(reference, generated, weight, paired=paired, slopes=slopes)
    alone = [
        _within(points, weight, paired=paired, slopes=wanted)
        for points, wanted in zip((reference, generated), slopes, strict=True)
    ]
    sums = across[0].sums + across[1].sums - alone[0].sums - alone[1].sums
    first, second = (one.slopes - other.slopes for one, other in zip(across, alone, strict=True))
    return sums, (first, second)


class _Sums(NamedTuple):
    """Sums (k, m) of the points of a sample over others, and gradients (k, m, d), which are empty if not wanted."""

    sums: Tensor
    slopes: Tensor

    @classmethod
    def none(cls, points: Tensor, weight: Tensor, *, slopes: bool) -> _Sums:
        """Zeros for points (k, m, d) with weights (k, m)."""
        return cls(torch.zeros_like(weight), torch.zeros_like(points) if slopes else points.new_empty(0))

    def add(self, rows: slice, distance: Tensor, weight: Tensor) -> None:
        """Add distances (k, m', n) of some points to others with weights (k, n)."""
        self.sums[:, rows] += (distance @ weight[..., None])[..., 0]

    def add_slopes(self, rows: slice, inverse: Tensor, weighted: Tensor, points: Tensor, weight: Tensor) -> None:
        """Add gradients by inverse distances (k, m', n) to others, `_weighted` (k, n, d + 1)."""
        if self.slopes.numel():
            pulls = inverse @ weighted
            gradient = points[:, rows] * pulls[..., -1:] - pulls[..., :-1]
            self.slopes[:, rows] += gradient * weight[:, rows, None]


def _between(a: Tensor, b: Tensor, weight: Tensor, *, paired: bool, slopes: tuple[bool, bool]) -> tuple[_Sums, _Sums]:
    """Sums of a (k, m, d) over b (k, m, d), of the same weights (k, m), and of b over a."""
    of_a, of_b = (_Sums.none(points, weight, slopes=wanted) for points, wanted in zip((a, b), slopes, strict=True))
    left, right, whole = _left(a), _right(b), slice(None)
    along_a, along_b = _weighted(a, weight), _weighted(b, weight)
    for rows in _tiles(a, b.shape[1]):
        distance = _distances(left[:, rows], right)
        if not paired:
            _diagonal(distance, rows.start).fill_(0.0)
        of_a.add(rows, distance, weight)
        of_b.add(whole, distance.mT, weight[:, rows])
        if any(slopes):
            inverse = distance.reciprocal_()
            if not paired:
                _diagonal(inverse, rows.start).fill_(0.0)
            of_a.add_slopes(rows, inverse, along_b, a, weight)
            of_b.add_slopes(whole, inverse.mT, along_a[:, rows], b, weight)
    return of_a, of_b


def _within(a: Tensor, weight: Tensor, *, paired: bool, slopes: bool) -> _Sums:
    """Sums of points (k, m, d) with weights (k, m) over the sample; `paired`: with themselves, as equal points."""
    of = _Sums.none(a, weight, slopes=slopes)
    left, right, along = _left(a), _right(a), _weighted(a, weight)
    for rows in _tiles(a, a.shape[1]):
        rest, after = slice(rows.start, None), slice(rows.stop, None)
        distance = _distances(left[:, rows], right[..., rest])
        beside = distance[..., rows.stop - rows.start :]
        _diagonal(distance, 0).fill_(_LEAST**0.5 if paired else 0.0)
        of.add(rows, distance, weight[:, rest])
        of.add(after, beside.mT, weight[:, rows])
        if slopes:
            _diagonal(distance.reciprocal_(), 0).fill_(0.0)
            of.add_slopes(rows, distance, along[:, rest], a, weight)
            of.add_slopes(after, beside.mT, along[:, rows], a, weight)
    return of


def _tiles(a: Tensor, n: int) -> Iterator[slice]:
    """Rows of a (k, m, d) whose distances to n points are calculated at a time."""
    size = max(1, _TILE // (len(a) * n))
    for first in range(0, a.shape[1], size):
        yield slice(first, min(first + size, a.shape[1]))


def _left(a: Tensor) -> Tensor:
    """Factor (k, m, d + 2) of squared distances."""
    return torch.cat([-2 * a, a.square().sum(-1, keepdim=True), torch.ones_like(a[..., :1])], dim=-1)


def _right(b: Tensor) -> Tensor:
    """Factor (k, d + 2, n) of squared distances."""
    return torch.cat([b, torch.ones_like(b[..., :1]), b.square().sum(-1, keepdim=True)], dim=-1).mT


def _distances(left: Tensor, right: Tensor) -> Tensor:
    """Distances (k, m, n) by their factors."""
    return (left @ right).clamp_min_(0.0).add_(_LEAST).sqrt_()


def _weighted(a: Tensor, weight: Tensor) -> Tensor:
    """Points (k, m, d) and a 1, times their weights (k, m)."""
    return torch.cat([a, torch.ones_like(a[..., :1])], dim=-1) * weight[..., None]


def _diagonal(matrix: Tensor, shift: int) -> Tensor:
    """Diagonal (k, m') of a matrix (k, m', n) that starts in this column."""
    return matrix.diagonal(shift, 1, 2)
