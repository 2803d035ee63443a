"""Observables of showers as branches (`shower.width_eta_1`) in the verbs that read files, HDF5 and ROOT."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import uproot
import yaml

from calorefine import Column, Columns, shower_observables
from calorefine.cli import calorefine
from calorefine.errors import BranchError, ValueRangeError
from calorefine.io.chunks import Request
from calorefine.io.formats import open_source
from calorefine.io.sample import WeightedFiles
from calorefine.io.table import read_table
from calorefine.io.writer import write_tree
from calorefine.observables import Mean, Quantile
from calorefine.shower_columns import ShowerColumns
from calorefine.systematics import load
from calorefine.systematics.propagated import Propagated
from calorefine.systematics.variations import Variations
from calorefine.verbs.propagate import propagate_files

ROOT = Path(__file__).parent.parent.parent
N = 700
WIDER = 1.03  # factor on the energies of generated showers' first layer


@pytest.fixture(scope="module")
def columns():
    """Columns of the photon showers, as the shipped file has them."""
    told = yaml.safe_load((ROOT / "configs" / "showers" / "photon_columns.yaml").read_text())
    showers = told["showers"]
    context = {name: Column(**options) for name, options in told["context"].items()}
    return Columns({"showers": Column(shape=[504])}, context, ["row"], showers=ShowerColumns(**showers))


@pytest.fixture(scope="module")
def few():
    """Some showers with a key."""
    with h5py.File(ROOT / "examples" / "data" / "photon_showers.h5") as file:
        return {name: file[name][: 2 * N] for name in file} | {"row": np.arange(2 * N)}


def write_h5(path, table):
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            file.create_dataset(name, data=values)
    return str(path)


@pytest.fixture(scope="module")
def files(few, columns, tmp_path_factory):
    """Reference showers, and others with more energy in their first layer, as a generator writes them."""
    folder = tmp_path_factory.mktemp("files")
    reference = write_h5(folder / "reference.h5", {name: values[:N] for name, values in few.items()})
    made = {name: values[N:] for name, values in few.items()}
    cells = made["showers"].copy()
    cells[:, :288] *= WIDER
    weights = np.random.default_rng(3).poisson(1.0, (N, 20)).astype(np.float64)
    with write_tree(folder / "generated.h5", "/", tree_format="ttree", overwrite=False) as writer:
        writer.extend(made | {"showers": cells, "weight_of_replica": weights})
        writer.finish({"columns": columns.to_dict(), "n_per_event": 1})
    return str(folder / "generated.h5"), reference


@pytest.fixture
def observed(tmp_path):
    """Columns file whose features are observables."""
    told = yaml.safe_load((ROOT / "configs" / "showers" / "photon_columns.yaml").read_text())
    features = {"response": {"expression": "shower.response"}, "width_mm": {"expression": "shower.width_eta_0"}}
    (tmp_path / "observed.yaml").write_text(yaml.safe_dump(told | {"features": features, "key": ["row"]}))
    return str(tmp_path / "observed.yaml")


def expected(name, few, columns, rows=slice(None)):
    cells, energies = few["showers"][rows], few["incident_energies"][rows, 0].astype(np.float64)
    return shower_observables.evaluate(name, cells, columns.showers.calorimeter, energies)


def read(source, columns, texts, **options):
    return read_table(source, Request.of(columns, texts, **options))[0]


def test_every_observable_is_a_branch(few, columns, files):
    """In single expressions and beside other branches, in any number of chunks."""
    names = shower_observables.names(columns.showers.calorimeter)
    source, texts = open_source(files[1], "/"), {name: f"shower.{name}" for name in names}
    table = read(source, columns, texts)
    for name in names:
        np.testing.assert_allclose(table[name], expected(name, few, columns, slice(N)), rtol=1e-12, atol=1e-15)
    request = Request.of(columns, {"y": "shower.e_layer_0 / shower.e_tot + 0 * row"}, cut="shower.response > 0.17")
    chunks = [chunk.values["y"] for chunk in source.chunks(request, rows=97)]
    assert len(chunks) == 8
    response = expected("response", few, columns, slice(N))
    share = (expected("e_layer_0", few, columns) / expected("e_tot", few, columns))[:N]
    np.testing.assert_allclose(np.concatenate(chunks), share[response > 0.17], rtol=1e-12)


def test_root_with_a_fixed_size_branch_in_other_units(few, columns, tmp_path):
    """Cells and incident energies in GeV that are converted; the cells are no feature."""
    table = {"cells": few["showers"][:200] / 1000, "e": few["incident_energies"][:200, 0] / 1000}
    with uproot.recreate(tmp_path / "showers.root") as file:
        file.mktree("events", {name: (array.dtype, array.shape[1:]) for name, array in table.items()}).extend(table)
    told = ShowerColumns(columns.showers.geometry, "e_gev", ["x_mm", "y_mm"], cells="cells * 1000")
    context = {"e_gev": Column("e"), "x_mm": Column("0 * e"), "y_mm": Column("0 * e")}
    described = Columns({"w": Column("shower.width_eta_1")}, context, showers=told)
    source = open_source(str(tmp_path / "showers.root"), "events")
    with pytest.warns(match="no key branches"):
        table = read(source, described, {"r": "shower.response", **described.expressions("features")})
    np.testing.assert_allclose(table["r"], expected("response", few, columns, slice(200)), rtol=1e-5)
    np.testing.assert_allclose(table["w"], expected("width_eta_1", few, columns, slice(200)), rtol=1e-3)


def test_a_branch_of_that_name_wins(columns, tmp_path):
    path = write_h5(tmp_path / "a.h5", {"shower.e_tot": np.arange(9.0), "row": np.arange(9)})
    table = read(open_source(path, "/"), columns, {"a": "shower.e_tot", "b": "2 * shower.e_tot"})
    np.testing.assert_array_equal(table["a"], np.arange(9.0))
    np.testing.assert_array_equal(table["b"], 2 * np.arange(9.0))


def test_what_is_refused(few, columns, files, tmp_path):
    source = open_source(files[1], "/")
    with pytest.raises(BranchError, match=r"'shower.e_tot' \(asked for by column 'e'\): nothing tells where the cells"):
        list(source.chunks(Request({"e": "shower.e_tot"})))
    with pytest.raises(BranchError, match=r"no observable 'shower.width_et_1' of showers.*did you mean 'shower.wid"):
        read(source, columns, {"w": "shower.width_et_1"})
    path = write_h5(tmp_path / "b.h5", {name: few[name][:20] for name in ("incident_energies", "row")})
    with pytest.raises(BranchError, match=r"no branch 'showers'.*\(asked for by the cells of the showers\)"):
        read(open_source(path, "/"), columns, {"w": "shower.e_tot"})


def test_a_shower_with_nan_has_nan(few, columns, tmp_path):
    """It can be left out, or is counted, as any other NaN; observables that need no other column are enough."""
    table = {name: values[:50].copy() for name, values in few.items()}
    table["showers"][7, 3] = np.nan
    source = open_source(write_h5(tmp_path / "nan.h5", table), "/")
    with pytest.raises(ValueRangeError, match=r"NaN or infinite values in 1 rows \(w: 1\)"):
        read(source, columns, {"w": "shower.width_eta_1"})
    with pytest.warns(match="left out 1 of the selected rows"):
        assert len(read(source, columns, {"w": "shower.width_eta_1"}, nonfinite="drop")["w"]) == 49
    assert len(read(source, columns, {"w": "shower.width_eta_1"}, cut="row != 7")["w"]) == 49


def test_generated_showers_may_be_bad_ones(few, columns, tmp_path):
    """A reference in GeV is refused, whatever is read of its cells; a generator that makes as little is measured."""
    table = {name: values[:50] for name, values in few.items()}
    table["showers"] = table["showers"] / 1000
    reference = WeightedFiles(write_h5(tmp_path / "gev.h5", table), "/")
    with write_tree(tmp_path / "made.h5", "/", tree_format="ttree", overwrite=False) as writer:
        writer.extend(table)
        writer.finish({"columns": columns.to_dict()})
    made = WeightedFiles(str(tmp_path / "made.h5"), "/")
    for texts in (columns.expressions("features", "context"), {"r": "shower.response"}, {"w": "shower.width_eta_0"}):
        with pytest.raises(ValueRangeError, match=r"gev.h5, tree '/': .*'showers' look like GeV"):
            reference.rows(reference.request(columns, texts))
        assert len(made.rows(made.request(columns, texts))) == 50


def test_validate(files, observed, tmp_path):
    """With observables as features, of the generated file and of the reference."""
    generated, reference = files
    told = ["--columns", observed, "--tree", "/", "--output", str(tmp_path / "v.json"), "--repetitions", "1"]
    calorefine(["validate", "--generated.files", generated, "--reference.files", reference, *told])
    found = json.loads((tmp_path / "v.json").read_text())
    assert {"response", "width_mm"} <= set(found["distances"])
    assert found["generated"]["n"] == found["reference"]["n"] == N


def test_reweight(files, observed, tmp_path):
    """Weights learned on observables bring the mean response back; cells that nothing else reads are enough."""
    generated, reference = files
    fit = ["--generated", generated, "--reference", reference, "--columns", observed, "--tree", "/"]
    fit += ["--estimator", "BoostingRatio", "--estimator.n_trees", "30", "--output", str(tmp_path / "r.pt")]
    calorefine(["reweight", *fit])
    apply = ["--apply", str(tmp_path / "r.pt"), "--generated", generated, "--tree", "/"]
    calorefine(["reweight", *apply, "--output", str(tmp_path / "weighted.h5")])
    weighted = WeightedFiles(str(tmp_path / "weighted.h5"), "/", "weight")
    rows = weighted.rows(weighted.request(None, {"r": "shower.response"}))
    target = WeightedFiles(reference, "/").within("/", weighted.columns)
    mean = target.rows(target.request(None, {"r": "shower.response"})).table["r"].mean()
    before, after = rows.table["r"].mean() - mean, np.average(rows.table["r"], weights=rows.weight) - mean
    assert before > 0.001
    assert abs(after) < before / 2


def test_propagate(few, columns, files, tmp_path):
    """Mean and median of the response with replicas, and a truth whose geometry the generated file tells."""
    generated, reference = files
    observables = {
        "mean": Mean("shower.response", "incident_energies / 1000", edges=[1.0, 4.0, 16.0]),
        "median": Quantile("shower.response", "incident_energies / 1000", edges=[1.0, 16.0], levels=[0.5]),
    }
    options = {"truth": WeightedFiles(reference), "calibration": Variations(weights="weight_of_replica"), "tree": "/"}
    summary = propagate_files(nominal=generated, observables=observables, output=str(tmp_path / "s"), **options)
    cells, energies = few["showers"][N:].copy(), few["incident_energies"][N:, 0].astype(np.float64)
    cells[:, :288] *= WIDER
    response = shower_observables.evaluate("response", cells, columns.showers.calorimeter, energies)
    wanted = [response[energies < 4000].mean(), response[energies >= 4000].mean(), np.median(response)]
    np.testing.assert_allclose(summary.systematics.nominal[:2], wanted[:2], rtol=1e-6)
    np.testing.assert_allclose(summary.systematics.nominal[2], wanted[2], rtol=2e-3)
    assert "calibration" in load(tmp_path / "s.npz").sources
    again = Propagated.load(str(tmp_path / "s.npz")).truth(WeightedFiles(reference), "/")
    truth = expected("response", few, columns, slice(N))
    low = few["incident_energies"][:N, 0] < 4000
    np.testing.assert_allclose(again.values[:2], [truth[low].mean(), truth[~low].mean()], rtol=1e-6)
    assert summary.biases


def test_plot_and_files_that_do_not_tell(files, tmp_path):
    generated, reference = files
    told = ["--features", "[shower.response, shower.depth]", "--tree", "/"]
    pair = ["--generated.files", generated, "--reference.files", reference]
    said = calorefine(["plot", *pair, *told, "--output", str(tmp_path / "a.png")])
    assert "2 features of 700 generated and 700 reference" in str(said)
    both = ["--generated.files", reference, "--reference.files", reference, *told]
    with pytest.raises(BranchError, match=r"nothing tells where the cells of the showers are.*--columns"):
        calorefine(["plot", *both, "--output", str(tmp_path / "b.png")])
    columns = ["--columns", str(ROOT / "configs" / "showers" / "photon_columns.yaml")]
    calorefine(["plot", *both, *columns, "--output", str(tmp_path / "b.png")])
    assert (tmp_path / "b.png").exists()
