"""Members trained side by side, and ensembles that were interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import uproot
import yaml

from calorefine import Simulator
from calorefine.cli import calorefine
from calorefine.datasets import ImpureToy
from calorefine.ensemble.members import Ensemble, Member, alike, planned
from calorefine.ensemble.price import Price
from calorefine.ensemble.side_by_side import can_train_together
from calorefine.errors import ConfigError, FileError
from calorefine.fit.command import lightning
from calorefine.io.lock import locked
from calorefine.verbs import ensemble
from calorefine.verbs.ensemble import _groups

SMALL = {"generator_hidden": [16], "critic_hidden": [16]}
SPLOT = {
    "class_path": "SPlot",
    "init_args": {
        "spectator": "m",
        "range": [0, 1],
        "species": {"signal": {"class_path": "Gaussian"}, "background": {"class_path": "Exponential"}},
    },
}


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.root"
    table = ImpureToy(fraction=0.3, resolution=0.05).generate(1500, seed=11)
    with uproot.recreate(path) as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)
    return path


def write(path, toy_file, model, **trainer):
    """A configuration."""
    content = {
        "seed_everything": 4,
        "data": {
            "files": str(toy_file),
            "tree": "events",
            "columns": {"features": {"x": None, "y": None}, "context": {"c": None}, "key": ["run", "event"]},
            "weights": SPLOT,
            "batch_size": 256,
        },
        "model": model,
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 5, **trainer},
    }
    if model["class_path"] == "Flow":
        content["data"]["positive"] = {"n_folds": 2}
    path.write_text(yaml.safe_dump(content))
    return path


def parameters(checkpoint):
    return dict(Simulator.load(checkpoint).model.state_dict())


@pytest.mark.parametrize(
    "model",
    [
        {"class_path": "WGAN", "init_args": SMALL},
        {"class_path": "CramerGAN", "init_args": SMALL},
        {"class_path": "Flow", "init_args": {"hidden": [16], "clip_norm": 0.5}},
    ],
    ids=lambda model: model["class_path"],
)
def test_side_by_side_is_alone(tmp_path, toy_file, model):
    """A few steps: the game of a GAN makes differences of rounding grow."""
    config = write(tmp_path / "c.yaml", toy_file, model, limit_train_batches=3)
    for name, options in (("joined", []), ("alone", ["--together", "1"])):
        given = ["--fit", str(config), "--output", str(tmp_path / name), "--replicas", "2", "--seeds", "1"]
        calorefine(["ensemble", *given, "--processes", "1", *options])
    ensembles = [Ensemble.load(tmp_path / name) for name in ("joined", "alone")]
    assert list(ensembles[0].records) == ["nominal", "replica_001", "replica_002", "seed_001"]
    found = {}
    for name in ensembles[0].records:
        first, second = (parameters(ensemble.checkpoint(name)) for ensemble in ensembles)
        for key in (
            key for key in first if key.startswith("average")
        ):  # a critic's last bias has no gradient, but noise
            torch.testing.assert_close(first[key], second[key], rtol=2e-3, atol=2e-4)
        a, b = (ensemble.records[name] for ensemble in ensembles)
        assert a["digest"] == b["digest"]
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-2, abs=1e-4)
        found[name] = first
    weights = [name for name in found["nominal"] if name.endswith("mlp.0.weight")]  # started otherwise by each seed
    assert weights
    for name in ("replica_001", "replica_002", "seed_001"):
        assert all((found["nominal"][key] - found[name][key]).abs().max() > 5e-3 for key in weights)


def test_nominal_is_what_lightning_fit_gives(tmp_path, toy_file):
    config = write(tmp_path / "c.yaml", toy_file, {"class_path": "WGAN", "init_args": SMALL})
    calorefine(["ensemble", "--fit", str(config), "--output", str(tmp_path / "e"), "--replicas", "0"])
    run = lightning(
        ["fit", "-c", str(config), "--runs", str(tmp_path), "--trainer.enable_progress_bar", "false"]
    ).run_dir
    own = parameters(tmp_path / "e" / "nominal" / "best.ckpt")
    for key, tensor in parameters(run / "checkpoints" / "best.ckpt").items():
        torch.testing.assert_close(own[key], tensor, rtol=0, atol=0)


def test_replicas_of_branch_weights_are_refused_before_anything_trains(tmp_path, toy_file, monkeypatch):
    config = write(tmp_path / "c.yaml", toy_file, {"class_path": "WGAN", "init_args": SMALL})
    content = yaml.safe_load(config.read_text())
    content["data"]["weights"] = "m"
    config.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(ensemble, "_train_all", lambda *_: pytest.fail("something trains"))
    given = ["ensemble", "--fit", str(config), "--output", str(tmp_path / "e"), "--replicas", "2"]
    with pytest.raises(ConfigError, match=r"'m' is a branch, .* replica 1; .*data: \{replica: \{refit: false\}\}"):
        calorefine(given)
    assert not list(tmp_path.glob("e/*"))


def test_what_can_train_together():
    def prepared(name, **options):
        from calorefine.models import MODELS

        model = MODELS[name](**options)
        model.build(3, 2)
        return model

    assert all(can_train_together(prepared(name)) for name in ("WGAN", "CramerGAN", "Flow"))
    assert not can_train_together(prepared("Flow", kind="autoregressive"))


@pytest.mark.parametrize(
    ("replicas", "seeds", "processes", "expected"),
    [
        (10, 0, 2, [1, -6, -4]),
        (20, 5, 2, [3, 3, -10, -10]),
        (2, 1, 1, [2, -2]),
        (0, 0, 2, [1]),
        (20, 0, 8, [1, *[-3] * 5, -2, -2, -1]),
        (40, 0, 2, [1, -11, -10, -10, -9]),
    ],
)
def test_groups(replicas, seeds, processes, expected):
    """Sizes, negative for replicas, in the order of training; each member once."""
    groups = _groups(planned(replicas, seeds), processes, None)
    assert [len(group) * (-1 if group[0].kind == "replica" else 1) for group in groups] == expected
    assert all(len(alike(group)) == 1 for group in groups)
    names = [member.name for group in groups for member in group]
    assert sorted(names) == sorted(member.name for member in planned(replicas, seeds))


KILLED = """
import fnmatch, os, signal, sys

pattern, left = sys.argv.pop(1), int(sys.argv.pop(1))

def kill(event, arguments):
    global left
    if event == "os.rename" and fnmatch.fnmatch(os.fspath(arguments[1]), pattern):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
from calorefine.cli import calorefine
calorefine()
"""
"""The command, killed just before it moves one more than so many files of a pattern into place."""


def start(config, output, *options, killed=None):
    """Start the command; `killed`, a pattern of files and a number of them, ends it there."""
    command = ["ensemble", "--fit", str(config), "--output", str(output), "--replicas", "2", "--processes", "1"]
    program = ["-c", KILLED, *map(str, killed)] if killed else ["-m", "calorefine"]
    return subprocess.Popen(
        [sys.executable, *program, *command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )


@pytest.mark.parametrize("together", [pytest.param("1", marks=pytest.mark.slow), "3"])
def test_killed_runs_end_as_undisturbed_ones(tmp_path, toy_file, together):
    """SIGKILL once the first epochs are on disk; then again as soon as the first member is finished.

    The replicas are killed while they train side by side: the nominal, on larger batches, is not one of them.
    """
    model = {"class_path": "WGAN", "init_args": SMALL}
    config = write(tmp_path / "c.yaml", toy_file, model, max_epochs=25, check_val_every_n_epoch=4)
    assert start(config, tmp_path / "whole", "--together", together).wait() == 0
    patterns = ("*/last.ckpt", "*/member.json") if together == "1" else ("*/.replica*/last.ckpt", "*/replica*/*.json")
    for pattern, count in zip(patterns, (3, 1), strict=True):
        process = start(config, tmp_path / "killed", "--together", together, killed=(pattern, count))
        assert process.wait() == -signal.SIGKILL
        assert list((tmp_path / "killed").rglob(Path(pattern).name))
        assert len(list((tmp_path / "killed").glob("replica*/member.json"))) < 2
    assert start(config, tmp_path / "killed", "--together", together).wait() == 0
    whole, killed = (Ensemble.load(tmp_path / name) for name in ("whole", "killed"))
    assert list(whole.records) == list(killed.records)
    for name in whole.records:
        for key, tensor in parameters(whole.checkpoint(name)).items():
            torch.testing.assert_close(parameters(killed.checkpoint(name))[key], tensor, rtol=0, atol=0)
        assert whole.records[name]["val_loss"] == killed.records[name]["val_loss"]


def test_terminated_runs_end_their_trainings(tmp_path, toy_file):
    """Two processes train; SIGTERM to the command ends both."""
    config = write(tmp_path / "c.yaml", toy_file, {"class_path": "WGAN", "init_args": SMALL}, max_epochs=2000)
    with start(config, tmp_path / "e", "--processes", "2") as process:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "e").glob("**/last.ckpt"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.terminate()
    assert len(children) == 2
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert any("epoch " in log.read_text() for log in (tmp_path / "e").glob("*.log"))


def test_trainings_that_do_not_end_when_asked_are_killed(monkeypatch):
    monkeypatch.setattr(ensemble, "GRACE", 0.1)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(9)"
    )
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        with ensemble._ended_with_this() as running:
            running[process] = []
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def small(tmp_path, toy_file):
    """The command for an ensemble of small WGANs on a copy of the data, without its number of replicas."""
    shutil.copy(toy_file, tmp_path / "toy.root")
    config = write(tmp_path / "c.yaml", tmp_path / "toy.root", {"class_path": "WGAN", "init_args": SMALL}, max_epochs=1)
    return ["ensemble", "--fit", str(config), "--output", str(tmp_path / "e"), "--processes", "1"]


def test_data_replaced_in_place_are_refused(tmp_path, small):
    calorefine([*small, "--replicas", "1"])
    replace_data(tmp_path / "toy.root", seed=12)
    for more in (["--replicas", "2"], ["--replicas", "1"], ["--only", "[replica_002]"], ["--only", "[nominal]"]):
        with pytest.raises(ConfigError, match=r"e/nominal: was trained on other data than these files hold"):
            calorefine([*small, *more])
    assert not (tmp_path / "e" / "replica_002" / "member.json").exists()
    shutil.rmtree(tmp_path / "e" / "nominal")
    with pytest.raises(ConfigError, match=r"e/replica_001: was trained on other data"):
        calorefine([*small, "--replicas", "1"])


def trained_on(folder):
    """Digest of the events that a member's checkpoint was trained on."""
    return Simulator.load(folder / "best.ckpt").spec["provenance"]["digest"]


def replace_data(path, seed):
    """Other events in place of the old ones."""
    table = ImpureToy(fraction=0.3, resolution=0.05).generate(1500, seed=seed)
    with uproot.recreate(path) as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)


@pytest.mark.parametrize("validated", [True, False])
def test_an_unrecorded_training_on_other_data_is_not_taken_up(tmp_path, small, validated):
    """Killed before the records were written, with checkpoints complete; then the data are replaced."""
    calorefine([*small, "--replicas", "2"])
    before = {}
    for record in (tmp_path / "e").glob("*/member.json"):
        before[record.parent] = trained_on(record.parent)
        record.unlink()
    replace_data(tmp_path / "toy.root", seed=12)
    options = [] if validated else ['--options=["--trainer.check_val_every_n_epoch", "5"]']
    calorefine([*small, "--replicas", "2", *options])
    assert len(before) == 3
    assert all(trained_on(folder) != digest for folder, digest in before.items())


def test_members_that_do_not_belong_together_are_named(tmp_path, small):
    calorefine([*small, "--replicas", "1"])
    record, folder = tmp_path / "e" / "replica_001" / "member.json", tmp_path / "e"
    whole = record.read_text()
    content = json.loads(whole)
    record.write_text(json.dumps(content | {"data_sha256": "0"}))
    with pytest.raises(ConfigError, match=r"'replica_001' was trained on other data than 'nominal'"):
        Ensemble.load(folder)
    del content["data_sha256"]
    record.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"replica_001: was trained on other data \(its record doesn't tell which\)"):
        calorefine([*small, "--replicas", "2"])
    record.write_text(whole)
    shutil.copy(folder / "nominal" / "best.ckpt", folder / "replica_001" / "best.ckpt")
    with pytest.raises(ConfigError, match=r"replica_001/best\.ckpt: has SHA-256 .*expected .* as in member\.json"):
        Ensemble.load(folder).checkpoint("replica_001")


def test_more_replicas_leave_the_finished_ones(tmp_path, small):
    calorefine([*small, "--replicas", "2"])
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "e").glob("*/best.ckpt")}
    assert calorefine([*small, "--replicas", "5"]).trained == ["replica_003", "replica_004", "replica_005"]
    calorefine([*small, "--only", "[nominal, replica_002, replica_006]"])
    assert len(finished) == 3
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_two_runs_in_one_folder_are_refused(tmp_path, small):
    for folder, options in (("e", []), ("e/nominal", []), ("e/replica_001", ["--only", "[replica_001]"])):
        with (
            locked(tmp_path / folder),
            pytest.raises(FileError, match=rf"{folder}: process {os.getpid()} on .* at work"),
        ):
            calorefine([*small, "--replicas", "1", *options])
    calorefine([*small, "--replicas", "1"])


def test_names_and_seeds():
    members = planned(2, 1)
    assert [member.name for member in members] == ["nominal", "replica_001", "replica_002", "seed_001"]
    assert [Member.named(member.name) for member in members] == members
    assert members[0].seed(7) == 7
    assert len({member.seed(7) for member in members}) == 4
    with pytest.raises(ConfigError, match="member 'replica_0'"):
        Member.named("replica_0")


def test_errors(tmp_path, toy_file):
    config = write(tmp_path / "c.yaml", toy_file, {"class_path": "WGAN", "init_args": SMALL})
    given = ["ensemble", "--fit", str(config), "--output", str(tmp_path / "e"), "--replicas", "0"]
    calorefine(given)
    with pytest.raises(ConfigError, match="another configuration"):
        calorefine([*given, '--options=["--trainer.max_epochs","3"]'])
    with pytest.raises(SystemExit):
        calorefine([*given[:-2], "--replica", "0"])  # not taken for an abbreviation
    with pytest.raises(FileError, match="no such folder"):
        Ensemble.load(tmp_path / "f")
    with pytest.raises(ConfigError, match="no member 'replica_001'"):
        Ensemble.load(tmp_path / "e").checkpoint("replica_001")


@pytest.mark.parametrize("model", [{"class_path": "WGAN", "init_args": SMALL}, {"class_path": "Library"}])
def test_dry_run_tells_the_price_and_writes_nothing(tmp_path, toy_file, model):
    """Seconds are those of this machine, and not tested; the size of checkpoints is, against those of a training."""
    config = write(tmp_path / "config.yaml", toy_file, model)
    if model["class_path"] == "Library":
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"trainer": {"max_epochs": 1}}))
    options = ["--data.weights", "none", "--trainer.enable_progress_bar", "false"]
    given = ["ensemble", "--fit", str(config), "--output", str(tmp_path / "e"), f"--options={json.dumps(options)}"]
    given += ["--replicas", "3", "--processes", "1"]
    told = calorefine([*given, "--dry-run", "true"])
    assert not (tmp_path / "e").exists()
    assert "4 members are left to train" in str(told)
    assert "an error from 3 replicas is known to 50.0%; from 50 to 10.1%, from 100 to 7.1%" in str(told)
    assert 0 < told.seconds < 600
    calorefine([*given, "--replicas", "1"])
    size = sum(path.stat().st_size for path in (tmp_path / "e").rglob("*.ckpt"))
    two = calorefine([*given, "--replicas", "1", "--output", str(tmp_path / "other"), "--dry-run", "true"])
    assert 0.5 < two.disk / size < 2
    assert "2 members are left to train" in str(calorefine([*given, "--dry-run", "true"]))


def test_price_shares_groups_between_processes():
    """Each group goes to the process that is free first."""
    told = Price([(5.0, 1), (3.0, 1), (3.0, 1), (1.0, 1)], n_members=4, processes=2, replicas=2)
    assert (told.seconds, told.disk) == (6.0, 4)
    assert "known to 70.7%" in str(told)
