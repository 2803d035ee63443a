"""Preprocessing of showers: there and back, true to weights, and as any other preprocessing to recipes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from calorefine import Column, Columns, Simulator
from calorefine.data.layer_energies import LayerEnergies
from calorefine.data.module import Prepared
from calorefine.data.preprocessing import Preprocessing
from calorefine.data.shower_conditions import ShowerConditions
from calorefine.data.showers import Showers
from calorefine.errors import ConfigError, ValueRangeError, WeightError
from calorefine.geometry import Geometry, Layer
from calorefine.models import WGAN, AffineFlow, FlowMatching
from calorefine.shower_columns import ShowerColumns
from tests.data.shower_toy import COLUMNS, GEOMETRY, draw


def showers(**options):
    return Showers(**({"epochs": 8, "hidden": [32]} | options))


def prepared(events, fitted):
    """What a recipe is told of these events."""
    return Prepared(
        columns=COLUMNS,
        features=fitted,
        context=fitted.conditions.fit(events, COLUMNS),
        domain=np.stack([events.context.min(0), events.context.max(0)], axis=1).astype(np.float64),
        mean_weight=1.0,
        provenance={"digest": "none", "n_train": len(events)},
    )


@pytest.fixture(scope="module")
def events():
    return draw(3000)


@pytest.fixture(scope="module")
def fitted(events):
    return showers(epochs=30).fit(events, COLUMNS)


def tensors(events):
    return torch.from_numpy(events.x), torch.from_numpy(events.context)


def read(x):
    """What is read out: cells above the threshold."""
    return torch.where(x >= GEOMETRY.threshold_mev, x, 0.0)


@pytest.mark.parametrize("spread", [False, True], ids=["as it is", "spread"])
def test_a_shower_comes_back(fitted, spread):
    """Cells of other events than those that fitted it, in both directions; those without a hit exactly at 0."""
    x, context = tensors(draw(2000, seed=1))
    u = fitted(x, context)
    assert u.shape == (2000, 40)
    assert torch.isfinite(u).all()
    if spread:
        u = fitted.dequantize(u, torch.Generator().manual_seed(0), context)
    back = fitted.inverse(u, context)
    wrong = (back - read(x)).abs() > 0.01 * read(x) + 1e-3
    assert wrong.double().mean() < 1e-3  # hits that the density calls impossible, and those at the threshold
    assert ((back > 0) != (read(x) > 0)).double().mean() < 3e-4
    assert ((back == 0) | (back >= GEOMETRY.threshold_mev * (1 - 1e-5))).all()


def test_layers_keep_their_energies(fitted):
    """Whatever the cells say, sums are those of the energies' own network values."""
    x, context = tensors(draw(1000, seed=2))
    u = fitted(x, context)
    other = torch.cat([u[:, :4], torch.randn(1000, 36, generator=torch.Generator().manual_seed(1))], dim=1)
    made = fitted.inverse(other, context)
    assert torch.equal(fitted.hits(made > 0), fitted.hits(read(x) > 0))
    for at in GEOMETRY.slices:
        torch.testing.assert_close(made[:, at].sum(1), read(x)[:, at].sum(1), rtol=1e-3, atol=1e-2)
    assert not torch.allclose(made, read(x), rtol=0.1)


def test_cells_become_normal_numbers(fitted):
    x, context = tensors(draw(3000, seed=3))
    z = fitted.dequantize(fitted(x, context), torch.Generator().manual_seed(2), context)[:, 2:]
    assert z.mean().abs() < 0.04  # -0.014 +- 0.003 over seeds of the events
    assert abs(z.std() - 1) < 0.04  # -0.023 +- 0.001
    assert z.mean(0).abs().max() < 0.2


def test_mirrored_events_have_the_same_network_values(fitted, events):
    """An event and its mirror image in eta and phi."""
    x, context = tensors(events.take(np.arange(len(events)) < 200))
    turned = fitted.frame.restored(fitted.frame.canonical(x, context[:, 1:]), -context[:, 1:])
    mirrored = context * torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(fitted(turned, mirrored), fitted(x, context), rtol=1e-4, atol=1e-4)
    maps = fitted.conditions.fit(events, COLUMNS)
    torch.testing.assert_close(maps(mirrored), maps(context))


def test_weights_are_repeated_events(events):
    """An event of weight 2 is two of weight 1, in the energies, and nearly so in the cells, fitted by minibatches."""
    few = events.take(np.arange(len(events)) < 600)
    doubled = np.where(few.context[:, 0] > 3, 2.0, 1.0)
    order = np.repeat(np.arange(len(few)), doubled.astype(int))
    weighted = showers(epochs=30).fit(dataclasses.replace(few, weight=doubled), COLUMNS)
    repeated = showers(epochs=30).fit(dataclasses.replace(few.take(order), weight=np.ones(len(order))), COLUMNS)
    plain = showers(epochs=30).fit(dataclasses.replace(few, weight=np.ones(len(few))), COLUMNS)
    x, context = tensors(draw(500, seed=4))
    u, v, w = (one(x, context) for one in (weighted, repeated, plain))
    torch.testing.assert_close(u[:, :2], v[:, :2], rtol=1e-3, atol=2e-2)
    assert (u[:, :2] - w[:, :2]).abs().max() > 0.1


def test_recipes_take_it_as_any_other(events, fitted, tmp_path):
    """Generators in its network units, of as many values; saved, loaded, and sampled twice alike."""
    for recipe in (FlowMatching, WGAN):
        model = recipe()
        model.prepare(prepared(events, fitted))
        simulator = Simulator(model, model.spec)
        simulator.save(tmp_path / "model.ckpt")
        again = Simulator.load(tmp_path / "model.ckpt")
        assert isinstance(again.model.features, Showers)
        assert isinstance(again.model.context, ShowerConditions)
        conditions = {name: events.context[:300, k] for k, name in enumerate(COLUMNS.context)}
        made = simulator.sample(conditions, seed=1)["showers"]
        np.testing.assert_array_equal(made, again.sample(conditions, seed=1)["showers"])
        assert made.shape == (300, 36)
        assert ((made == 0) | (made >= 0.5 * (1 - 1e-5))).all()
        assert 0.5 < made.sum() / read(torch.from_numpy(events.x[:300])).sum() < 2


def test_a_flow_alone_says_that_it_has_no_likelihood_of_showers(events, fitted):
    model = AffineFlow(width=16)
    model.prepare(prepared(events, fitted))
    conditions = {name: events.context[:3, k] for k, name in enumerate(COLUMNS.context)}
    simulator = Simulator(model, model.spec)
    assert not simulator.has_likelihood
    expected = "the cells of showers are scaled to the energies of their layers: "
    with pytest.raises(ConfigError, match=expected) as refused:
        simulator.log_prob({"showers": events.x[:3]} | conditions)
    assert "configs/showers/shower_autoregressive.yaml" in str(refused.value)


def test_state_without_a_checkpoint(fitted):
    again = Preprocessing.from_dict(fitted.to_dict(), fitted.state_dict(), Columns.from_dict(COLUMNS.to_dict()))
    x, context = tensors(draw(50, seed=5))
    torch.testing.assert_close(again(x, context), fitted(x, context), rtol=1e-5, atol=1e-5)
    assert again.calorimeter.to_dict() == GEOMETRY.to_dict()


def test_fitting_leaves_the_global_generator_alone(events):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    showers(epochs=1).fit(events, COLUMNS)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_refused(events):
    with pytest.raises(ConfigError, match=r"columns: `showers` isn't given, expected the geometry"):
        showers().fit(events, dataclasses.replace(COLUMNS, showers=None))
    with pytest.raises(ConfigError, match=r"features n beside 'showers' found, expected the cells alone"):
        showers().fit(events, dataclasses.replace(COLUMNS, features={**COLUMNS.features, "n": None}))
    x = events.x.copy()
    x[3, 4] = -2
    with pytest.raises(ValueRangeError, match=r"1 negative energies found, the lowest -2"):
        showers().fit(dataclasses.replace(events, x=x), COLUMNS)
    weight = events.weight.copy()
    weight[0] = -1
    with pytest.raises(WeightError, match=r"needs positive|negative"):
        showers().fit(dataclasses.replace(events, weight=weight), COLUMNS)
    moved = dataclasses.replace(COLUMNS, context={**COLUMNS.context, "x_mm": Column(offset=3.0)})
    with pytest.raises(ConfigError, match=r"'x_mm': offset 3 found, expected none"):
        showers().fit(events, moved)


def test_a_detector_without_symmetries_and_one_layer():
    """One irregular layer, a fixed incident energy in MeV, no threshold."""
    rng = np.random.default_rng(0)
    geometry = Geometry((Layer(3, rng.normal(size=36), rng.normal(size=36)),))
    told = ShowerColumns(geometry.to_dict(), "e_inc_mev")
    columns = Columns({"showers": Column(shape=[36])}, {"e_inc_mev": None}, showers=told)
    events = draw(500)
    fixed = dataclasses.replace(
        events, context=np.full((500, 1), 3000.0, np.float32) + rng.random((500, 1), np.float32)
    )
    fitted = Showers(epochs=2, hidden=[16]).fit(fixed, columns)
    x, context = tensors(fixed)
    torch.testing.assert_close(fitted.inverse(fitted(x, context), context), x, rtol=2e-2, atol=1e-2)
    assert isinstance(fitted.energies, LayerEnergies)


def test_part_of_the_cells_is_the_map_without_energies(fitted, events):
    """Cells in the canonical frame to their network values and back, given conditions and energies in network units."""
    x, context = torch.from_numpy(events.x[:200]), torch.from_numpy(events.context[:200])
    u = fitted(x, context)
    given = torch.cat([fitted.context_map(context), u[:, : fitted.n_first]], dim=1)
    part = fitted.part(1)
    assert (part.n_columns, fitted.part(0).n_columns) == (fitted.calorimeter.n_cells + 2, fitted.n_first)
    made = part.inverse(u[:, fitted.n_first :], given)
    entry = fitted.context_map.entry_of(context)
    torch.testing.assert_close(fitted.frame.restored(made, entry), fitted.inverse(u, context), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part(made, given), u[:, fitted.n_first :], atol=2e-2, rtol=0)
    torch.testing.assert_close(part.layers(given).float().sum(1), fitted._read(x).sum(1), rtol=1e-3, atol=0)


def test_scaling_a_layer_keeps_its_hits(fitted):
    """What hits have over the threshold is scaled, and nothing else."""
    t = fitted.threshold
    over = torch.tensor([[0.5, 2.0, 1.0, 0.01], [0.5, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    hit = torch.tensor([[True, True, False, True], [False, True, False, False], [False] * 4])
    total = torch.tensor([10.0, 2.5, 0.0], dtype=torch.float64) * t
    made = fitted.scaled(over.log(), hit, total) / t
    np.testing.assert_allclose(made.sum(1), total / t, rtol=1e-12)
    assert torch.equal(made > 0, hit)
    np.testing.assert_allclose(made[0, [0, 1, 3]], 1 + torch.tensor([0.5, 2.0, 0.01]) / 2.51 * 7, rtol=1e-6)


def test_some_rows_at_a_time(fitted, events, monkeypatch):
    """Large showers are mapped in parts, with the same result to rounding."""
    x, context = torch.from_numpy(events.x[:100]), torch.from_numpy(events.context[:100])

    def mapped():
        u = fitted(x, context)
        return u, fitted.inverse(u, context), fitted.dequantize(u, torch.Generator().manual_seed(1), context)

    whole = mapped()
    monkeypatch.setattr("calorefine.data.showers.VALUES", 36 * 16 * 20)
    assert [part.stop - part.start for part in fitted._rows(100)] == [20] * 5
    for one, other in zip(mapped(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
