r"""Density of the cells of a layer that are scaled to its energy: an integral over one number, the common factor.

Cells with the hits h and energies :math:`y_i = \ln (E_i / T - 1)` over the threshold T are drawn with a density
p(h, y), and what they have over the threshold is multiplied by one factor :math:`e^t`, so that their sum is the energy
E of the layer.  Given E, the k hits that come of it, with :math:`y'_i = y_i + t` and
:math:`\sum e^{y'_i} = E / T - k = X`, have

.. math::
    p(x | E) \, dE = dx_1 \cdots dx_k \; T X \prod_i \frac{1}{T e^{y'_i}} \int dt \; p(h, y' - t) ,

since for fixed E the determinant of :math:`\partial (y_1 \ldots y_k) / \partial (x_1 \ldots x_{k-1}, t)` is
:math:`X e^{-y'_k} \prod_{i<k} 1 / (T e^{y'_i})`, and that of :math:`x_k` and E is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

DROP = 12.0  # nats below the highest value where the integrand ends
LEAST_STEPS = 3  # to either side
TOLERANCE = 0.02  # of the logarithm of the sum with half of the points; that with all of them is far nearer

Shifted = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Log density (m,) float64 at shifts t (m,) of the rows (m,) with these numbers."""


def log_jacobian(y: torch.Tensor, hit: torch.Tensor, threshold: float) -> torch.Tensor:
    """Logarithm (n,) of the factor before the integral, of hits with y (n, k), float64; 0 without a hit."""
    over = torch.where(hit, y.exp(), 0.0).sum(1)
    each = torch.where(hit, y + math.log(threshold), 0.0).sum(1)
    return torch.where(hit.any(1), over.clamp_min(1e-300).log() + math.log(threshold) - each, 0.0)


def log_integral(log_density: Shifted, step: torch.Tensor) -> torch.Tensor:
    r"""Logarithm (n,) of :math:`\int dt \, p(t)` for rows whose densities have one region each, 0 in it or near.

    The trapezoidal rule, whose error falls faster than any power of the step for functions as smooth as these: from 0
    to both sides until the density has fallen by `DROP` nats, and the step halved as long as it makes a difference to
    take but every second point.

    Args:
        log_density: of some rows at some shifts.
        step: (n,) first distance of the points, float64: about the width of the density.

    Returns:
        (n,) float64.
    """
    total = torch.full_like(step, math.nan)
    left = torch.arange(len(step), device=step.device)
    while len(left):
        even, odd = _sums(log_density, step[left], left)
        both = torch.logaddexp(even, odd)
        total[left] = both + step[left].log()
        differs = (both - even - math.log(2)).abs() > TOLERANCE
        left = left[differs]
        step = step.index_copy(0, left, step[left] / 2)
    return total


def _sums(log_density: Shifted, step: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms (n,) of the sums of the density over the even and over the odd multiples of the steps (n,)."""
    highest = log_density(torch.zeros_like(step), rows)
    sums = [highest.clone(), torch.full_like(step, -math.inf)]
    for side in (1, -1):
        number, going = 0, torch.arange(len(rows), device=rows.device)
        while len(going):
            number += 1
            value = log_density(side * number * step[going], rows[going])
            sums[number % 2][going] = torch.logaddexp(sums[number % 2][going], value)
            highest[going] = torch.maximum(highest[going], value)
            going = going[(value > highest[going] - DROP) | (number < LEAST_STEPS)]
    return sums[0], sums[1]
