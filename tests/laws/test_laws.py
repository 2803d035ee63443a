"""Laws that every recipe obeys: those of the package by being registered, others by being named in `conftest`.

Those on the objective are for recipes that have one.  Recipes that can't take signed weights get positive ones.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from calorefine import Simulator, losses, stats
from calorefine.data.batches import Batch
from calorefine.ddp import Ranks
from calorefine.ensemble.side_by_side import can_train_together, together
from calorefine.errors import ConfigError, ValueRangeError
from calorefine.nets import Noise, Swish

N = 240


@pytest.fixture
def sample(trained, sample_of):
    """A full sample in network units, with weights that the model takes."""
    drawn = sample_of(trained)
    assert not trained.signed_weights or (drawn.weight < 0).double().mean() > 0.2
    return drawn


@dataclass(frozen=True)
class Rows(Ranks):
    """Draws for 2 N events, and takes these rows: an event has the same noise wherever it stands."""

    rows: torch.Tensor = None

    def whole(self, shape):
        return (2 * N, *shape[1:])

    def own(self, batch):
        return batch[self.rows]


def noise(rows):
    return Noise(7, ranks=Rows(rows=torch.as_tensor(rows)))


def loss_and_gradient(model, batch, rows):
    """Data term of the objective and its gradient with respect to all parameters, as one vector."""
    model.zero_grad()
    loss = model.objective(batch, noise(rows))
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([loss.detach()[None], *gradients])


def assert_same(first, second):
    """Equal to 1e-5, relative to the largest entry."""
    scale = first.abs().max()
    assert scale > 0
    torch.testing.assert_close(first / scale, second / scale, rtol=1e-5, atol=1e-9)


def test_doubling_a_weight_is_duplicating_the_event(trained, sample):
    rows = torch.arange(N)
    doubled = Batch(sample.x, sample.context, torch.cat([2 * sample.weight[:50], sample.weight[50:]]))
    duplicated = Batch(*(torch.cat([a, a[:50]]) for a in sample))
    assert_same(
        loss_and_gradient(trained, doubled, rows),
        loss_and_gradient(trained, duplicated, torch.cat([rows, rows[:50]])),
    )


def test_events_of_weight_zero_change_nothing(trained, sample):
    rows = torch.arange(N + 30)
    extended = Batch(
        torch.cat([sample.x, 3 * sample.x[:30] + 1]),
        torch.cat([sample.context, sample.context[:30] - 2]),
        torch.cat([sample.weight, torch.zeros(30, dtype=torch.float64)]),
    )
    assert_same(loss_and_gradient(trained, sample, rows[:N]), loss_and_gradient(trained, extended, rows))


def test_order_changes_nothing(trained, sample):
    rows = torch.arange(N)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(8))
    shuffled = Batch(*(a[order] for a in sample))
    assert_same(loss_and_gradient(trained, sample, rows), loss_and_gradient(trained, shuffled, rows[order]))


def test_scaling_all_weights_changes_nothing(trained, sample):
    rows = torch.arange(N)
    scaled = Batch(sample.x, sample.context, 7 * sample.weight)
    assert_same(loss_and_gradient(trained, sample, rows), loss_and_gradient(trained, scaled, rows))


def test_weights_matter(trained, sample):
    """The laws above, which hold to 1e-5, would hold for an objective that ignores weights.

    The gradients of a trained Swish are small beside those of the biases, on which weights act less.
    """
    least = 1e-3 if any(isinstance(module, Swish) for module in trained.modules()) else 1e-2
    rows = torch.arange(N)
    other = Batch(sample.x, sample.context, torch.ones(N, dtype=torch.float64))
    first, second = (loss_and_gradient(trained, batch, rows) for batch in (sample, other))
    assert (first - second).abs().max() > least * first.abs().max()


def conditions(n):
    rng = np.random.default_rng(9)
    return {"p": rng.random(n), "q": rng.random(n)}


def test_save_load_sample_gives_the_same_bits(model, tmp_path):
    simulator = Simulator(model.float(), model.spec)
    simulator.save(tmp_path / "model.ckpt")
    first = simulator.sample(conditions(500), seed=3, n_per_event=2)
    second = Simulator.load(tmp_path / "model.ckpt", models=[type(model)]).sample(
        conditions(500), seed=3, n_per_event=2
    )
    assert list(first) == ["a", "b", "d", "in_domain"]
    for name, values in first.items():
        assert len(values) == 1000
        np.testing.assert_array_equal(values, second[name])


@pytest.mark.parametrize("size", [1, 37])
def test_chunking_changes_nothing(model, size):
    n = 2000 if size == 1 else 10_000
    simulator = Simulator(model.float(), model.spec)
    context, key = conditions(n), np.arange(n, dtype=np.uint64) * np.uint64(77)
    whole = simulator.sample(context, key=key, seed=4)
    parts = []
    for first in range(0, n, size):
        rows = slice(first, first + size)
        parts.append(simulator.sample({k: v[rows] for k, v in context.items()}, key=key[rows], seed=4))
    for name, values in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        rounding = 2e-6 * values.astype(float).std()  # a value near 0 is a difference of numbers of order 1
        np.testing.assert_allclose(joined, values, rtol=1e-5, atol=rounding)


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


def test_minibatches_estimate_the_full_sample(unbiased, sample_of):
    """Mean over 3000 batches of the term that trains, within 4.5 standard errors (1e-5 by chance; seed 12).

    For the energy distance the full sample's value is the one without equal pairs.
    """
    sample = sample_of(unbiased)
    mean_weight = float(sample.weight.mean())
    generator = torch.Generator().manual_seed(12)
    values = []
    with torch.no_grad():
        for _ in range(3000):
            rows = torch.randperm(N, generator=generator)[:40]
            values.append(unbiased.estimate(Batch(*(a[rows] for a in sample)), noise(rows), mean_weight))
        expected = unbiased.estimate(sample, noise(range(N)), mean_weight)
    values = torch.stack(values)
    assert (values.mean() - expected).abs() < 4.5 * values.std() / len(values) ** 0.5
    assert values.std() > 0


def test_objective_is_the_weighted_one(trained, sample):
    """n_eff of the sample is far below its size, so that the laws test real cancellation of weights."""
    assert stats.n_eff(sample.weight.numpy()) < N / 2
    assert torch.isfinite(trained.objective(sample, noise(range(N))))


def train(model, batches):
    """Two epochs of these batches."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, enable_model_summary=False, **quiet)
    trainer.fit(model, DataLoader(batches, batch_size=None))
    return model


def batches_of(sample):
    return [Batch(*(array[first : first + 60] for array in sample)) for first in range(0, N, 60)]


def state(model):
    """Parameters of what generates, as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.network.parameters()])


def side_by_side_and_alone(replicas, batches):
    """Parameters of each replica before, after a training side by side, and after one alone."""
    before = [state(replica) for replica in replicas]
    stacked = [Batch(*map(torch.stack, zip(*pair, strict=True))) for pair in zip(*batches, strict=True)]
    joined = train(together([copy.deepcopy(replica) for replica in replicas], []), stacked)
    after = [state(joined.split_off(index)) for index in range(len(replicas))]
    return before, after, [state(train(*pair)) for pair in zip(replicas, batches, strict=True)]


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*")
def test_side_by_side_is_alone(stackable, untrained, sample_of):
    """Each replica becomes what it becomes alone, to 1e-4 of what it moved; another one does not become that."""
    replicas = [untrained(stackable, seed) for seed in (5, 6)]
    batches = [batches_of(sample_of(replica, seed)) for replica, seed in zip(replicas, (7, 8), strict=True)]
    before, joined, alone = side_by_side_and_alone(replicas, batches)
    for index in (0, 1):
        moved = (alone[index] - before[index]).abs().max()
        assert moved > 1e-3
        assert (joined[index] - alone[index]).abs().max() < 1e-4 * moved
        assert (alone[1 - index] - alone[index]).abs().max() > moved


class OverTheWrongAxis(nn.Module):
    """Takes its mean over the first axis: of events if it trains alone, of replicas side by side."""

    def __init__(self):
        super().__init__()
        self.value = nn.Linear(5, 1)

    def forward(self, x, share):
        del share
        return self.value(x - x.mean(0, keepdim=True)).square()


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*")
def test_a_critic_that_mixes_replicas_breaks_the_law(untrained, sample_of):
    replicas = [untrained("BatchWGAN", seed) for seed in (5, 6)]
    for replica in replicas:
        replica.critic = OverTheWrongAxis().double()
    _, joined, alone = side_by_side_and_alone(replicas, [batches_of(sample_of(replica)) for replica in replicas])
    assert (joined[0] - alone[0]).abs().max() > 1e-3


def test_a_critic_sees_reference_and_generated_events_apart(untrained, sample_of):
    """Its statistics are those of the events that it judges; in one pass they would be of both."""
    model = untrained("BatchWGAN")
    x, context, weight = sample_of(model)
    share, (critic,) = losses.shares(weight, float(weight.mean())), model.critics()
    first, second = critic((x, context), (x + 1, context), share=share)
    torch.testing.assert_close(first, critic((x, context), share=share)[0])
    torch.testing.assert_close(second, critic((x + 1, context), share=share)[0])
    both = critic((torch.cat([x, x + 1]), torch.cat([context] * 2)), share=torch.cat([share, share]) / 2)[0]
    assert (both[:N] - first).abs().max() > 1e-3


def test_a_penalty_acts_on_what_a_critic_sees(untrained, sample_of):
    """Of a sum that is the sum, not the features: its gradient is that of one input."""
    model, seen = untrained("SumWGAN"), []
    penalty = model.penalty
    model.penalty = lambda values, points, noise: seen.append(points) or penalty(values, points, noise)
    model.critic_loss(sample_of(model), Noise(1)).backward()
    assert [tuple(points.shape) for points in seen] == [(N, 3), (N, 1)]
    judges = (*model.sum_critic.parameters(), *model.regression.parameters())
    assert all(parameter.grad is not None for parameter in judges)


def test_the_generator_minimizes_what_all_critics_and_auxiliary_terms_tell(untrained, sample_of):
    model = untrained("SumWGAN")
    x, context, weight = sample = sample_of(model)
    generated = model.generator(torch.cat([Noise(1).normal(N, model.latent_size), context], dim=1))
    parts = [0.1 * model.told(sample, generated, 1.0, full=False)]
    for network, view, factor in ((model.critic, lambda x, _: x, 1.0), (model.sum_critic, model.sum, 0.5)):
        values = [network(torch.cat([view(events, context), context], dim=1))[:, 0] for events in (x, generated)]
        parts.append(factor * (weight * (values[0] - values[1])).mean())
    torch.testing.assert_close(model.estimate(sample, Noise(1), 1.0), sum(parts))
    first, second = (list(update.parameters) for update in model.updates())
    assert len(first) == sum(
        1 for part in (model.critic, model.sum_critic, model.regression) for _ in part.parameters()
    )
    assert len(second) == sum(1 for _ in model.generator.parameters())


def test_other_parameters_than_those_of_linear_layers(untrained):
    """They have no leading axis: a recipe that declares one is told which."""
    replicas = [untrained("BatchWGAN", seed) for seed in (5, 6)]
    for replica in replicas:
        replica.critic = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))
    with pytest.raises(ConfigError, match=r"with leading_axis: LayerNorm critic.1 has parameters weight, bias"):
        together(replicas, [])


def test_a_recipe_declares_that_it_can_train_side_by_side(model):
    """It can't be guessed: a statistic over the wrong axis would mix replicas whatever the layers are."""
    assert can_train_together(model) == (type(model).__name__ not in ("Library", "Student", "FlowStudent"))
