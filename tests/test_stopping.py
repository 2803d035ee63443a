"""Trainings that are stopped, that go on, and that are looked at: status, messages, logs, what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import uproot
import yaml

from calorefine.cli import calorefine
from calorefine.errors import CheckpointError, ConfigError, Stopped, TrainingError
from calorefine.fit import progress
from calorefine.fit.command import lightning
from calorefine.io.provenance import read_provenance

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from calorefine import cli
getattr(cli, sys.argv.pop(1))()
"""


@pytest.fixture
def config(tmp_path, root_file, toy):
    """A configuration on a small file."""
    root_file(toy(600), "toy.root")
    content = {
        "seed_everything": 4,
        "data": {
            "files": str(tmp_path / "toy.root"),
            "tree": "events",
            "columns": {"features": {"x": None}, "context": {"P": None}, "key": ["run", "event"]},
            "batch_size": 128,
        },
        "model": {"class_path": "WGAN", "init_args": {"generator_hidden": [16], "critic_hidden": [16]}},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def fit(config, tmp_path):
    """Function that trains with further options."""
    return lambda *options: lightning(["fit", "-c", str(config), "--runs", str(tmp_path / "runs"), *options])


@pytest.fixture
def last(fit):
    """The last checkpoint of a finished run."""
    return fit().run_dir / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("program", "number"),
    [("lightning_main", signal.SIGTERM), ("lightning_main", signal.SIGINT), ("calorefine_main", signal.SIGINT)],
)
def test_a_stopped_training_tells_so(config, tmp_path, program, number):
    """`fit`, and a member of an ensemble in the command's own process."""
    single = program == "lightning_main"
    given = ["fit", "-c", config, "--runs", tmp_path / "runs", "--trainer.max_epochs", "100000"]
    if not single:
        options = '--options=["--trainer.max_epochs","100000"]'
        given = ["ensemble", "--fit", config, "--output", tmp_path / "runs", "--only", "[nominal]", options]
    command = [sys.executable, "-c", PROGRAM, program, *map(str, given)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "runs").rglob("last.ckpt")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        output = process.communicate(timeout=120)[0].decode()
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    assert process.returncode == 128 + number
    assert output.rstrip().endswith(f"stopped by {number.name}; the last checkpoint is {checkpoint}")
    assert output.count(number.name) <= 2  # Lightning has a line of its own on SIGTERM
    assert "Traceback" not in output
    assert "\r" not in output  # there is no terminal
    assert "epoch 1 of 100000: critic_loss " in output


def test_what_a_signal_ended():
    """Other ends, such as that of --help or of a wrong option, keep their status."""
    assert Stopped.of(SystemExit(2)) is None
    assert Stopped.of(SystemExit(0)) is None
    assert Stopped.of(KeyboardInterrupt()).code == 130
    assert Stopped.of(Stopped(signal.SIGTERM)).code == 143
    assert Stopped.of(SystemExit()).code == 143  # as Lightning answers to SIGTERM


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.class_path", "CramerGAN"], r"model\.class_path was '.*WGAN', is '.*CramerGAN'"),
        (["--model.init_args.learning_rate", "0.5"], r"model\.init_args\.learning_rate was 0\.\d+, is 0\.5"),
        (["--model.init_args.generator_hidden", "[8]"], r"generator_hidden was \[16\], is \[8\]"),
        (["--data.batch_size", "64"], r"data\.batch_size was 128, is 64"),
        (["--seed_everything", "5"], r"seed_everything was 4, is 5"),
        (["--trainer.limit_train_batches", "3"], r"trainer\.limit_train_batches was None, is 3"),
    ],
)
def test_going_on_with_other_options_is_refused(fit, last, options, message):
    with pytest.raises(CheckpointError, match=rf"its run had other options: .*{message}"):
        fit("--ckpt_path", str(last), *options)


def test_options_without_effect_may_differ(fit, last, tmp_path):
    """The run is finished, which is what remains to be said."""
    (tmp_path / "toy.root").rename(tmp_path / "moved.root")
    options = ["--data.files", str(tmp_path / "moved.root"), "--trainer.log_every_n_steps", "7", "--threads", "2"]
    with pytest.raises(CheckpointError, match="there is nothing left to train"):
        fit("--ckpt_path", str(last), *options)


def test_a_checkpoint_without_options_is_refused(fit, last, tmp_path):
    from calorefine import Simulator

    Simulator.load(last).save(tmp_path / "slim.ckpt")
    with pytest.raises(CheckpointError, match=r"slim\.ckpt: doesn't tell the options of its run"):
        fit("--ckpt_path", str(tmp_path / "slim.ckpt"))


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_an_untrained_generator_is_not_evaluated(config, verb):
    with pytest.raises(CheckpointError, match=rf"--ckpt_path: none given, expected the checkpoint .* to {verb}"):
        lightning([verb, "-c", str(config)])


def test_predict_writes_its_events(config, last, capsys):
    """One event for each held-out one, in their order, the same in each run."""
    command = ["predict", "-c", str(config), "--ckpt_path", str(last)]
    data = calorefine(command).datamodule
    output = last.with_name("last_predicted.root")
    assert f"{output}: {len(data.validation)} events" in capsys.readouterr().out
    with uproot.open(output) as file:
        first = file["events"].arrays(library="np")
    assert list(first) == ["x", "weight", "key"]
    np.testing.assert_array_equal(first["key"], data.validation.key)
    np.testing.assert_array_equal(first["weight"], data.validation.weight)
    assert np.std(first["x"]) > 0
    assert read_provenance(output)["checkpoint"] == "last.ckpt"
    lightning(command)
    with uproot.open(output) as file:
        np.testing.assert_array_equal(file["events/x"].array(library="np"), first["x"])


def test_logs_of_long_trainings_are_short(fit, capsys, monkeypatch):
    """Lines after the first epoch and at even distances; those of 300 epochs fill less than 20 kB."""
    monkeypatch.setattr(progress, "MOST_LINES", 3)
    fit("--trainer.max_epochs", "7")
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == [f"epoch {k} of 7" for k in (1, 3, 6, 7)]
    for text in ("critic_loss", "generator_loss", "val_loss", "epochs/s, about 0 s left"):
        assert text in lines[-1]
    assert "\r" not in told.out + told.err
    monkeypatch.undo()
    assert len(told.out) + progress.MOST_LINES * (max(map(len, lines)) + 20) < 20_000
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert isinstance(progress.progress(), progress.TerminalBar)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("limit_val_batches", "0", "0 found, expected 1 or none: all held-out events are one batch"),
        ("limit_val_batches", "0.5", "0.5 found, expected 1 or none"),
        ("limit_train_batches", "0", "0 found, expected more"),
        ("precision", "16-mixed", "16-mixed found, expected 32-true"),
        ("gradient_clip_val", "1.0", r"1.0 found, expected none; a recipe has an option of its own.*clip_norm"),
        ("accumulate_grad_batches", "2", r"2 found, expected 1; a larger data\.batch_size"),
        ("overfit_batches", "2", r"2 found, expected 0; a cut in data\.columns"),
        ("max_epochs", "0", "0 found, expected more"),
        ("log_every_n_steps", "0", "0 found, expected more"),
        ("enable_checkpointing", "false", "False found, expected true"),
        ("barebones", "true", "True found, expected false"),
        ("default_root_dir", "elsewhere", "elsewhere found, expected none; --runs names"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(fit, option, value, message):
    with pytest.raises(ConfigError, match=rf"trainer\.{option}: {message}"):
        fit(f"--trainer.{option}", value)


def test_what_lightning_refuses_is_one_error(fit, monkeypatch):
    """Where it is found out: as the trainer is made, as it starts, and as a logger is made."""
    with pytest.raises(ConfigError, match=r"trainer\.strategy fsdp: .*requires a GPU"):
        fit("--trainer.strategy", "fsdp")
    swa = ["--trainer.callbacks+", "StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"]
    with (
        warnings.catch_warnings(),
        pytest.raises(ConfigError, match="trainer: SWA currently works with 1"),
    ):
        warnings.simplefilter("ignore")  # jsonargparse's on writing its device
        fit(*swa)
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(ConfigError, match="expected an installed package"):
        fit("--trainer.logger", "WandbLogger")


def test_a_trial_leaves_nothing(fit, tmp_path, capsys):
    fit("--trainer.fast_dev_run", "2")
    assert "trainer.fast_dev_run: training and validation ran without an error" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_training_without_a_complete_epoch_is_an_error(fit):
    with pytest.raises(TrainingError, match="ended within its first epoch, and left no checkpoint"):
        fit("--trainer.max_time", "00:00:00:00")
