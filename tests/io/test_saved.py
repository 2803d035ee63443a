"""Checkpoints that are damaged or were changed are refused before anything is sampled with them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from calorefine import Simulator
from calorefine.errors import CheckpointError, ConfigError
from calorefine.events import Columns


def test_a_flipped_bit_in_a_tensor_is_noticed(one_checkpoint, tmp_path):
    whole, path = one_checkpoint.read_bytes(), tmp_path / "flipped.ckpt"
    tensor = next(t for t in torch.load(one_checkpoint)["state_dict"].values() if t.numel() > 100)
    at = whole.index(tensor.numpy().tobytes()) + 40
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(CheckpointError, match=r"flipped\.ckpt: damaged: '.*' in it differs from its checksum"):
        Simulator.load(path)


def test_a_truncated_file_is_no_checkpoint(one_checkpoint, tmp_path):
    path = tmp_path / "short.ckpt"
    path.write_bytes(one_checkpoint.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"short\.ckpt: not a readable checkpoint"):
        Simulator.load(path)


class Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_no_code_runs(one_checkpoint, tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({**torch.load(one_checkpoint), "further": Evil(tmp_path / "made")}, path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        Simulator.load(path)
    assert not (tmp_path / "made").exists()


def changed(one_checkpoint, tmp_path, change):
    content, path = torch.load(one_checkpoint), tmp_path / "changed.ckpt"
    change(content)
    torch.save(content, path)
    return path


def set_nan(content):
    next(t for t in content["state_dict"].values() if t.is_floating_point() and t.numel()).view(-1)[0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_nan, "has 1 numbers that are NaN"),
        (lambda c: c["calorefine"].update(mean_weight=float("nan")), "mean_weight has 1 numbers that are NaN"),
        (lambda c: c["calorefine"].pop("domain"), "entry 'domain' is missing"),
        (lambda c: c["calorefine"].pop("format"), "entry 'format' is missing"),
        (lambda c: c.pop("state_dict"), "entry 'state_dict' is missing"),
        (lambda c: c["calorefine"].update(domain=[[0.0, 1.0]]), "domain of shape"),
        (lambda c: c["calorefine"].update(columns=3), "can't be rebuilt, the checkpoint is damaged or was changed"),
        (lambda c: c["calorefine"].update(provenance=None), "can't be rebuilt"),
        (lambda c: c["calorefine"].update(init_args={"no_such": 1}), "can't be rebuilt.*no_such"),
        (lambda c: c["calorefine"]["columns"].update(key=7), "key 7 found, expected list"),
    ],
)
def test_changed_entries_are_named(one_checkpoint, tmp_path, change, message):
    path = changed(one_checkpoint, tmp_path, change)
    with pytest.raises(CheckpointError, match=rf"changed\.ckpt: .*{message}"):
        Simulator.load(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": {"x": {"unit": 3}}, "context": {}}, "unit 3 found"),
        ({"features": {"x": {"no_such": 3}}, "context": {}}, "no_such 3 found, expected no such entry"),
        ({"features": {"x": {"transform": "cubic"}}, "context": {}}, "transform 'cubic' found"),
        ({"features": {}}, "'context'"),
        ({"features": ["x"], "context": {}}, "items"),
    ],
)
def test_columns_of_other_kinds(values, message):
    with pytest.raises(ConfigError, match=f"columns that can't be: .*{message}"):
        Columns.from_dict(values)


def test_columns_of_numpy_numbers():
    values = {"features": {"x": {"bounds": (np.float64(0), None)}}, "context": {"q": {"categories": [np.int64(1), 2]}}}
    assert Columns.from_dict(values).context_names == ["q=1", "q=2"]
