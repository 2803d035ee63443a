"""Every configuration of showers, from the HDF5 file to generated showers in one."""

from __future__ import annotations

import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from calorefine.cli import calorefine
from calorefine.fit.command import lightning

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs" / "showers").glob("*.yaml") if "columns" not in path.stem)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The first 400 showers, with a key."""
    path = tmp_path_factory.mktemp("showers") / "few.h5"
    with h5py.File(ROOT / "examples" / "data" / "photon_showers.h5") as file, h5py.File(path, "w") as out:
        for name in file:
            out.create_dataset(name, data=file[name][:400])
        out.create_dataset("row", data=np.arange(400))
    return path


def command_after(run_dir):
    """Arguments of the command that a training says comes next."""
    lines = (run_dir / "summary.txt").read_text().splitlines()
    (line,) = [line.strip() for line in lines if line.strip().startswith("next ")]
    return shlex.split(line)[2:]


def energies_first(name):
    """Whether a configuration has the preprocessing of two steps."""
    return "class_path: Showers" in (ROOT / "configs" / "showers" / f"{name}.yaml").read_text()


def trained(name, few, runs, *more):
    """An epoch of a configuration."""
    options = ["--data.files", str(few), "--data.columns.key", "[row]", "--runs", str(runs)]
    options += ["--trainer.max_epochs", "1", "--data.batch_size", "64", *more]
    if energies_first(name):
        options += ["--data.preprocessing.init_args.epochs", "1"]
    return lightning(["fit", "-c", str(ROOT / "configs" / "showers" / f"{name}.yaml"), *options])


@pytest.mark.parametrize("name", CONFIGS)
def test_an_epoch_and_a_sample(name, few, tmp_path, monkeypatch):
    more = []
    if name == "student":
        teacher = trained("flow_matching", few, tmp_path / "teachers")
        more = ["--model.init_args.teacher", str(teacher.run_dir / "checkpoints" / "best.ckpt")]
    finished = trained(name, few, tmp_path / "runs", *more)
    monkeypatch.chdir(tmp_path)
    calorefine(command_after(finished.run_dir))
    with h5py.File(few) as file, h5py.File("generated.h5") as made:
        assert made["showers"].shape == (400, 504)
        np.testing.assert_array_equal(made["entry_mm"], file["entry_mm"])
        np.testing.assert_array_equal(made["incident_energies"], file["incident_energies"])
        cells = made["showers"][:]
        assert ((cells == 0) | (cells >= 0.1 * (1 - 1e-5))).all()
        response = cells.sum(1) / file["incident_energies"][:, 0]
        truth = file["showers"][:].sum(1) / file["incident_energies"][:, 0]
        assert not energies_first(name) or abs(np.median(response) / np.median(truth) - 1) < 0.15
