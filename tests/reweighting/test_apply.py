"""Weights written to files: the same rows, one more branch, and nothing lost whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import uproot

from calorefine import Column, Columns, Events, keys
from calorefine.errors import (
    BranchError,
    CalorefineError,
    CalorefineWarning,
    CheckpointError,
    ConfigError,
    EmptySelectionError,
    FileError,
    KeyWarning,
    ValueRangeError,
    WeightError,
)
from calorefine.io import root
from calorefine.io.provenance import read_provenance
from calorefine.reweighting import NetworkRatio, Reweighter
from calorefine.reweighting.sums import MeanFactors
from calorefine.verbs.reweight_apply import apply_reweighter
from calorefine.verbs.unweight import unweight_files

COLUMNS = Columns(
    {"x": None, "k": None},
    {"p_gev": Column("P", branch_unit="MeV"), "charge": Column(categories=[-1, 1])},
    key=["run", "event"],
)
N = 1500
SUM = 1234.5


def table(n=N, *, seed=1, first=0, shift=0.0):
    """Two features, a context in MeV, a category, keys, weights and arrays."""
    rng = np.random.default_rng(seed)
    momentum = rng.uniform(1000, 9000, n)
    return {
        "run": np.full(n, 7, np.uint32),
        "event": np.arange(first, first + n, dtype=np.int64),
        "P": momentum,
        "charge": rng.choice([-1, 1], n).astype(np.int32),
        "x": rng.normal(momentum / 4000 + shift, 1.0).astype(np.float32),
        "k": rng.poisson(2, n).astype(np.int32),
        "w": rng.uniform(0.5, 2.0, n),
        "flag": rng.random(n) < 0.5,
        "cells": rng.normal(size=(n, 3)).astype(np.float32),
    }


def events(arrays):
    context = COLUMNS.encode_context({"p_gev": arrays["P"] * 0.001, "charge": arrays["charge"]})
    key = keys.make_keys([arrays["run"], arrays["event"]])
    return Events(COLUMNS.encode_features(arrays), context, np.ones(len(key)), key, key)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder with a reweighter in either case."""
    folder = tmp_path_factory.mktemp("reweighters")
    estimator = NetworkRatio(hidden=[8], updates=300, batch_size=128, n_folds=2, n_repeats=1)
    pair = events(table()), events(table(seed=2, first=10**6, shift=0.5))
    for name in ("conditional", "joint"):
        one = Reweighter.fit(*pair, COLUMNS, estimator=estimator, conditional=name == "conditional")
        one.provenance = {"generated": {"files": ["trained.root"], "keys": "branches"}, "reference": {"sum_w": SUM}}
        one.save(folder / f"{name}.pt")
    return folder


@pytest.fixture
def source(tmp_path):
    """Function that writes arrays, with fixed-size ones, to a file."""

    def write(arrays, name="new.root", *, tree_format="ttree", others=None):
        with uproot.recreate(tmp_path / name) as file:
            types = {name: np.dtype((array.dtype, array.shape[1:])) for name, array in arrays.items()}
            make = file.mktree if tree_format == "ttree" else file.mkrntuple
            make("events", types).extend(arrays)
            for other, value in (others or {}).items():
                file[other] = value
        return tmp_path / name

    return write


def read(path):
    with uproot.open(path) as file:
        return file["events"].arrays(library="np")


@pytest.fixture
def weigh(models, source, tmp_path):
    """Function that weighs arrays and returns the summary and the written arrays."""

    def run(arrays, *, model="conditional", write=apply_reweighter, name="out.root", **options):
        path = options.pop("generated", None) or source(arrays)
        given = {"reweighter": str(models / f"{model}.pt"), "generated": str(path), "output": str(tmp_path / name)}
        summary = write(**given | options)
        return summary, read(summary.output)

    return run


@pytest.mark.parametrize("model", ["conditional", "joint"])
def test_rows_branches_and_weights(weigh, models, tree_format, source, model):
    arrays = table(seed=5, first=5000)
    summary, out = weigh(arrays, model=model, generated=source(arrays, tree_format=tree_format), generated_weight="w")
    assert list(out) == [*arrays, "weight"]
    for name, array in arrays.items():
        assert (out[name].dtype, out[name].tobytes()) == (array.dtype, array.tobytes())
    factors = Reweighter.load(models / f"{model}.pt").factors(events(arrays))
    inside = Reweighter.load(models / f"{model}.pt").in_domain(events(arrays).context)
    assert out["weight"].dtype == np.float64
    np.testing.assert_allclose(out["weight"], arrays["w"] * np.where(inside, factors, 1), rtol=1e-6)
    with uproot.open(summary.output) as file:
        assert file.classnames()["events;1"] == {"ttree": "TTree", "rntuple": "ROOT::RNTuple"}[tree_format]


def test_summary_and_provenance(weigh, models, source):
    arrays = table(seed=5, first=5000)
    old = {"columns": COLUMNS.to_dict(), "n_per_event": 1}
    arrays["P"][:4] = 99_000
    arrays["charge"][4:7] = 3
    path = source(arrays, others={"calorefine_provenance": json.dumps(old)})
    summary, out = weigh(arrays, generated=path)
    totals = summary.totals
    outside = ~Reweighter.load(models / "conditional.pt").in_domain(events(table(seed=5, first=5000)).context)
    outside[:7] = True
    assert np.all(out["weight"][outside] == 1)
    assert (totals.n, totals.n_outside) == (N, outside.sum())
    assert totals.sum_w == pytest.approx(out["weight"].sum())
    assert totals.n_eff == pytest.approx(out["weight"].sum() ** 2 / (out["weight"] ** 2).sum())
    assert totals.largest_weight == totals.largest_factor == out["weight"].max()
    assert f"{outside.sum()} events" in str(summary)
    assert "normalization mean" in str(summary)
    found = read_provenance(summary.output)
    assert old.items() <= found.items()
    entry = found["reweight"]["weight"]
    assert entry["files"] == ["new.root"]
    assert entry["fit"]["reference"]["sum_w"] == SUM
    assert entry["n_outside"] == outside.sum()
    again, _ = weigh(arrays, generated=summary.output, name="again.root", branch="other", generated_weight="weight")
    assert set(read_provenance(again.output)["reweight"]) == {"weight", "other"}


@pytest.mark.parametrize("model", ["conditional", "joint"])
def test_normalization(weigh, model):
    """Mean factor 1 over the events trained on; or the reference's sum of weights."""
    arrays = table(first=0)
    mean, out = weigh(arrays, model=model)
    assert mean.totals.sum_w == pytest.approx(N, rel=0.01 if model == "conditional" else 1e-6)
    for charge in (-1, 1) if model == "conditional" else ():
        assert out["weight"][arrays["charge"] == charge].mean() == pytest.approx(1, abs=0.02)
    scaled, other = weigh(arrays, model=model, normalization="reference", generated_weight="w", name="scaled.root")
    assert other["weight"].sum() == pytest.approx(SUM, rel=1e-9)
    np.testing.assert_allclose(other["weight"], scaled.scale * arrays["w"] * out["weight"], rtol=1e-6)
    assert "normalization reference" in str(scaled)


@pytest.fixture
def with_cut(models, tmp_path):
    """Reweighter of either case that was learned with the cut `flag && w > 0.7`, saved in the test's folder."""

    def make(model="conditional", cut="flag && w > 0.7"):
        one = Reweighter.load(models / f"{model}.pt")
        one.columns = replace(one.columns, cut=cut)
        one.save(tmp_path / "cut.pt", overwrite=True)
        return str(tmp_path / "cut.pt")

    return make


@pytest.mark.parametrize("model", ["conditional", "joint"])
def test_rows_outside_of_the_cut_are_left_alone(weigh, with_cut, model):
    arrays = table(seed=5, first=5000)
    passed = arrays["flag"] & (arrays["w"] > 0.7)
    _, whole = weigh(arrays, model=model)
    arrays["x"][~passed] = np.nan  # nothing outside of the cut plays a part
    arrays["charge"][np.flatnonzero(~passed)[:3]] = 5
    summary, out = weigh(arrays, reweighter=with_cut(model), name="cut.root")
    assert (out["weight"][~passed] == 1).all()
    np.testing.assert_allclose(out["weight"][passed], whole["weight"][passed], rtol=1e-6)
    t = summary.totals
    assert (t.n, t.n_cut, t.n_inside) == (N, np.sum(~passed), np.sum(passed))
    assert t.sum_w == pytest.approx(out["weight"][passed].sum())
    assert t.largest_factor == out["weight"][passed].max()
    assert f"outside of the cut 'flag && w > 0.7' (factor 1, in no sum): {np.sum(~passed)} events" in str(summary)
    assert read_provenance(summary.output)["reweight"]["weight"]["n_cut"] == np.sum(~passed)
    scaled, other = weigh(arrays, reweighter=with_cut(model), normalization="reference", name="scaled.root")
    assert other["weight"][passed].sum() == pytest.approx(SUM, rel=1e-9)
    np.testing.assert_allclose(other["weight"], scaled.scale * out["weight"], rtol=1e-6)


def test_unweighting_with_a_cut(weigh, with_cut):
    arrays = table(seed=5, first=5000)
    passed = arrays["flag"] & (arrays["w"] > 0.7)
    _, out = weigh(arrays, reweighter=with_cut())
    summary, kept = weigh(arrays, reweighter=with_cut(), write=unweight_files, name="kept.root")
    largest = out["weight"].max()
    assert summary.maximum == pytest.approx(largest)
    draw = keys.uniform(keys.stream(events(arrays).key, "unweight 1", seed=0))
    np.testing.assert_array_equal(kept["event"], arrays["event"][draw < out["weight"] / largest])
    assert summary.totals.n_cut == np.sum(~passed)
    assert "outside of the cut" in str(summary)


def test_branches_of_the_cut_are_needed(weigh, with_cut):
    arrays = {name: array for name, array in table(300).items() if name != "flag"}
    for write in (apply_reweighter, unweight_files):
        with pytest.raises(BranchError, match=r"no branch 'flag' of the cut 'flag .*--pass_through run,event,flag,w"):
            weigh(arrays, reweighter=with_cut(), write=write)


def test_features_that_stand_for_something_else_are_refused(weigh, models, source, tmp_path):
    """Events of a generator whose x is another function of the branches than where the reweighter was learned."""
    made = [replace(COLUMNS, features={"x": Column(text), "k": None}).to_dict() for text in ("x", "log(x)")]
    model = Reweighter.load(models / "conditional.pt")
    model.provenance["generated"]["provenance"] = {"columns": made[0]}
    model.save(tmp_path / "told.pt")
    same, other = (
        source(table(), f"{k}.root", others={"calorefine_provenance": json.dumps({"columns": columns})})
        for k, columns in enumerate(made)
    )
    weigh(None, reweighter=str(tmp_path / "told.pt"), generated=same)
    with pytest.raises(
        ConfigError, match=r"1\.root.*feature 'x' was generated as 'log\(x\)', the reweighter learned .*'x'"
    ):
        weigh(None, reweighter=str(tmp_path / "told.pt"), generated=other, overwrite=True)


def test_calibration_and_mean_factor_are_told(weigh, models):
    arrays = table(seed=5, first=5000)
    arrays["P"][:100] = 99_000  # without a correction: not in the mean factor
    reweighter = Reweighter.load(models / "conditional.pt")
    summary, out = weigh(arrays, generated_weight="w")
    inside = reweighter.in_domain(events(arrays).context)
    factor, w = out["weight"][inside] / arrays["w"][inside], arrays["w"][inside]
    mean = np.average(factor, weights=w)
    error = np.sqrt(np.sum((w * (factor - mean)) ** 2)) / w.sum()
    found = summary.totals.means.overall()
    assert (found.mean, found.error) == pytest.approx((mean, error))
    worst = summary.totals.means.worst()
    assert worst.context in ("p_gev", "charge=-1", "charge=1")
    own = events(arrays).context[inside][:, reweighter.columns.context_names.index(worst.context)]
    chosen = (own > worst.low) & (own <= worst.high) if worst.low > own.min() else own <= worst.high
    assert worst.mean == pytest.approx(np.average(factor[chosen], weights=w[chosen]))
    assert f"mean factor {mean:.4f} +- {error:.4f}" in str(summary)
    assert f"furthest from 1: {worst.mean:.4f}" in str(summary)
    json.dumps(summary.to_dict(), allow_nan=False)


def test_a_smaller_maximum_is_suggested_where_few_events_decide(weigh):
    arrays = table(seed=6, first=5000)
    summary, _ = weigh(arrays, write=unweight_files)
    _, out = weigh(arrays, name="weights.root")
    assert summary.n_kept < 0.3 * N
    assert summary.totals.n_eff > 0.5 * N
    weight, (maximum, kept) = out["weight"], summary.suggested
    assert maximum < weight.max()
    for number, few in ((maximum, True), (0.95 * maximum, False)):
        assert (np.maximum(weight - number, 0).sum() < 0.001 * weight.sum()) == few
    assert kept == pytest.approx(np.minimum(weight, maximum).sum() / maximum)
    assert f"HINT: few events have the largest weights; --max_factor {maximum:.3g} would keep" in str(summary)
    enough, _ = weigh(arrays, write=unweight_files, max_factor=1.5, name="enough.root")
    assert enough.n_kept > 0.3 * N
    assert enough.suggested is None
    assert "HINT" not in str(enough)


def test_chunks_change_nothing(weigh, monkeypatch):
    arrays = table(seed=6, first=N // 2)  # half of the keys were trained on
    _, whole = weigh(arrays, normalization="reference")
    monkeypatch.setattr(root.RootFiles.chunks, "__kwdefaults__", {"rows": 97})
    _, pieces = weigh(arrays, normalization="reference", name="pieces.root")
    np.testing.assert_allclose(pieces["weight"], whole["weight"], rtol=1e-5)


def test_several_files_and_order(weigh, source, tmp_path):
    arrays = table(seed=6, first=5000)
    _, whole = weigh(arrays)
    order = np.random.default_rng(0).permutation(N)
    for number, rows in enumerate(np.split(order, 3)):
        source({name: array[rows] for name, array in arrays.items()}, f"part_{number}.root")
    _, parts = weigh(arrays, generated=tmp_path / "part_*.root", name="parts.root")
    np.testing.assert_allclose(parts["weight"], whole["weight"][order], rtol=1e-5)


def test_in_place(weigh, source, tmp_path):
    arrays = table(seed=6, first=5000)
    _, expected = weigh(arrays)
    path = source(arrays, "mine.root")
    path.chmod(0o640)
    (tmp_path / "link.root").symlink_to(path)
    (tmp_path / ".mine.root.123.part").write_text("left over by a killed process")
    options = {"generated": tmp_path / "link.root", "output": None, "in_place": True}
    summary, out = weigh(None, **options)
    assert summary.output == path
    assert (tmp_path / "link.root").is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert out["weight"].tobytes() == expected["weight"].tobytes()
    with pytest.raises(ConfigError, match="has a branch 'weight' already; choose another one with --branch"):
        weigh(None, **options)
    with pytest.raises(ConfigError, match=r"'2 \* weight' is made of the branch 'weight' that would be replaced"):
        weigh(None, **options, replace_branch=True, generated_weight="2 * weight")
    assert read(path)["weight"].tobytes() == expected["weight"].tobytes()
    weigh(None, **options, replace_branch=True, generated_weight="w")
    assert list(read(path)) == [*arrays, "weight"]
    np.testing.assert_allclose(read(path)["weight"], arrays["w"] * expected["weight"])


def test_what_would_be_lost_in_place_is_an_error(weigh, source):
    arrays = table(100)
    options = {"output": None, "in_place": True}
    path = source(arrays, others={"counts": np.histogram(arrays["x"]), "folder/note": "kept"})
    with pytest.raises(ConfigError, match="holds counts, folder, folder/note, which would be lost in place"):
        weigh(None, generated=path, **options)
    jagged = source({name: arrays[name] for name in arrays if name != "cells"}, "jagged.root")
    with uproot.recreate(jagged) as file:
        import awkward as ak

        hits = ak.Array([[1.0] * (i % 3) for i in range(100)])
        file["events"] = {**{name: array for name, array in arrays.items() if name != "cells"}, "hits": hits}
    with pytest.raises(BranchError, match=r"branches hits are not one number .*lost in place"):
        weigh(None, generated=jagged, **options)
    with pytest.warns(CalorefineWarning, match="branches hits are not one number .*they are left out"):
        _, out = weigh(None, generated=jagged)
    assert "hits" not in out


def test_unweight(weigh):
    arrays = table(seed=6, first=5000)
    weighed, out = weigh(arrays, generated_weight="w")
    w = out["weight"]
    summary, kept = weigh(arrays, write=unweight_files, generated_weight="w", seed=3, name="kept.root")
    assert list(kept) == list(arrays)
    assert summary.n_kept == len(kept["x"])
    assert summary.maximum == pytest.approx(w.max())
    assert summary.n_kept == pytest.approx(w.sum() / w.max(), abs=4 * np.sqrt(w.sum() / w.max()))
    draw = keys.uniform(keys.stream(events(arrays).key, "unweight 1", seed=3))
    np.testing.assert_array_equal(kept["event"], arrays["event"][draw < w / w.max()])
    expected = np.average(arrays["x"], weights=w)
    assert kept["x"].mean() == pytest.approx(expected, abs=4 * kept["x"].std() / np.sqrt(summary.n_kept))
    assert f"{summary.n_kept} of {N} events kept" in str(summary)
    assert read_provenance(summary.output)["unweight"]["seed"] == 3
    assert weighed.totals.n_outside == summary.totals.n_outside
    for write in (apply_reweighter, unweight_files):
        with pytest.raises(ConfigError, match=r"kept\.root.*: these events were corrected by conditional\.pt already"):
            weigh(arrays, write=write, generated=summary.output, name="again.root")


def test_unweight_with_a_given_maximum_goes_by_event(weigh):
    arrays = table(seed=6, first=5000)
    options = {"write": unweight_files, "max_factor": 1.2}
    summary, kept = weigh(arrays, **options)
    order = np.random.default_rng(1).permutation(N)[:500]
    _, some = weigh({name: array[order] for name, array in arrays.items()}, name="some.root", **options)
    assert set(some["event"]) == set(kept["event"]) & set(arrays["event"][order])
    assert summary.n_above > 0
    assert f"{summary.n_above} events have a weight above --max_factor" in str(summary)


def test_copies_are_decided_on_their_own(weigh):
    arrays = {name: np.repeat(array[:500], 2, axis=0) for name, array in table(first=5000).items()}
    arrays["copy"] = np.tile(np.arange(2, dtype=np.int32), 500)
    _, kept = weigh(arrays, write=unweight_files)
    numbers = np.bincount(kept["event"] - 5000)
    assert (numbers == 1).sum() > 50


@pytest.mark.filterwarnings("ignore::calorefine.errors.KeyWarning")
def test_without_key_branches(weigh, source):
    arrays = {name: array for name, array in table().items() if name not in ("run", "event")}
    with pytest.warns(KeyWarning, match="identified by file name and row"):
        weigh(arrays)
    with pytest.warns(KeyWarning, match=r"trained\.root: .*known by branches, now by rows: .* not cross-fitted"):
        weigh(arrays, generated=source(arrays, "trained.root"), overwrite=True)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"P": None}, {}, BranchError, r"no branch 'P' of the context, .* --pass_through run,event,P,charge"),
        ({"x": None}, {}, BranchError, r"new\.root, tree 'events': there is no branch 'x'"),
        ({"P": [np.nan]}, {}, ValueRangeError, r"in 1 rows \(p_gev: 1\)"),
        ({"charge": [3]}, {"model": "joint"}, ValueRangeError, "context 'charge': 1 of [0-9]+ events have values"),
        ({}, {"generated_weight": "ww"}, BranchError, r"no branch 'ww'; did you mean 'w'"),
        ({}, {"tree": "Events"}, FileError, "holds no tree 'Events'; did you mean 'events'"),
        ({}, {"generated": "nothing.root"}, FileError, r"nothing\.root: no such file"),
        ({}, {"reweighter": "no.pt"}, CheckpointError, r"no\.pt: no such reweighter"),
        ({}, {"branch": "k"}, ConfigError, "has a branch 'k' already"),
        ({}, {"output": None}, ConfigError, "output: none given, expected the ROOT file to write, or --in_place"),
        ({}, {"in_place": True}, ConfigError, "found together with in_place"),
        ({}, {"output": "/no/such/folder/o.root"}, FileError, "there is no folder '/no/such/folder'"),
        ({"w": [-1.0]}, {"generated_weight": "w", "write": unweight_files}, WeightError, "1 events have a negative"),
        ({}, {"max_factor": 0.0, "write": unweight_files}, ConfigError, "max_factor: 0.0 found, expected a positive"),
        ({}, {"max_factor": 1e9, "write": unweight_files}, EmptySelectionError, "none of 300 events is kept; lower"),
        ({}, {"generated_weight": "w * 0", "normalization": "reference"}, WeightError, r"new\.root.*sum to 0"),
    ],
)
def test_bad_input_is_one_error_and_leaves_nothing(weigh, tmp_path, change, options, error, message):
    arrays = table(300)
    for name, first in change.items():
        if first is None:
            del arrays[name]
        else:
            arrays[name] = np.concatenate([first, arrays[name][len(first) :]])
    with pytest.raises(error, match=message):
        weigh(arrays, **options)
    assert {path.name for path in tmp_path.iterdir()} <= {"new.root"}


def test_outputs_that_are_inputs_or_exist(weigh, source, models, tmp_path):
    path = source(table(300))
    before = path.read_bytes()
    (tmp_path / "link.root").symlink_to(path)
    for write in (apply_reweighter, unweight_files):
        for name in ("new.root", "link.root"):
            with pytest.raises(ConfigError, match=r"is both input .* and output"):
                weigh(None, generated=path, name=name, write=write, overwrite=True)
    with pytest.raises(ConfigError, match=r"conditional\.pt: is both input"):
        weigh(None, generated=path, output=str(models / "conditional.pt"), overwrite=True)
    assert path.read_bytes() == before
    (tmp_path / "out.root").write_text("precious")
    with pytest.raises(ConfigError, match=r"out\.root: exists already"):
        weigh(None, generated=path)


def test_unreadable_reweighters(weigh, tmp_path, models):
    (tmp_path / "text.pt").write_text("no reweighter")
    torch.save({"other": 1}, tmp_path / "other.pt")
    for name in ("text.pt", "other.pt"):
        with pytest.raises(CheckpointError, match=f"{name}: not a .*reweighter"):
            weigh(table(100), reweighter=str(tmp_path / name))
    one = Reweighter.load(models / "joint.pt")
    one.provenance = {}
    one.save(tmp_path / "silent.pt")
    with pytest.raises(ConfigError, match="the reweighter doesn't tell the sum of the reference's weights"):
        weigh(table(100), reweighter=str(tmp_path / "silent.pt"), normalization="reference")


def test_in_place_of_several_files_or_none(weigh, source, tmp_path):
    for number in range(2):
        source(table(100, first=100 * number), f"part_{number}.root")
    with pytest.raises(ConfigError, match="2 files found, expected one with --in_place true"):
        weigh(None, generated=tmp_path / "part_*.root", output=None, in_place=True)
    empty = source({name: array[:0] for name, array in table(1).items()}, "empty.root")
    for write in (apply_reweighter, unweight_files):
        with pytest.raises(EmptySelectionError, match="the tree has no rows, expected generated events"):
            weigh(None, generated=empty, write=write)


KILLED = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np, torch, uproot
from calorefine.verbs.reweight_apply import apply_reweighter
torch.set_num_threads(1)
reweighter, original, folder, in_place = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "in_place"
options = {"output": None, "in_place": True} if in_place else {"output": str(folder / "out.root"), "overwrite": True}
target = folder / ("mine.root" if in_place else "out.root")

def write():
    apply_reweighter(reweighter=reweighter, generated=str(folder / "mine.root"), **options)

def state(expected):
    if not target.exists():
        return "absent"
    if target.read_bytes() == original.read_bytes():
        return "old"
    with uproot.open(target) as file:
        found = file["events"].arrays(library="np")
        assert "calorefine_provenance" in file
    assert set(found) == set(expected) and all(np.array_equal(found[name], expected[name]) for name in expected)
    return "new"

for _ in range(2):  # the second time tells how long it takes
    shutil.copy(original, folder / "mine.root")
    start = time.monotonic()
    write()
    seconds = time.monotonic() - start
with uproot.open(target) as file:
    expected = file["events"].arrays(library="np")
random.seed(7)
for trial in range(20):
    target.unlink(missing_ok=True)
    shutil.copy(original, folder / "mine.root")
    child = os.fork()
    if child == 0:
        write()
        os._exit(0)
    time.sleep(random.uniform(0, 1.2) * seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    parts = list(folder.glob(".*.part"))
    print(json.dumps({"killed": os.WIFSIGNALED(status), "parts": len(parts), "state": state(expected)}), flush=True)
    for part in parts[1:]:
        part.unlink()  # one stays for the next runs
"""


@pytest.mark.parametrize("mode", ["in_place", "copy"])
def test_killed_while_writing(models, source, tmp_path, mode):
    """At any moment the path holds what it held before, or the complete new file with all rows."""
    big = source(table(100_000, seed=8), "big.root")
    command = [sys.executable, "-c", KILLED, str(models / "conditional.pt"), str(big), str(tmp_path), mode]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == 20
    before = "old" if mode == "in_place" else "absent"
    assert {one["state"] for one in trials} <= {before, "new"}
    assert sum(one["killed"] for one in trials) >= 10
    assert max(one["parts"] for one in trials) > 0
    assert all(one["state"] == "new" for one in trials if not one["killed"])
    assert before in {one["state"] for one in trials}


def test_error_in_the_middle_leaves_the_old_file(weigh, source, monkeypatch, tmp_path):
    arrays = table(300)
    arrays["x"][-1] = np.inf
    path = source(arrays)
    before = path.read_bytes()
    monkeypatch.setattr(root.RootFiles.chunks, "__kwdefaults__", {"rows": 50})
    with pytest.raises(CalorefineError):
        weigh(None, generated=path, output=None, in_place=True)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["new.root"]


def test_copies_of_a_condition_count_once_in_errors(models):
    """Every event four times, with the same factor: the errors of the mean factor are those of one copy."""
    reweighter = Reweighter.load(models / "conditional.pt")
    rng = np.random.default_rng(3)
    context, factor = events(table()).context, rng.uniform(0.5, 2, N)
    found = []
    for copies in (1, 4):
        means = MeanFactors(reweighter)
        rows = np.tile(np.arange(N), copies)
        means.add(context[rows], np.ones(len(rows)), factor[rows], rows.astype(np.uint64))
        found.append([(part.mean, part.error) for part in (means.overall(), means.worst())])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)
