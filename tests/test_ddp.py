"""Training by two processes (gloo) gives what one gives, up to rounding.

This file is also the script that the processes run: Lightning starts the second one by the command of the first.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import uproot
import yaml

from calorefine import losses
from calorefine.data.batches import Epoch, ShuffledBatches
from calorefine.datasets import ImpureToy
from calorefine.ddp import Ranks
from calorefine.errors import ConfigError
from calorefine.fit import runs
from calorefine.fit.command import lightning
from calorefine.models import MODELS
from calorefine.nets import Noise

pytestmark = pytest.mark.xdist_group("ddp")  # what two processes have trained is made once
SMALL_GAN = ["--model.init_args.generator_hidden", "[16]", "--model.init_args.critic_hidden", "[16]"]
OPTIONS = {
    "WGAN": SMALL_GAN,
    "CramerGAN": SMALL_GAN,
    "Flow": ["--model.init_args.hidden", "[16]", "--data.weights", "abs(w)"],
}
NORMALIZED = ("WGAN", "Flow")  # the weights of a CramerGAN's pairs are divided elsewhere
TWO = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
EVERY_EPOCH = {"class_path": "ModelCheckpoint", "init_args": {"filename": "{epoch}", "save_top_k": -1}}


def train(folder, model, *options):
    """Train on the toy; return the finished command."""
    given = ["fit", "-c", str(folder / "toy.yaml"), "--model.class_path", model, *OPTIONS.get(model, []), *options]
    return lightning(given)


def train_all(folder, name, *options, models=OPTIONS):
    """Train these recipes in runs of this name."""
    for model in models:
        train(folder, model, "--runs", str(folder / name / model), *options)


def normalized_by_itself(values, weight, mean_weight):
    """A batch's mean by its own sum of weights, which is wrong, and in each process another."""
    del mean_weight
    return (weight * values).sum(-1) / weight.sum(-1)


def refused(folder, model, *options):
    """Return the message of a training that is refused."""
    with pytest.raises(ConfigError) as error:
        train(folder, model, "--runs", str(folder / "refused"), *TWO, *options)
    return str(error.value)


def two_processes(folder):
    """All that two processes do, in each of them; `weights` differ in the second where that is to be refused."""
    train_all(folder, "two", *TWO)
    (epoch,) = (folder / "two" / "WGAN").rglob("epoch=0.ckpt")
    resumed = train(folder, "WGAN", "--runs", str(folder / "resumed"), *TWO, "--ckpt_path", str(epoch))
    with patch.object(losses, "batch_mean", normalized_by_itself):
        train_all(folder, "normalized", *TWO, models=NORMALIZED)
    rank = resumed.trainer.global_rank
    found = {
        "run_dir": str(resumed.run_dir),
        "library": refused(folder, "Library", "--data.weights", "abs(w)"),
        "batch_size": refused(folder, "WGAN", "--data.batch_size", "127"),
        "data": refused(folder, "WGAN", "--data.weights", "w" if rank == 0 else "1.001 * w"),
        "seed": refused(folder, "WGAN", "--seed_everything", str(rank)),
    }
    (folder / f"process{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with trainings `one`, by this process, and `two`, by two; an integer feature is spread by noise."""
    path = tmp_path_factory.mktemp("ddp")
    table = ImpureToy().generate(1500, seed=11)
    table["w"] = ImpureToy().sweights(table["m"])
    table["k"] = np.random.default_rng(12).poisson(1 + 2 * table["c"]).astype(np.int32)
    with uproot.recreate(path / "toy.root") as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)
    (path / "toy.yaml").write_text(yaml.safe_dump(configuration(path)))
    environment = {k: v for k, v in os.environ.items() if not k.endswith("RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(runs.__file__).parents[2])}
    command = [sys.executable, __file__, str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as two:
        train_all(path, "one")
        output, _ = two.communicate(timeout=300)
    assert two.returncode == 0, output
    return path


def configuration(path):
    return {
        "seed_everything": 4,
        "data": {
            "files": str(path / "toy.root"),
            "tree": "events",
            "columns": {
                "features": {"x": None, "y": None, "k": {"transform": "integer"}},
                "context": {"c": None},
                "key": ["run", "event"],
            },
            "weights": "w",
            "batch_size": 128,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 5,
            "callbacks": [EVERY_EPOCH],
        },
    }


def checkpoint(folder, name, model, file="last.ckpt"):
    return torch.load(folder / name / model / "toy" / "000" / "checkpoints" / file, weights_only=True)


def state_but_critic(checkpoint):
    """Parameters and buffers but those of the critic: where its loss is flat, rounding decides."""
    return {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("critic.")}


def largest_difference(first, second):
    """Largest difference of two states, in units of the largest absolute value of a tensor; bounds may be infinite."""
    finite = {k: v for k, v in first.items() if v.is_floating_point() and v.numel() and v.isfinite().all()}
    pairs = [(v, second[k]) for k, v in finite.items()]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-3)) for a, b in pairs)


@pytest.mark.parametrize("model", OPTIONS)
def test_two_processes_give_the_parameters_of_one(folder, model):
    """Same events, same noise, same order: after 20 steps only rounding is different (seeds fixed)."""
    one, two = (checkpoint(folder, name, model) for name in ("one", "two"))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert largest_difference(state_but_critic(one), state_but_critic(two)) < 1e-5
    for name, value in state_but_critic(one).items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [name for name in OPTIONS if name != "Flow"])
def test_two_processes_give_the_critic_of_one(folder, model):
    """By differences at equal context, all that the game depends on.

    A constant has a gradient of zero in a critic, plus rounding, which Adam scales up to steps of full length.
    """
    noise = torch.Generator().manual_seed(0)
    x, y, context = (torch.randn(200, n, generator=noise) for n in (3, 3, 1))
    found = []
    for name in ("one", "two"):
        spec = checkpoint(folder, name, model)
        critic = MODELS[model](**spec["calorefine"]["init_args"])
        critic.build(3, 1)
        critic.critic.load_state_dict({k[7:]: v for k, v in spec["state_dict"].items() if k.startswith("critic.")})
        first, second = critic.critics()[0]((x, context), (y, context))
        found.append(first - second)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", NORMALIZED)
def test_a_part_normalized_by_its_own_weights_is_noticed(folder, model):
    one, normalized = (checkpoint(folder, name, model) for name in ("one", "normalized"))
    assert largest_difference(state_but_critic(one), state_but_critic(normalized)) > 1e-3


@pytest.mark.parametrize("model", OPTIONS)
def test_files_are_written_once_and_are_those_of_one_process(folder, model):
    one, two = (folder / name / model / "toy" for name in ("one", "two"))
    assert [path.name for path in two.iterdir()] == ["000"]
    files = [sorted(str(f.relative_to(run)) for run in [top] for f in run.rglob("*.*")) for top in (one, two)]
    assert [name for name in files[0] if "tfevents" not in name] == [
        name for name in files[1] if "tfevents" not in name
    ]
    assert len(list(two.rglob("*tfevents*"))) == 1
    for file in ("last.ckpt", "best.ckpt"):
        first, second = (checkpoint(folder, name, model, file) for name in ("one", "two"))
        assert layout(first) == layout(second)
    assert checkpoint(folder, "two", model)["calorefine"] == checkpoint(folder, "one", model)["calorefine"]


def layout(tree, *, depth=4):
    """Keys of nested dictionaries, without the folders in the states of callbacks."""
    if not isinstance(tree, dict) or not depth:
        return type(tree).__name__
    return {k: layout(v, depth=depth - 1) for k, v in tree.items() if k not in ("best_k_models",)}


@pytest.mark.parametrize("model", OPTIONS)
def test_logs_are_those_of_one_process(folder, model):
    """Losses of whole batches, not of the first process's part."""
    tables = []
    for name in ("one", "two"):
        with (folder / name / model / "toy" / "000" / "csv" / "metrics.csv").open() as file:
            tables.append([[float(v or "nan") for v in row.values()] for row in csv.DictReader(file)])
    assert len(tables[0]) > 5
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-4, atol=1e-5)


def test_resuming_is_exact(folder):
    resumed = torch.load(folder / "resumed" / "toy" / "000" / "checkpoints" / "last.ckpt", weights_only=True)
    whole = checkpoint(folder, "two", "WGAN")
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=0, atol=0)
    assert (folder / "resumed" / "toy" / "000" / "checkpoints" / "best.ckpt").is_file()


def test_every_process_tells_the_same(folder):
    first, second = (json.loads((folder / f"process{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["run_dir"] == str(folder / "resumed" / "toy" / "000")
    assert "found with Library, which has nothing to train" in first["library"]
    assert "batches of 127 events found, expected a multiple of the 2 processes" in first["batch_size"]
    assert "process 1 has training events (digest)" in first["data"]
    assert "process 1 has seed 1, process 0 has 0; expected the same files" in first["seed"]


def test_parts_in_the_order_of_ranks_are_the_whole():
    ranks = [Ranks(rank, 3) for rank in range(3)]
    batches = list(ShuffledBatches(100, Epoch(12, 8), seed=5))
    parts = [list(ShuffledBatches(100, Epoch(12, 8), seed=5, ranks=own)) for own in ranks]
    assert len(batches) == 8
    for batch, *own in zip(batches, *parts, strict=True):
        assert torch.equal(torch.cat(own), batch)
    for draw in ("normal", "uniform"):
        own = [getattr(Noise(3, ranks=each), draw)(4, 2) for each in ranks]
        assert torch.equal(torch.cat(own), getattr(Noise(3), draw)(12, 2))


def test_first_process_by_its_environment(folder, monkeypatch, tmp_path):
    """Slurm's and torchrun's ranks are Lightning's to read; a node of its own launcher has its number only."""
    monkeypatch.delenv("NODE_RANK", raising=False)
    assert runs.is_first_process()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not runs.is_first_process()
    monkeypatch.delenv("NODE_RANK")
    (tmp_path / "toy.yaml").write_text((folder / "toy.yaml").read_text())
    monkeypatch.setattr(runs, "is_first_process", lambda: False)
    with pytest.raises(ConfigError, match="process 0 of 1, but the environment tells another rank"):
        train(tmp_path, "WGAN", "--runs", str(tmp_path / "runs"), "--trainer.strategy", "ddp", "--trainer.devices", "1")
    assert not (tmp_path / "runs").exists()


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
