"""Files written by version 0.1 give the events, densities and weights that it gave, or are refused with a sentence.

`data/written_by_0.1/write.py` made the files and, with the functions of `RESULTS` below, `expected.npz`.

Numbers: float32 arithmetic differs in the last digits between processors, hence a tolerance of 1e-5 of a value or of
its column's spread.  What is chosen and not computed (counts, atoms, events of a library) is equal.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
import uproot

from calorefine import Simulator
from calorefine.cli import calorefine
from calorefine.errors import CheckpointError

BEFORE = Path(__file__).parent / "data" / "written_by_0.1"
RTOL = 1e-5
EXACT = ("k", "in_domain")  # `k` is a count; `a` is 0 for half of the events

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*not trained well"),  # they are small, and soon done
    pytest.mark.filterwarnings("ignore:.*replicas were shrunk"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads make small networks many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(name):
    """Arrays that the results are computed from: `conditions` or `events`, by name of the branch."""
    with np.load(BEFORE / "expected.npz") as file:
        return {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}


def context(table):
    """Conditions as `Simulator` takes them."""
    return {"p_gev": table["P"] / 1000, "charge": table["charge"]}


def root_file(path, table):
    with uproot.recreate(path) as file:
        file.mktree("events", {name: values.dtype for name, values in table.items()}).extend(table)
    return path


def read(path, *names):
    with uproot.open(path) as file:
        return file["events"].arrays(names or None, library="np")


def sampled(name, folder):
    """Two events at each condition; `folder` is for files that a result needs."""
    del folder
    table = inputs("conditions")
    key = table["event"].astype(np.uint64)
    return Simulator.load(BEFORE / name).sample(context(table), key=key, seed=5, n_per_event=2)


def log_density(name, folder):
    """Log densities of events, in nats."""
    del folder
    table = inputs("events")
    features = {feature: table[feature] for feature in "xbak"}
    return {"log_prob": Simulator.load(BEFORE / name).log_prob(features | context(table))}


def factors(name, folder):
    """Factors of a reweighter."""
    generated = root_file(folder / "generated.root", inputs("events"))
    output = folder / "weighted.root"
    given = ["--generated", str(generated), "--output", str(output), "--overwrite", "true"]
    calorefine(["reweight", "--apply", str(BEFORE / name), *given])
    table = read(output)
    assert "weight_replica" not in table
    return {"weight": table["weight"]}


def corrected(folder):
    """Events of a generator, drawn with a reweighter's correction."""
    conditions, output = root_file(folder / "conditions.root", inputs("conditions")), folder / "corrected.root"
    files = ["--checkpoint", BEFORE / "wgan.ckpt", "--reweighter", BEFORE / "network.pt", "--conditions", conditions]
    calorefine(["sample", *map(str, files), "--output", str(output), "--overwrite", "true", "--seed", "5"])
    return read(output, *"xbak", "in_domain")


def member_weights(folder, *, again):
    """Weights of an ensemble's members for events that version 0.1 sampled, or for the same, sampled again."""
    generated, output = BEFORE / "generated.root", folder / "replicas.root"
    if again:
        conditions, generated = root_file(folder / "conditions.root", inputs("conditions")), folder / "again.root"
        files = ["--checkpoint", BEFORE / "ensemble/nominal/best.ckpt", "--conditions", conditions]
        files += ["--output", generated, "--overwrite", "true", "--pass_through", "run,event,P,charge"]
        calorefine(["sample", *map(str, files)])
    files = ["--ensemble", BEFORE / "ensemble", "--generated", generated, "--output", output]
    calorefine(["replica-weights", *map(str, files), "--overwrite", "true"])
    return read(output, *"xbak", "weight_replica", "weight_seed")


RESULTS = {
    **{f"sampled/{name}": partial(sampled, f"{name}.ckpt") for name in ("wgan", "wgan_slim", "cramer_gan")},
    **{f"sampled/{name}": partial(sampled, f"{name}.ckpt") for name in ("flow", "flow_autoregressive")},
    **{f"sampled/{name}": partial(sampled, f"{name}.ckpt") for name in ("library", "library_5")},
    **{f"sampled/{name}": partial(sampled, f"ensemble/{name}/best.ckpt") for name in ("nominal", "replica_001")},
    **{f"log_prob/{name}": partial(log_density, f"{name}.ckpt") for name in ("flow", "flow_autoregressive")},
    **{f"factors/{name}": partial(factors, f"{name}.pt") for name in ("network", "network_joint", "trees")},
    "corrected": corrected,
    "members": partial(member_weights, again=False),
    "members/sampled_again": partial(member_weights, again=True),
}


def is_exact(result, name):
    """Whether a column is not the outcome of a computation with rounding; a library gives training events back."""
    return name in EXACT or result == "sampled/library"


@pytest.mark.parametrize("result", RESULTS)
def test_results_are_those_of_version_0_1(result, tmp_path):
    expected = inputs(f"results/{result}:")
    if result == "factors/trees" and tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 9):
        with pytest.raises(CheckpointError, match="boosted trees can't be rebuilt, by another version perhaps"):
            RESULTS[result](tmp_path)  # trees are for the scikit-learn that wrote them, and later ones
        return
    found = RESULTS[result](tmp_path)
    if result == "factors/network":  # replicas of 0.1 were shrunk: they are refused with a sentence
        del expected["weight_replica"]
    assert set(expected) == set(found)
    for name, values in expected.items():
        if is_exact(result, name):
            np.testing.assert_array_equal(found[name], values, name)
        else:
            np.testing.assert_array_equal(found[name] == 0, values == 0, name)  # atoms
            finite = values[np.isfinite(values)]
            np.testing.assert_allclose(found[name], values, RTOL, RTOL * finite.std(), err_msg=name)


def test_reports_show_what_version_0_1_wrote(tmp_path):
    shutil.copytree(BEFORE / "ensemble", tmp_path / "ensemble")
    given = {"splot": "splot.json", "reweighter": "network.json", "systematics": "systematics.npz"}
    files = {name: BEFORE / file for name, file in given.items()}
    files |= {"ensemble": tmp_path / "ensemble", "generated": BEFORE / "generated.root"}
    options = [f"--{name}={file}" for name, file in files.items()]
    calorefine(["report", *options, "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    for part in ("mean_x", "spectrum", "calibration", "replica_001", "signal"):
        assert part in page
