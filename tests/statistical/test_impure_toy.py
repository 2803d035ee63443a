"""Trained on impure data with signed weights, a generator reproduces the pure signal in every bin of the context.

Seeds: 21 for the data, 1 for the training.  A million events, so that the sample's own sWeighted moments are off by 1 %
of the true width at most, and batches worth 740 events each.  The largest of 16 deviations was 0.025 on average over 17
trainings that differ in their seed alone, with a standard deviation of 0.0045, and 0.030 at most
(`benchmarks/steadiness.py`).  The tolerance is almost eight standard deviations away: the chance of failing by
accident is far below 1 in 1000.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import uproot
import yaml

from calorefine import Simulator, losses
from calorefine.datasets import ImpureToy
from calorefine.fit.command import lightning
from calorefine.stats import batch_mean

N_EVENTS, N_CONTEXT_BINS, TOLERANCE = 1_000_000, 4, 0.06
TOY = ImpureToy()


def write(folder):
    """Write the toy and the configuration that trains on it into a folder; return the latter's path."""
    table = TOY.generate(N_EVENTS, seed=21)
    table["w"] = TOY.sweights(table["m"])
    assert (table["w"] < 0).mean() > 0.5
    purity = TOY.purity(np.array([0.0, 1.0]))
    assert purity[1] / purity[0] == pytest.approx(5)
    with uproot.recreate(folder / "toy.root") as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)
    content = {
        "seed_everything": 1,
        "data": {
            "files": str(folder / "toy.root"),
            "tree": "events",
            "columns": {"features": {"x": None, "y": None}, "context": {"c": None}, "key": ["run", "event"]},
            "weights": "w",
            "batch_size": 4096,
            "validation_fraction": 0.005,
        },
        "model": {
            "class_path": "WGAN",
            "init_args": {
                "latent_size": 4,
                "generator_hidden": [32, 32],
                "critic_hidden": [64, 64],
                "learning_rate": 2e-3,
                "betas": [0.5, 0.9],
                "n_critic": 2,
                "penalty_weight": 0.3,
                "penalty_norm": 0.0,
                "penalty_stride": 4,
                "average_decay": 0.998,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 12,
            "check_val_every_n_epoch": 6,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(content))
    return folder / "toy.yaml"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write(tmp_path_factory.mktemp("impure"))


def trained(config, *options):
    """Checkpoint of a training."""
    run = lightning(["fit", "-c", str(config), "--runs", str(config.parent / "runs"), *options]).run_dir
    return run / "checkpoints" / "best.ckpt"


def deviations(checkpoint):
    """(context bins, features, 2): errors of mean and width, in units of the true width."""
    simulator = Simulator.load(checkpoint)
    out = np.empty((N_CONTEXT_BINS, 2, 2))
    for k in range(N_CONTEXT_BINS):
        c = np.random.default_rng(31 + k).uniform(k / N_CONTEXT_BINS, (k + 1) / N_CONTEXT_BINS, 100_000)
        events = simulator.sample({"c": c}, seed=5)
        mean, width = TOY.signal_moments(c)
        for j, name in enumerate("xy"):
            true_mean, true_width = mean[:, j].mean(), np.sqrt(np.mean(width[:, j] ** 2) + np.var(mean[:, j]))
            out[k, j] = (events[name].mean() - true_mean) / true_width, events[name].std() / true_width - 1
    return out


@pytest.mark.chain
def test_signed_weights_train_the_pure_signal(config):
    assert np.abs(deviations(trained(config))).max() < TOLERANCE


@pytest.mark.slow
def test_fails_when_the_generated_term_is_unweighted(config):
    """The mistake that is easily made is noticed: the largest deviation is 1.8, with the right loss 0.018 (seed 1)."""

    def unweighted(reference, generated, *, weight, mean_weight):
        return batch_mean(reference, weight, mean_weight) - generated.mean()

    short = ["--trainer.max_epochs", "6"]
    with mock.patch.object(losses, "wasserstein", unweighted):
        assert np.abs(deviations(trained(config, *short))).max() > 10 * TOLERANCE
