r"""Objectives with weights: formulas only.

A conditional generator is compared with the reference at the *same* contexts and weights in both terms:

.. math:: \sum_i w_i \, [D(x_i, c_i) - D(G(z_i, c_i), c_i)] \, / \, (B \bar w) ,

since sPlot weights make the joint density of (x, context) that of the signal.  With other weights on the generated term
the critic would compare signal contexts with mixture contexts.  :math:`\bar w` is the mean weight of the whole training
sample, never the batch's own.

Arrays may have a leading axis that numbers replicas trained side by side: each has its own events, weights and mean.
"""

from __future__ import annotations

import torch

from calorefine.nets import Noise
from calorefine.pairs import energy_kernel, kernel_sums
from calorefine.stats import batch_mean, require_nonnegative


def wasserstein(
    reference: torch.Tensor, generated: torch.Tensor, *, weight: torch.Tensor, mean_weight: float | torch.Tensor
) -> torch.Tensor:
    """Weighted difference of the critic's values, reference minus generated (Arjovsky et al., arXiv:1701.07875, eq. 2).

    Args:
        reference: (B,) critic at (x_i, c_i).
        generated: (B,) critic at (G(z_i, c_i), c_i).
        weight: (B,) any sign, the same for both terms.
        mean_weight: mean over the whole training sample.

    Returns:
        (...) tensor: the critic maximizes it, the generator minimizes it.
    """
    return batch_mean(reference - generated, weight, mean_weight)


def energy_distance(
    reference: torch.Tensor,
    generated: torch.Tensor,
    *,
    weight: torch.Tensor,
    mean_weight: float | torch.Tensor,
    unbiased: bool,
) -> torch.Tensor:
    r"""Weighted energy distance :math:`\sum_{ij} w_i w_j k_{ij}` of reference and generated points at equal contexts.

    The kernel of a pair of events is
    :math:`k_{ij} = |r_i - g_j| + |g_i - r_j| - |r_i - r_j| - |g_i - g_j|` (Szekely and Rizzo, 2013,
    doi:10.1016/j.jspi.2013.03.018, eq. 2.5).

    Args:
        reference: (..., B, k) points of the reference events.
        generated: (B, k) points generated at their contexts.
        weight: (B,) any sign, the same for both.
        mean_weight: mean over the whole training sample.
        unbiased: leave out the pairs i = j and divide by B (B - 1) (U-statistic, for minibatches and held-out events;
            it can be negative).  Otherwise the plug-in form of a full sample, never negative, larger by about
            sum w^2 / (sum w)^2 in expectation.

    Returns:
        () tensor.
    """
    total = energy_kernel(*_leading(reference, generated, weight), paired=not unbiased)
    return total.reshape(weight.shape[:-1]) / _n_pairs(weight, mean_weight, unbiased=unbiased)


@torch.no_grad()
def energy_contributions(
    reference: torch.Tensor,
    generated: torch.Tensor,
    *,
    weight: torch.Tensor,
    mean_weight: float | torch.Tensor,
    unbiased: bool,
) -> torch.Tensor:
    """Contributions (..., B) of the events to the energy distance, which is their mean; without gradient."""
    sums, _ = kernel_sums(*_leading(reference, generated, weight), paired=not unbiased)
    pairs = _n_pairs(weight, mean_weight, unbiased=unbiased)
    return weight * sums.reshape(weight.shape) * (weight.shape[-1] / _of_events(pairs))


def _leading(reference: torch.Tensor, generated: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Samples (..., B, k) and weights (..., B) with one leading axis."""
    points = (sample.reshape(-1, *sample.shape[-2:]) for sample in (reference, generated))
    return *points, weight.reshape(-1, weight.shape[-1])


def _n_pairs(weight: torch.Tensor, mean_weight: float | torch.Tensor, *, unbiased: bool) -> float | torch.Tensor:
    """Pairs of events (...,), each in units of the squared mean weight."""
    n = weight.shape[-1]
    return n * (n - 1 if unbiased else n) * mean_weight**2


def squared_mean(
    values: torch.Tensor, *, weight: torch.Tensor, mean_weight: float | torch.Tensor, unbiased: bool
) -> torch.Tensor:
    r"""Square of a weighted mean :math:`\big(\sum_i w_i v_i / (B \bar w)\big)^2`.

    Args:
        values: (..., B).
        weight: (..., B), any sign.
        mean_weight: mean over the whole training sample.
        unbiased: leave out the squares of single events and divide by B (B - 1), not B^2 (U-statistic, for minibatches;
            it can be negative).  Otherwise the plug-in form of a full sample.

    Returns:
        (...) tensor.
    """
    parts = weight * values / _of_events(mean_weight)
    square, n = parts.sum(-1).square(), weight.shape[-1]
    return (square - parts.square().sum(-1)) / (n * (n - 1)) if unbiased else square / n**2


def shares(weight: torch.Tensor, mean_weight: float | torch.Tensor) -> torch.Tensor:
    """Shares (..., B) of events in a sum of weights (..., B), by the mean weight (...) of the whole training sample."""
    return weight / (weight.shape[-1] * _of_events(mean_weight))


def _of_events(mean_weight: float | torch.Tensor) -> float | torch.Tensor:
    """Mean weight (...) with an axis for the events."""
    return mean_weight[..., None] if isinstance(mean_weight, torch.Tensor) else mean_weight


def negative_log_likelihood(
    log_prob: torch.Tensor, weight: torch.Tensor, mean_weight: float | torch.Tensor
) -> torch.Tensor:
    r"""Weighted negative log likelihood :math:`-\sum_i w_i \log p(x_i | c_i) / (B \bar w)`.

    With a negative weight it has no lower bound: the density may go to 0 at that event.

    Args:
        log_prob: (B,) of the reference events, in nats.
        weight: (B,) not negative.
        mean_weight: mean over the whole training sample.

    Returns:
        (...) tensor: nats per event.

    Raises:
        WeightError: a negative weight.
    """
    what = "weighted likelihood, which has no lower bound with signed weights"
    require_nonnegative(weight.detach().cpu().numpy(), what)
    return -batch_mean(log_prob, weight, mean_weight)


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (..., m, n) of points (..., m, k) and (..., n, k), with a finite gradient at 0."""
    square = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :] - 2 * a @ b.mT
    return (square.clamp_min(0) + 1e-8).sqrt()


def interpolate(x: torch.Tensor, y: torch.Tensor, *, noise: Noise) -> torch.Tensor:
    """Points (..., B, d) uniform between x_i and y_i; they carry no weights: a penalty must not be negative."""
    mix = noise.uniform(x.shape[-2], 1).to(x.dtype)
    return torch.lerp(x, y, mix).detach().requires_grad_()


def gradient_penalty(
    values: torch.Tensor, points: torch.Tensor, *, norm: float = 1.0, one_sided: bool = False
) -> torch.Tensor:
    """Penalty mean (|grad| - norm)^2 on the critic's gradient (Gulrajani et al., arXiv:1704.00028, eq. 3).

    Args:
        values: (..., B) critic at `points`.
        points: (..., B, d), with gradient.
        norm: that is asked for.
        one_sided: penalize only gradients above it.

    Returns:
        (...) tensor, unweighted.
    """
    (gradient,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    excess = (gradient.square().sum(-1) + 1e-12).sqrt() - norm
    return (excess.clamp_min(0) if one_sided else excess).square().mean(-1)
