"""Tensors are made on the batch's device: nothing that works on one makes a tensor without saying where."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

import calorefine
from calorefine import Simulator
from calorefine.data.batches import Batch
from calorefine.ensemble.side_by_side import together
from calorefine.models.abilities import Likelihood

NAMES = [
    "arange",
    "empty",
    "eye",
    "full",
    "linspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
]
FACTORIES = {getattr(torch, name) for name in NAMES}
OURS = (str(Path(calorefine.__file__).parent), str(Path(__file__).parent), "nflows")


def caller():
    """File and line outside of torch that called."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


class Homeless(TorchFunctionMode):
    """Notes where we make tensors without a device; what the libraries do with their own is theirs."""

    def __init__(self):
        super().__init__()
        self.places = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        del types
        if func in FACTORIES and (kwargs or {}).get("device") is None:
            file, line = caller()
            if any(part in file for part in OURS):
                self.places.add(f"{file}:{line}")
        return func(*args, **(kwargs or {}))


def fit(model, batches, held_out):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, enable_model_summary=False, **quiet)
    trainer.fit(model, DataLoader(batches, batch_size=None), DataLoader(held_out, batch_size=None))


def parts(sample):
    return [Batch(*(array[first : first + 60] for array in sample)) for first in range(0, 240, 60)]


def prepared(untrained, sample_of, name, seed):
    """A recipe with an integer feature, batches in network units, and held-out events in physical units."""
    model = untrained(name, seed, kind="integer", dtype=torch.float32)
    sample = Batch(*(array.float() for array in sample_of(model)))
    held_out = sample._replace(x=model.physical(sample.x, sample.context), context=sample.context.clamp(0, 1))
    return model, parts(sample), held_out


def test_tensors_have_a_device(recipe, untrained, sample_of):
    """A training step, validation, sampling, and a likelihood."""
    context = {"p": np.full(20, 0.5), "q": np.full(20, 0.5)}
    model, batches, held_out = prepared(untrained, sample_of, recipe, 5)
    with Homeless() as homeless:
        fit(model, batches, [held_out])
        simulator = Simulator(model, model.spec)
        events = simulator.sample(context, seed=1)
        if isinstance(model, Likelihood):
            simulator.log_prob(events | context)
    assert homeless.places == set()


def test_tensors_have_a_device_side_by_side(stackable, untrained, sample_of, tmp_path):
    both = [prepared(untrained, sample_of, stackable, seed) for seed in (5, 6)]
    replicas, batches, held_out = zip(*both, strict=True)
    joined = together(replicas, [tmp_path / name for name in "ab"])
    stacked = [Batch(*map(torch.stack, zip(*pair, strict=True))) for pair in zip(*batches, strict=True)]
    with Homeless() as homeless:
        fit(joined, stacked, [list(held_out)])
    assert homeless.places == set()


@pytest.mark.parametrize("device", ["cpu", None])
def test_a_tensor_without_a_device_is_noticed(device):
    with Homeless() as homeless:
        torch.zeros(3, device=device)
    assert bool(homeless.places) == (device is None)


def test_noise_is_the_same_on_each_device():
    """Drawn on the CPU, and then taken to the device."""
    from calorefine.nets import Noise

    assert Noise(3, device="meta").normal(4, 2).device == torch.device("meta")
    torch.testing.assert_close(Noise(3, 3, device="cpu").normal(4, 2)[1], Noise(3).normal(4, 2), rtol=0, atol=0)
