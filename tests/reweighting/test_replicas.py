"""Replicas of a reweighter: their spread is that of repeated experiments, and what is written for them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import uproot

from calorefine import Columns, keys, stats
from calorefine.errors import CalorefineWarning, ConfigError
from calorefine.events import Events
from calorefine.io.provenance import PROVENANCE, read_provenance
from calorefine.io.sample import WeightedFiles
from calorefine.reweighting import BoostingRatio, NetworkRatio, Reweighter
from calorefine.reweighting.replicas import BootstrapCopies, bootstrap_copies, fit_replicas
from calorefine.reweighting.reweighter import STATE_KEY
from calorefine.twosample.pair import Samples, read_samples
from calorefine.verbs.reweight import reweight_files
from calorefine.weights.bootstrap import counts

COLUMNS = Columns({"x": None}, {"c": None}, key=["run", "event"])
N = 1000


def events(x, w, *, first):
    key = keys.make_keys([np.arange(first, first + len(x))])
    return Events(x[:, None].astype(np.float32), np.zeros((len(x), 0), np.float32), w, key, key)


def test_spread_is_that_of_repeated_experiments():
    """Mean of x after reweighting: 30 replicas of one experiment and 30 experiments, weights of both signs; seed 7.

    Either spread is known to 13 %, their ratio to 18 %.  The bounds are 3 sigma: 0.3 % of chance failures each.  The
    known answer is the error of the reference's mean, 1 / sqrt(n_eff), which the networks may miss by 15 %.
    """
    rng, n, repetitions = np.random.default_rng(7), 2000, 30
    columns = Columns({"x": None}, {})
    generated = events(rng.normal(size=6000), np.ones(6000), first=10**8)
    estimator = NetworkRatio(hidden=[8], updates=250, batch_size=256, n_folds=2, n_repeats=1)

    def experiment(first):
        w = np.where(rng.random(n) < 0.2, -0.5, 1.25)
        return events(rng.normal(0.3, 1.0, n), w, first=first)

    def mean(reweighter):
        return float(stats.mean(generated.x[:, 0], reweighter.factors(generated)))

    options = {"estimator": estimator, "conditional": False}
    repeated = [
        mean(Reweighter.fit(generated, experiment(n * k), columns, seed=k, **options)) for k in range(repetitions)
    ]
    reference = experiment(10**6)
    nominal = Reweighter.fit(generated, reference, columns, **options)
    copies = BootstrapCopies(
        Samples(columns, generated, reference, "none"), repetitions, seed=3, key=reference.event_key
    )
    replicas = [mean(one) for one in fit_replicas(nominal, copies, estimator, repeats=1, seed=0)]
    found, wanted = np.std(replicas, ddof=1), np.std(repeated, ddof=1)
    assert abs(np.log(found / wanted)) < 0.55
    known = 1 / np.sqrt(n * 0.9**2 / 1.3)
    assert abs(np.log(found / known)) < 0.55
    assert np.mean(repeated) == pytest.approx(0.3, abs=0.03)
    assert abs(np.mean(replicas) - mean(nominal)) < 3 * found * np.sqrt(1 + 1 / repetitions)


def table(*, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    run, event = np.full(N, 7, np.uint32), np.arange(N, dtype=np.int64)
    c = np.random.default_rng(0).random(N)  # the same conditions
    w = np.where(rng.random(N) < 0.2, -0.5, 1.25)
    return {"run": run, "event": event, "c": c, "x": rng.normal(c + shift, 1.0), "w": w, "block": event // 10}


def write(path, arrays, provenance=None):
    with uproot.recreate(path) as file:
        types = {name: np.dtype((array.dtype, array.shape[1:])) for name, array in arrays.items()}
        file.mktree("events", types).extend(arrays)
        if provenance:
            file[PROVENANCE] = json.dumps(provenance)
    return str(path)


def replica_branch(arrays, n, *, seed, key=None):
    """Counts times weight times a factor for the fit done anew."""
    key = keys.make_keys([arrays["run"], arrays["event"]]) if key is None else key
    columns = [counts(key, replica=k + 1, seed=seed) * arrays["w"] * (1 + 0.01 * k) for k in range(n)]
    return np.stack(columns, axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Generated events and reference at the same conditions, the latter with replicas of counts of seed 5."""
    folder = tmp_path_factory.mktemp("replicas")
    generated, reference = table(seed=1), table(seed=2, shift=0.5)
    told = {"splot": {"replicas": {"n": 3, "seed": 5, "refit": True, "block": []}}}
    write(folder / "generated.root", generated)
    write(folder / "plain.root", reference)
    write(folder / "reference.root", reference | {"w_replica": replica_branch(reference, 3, seed=5)}, told)
    return folder


FAST = {"hidden": [8], "updates": 150, "batch_size": 128, "n_folds": 2, "n_repeats": 1}


def fit(files, output, **options):
    given = {"generated": str(files / "generated.root"), "reference": str(files / "reference.root")}
    given |= {"reference_weight": "w", "columns": COLUMNS, "estimator": NetworkRatio(**FAST), "output": str(output)}
    return reweight_files(**given | options)


@pytest.fixture(scope="module")
def fitted(files):
    """Folder with `with.pt` and its three replicas."""
    assert "3 replicas, weights fitted anew" in str(fit(files, files / "with.pt", replicas=3))
    return files


def apply(folder, output, *, reweighter="with.pt", generated="generated.root", **options):
    given = {"apply": str(folder / reweighter), "generated": str(folder / generated), "output": str(output)}
    summary = reweight_files(**given | options)
    with uproot.open(summary.output) as file:
        return summary, file["events"].arrays(library="np")


def test_one_file_with_all_weights(fitted, tmp_path):
    summary, out = apply(fitted, tmp_path / "o.root")
    replicas = out["weight_replica"]
    assert (replicas.shape, replicas.dtype) == ((N, 3), np.float64)
    everything = np.column_stack([out["weight"], replicas])
    for k in range(4):
        for other in range(k):
            assert np.std(everything[:, k] - everything[:, other]) > 0.01
    assert (np.corrcoef(everything.T) > 0.5).all()  # all correct the same
    np.testing.assert_allclose(everything.mean(axis=0), 1, atol=0.02)
    assert "weight_replica: 3 replicas" in str(summary)
    told = read_provenance(tmp_path / "o.root")["reweight"]["weight"]
    assert told["replicas"]["sum_w"] == pytest.approx(replicas.sum(axis=0))
    assert told["fit"]["replicas"]["seed"] == 5
    loaded = Reweighter.load(fitted / "with.pt")
    assert [len(one.rounds) for one in loaded.replicas] == [1, 1, 1]
    assert len({one.rounds[0].ratio.seed for one in loaded.replicas}) == 3


def test_nominal_weights_are_those_without_replicas(fitted, tmp_path):
    pair, _ = samples(fitted)
    alone = Reweighter.fit(pair.generated, pair.reference, COLUMNS, estimator=NetworkRatio(**FAST))
    alone.save(tmp_path / "without.pt")
    (_, both), (_, one) = (
        apply(fitted, tmp_path / f"{path.stem}.root", reweighter=path)
        for path in (fitted / "with.pt", tmp_path / "without.pt")
    )
    assert both["weight"].tobytes() == one["weight"].tobytes()
    assert "weight_replica" not in one


def test_a_file_of_before_is_read(fitted, tmp_path):
    content = torch.load(fitted / "with.pt", weights_only=True)
    del content[STATE_KEY]["replicas"]
    torch.save(content, tmp_path / "old.pt")
    assert Reweighter.load(tmp_path / "old.pt").replicas == []


def test_normalization_of_each_replica(fitted, tmp_path):
    _, out = apply(fitted, tmp_path / "o.root", normalization="reference")
    with uproot.open(fitted / "reference.root") as file:
        reference = file["events"].arrays(["w", "w_replica"], library="np")
    assert out["weight"].sum() == pytest.approx(reference["w"].sum())
    np.testing.assert_allclose(out["weight_replica"].sum(axis=0), reference["w_replica"].sum(axis=0), rtol=1e-5)


def samples(files, reference="reference.root", weight="w", columns=COLUMNS):
    target = WeightedFiles(str(files / reference), "events", weight)
    return read_samples(WeightedFiles(str(files / "generated.root"), "events"), target, columns=columns), target.source


def test_both_samples_count_as_the_replicas_branch_does(files):
    found = bootstrap_copies(*samples(files), "w", n=3, seed=0)
    wanted = replica_branch(table(seed=2, shift=0.5), 3, seed=5)
    for k, (generated, reference) in enumerate(found):
        own = counts(found.samples.reference.event_key, replica=k + 1, seed=5)
        np.testing.assert_array_equal(reference.weight, wanted[own > 0, k])
        np.testing.assert_array_equal(generated.weight, own[own > 0])
        np.testing.assert_array_equal(generated.event_key, found.samples.generated.event_key[own > 0])
    told = found.to_dict()
    assert (told["refit"], told["seed"], told["twins_counted"]) == (True, 5, True)
    np.testing.assert_allclose(told["sum_w"], wanted.sum(axis=0), rtol=1e-5)


def test_without_the_branch_counts_are_drawn_and_that_is_told(files):
    with pytest.warns(CalorefineWarning, match=r"plain\.root.*no branch 'w_replica'.* is not redone"):
        found = bootstrap_copies(*samples(files, "plain.root"), "w", n=2, seed=4)
    reference = found.samples.reference
    for k, (_, one) in enumerate(found):
        own = counts(reference.event_key, replica=k + 1, seed=4)
        np.testing.assert_array_equal(one.weight, (own * reference.weight)[own > 0])
    assert not found.to_dict()["refit"]
    blocks = replace(COLUMNS, block=["block"])
    with pytest.warns(CalorefineWarning, match="is not redone"):
        found = bootstrap_copies(*samples(files, "plain.root", columns=blocks), "w", n=1, seed=4)
    generated, reference = next(iter(found))
    assert len(np.unique(found.key)) == N // 10
    np.testing.assert_array_equal(generated.event_key, reference.event_key)


def test_generated_events_of_other_conditions_count_once(files):
    pair, source = samples(files)
    key = keys.combine(pair.generated.event_key, 1)
    other = replace(pair, generated=replace(pair.generated, event_key=key))
    generated, _ = next(iter(bootstrap_copies(other, source, "w", n=1, seed=0)))
    np.testing.assert_array_equal(generated.weight, np.ones(N))


def test_counts_of_other_keys(files):
    """An array whose counts can't be had again: the reference's replicas are as told, the generated ones nominal."""
    arrays = table(seed=2, shift=0.5)
    odd = replica_branch(arrays, 2, seed=5, key=np.arange(N, dtype=np.uint64))
    write(files / "odd.root", arrays | {"w_replica": odd})
    pair, source = samples(files, "odd.root")
    with pytest.warns(CalorefineWarning, match=r"odd\.root.*'w_replica' was not made with counts by these event keys"):
        found = bootstrap_copies(pair, source, "w", n=2, seed=0)
    generated, reference = next(iter(found))
    assert len(generated) == N
    np.testing.assert_array_equal(reference.weight, odd[odd[:, 0] != 0, 0])


def test_trees(files):
    pair, source = samples(files)
    estimator = BoostingRatio(n_trees=5, n_folds=2)
    nominal = Reweighter.fit(pair.generated, pair.reference, COLUMNS, estimator=estimator)
    copies = bootstrap_copies(pair, source, "w", n=2, seed=0)
    nominal.replicas = fit_replicas(nominal, copies, estimator, repeats=1, seed=0)
    assert estimator.n_repeats == 2
    assert [one.rounds[0].ratio.members.n_members for one in nominal.replicas] == [2, 2]
    nominal.save(files / "trees.pt")
    loaded = Reweighter.load(files / "trees.pt")
    np.testing.assert_array_equal(loaded.replica_factors(pair.generated), nominal.replica_factors(pair.generated))
    assert np.std(loaded.replica_factors(pair.generated), axis=1).max() > 0.01


def test_errors(fitted, tmp_path):
    with pytest.raises(ConfigError, match=r"replicas: 4 found, but 'w_replica' of .*reference\.root.* has 3"):
        fit(fitted, tmp_path / "r.pt", replicas=4)
    with pytest.raises(ConfigError, match="replicas: -1 found"):
        fit(fitted, tmp_path / "r.pt", replicas=-1)
    with pytest.raises(ConfigError, match="replica_repeats: 0 found"):
        fit(fitted, tmp_path / "r.pt", replicas=1, replica_repeats=0)
    with pytest.raises(ConfigError, match="replicas: 2 found, but this option belongs to a fit"):
        apply(fitted, tmp_path / "o.root", replicas=2)
    write(fitted / "before.root", table(seed=1) | {"weight_replica": np.ones((N, 2))})
    with pytest.raises(ConfigError, match="has a branch 'weight_replica' already"):
        apply(fitted, tmp_path / "o.root", generated="before.root")
    _, out = apply(fitted, tmp_path / "o.root", generated="before.root", replace_branch=True)
    assert out["weight_replica"].shape == (N, 3)
