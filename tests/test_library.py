"""The library of nearest neighbors: which events are in it, which one is taken, and how it is moved."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import uproot
import yaml
from scipy.spatial.distance import cdist

from calorefine import Column, Columns, Events, Simulator, keys, stats
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.module import Prepared
from calorefine.errors import CheckpointError, ConfigError, WeightError
from calorefine.fit.command import lightning
from calorefine.models import Library
from calorefine.models.library import accept
from calorefine.verbs.sample import sample_file


def events(x, context, weight=None):
    """Events with one key each."""
    n = len(x)
    key = keys.make_keys([np.arange(n)])
    weight = np.ones(n) if weight is None else weight
    return Events(np.asarray(x, np.float32), np.asarray(context, np.float32), weight, key, key)


def library(train, *, categories=None, transform="quantile", **options):
    """Simulator over a library of these events: features a, b, ..., context p, q, ..., and `kind` if categorical."""
    numeric = train.context.shape[1] - len(categories or [])
    context = {name: Column(transform=transform) for name in "pqr"[:numeric]}
    if categories:
        context["kind"] = Column(categories=categories)
    columns = Columns(dict.fromkeys("abdefgh"[: train.x.shape[1]]), context)
    kinds = [transform] * numeric + ["identity"] * len(categories or [])
    prepared = Prepared(
        columns=columns,
        features=ColumnTransforms().fit_columns(
            train.x, train.weight, [transform] * train.x.shape[1], columns.feature_names, whiten=True
        ),
        context=ColumnTransforms().fit_columns(train.context, train.weight, kinds, columns.context_names),
        domain=np.stack([train.context.min(axis=0), train.context.max(axis=0)], axis=1),
        mean_weight=float(train.weight.mean()),
        provenance={"digest": "none"},
    )
    model = Library(**options)
    model.prepare(prepared)
    model.take_events(train)
    return Simulator(model, model.spec)


def random_events(n, *, seed):
    """Correlated features with tails and an atom, and a context of two columns."""
    rng = np.random.default_rng(seed)
    context = rng.normal(size=(n, 2))
    tails = rng.standard_t(2, n) * 30
    x = np.stack([context[:, 0] + rng.normal(size=n), np.maximum(rng.normal(size=n), 0), tails], axis=1)
    x[:, 1] += 0.9 * x[:, 0] * (x[:, 1] > 0)
    return events(x, context)


def stacked(sampled):
    return np.stack([values for name, values in sampled.items() if name != "in_domain"], axis=1)


def test_training_contexts_give_back_the_training_events():
    """Also from far tails and atoms, to 1e-5 of the value or of the width."""
    train = random_events(3000, seed=1)
    found = stacked(library(train).sample({"p": train.context[:, 0], "q": train.context[:, 1]}, seed=2))
    for j in range(3):
        width = np.diff(np.quantile(train.x[:, j], [0.16, 0.84]))[0]
        np.testing.assert_allclose(found[:, j], train.x[:, j], rtol=1e-5, atol=1e-5 * width)
    assert np.abs(train.x[:, 2]).max() > 20 * np.diff(np.quantile(train.x[:, 2], [0.16, 0.84]))[0]


def test_one_neighbor_is_the_nearest_event():
    train = random_events(2000, seed=3)
    simulator = library(train)
    wanted = np.random.default_rng(4).normal(size=(500, 2)).astype(np.float32)
    found = stacked(simulator.sample({"p": wanted[:, 0], "q": wanted[:, 1]}, seed=5))
    rows = [simulator.model.context(torch.from_numpy(values)).numpy() for values in (wanted, train.context)]
    np.testing.assert_allclose(found, train.x[cdist(*rows).argmin(axis=1)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("neighbors", [1, 3, 40, 1000])
def test_any_of_the_events_with_the_wanted_context(neighbors):
    """30 events of context 0, 10 of context 1: neighbors are drawn evenly, also where a context has more of them.

    Each of the 30 or 40 counts of 10 000 draws is within 5 standard errors (1e-5 by chance each); seeds 6, 7.
    """
    context = np.repeat([0.0, 1.0], [30, 10])
    x = np.random.default_rng(6).normal(size=(40, 1))
    simulator = library(events(x, context[:, None]), transform="standard", neighbors=neighbors)
    simulator.sample({"p": [0.0]}, seed=6)
    index = simulator.model.index
    wanted = simulator.model.context(torch.zeros(10_000, 1)).double().numpy()
    near = index.nearest(wanted, neighbors)
    assert np.all(near.taken.sum(axis=1) == min(neighbors, 40))
    uniform = np.random.default_rng(7).random((10_000, 2))
    counts = np.bincount(index.draw(near, uniform)[1], minlength=40)
    expected = np.where(np.arange(40) < 30, 1 / 30, 0) if neighbors < 30 else np.full(40, 1 / 40)
    assert np.all(np.abs(counts - 10_000 * expected) <= 5 * np.sqrt(10_000 * expected))


def test_without_context_any_event():
    train = events(np.arange(200.0)[:, None], np.zeros((200, 0)))
    found = library(train, neighbors=5).sample({}, seed=1, key=keys.make_keys([np.arange(5000)]))["a"]
    assert len(np.unique(np.round(found, 3))) == 200


def test_weights_are_probabilities_of_acceptance():
    """Number and means of what is accepted are the weighted ones, within 4 standard errors (2e-4 by chance; seed 8)."""
    n = 50_000
    rng = np.random.default_rng(8)
    x = rng.normal(size=n)
    weight = 3 / (1 + np.exp(-x)) * rng.random(n)
    key = keys.make_keys([np.arange(n)])
    accepted = accept(weight, key, seed=1)
    share = weight / weight.max()
    assert abs(accepted.sum() - share.sum()) < 4 * np.sqrt(np.sum(share * (1 - share)))
    mean = float(stats.mean(x, weight))
    error = np.sqrt(np.sum(share * (1 - share) * (x - mean) ** 2)) / share.sum()
    assert abs(x[accepted].mean() - mean) < 4 * error
    assert abs(x.mean() - mean) > 40 * error
    np.testing.assert_array_equal(accepted[::7], accept(weight, key, seed=1)[::7])
    assert not np.array_equal(accepted, accept(weight, key, seed=2))
    assert accept(np.full(n, 0.3), key, seed=1).all()


def test_library_is_a_function_of_the_events_not_of_their_order():
    train = random_events(1000, seed=9)
    train = Events(train.x, train.context, np.random.default_rng(9).random(1000), train.key, train.event_key)
    shuffled = train.take(np.random.default_rng(10).permutation(1000))
    first, second = (library(train).model for _ in range(2))
    second.take_events(shuffled)
    assert torch.equal(first.library_x, second.library_x)
    assert torch.equal(first.library_context, second.library_context)
    assert first.spec["provenance"]["n_library"] == len(first.library_x) < 700


def test_signed_weights_and_bad_options_are_refused():
    train = random_events(100, seed=11)
    train.weight[3] = -0.5
    with pytest.raises(
        WeightError, match=r"Library, which needs positive.*1 of 100 weights are negative.*data\.positive"
    ):
        library(train)
    with pytest.raises(WeightError, match="sum to 0, expected a positive sum"):
        accept(np.zeros(3), train.key[:3], seed=0)
    with pytest.raises(ConfigError, match="neighbors: 0 found, expected at least 1"):
        Library(neighbors=0)


def test_an_empty_library_says_so():
    model = library(random_events(100, seed=12)).model
    model.build(3, 2)
    with pytest.raises(CheckpointError, match="the library holds no events"):
        model.generate(torch.zeros(1, 2), torch.zeros(1, 2))


def linear(n, *, slope, seed):
    """Events with two features that are linear in two contexts, and spread 1; contexts lie on a coarse grid."""
    rng = np.random.default_rng(seed)
    context = np.round(rng.uniform(-2, 2, (n, 2)) * 2) / 2
    x = np.stack([slope * context[:, 0], -slope * context[:, 1]], axis=1) + rng.normal(size=(n, 2))
    return events(x, context + 1e-3 * rng.normal(size=(n, 2)))


def test_means_follow_the_context_between_neighbors():
    """Midway of two grid lines, where features are 4 standard deviations apart, are the mean and the width there.

    Means over 500 events and 4000 draws have an error of 0.05, widths one of 0.04; 4 of them are allowed (6e-5 by
    chance each, seeds 13, 14).
    """
    train = linear(10_000, slope=8.0, seed=13)
    wanted = {"p": np.full(4000, 0.25), "q": np.full(4000, -0.75)}
    x = stacked(library(train, neighbors=500, transform="standard").sample(wanted, seed=14))
    np.testing.assert_allclose(x.mean(axis=0), [2.0, 6.0], atol=0.2)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=0.15)
    nearest = stacked(library(train, transform="standard").sample(wanted, seed=14))
    assert np.all(np.abs(nearest.mean(axis=0) - [2.0, 6.0]) > 1)


@pytest.mark.parametrize("neighbors", [5, 10, 20, 50])
def test_spread_is_kept_for_any_number_of_neighbors(neighbors):
    """Width and covariance of noise that doesn't depend on the context: a regression has nothing to follow.

    20 000 contexts: the error of the width is below 1 %, 5 % is allowed (seeds 15, 16).
    """
    rng = np.random.default_rng(15)
    context, noise = rng.normal(size=(20_000, 2)), rng.normal(size=(20_000, 2))
    x = np.stack([noise[:, 0], 0.8 * noise[:, 0] + 0.6 * noise[:, 1]], axis=1)
    wanted = dict(zip("pq", np.random.default_rng(16).normal(size=(2, 20_000)), strict=True))
    found = stacked(library(events(x, context), neighbors=neighbors).sample(wanted, seed=17))
    np.testing.assert_allclose(found.std(axis=0), 1, atol=0.05)
    assert np.corrcoef(found.T)[0, 1] == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("neighbors", [2, 3, 50])
def test_nothing_is_extrapolated(neighbors):
    """Far outside, values stay within what the neighbors have, up to their spread."""
    train = linear(2000, slope=8.0, seed=18)
    wanted = {"p": np.array([50.0, -50.0]), "q": np.array([0.0, 1e6])}
    x = stacked(library(train, neighbors=neighbors).sample(wanted, seed=19, n_per_event=200))
    assert np.all(x.min(axis=0) > train.x.min(axis=0) - 3)
    assert np.all(x.max(axis=0) < train.x.max(axis=0) + 3)


@pytest.mark.parametrize("neighbors", [1, 20])
def test_categories_match_whatever_the_distance(neighbors):
    """Kind 7 has events on the other side of the other context only; an unknown kind gets the nearest of any."""
    rng = np.random.default_rng(20)
    p = np.concatenate([rng.uniform(0, 1, 500), rng.uniform(99, 100, 30)])
    kind = np.repeat([3, 7], [500, 30])
    train = events(kind[:, None] + 0.01 * rng.normal(size=(530, 1)), np.stack([p, kind == 3, kind == 7], axis=1))
    simulator = library(train, categories=[3, 7], neighbors=neighbors)
    found = simulator.sample({"p": [0.5, 0.5, 99.5, 0.5], "kind": [3, 7, 3, 11]}, seed=21)
    np.testing.assert_allclose(found["a"], [3, 7, 3, 3], atol=0.1)
    assert found["in_domain"].tolist() == [True, True, True, False]


@pytest.mark.parametrize("neighbors", [1, 10])
def test_save_and_load_gives_the_same_bits(tmp_path, neighbors):
    simulator = library(random_events(1000, seed=22), neighbors=neighbors)
    simulator.save(tmp_path / "library.ckpt")
    loaded = Simulator.load(tmp_path / "library.ckpt")
    wanted = dict(zip("pq", np.random.default_rng(23).normal(size=(2, 300)), strict=True))
    for name, values in simulator.sample(wanted, seed=24).items():
        np.testing.assert_array_equal(values, loaded.sample(wanted, seed=24)[name])
    assert loaded.spec["provenance"]["n_library"] == 1000


@pytest.mark.parametrize("neighbors", [1, 10, 5000])
def test_batches_change_nothing(neighbors):
    """Also where there are more neighbors than are looked at together, or than events."""
    simulator = library(random_events(1000, seed=30), neighbors=neighbors)
    context = np.random.default_rng(31).normal(size=(2, 150))
    key = keys.make_keys([np.arange(150)])
    whole = stacked(simulator.sample(dict(zip("pq", context, strict=True)), seed=32, key=key))
    for rows in (slice(0, 1), slice(40, 77)):
        part = stacked(simulator.sample(dict(zip("pq", context[:, rows], strict=True)), seed=32, key=key[rows]))
        np.testing.assert_allclose(part, whole[rows], rtol=1e-5, atol=1e-5)


def test_the_library_is_not_copied_for_a_chunk():
    simulator = library(random_events(100_000, seed=25))
    wanted = dict(zip("pq", np.random.default_rng(26).normal(size=(2, 100)), strict=True))
    simulator.sample(wanted, seed=27)
    x, index = simulator.model.library_x, simulator.model.index
    tracemalloc.start()
    simulator.sample(wanted, seed=28)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000 < x.numpy().nbytes
    assert simulator.model.index is index
    assert simulator.model.library_x.data_ptr() == x.data_ptr()


@pytest.fixture
def config(tmp_path):
    """A configuration file on a toy with positive weights."""
    rng = np.random.default_rng(29)
    c = rng.random(1500)
    table = {"run": np.ones(1500, np.uint32), "event": np.arange(1500), "c": c, "x": c + 0.1 * rng.normal(size=1500)}
    table["w"] = 0.2 + 0.8 * rng.random(1500)
    with uproot.recreate(tmp_path / "toy.root") as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)
    data = {"files": str(tmp_path / "toy.root"), "tree": "events", "weights": "w"}
    data["columns"] = {"features": {"x": None}, "context": {"c": None}, "key": ["run", "event"]}
    trainer = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False}
    content = {"data": data, "model": {"class_path": "Library"}, "trainer": trainer}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def fit(config, *options):
    return lightning(["fit", "-c", str(config), "--runs", str(config.parent / "runs"), *options])


def test_fit_and_sample_from_the_command_line(config, tmp_path):
    run = fit(config)
    best, last = (run.run_dir / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    train = run.datamodule.train
    model = Simulator.load(best).model
    assert len(model.library_x) == accept(train.weight, train.key, seed=0).sum() < 0.7 * len(train)
    assert torch.equal(model.library_x, Simulator.load(last).model.library_x)
    assert float(run.trainer.callback_metrics["val_loss"]) < 0.01
    summary = (run.run_dir / "summary.txt").read_text()
    assert "Library, 0 trainable parameters" in summary
    assert f",{len(model.library_x)}.0," in (run.run_dir / "csv" / "metrics.csv").read_text()
    output = tmp_path / "out.root"
    sample_file(checkpoint=str(best), conditions=str(tmp_path / "toy.root"), output=str(output))
    with uproot.open(output) as file, uproot.open(tmp_path / "toy.root") as toy:
        residual = file["events/x"].array(library="np") - toy["events/c"].array(library="np")
    assert residual.std() == pytest.approx(0.1, rel=0.1)
    lightning(["test", "-c", str(config), "--ckpt_path", str(best)])


class Interrupt(pl.Callback):
    """Stop in the second epoch."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 1:
            raise RuntimeError("power cut")


def test_resuming_keeps_the_library(config):
    longer = ["--trainer.max_epochs", "3"]
    with pytest.raises(RuntimeError, match="power cut"):
        fit(config, *longer, "--trainer.callbacks+", f"{__name__}.Interrupt")
    resumed = fit(config, *longer, "--ckpt_path", str(config.parent / "runs/config/000/checkpoints/last.ckpt"))
    expected = fit(config).model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_fit_on_signed_weights_is_refused(config):
    with pytest.raises(WeightError, match=r"Library, which needs positive weights: .*data\.positive"):
        fit(config, "--data.weights", "w - 0.3")


@pytest.mark.parametrize("neighbors", [1, 5, 20])
def test_atoms_and_counts_are_as_frequent_as_in_the_sample(neighbors):
    """Seed 33: the atom's share, and that of count 0, within 4 standard errors of the sample's (1e-4 by chance)."""
    rng, n = np.random.default_rng(33), 8000
    c = rng.random(n)
    y = np.where(rng.random(n) < 0.1 + 0.5 * c, 0.0, rng.gamma(2 + 2 * c, 1.0))
    train = events(np.stack([rng.normal(c, 1, n), y, rng.poisson(1 + 2 * c)], axis=1), c[:, None])
    columns = Columns({"a": None, "y": Column(bounds=(0, None)), "k": Column(transform="integer")}, {"p": None})
    kinds = ["quantile", "quantile", "integer"]
    features = ColumnTransforms().fit_columns(
        train.x, train.weight, kinds, list("ayk"), whiten=True, bounds=[None, (0, None), None]
    )
    context = ColumnTransforms().fit_columns(train.context, train.weight, ["quantile"], ["p"])
    model = Library(neighbors=neighbors)
    domain = np.array([[0.0, 1.0]])
    model.prepare(
        Prepared(columns=columns, features=features, context=context, domain=domain, mean_weight=1.0, provenance={})
    )
    model.take_events(train)
    wanted = rng.random(20_000)
    made = stacked(Simulator(model, model.spec).sample({"p": wanted}, seed=34))
    for half in (wanted < 0.5, wanted >= 0.5):
        own = (c < 0.5) == (wanted[half][0] < 0.5)
        for j in (1, 2):
            share = np.mean(train.x[own, j] == 0)
            error = np.sqrt(share * (1 - share) * (1 / own.sum() + 1 / half.sum()))
            assert abs(np.mean(made[half, j] == 0) - share) < 4 * error
