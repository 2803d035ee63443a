"""Divergence and likelihood of a velocity field of many features, where both are estimated along random directions."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from calorefine.models.density import standard_normal_log_prob
from calorefine.models.flow_matching import EXACT_FEATURES, PROBES, FlowMatching, _directions, _divergence
from calorefine.nets import ResidualMLP

D = EXACT_FEATURES + 8


class Linear(nn.Module):
    """The field A x of a fixed matrix."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x, conditions):  # noqa: ARG002 (signature of a velocity)
        return x @ self.matrix.T


@pytest.fixture
def field():
    """A random network, float64, and points at which it is asked."""
    torch.manual_seed(71)
    network = ResidualMLP(D, 1, D, width=32, n_blocks=2).double()
    nn.init.normal_(network.last[-1].weight, std=0.5)
    x = torch.randn(300, D, dtype=torch.float64)
    return lambda x: network(x, torch.ones(*x.shape[:-1], 1, dtype=x.dtype)), x


def traces(velocity, x):
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: velocity(row[None])[0]))(x)
    return jacobians.diagonal(dim1=1, dim2=2).sum(-1).detach()


def test_estimated_divergence_has_no_bias(field):
    """Seed 71: the mean deviation of 300 events is 0 within 4 of its standard errors, a chance of 1 in 16 000."""
    velocity, x = field
    found = _divergence(velocity, x, _directions(x)).detach()
    off = (found - traces(velocity, x)).numpy()
    assert 0 < np.std(off) < 3 * math.sqrt(D / PROBES)
    assert abs(off.mean()) < 4 * np.std(off) / math.sqrt(len(off))


def test_directions_are_those_of_the_event(field):
    _, x = field
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(_directions(x)[:, order], _directions(x[order]), rtol=0, atol=0)
    assert len(_directions(x)) == PROBES
    assert set(_directions(x).unique().tolist()) == {-1.0, 1.0}


def test_divergence_of_few_features_is_exact(field):
    velocity, x = field
    few = x[:, :3]

    def of_three(y):
        return velocity(nn.functional.pad(y, (0, D - 3)))[..., :3]

    torch.testing.assert_close(_divergence(of_three, few, _directions(few)), traces(of_three, few))


@pytest.mark.parametrize("d", [3, D])
def test_likelihood_of_a_linear_field(d):
    """log p(u) = log N(exp(-A) u) - tr A, in 8 steps; any signs give the trace of a diagonal A exactly."""
    slopes = torch.linspace(-0.4, 0.8, d)
    model = FlowMatching()
    model.build(d, 0)
    model.average = Linear(torch.diag(slopes))
    u = torch.randn(50, d, generator=torch.Generator().manual_seed(2))
    expected = standard_normal_log_prob(u * torch.exp(-slopes)) - slopes.sum()
    torch.testing.assert_close(model.network_log_prob(u, u.new_empty(50, 0)), expected, rtol=0, atol=1e-3)


def test_from_normal_begins_with_independent_normal_numbers():
    """Without training what it makes is noise itself, and the density that of standard normal numbers."""
    torch.manual_seed(0)
    model = FlowMatching(from_normal=True, n_steps=8)
    model.build(5, 2)
    noise, context = torch.randn(500, 5), torch.randn(500, 2)
    with torch.no_grad():
        torch.testing.assert_close(model.generate(noise, context), noise, atol=0.03, rtol=0)
        found = model.network_log_prob(noise, context)
    torch.testing.assert_close(found, standard_normal_log_prob(noise), atol=0.02, rtol=0)
