"""Shower files: the layouts that are read, what is written, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import awkward as ak
import h5py
import numpy as np
import pytest
import torch
import uproot

from calorefine import Column, Columns, EventDataModule, Simulator
from calorefine.errors import (
    BranchError,
    CalorefineWarning,
    ConfigError,
    FileError,
    KeyWarning,
    ValueRangeError,
)
from calorefine.geometry import segmented
from calorefine.io.chunks import Request
from calorefine.io.formats import open_source
from calorefine.io.provenance import PROVENANCE, read_provenance
from calorefine.io.rewrite import rewriting
from calorefine.io.root import RootFiles
from calorefine.io.shower_checks import check_showers
from calorefine.io.showers import ShowerFiles
from calorefine.io.writer import write_tree
from calorefine.models import MODELS
from calorefine.verbs.sample import sample_file

CALORIMETER = segmented([(3, 96), (12, 12), (12, 6)], (480.0, 480.0), 0.1)
GRIDS = [(3, 96), (12, 12), (12, 6)]


def made(n, cells, *, fraction=0.19, seed=1):
    """Showers in MeV that hold this fraction of the incident energies."""
    rng = np.random.default_rng(seed)
    energies = rng.uniform(1000, 16000, (n, 1)).astype(np.float32)
    showers = rng.exponential(size=(n, cells)) * (rng.random((n, cells)) < 0.2)
    showers *= fraction * energies / np.maximum(showers.sum(axis=1, keepdims=True), 1e-9)
    return {"incident_energies": energies, "showers": showers.astype(np.float32)}


def write_h5(path, datasets, *, group="/", **options):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.require_group(group).create_dataset(name, data=values, **options)
    return path


@pytest.fixture
def h5(tmp_path):
    """Function that writes datasets to a file in the test's folder."""

    def write(datasets, name="x.h5", **options):
        return write_h5(tmp_path / name, datasets, **options)

    return write


@pytest.fixture
def calogan():
    rng = np.random.default_rng(3)
    layers = {f"layer_{k}": rng.exponential(size=(50, *grid)) for k, grid in enumerate(GRIDS)}
    return {"energy": rng.uniform(1, 100, (50, 1)), **layers, "overflow": rng.random((50, 3))}


def rows(path, request, tree="/", **options):
    """All rows in one chunk."""
    chunks = list(open_source(str(path), tree).chunks(request, **options))
    return {
        name: np.concatenate([{**chunk.branches, **chunk.values}[name] for chunk in chunks])
        for name in [*request.branches, *request.expressions]
    }


def written(path, parts, provenance=None):
    with write_tree(path, "/") as writer:
        for part in parts:
            writer.extend(part)
        writer.finish(provenance or {})
    return path


@pytest.mark.parametrize("cells", [368, 533, 6480])
def test_round_trip(tmp_path, cells):
    tables = [made(n, cells, seed=n) for n in (70, 1, 30)]
    beside = [
        {"entry_mm": np.float32(np.arange(2 * len(t["showers"])).reshape(-1, 2)), "run": np.full(len(t["showers"]), 7)}
        for t in tables
    ]
    path = written(tmp_path / "out.h5", [t | b for t, b in zip(tables, beside, strict=True)])
    with h5py.File(path) as file:
        assert set(file) == {"incident_energies", "showers", "entry_mm", "run"}
        assert file["incident_energies"].shape == (101, 1)
        assert file["showers"].shape == (101, cells)
        assert {file[name].dtype for name in ("incident_energies", "showers")} == {np.dtype("<f4")}
        assert all(file[name].compression == "gzip" and file[name].fletcher32 for name in file)
    request = Request({"e": "incident_energies"}, branches=["showers", "entry_mm", "run"])
    found = rows(path, request, rows=33)
    assert np.array_equal(found["e"], np.concatenate([t["incident_energies"] for t in tables])[:, 0])
    assert np.array_equal(found["showers"], np.concatenate([t["showers"] for t in tables]))
    assert np.array_equal(found["entry_mm"], np.concatenate([b["entry_mm"] for b in beside]))
    assert found["run"].dtype == np.int64


def test_large_showers_in_little_memory(tmp_path, monkeypatch):
    """40 500 voxels: 100 showers are 16 MB, of which no more than a few chunks of 2 MB are held at a time."""
    cells, n, parts = 40500, 10, 10
    monkeypatch.setattr("calorefine.io.chunks.CHUNK_CELLS", 2**19)
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    shower = np.zeros((n, cells), np.float32)
    shower[:, ::1000] = 3.0

    def stream():
        written(
            first,
            ({"incident_energies": np.full(n, 1000.0 + k), "showers": shower + (shower > 0) * k} for k in range(parts)),
        )
        source = open_source(str(first), "/")
        with rewriting(source, Request({"t": "sum(showers)"}), second, adds=["total"]) as copy:
            for chunk in copy.chunks():
                copy.extend(chunk, {"total": chunk.values["t"]})
            copy.finish({})

    tracemalloc.start()
    stream()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 11e6
    with h5py.File(second) as file:
        assert file["showers"].shape == (n * parts, cells)
        assert np.array_equal(file["total"][::n], 41 * (3.0 + np.arange(parts)))
        assert np.array_equal(file["showers"][-1], shower[0] + (shower[0] > 0) * (parts - 1))


def test_layout_of_this_projects_geant4_files(h5):
    table = made(40, 504)
    entry = np.random.default_rng(5).uniform(-20, 20, (40, 2)).astype(np.float32)
    path = h5({**table, "entry_mm": entry}, chunks=True, compression="gzip")
    source = open_source(str(path), "/")
    assert isinstance(source, ShowerFiles)
    assert source.told() == {"files": ["x.h5"], "tree": "/"}
    assert source.n_entries() == 40
    assert source.branch_names("number") == ["incident_energies"]
    assert source.branch_names("array") == ["entry_mm", "showers"]
    texts = {"e": "incident_energies * 0.001", "x": "entry_mm[0]", "total": "sum(showers)", "hot": "count(showers > 1)"}
    request = Request({**texts, "cells": "showers"}, shapes={"cells": (504,)}, cut="entry_mm[1] > 0")
    found, keep = rows(path, request), entry[:, 1] > 0
    showers = table["showers"].astype(float)[keep]
    assert 0 < keep.sum() < 40
    assert np.array_equal(found["x"], entry[keep, 0])
    assert np.array_equal(found["cells"], table["showers"][keep])
    np.testing.assert_allclose(found["e"], table["incident_energies"][keep, 0] * 0.001, rtol=1e-6)
    np.testing.assert_allclose(found["total"], showers.sum(axis=1))
    np.testing.assert_allclose(found["hot"], (showers > 1).sum(axis=1))
    check_showers(table["showers"], table["incident_energies"], CALORIMETER, where=str(source))


def test_keys_go_by_file_and_row(h5):
    h5(made(5, 4), "a.h5"), h5(made(7, 4), "b.h5")
    request = Request({"e": "incident_energies"})
    folder = str(h5(made(2, 4), "c.h5").parent)
    whole = np.concatenate([c.key for c in open_source([f"{folder}/a.h5", f"{folder}/b.h5"], "/").chunks(request)])
    parts = np.concatenate([c.key for c in open_source(f"{folder}/[ab].h5", "/").chunks(request, rows=3)])
    assert np.array_equal(whole, parts)
    assert len(np.unique(whole)) == 12


def test_calogan(h5, calogan):
    path = h5(calogan)
    source = open_source(str(path), "/")
    assert set(source.branch_names()) == set(calogan)
    assert set(source.branch_paths()) == {*calogan, "showers", "incident_energies"}
    request = Request({"e": "incident_energies", "t": "sum(showers)"}, branches=["showers", "layer_1"])
    found = rows(path, request, rows=7)
    assert np.array_equal(found["e"], calogan["energy"][:, 0] * 1000)
    showers = np.concatenate([calogan[f"layer_{k}"].reshape(50, -1) for k in range(3)], axis=1)
    assert showers.shape == (50, 504)
    assert np.array_equal(found["showers"], showers)
    assert np.array_equal(found["layer_1"], calogan["layer_1"])
    np.testing.assert_allclose(found["t"], showers.sum(axis=1))


def test_own_datasets_win_over_made_ones(h5, calogan):
    path = h5({**calogan, "showers": np.full((50, 3), 7.0)})
    found = rows(path, Request({"e": "incident_energies"}, branches=["showers"]))
    assert np.array_equal(found["showers"], np.full((50, 3), 7.0))
    assert np.array_equal(found["e"], calogan["energy"][:, 0] * 1000)


def test_types_and_groups(h5):
    datasets = {
        "big": np.arange(6, dtype=">f8"),
        "half": np.arange(6, dtype="<f2"),
        "flag": np.arange(6) % 2 == 0,
        "id": np.arange(6, dtype=">u8").reshape(6, 1),
        "m": np.arange(24, dtype=">i2").reshape(6, 2, 2),
    }
    path = h5(datasets, group="run/one")
    source = open_source(str(path), "run/one")
    found = rows(path, Request({}, branches=list(datasets)), "run/one")
    assert all(found[name].dtype.isnative for name in found)
    assert {name: found[name].dtype.name for name in ("half", "flag", "id")} == {
        "half": "float32",
        "flag": "bool",
        "id": "uint64",
    }
    for name, values in datasets.items():
        assert np.array_equal(found[name].reshape(values.shape), values)
    assert found["id"].shape == (6,)
    assert source.other_objects() == []


def test_friends_by_row_order(h5, root_file):
    table = made(30, 8)
    h5(table, "main.h5")
    weights = root_file({"w": np.arange(30.0)}, "weights.root")
    source = open_source(str(weights.with_name("main.h5")), "/", [f"{weights}:events"])
    (chunk,) = source.chunks(Request({"t": "sum(showers) * w"}))
    np.testing.assert_allclose(chunk.values["t"], table["showers"].astype(float).sum(axis=1) * np.arange(30), rtol=1e-6)
    other = open_source(str(weights), "events", [f"{weights.with_name('main.h5')}:/"])
    (chunk,) = other.chunks(Request({"e": "incident_energies + w"}))
    np.testing.assert_allclose(chunk.values["e"], table["incident_energies"][:, 0] + np.arange(30))


def test_what_is_not_asked_for_may_be_anything(h5):
    datasets = {
        **made(4, 3),
        "name": np.array([b"a", b"bc", b"d", b"e"]),
        "pair": np.zeros(4, [("x", "f4"), ("y", "i4")]),
        "edges": np.arange(9.0),
        "mass": 0.511,
    }
    path = h5(datasets)
    with h5py.File(path, "a") as file:
        ragged = file.create_dataset("hits", 4, h5py.vlen_dtype(np.float32))
        ragged[:] = [np.ones(k, np.float32) for k in range(4)]
        file["text"] = "about"
        file["gone"] = h5py.SoftLink("/nowhere")
        file.create_group("more")
        file.attrs["particle"] = "gamma"
    source = open_source(str(path), "/")
    assert source.branch_names("number", "array") == ["incident_energies", "showers"]
    assert source.other_objects() == ["more", "particle"]
    list(source.chunks(Request({"e": "incident_energies"})))
    for name, kind in {
        "name": r"text and shape \(4,\)",
        "text": r"text and shape \(\), not a row for each of 4 showers",
        "pair": r"a record and shape \(4,\)",
        "hits": r"lists of any length and shape \(4,\)",
        "edges": r"float64 and shape \(9,\), not a row for each of 4 showers",
        "mass": r"float64 and shape \(\), not a row for each of 4 showers",
    }.items():
        with pytest.raises(
            BranchError, match=rf"x\.h5, tree '/': branch '{name}' is of type .*{kind}, expected one number"
        ):
            list(source.chunks(Request({"a": name})))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("events", "holds no group 'events'; .*expected one of: /, run$"),
        ("rum", "holds no group 'rum'; did you mean 'run'"),
        ("showers", "'showers' is a dataset, not a group"),
        ("run", "holds no dataset with rows, expected 'incident_energies' and 'showers'"),
    ],
)
def test_groups_that_hold_no_showers(h5, tree, message):
    path = h5(made(3, 2))
    with h5py.File(path, "a") as file:
        file.create_group("run")
    with pytest.raises(FileError, match=rf"x\.h5.*{message}"):
        open_source(str(path), tree).n_entries()


def test_missing_dataset(h5):
    table = made(3, 2)
    with pytest.raises(BranchError, match="there is no branch 'shower'; did you mean 'showers'"):
        rows(h5(table), Request({"s": "sum(shower)"}))
    with pytest.raises(BranchError, match="there is no branch 'showers'"):
        rows(h5({"incident_energies": table["incident_energies"]}), Request({"s": "sum(showers)"}))


def test_different_numbers_of_rows(h5):
    path = h5({**made(3, 2), "incident_energies": np.ones((4, 1))})
    with pytest.raises(FileError, match=r"different numbers of rows found \('showers' 3, 'incident_energies' 4\)"):
        open_source(str(path), "/").n_entries()


def test_every_truncation_is_an_error(h5, tmp_path):
    for whole in (h5(made(20, 30)), written(tmp_path / "out.h5", [made(20, 30)])):
        raw = whole.read_bytes()
        for length in [*range(0, len(raw) - 8, len(raw) // 60), *range(len(raw) - 8, len(raw))]:
            cut = tmp_path / "cut.h5"
            cut.write_bytes(raw[:length])
            with pytest.raises(FileError, match=r"cut\.h5: .*(truncated|expected an HDF5 file)"):
                rows(cut, Request({"s": "sum(showers)"}))


def test_longer_than_it_says(h5):
    path = h5(made(3, 2))
    path.write_bytes(path.read_bytes() + b"123")
    with pytest.warns(CalorefineWarning, match=r"x\.h5: \d+ bytes found, \d+ expected from its header"):
        open_source(str(path), "/").n_entries()


def test_not_hdf5(tmp_path, root_file):
    text = tmp_path / "text.h5"
    text.write_text("energy,showers\n1,2\n")
    with pytest.raises(FileError, match=r"text\.h5: a file that begins with b'energy,s' found, expected an HDF5 file"):
        open_source(str(text), "/").n_entries()
    root = root_file({"x": np.zeros(2)}, "really_root.h5")
    with pytest.raises(FileError, match=r"really_root\.h5: a ROOT file found, expected an HDF5 file"):
        open_source(str(root), "/").n_entries()


def test_hdf5_of_another_name(h5):
    assert isinstance(open_source(str(h5(made(2, 2), "showers.dat")), "/"), ShowerFiles)


def test_rows_that_were_never_written(h5):
    path = h5(made(10, 4))
    with h5py.File(path, "a") as file:
        file.create_dataset("late", (10, 4), "f4", chunks=(5, 4))[:5] = 1
        file.create_dataset("never", (10,), "f4")
    for name, message in {"late": "1 of 2 chunks were never written", "never": "40 of 40 bytes were never"}.items():
        with pytest.raises(FileError, match=rf"x\.h5, tree '/': '{name}': .*damaged \({message}"):
            rows(path, Request({}, branches=[name]))


def test_damaged_bytes_of_written_files_are_noticed(tmp_path):
    """A checksum covers every byte that matters."""
    table = made(60, 20)
    whole, path = written(tmp_path / "out.h5", [table]).read_bytes(), tmp_path / "damaged.h5"
    request, noticed = Request({}, branches=["showers", "incident_energies"]), 0
    for at in range(0, len(whole), 201):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            found = rows(path, request)
        except FileError:
            noticed += 1
            continue
        assert np.array_equal(found["showers"], table["showers"]), at
        assert np.array_equal(found["incident_energies"], table["incident_energies"][:, 0]), at
    assert noticed > 5


def test_nan_is_told(h5):
    table = made(10, 4)
    table["showers"][3, 2] = np.nan
    path = h5(table)
    for texts, shapes in (({"s": "showers"}, {"s": (4,)}), ({"s": "sum(showers)"}, {})):
        with pytest.raises(ValueRangeError, match=r"NaN or infinite values in 1 rows \(s: 1\)"):
            rows(path, Request(texts, shapes=shapes))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda t: {"showers": t["showers"][:, :368]},
            BranchError,
            r"'showers' has 368 voxels \(as photons of data set 1 .*the geometry 504 voxels \(as CaloGAN\)",
        ),
        (
            lambda t: {"showers": t["showers"][:-1]},
            BranchError,
            r"'showers' of shape \(19, 504\) and 20 'incident_energies'",
        ),
        (lambda t: {"showers": t["showers"].reshape(20, 4, 126)}, BranchError, r"shape \(20, 4, 126\)"),
        (
            lambda t: {"showers": np.where(t["showers"] == t["showers"][7].max(), -1, t["showers"])},
            ValueRangeError,
            r"'showers' has energies that are negative in 1 of 20 rows .*, first -1.000 in row 7; expected 0 or more",
        ),
        (
            lambda t: {"showers": t["showers"] * np.nan},
            ValueRangeError,
            "'showers' has energies that are NaN or infinite in 20 of 20",
        ),
        (
            lambda t: {"incident_energies": t["incident_energies"] * 0},
            ValueRangeError,
            "'incident_energies' .* not positive",
        ),
        (
            lambda t: {"incident_energies": t["incident_energies"] * np.inf},
            ValueRangeError,
            "'incident_energies' .* NaN or infinite",
        ),
        (
            lambda t: {"incident_energies": t["incident_energies"] / 1000},
            ValueRangeError,
            "'incident_energies' look like GeV; expected MeV in both",
        ),
        (lambda t: {"showers": t["showers"] / 1000}, ValueRangeError, "'showers' look like GeV; expected MeV in both"),
        (
            lambda t: {name: values / 1000 for name, values in t.items()},
            ValueRangeError,
            "hold 0.1900 of the incident energies, .*: both look like GeV",
        ),
        (lambda t: {"showers": t["showers"] * 0}, ValueRangeError, "all of 20 showers are empty"),
    ],
)
def test_showers_that_cannot_be(change, error, message):
    table = made(20, 504)
    check_showers(**table, geometry=CALORIMETER, where="a.h5")
    with pytest.raises(error, match=rf"a\.h5: .*{message}"):
        check_showers(**{**table, **change(table)}, geometry=CALORIMETER, where="a.h5")


@pytest.mark.parametrize("fraction", [0.01, 0.19, 1.0])
def test_units_of_sound_showers(fraction):
    table = made(50, 368, fraction=fraction)
    check_showers(**table, where="a.h5")
    check_showers(np.zeros((2, 368)), [[256.0], [300.0]], where="a.h5")  # pions may leave nothing


def refused(path, arrays, error, message):
    with pytest.raises(error, match=rf"out\.h5: {message}"):
        written(path, [arrays])
    assert not list(path.parent.iterdir())


def test_outputs_that_are_no_showers(tmp_path):
    table, path = made(4, 3), tmp_path / "out.h5"
    refused(path, {"x": np.zeros(4)}, ConfigError, "found x and no 'incident_energies'; .*ends in .root")
    refused(
        path,
        {"incident_energies": np.ones(4), "shower": table["showers"]},
        ConfigError,
        "found .* and no 'showers'; did you mean 'shower'",
    )
    refused(path, table | {"E/p": np.zeros(4)}, ConfigError, "branch 'E/p' can't be a dataset")
    refused(path, table | {"l": ak.Array([[1], [], [2], [3]])}, ConfigError, "branch 'l' is a list for each event")
    for value in (np.nan, 1e39):
        refused(
            path,
            table | {"showers": np.full((4, 3), value)},
            ValueRangeError,
            "'showers' has NaN or infinite energies in 4 of 4",
        )


def test_calogan_is_copied_with_more_beside(h5, calogan, tmp_path):
    source = open_source(str(h5(calogan)), "/")
    with rewriting(source, Request({"t": "sum(showers)"}), tmp_path / "copy.hdf5", adds=["w"]) as copy:
        for chunk in copy.chunks(rows=20):
            copy.extend(chunk, {"w": chunk.values["t"]})
        copy.finish({"model": "flow"})
    with h5py.File(tmp_path / "copy.hdf5") as file:
        assert set(file) == {*calogan, "w"}
        assert np.array_equal(file["layer_2"], calogan["layer_2"])
    assert read_provenance(tmp_path / "copy.hdf5")["model"] == "flow"


def test_attributes_are_not_lost_in_place(h5):
    path = h5(made(4, 3))
    with h5py.File(path, "a") as file:
        file.attrs["particle"] = "gamma"
    with (
        pytest.raises(ConfigError, match="the file also holds particle, which would be lost in place"),
        rewriting(open_source(str(path), "/"), Request({}), path, adds=["w"], complete=True),
    ):
        pass


def test_to_root_and_back(h5, tmp_path):
    table = made(25, 6)
    source = open_source(str(h5(table)), "/")
    with rewriting(source, Request({}), tmp_path / "copy.root", adds=["w"]) as copy:
        for chunk in copy.chunks():
            copy.extend(chunk, {"w": np.arange(25.0)})
        copy.finish({})
    with uproot.open(tmp_path / "copy.root") as file:
        assert file.classnames()["events;1"] == "TTree"
    with rewriting(RootFiles(str(tmp_path / "copy.root"), "events"), Request({}), tmp_path / "back.h5") as copy:
        for chunk in copy.chunks():
            copy.extend(chunk, {})
        copy.finish({})
    found = rows(tmp_path / "back.h5", Request({"w": "w", "e": "incident_energies"}, branches=["showers"]))
    assert np.array_equal(found["showers"], table["showers"])
    assert np.array_equal(found["e"], table["incident_energies"][:, 0])
    assert np.array_equal(found["w"], np.arange(25))


@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ('{"seed": "a"}', "provenance.seed: 'a' found")])
def test_provenance_of_other_kinds(h5, text, message):
    path = h5(made(2, 2))
    assert read_provenance(path) == {}
    with h5py.File(path, "a") as file:
        file.attrs[PROVENANCE] = text
    with pytest.raises(FileError, match=rf"x\.h5: .*{message}"):
        read_provenance(path)


@pytest.fixture
def shower_checkpoint(h5, tmp_path):
    """A generator of showers, prepared and not trained, and the file that it was prepared with."""
    path = h5(made(400, 6), "training.h5")
    columns = Columns({"showers": Column(shape=[6])}, {"e_gev": Column("incident_energies", branch_unit="MeV")})
    with pytest.warns(KeyWarning):
        data = EventDataModule(files=str(path), tree="/", columns=columns, batch_size=64)
        data.setup()
    torch.manual_seed(3)
    model = next(iter(MODELS.values()))()
    model.prepare(data.prepared)
    checkpoint = tmp_path / "model.ckpt"
    Simulator(model, model.spec).save(checkpoint)
    return checkpoint, path


@pytest.mark.filterwarnings("ignore::calorefine.errors.KeyWarning")
def test_sample_writes_a_shower_file(shower_checkpoint, tmp_path):
    checkpoint, path = shower_checkpoint
    options = {"checkpoint": str(checkpoint), "conditions": str(path)}
    sample_file(**options, output=str(tmp_path / "out.h5"), n_per_event=2)
    sample_file(**options, output=str(tmp_path / "out.root"), pass_through="incident_energies", n_per_event=2)
    with h5py.File(tmp_path / "out.h5") as file, uproot.open(tmp_path / "out.root") as tree:
        assert set(file) == {"incident_energies", "showers", "in_domain", "copy"}
        assert file["incident_energies"].shape == (800, 1)
        assert np.array_equal(file["showers"], tree["events"]["showers"].array(library="np"))
        assert np.array_equal(file["incident_energies"][:, 0], tree["events"]["incident_energies"].array(library="np"))
        told = json.loads(file.attrs[PROVENANCE])
    assert (told["verb"], told["n_per_event"]) == ("sample", 2)
    assert read_provenance(tmp_path / "out.h5") == told


@pytest.mark.filterwarnings("ignore::calorefine.errors.KeyWarning")
def test_sample_without_incident_energies(shower_checkpoint, root_file, tmp_path):
    checkpoint, _ = shower_checkpoint
    conditions = root_file({"p": np.linspace(2, 10, 20)}, "conditions.root")
    options = {
        "checkpoint": str(checkpoint),
        "conditions": str(conditions),
        "tree": "events",
        "context": {"e_gev": Column("p")},
    }
    with pytest.raises(ConfigError, match=r"out\.h5: .*no 'incident_energies'"):
        sample_file(**options, output=str(tmp_path / "out.h5"))
    assert not (tmp_path / "out.h5").exists()


FULL = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from calorefine.errors import FileError
from calorefine.io.writer import write_tree
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rng = np.random.default_rng(1)
for limit in (0, 100, 5_000, 100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with write_tree(Path(sys.argv[1]) / "out.h5", "/") as writer:
            for _ in range(5):
                writer.extend({"incident_energies": np.ones(100), "showers": rng.random((100, 200))})
            writer.finish({})
    except FileError as error:
        print(error)
"""


def test_disk_full(tmp_path):
    """HDF5 would end the process where it may not write."""
    process = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("out.h5: can't be written: File too large; expected a place with room") == 4
    assert not list(tmp_path.iterdir())
