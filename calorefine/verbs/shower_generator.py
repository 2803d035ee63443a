"""What a generator of showers tells by itself: how long it takes, and what its showers do as one condition varies."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from calorefine import keys, stats
from calorefine.data.shower_conditions import showers_of
from calorefine.events import Columns
from calorefine.simulator import AnySimulator
from calorefine.stats import FloatArray
from calorefine.twosample.shower_pictures import Traversal
from calorefine.twosample.shower_results import Times

BATCHES = (1, 100, 10_000)  # showers in a call
MOST_CELLS = 2**28  # in a call: 1 GiB
TIMED_FOR = 0.5  # seconds that calls are repeated for
STEPS = 5  # showers of a traversal
RANGE = (0.02, 0.98)  # quantiles of the reference that a condition is varied between


def times(simulator: AnySimulator, context: Mapping[str, FloatArray], n_cells: int) -> Times:
    """CPU time of sampling in calls of 1, 100 and 10 000 showers; larger calls than 1 GiB of cells are left out.

    Args:
        simulator: of showers.
        context: name of a condition to its values (n,), over which calls go.
        n_cells: of a shower.
    """
    sizes = [n for n in BATCHES if n * n_cells <= MOST_CELLS]
    found = {n: _milliseconds(simulator, {k: np.resize(v, n) for k, v in context.items()}, n) for n in sizes}
    return Times(found, torch.get_num_threads())


def _milliseconds(simulator: AnySimulator, context: Mapping[str, FloatArray], n: int) -> float:
    """Per shower, after one call that isn't timed where calls are short."""
    if n < BATCHES[-1]:
        simulator.sample(context, seed=0)
    start, calls = time.process_time(), 0
    while calls == 0 or time.process_time() - start < TIMED_FOR:
        simulator.sample(context, seed=calls)
        calls += 1
    return 1000 * (time.process_time() - start) / (n * calls)


def traversals(
    simulator: AnySimulator, context: Mapping[str, FloatArray], weight: FloatArray, columns: Columns, *, seed: int
) -> list[Traversal]:
    """Showers of one key and seed, with the incident energy, and each coordinate of the point of entry, varied.

    The other conditions are at their medians in the reference, the varied one goes through the central 96 % of it;
    energies in equal steps of the logarithm.

    Args:
        simulator: of showers.
        context: name of a condition to its values (n,) in the reference.
        weight: (n,) any sign, positive sum.
        columns: of showers.
        seed: of the noise.
    """
    showers = showers_of(columns)
    middle = {name: float(stats.quantile(values, weight, [0.5])[0]) for name, values in context.items()}
    key = keys.make_keys([np.zeros(STEPS, np.int64)])
    found = []
    for name in (showers.e_inc, *showers.entry):
        low, high = stats.quantile(context[name], weight, RANGE).tolist()
        values = np.geomspace(low, high, STEPS) if name == showers.e_inc else np.linspace(low, high, STEPS)
        at = {other: np.full(STEPS, number) for other, number in middle.items()} | {name: values}
        cells = simulator.sample(at, seed=seed, key=key)[columns.cells]
        found.append(Traversal(name, values, cells.reshape(STEPS, -1)))
    return found
