"""GANs that make whole showers: streams of layers, critics of observables, exact zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calorefine import Simulator, losses
from calorefine.data.batches import Batch
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.module import Prepared
from calorefine.data.plain_cells import PlainCells
from calorefine.errors import ConfigError
from calorefine.models import VAE, WGAN, CaloGAN
from calorefine.models.auxiliary import Attribute, Matched
from calorefine.models.calogan import LayerStreams
from calorefine.models.critics import CriticOptions
from calorefine.nets import Noise
from tests.data.shower_toy import COLUMNS, draw

OPTIONS = {
    "critics": [CriticOptions(), CriticOptions(observables=True, similarities=2, hidden=[16])],
    "matched": [Matched(["sum(showers) / e_inc_gev"])],
    "attributes": [Attribute("x_mm", hidden=[8])],
}


@pytest.fixture(scope="module")
def events():
    return draw(600)


@pytest.fixture(scope="module")
def fitted(events):
    return PlainCells().fit(events, COLUMNS)


def made(recipe, events, features, **options):
    """A recipe as it is after set-up."""
    torch.manual_seed(1)
    model = recipe(**options)
    model.prepare(
        Prepared(
            columns=COLUMNS,
            features=features,
            context=features.conditions.fit(events, COLUMNS),
            domain=np.stack([events.context.min(0), events.context.max(0)], axis=1).astype(np.float64),
            mean_weight=float(events.weight.mean()),
            provenance={"digest": "none", "n_train": len(events)},
        )
    )
    model.take_events(events)
    return model


def batch_of(model, events):
    x, context, weight = map(torch.from_numpy, (events.x, events.context, events.weight))
    return Batch(model.features(x, context), model.context(context), weight.float())


def test_a_layer_depends_on_those_before_and_not_on_later_ones():
    """What a layer is mixed with is a map of the layer before: the last one moves none but itself."""
    torch.manual_seed(2)
    streams = LayerStreams(9, 2, [4, 3, 2], hidden=[8], act="swish")
    x = torch.randn(5, 11)
    before = streams(x)
    assert before.shape == (5, 9)
    for number, same in ((0, 0), (1, 4), (2, 7)):
        with torch.no_grad():
            streams.streams[number].linear.bias.add_(1.0)
        after = streams(x)
        moved = (after - before).abs().amax(0) > 1e-6
        assert not moved[:same].any() and moved[same:].all()
        before = after


def test_the_first_stream_makes_the_energies(events, fitted):
    """And the first layer attends to them."""
    model = made(CaloGAN, events, fitted, latent_size=38, generator_hidden=[8], critic_hidden=[8])
    assert model.generator.sizes == [2, 24, 12]
    assert model.generator.transfers[0].weight.shape == (24, 2)


def test_cells_begin_with_noise_of_their_own():
    """With as many latent numbers as cells they are not the same for two of them."""
    torch.manual_seed(3)
    y = LayerStreams(9, 1, [4, 3, 2], hidden=[8], act="swish")(torch.randn(4000, 10)).detach()
    correlation = torch.corrcoef(y.T) - torch.eye(9)
    assert correlation.abs().max() < 0.6  # what comes from the layer before


@pytest.mark.parametrize("recipe", [WGAN, CaloGAN])
def test_generators_of_showers(recipe, events, fitted, tmp_path):
    """Exact zeros, gradients in all parts of the generator, and the same showers after loading."""
    model = made(recipe, events, fitted, latent_size=38, generator_hidden=[16], critic_hidden=[16], **OPTIONS)
    batch = batch_of(model, events)
    model.loss(batch, Noise(1)).backward()
    for name, parameter in model.generator.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    simulator = Simulator(model, model.spec)
    conditions = {name: events.context[:300, k] for k, name in enumerate(COLUMNS.context)}
    first = simulator.sample(conditions, seed=1)["showers"]
    assert ((first == 0) | (first >= 0.5 * (1 - 1e-5))).all()
    assert (first == 0).any() and (first > 0).any()
    simulator.save(tmp_path / "model.ckpt")
    np.testing.assert_array_equal(first, Simulator.load(tmp_path / "model.ckpt").sample(conditions, seed=1)["showers"])


def test_critics_see_what_is_read_out(events, fitted):
    """Values below the atom are at it, in reference and generated events: no noise tells them apart."""
    model = made(WGAN, events, fitted, latent_size=38)
    batch = batch_of(model, events)
    assert torch.equal(model.dequantized(batch, Noise(1)).x[:, 2:], batch.x[:, 2:])
    generated = model._generated(batch, Noise(2))[:, 2:]
    hit = generated > fitted.floor
    assert torch.equal(generated[~hit], fitted.atom.expand_as(hit)[~hit]) and (~hit).any() and hit.any()


def test_a_matched_quantity_moves_the_generator(events, fitted):
    """Its distance is 0 on average for the events themselves, and grows with the energies of the layers."""
    model = made(WGAN, events, fitted, latent_size=38, **OPTIONS)
    batch = batch_of(model, events)
    term = next(auxiliary.term for auxiliary in model.auxiliaries() if auxiliary.network is None)
    brighter = [batch.x + torch.tensor([by, *[0.0] * 37]) for by in (0.0, 0.5, 1.0)]
    distances = [float(term(batch, x, model.mean_weight, full=True)) for x in brighter]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert 0 < distances[1] < distances[2]


def test_checkpoints_are_chosen_by_observables(events, fitted):
    """The distance that validates is that of observables and context."""
    model = made(WGAN, events, fitted, latent_size=38)
    x, context, weight = map(torch.from_numpy, (events.x, events.context, events.weight))
    weight = weight.float()
    terms = model.validation_terms(Batch(x, context, weight))
    conditions, latent = model.context(context), Noise(0).normal(len(x), 38)
    first, second = (
        torch.cat([fitted.observed(u, context), conditions], dim=1)
        for u in (fitted(x, context), model.generate(latent, conditions))
    )
    mean = float(weight.mean())
    expected = losses.energy_distance(first, second, weight=weight, mean_weight=mean, unbiased=True)
    assert float(terms.mean()) == pytest.approx(float(expected), rel=1e-3)


def test_a_vae_masks_cells(events, fitted):
    model = made(VAE, events, fitted, n_code=4, hidden=[16])
    assert model.latent_size == 4 + 38 + 36
    conditions = {name: events.context[:50, k] for k, name in enumerate(COLUMNS.context)}
    showers = Simulator(model, model.spec).sample(conditions, seed=1)["showers"]
    assert ((showers == 0) | (showers >= 0.5 * (1 - 1e-5))).all() and (showers == 0).any()


def test_other_preprocessings_are_refused(events):
    features = ColumnTransforms().fit(events, COLUMNS)
    model = CaloGAN()
    model.features = features
    with pytest.raises(ConfigError, match="CaloGAN: preprocessing ColumnTransforms with 36 network values found"):
        model.build(36, 4)


def test_observables_or_an_expression():
    with pytest.raises(ConfigError, match="observables and the expression 'a' found, expected one of both"):
        CriticOptions("a", observables=True)
