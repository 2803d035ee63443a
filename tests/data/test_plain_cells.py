"""Showers for generators that make all at once: there and back, energies of layers, zeros, gradients, weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from calorefine import shower_observables, stats
from calorefine.data.plain_cells import PlainCells
from calorefine.data.preprocessing import Preprocessing
from calorefine.data.shower_sums import ShowerSums
from calorefine.errors import ConfigError, ValueRangeError
from tests.data.shower_toy import COLUMNS, GEOMETRY, described, draw


@pytest.fixture(scope="module")
def events():
    return draw(3000)


@pytest.fixture(scope="module")
def fitted(events):
    return PlainCells().fit(events, COLUMNS)


def tensors(events):
    return torch.from_numpy(events.x), torch.from_numpy(events.context)


def read(x):
    return torch.where(x >= GEOMETRY.threshold_mev, x, 0.0)


@pytest.mark.parametrize("spread", [False, True], ids=["as it is", "spread"])
def test_a_shower_comes_back(fitted, spread):
    """Other events than those that fitted it; a cell has a hit if and only if it had one."""
    x, context = tensors(draw(2000, seed=1))
    u = fitted(x, context)
    assert u.shape == (len(x), 2 + 36) == (len(x), fitted.n_columns)
    if spread:
        u = fitted.dequantize(u, torch.Generator().manual_seed(0), context)
    back = fitted.inverse(u, context)
    torch.testing.assert_close(back, read(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(back > 0, read(x) > 0)


def normal(n, seed):
    """Network values (n, 2 + 36) that are standard normal, and a context."""
    return torch.randn(n, 38, generator=torch.Generator().manual_seed(seed)), tensors(draw(n, seed=2))[1]


def made_energies(fitted, u, context):
    """Energies (n, 2) of the layers, of their network values and of generated cells."""
    return fitted.energies.inverse(u[:, :2], context), fitted.layers_of(fitted.inverse(u, context))


def test_cells_without_a_hit_are_at_one_place(fitted):
    """Projecting network values twice changes nothing, and never the energies of layers."""
    u, _ = normal(500, 1)
    seen = fitted.projected(u)
    assert torch.equal(fitted.projected(seen), seen) and torch.equal(seen[:, :2], u[:, :2])
    hit = u[:, 2:] > fitted.floor
    assert torch.equal(seen[:, 2:][hit], u[:, 2:][hit]) and 0 < hit.double().mean() < 1
    assert torch.equal(seen[:, 2:][~hit], fitted.atom.expand_as(hit)[~hit])


def test_cells_are_scaled_to_their_layer(fitted):
    """Its energy is exact, no hit is below the threshold, and among hits that stay, ratios are kept."""
    u, context = normal(2000, 1)
    expected, found = made_energies(fitted, u, context)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    assert (expected[:, 1] == 0).any() and (expected[:, 1] > 0).any()
    own, alone = fitted.own_cells(u, context), fitted.unscaled(u[:, 2:])
    assert (own[own > 0] >= GEOMETRY.threshold_mev).all()
    for at, total in zip(GEOMETRY.slices, expected.T, strict=True):
        several = (own[:, at] > 0).sum(1) > 1
        assert several.sum() > 100
        kept = torch.where(own[several, at] > 0, alone[several, at], 0.0).double()
        scaled = total[several, None] * kept / kept.sum(1, keepdim=True)
        torch.testing.assert_close(own[several, at].double(), scaled, rtol=1e-3, atol=1e-4)
        lost = (alone[several, at] > 0) & (own[several, at] == 0)
        bound = GEOMETRY.threshold_mev * (alone[several, at].sum(1) / total[several])[:, None]
        assert (alone[several, at] < bound)[lost].all() and lost.any()


def test_a_layer_with_energy_has_a_hit(fitted):
    """The cell nearest to one; of cells that all come below the threshold, the hottest is left."""
    u, context = normal(300, 4)
    u[:, 2:] = fitted.floor - 1
    u[:, 2 + 5] += 0.3
    u[:150, 2:] = fitted.floor + 1e-3  # all at the threshold
    u[:150, 2 + 7] += 1e-3
    expected, _ = made_energies(fitted, u, context)
    first = fitted.own_cells(u, context)[:, :24].double()
    torch.testing.assert_close(first.sum(1), expected[:, 0], rtol=1e-4, atol=1e-9)
    alone = (first[150:] > 0).nonzero()
    assert (expected[150:, 0] > 0).all() and torch.equal(alone[:, 1], torch.full((150,), 5))
    few = expected[:150, 0] < 24 * GEOMETRY.threshold_mev
    assert few.any() and ((first[:150][few] > 0).sum(1) == 1).all() and (first[:150][few, 7] > 0).all()


def test_response_of_normal_numbers(fitted, events):
    """They have its mean and width before any training."""
    x, context = tensors(events)
    u = torch.randn(len(x), 38, generator=torch.Generator().manual_seed(5))
    responses = [
        (cells.double().sum(1) / (1000 * context[:, 0].double())).numpy()
        for cells in (fitted.inverse(u, context), read(x))
    ]
    means = [stats.mean(each, events.weight) for each in responses]
    widths = [np.sqrt(stats.covariance(each[:, None], events.weight)[0, 0]) for each in responses]
    assert means[0] == pytest.approx(means[1], abs=0.15 * widths[1])  # of 0.026
    assert widths[0] == pytest.approx(widths[1], rel=0.3)  # empty layers leave it wider


def test_normal_numbers_are_like_cells(fitted, events):
    """Occupancy of each cell with hits, and mean and mean square of its logarithm, where no bound is in the way."""
    x, context = tensors(events)
    free = (fitted.power > 0.21) & (fitted.power < 2.9) & (fitted.floor < 2)
    assert free.sum() > 15
    noise = torch.randn(50_000, 36, generator=torch.Generator().manual_seed(2))
    made, true = (
        torch.log(fitted.unscaled(u).clamp_min(GEOMETRY.threshold_mev) / GEOMETRY.threshold_mev).double()
        for u in (noise, fitted(x, context)[:, 2:])
    )
    for k in (1, 2):
        expected = stats.mean((true**k).numpy(), events.weight)
        np.testing.assert_allclose((made**k).mean(0)[free], expected[free], rtol=0.15)  # errors of 3 %
    hits = stats.mean((true > 0).double().numpy(), events.weight)
    np.testing.assert_allclose((made > 0).double().mean(0), hits, atol=0.01)  # of 0.0022


def test_mask_and_values_are_joined(fitted):
    x, context = tensors(draw(300, seed=3))
    u = fitted(x, context)
    parts = fitted.parts(u)
    assert torch.equal(~parts.masked[:, 2:], fitted._in_frame(x, context) > 0)
    assert not parts.masked[:, :2].any() and torch.equal(parts.maskable[0], fitted.maskable)
    assert fitted.maskable.sum() == 36 and not fitted.maskable[:2].any()
    torch.testing.assert_close(fitted.joined(parts.y, parts.masked), u, rtol=0, atol=1e-3)
    hits = fitted.joined(torch.full_like(u, -9.0), torch.zeros_like(parts.masked))
    assert (fitted.unscaled(hits[:, 2:]) >= GEOMETRY.threshold_mev).all()  # what isn't masked is a hit


def test_observables_are_those_of_showers():
    """The same numbers as by numpy, on scales of their own."""
    x, context = tensors(draw(400, seed=4))
    e_inc = 1000 * context[:, 0].double()
    found = ShowerSums(GEOMETRY, GEOMETRY.threshold_mev)(read(x).double(), e_inc).numpy()
    names = ["response", "depth", "e_layer_0", "e_layer_1"]
    for layer, shares in ((0, ["hottest", "", "five", "twenty"]), (1, ["hottest", "", "five"])):
        kinds = [f"{kind}_{axis}" for axis in ("eta", "phi") for kind in ("ec", "width")]
        names += [kind and f"{kind}_{layer}" for kind in (*kinds, "occupancy", "", "", "", *shares)]
    assert found.shape == (400, len(names))
    pitch = {"eta_0": 10, "phi_0": 60, "eta_1": 40, "phi_1": 30}
    for name, values in zip(names, found.T, strict=True):
        if not name:  # the spectrum, and the two hottest cells, which have no name of their own
            continue
        true = shower_observables.evaluate(name, x.numpy().astype(float), GEOMETRY, e_inc.numpy())
        if name.startswith("e_layer"):
            true = np.log1p(true / GEOMETRY.threshold_mev)
        if name.startswith("occupancy"):
            true = np.sqrt((true * len(GEOMETRY.layers[int(name[-1])])).clip(0.25))
        true = true / next((size for at, size in pitch.items() if name.endswith(at)), 1)
        np.testing.assert_allclose(values, true, atol=0.011 if "width" in name else 1e-9, err_msg=name)


def test_spectrum_counts_hits_away_from_its_steps():
    """Cells without a hit count nowhere; one twice, five and fifty times the threshold above one, two and three."""
    cells = torch.zeros(2, 36, dtype=torch.float64)
    cells[0, :3] = GEOMETRY.threshold_mev * torch.tensor([2.0, 6.0, 50.0])
    seen = ShowerSums(GEOMETRY, GEOMETRY.threshold_mev)(cells, torch.ones(2))[:, 8:12]
    np.testing.assert_allclose(seen.square(), [[3, 3.25, 2.25, 1.25], [0.25] * 4], atol=0.1)


def test_observables_are_in_standard_deviations(fitted, events):
    x, context = tensors(events)
    seen = fitted.observed(fitted(x, context), context).double().numpy()
    assert seen.shape == (3000, fitted.n_observed)
    np.testing.assert_allclose(stats.mean(seen, events.weight), 0, atol=2e-3)
    varying = fitted.moments[1].numpy() > 2e-3
    assert varying.sum() > 15
    np.testing.assert_allclose(np.diag(stats.covariance(seen, events.weight))[varying], 1, rtol=2e-2)


def test_gradients_reach_energies_and_cells(fitted):
    """Of the sum of all cells and of each observable; finite for empty layers and hot cells, 0 for cells below."""
    u, context = normal(200, 3)
    u[:20, 2:], u[20:40, 2:] = -50.0, 200.0
    u.requires_grad_()
    hit = u[:, 2:] > fitted.floor
    total = fitted.inverse(u, context).sum(1)
    (gradient,) = torch.autograd.grad(total.sum(), u, retain_graph=True)
    assert (gradient[:, 0].abs() > 1e-3 * total.detach()).double().mean() > 0.95
    assert (gradient[:, 2:].abs().amax(1) < 1e-2 * gradient[:, 0].abs()).all()  # the sum is the energies'
    own = fitted.own_cells(u, context)
    (gradient,) = torch.autograd.grad(own.square().sum(), u, retain_graph=True)
    assert gradient.isfinite().all() and (gradient[:, 2:][~hit] == 0).all()
    assert (gradient[40:, 2:].abs().amax(1) > 0).double().mean() > 0.9
    seen = fitted.observed(u, context)
    assert seen.isfinite().all()
    for column in seen.T:
        (gradient,) = torch.autograd.grad(column.sum(), u, retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_signed_weights(events):
    """A few events with weights +2 and -1 count once."""
    few = events.take(np.arange(len(events)) < 800)
    order = np.concatenate([np.arange(800), np.arange(800)])
    weight = np.where(np.arange(1600) < 800, 2.0, -1.0)
    signed = PlainCells().fit(dataclasses.replace(few.take(order), weight=weight), COLUMNS)
    plain = PlainCells().fit(dataclasses.replace(few, weight=np.ones(800)), COLUMNS)
    for name in ("floor", "scale", "power", "moments"):
        torch.testing.assert_close(getattr(signed, name), getattr(plain, name), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(signed.energies.response, plain.energies.response, rtol=1e-6, atol=1e-9)


def test_weights_are_repeated_events(events):
    few = events.take(np.arange(len(events)) < 600)
    doubled = np.where(few.context[:, 0] > 3, 2.0, 1.0)
    order = np.repeat(np.arange(len(few)), doubled.astype(int))
    weighted = PlainCells().fit(dataclasses.replace(few, weight=3 * doubled), COLUMNS)
    repeated = PlainCells().fit(dataclasses.replace(few.take(order), weight=np.ones(len(order))), COLUMNS)
    plain = PlainCells().fit(dataclasses.replace(few, weight=np.ones(len(few))), COLUMNS)
    for name in ("floor", "scale", "power", "moments"):
        first, second, third = (getattr(one, name) for one in (weighted, repeated, plain))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
        assert (first - third).abs().max() > 0.01


def test_state_without_a_checkpoint(fitted):
    again = Preprocessing.from_dict(fitted.to_dict(), fitted.state_dict(), COLUMNS)
    x, context = tensors(draw(50, seed=6))
    u = fitted(x, context)
    torch.testing.assert_close(again(x, context), u)  # whitened by an inverse, which isn't saved
    assert torch.equal(again.inverse(u, context), fitted.inverse(u, context))
    assert torch.equal(again.observed(u, context), fitted.observed(u, context))


def test_what_is_refused(events):
    x = events.x.copy()
    x[3, 4] = -2
    with pytest.raises(ValueRangeError, match=r"1 negative energies found, the lowest -2"):
        PlainCells().fit(dataclasses.replace(events, x=x), COLUMNS)
    with pytest.raises(ConfigError, match=r"`showers` isn't given, expected the geometry"):
        PlainCells().fit(events, dataclasses.replace(described(), showers=None))
