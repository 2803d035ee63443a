"""A calorimeter of six cells in two layers, whose showers are often empty, of one hit, or full to the threshold.

Beside it a proposal for importance sampling over all hit patterns and energies, from the showers' own distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from calorefine import Columns, Events, Simulator
from calorefine.data.batches import Batch
from calorefine.data.module import Prepared
from calorefine.data.showers import Showers
from calorefine.geometry import segmented
from calorefine.models import AutoregressiveCells, Flow, TwoStep
from calorefine.nets import Noise
from tests.data.shower_toy import described

GEOMETRY = segmented([(1, 4), (1, 2)], (80.0, 20.0), 50.0)
COLUMNS: Columns = described(GEOMETRY)
T = GEOMETRY.threshold_mev
BITS = 2 ** np.arange(6)
N_FITTED, N_STEPS = 3000, 150
FREEDOM, WIDER, UNIFORM = 5, 1.3, 0.02  # of the proposal


def draw(n: int, seed: int, e_inc: float | None = None) -> Events:
    """Showers; of one incident energy in GeV and one point of entry, if it is given."""
    rng = np.random.default_rng([6, seed])
    energy, entry = np.exp(rng.uniform(0, 1, n)), rng.uniform(-10, 10, (n, 2))
    if e_inc is not None:
        energy[:], entry[:] = e_inc, (3.0, -2.0)
    share = rng.beta(2, 5, n) * (rng.random(n) < 0.7)
    common = np.exp(0.5 * rng.normal(size=(n, 1)))
    cells = []
    for layer, part in zip(GEOMETRY.layers, (1 - share, share), strict=True):
        r2 = (layer.eta - entry[:, :1]) ** 2
        profile = np.exp(-r2 / (2 * 15.0**2)) + 0.01
        energies = 200 * (part * energy)[:, None] * profile / profile.sum(1, keepdims=True)
        cells.append(energies * rng.gamma(2.0, 0.5, r2.shape) * common)
    x = np.concatenate(cells, axis=1)
    key = np.arange(n, dtype=np.uint64)
    x = np.where(x >= T, x, 0).astype(np.float32)
    return Events(x, np.column_stack([energy, entry]).astype(np.float32), np.ones(n), key, key)


def conditions(n: int, e_inc: float) -> dict[str, np.ndarray]:
    """The same conditions, n times."""
    return {name: np.full(n, value, np.float32) for name, value in zip(COLUMNS.context, (e_inc, 3, -2), strict=True)}


def trained(n_steps: int = N_STEPS) -> Simulator:
    """Generator of such showers after some steps."""
    torch.manual_seed(1)
    events = draw(N_FITTED, 0)
    showers = Showers(epochs=6, hidden=[16]).fit(events, COLUMNS)
    model = TwoStep(first=Flow(hidden=[16]), then=AutoregressiveCells(hidden=[16, 16], n_alone=1))
    domain = np.stack([events.context.min(0), events.context.max(0)], axis=1).astype(np.float64)
    told = {"digest": "none", "n_train": N_FITTED}
    model.prepare(Prepared(COLUMNS, showers, showers.conditions.fit(events, COLUMNS), domain, 1.0, told))
    arrays = (events.x, events.context, events.weight.astype(np.float32))
    batch = model.to_network(Batch(*map(torch.from_numpy, arrays)), torch.Generator().manual_seed(0))
    updates = model.updates()
    optimizers = [update.optimizer(update.parameters) for update in updates]
    for step in range(n_steps):
        rows = torch.randint(N_FITTED, (256,), generator=torch.Generator().manual_seed(step))
        for update, optimizer in zip(updates, optimizers, strict=True):
            optimizer.zero_grad()
            update.loss(Batch(*(part[rows] for part in batch)), Noise(step)).backward()
            optimizer.step()
            update.average.update(step + 1)
    return Simulator(model, model.spec)


class Points(NamedTuple):
    """Showers (n, 6) with the log density (n,) that they were drawn with, and their hit patterns (n,)."""

    x: np.ndarray
    log_density: np.ndarray
    pattern: np.ndarray


def patterns(x: np.ndarray) -> np.ndarray:
    """Number (n,) of the hit pattern of showers (n, 6)."""
    return (x >= T) @ BITS


def proposed(n: int, like: np.ndarray, seed: int) -> Points:
    """Points of a density that is that of showers (m, 6), roughly: for each pattern a t distribution of the logs y."""
    rng = np.random.default_rng([7, seed])
    code = patterns(like)
    share = (1 - UNIFORM) * np.bincount(code, minlength=64) / len(code) + UNIFORM / 64
    hit = like >= T
    y = np.where(hit, np.log(np.maximum(like / T - 1, 1e-6)), 0)
    pattern = rng.choice(64, n, p=share)
    x, log_density = np.zeros((n, 6), np.float32), np.log(share[pattern])
    for number in np.unique(pattern[pattern > 0]):
        own, rows = (number & BITS) > 0, np.flatnonzero(pattern == number)
        shape = stats.multivariate_t(*_moments(y, hit, code == number, own), df=FREEDOM, seed=rng)
        drawn = np.reshape(shape.rvs(len(rows)), (len(rows), -1))
        x[np.ix_(rows, own)] = T * (1 + np.exp(drawn))
        log_density[rows] += shape.logpdf(drawn) - (drawn + np.log(T)).sum(1)
    return Points(x, log_density, pattern)


def _moments(y: np.ndarray, hit: np.ndarray, of_pattern: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and wider covariance of the logs of a pattern's showers; of all hits where there are few."""
    if of_pattern.sum() < 100:
        return np.full(own.sum(), y[hit].mean()), WIDER**2 * y[hit].var() * np.eye(own.sum())
    logs = y[of_pattern][:, own]
    return logs.mean(0), WIDER**2 * np.atleast_2d(np.cov(logs.T))


class Integral(NamedTuple):
    """Integral of the density over all showers, and over those of each of the 64 patterns, with errors."""

    total: float
    error: float
    pattern: np.ndarray
    pattern_error: np.ndarray


def integrated(simulator: Simulator, e_inc: float, n: int, seed: int = 0) -> Integral:
    """Integrate the density at given conditions by n points."""
    points = proposed(n, draw(20_000, 1, e_inc).x, seed)
    log_prob = simulator.log_prob({"showers": points.x} | conditions(n, e_inc))
    weight = np.exp(log_prob - points.log_density)
    sums = [np.bincount(points.pattern, weight**power, 64) / n for power in (1, 2)]
    errors = np.sqrt((sums[1] - sums[0] ** 2) / n)
    return Integral(weight.mean(), weight.std() / n**0.5, sums[0], errors)
