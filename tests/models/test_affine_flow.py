"""The flow of affine couplings: invertible, normalized, able to narrow and widen, and random by the step alone."""

from __future__ import annotations

import pytest
import torch

from calorefine.data.batches import Batch
from calorefine.errors import ConfigError
from calorefine.models import AffineFlow
from calorefine.nets import Noise


def built(n_features=6, n_context=2, **options):
    torch.manual_seed(1)
    model = AffineFlow(**({"width": 32} | options))
    model.build(n_features, n_context)
    for parameter in model.parameters():  # not the identity
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.double()


def test_density_is_that_of_what_it_generates():
    """Change of variables by automatic differentiation."""
    model, c = built().eval(), torch.randn(5, 2).double()
    z = torch.randn(5, 6).double()
    u = model.generate(z, c)
    jacobian = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda one, k=k: model.generate(one[None], c[k : k + 1])[0], z[k])
            for k in range(5)
        ]
    )
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(model.network_log_prob(u, c), normal - torch.linalg.slogdet(jacobian)[1])
    assert (torch.linalg.slogdet(jacobian)[1].abs() > 0.05).all()


def test_every_feature_is_transformed():
    for n in (2, 3, 7):
        model, c = built(n, n_layers=2).eval(), torch.zeros(1, 2).double()
        z = torch.randn(1, n).double()
        assert (model.generate(z, c) != z).all()


def test_widths_that_depend_on_the_context_are_learned():
    """Widths from 0.3 to 2.7: both sides of what a scale of at most 1 could give."""

    def draw(n):
        context = torch.rand(n, 1) * 2.2 - 1.2
        return torch.randn(n, 4) * context.exp(), context

    torch.manual_seed(3)
    model = AffineFlow(width=32, n_layers=4)
    model.build(4, 1)
    optimizer = torch.optim.Adam(model.trained.parameters(), lr=3e-3)
    for step in range(300):
        optimizer.zero_grad()
        model.estimate(Batch(*draw(512), torch.ones(512)), Noise(step), 1.0).backward()
        optimizer.step()
    x, context = draw(20_000)
    truth = torch.distributions.Normal(0.0, context.exp()).log_prob(x).sum(1).mean()
    found = model.network_log_prob(x, context, trained=True).mean()
    assert truth - 0.05 < found < truth + 1e-3  # 0.009 +- 0.003 below, over 12 seeds


def test_what_is_left_out_belongs_to_the_step():
    """The same noise gives the same loss, another one another; the global generator stays as it is."""
    model = built(dropout=0.5).train()
    batch = Batch(torch.randn(64, 6).double(), torch.randn(64, 2).double(), torch.ones(64).double())
    torch.manual_seed(5)
    first = model.estimate(batch, Noise(1), 1.0)
    after = torch.rand(2)
    torch.manual_seed(6)
    assert model.estimate(batch, Noise(1), 1.0) == first
    assert model.estimate(batch, Noise(2), 1.0) != first
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), after)
    assert not model.leading_axis


def test_what_is_refused():
    with pytest.raises(ConfigError, match="n_layers: 1 found, expected at least 2"):
        AffineFlow(n_layers=1)
    with pytest.raises(ConfigError, match="dropout: 1 found, expected at least 0 and less than 1"):
        AffineFlow(dropout=1)
    with pytest.raises(ConfigError, match="1 feature found, expected at least 2; take a Flow"):
        AffineFlow().build(1, 2)
