"""Checkpoints and reweighters: damaged bytes, other pickles, entries that are missing, of another kind, or NaN.

*Damage that counts as `silent`*: other values than those of the whole file after damage to its bytes, which are covered
by the checksums of the zip archive; NaN in a tensor, wherever it is, that is loaded; and a file that runs code.
*Undetectable* are other values from a file that is whole, and whose entries were changed to what they could be.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from fuzz_damage import damaged
from fuzz_harness import Silent

from calorefine import Column, Columns, EventDataModule, Simulator, keys
from calorefine.events import Events
from calorefine.io.root import uproot
from calorefine.models import MODELS
from calorefine.reweighting import BoostingRatio, NetworkRatio, Reweighter

OTHER: tuple[Any, ...] = (
    None,
    "x",
    -1,
    0,
    3,
    1.5,
    float("nan"),
    float("inf"),
    [],
    {},
    True,
    10**6,
    [1, "a"],
    {"a": 1},
    b"",
)
COLUMNS = Columns(
    features={"x": Column(), "k": Column(transform="standard")},
    context={"p_gev": Column("P", branch_unit="MeV"), "charge": Column(categories=[-1, 1])},
    key=["event"],
)


class _Evil:
    """Runs code where it is unpickled without care."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


@cache
def checkpoint(name: str) -> bytes:
    """A checkpoint of a recipe that isn't trained."""
    rng = np.random.default_rng(0)
    momentum = rng.uniform(1000, 10_000, 300)
    arrays = {"P": momentum, "charge": rng.choice([-1, 1], 300).astype(np.int32), "x": rng.normal(momentum / 5000, 1)}
    arrays |= {"k": rng.poisson(2, 300).astype(np.int32), "event": np.arange(300)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "training.root"
        with uproot.recreate(path) as file:
            file["events"] = arrays
        data = EventDataModule(files=str(path), tree="events", columns=COLUMNS, weights="none", batch_size=64)
        data.setup()
        torch.manual_seed(1)
        model = MODELS[name]()
        model.prepare(data.prepared)
        model.take_events(data.train)
        Simulator(model, model.spec).save(Path(folder) / "model.ckpt")
        return (Path(folder) / "model.ckpt").read_bytes()


def _events(rng: np.random.Generator, n: int, first: int) -> Events:
    c = rng.random((n, 1)).astype(np.float32)
    key = keys.make_keys([np.arange(first, first + n)])
    return Events(rng.normal(size=(n, 2)).astype(np.float32) + c, c, np.ones(n), key, key)


@cache
def reweighter(estimator: str) -> bytes:
    """A reweighter of a small training."""
    rng = np.random.default_rng(0)
    torch.manual_seed(1)
    small = {"BoostingRatio": BoostingRatio(n_trees=3, min_samples_leaf=20, n_folds=2, n_repeats=1)}
    small["NetworkRatio"] = NetworkRatio(hidden=[4], updates=3, n_folds=2, n_repeats=1)
    made = Reweighter.fit(
        _events(rng, 400, 0), _events(rng, 400, 10**6), Columns({"x": None, "y": None}, {"c": None}),
        estimator=small[estimator],
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        made.save(Path(folder) / "reweighter.pt")
        return (Path(folder) / "reweighter.pt").read_bytes()


def _sampled(path: Path) -> np.ndarray:
    simulator = Simulator.load(path)
    conditions = {"p_gev": np.array([2.0, 5.0, 8.0]), "charge": np.array([-1, 1, 1])}
    made = simulator.sample(conditions, seed=1)
    return np.stack([np.asarray(made[name], np.float64) for name in ("x", "k")])


def _weighed(path: Path) -> np.ndarray:
    loaded = Reweighter.load(path)
    events = _events(np.random.default_rng(3), 4, 10**7)
    return loaded.factors(events)


@cache
def _expected(whole: bytes, use: Callable[[Path], np.ndarray]) -> np.ndarray:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "whole"
        path.write_bytes(whole)
        return use(path)


def _places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something is in nested containers."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = [path] if path else []
    for name, item in list(items)[:40]:
        found += _places(item, (*path, name))
    return found


def _changed(rng: random.Random, content: Any) -> tuple[Any, bool]:
    """A copy in which something is missing or other; whether it is a NaN in a tensor."""
    new = copy.deepcopy(content)
    places = _places(new)
    depth = rng.randint(1, max(map(len, places)))
    *parents, last = rng.choice([place for place in places if len(place) <= depth])
    parent = new
    for name in parents:
        parent = parent[name]
    old, draw = parent[last], rng.random()
    if isinstance(old, torch.Tensor) and old.is_floating_point() and old.numel() and draw < 0.5:
        flat = old.clone().flatten()
        flat[rng.randrange(len(flat))] = float("nan")
        parent[last] = flat.reshape(old.shape)
        return new, True
    if isinstance(old, torch.Tensor) and draw < 0.8:
        parent[last] = rng.choice([old[..., :-1] if old.ndim else old[None], old[None], old.double(), old.flatten()])
    elif draw < 0.3:
        del parent[last]
    else:
        parent[last] = rng.choice(OTHER)
    return new, False


def _other_pickle(rng: random.Random, canary: Path, content: Any) -> bytes:
    """Something else: a pickle that runs code, another object, text, nothing."""
    buffer = io.BytesIO()
    draw = rng.randrange(6)
    if draw == 0:
        return pickle.dumps(_Evil(canary))
    if draw == 1:
        place = rng.choice(list(content))
        torch.save({**content, place: _Evil(canary)}, buffer)
    elif draw == 2:
        torch.save(_Evil(canary), buffer, _use_new_zipfile_serialization=rng.random() < 0.5)
    elif draw == 3:
        torch.save(rng.choice(OTHER), buffer)
    elif draw == 4:
        return bytes(rng.randrange(256) for _ in range(rng.choice([0, 1, 100])))
    else:
        torch.save({name: rng.choice(OTHER) for name in content}, buffer)
    return buffer.getvalue()


def tried(rng: random.Random, folder: Path, whole: bytes, use: Callable[[Path], np.ndarray]) -> str:
    """Load a file with damage of some kind, and use what it holds."""
    path, canary, draw = folder / "damaged.ckpt", folder / "canary", rng.random()
    with_nan, in_bytes = False, draw < 0.4
    if in_bytes:
        path.write_bytes(damaged(rng, whole, in_place=rng.random() < 0.5))
    else:
        content = torch.load(io.BytesIO(whole), weights_only=True)
        if draw < 0.9:
            changed, with_nan = _changed(rng, content)
            torch.save(changed, path)
        else:
            path.write_bytes(_other_pickle(rng, canary, content))
    try:
        found = use(path)
    finally:
        if canary.exists():
            raise Silent("code from the file ran")
    if with_nan:
        raise Silent("a tensor with NaN was loaded")
    expected = _expected(whole, use)
    if np.array_equal(found, expected):
        return "ok"
    if in_bytes or not np.all(np.isfinite(found)):
        raise Silent(f"{found}, expected {expected}")
    return "undetectable"


def prepare_checkpoints() -> None:
    """Make the whole files."""
    for name in sorted(MODELS):
        _expected(checkpoint(name), _sampled)


def checkpoints(rng: random.Random, folder: Path) -> str:
    """A checkpoint of any recipe."""
    return tried(rng, folder, checkpoint(rng.choice(sorted(MODELS))), _sampled)


def prepare_reweighters() -> None:
    """Make the whole files."""
    for name in ("BoostingRatio", "NetworkRatio"):
        _expected(reweighter(name), _weighed)


def reweighters(rng: random.Random, folder: Path) -> str:
    """A reweighter of networks or of trees."""
    return tried(rng, folder, reweighter(rng.choice(["BoostingRatio", "NetworkRatio"])), _weighed)
