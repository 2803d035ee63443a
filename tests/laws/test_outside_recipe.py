"""A recipe in a user's file: trained by the command line, saved, loaded, sampled; the laws are in their own file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import uproot
import yaml

from calorefine.datasets import ImpureToy

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "extending" / "recipe.md"
LOAD = """
import json, sys
import numpy as np
from calorefine import Simulator
from calorefine.errors import CheckpointError

def message(**options):
    try:
        Simulator.load(sys.argv[1], **options)
    except CheckpointError as error:
        return str(error)

found = {"before": message(), "modules": [name for name in sys.modules if "my_generators" in name]}
import my_generators
simulator = Simulator.load(sys.argv[1])
again = Simulator.load(sys.argv[1], models=[my_generators.TinyVAE])
found["type"] = [type(each.model) is my_generators.TinyVAE for each in (simulator, again)]
c = np.linspace(0.05, 0.95, 1000)
events, others = (each.sample({"c": c}, seed=1) for each in (simulator, again))
simulator.save("slim.ckpt")
slim = Simulator.load("slim.ckpt").sample({"c": c}, seed=1)
found["same"] = [bool((events["x"] == other["x"]).all()) for other in (others, slim)]
found["x"] = events["x"].tolist()
import other_generators
found["clash"] = message()
found["named"] = message(models=[my_generators.TinyVAE])
print(json.dumps(found))
"""


def run(folder, *command):
    """Run a command in a folder; return its output."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the user's file, in which `lightning fit` has trained the recipe on the signal of the toy."""
    folder = tmp_path_factory.mktemp("outside")
    for name in ("my_generators.py", "other_generators.py"):
        shutil.copy(HERE / "my_generators.py", folder / name)
    table = ImpureToy(fraction=1.0).generate(3000, seed=11)
    with uproot.recreate(folder / "toy.root") as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)
    columns = {"features": {"x": None, "y": None}, "context": {"c": None}, "key": ["run", "event"]}
    content = {
        "seed_everything": 4,
        "data": {"files": "toy.root", "tree": "events", "columns": columns, "batch_size": 256},
        "model": {"class_path": "my_generators.TinyVAE", "init_args": {"hidden": [32, 32]}},
        "trainer": {"accelerator": "cpu", "max_epochs": 20, "enable_progress_bar": False},
    }
    (folder / "vae.yaml").write_text(yaml.safe_dump(content))
    run(folder, str(Path(sys.executable).with_name("lightning")), "fit", "-c", "vae.yaml")
    return folder


@pytest.fixture(scope="module")
def loaded(trained):
    """What a process finds that loads the checkpoint before and after it imports the file."""
    return json.loads(run(trained, sys.executable, "-c", LOAD, "runs/vae/000/checkpoints/last.ckpt"))


def test_the_command_line_trains_it(trained):
    checkpoint = torch.load(trained / "runs" / "vae" / "000" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["calorefine"]["model"] == "TinyVAE"
    assert checkpoint["calorefine"]["init_args"] == {"n_code": 4, "hidden": [32, 32], "learning_rate": 2e-3}
    assert "TinyVAE, 2,828 trainable parameters" in (trained / "runs" / "vae" / "000" / "summary.txt").read_text()


def test_a_checkpoint_makes_no_import_happen(loaded):
    """Although the file can be imported from the working directory."""
    assert loaded["modules"] == []
    assert "last.ckpt: holds a 'TinyVAE', which is none of AffineFlow, AutoregressiveCells, " in loaded["before"]
    assert (
        "expected its file to be imported before (--modules FILE), or models=[TinyVAE] to be given" in loaded["before"]
    )


def test_it_is_loaded_and_sampled(loaded):
    """For six seeds of the training the mean pull was -0.16 +- 0.01 and the width 1.16 +- 0.01: no chance to fail."""
    assert loaded["type"] == [True, True]
    assert loaded["same"] == [True, True]
    c = np.linspace(0.05, 0.95, 1000)
    mean, width = ImpureToy().signal_moments(c)
    pulls = (np.array(loaded["x"]) - mean[:, 0]) / width[:, 0]
    assert abs(pulls.mean()) < 0.5
    assert 0.5 < pulls.std() < 2


def test_verbs_import_what_the_user_names(trained):
    """`calorefine sample` takes its checkpoint, with `--modules` and not without."""
    command = [str(Path(sys.executable).with_name("calorefine")), "sample", "--conditions", "toy.root", "--output"]
    checkpoint = ["--checkpoint", "runs/vae/000/checkpoints/last.ckpt"]
    run(trained, *command, "sampled.root", *checkpoint, "--modules", "my_generators")
    with uproot.open(trained / "sampled.root") as file:
        assert file["events"].num_entries == 3000
    refused = subprocess.run(
        [*command, "not.root", *checkpoint], cwd=trained, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "expected its file to be imported before (--modules FILE)" in refused.stderr


def test_two_recipes_of_the_same_name_are_told(loaded):
    assert "my_generators.py: TinyVAE" in loaded["clash"]
    assert "other_generators.py: TinyVAE" in loaded["clash"]
    assert loaded["named"] is None


def test_the_page_shows_this_file():
    assert f"```python\n# my_generators.py\n{(HERE / 'my_generators.py').read_text()}```\n" in PAGE.read_text()
