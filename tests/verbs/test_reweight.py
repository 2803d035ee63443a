"""`calorefine reweight`: samples in, a reweighter out, and the laws that its weights obey."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import uproot
import yaml

from calorefine import Column, Columns, stats
from calorefine.cli import calorefine
from calorefine.errors import BranchError, ColumnWarning, ConfigError, EmptySelectionError, FileError, WeightError
from calorefine.reweighting import BoostingRatio, NetworkRatio, Reweighter, rounds
from calorefine.reweighting.rounds import RoundTest
from calorefine.twosample.classifier import Separation
from calorefine.verbs import reweight_fit as fitting
from calorefine.verbs.reweight import reweight_files

COLUMNS = Columns(
    {"x": None, "y": None},
    {"p_gev": Column("P", branch_unit="MeV"), "charge": Column(categories=[-1, 1])},
    key=["run", "event"],
)
N = 1200
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "reweight.yaml"


def table(n=N, *, seed=1, first=0, shift=0.0):
    """Two features, a context in MeV, a category, keys, and weights of both signs and of one."""
    rng = np.random.default_rng(seed)
    momentum = rng.uniform(1000, 9000, n)
    return {
        "run": np.full(n, 7, np.uint32),
        "event": np.arange(first, first + n, dtype=np.int64),
        "P": momentum,
        "charge": rng.choice([-1, 1], n).astype(np.int32),
        "x": rng.normal(momentum / 4000 + shift, 1.0).astype(np.float32),
        "y": rng.normal(size=n).astype(np.float32),
        "w": np.where(rng.random(n) < 0.2, -0.5, 1.25),
        "v": rng.uniform(0.5, 2.0, n),
    }


def fast(**options):
    return NetworkRatio(**{"hidden": [8], "updates": 200, "batch_size": 128, "n_folds": 2, "n_repeats": 1, **options})


@pytest.fixture(scope="module")
def found():
    """Diagnostics of the first fit."""
    return []


@pytest.fixture(autouse=True)
def diagnosed_once(monkeypatch, found):
    """The diagnostics of the first fit serve for all others: they take time, and have tests of their own."""
    diagnose = fitting.diagnose

    def once(*args, **options):
        if not found:
            found.append(diagnose(*args, **options))
        return found[0]

    monkeypatch.setattr(fitting, "diagnose", once)


@pytest.fixture
def samples(root_file):
    """Files of generated and reference events, which differ in x."""
    generated = root_file(table(), "generated.root")
    return {"generated": str(generated), "reference": str(root_file(reference(), "reference.root"))}


def reference():
    return table(seed=2, first=10**6, shift=0.5)


@pytest.fixture
def fit(samples, tmp_path):
    """Function that fits to the samples and returns the summary."""

    def run(**options):
        given = {"output": str(tmp_path / "r.pt"), "columns": COLUMNS, "estimator": fast(), "overwrite": True}
        return reweight_files(**samples | given | {"reference_weight": "w"} | options)

    return run


@pytest.fixture
def weights(tmp_path):
    """Function that applies the reweighter to a file and returns its weights, by event."""

    def run(generated, **options):
        output = tmp_path / "weighted.root"
        given = {"apply": str(tmp_path / "r.pt"), "generated": str(generated), "output": str(output)}
        reweight_files(**given, overwrite=True, **options)
        with uproot.open(output) as file:
            out = file["events"].arrays(["event", "weight"], library="np")
        return out["weight"][np.argsort(out["event"])]

    return run


def test_fit_then_apply(fit, weights, samples, tmp_path):
    found = fit(generated_weight="v", estimator=fast(updates=1000))
    assert sorted(path.name for path in tmp_path.glob("r.*")) == ["r.html", "r.json", "r.pt"]
    assert not list(tmp_path.glob(".*"))
    own, target = table(), reference()
    weight = weights(samples["generated"], generated_weight="v")
    before, after = (float(stats.mean(own["x"], w)) for w in (own["v"], weight))
    wanted = float(stats.mean(target["x"], target["w"]))
    assert abs(after - wanted) < 0.3 * abs(before - wanted)
    loaded = Reweighter.load(tmp_path / "r.pt").provenance
    assert loaded == found.reweighter.provenance
    assert loaded["generated"]["n"] == N
    assert loaded["reference"]["sum_w"] == pytest.approx(target["w"].sum())
    assert (loaded["generated"]["keys"], loaded["twins"], loaded["history"]) == ("branches", "keys", [])
    assert loaded["estimator"]["hidden"] == [8]
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["provenance"] == loaded
    assert content["diagnostics"]
    assert f"reference: reference.root, {N} events, weight w" in str(found)
    assert str(found).startswith(str(found.diagnostics))
    scaled = weights(samples["generated"], normalization="reference")
    assert scaled.sum() == pytest.approx(target["w"].sum())


@pytest.mark.parametrize("conditional", [True, False])
def test_mean_factors(fit, samples, weights, conditional):
    """Conditional: one at each context.  Joint: one over the generated events trained on."""
    fit(conditional=conditional)
    weight, own = weights(samples["generated"]), table()
    assert weight.mean() == pytest.approx(1, rel=1e-3 if conditional else 1e-6)
    for half in (own["P"] < 5000, own["P"] >= 5000) if conditional else ():
        assert weight[half].mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("estimator", [fast(), BoostingRatio(n_trees=5, n_folds=2)], ids=["network", "trees"])
@pytest.mark.parametrize("law", ["order", "parts", "scale", "reference scale"])
def test_laws(fit, weights, samples, root_file, tmp_path, law, estimator):
    """Order, division into files and scale of the weights change nothing."""
    fit(estimator=estimator, generated_weight="v")
    expected = weights(samples["generated"])
    own, target, options = table(), reference(), {}
    if law == "order":
        order = np.random.default_rng(0).permutation(N)
        own, target = ({name: array[order] for name, array in one.items()} for one in (own, target))
    elif law == "scale":
        own["v"] = 37 * own["v"]
    elif law == "reference scale":
        target["w"] = target["w"] / 19
    root_file(target, "changed_reference.root")
    halves = np.split(np.arange(N), 2) if law == "parts" else [np.arange(N)]
    for number, rows in enumerate(halves):
        root_file({name: array[rows] for name, array in own.items()}, f"changed_{number}.root")
    options = {"generated": str(tmp_path / "changed_?.root"), "reference": str(tmp_path / "changed_reference.root")}
    fit(estimator=estimator, generated_weight="v", **options)
    np.testing.assert_allclose(weights(samples["generated"]), expected, rtol=1e-5)  # products of other float32 matrices


def test_same_samples_need_no_weights(fit, weights, samples):
    fit(reference=samples["generated"], reference_weight="none")
    assert np.std(weights(samples["generated"])) < 0.05


def found_auc(*aucs):
    """Replacement of the classifier, which finds one after the other."""
    left = list(aucs)

    def separation(*_, **__):
        return Separation(left.pop(0), 0.01, 0.014, None, None, None)

    return separation


@pytest.mark.parametrize(
    ("aucs", "kept", "n"),
    [
        ((0.7, 0.6, 0.55, 0.52), [True, True, True, True], 3),
        ((0.7, 0.6, 0.595), [True, True, False], 1),
        ((0.7, 0.6, 0.45, 0.56), [True, True, True, False], 2),
    ],
)
def test_rounds_go_on_as_long_as_they_help(fit, monkeypatch, tmp_path, aucs, kept, n):
    monkeypatch.setattr(rounds, "separation", found_auc(*aucs))
    found = fit(rounds=3, estimator=fast(updates=20))
    assert [one.kept for one in found.history] == kept
    assert [one.auc for one in found.history] == list(aucs)
    assert len(Reweighter.load(tmp_path / "r.pt").rounds) == n
    assert len(found.reweighter.provenance["history"]) == len(kept)
    assert "round 1: AUC 0.6000 +- 0.0100" in str(found)
    assert ("discarded" in str(found)) == (not all(kept))


def test_rounds_are_tested_at_the_references_context(fit, root_file, monkeypatch):
    """A context that is distributed otherwise is not the conditional reweighter's to correct."""
    arrays = table(2 * N)
    fewer = np.random.default_rng(5).random(2 * N) < arrays["P"] / 9000
    generated = root_file({name: array[fewer] for name, array in arrays.items()}, "other.root")
    seen = []

    def separation(made, target, **_):
        seen.append([float(stats.mean(one.context[:, 0], one.weight)) for one in (made, target)])
        return Separation(0.6, 0.01, 0.014, None, None, None)

    monkeypatch.setattr(rounds, "separation", separation)
    for conditional in (True, False):
        fit(generated=str(generated), rounds=2, conditional=conditional, estimator=fast(updates=1000))
    (made, target), joint = seen[0], seen[3]
    before = arrays["P"][fewer].mean() / 1000
    assert abs(made - target) < 0.3 * (before - target)
    assert joint == pytest.approx([before, target])


def test_closer_by_more_than_the_error():
    before = RoundTest(1, 0.45, 0.01)
    assert RoundTest(2, 0.52, 0.01).better_than(before)
    assert not RoundTest(2, 0.545, 0.01).better_than(before)


def test_shipped_configuration(tmp_path):
    """With the embedded samples, and little training."""
    data = CONFIG.parents[1] / "examples" / "data"
    options = ["--generated", str(data / "electron_calibration.root"), "--reference_weight", "none"]
    options += ["--reference", str(data / "electron_reference.root"), "--estimator.n_trees", "2"]
    found = calorefine(["reweight", "-c", str(CONFIG), *options, "--output", str(tmp_path / "r.pt")])
    assert found.reweighter.provenance["generated"]["n"] == 31160
    assert found.reweighter.provenance["estimator"]["max_leaf_nodes"] == 16


def test_command_line(samples, tmp_path):
    """From training to weights, in the options of the shipped configuration."""
    columns = {"features": {"x": None, "y": None}, "context": {"p_gev": {"expression": "P * 0.001"}}}
    small = {**yaml.safe_load(CONFIG.read_text()), **samples, "columns": columns | {"key": ["run", "event"]}}
    small["reference_weight"] = "w"
    network = {"hidden": [4], "updates": 20, "n_folds": 2, "n_repeats": 1}
    small["estimator"] = {"class_path": "NetworkRatio", "init_args": network}
    config = tmp_path / "reweight.yaml"
    config.write_text(yaml.safe_dump(small))
    output = tmp_path / "r.pt"
    found = calorefine(["reweight", "-c", str(config), "--output", str(output)])
    assert found.reweighter.provenance["estimator"]["class"] == "NetworkRatio"
    with pytest.raises(ConfigError, match=r"r\.pt: exists already"):
        calorefine(["reweight", "-c", str(config), "--output", str(output)])
    trees = ["--estimator", "BoostingRatio", "--estimator.n_trees", "3", "--overwrite", "true"]
    del small["estimator"]
    config.write_text(yaml.safe_dump(small))
    found = calorefine(["reweight", "-c", str(config), "--output", str(output), *trees])
    assert found.reweighter.estimator == "BoostingRatio"
    apply = ["reweight", "--apply", str(output), "--generated", samples["generated"]]
    weighed = calorefine([*apply, "--output", str(tmp_path / "o.root")])
    assert weighed.totals.n == N
    kept = calorefine([*apply, "--output", str(tmp_path / "u.root"), "--unweight", "true", "--max-factor", "3"])
    assert kept.maximum == 3
    in_place = calorefine([*apply, "--in-place", "true", "--branch", "factor"])
    assert str(in_place.output) == samples["generated"]
    with uproot.open(in_place.output) as file:
        assert file["events"].keys() == [*table(), "factor"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reference": None}, ConfigError, "reference: none given, expected a ROOT file to learn from, or --apply"),
        ({"output": None}, ConfigError, r"output: None found, expected a name that ends in \.pt"),
        ({"output": "r.root"}, ConfigError, r"output: r\.root found, expected a name that ends in \.pt"),
        ({"output": "/no/folder/r.pt"}, FileError, "there is no folder '/no/folder'"),
        ({"rounds": 0}, ConfigError, "rounds: 0 found, expected at least 1"),
        ({"columns": None}, ConfigError, r"generated\.root.*describe them with the option `columns`"),
        ({"generated": "no.root"}, FileError, r"no\.root: no such file"),
        ({"reference_tree": "Events"}, FileError, r"reference\.root: holds no tree 'Events'; did you mean 'events'"),
        ({"generated_weight": "ww"}, BranchError, r"generated\.root.*no branch 'ww'"),
        ({"generated_weight": "w"}, WeightError, "generated weights are negative"),
        ({"reference_weight": "-v"}, WeightError, r"reference\.root.*expected a positive sum"),
        ({"estimator": fast(n_folds=2000)}, EmptySelectionError, "1200 generated events found, too few for 2000 folds"),
        ({"branch": "f"}, ConfigError, "branch: f found, but this option needs --apply"),
        ({"in_place": True}, ConfigError, "in_place: True found, but this option needs --apply"),
        ({"unweight": True}, ConfigError, "unweight: True found, but this option needs --apply"),
    ],
)
def test_bad_input_of_a_fit_leaves_nothing(fit, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generated.root", "reference.root"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "r.root"}, r"reference: r\.root found, but this option belongs to a fit, .*leave it out"),
        ({"conditional": False}, "conditional: False found, but this option belongs to a fit"),
        ({"columns": COLUMNS}, "columns: .* found, but this option belongs to a fit"),
        ({"max_factor": 2.0}, r"max_factor: 2\.0 found, but this option needs --unweight true"),
        ({"unweight": True, "branch": "f"}, "branch: f found, but this option doesn't go with --unweight true"),
        ({"unweight": True, "in_place": True}, "in_place: True found, but this option doesn't go with --unweight"),
        ({"unweight": True}, "output: none given, expected the ROOT file to write"),
    ],
)
def test_options_that_do_not_belong_to_applying(samples, options, message):
    with pytest.raises(ConfigError, match=message):
        reweight_files(apply="r.pt", generated=samples["generated"], **options)


@pytest.mark.parametrize("name", ["r.pt", "r.json", "r.html"])
def test_nothing_is_overwritten_and_that_is_known_at_once(fit, tmp_path, name, monkeypatch):
    (tmp_path / name).write_text("precious")
    monkeypatch.setattr(fitting, "read_samples", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ConfigError, match=rf"{name}: exists already"):
        fit(overwrite=False)
    assert (tmp_path / name).read_text() == "precious"


def test_columns_that_a_ratio_gains_nothing_from_are_warned_of(fit, root_file):
    own, target = table(), reference()
    for arrays in (own, target):
        arrays["sum"] = arrays["x"].astype(np.float64) + arrays["y"]
        arrays["t"] = 1.7e9 + np.random.default_rng(5).normal(0, 300, N)
    paths = {"generated": str(root_file(own, "own.root")), "reference": str(root_file(target, "target.root"))}
    columns = Columns({"x": None, "sum": None, "y": None}, {"t": None}, key=["run", "event"])
    with pytest.warns(ColumnWarning) as caught:
        fit(**paths, columns=columns)
    texts = [str(one.message) for one in caught if not issubclass(one.category, DeprecationWarning)]
    assert "context 't': single precision has steps of 128 there" in texts[0]
    assert "feature 'y': is a function of (x, sum, t), and tells nothing that these don't; leave it out" in texts[1]
    assert len(texts) == 2
