"""The likelihood takes positive weights only."""

import pytest
import torch

from calorefine import losses
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
