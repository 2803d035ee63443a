"""The likelihood takes positive weights only."""

import pytest
import torch

from calorefine import losses, pairs
from calorefine.errors import WeightError


def test_negative_log_likelihood_divides_by_the_global_mean_weight():
    log_prob = torch.tensor([-1.0, -3.0], requires_grad=True)
    loss = losses.negative_log_likelihood(log_prob, torch.tensor([0.5, 0.0]), 0.25)
    assert loss.item() == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert gradient.tolist() == [-1.0, 0.0]


def test_negative_log_likelihood_refuses_signed_weights():
    weight = torch.tensor([0.5, -0.31, -0.1])
    with pytest.raises(WeightError, match=r"no lower bound.*2 of 3 weights are negative.*-0.31.*PositiveWeights"):
        losses.negative_log_likelihood(torch.zeros(3), weight, 0.1)


def plain_energy_distance(reference, generated, weight, mean_weight, *, unbiased):
    """The formula, pair by pair, with the same offset at 0."""

    def distances(a, b):
        return ((a[:, None] - b[None]).square().sum(-1) + 1e-8).sqrt()

    cross = distances(reference, generated)
    off = 1 - torch.eye(len(weight), dtype=weight.dtype)
    alone = distances(reference, reference) + distances(generated, generated)
    kernel = (cross + cross.T - alone) * (off if unbiased else 1)
    n = len(weight)
    return weight @ kernel @ weight / (n * (n - 1 if unbiased else n) * mean_weight**2)


def samples(n=37, k=3):
    """Points, generated ones, and weights of both signs."""
    torch.manual_seed(n)
    reference = torch.randn(n, k, dtype=torch.float64, requires_grad=True)
    generated = (1.3 * torch.randn(n, k, dtype=torch.float64) + 0.4).requires_grad_()
    return reference, generated, 0.6 + torch.randn(n, dtype=torch.float64)


@pytest.mark.parametrize("tile", [1, 40, 200, 1 << 18])
@pytest.mark.parametrize("unbiased", [False, True])
def test_energy_distance_in_tiles_is_the_formula_with_its_gradients(tile, unbiased, monkeypatch):
    monkeypatch.setattr(pairs, "_TILE", tile)
    reference, generated, weight = samples()
    expected = plain_energy_distance(reference, generated, weight, 0.6, unbiased=unbiased)
    found = losses.energy_distance(reference, generated, weight=weight, mean_weight=0.6, unbiased=unbiased)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    points = (reference, generated)
    for one, other in zip(torch.autograd.grad(found, points), torch.autograd.grad(expected, points), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    terms = losses.energy_contributions(reference, generated, weight=weight, mean_weight=0.6, unbiased=unbiased)
    assert terms.mean().item() == pytest.approx(expected.item(), rel=1e-10)
    assert not terms.requires_grad


def test_energy_distance_of_replicas_is_that_of_each():
    parts = [samples(), [part * 1.5 for part in samples()]]
    stacked = [torch.stack(both).detach().requires_grad_() for both in zip(*parts, strict=True)]
    means = torch.tensor([0.6, 0.9], dtype=torch.float64)
    found = losses.energy_distance(*stacked[:2], weight=stacked[2].detach(), mean_weight=means, unbiased=True)
    gradients = torch.autograd.grad(found.sum(), stacked[:2])
    for index, (reference, generated, weight) in enumerate(parts):
        alone = losses.energy_distance(
            reference, generated, weight=weight, mean_weight=float(means[index]), unbiased=True
        )
        assert found[index].item() == pytest.approx(alone.item(), rel=1e-10)
        for one, other in zip(gradients, torch.autograd.grad(alone, (reference, generated)), strict=True):
            torch.testing.assert_close(one[index], other)


def test_energy_distance_has_the_gradient_of_what_is_trained_and_none_of_points_that_coincide():
    reference, generated, weight = samples()
    generated = generated.detach()
    generated[5] = generated[4]
    generated.requires_grad_()
    found = losses.energy_distance(reference.detach(), generated, weight=weight, mean_weight=0.6, unbiased=True)
    expected = plain_energy_distance(reference.detach(), generated, weight, 0.6, unbiased=True)
    (one,), (other,) = (torch.autograd.grad(value, generated) for value in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert one.isfinite().all()
