"""The density of cells: normalized, inverted exactly, and normal numbers where it is right."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from calorefine.data import cells


@pytest.fixture
def marginals():
    generator = torch.Generator().manual_seed(4)
    logit = torch.linspace(-3, 3, 7).double()
    share = torch.randn(7, 3, generator=generator).double().log_softmax(-1)
    mean = 2 * torch.randn(7, 3, generator=generator).double()
    return cells.Marginals(logit, share, mean, torch.rand(7, 3, generator=generator).double() + 0.1)


def test_density_sums_to_one(marginals):
    """The probability of no hit, and the integral over the energies of a hit."""
    y = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    grid = cells.Marginals(*(part[:, None].expand(7, len(y), *part.shape[1:]) for part in marginals))
    there = grid.log_prob(y.expand(7, -1), torch.ones(7, len(y), dtype=torch.bool)).exp()
    none = marginals.log_prob(torch.zeros(7), torch.zeros(7, dtype=torch.bool)).exp()
    torch.testing.assert_close(there.sum(1) * 0.001 + none, torch.ones(7, dtype=torch.float64), rtol=1e-6, atol=0)


def test_quantiles_invert_the_survival(marginals):
    for level in (1e-6, 0.02, 0.5, 0.9, 1 - 1e-6):
        at = torch.full((7,), level, dtype=torch.float64)
        torch.testing.assert_close(marginals.survival(marginals.quantile(at)), at, rtol=1e-4, atol=1e-9)


def test_showers_of_the_density_become_normal_numbers(marginals):
    """Each cell by itself, spread where there is no hit; and the same hits and energies come back."""
    n = 20_000
    generator = torch.Generator().manual_seed(5)
    many = cells.Marginals(*(part.expand(n, *part.shape) for part in marginals))
    y, hit = cells.from_normal(many, torch.randn(n, 7, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(hit.double().mean(0), torch.sigmoid(marginals.logit), rtol=0, atol=0.02)
    z = cells.to_normal(many, y, hit)
    again = cells.from_normal(many, z)
    assert torch.equal(again[1], hit)
    torch.testing.assert_close(again[0], y, rtol=1e-4, atol=1e-4)
    spread = cells.spread(many, z, torch.rand(n, 7, generator=generator))
    assert torch.equal(spread[hit], z[hit])
    assert torch.equal(cells.from_normal(many, spread)[1], hit)
    levels = [stats.kstest(column, "norm").pvalue for column in spread.T.numpy()]
    assert min(levels) > 1e-5, levels  # a chance of 7e-5 for any of seven
