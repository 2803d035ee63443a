"""Splines without masks are those of nflows."""

import copy

import pytest
import torch
from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.splines import unconstrained_rational_quadratic_spline

from calorefine.models.couplings import couplings, flow_log_prob, splines
from calorefine.models.splines import SMALLEST_BIN, SMALLEST_SLOPE, SplineCoupling, spline
from calorefine.nets import Conditioner

BOUND = 3.0
N_BINS = 6


def numbers(n, d=4):
    """Numbers (d, n) within and beyond the bound, and at it, with parameters (d, 3 K - 1, n) of steep splines."""
    generator = torch.Generator().manual_seed(n)
    x = 2.5 * torch.randn(d, n, generator=generator, dtype=torch.float64)
    x[0, : n // 10] = BOUND
    x[1, : n // 10] = -BOUND
    return x, 3 * torch.randn(d, 3 * N_BINS - 1, n, generator=generator, dtype=torch.float64)


def of_nflows(x, parameters, *, inverse):
    parts = parameters.movedim(1, -1).split([N_BINS, N_BINS, N_BINS - 1], dim=-1)
    return unconstrained_rational_quadratic_spline(
        x,
        *parts,
        inverse=inverse,
        tail_bound=BOUND,
        min_bin_width=SMALLEST_BIN,
        min_bin_height=SMALLEST_BIN,
        min_derivative=SMALLEST_SLOPE,
    )


@pytest.mark.parametrize("n", [1, 7, 2000])
@pytest.mark.parametrize("inverse", [False, True])
def test_values_slopes_and_gradients_are_those_of_nflows(n, inverse):
    x, parameters = numbers(n)
    results, gradients = [], []
    for function in (
        lambda *args: spline(*args, bound=BOUND, inverse=inverse),
        lambda *a: of_nflows(*a, inverse=inverse),
    ):
        inputs = [x.clone().requires_grad_(), parameters.clone().requires_grad_()]
        y, log_slope = function(*inputs)
        results.append((y.detach(), log_slope.detach()))
        (torch.sin(y) + log_slope).sum().backward()
        gradients.append([each.grad for each in inputs])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    at_bound = x.abs() == BOUND  # one-sided slopes differ there
    assert torch.allclose(gradients[0][0][~at_bound], gradients[1][0][~at_bound], rtol=1e-6, atol=1e-8)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-6, atol=1e-8)


def test_inverse_undoes_it_and_slopes_are_derivatives():
    x, parameters = numbers(500)
    x.requires_grad_()
    y, log_slope = spline(x, parameters, bound=BOUND)
    (slope,) = torch.autograd.grad(y.sum(), x)
    within = x.abs() < BOUND
    assert torch.allclose(slope[within].log(), log_slope[within], atol=1e-9)
    back, minus = spline(y.detach(), parameters, bound=BOUND, inverse=True)
    assert torch.allclose(back, x, atol=1e-7)
    assert torch.allclose(minus[within], -log_slope[within], atol=1e-6)


def test_single_precision_has_finite_gradients_everywhere():
    x, parameters = (each.float() for each in numbers(5000))
    for inverse in (False, True):
        inputs = [x.clone().requires_grad_(), (3 * parameters).requires_grad_()]
        y, log_slope = spline(*inputs, bound=BOUND, inverse=inverse)
        (gradient_x, gradient) = torch.autograd.grad((y + log_slope).sum(), inputs)
        assert all(each.isfinite().all() for each in (y, log_slope, gradient_x, gradient))


def test_a_number_that_is_none_stays_so():
    x, parameters = numbers(3)
    x[0, 0] = torch.nan
    y, _ = spline(x, parameters, bound=BOUND)
    assert y.isnan().tolist() == x.isnan().tolist()


def test_coupling_is_that_of_nflows_with_its_parameters():
    torch.manual_seed(1)
    mask = torch.tensor([0, 1, 1, 0, 1])
    ours, theirs = (
        kind(mask, lambda n_in, n_out: Conditioner(n_in + 2, n_out, hidden=[16]), **splines(N_BINS, BOUND))
        for kind in (SplineCoupling, PiecewiseRationalQuadraticCouplingTransform)
    )
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        layer.double()
    x, context = 2 * torch.randn(400, 5, dtype=torch.float64), torch.randn(400, 2, dtype=torch.float64)
    for way in ("forward", "inverse"):
        for one, other in zip(getattr(ours, way)(x, context), getattr(theirs, way)(x, context), strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def test_density_in_single_precision_is_that_in_double():
    torch.manual_seed(2)
    flow = couplings(6, 2, hidden=[32, 32], act="silu")
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    u, context = torch.randn(2000, 6), torch.randn(2000, 2)
    double = flow_log_prob(copy.deepcopy(flow).double(), u.double(), context.double())
    assert (flow_log_prob(flow, u, context) - double).abs().max() < 1e-3
