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
from calorefine.geometry import segmented
from calorefine.models import AutoregressiveCells, Flow
from calorefine.models.autoregressive_cells import NEXT, _Before, _windows
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
    model.build(showers.calorimeter.n_cells, n_context)
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
    noise = Noise(1).normal(2000, N_CELLS)
    with torch.no_grad():
        gain, made = trained.gain(batch.x, batch.context), trained.generate(noise, batch.context)
    assert gain.mean() > 0.3
    assert gain.mean() > 10 * gain.std() / 2000**0.5
    threshold = -torch.special.ndtri(torch.sigmoid(trained.features.marginals(batch.context).logit))

    def correlation(z: torch.Tensor) -> float:
        both = (z > threshold)[:, LEFT] & (z > threshold)[:, LEFT + 1]
        return float(torch.corrcoef(torch.stack([z[:, LEFT][both], z[:, LEFT + 1][both]]))[0, 1])

    assert correlation(noise) < correlation(batch.x) - 0.15
    assert abs(correlation(made) - correlation(batch.x)) < 0.1


def test_density_is_one():
    """Over independent cells, drawn from their densities, the mean ratio of its density and theirs is 1."""
    small = segmented([(1, 4), (1, 2)], (80.0, 20.0), 0.5)
    events = draw(4000, 6, small)
    showers = Showers(epochs=10, hidden=[16]).fit(events, described(small))
    model = after(50, showers, events)
    u, context = Noise(5).normal(400_000, 6), batch_of(showers, events).context[:500].repeat(800, 1)
    with torch.no_grad():
        ratio = model.gain(u, context).exp()
    error = ratio.std() / len(ratio) ** 0.5
    assert ratio.std() > 0.3
    assert error < 0.01
    assert abs(ratio.mean() - 1) < 5 * error


def test_it_is_the_density_of_what_it_makes(showers, trained):
    """Noise that stands for given cells makes them again."""
    batch = batch_of(showers, dependent(300, 4))
    known = trained._known(batch.context)
    y, hit = cells.from_normal(known.marginals, batch.x)
    before = (torch.where(hit, 1 + y.exp(), 0.0), cells.to_normal(known.marginals, y, hit))
    with torch.no_grad():
        corrected = trained._corrected(trained.average, known, _Before(*before), torch.arange(N_CELLS))
        latent = torch.where(
            hit, cells.to_normal(corrected, y, hit), cells.moved_below(known.marginals, corrected, batch.x)
        )
        again = trained.generate(latent, batch.context)
    away = (again - batch.x).abs()
    assert (away > 1e-2).float().mean() < 1e-3


def test_blocks_hold_no_neighbors(showers):
    """Each cell sees only blocks before its own; of those that are made at once none are next to each other."""
    model = untrained(showers)
    block = model.block.numpy()
    every = np.stack(_windows(GEOMETRY))
    near = np.logical_or.reduce(every[list(NEXT)])
    assert near.sum(1).max() == 8  # with those over a corner
    assert not (near & (block[:, None] == block)).any()
    assert every[0].any(1).all()
    windows = model.windows.numpy() > 0
    assert not (windows & (block[None, None, :] >= block[None, :, None])).any()
    assert windows.any(0)[block > 0].any(1).all()
    first = [block[part] for part in GEOMETRY.slices]
    assert first[0].max() < first[1].min()


def test_first_it_is_the_independent_density(showers):
    """Without training nothing is gained, and cells are as those of the map."""
    batch = batch_of(showers, dependent(100, 5))
    model = untrained(showers)
    with torch.no_grad():
        assert model.gain(batch.x, batch.context).abs().max() < 0.1  # shares have a least value
        assert model.estimate(batch, Noise(0), 1.0) > 0


def test_what_is_refused():
    with pytest.raises(ConfigError, match="n_alone -1 and n_embedded 8 found, expected 0 or more"):
        AutoregressiveCells(n_alone=-1)
    alone = AutoregressiveCells()
    alone.features = AsItIs(10)
    with pytest.raises(ConfigError, match="AsItIs found, expected the cells of preprocessing Showers"):
        alone.build(10, 3)
    assert TwoStep(first=Flow(), then=alone).validated_by == "negative log likelihood + negative log likelihood"
