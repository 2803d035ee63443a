"""Showers that can't be: `lightning fit` says in one message what was found and what was expected."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from calorefine.errors import BranchError, ConfigError, FileError, ValueRangeError
from calorefine.fit.command import lightning

pytestmark = pytest.mark.filterwarnings("ignore:.*no key branches")
ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "showers" / "vae.yaml"
XML = '<Bins><Bin pid="22" name="photon"><Layer id="0" r_edges="{}" n_bin_alpha="4"/></Bin></Bins>'


@pytest.fixture(scope="module")
def few():
    """Forty photons."""
    with h5py.File(ROOT / "examples" / "data" / "photon_showers.h5") as file:
        return {name: file[name][:40] for name in file}


def write(path, table):
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            file.create_dataset(name, data=values)
    return path


def fitted(path, folder, *options):
    told = ["--data.columns.key", "[]", "--runs", str(folder / "runs"), "--trainer.enable_progress_bar", "false"]
    return lightning(["fit", "-c", str(CONFIG), "--data.files", str(path), *told, *options])


def with_cell(value):
    def change(table):
        cells = table["showers"].copy()
        cells[5, 7] = value
        return {"showers": cells}

    return change


def in_gev(*names):
    return lambda table: {name: table[name] / 1000 for name in names}


FAULTS = {
    "voxels": (
        lambda table: {"showers": table["showers"][:, :368]},
        BranchError,
        r"'showers' has 368 voxels \(as photons of data set 1 of the CaloChallenge\), the geometry 504 voxels",
    ),
    "missing key": (
        lambda table: {"incident_energies": None, "incident_energy": table["incident_energies"]},
        BranchError,
        r"there is no branch 'incident_energies'; did you mean 'incident_energy'\?.*column 'e_inc_gev'",
    ),
    "negative": (
        with_cell(-0.5),
        ValueRangeError,
        r"energies that are negative in 1 of 40 rows.*first -0.5.* row 5",
    ),
    "NaN": (
        with_cell(np.nan),
        ValueRangeError,
        r"NaN or infinite values in 1 rows \(showers: 1\), expected",
    ),
    "energies in GeV": (
        in_gev("incident_energies"),
        ValueRangeError,
        r"'incident_energies' look like GeV; expected",
    ),
    "cells in GeV": (in_gev("showers"), ValueRangeError, r"'showers' look like GeV; expected MeV in both"),
    "both in GeV": (
        in_gev("showers", "incident_energies"),
        ValueRangeError,
        r"both look like GeV; expected MeV in both",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_what_a_training_refuses(few, change, error, message, tmp_path):
    table = {name: values for name, values in {**few, **change(few)}.items() if values is not None}
    with pytest.raises(error, match=message) as caught:
        fitted(write(tmp_path / "bad.h5", table), tmp_path)
    assert "bad.h5" in str(caught.value)


def test_a_truncated_file(few, tmp_path):
    path = write(tmp_path / "bad.h5", few)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FileError, match=r"bad\.h5: truncated or damaged: \d+ bytes found, \d+ expected"):
        fitted(path, tmp_path)


def test_the_binning_of_another_data_set(few, tmp_path):
    """Told by the shape of the column, where that is right, or else by the file."""
    (tmp_path / "binning.xml").write_text(XML.format("0,10,20"))
    told = yaml.safe_load((CONFIG.parent / "photon_columns.yaml").read_text())
    told["showers"]["geometry"] = {"binning": str(tmp_path / "binning.xml"), "threshold_mev": 0.1}
    path, columns = write(tmp_path / "showers.h5", few), tmp_path / "columns.yaml"
    for size, error, message in (
        (504, ConfigError, r"'showers' with 504 numbers; expected one, of 8 cells as the geometry has"),
        (8, BranchError, r"'showers' has 504 voxels \(as CaloGAN\), the geometry 8 voxels; expected those of one det"),
    ):
        told["features"]["showers"]["shape"] = [size]
        columns.write_text(yaml.safe_dump(told))
        with pytest.raises(error, match=message):
            fitted(path, tmp_path, "--data.columns", str(columns))
