"""What the benchmarks of showers do with any file of the CaloChallenge, on small ones."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from calorefine.binning import read_geometry

ROOT = Path(__file__).resolve().parent.parent


def benchmark(name):
    """A module of the folder `benchmarks`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def layouts():
    return benchmark("shower_layouts")


@pytest.fixture
def showers(monkeypatch, tmp_path):
    """The module, with a training of an epoch, small classifiers of few rows and few calls to time."""
    module = benchmark("showers")
    columns = "photon_columns.yaml"
    (tmp_path / columns).write_text((module.CONFIGS / columns).read_text())
    told = yaml.safe_load((module.CONFIGS / "shower_flow.yaml").read_text())
    told["trainer"]["max_epochs"] = 1
    told["data"] |= {"batch_size": 64, "preprocessing": {"class_path": "Showers", "init_args": {"epochs": 1}}}
    (tmp_path / "shower_flow.yaml").write_text(yaml.safe_dump(told))
    monkeypatch.setattr(module, "CONFIGS", tmp_path)
    for name in ("SMALL", "CHALLENGE"):
        monkeypatch.setattr(module, name, replace(getattr(module, name), hidden=(16,), epochs=2))
    monkeypatch.setattr(module, "BATCHES", {1: 1, 10: 1})
    return module


@pytest.mark.parametrize("voxels", [368, 533])
def test_layouts_of_the_challenge(layouts, voxels, tmp_path):
    assert layouts.round_trip(voxels, tmp_path, n=900) == 1
    xml = tmp_path / f"binning_{voxels}.xml"
    reference, geometry = layouts.Voxels.of(xml), read_geometry(xml)
    cells = layouts.drawn(reference, 10, 1)["showers"]
    assert layouts.same_observables(cells, geometry, reference)
    turned = replace(reference, alpha=-reference.alpha, r_mm=-reference.r_mm)
    assert not layouts.same_layers(geometry, turned)
    assert not layouts.same_observables(cells, geometry, turned)


def test_any_file_of_the_challenge(layouts, showers, tmp_path):
    """Trained and judged: conditions are those of the judging showers, and figures have the names that they should."""
    xml = layouts.write_binning(tmp_path / "binning.xml", 368)
    path = layouts.write_showers(tmp_path / "showers.h5", layouts.Voxels.of(xml), 600)
    sample = showers.Sample(path, xml, "photon", 0.01515)
    assert sample.geometry.n_cells == 368
    reference = sample.judges()
    assert len(reference.key) + sample.trains.sum() == 600
    np.testing.assert_array_equal(sample.conditions(5, 1)["e_inc_gev"], reference.e_inc[:5] / 1000)
    told = showers.judged("coupling", 1, sample, tmp_path, None)
    found = showers.figures({"coupling": [told]})
    for name in ("lin", "frame", "high", "challenge_low", "challenge_high"):
        assert 0 < found[f"auc_coupling_{name}"] == found[f"auc_flow_{name}"] <= 1
    assert found["jsd_coupling_challenge_low"] is not None
    assert found["ms_flow_10"] > 0
    assert told == showers.judged("coupling", 1, sample, tmp_path, None)  # as it was kept


def test_width_over_all(showers):
    """Of a reference, and of showers whose response fluctuates by a tenth more."""
    rng = np.random.default_rng(1)
    geometry, n = showers.GEOMETRY, 2000
    e_inc = np.exp(rng.uniform(7, 9.5, n))

    def drawn(width):
        cells = np.zeros((n, geometry.n_cells), np.float32)
        cells[:, 300] = e_inc * (0.2 + width * rng.normal(size=n) / np.sqrt(e_inc / 1000))
        return showers.Showers(cells, e_inc, np.ones(n), np.arange(n, dtype=np.uint64), np.empty((n, 0)))

    value, error = showers.width_over_all(drawn(0.022), drawn(0.02), geometry)
    assert error == pytest.approx(1 / np.sqrt(n), rel=0.1)  # two widths, each known to 1 / sqrt(2 n)
    assert abs(value - 0.1) < 5 * error


def test_gap_is_left_out_of_training(showers, tmp_path):
    path = ROOT / "examples" / "data" / "photon_showers.h5"
    told = showers.configuration("coupling_gap", showers.Sample(path), tmp_path)
    assert told["data"]["columns"]["cut"] == "(incident_energies < 3000.0) || (incident_energies > 5500.0)"
    assert "cut" not in showers.configuration("coupling", showers.Sample(path), tmp_path)["data"]["columns"]
    points = {"mean_4": 0.01, "mean_error_4": 0.004, "width_4": -0.02, "width_error_4": 0.03}
    found = showers.figures({"coupling_gap": [{"points": points}]})
    assert found == {f"response_gap_{name}": value for name, value in points.items()}
