"""Cells of showers one after the other: a density that is one, and the dependence of neighbors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from calorefine import Events
from calorefine.data import cells
from calorefine.data.batches import Batch
from calorefine.data.preprocessing import AsItIs
from calorefine.data.showers import Showers
from calorefine.errors import ConfigError
from calorefine.models import AutoregressiveCells, Flow
from calorefine.models.cell_windows import NEXT, windows_of
from calorefine.models.layer_budget import draw_energies, log_odds, to_come
from calorefine.models.two_step import TwoStep
from calorefine.nets import Noise
from tests.data.shower_toy import GEOMETRY, described, draw

N_LAYERS, N_CELLS = len(GEOMETRY.layers), GEOMETRY.n_cells
LEFT = torch.tensor([k for k in range(24) if k % 12 < 11])  # cells of the first layer with one to their right


def dependent(n: int, seed: int) -> Events:
    """Showers in whose first layer cells next to each other fluctuate together, with a correlation of 0.5."""
    events = draw(n, seed)
    field = np.random.default_rng([1, seed]).normal(size=(n, 2, 13))
    x = events.x.copy()
    x[:, :24] *= np.exp(0.7 * (field[..., 1:] + field[..., :-1]) / 2**0.5).reshape(n, 24)
    return Events(x.astype(np.float32), events.context, events.weight, events.key, events.event_key)


@pytest.fixture(scope="module")
def showers():
    """Map that is fitted to such showers, without mirrors of theirs: one side of the detector alone."""
    columns = described(dataclasses.replace(GEOMETRY, mirrors=(False, False)))
    return Showers(epochs=15, hidden=[32]).fit(dependent(4000, 1), columns)


def batch_of(showers: Showers, events: Events) -> Batch:
    """Cells and what they are given, in network units."""
    x, context = torch.from_numpy(events.x), torch.from_numpy(events.context)
    u = showers.dequantize(showers(x, context), torch.Generator().manual_seed(0), context)
    given = torch.cat([showers.context_map(context), u[:, :N_LAYERS]], dim=1)
    return Batch(u[:, N_LAYERS:], given, torch.from_numpy(events.weight).float())


def untrained(showers: Showers) -> AutoregressiveCells:
    """Recipe in the place that a `TwoStep` gives it."""
    torch.manual_seed(3)
    n_context = showers.context_map.n_columns + showers.n_first
    model = AutoregressiveCells(hidden=[32, 32], n_alone=4)
    model.features, model.context, model.mean_weight = showers.part(1), AsItIs(n_context), 1.0
    model.build(model.features.n_columns, n_context)
    return model


def after(steps: int, showers: Showers, events: Events) -> AutoregressiveCells:
    """Recipe after so many steps with 4000 showers."""
    batch, model = batch_of(showers, events), untrained(showers)
    update = model.updates()[0]
    optimizer = update.optimizer(update.parameters)
    for step in range(steps):
        rows = torch.randint(4000, (256,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        update.loss(Batch(*(part[rows] for part in batch)), Noise(step)).backward()
        optimizer.step()
        update.average.update(step + 1)
    return model


@pytest.fixture(scope="module")
def trained(showers):
    """Recipe that knows such showers."""
    return after(400, showers, dependent(4000, 1))


def test_neighbors_depend_on_each_other(showers, trained):
    """New showers are more probable than with independent cells, and made ones have the same correlation."""
    events = dependent(2000, 2)
    batch = batch_of(showers, events)
    noise = Noise(1).normal(2000, N_LAYERS + N_CELLS)
    with torch.no_grad():
        gain, made = trained.gain(batch.x, batch.context), trained.generate(noise, batch.context)
    assert gain.mean() > 0.3
    assert gain.mean() > 10 * gain.std() / 2000**0.5

    def correlation(u: torch.Tensor) -> float:
        counts = trained.features.counts(u[:, :N_LAYERS], batch.context)
        threshold = -torch.special.ndtri(torch.sigmoid(trained.features.marginals(batch.context, counts).logit))
        z = u[:, N_LAYERS:]
        both = (z > threshold)[:, LEFT] & (z > threshold)[:, LEFT + 1]
        return float(torch.corrcoef(torch.stack([z[:, LEFT][both], z[:, LEFT + 1][both]]))[0, 1])

    assert correlation(noise) < correlation(batch.x) - 0.15
    assert abs(correlation(made) - correlation(batch.x)) < 0.1


def test_it_is_the_density_of_what_it_makes(showers, trained):
    """Noise that stands for given cells makes them again."""
    batch = batch_of(showers, dependent(300, 4))
    number, z = batch.x.tensor_split([N_LAYERS], dim=1)
    context = trained.features.settled(batch.context)
    counts = trained.features.counts(number, context)
    given = trained._known(context, counts)
    y, hit = showers.decoded(z, given.marginals, counts)
    with torch.no_grad():
        noise = noise_of(trained, given, y, hit, counts, z)
        again = trained.generate(torch.cat([number, noise], dim=1), context)
    away = (again - batch.x).abs()
    assert (away > 2e-2).float().mean() < 1e-3


def noise_of(model, given, y, hit, counts, z):
    """Normal numbers (n, N) that make these cells."""
    every = torch.arange(N_CELLS)
    hits, _ = given.ahead.left(hit, counts)
    over = torch.where(hit, y.double().exp(), 0.0)
    _, after, _ = given.ahead.energy_left(over)
    densities = model._densities(given, y, hit, counts, model.average)
    v = torch.where(hit & (hits > 1), y - after.clamp_min(1e-12).log(), 0.0).float()
    shares = given.ahead.share_of(densities, hits, every)
    return torch.where(hit, cells.to_normal(shares, v, hit), cells.moved_below(given.marginals, densities, z))


def test_blocks_hold_no_neighbors(showers):
    """Each cell sees only blocks before its own; of those that are made at once none are next to each other."""
    model = untrained(showers)
    block = model.block.numpy()
    every = np.stack(windows_of(GEOMETRY))
    near = np.logical_or.reduce(every[list(NEXT)])
    assert near.sum(1).max() == 8  # with those over a corner
    assert not (near & (block[:, None] == block)).any()
    assert every[0].any(1).all()
    windows = model.windows.numpy() > 0
    assert not (windows & (block[None, None, :] >= block[None, :, None])).any()
    assert windows.any(0)[block > 0].any(1).all()
    first = [block[part] for part in GEOMETRY.slices]
    assert first[0].max() < first[1].min()


def test_layers_have_the_counts_they_should(showers, trained):
    """Whatever the noise of the cells, and wherever the blocks end."""
    context = batch_of(showers, dependent(500, 5)).context
    noise = Noise(7).normal(500, N_LAYERS + N_CELLS)
    counts = trained.features.counts(noise[:, :N_LAYERS], context)
    with torch.no_grad():
        made = trained.generate(noise, context)
    assert torch.equal(made[:, :N_LAYERS], noise[:, :N_LAYERS])
    assert torch.equal(showers.hits(trained.features.inverse(made, context) > 0), counts)


def marginals_of(p: torch.Tensor, n: int) -> cells.Marginals:
    """Densities (n, N) of cells that are hit with probability p (N,)."""
    one = torch.zeros(n, len(p), 1)
    return cells.Marginals(torch.logit(p).expand(n, -1), one, one, one + 1)


@pytest.mark.parametrize("p", [[0.2] * 8, [0.5, 0.02, 0.3, 0.02, 0.3, 0.9, 0.02, 0.1]], ids=["alike", "unlike"])
def test_first_hits_are_independent_but_for_their_number(p):
    """Patterns of so many hits have the probability 1 together, and each its own where cells are alike."""
    p = torch.tensor(p)
    patterns = torch.cartesian_prod(*[torch.tensor([False, True])] * 8)
    ahead = to_come(marginals_of(p, len(patterns)), torch.arange(8), (slice(0, 8),))
    for count in range(9):
        counts = torch.full((len(patterns), 1), count)
        odds = log_odds(ahead.left(patterns, counts)[0], *ahead.hits)
        one = torch.sigmoid((torch.logit(p) + odds).double())
        found = torch.where(patterns, one, 1 - one).prod(1)
        assert found.sum() == pytest.approx(1, abs=1e-6)
        right = (patterns.sum(1) == count).double()
        if p[0] == p[1]:
            torch.testing.assert_close(found, right / right.sum(), atol=1e-5, rtol=0)
        assert found[right == 0].sum() == 0


def test_energies_are_shares_of_what_is_left():
    """Each hit takes its share, the last one the rest; nothing is taken without a hit."""
    share = torch.tensor([[0.5, 0.2, 0.9, 0.1], [0.5, 0.2, 0.9, 0.1]])
    hit = torch.tensor([[True, False, True, True], [True, True, False, False]])
    left = torch.tensor([[3, 2, 2, 1], [3, 2, 1, 1]])
    made = draw_energies(torch.logit(share), hit, left, torch.tensor([8.0, 10.0]).double())
    torch.testing.assert_close(made, torch.tensor([[4.0, 0.0, 3.6, 0.4], [5.0, 1.0, 0.0, 0.0]]).double())


def test_what_is_refused(showers, monkeypatch):
    with pytest.raises(ConfigError, match="n_alone -1 and n_embedded 8 found, expected 0 or more"):
        AutoregressiveCells(n_alone=-1)
    monkeypatch.setattr("calorefine.models.autoregressive_cells.MOST_CELLS", 30)
    with pytest.raises(ConfigError, match=r"36 cells found, expected at most 30: .* take AffineFlow"):
        untrained(showers)
    alone = AutoregressiveCells()
    alone.features = AsItIs(10)
    with pytest.raises(ConfigError, match="AsItIs found, expected the cells of preprocessing Showers"):
        alone.build(10, 3)
    assert TwoStep(first=Flow(), then=alone).validated_by == "negative log likelihood + negative log likelihood"
