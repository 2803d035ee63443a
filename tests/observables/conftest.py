"""Events with jets, signed weights and replicas."""

from __future__ import annotations

import numpy as np
import pytest
import uproot

from calorefine.io.root import RootFiles


def arrays_of(n, *, seed=0, k=4):
    """`p` in 0 to 10, `x` about p, signed weights `w`, `k` complete replica weights `w_replica`, `in_domain`."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0, 10, n)
    w = rng.normal(0.7, 0.8, n)
    return {
        "p": p,
        "x": rng.normal(p, 1 + p / 10),
        "flag": rng.random(n) < p / 12,
        "w": w,
        "w_replica": w[:, None] * rng.poisson(1, (n, k)),
        "in_domain": p < 9,
    }


@pytest.fixture(scope="session")
def events():
    """The function `arrays_of`."""
    return arrays_of


@pytest.fixture
def source(root_file):
    """Function that writes arrays and returns their files."""

    def make(arrays, name="events.root", **options):
        return RootFiles(str(root_file_of(root_file, arrays, name, **options)), "events")

    return make


def root_file_of(root_file, arrays, name, **options):
    """Write arrays of one or k numbers per event."""
    if all(array.ndim == 1 for array in arrays.values()):
        return root_file(arrays, name, **options)
    path = root_file({"unused": np.zeros(1)}, name)
    tree_format = options.get("tree_format", "ttree")
    with uproot.recreate(path) as file:
        make = file.mktree if tree_format == "ttree" else file.mkrntuple
        make("events", {k: np.dtype((v.dtype, v.shape[1:])) for k, v in arrays.items()}).extend(arrays)
    return path
