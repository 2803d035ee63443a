"""What a training says at its end can be used as it stands; events of weight 0 are left out with a note."""

from __future__ import annotations

import shlex
import subprocess
import sys

import numpy as np
import pytest
import uproot
import yaml

from calorefine.cli import calorefine
from calorefine.errors import CalorefineNote
from calorefine.fit.command import lightning
from calorefine.fit.runs import BELOW_ZERO

COLUMNS = {
    "features": {"x": {}},
    "context": {"p_gev": {"expression": "P", "branch_unit": "MeV"}},
    "key": ["run", "event"],
}
SMALL = {"latent_size": 2, "generator_hidden": [8], "critic_hidden": [8]}


@pytest.fixture
def config(tmp_path, root_file, toy):
    """A configuration whose data have spaces in their path, and a tree of another name."""
    (tmp_path / "my data").mkdir()
    arrays = toy(600)
    arrays["w"] = np.where(np.arange(600) < 294, 0.0, arrays["w"])
    path = root_file(arrays, "my data/events.root", tree="DecayTree")
    data = {"files": str(path), "tree": "DecayTree", "columns": COLUMNS, "weights": "w", "batch_size": 64}
    trainer = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False}
    model = {"class_path": "WGAN", "init_args": SMALL}
    content = {"data": data, "model": model, "trainer": trainer, "runs": str(tmp_path / "my runs")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "c.yaml"


def test_next_and_weight_zero(config, tmp_path, monkeypatch):
    """49 % of the events have weight 0: the training sees the others only, in as many batches as these fill."""
    with pytest.warns(CalorefineNote, match="294 of 600 events have weight 0; they are left out"):
        done = lightning(["fit", "-c", str(config)])
    data = done.datamodule
    assert len(data.train) + len(data.validation) == 306
    assert np.all(data.train.weight != 0)
    assert done.trainer.num_training_batches == len(data.train) // 64
    line = next(
        line for line in (done.run_dir / "summary.txt").read_text().splitlines() if line.startswith("      next")
    )
    words = shlex.split(line.split(maxsplit=1)[1])
    assert words[:2] == ["calorefine", "sample"]
    monkeypatch.chdir(tmp_path)
    summary = calorefine(words[1:])
    assert summary.n_generated == 600
    with uproot.open(tmp_path / "generated.root") as file:
        assert {"x", "in_domain", "run", "event", "P"} <= set(file["DecayTree"].keys())
    unnamed = [*words[1 : words.index("--tree")], *words[words.index("--tree") + 2 :]]
    assert calorefine([*unnamed, "--overwrite", "true"]).n_generated == 600


def test_negative_distances_are_explained(config, monkeypatch):
    """That of the validation, whatever the second one of the chosen checkpoint is."""
    monkeypatch.setattr("calorefine.fit.runs._check", lambda *_: "")
    with pytest.warns(CalorefineNote):
        done = lightning(["fit", "-c", str(config)])
    summary = next(one for one in done.trainer.callbacks if hasattr(one, "text"))
    for score in (-0.001, 0.001):
        summary.best.best_model_score = score
        summary.on_fit_end(done.trainer, done.model)
        assert (BELOW_ZERO in summary.text) == (score < 0)


def test_notes_and_warnings_are_lines():
    """Notes have a level of their own; neither shows the code that gave it."""
    program = """
import sys, warnings
from calorefine import cli
from calorefine.errors import CalorefineNote, KeyWarning
def run():
    warnings.warn("as it should be", CalorefineNote)
    warnings.warn("look at this", KeyWarning)
cli._report(run)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stderr == "note: as it should be\nwarning: look at this\n"
