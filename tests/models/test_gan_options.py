"""Options of the GANs: quantities in physical units, critics of them, attributes, enforced statistics."""

from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch

from calorefine import WGAN, Column, Columns, CramerGAN, Events, Simulator, keys, stats
from calorefine.data.batches import Batch
from calorefine.data.column_transforms import ColumnTransforms, Conditions
from calorefine.data.module import Prepared
from calorefine.errors import ConfigError, ExpressionError, ValueRangeError
from calorefine.io import tensors
from calorefine.losses import squared_mean
from calorefine.models.auxiliary import LARGEST, Attribute, Enforced
from calorefine.models.critics import CriticOptions, SimilarityCritic
from calorefine.models.quantities import Quantities
from calorefine.nets import MLP, Swish

N = 400
COLUMNS = Columns(
    features={"e": Column(), "cells": Column(shape=[2, 2]), "t": Column(offset=1e9)},
    context={"p": Column(), "charge": Column(categories=[-1, 1]), "run_time": Column(offset=5.0)},
)


def events(seed=1):
    """Events whose first feature is steep: its preprocessing stretches three decades."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([10 ** rng.normal(size=N), rng.exponential(size=(N, 4)), rng.normal(size=N)])
    charge = rng.random(N) < 0.5
    context = np.column_stack([rng.random(N), charge, ~charge, rng.normal(size=N)])
    key = keys.make_keys([np.arange(N)])
    return Events(x.astype(np.float32), context.astype(np.float32), rng.normal(0.8, 0.7, N), key, key)


def prepared_model(recipe, **options):
    """A recipe as it is after set-up, and its events."""
    sample = events()
    torch.manual_seed(3)
    model = recipe(**options)
    model.prepare(
        Prepared(
            columns=COLUMNS,
            features=ColumnTransforms().fit(sample, COLUMNS),
            context=Conditions().fit(sample, COLUMNS),
            domain=np.stack([sample.context.min(0), sample.context.max(0)], axis=1).astype(np.float64),
            mean_weight=float(sample.weight.mean()),
            provenance={"digest": "none", "n_train": N},
        )
    )
    model.take_events(sample)
    return model, sample


def network_units(model, sample):
    return model.features(torch.from_numpy(sample.x)), model.context(torch.from_numpy(sample.context))


def test_quantities_are_those_of_the_columns():
    """Arrays, their elements, categories and offsets; the same numbers as by numpy."""
    sample = events()
    texts = ["e * p", "sum(cells)", "cells[1][0] / e", "charge * e", "t + run_time", "e > 1 ? e : -1", "max(cells)"]
    quantities = Quantities(dict.fromkeys(texts, "critics"), COLUMNS)
    x, context = sample.x.astype(np.float64), sample.context.astype(np.float64)
    e, cells, charge = x[:, 0], x[:, 1:5], np.where(context[:, 1] == 1, -1, 1)
    expected = [e * context[:, 0], cells.sum(1), cells[:, 2] / e, charge * e, x[:, 5] + 1e9 + context[:, 3] + 5]
    expected += [np.where(e > 1, e, -1), cells.max(1)]
    found = quantities.values(texts, torch.from_numpy(sample.x), torch.from_numpy(sample.context))
    np.testing.assert_allclose(found.numpy(), np.stack(expected, axis=1), rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("e_ / p", r"critics: 'e_ / p' needs a column 'e_', which isn't there; did you mean 'e'\?"),
        ("count(cells > 1)", r"critics: 'count\(cells > 1\)' has 'count\(cells > 1\)', which has no gradient"),
        ("e % 2", "has an operator of integers, which has no gradient"),
        ("e +", r"critics: expression 'e \+' can't be parsed"),
        ("__import__('os')", "critics: expression"),
    ],
)
def test_an_expression_that_cannot_be_used(text, message):
    with pytest.raises(ConfigError, match=message):
        prepared_model(WGAN, critics=[CriticOptions(text)])


def test_an_array_has_to_be_reduced():
    with pytest.raises(ExpressionError, match=r"gives 4 numbers for each event, expected one, as by sum\(...\)"):
        prepared_model(WGAN, critics=[CriticOptions("2 * cells")])


def test_a_quantity_has_to_vary():
    with pytest.raises(ConfigError, match="enforce: '0 \\* e' has the weighted variance 0 in the training sample"):
        prepared_model(WGAN, enforce=[Enforced(mean="0 * e")])
    with pytest.raises(ValueRangeError, match=r"attributes: 'log\(t - 2e9\)' is NaN or infinite for 400 of 400"):
        prepared_model(WGAN, attributes=[Attribute("log(t - 2e9)")])


@pytest.mark.parametrize("options", [{}, {"mean": "e", "width": "e"}])
def test_a_statistic_is_a_mean_or_a_width(options):
    with pytest.raises(ConfigError, match="expected one of both for each statistic"):
        Enforced(**options)


def test_a_critic_of_a_steep_quantity_sees_width_one_and_has_a_gradient():
    """Mean 0 and width 1 with the weights of the training sample: an identity."""
    model, sample = prepared_model(WGAN, critics=[CriticOptions(), CriticOptions("e * p", also=["sum(cells)"])])
    x, context = network_units(model, sample)
    x.requires_grad_()
    first, second = model.critics()
    assert first.view(x, context) is x
    seen = second.view(x, context)
    values = seen.detach().double().numpy()
    np.testing.assert_allclose(stats.mean(values, sample.weight), 0, atol=1e-4)
    np.testing.assert_allclose(np.diag(stats.covariance(values, sample.weight)), 1, rtol=1e-3)
    (gradient,) = torch.autograd.grad(seen.sum(), x)
    assert (gradient[:, :5].abs().sum(0) > 0).all() and gradient.isfinite().all()


def test_soft_number_of_cells_has_a_gradient_at_zero():
    """It tells cells above a threshold from those below, and an empty cell is no NaN."""
    cells = torch.tensor([[0.0, 0.01, 3.0, 5.0]], dtype=torch.float64, requires_grad=True)
    number = tensors.evaluate("sum(cells**4 / (cells**4 + 0.1**4))", {"cells": cells})
    assert float(number.detach()) == pytest.approx(2, abs=1e-3)
    number.sum().backward()
    assert cells.grad.isfinite().all()


def test_options_are_plain_containers_in_a_checkpoint(tmp_path):
    """They are loaded without running code, and give the same networks and events."""
    options = {
        "act": "swish",
        "critics": [CriticOptions(similarities=2), CriticOptions("e * p", weight=0.2, hidden=[8])],
        "attributes": [Attribute("p")],
        "enforce": [Enforced(width="sum(cells)")],
    }
    model, _ = prepared_model(CramerGAN, **options)
    given = model.spec["init_args"]
    assert json.loads(json.dumps(given)) == given | {"betas": [0.0, 0.9]}
    assert model.options["critics"][1]["expression"] == "e * p"
    Simulator(model, model.spec).save(tmp_path / "model.ckpt")
    loaded = Simulator.load(tmp_path / "model.ckpt")
    assert loaded.model.enforced == [Enforced(width="sum(cells)")]
    conditions = {"p": [0.5, 0.6], "charge": [1, -1], "run_time": [5.0, 6.0]}
    first, second = (s.sample(conditions, seed=2) for s in (Simulator(model, model.spec), loaded))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_attributes_are_learned_by_both_players():
    """The network from reference events, the generator through generated ones; the error is bounded, so that negative
    weights can't lower it without end."""
    model, sample = prepared_model(WGAN, attributes=[Attribute("p", weight=0.5)])
    (auxiliary,) = model.auxiliaries()
    x, context = network_units(model, sample)
    batch = Batch(x, context, torch.from_numpy(sample.weight).float())
    generated = x.clone().requires_grad_()
    auxiliary.term(batch, generated, model.mean_weight, full=False).backward()
    assert generated.grad.abs().sum() > 0
    auxiliary.loss(batch, generated.detach()).backward()
    assert all(parameter.grad is not None for parameter in model.regressions.parameters())
    far = torch.full((N,), 1e6)
    error = Attribute.error(far, -far, weight=-torch.ones(N), mean_weight=1.0)
    assert float(error) == pytest.approx(-4 * LARGEST**2)
    trained = {id(p) for p in model.updates()[0].parameters}
    assert {id(p) for p in model.regressions.parameters()} <= trained


def test_enforced_terms_are_squared_differences_in_widths():
    """For the training events themselves 0; for events moved by a width 1; for those 10 % wider (0.105)^2."""
    model, sample = prepared_model(WGAN, enforce=[Enforced(mean="e"), Enforced(width="e")])
    z = torch.from_numpy((sample.x[:, 0] - float(model.moments[0, 0])) / float(model.moments[0, 1]))
    mean, width = model.enforced
    weight = torch.from_numpy(sample.weight)
    given = {"weight": weight, "mean_weight": model.mean_weight, "unbiased": False}
    assert float(squared_mean(mean.centered(z), **given)) == pytest.approx(0, abs=1e-10)
    assert float(squared_mean(width.centered(z), **given)) == pytest.approx(0, abs=1e-10)
    assert float(squared_mean(mean.centered(z + 1), **given)) == pytest.approx(1, rel=1e-5)
    assert float(squared_mean(width.centered(1.1 * z), **given)) == pytest.approx(0.105**2, rel=1e-4)


def test_similarity_tells_equal_events():
    """Of a batch of equal events it is the sum of shares, whatever the weights; of different ones it is less."""
    torch.manual_seed(1)
    critic = SimilarityCritic(3, 1, 2, hidden=[8], act="leaky_relu")
    seen = []
    critic.value.register_forward_hook(lambda _, given, __: seen.append(given[0][:, 3:]))
    share = torch.full((50,), 1 / 50)
    critic(torch.ones(50, 3), share)
    critic(10 * torch.randn(50, 3), share)
    torch.testing.assert_close(seen[0], torch.ones(50, 2), rtol=0, atol=1e-3)
    assert (seen[1] < 0.9).all()


def test_swish_has_one_number_in_each_layer():
    network = MLP(2, 1, hidden=[4, 4], act="swish")
    layers = [layer for layer in network if isinstance(layer, Swish)]
    assert [layer.beta.numel() for layer in layers] == [1, 1]
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(layers[0](x), torch.nn.functional.silu(x))
    assert isinstance(network.state_dict(), OrderedDict) and "1.beta" in network.state_dict()
