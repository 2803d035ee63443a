"""The three files: what ROOT tools, pyhf, cabinetry and numpy read."""

from __future__ import annotations

import json

import cabinetry
import hist
import numpy as np
import pyhf
import pytest
import uproot

from calorefine.errors import ConfigError, FileError
from calorefine.io.provenance import PROVENANCE, read_provenance
from calorefine.systematics import Fit, ObservableBins, assemble, load, save
from calorefine.systematics.output import require_same

# pyhf 0.7's use of jsonschema:
pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")

SIGNAL = {"e_over_p": [0, 0, 50, 200, 200, 50, 0, 0], "p_gev": [250, 150, 75, 25]}


@pytest.fixture
def saved(systematics, tmp_path):
    """The example in files."""
    return save(systematics, tmp_path / "systematics", fit=Fit(signal=SIGNAL), provenance={"command": "propagate"})


@pytest.fixture
def with_remainder(systematics, tmp_path, monkeypatch):
    """The same with fewer shapes, by their share of the trace alone."""
    monkeypatch.setattr("calorefine.systematics.principal_components.LEAST_PART", 1.0)
    return save(systematics, tmp_path / "fewer", fit=Fit(signal=SIGNAL))


def test_root_file(systematics, saved):
    parts = systematics.components()
    with uproot.open(saved.root) as file:
        for name, bins in systematics.bins.items():
            where = systematics.part(name)
            nominal = file[f"{name}/nominal"]
            assert nominal.classname == "TH1D"
            assert nominal.member("fXaxis").member("fTitle") == (
                f"{bins.title} [{bins.unit}]" if bins.unit else "E / p"
            )
            np.testing.assert_allclose(nominal.axis().edges(), bins.edges)
            np.testing.assert_allclose(nominal.values(), systematics.nominal[where])
            np.testing.assert_allclose(nominal.errors(), systematics.errors("generated")[where])
            np.testing.assert_allclose(file[f"{name}/nominal_total"].errors(), systematics.errors()[where])
            for part in parts.components:
                up, down = (file[f"{name}/{part.name}{way}"].values() for way in ("Up", "Down"))
                np.testing.assert_allclose((up - down) / 2, part.shape[where], atol=1e-9)
                np.testing.assert_allclose((up + down) / 2, nominal.values())
            assert file[f"{name}/covariance"].classname == "TH2D"
            np.testing.assert_allclose(file[f"{name}/covariance"].values(), systematics.total[where, where])
        np.testing.assert_allclose(file["covariance"].values(), systematics.total)
        np.testing.assert_allclose(file["correlation"].values(), systematics.correlation())
        for source in systematics.sources:
            np.testing.assert_allclose(file[f"covariance_{source}"].values(), systematics.covariance(source))


def test_root_shapes_and_errors_make_up_the_total(systematics, with_remainder):
    """Only from what is in the file."""
    with uproot.open(with_remainder.root) as file:
        for name in systematics.bins:
            ups = [key for key in file[name].keys(cycle=False) if key.endswith("Up")]
            nominal = file[f"{name}/nominal_with_remainder"]
            variance = nominal.variances() + sum((file[f"{name}/{up}"].values() - nominal.values()) ** 2 for up in ups)
            np.testing.assert_allclose(variance, file[f"{name}/nominal_total"].variances(), rtol=1e-8)
            left = [
                file[f"{name}/{key}"].variances() for key in file[name].keys(cycle=False) if "_remainder" in key[-10:]
            ]
            assert len(left) >= 2


def test_numpy_file_gives_the_same_back(systematics, saved):
    found = load(saved.npz)
    np.testing.assert_array_equal(found.total, systematics.total)
    np.testing.assert_array_equal(found.nominal, systematics.nominal)
    np.testing.assert_array_equal(found.dof, systematics.dof)
    np.testing.assert_array_equal(found.replicas["training"], systematics.replicas["training"])
    assert found.sources["training"].part_of == "calibration"
    assert list(found.bins) == list(systematics.bins)
    assert found.bins["p_gev"].unit == "GeV"
    with np.load(saved.npz) as file:
        shapes = (file["shapes"] ** 2).sum(axis=0)
        np.testing.assert_allclose(shapes + file["remainder"], np.diag(systematics.total), rtol=1e-8)


def test_files_belong_together(saved, make, tmp_path):
    require_same(saved)
    provenance = read_provenance(saved.root)
    assert provenance["command"] == "propagate"
    assert provenance["sources"]["calibration"]["degrees_of_freedom"] == 39
    assert json.loads(saved.json.read_text())[PROVENANCE] == provenance
    other = save(make(seed=2), tmp_path / "other.root")
    other.npz.replace(saved.npz)
    with pytest.raises(ConfigError, match="files of different runs"):
        require_same(saved)


def test_existing_files_stay_unless_replaced(systematics, saved):
    before = [path.read_bytes() for path in (saved.root, saved.json, saved.npz)]
    saved.root.unlink()
    with pytest.raises(ConfigError, match="exists already"):
        save(systematics, saved.root)
    assert not saved.root.exists()
    assert [path.read_bytes() for path in (saved.json, saved.npz)] == before[1:]
    assert len(list(saved.npz.parent.iterdir())) == 2
    save(systematics, saved.root, overwrite=True)
    require_same(saved)


def poisson_and_covariance(systematics, names, signal):
    """Error of the signal strength by generalized least squares."""
    part = systematics.only(*names)
    s = np.concatenate([signal[name] for name in names]).astype(float)
    covariance = np.diag(part.nominal + s) + part.total
    return 1 / np.sqrt(s @ np.linalg.solve(covariance, s))


def fitted_error(document):
    """Error of the signal strength from pyhf's likelihood of Asimov data, by the curvature of its profile at 1."""
    workspace = pyhf.Workspace(document)
    model = workspace.model()
    data = workspace.data(model)
    pyhf.set_backend("numpy", pyhf.optimize.minuit_optimizer(tolerance=1e-3))
    return pyhf.infer.mle.fit(data, model, return_uncertainties=True)[model.config.poi_index]


@pytest.mark.parametrize("names", [("e_over_p",), ("e_over_p", "p_gev")])
def test_pyhf_fit_has_the_error_of_the_covariance(systematics, tmp_path, names):
    """Acceptance: 10 %.  The systematic part dominates: without it the error is less than a half."""
    signal = {name: SIGNAL[name] for name in names}
    part = systematics.only(*names)
    document = json.loads(save(part, tmp_path / "s", fit=Fit(signal=signal)).json.read_text())["workspace"]
    value, error = fitted_error(document)
    expected = poisson_and_covariance(systematics, names, signal)
    assert value == pytest.approx(1, abs=1e-2)
    assert error == pytest.approx(expected, rel=0.1)
    s = np.concatenate(list(signal.values())).astype(float)
    assert expected > 2 / np.sqrt(np.sum(s**2 / (part.nominal + s)))


def test_channels_are_correlated_by_names(systematics, tmp_path):
    """A scale of 20 % in a channel that looks like the signal, and another channel that tells the scale."""
    two = systematics.only("e_over_p", "p_gev")
    one = assemble(two.nominal, two.bins, residual=0.2 * two.nominal, generated=two.covariance("generated"))
    signal = {"e_over_p": 0.3 * one.value_of("e_over_p"), "p_gev": np.zeros(4)}
    document = json.loads(save(one, tmp_path / "s", fit=Fit(signal=signal)).json.read_text())["workspace"]
    expected = poisson_and_covariance(one, ("e_over_p", "p_gev"), signal)
    assert fitted_error(document)[1] == pytest.approx(expected, rel=0.1)
    for channel in document["channels"]:
        for modifier in channel["samples"][0]["modifiers"]:
            modifier["name"] = modifier["name"].removesuffix(channel["name"]) + channel["name"]
    assert fitted_error(document)[1] > 3 * expected


def test_workspace_without_signal_loads(systematics, tmp_path):
    found = save(systematics, tmp_path / "s", fit=Fit(sample="electrons"))
    document = json.loads(found.json.read_text())
    workspace = pyhf.Workspace(document["workspace"])
    model = workspace.model()
    assert model.config.poi_name is None
    assert model.config.samples == ["electrons"]
    assert model.config.channels == ["e_over_p", "p_gev"]
    np.testing.assert_allclose(model.expected_actualdata(model.config.suggested_init()), systematics.nominal[:12])
    assert "'efficiency' is not in the pyhf workspace" in " ".join(found.notes)
    assert document["fragment"]["channels"] == document["workspace"]["channels"]


def test_expected_values_have_the_covariance(systematics, tmp_path):
    """Derivatives of pyhf's expectation by its nuisance parameters, times their errors: the total covariance."""
    found = save(systematics, tmp_path / "s", fraction=1.0)
    model = pyhf.Workspace(json.loads(found.json.read_text())["workspace"]).model()
    start, widths = np.array(model.config.suggested_init()), np.array(model.config.suggested_init()) * 0
    for name in model.config.par_order:
        widths[model.config.par_slice(name)] = model.config.param_set(name).width()
    steps = [1e-4 * width * np.eye(len(start))[i] for i, width in enumerate(widths)]
    slopes = [(model.expected_actualdata(start + h) - model.expected_actualdata(start - h)) / 2e-4 for h in steps]
    np.testing.assert_allclose(np.transpose(slopes) @ slopes, systematics.total[:12, :12], rtol=2e-3, atol=1.0)


def test_pure_scale_is_normsys(with_remainder):
    channels = json.loads(with_remainder.json.read_text())["fragment"]["channels"]
    for channel in channels:
        types = {m["name"]: m["type"] for m in channel["samples"][0]["modifiers"]}
        assert types["residual_1"] == "normsys"
        assert types["spectator_1"] == types["calibration_1"] == "histosys"
        assert types[f"staterror_{channel['name']}"] == "staterror"
        assert types[f"generated_remainder_{channel['name']}"] == "shapesys"
        (scale,) = (m["data"] for m in channel["samples"][0]["modifiers"] if m["name"] == "residual_1")
        assert scale == pytest.approx({"lo": 0.97, "hi": 1.03})


def test_cabinetry_reads_the_shapes(systematics, saved, tmp_path, monkeypatch):
    """With data, a signal and its normalization added, as an analysis does."""
    monkeypatch.chdir(tmp_path)
    document = json.loads(saved.json.read_text())
    for sample in ("signal", "data"):
        with uproot.recreate(f"{sample}.root") as file:
            for name, values in SIGNAL.items():
                content = np.array(values) + (systematics.value_of(name) if sample == "data" else 0.0)
                histogram = hist.Hist(hist.axis.Variable(systematics.bins[name].edges), storage=hist.storage.Weight())
                histogram.view()["value"] = content
                file[f"{name}/nominal_with_remainder"] = histogram
    config = document["cabinetry"]
    config["Samples"] += [
        {"Name": "signal", "SamplePath": "signal.root", "DisableStaterror": True},
        {"Name": "data", "SamplePath": "data.root", "Data": True},
    ]
    config["NormFactors"] = [{"Name": "mu", "Samples": "signal", "Nominal": 1, "Bounds": [-10, 10]}]
    cabinetry.configuration.validate(config)
    cabinetry.templates.collect(config)
    found = cabinetry.workspace.build(config)
    expected = poisson_and_covariance(systematics, tuple(SIGNAL), SIGNAL)
    assert fitted_error(found)[1] == pytest.approx(expected, rel=0.1)


def test_what_cannot_be_written_is_refused(systematics, tmp_path):
    with pytest.raises(ConfigError, match=r"'p_gv' is no channel.*did you mean 'p_gev'"):
        save(systematics, tmp_path / "s", fit=Fit(signal={"p_gv": [1]}))
    with pytest.raises(ConfigError, match=r"signal of 'p_gev': shape \(1,\), expected \(4,\)"):
        save(systematics, tmp_path / "s", fit=Fit(signal={"p_gev": [1]}))
    odd = assemble([1.0], {"a/b": ObservableBins(np.arange(2.0))})
    with pytest.raises(ConfigError, match="observable 'a/b'"):
        save(odd, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileError, match="no folder"):
        save(systematics, tmp_path / "none" / "s")
    with pytest.raises(FileError, match="no such file"):
        load(tmp_path / "s.npz")
    (tmp_path / "s.npz").write_bytes(b"PK no")
    with pytest.raises(FileError, match=r"not a systematics\.npz"):
        load(tmp_path / "s.npz")


def test_negative_bins_are_left_out_and_negative_variations_noted(tmp_path):
    two = ObservableBins(np.arange(3.0))
    bins = {"a": two, "b": two, "c": ObservableBins(np.arange(3.0), per_bin=2, counts=False)}
    one = assemble([1.0, -1.0, 5.0, 0.1, 1, 2, 3, 4], bins, residual=[0.1, 0.2, 0.3, 0.4, 0.1, 0.1, 0.2, 0.2])
    found = save(one, tmp_path / "s")
    document = json.loads(found.json.read_text())
    assert [channel["name"] for channel in document["fragment"]["channels"]] == ["b"]
    notes = " ".join(found.notes)
    assert "'a' is not in the pyhf workspace: 1 bins are negative" in notes
    assert "'b': in 1 bins a variation is negative" in notes
    with uproot.open(found.root) as file:
        assert file["c/nominal"].values().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("observed", [0, 1, 4])
def test_events_in_an_empty_bin_do_not_break_a_fit(tmp_path, observed):
    """No generated event is there: error of 1.5 events (`intervals.UNSEEN`); without it pyhf finds no minimum."""
    nominal, bins = np.array([50.0, 20.0, 0.0]), {"x": ObservableBins(np.arange(4.0))}
    found = assemble(nominal, bins, generated=np.diag(nominal + 1.5))
    fit = Fit(signal={"x": [0, 5, 1]}, observed={"x": [52, 24, observed]})
    saved = save(found, tmp_path / "s", fit=fit)
    assert any("1 bins with nearly no events get a tenth of their error" in note for note in saved.notes)
    space = pyhf.Workspace(json.loads(saved.json.read_text())["workspace"])
    model = space.model()
    best, deviance = pyhf.infer.mle.fit(space.data(model), model, return_fitted_val=True)
    expected = model.expected_data(best, include_auxdata=False)
    assert np.isfinite(deviance)
    assert expected[2] > 0
    assert expected[2] == pytest.approx(observed, abs=1.5)
