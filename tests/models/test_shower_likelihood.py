"""Log densities of whole showers: they integrate to one, and are those of what is sampled, zeros included."""

from __future__ import annotations

import copy

import h5py
import numpy as np
import pytest
import torch

from calorefine import Simulator
from calorefine.cli import calorefine
from calorefine.errors import ConfigError
from calorefine.models import WGAN, AffineFlow, AutoregressiveCells, Flow, TwoStep
from calorefine.nets import Noise
from tests.models import six_cells
from tests.models.six_cells import COLUMNS, GEOMETRY, T

E_INC = 1.2  # GeV: a fifth of the showers is empty, of one layer in six no further hit has room
N = 10_000


@pytest.fixture(scope="module")
def simulator():
    return six_cells.trained()


@pytest.fixture(scope="module")
def integral(simulator):
    return six_cells.integrated(simulator, E_INC, N)


def test_the_density_integrates_to_one(integral):
    """Over the energies of the hits, and the sum over their patterns, from showers that it has no part in.

    With 200 000 points, as `benchmarks/shower_likelihood.py` takes them, the error is 0.002 to 0.004.
    """
    assert integral.error < 0.02
    assert abs(integral.total - 1) < 5 * integral.error


def test_patterns_are_as_frequent_as_their_densities_say(simulator, integral):
    """Of hits of sampled showers, for those that aren't rare; many are full, or empty, or have a single hit."""
    n = 100_000
    made = simulator.sample(six_cells.conditions(n, E_INC), seed=3)["showers"]
    share = np.bincount(six_cells.patterns(made), minlength=64) / n
    usual = share > 0.005
    assert usual.sum() > 10
    assert share[0] > 0.1
    pull = (integral.pattern - share) / np.hypot(integral.pattern_error, np.sqrt(share / n))
    assert np.abs(pull[usual]).max() < 5
    layers = [made[:, part] for part in GEOMETRY.slices]
    full = [(np.floor(own.sum(1) / T) == (own > 0).sum(1)) & (own.sum(1) > 0) for own in layers]
    assert np.mean(full) > 0.05


def test_density_of_energies_given_a_pattern(simulator):
    """Of showers with one hit, in the first cell: the density over the energy is that of the sampled ones."""
    energies = np.geomspace(T * (1 + 1e-6), 3000, 1000).astype(np.float32)
    x = np.zeros((1000, 6), np.float32)
    x[:, 0] = energies
    density = np.exp(simulator.log_prob({"showers": x} | six_cells.conditions(1000, E_INC)))
    below = np.concatenate([[0], np.cumsum(np.diff(energies) * (density[1:] + density[:-1]) / 2)])
    n = 100_000
    made = simulator.sample(six_cells.conditions(n, E_INC), seed=4)["showers"]
    own = made[six_cells.patterns(made) == 1][:, 0]
    for energy in (70, 100, 150, np.inf):
        found, expected = (own < energy).sum() / n, np.interp(energy, energies, below)
        assert abs(found - expected) < 5 * (max(expected, 1 / n) / n) ** 0.5 + 5e-4


def test_cells_depend_on_energies_alone(simulator):
    """Not on which of the network values of an empty layer was drawn: the likelihood knows none."""
    events, model = six_cells.draw(500, 7), simulator.model
    context = torch.from_numpy(events.context)
    layers, _ = model.features.in_steps(torch.from_numpy(events.x), context)
    values, c = model.features.first_map(layers, context), model.context(context)
    noise = Noise(2).normal(len(events), model.then.latent_size)
    spread = [model.features.energies.dequantize(values, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    with torch.no_grad():
        made = [model.then.generate(noise, torch.cat([c, one], dim=1)) for one in spread]
    assert (layers == 0).any(0).all()
    assert ((spread[0] - spread[1]).abs() > 0.1).any()
    assert ((made[0] - made[1]).abs() > 1e-2).float().mean() < 1e-3


def test_cells_below_the_threshold_count_as_0(simulator):
    events = six_cells.draw(100, 5)
    at = dict(zip(COLUMNS.context, events.context.T, strict=True))
    noise = np.where(events.x == 0, np.float32(0.9 * T), events.x)
    first, second = (simulator.log_prob({"showers": x} | at) for x in (events.x, noise))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()
    one_by_one = [
        simulator.log_prob({"showers": events.x[k : k + 1]} | {name: values[k : k + 1] for name, values in at.items()})
        for k in range(5)
    ]
    np.testing.assert_allclose(np.concatenate(one_by_one), first[:5], rtol=0, atol=1e-3)


def test_independent_cells_are_those_of_a_network_that_corrects_nothing(simulator):
    """But for shares, which have a least value; the trained network does correct."""
    model, events = copy.deepcopy(simulator.model), six_cells.draw(300, 8)
    x, context = torch.from_numpy(events.x), torch.from_numpy(events.context)
    first, own = model.features.in_steps(x, context)
    given = torch.cat([model.context(context), model.features.first_map(first, context)], dim=1)
    with torch.no_grad():
        found, independent = (model.then.log_prob(own, given, independent=one) for one in (False, True))
        for parameter in model.then.average.rest[-1].parameters():
            parameter.zero_()
        nothing = model.then.log_prob(own, given)
    assert (nothing - independent).abs().max() < 0.05
    assert (found - independent).abs().mean() > 0.1


def test_the_verb_on_hdf5(simulator, tmp_path):
    """Rows of a shower file, with their log densities beside."""
    events = six_cells.draw(100, 9)
    checkpoint, files, output = (tmp_path / name for name in ("six.ckpt", "six.h5", "with.h5"))
    simulator.save(checkpoint)
    at = dict(zip(COLUMNS.context, events.context.T, strict=True))
    with h5py.File(files, "w") as file:
        for name, values in {"showers": events.x, "incident_energies": 1000 * events.context[:, :1], **at}.items():
            file[name] = values
    told = ["--checkpoint", str(checkpoint), "--files", str(files), "--output", str(output), "--tree", "/"]
    calorefine(["log-prob", *told])
    with h5py.File(output) as file:
        expected = Simulator.load(checkpoint).log_prob({"showers": events.x} | at)
        np.testing.assert_allclose(file["log_prob"][:], expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(file["showers"][:], events.x)


def test_recipes_without_a_likelihood_of_showers(simulator):
    """Couplings tie the layers together, and a WGAN has none; the reason is told."""
    told = {
        AffineFlow: "the cells of showers are scaled to the energies of their layers: .*shower_autoregressive.yaml",
        WGAN: "a TwoStep has no likelihood here: a WGAN has no likelihood",
    }
    features, context = simulator.model.features, simulator.model.context
    for recipe, reason in told.items():
        model = TwoStep(first=Flow(hidden=[8]), then=recipe())
        model.features, model.context, model.mean_weight = features, context, 1.0
        model.build(features.n_columns, context.n_columns)
        other = Simulator(model, simulator.spec)
        assert not other.has_likelihood
        with pytest.raises(ConfigError, match=reason):
            other.log_prob({"showers": np.ones((1, 6), np.float32)} | six_cells.conditions(1, E_INC))
    assert simulator.has_likelihood
    assert isinstance(simulator.model.then, AutoregressiveCells)
