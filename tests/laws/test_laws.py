"""Laws that every model in the registry obeys; a new model is tested by being registered.

Those on the objective are for models that have one.  Models that can't take signed weights get positive ones.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from calorefine import Column, Columns, Events, Simulator, keys, stats
from calorefine.data.batches import Batch
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.module import Prepared
from calorefine.errors import ValueRangeError
from calorefine.models import MODELS
from calorefine.models.base import TrainedModel

N, D = 240, 3
COLUMNS = Columns(features={"a": Column(), "b": Column(), "d": Column()}, context={"p": Column(), "q": Column()})


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads make single-event inference many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(name, rng):
    """Weights (N,) with n_eff far below N: signed ones, if the model can take them."""
    return rng.normal(0.5, 1.0, N) if MODELS[name].signed_weights else rng.random(N) ** 4


def untrained(name):
    """A model as it is after set-up."""
    torch.manual_seed(5)
    rng = np.random.default_rng(5)
    x, context = rng.normal(size=(N, D)), rng.random((N, 2))
    weight = weights(name, rng)
    prepared = Prepared(
        columns=COLUMNS,
        features=ColumnTransforms().fit_columns(
            x, weight, ["quantile", "standard", "quantile"], ["a", "b", "d"], whiten=True
        ),
        context=ColumnTransforms().fit_columns(context, weight, ["quantile", "standard"], ["p", "q"]),
        domain=np.array([[0.0, 1.0], [0.0, 1.0]]),
        mean_weight=float(weight.mean()),
        provenance={"digest": "none", "n_train": N},
    )
    made = MODELS[name]()
    made.prepare(prepared)
    key = keys.make_keys([np.arange(N)])
    made.take_events(Events(x.astype(np.float32), context.astype(np.float32), weight, key, key))
    return made.double()


@pytest.fixture(params=sorted(MODELS))
def model(request):
    """Every registered model, untrained."""
    return untrained(request.param)


@pytest.fixture(params=[name for name in sorted(MODELS) if issubclass(MODELS[name], TrainedModel)])
def trained(request):
    """Every registered model that has an objective, untrained."""
    return untrained(request.param)


@pytest.fixture
def sample(trained):
    """A full sample in network units, with weights that the model takes."""
    rng = np.random.default_rng(6)
    weight = weights(type(trained).__name__, rng)
    assert not trained.signed_weights or (weight < 0).mean() > 0.2
    return Batch(*(torch.from_numpy(a) for a in (rng.normal(size=(N, D)), rng.normal(size=(N, 2)), weight)))


def loss_and_gradient(model, batch, latent):
    """Data term of the objective and its gradient with respect to all parameters, as one vector."""
    model.zero_grad()
    loss = model.objective(batch, latent)
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([loss.detach()[None], *gradients])


def noise(model, n):
    return torch.randn(n, model.latent_size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def assert_same(first, second):
    """Equal to 1e-5, relative to the largest entry."""
    scale = first.abs().max()
    assert scale > 0
    torch.testing.assert_close(first / scale, second / scale, rtol=1e-5, atol=1e-9)


def test_doubling_a_weight_is_duplicating_the_event(trained, sample):
    latent = noise(trained, N)
    doubled = Batch(sample.x, sample.context, torch.cat([2 * sample.weight[:50], sample.weight[50:]]))
    duplicated = Batch(*(torch.cat([a, a[:50]]) for a in sample))
    assert_same(
        loss_and_gradient(trained, doubled, latent),
        loss_and_gradient(trained, duplicated, torch.cat([latent, latent[:50]])),
    )


def test_events_of_weight_zero_change_nothing(trained, sample):
    latent = noise(trained, N + 30)
    extended = Batch(
        torch.cat([sample.x, 3 * sample.x[:30] + 1]),
        torch.cat([sample.context, sample.context[:30] - 2]),
        torch.cat([sample.weight, torch.zeros(30, dtype=torch.float64)]),
    )
    assert_same(loss_and_gradient(trained, sample, latent[:N]), loss_and_gradient(trained, extended, latent))


def test_order_changes_nothing(trained, sample):
    latent = noise(trained, N)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(8))
    shuffled = Batch(*(a[order] for a in sample))
    assert_same(loss_and_gradient(trained, sample, latent), loss_and_gradient(trained, shuffled, latent[order]))


def test_scaling_all_weights_changes_nothing(trained, sample):
    latent = noise(trained, N)
    scaled = Batch(sample.x, sample.context, 7 * sample.weight)
    assert_same(loss_and_gradient(trained, sample, latent), loss_and_gradient(trained, scaled, latent))


def test_weights_matter(trained, sample):
    """The laws above would hold for an objective that ignores weights."""
    latent = noise(trained, N)
    other = Batch(sample.x, sample.context, torch.ones(N, dtype=torch.float64))
    first, second = (loss_and_gradient(trained, batch, latent) for batch in (sample, other))
    assert (first - second).abs().max() > 1e-2 * first.abs().max()


def conditions(n):
    rng = np.random.default_rng(9)
    return {"p": rng.random(n), "q": rng.random(n)}


def test_save_load_sample_gives_the_same_bits(model, tmp_path):
    simulator = Simulator(model.float(), model.spec)
    simulator.save(tmp_path / "model.ckpt")
    first = simulator.sample(conditions(500), seed=3, n_per_event=2)
    second = Simulator.load(tmp_path / "model.ckpt").sample(conditions(500), seed=3, n_per_event=2)
    assert list(first) == ["a", "b", "d", "in_domain"]
    for name, values in first.items():
        assert len(values) == 1000
        np.testing.assert_array_equal(values, second[name])


@pytest.mark.parametrize("size", [1, 37])
def test_chunking_changes_nothing(model, size):
    n = 10_000
    simulator = Simulator(model.float(), model.spec)
    context, key = conditions(n), np.arange(n, dtype=np.uint64) * np.uint64(77)
    whole = simulator.sample(context, key=key, seed=4)
    parts = []
    for first in range(0, n, size):
        rows = slice(first, first + size)
        parts.append(simulator.sample({k: v[rows] for k, v in context.items()}, key=key[rows], seed=4))
    for name, values in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, values, rtol=1e-5, atol=0)


def test_conditions_that_are_no_numbers(model):
    simulator = Simulator(model.float(), model.spec)
    with pytest.raises(ValueRangeError, match="context 'p': 1 of 2 values are NaN or infinite"):
        simulator.sample({"p": [0.5, np.nan], "q": [0.5, 0.5]}, seed=1)
    with pytest.raises(ValueRangeError, match="context 'q': values of type <U3 found, expected numbers"):
        simulator.sample({"p": [0.5], "q": ["low"]}, seed=1)


def test_sampling_does_not_train(model):
    before = copy.deepcopy(model.state_dict())
    Simulator(model.float(), model.spec).sample(conditions(10), seed=1)
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, model.state_dict()[name].to(tensor.dtype), rtol=1e-6, atol=0)


def test_minibatches_estimate_the_full_sample(trained, sample):
    """Mean over 3000 batches of the term that trains, within 4.5 standard errors (1e-5 by chance; seed 12).

    For the energy distance the full sample's value is the one without equal pairs.
    """
    mean_weight = float(sample.weight.mean())
    latent = noise(trained, N)
    generator = torch.Generator().manual_seed(12)
    values = []
    with torch.no_grad():
        for _ in range(3000):
            rows = torch.randperm(N, generator=generator)[:40]
            values.append(trained.estimate(Batch(*(a[rows] for a in sample)), latent[rows], mean_weight))
        expected = trained.estimate(sample, latent, mean_weight)
    values = torch.stack(values)
    assert (values.mean() - expected).abs() < 4.5 * values.std() / len(values) ** 0.5
    assert values.std() > 0


def test_objective_is_the_weighted_one(trained, sample):
    """n_eff of the sample is far below its size, so that the laws test real cancellation of weights."""
    assert stats.n_eff(sample.weight.numpy()) < N / 2
    assert torch.isfinite(trained.objective(sample, noise(trained, N)))
