"""Replicas of a reweighter: their spread is that of repeated experiments, and what is written for them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import uproot
from scipy.stats import norm

from calorefine import Columns, keys
from calorefine.errors import CalorefineWarning, ConfigError, FitError
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
N = 4000


def events(x, w, *, first):
    key = keys.make_keys([np.arange(first, first + len(x))])
    return Events(x[:, None].astype(np.float32), np.zeros((len(x), 0), np.float32), w, key, key)


def test_spread_is_that_of_repeated_experiments():
    """Ten bins of x after reweighting: 60 replicas of one experiment and 60 experiments; seed 7.

    Weights of both signs, and a generator that is right: where log ratios were shrunk, the replicas claimed 0.00 of the
    true error.  With seeds 100 to 111 the ratio of claimed to true was 1.021 with a spread of 0.036, and the slope
    0.944 with 0.005: the bounds are six spreads away.  A bin's mean over experiments is known to 0.13 errors, the root
    mean square of ten to 0.03, so that 0.3 is five of these from 0.14.
    """
    rng, n, repetitions = np.random.default_rng(7), 4000, 60
    columns = Columns({"x": None}, {})
    estimator = NetworkRatio(hidden=[8], updates=50, batch_size=256, n_folds=2, n_repeats=1)
    edges = norm.ppf(np.arange(0.5, 10) / 10)[1:]

    def experiment(first):
        w = np.where(rng.random(n) < 0.2, -0.5, 1.25)
        return events(rng.normal(0, 1.0, n), w, first=first)

    def fitted(number):
        generated = events(rng.normal(size=4 * n), np.ones(4 * n), first=10**8 * (number + 1))
        pair = Samples(columns, generated, experiment(n * number), "none")
        return pair, Reweighter.fit(
            generated, pair.reference, columns, estimator=estimator, conditional=False, seed=number
        )

    target = events(rng.normal(size=50_000), np.ones(50_000), first=10**12)
    cells = np.digitize(target.x[:, 0], edges)[:, None] == np.arange(10)

    def shares(weight):
        return cells.T @ weight / weight.sum(axis=0)

    pairs = [fitted(number) for number in range(repetitions)]
    repeated = np.array([shares(reweighter.factors(target)) for _, reweighter in pairs])
    samples, nominal = pairs[0]
    weight = np.stack([counts(samples.reference.event_key, replica=k, seed=3) for k in range(1, 61)], axis=1)
    copies = BootstrapCopies(weight * samples.reference.weight[:, None], 3, refit=False)
    nominal.replicas, slopes = fit_replicas(nominal, samples, copies)
    replicas = shares(nominal.factors(target)[:, None] * nominal.replica_ratios(target)).T
    claimed, true = (np.sqrt(np.mean(np.var(one, axis=0, ddof=1))) for one in (replicas, repeated))
    assert 0.8 < claimed / true < 1.25
    assert slopes["x"] > 0.9
    bias = (repeated.mean(axis=0) - cells.mean(axis=0)) / np.std(replicas, axis=0, ddof=1)
    assert np.sqrt(np.mean(bias**2)) < 0.3


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
    assert told["fit"]["replicas"]["slopes"]["x"] > 0.9
    assert Reweighter.load(fitted / "with.pt").n_replicas == 3


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


def test_replicas_of_before_are_left_out(fitted, tmp_path):
    content = torch.load(fitted / "with.pt", weights_only=True)
    content[STATE_KEY]["replicas"] = [content[STATE_KEY]["rounds"]] * 2
    torch.save(content, tmp_path / "old.pt")
    with pytest.warns(CalorefineWarning, match=r"old\.pt: its 2 replicas were shrunk .* fit it again with --replicas"):
        assert Reweighter.load(tmp_path / "old.pt").replicas is None


def test_normalization_of_each_replica(fitted, tmp_path):
    _, out = apply(fitted, tmp_path / "o.root", normalization="reference")
    with uproot.open(fitted / "reference.root") as file:
        reference = file["events"].arrays(["w", "w_replica"], library="np")
    assert out["weight"].sum() == pytest.approx(reference["w"].sum())
    np.testing.assert_allclose(out["weight_replica"].sum(axis=0), reference["w_replica"].sum(axis=0), rtol=1e-5)


def samples(files, reference="reference.root", weight="w", columns=COLUMNS):
    target = WeightedFiles(str(files / reference), "events", weight)
    return read_samples(WeightedFiles(str(files / "generated.root"), "events"), target, columns=columns), target.source


def test_replicas_of_the_branch(files):
    found = bootstrap_copies(*samples(files), "w", n=3, seed=0)
    np.testing.assert_array_equal(found.weight, replica_branch(table(seed=2, shift=0.5), 3, seed=5))
    told = found.to_dict()
    assert (told["n"], told["refit"], told["seed"]) == (3, True, 5)
    np.testing.assert_allclose(told["sum_w"], found.weight.sum(axis=0), rtol=1e-5)


def test_without_the_branch_counts_are_drawn_and_that_is_told(files):
    with pytest.warns(CalorefineWarning, match=r"plain\.root.*no branch 'w_replica'.* is not redone"):
        found = bootstrap_copies(*samples(files, "plain.root"), "w", n=2, seed=4)
    reference = samples(files, "plain.root")[0].reference
    for k in range(2):
        own = counts(reference.event_key, replica=k + 1, seed=4)
        np.testing.assert_array_equal(found.weight[:, k], own * reference.weight)
    assert not found.to_dict()["refit"]
    blocks = replace(COLUMNS, block=["block"])
    with pytest.warns(CalorefineWarning, match="is not redone"):
        found = bootstrap_copies(*samples(files, "plain.root", columns=blocks), "w", n=1, seed=4)
    ratio = (found.weight[:, 0] / reference.weight).reshape(-1, 10)
    np.testing.assert_array_equal(ratio, np.repeat(ratio[:, :1], 10, axis=1))


def test_a_resolution_that_misses_shifts_is_refused(files):
    """Too few events for as many terms as ten bins take."""
    pair, source = samples(files)
    few = replace(
        pair, generated=pair.generated.take(np.arange(N) < 400), reference=pair.reference.take(np.arange(N) < 400)
    )
    nominal = Reweighter.fit(few.generated, few.reference, COLUMNS, estimator=NetworkRatio(**FAST))
    copies = bootstrap_copies(pair, source, "w", n=2, seed=0)
    copies = replace(copies, weight=copies.weight[:400])
    with pytest.raises(FitError, match=r"ten bins of 'x' 0\.\d\d is recovered.*or samples of the members"):
        fit_replicas(nominal, few, copies)


def test_trees(files):
    pair, source = samples(files)
    nominal = Reweighter.fit(pair.generated, pair.reference, COLUMNS, estimator=BoostingRatio(n_trees=5, n_folds=2))
    nominal.replicas, _ = fit_replicas(nominal, pair, bootstrap_copies(pair, source, "w", n=2, seed=0))
    nominal.save(files / "trees.pt")
    loaded = Reweighter.load(files / "trees.pt")
    np.testing.assert_array_equal(loaded.replica_ratios(pair.generated), nominal.replica_ratios(pair.generated))
    assert np.std(loaded.replica_ratios(pair.generated), axis=1).max() > 0.01


def test_errors(fitted, tmp_path):
    with pytest.raises(ConfigError, match=r"replicas: 4 found, but 'w_replica' of .*reference\.root.* has 3"):
        fit(fitted, tmp_path / "r.pt", replicas=4)
    with pytest.raises(ConfigError, match="replicas: -1 found"):
        fit(fitted, tmp_path / "r.pt", replicas=-1)
    with pytest.raises(ConfigError, match="replicas: 2 found, but this option belongs to a fit"):
        apply(fitted, tmp_path / "o.root", replicas=2)
    write(fitted / "before.root", table(seed=1) | {"weight_replica": np.ones((N, 2))})
    with pytest.raises(ConfigError, match="has a branch 'weight_replica' already"):
        apply(fitted, tmp_path / "o.root", generated="before.root")
    _, out = apply(fitted, tmp_path / "o.root", generated="before.root", replace_branch=True)
    assert out["weight_replica"].shape == (N, 3)
