"""Generators in two steps: energies of showers first, and then their cells."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import uproot

from calorefine import EventDataModule, Simulator
from calorefine.data.batches import Batch
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.module import Prepared
from calorefine.data.showers import Showers
from calorefine.errors import ConfigError
from calorefine.models import VAE, WGAN, AffineFlow, AutoregressiveCells, Flow, FlowMatching, Student
from calorefine.models.two_step import TwoStep
from calorefine.nets import Noise
from tests.data.shower_toy import COLUMNS, draw


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Showers in a ROOT file, set up."""
    events, path = draw(2000), tmp_path_factory.mktemp("showers") / "showers.root"
    table = {"showers": events.x, "weight": events.weight, "event": np.arange(len(events))}
    table |= {name: events.context[:, k] for k, name in enumerate(COLUMNS.context)}
    with uproot.recreate(path) as file:
        file.mktree("events", {name: (array.dtype, array.shape[1:]) for name, array in table.items()}).extend(table)
    preprocessing = Showers(epochs=10, hidden=[32])
    columns = dataclasses.replace(COLUMNS, key=["event"])
    module = EventDataModule(
        files=str(path), tree="events", columns=columns, weights="weight", preprocessing=preprocessing, batch_size=256
    )
    module.setup()
    return module


CELLS = {
    "AffineFlow": lambda: AffineFlow(width=32),
    "AutoregressiveCells": lambda: AutoregressiveCells(hidden=[16, 16], n_alone=2),
    "FlowMatching": lambda: FlowMatching(width=32, n_blocks=1, from_normal=True),
    "WGAN": WGAN,
    "VAE": VAE,
}


@pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS)
def test_any_recipe_makes_the_cells(data, tmp_path, cells):
    """Trained for two epochs, saved, loaded: sums of layers, and the same showers again."""
    torch.manual_seed(1)
    model = TwoStep(first=Flow(hidden=[16]), then=cells())
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    own = copy.copy(data)
    own.prepared = copy.deepcopy(data.prepared)  # a simulator puts it into the mode for sampling
    trainer.fit(model, own)
    simulator = Simulator(model, model.spec)
    simulator.save(tmp_path / "two.ckpt")
    again = Simulator.load(tmp_path / "two.ckpt")
    assert isinstance(again.model, TwoStep)
    assert type(again.model.then) is type(model.then)
    conditions = {name: data.train.context[:500, k] for k, name in enumerate(COLUMNS.context)}
    made = simulator.sample(conditions, seed=3)["showers"]
    np.testing.assert_array_equal(made, again.sample(conditions, seed=3)["showers"])
    assert ((made == 0) | (made >= 0.5 * (1 - 1e-5))).all()
    response = made.sum(1) / conditions["e_inc_gev"]
    truth = np.where(data.train.x >= 0.5, data.train.x, 0).sum(1)[:500] / conditions["e_inc_gev"]
    assert abs(response.mean() / truth.mean() - 1) < 0.15


def test_both_parts_learn(data):
    """Losses of both fall, and each is that of its recipe alone on its part of the events."""
    torch.manual_seed(2)
    model = TwoStep(first=Flow(hidden=[16]), then=AffineFlow(width=32))
    model.set_up(data)
    batch = model.to_network(
        Batch(
            *(
                torch.from_numpy(a[:512])
                for a in (data.train.x, data.train.context, data.train.weight.astype(np.float32))
            )
        ),
        torch.Generator().manual_seed(0),
    )
    first, then = model.divided(batch)
    assert (first.x.shape, then.x.shape, then.context.shape[1]) == ((512, 2), (512, 36), batch.context.shape[1] + 2)
    updates = {update.name: update for update in model.updates()}
    assert set(updates) == {"first loss", "then loss"}
    for name, part, own in (("first loss", model.first, first), ("then loss", model.then, then)):
        loss = updates[name].loss(batch, Noise(0))
        torch.testing.assert_close(loss, part.loss(own, Noise(0)))
        optimizer = torch.optim.Adam(updates[name].parameters, lr=3e-3)
        for step in range(30):
            optimizer.zero_grad()
            updates[name].loss(batch, Noise(step)).backward()
            optimizer.step()
        assert updates[name].loss(batch, Noise(0)) < loss - 0.1
    total = model.estimate(batch, Noise(0), model.mean_weight)
    torch.testing.assert_close(total, model.first.loss(first, Noise(0)) + model.then.loss(then, Noise(0)))


def test_validated_by_the_terms_of_both_parts(data):
    """Where both have a likelihood or the like; otherwise by the energy distance of whole showers."""
    torch.manual_seed(3)
    model = TwoStep(first=Flow(hidden=[16]), then=AffineFlow(width=32))
    assert (model.terms_order, model.validated_by) == (1, "negative log likelihood + negative log likelihood")
    model.set_up(data)
    model.eval()
    table = (data.train.x[:400], data.train.context[:400], data.train.weight[:400].astype(np.float32))
    batch = Batch(*map(torch.from_numpy, table))
    first, then = model.divided(model.to_network(batch, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        terms = model.validation_terms(batch)
        own = model.first.network_log_prob(first.x, first.context), model.then.network_log_prob(then.x, then.context)
    expected = -(batch.weight * sum(own)).sum() / batch.weight.sum()
    assert terms.shape == (400,)
    torch.testing.assert_close(terms.mean(), expected, rtol=0.01, atol=0)  # what atoms are spread over is drawn anew
    gan = TwoStep(first=Flow(hidden=[16]), then=WGAN())
    assert (gan.terms_order, gan.validated_by) == (2, "energy distance")


def test_weights_are_those_that_both_take():
    assert TwoStep(first=WGAN(), then=WGAN()).signed_weights
    assert not TwoStep(first=Flow(), then=WGAN()).signed_weights


def test_what_is_refused(data):
    with pytest.raises(ConfigError, match="then: a Library found, expected a recipe that is trained"):
        TwoStep(first=Flow(), then={"class_path": "Library", "init_args": {}})
    with pytest.raises(ConfigError, match="first: a Student found, expected a recipe without a teacher"):
        TwoStep(first=Student(teacher="a.ckpt"), then=Flow())
    with pytest.raises(ConfigError, match=r"then: enforce of 'sum\(showers\)' found, expected none"):
        TwoStep(first=Flow(), then=WGAN(enforce=[{"mean": "sum(showers)"}]))
    columns = dataclasses.replace(COLUMNS)
    prepared = Prepared(
        columns=columns,
        features=ColumnTransforms().fit(data.train, columns),
        context=data.prepared.context,
        domain=data.prepared.domain,
        mean_weight=1.0,
        provenance={},
    )
    with pytest.raises(ConfigError, match="ColumnTransforms has 0 of 36 network values that come first"):
        TwoStep(first=Flow(), then=AffineFlow()).prepare(prepared)
