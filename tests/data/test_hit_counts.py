"""Numbers of hits of layers: probabilities that sum to one, normal numbers where they are right, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from calorefine.data.hit_counts import HitCounts


@pytest.fixture(scope="module")
def drawn():
    """Conditions (n, 1), counts (n, 2) that depend on them and on each other, and the most that there can be."""
    rng = np.random.default_rng(3)
    given = rng.normal(size=(20_000, 1)).astype(np.float32)
    first = 1 + rng.poisson(np.exp(2 + 0.3 * given[:, 0]))
    second = 1 + rng.poisson(0.3 * first)
    most = np.column_stack([np.full(len(given), 60), rng.integers(0, 12, len(given))])
    counts = np.minimum(np.column_stack([first, second]), most)
    return torch.from_numpy(given), torch.from_numpy(counts), torch.from_numpy(most)


@pytest.fixture(scope="module")
def fitted(drawn):
    given, counts, most = drawn
    torch.manual_seed(1)
    network = HitCounts(1, 2, hidden=[32], n_components=3)
    network.start(counts, torch.ones(len(counts)))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for step in range(400):
        rows = torch.randint(len(given), (512,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (-network.log_prob(given[rows], counts[rows], most[rows]).mean()).backward()
        optimizer.step()
    return network.requires_grad_(requires_grad=False)


def test_probabilities_sum_to_one(fitted):
    """Over all counts of both layers, as far as there is room."""
    grid = torch.cartesian_prod(torch.arange(1, 16), torch.arange(1, 5))
    for at in (-2.0, 0.0, 1.5):
        given, most = torch.full((len(grid), 1), at), torch.tensor([[15, 4]]).expand(len(grid), 2)
        assert fitted.log_prob(given, grid, most).exp().sum() == pytest.approx(1, abs=1e-6)


def test_layers_without_energy_have_none_for_certain(fitted):
    nothing = torch.zeros(3, 2, dtype=torch.long)
    given = torch.zeros(3, 1)
    assert fitted.log_prob(given, nothing, nothing).tolist() == [0.0] * 3
    assert torch.equal(fitted.from_normal(given, torch.randn(3, 2), nothing), nothing)


def test_counts_come_back_and_are_normal_numbers(drawn, fitted):
    given, counts, most = drawn
    uniform = torch.rand(counts.shape, generator=torch.Generator().manual_seed(2))
    for z in (fitted.to_normal(given, counts, most), fitted.spread_over(given, counts, most, uniform)):
        again = fitted.from_normal(given, z, most)
        assert (again != counts).double().mean() < 1e-3
        assert torch.equal(again == 0, most == 0)
    distances = [stats.kstest(column, "norm").statistic for column in z.T.numpy()]
    assert max(distances) < 0.03, distances  # 0.010 is one in thousand for a perfect fit
