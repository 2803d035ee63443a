"""Showers of a small detector: two layers, mirrors, cells that depend on the incident energy and the point of entry."""

from __future__ import annotations

import numpy as np

from calorefine import Column, Columns, Events
from calorefine.geometry import Geometry, segmented
from calorefine.shower_columns import ShowerColumns

GEOMETRY = segmented([(2, 12), (4, 3)], (120.0, 120.0), 0.5)
ENTRY = ["x_mm", "y_mm"]


def described(geometry: Geometry = GEOMETRY, entry: list[str] = ENTRY) -> Columns:
    """Columns of showers in this geometry, entered at these columns."""
    context: dict[str, Column | None] = {"e_inc_gev": None, **dict.fromkeys(entry)}
    features: dict[str, Column | None] = {"showers": Column(shape=[geometry.n_cells])}
    return Columns(features, context, showers=ShowerColumns(geometry.to_dict(), "e_inc_gev", entry))


COLUMNS = described()


def draw(n: int, seed: int = 0, geometry: Geometry = GEOMETRY) -> Events:
    """Events with cells (n, 36) in MeV, many below the threshold and some layers empty; context and weight."""
    rng = np.random.default_rng(seed)
    e_inc, entry = np.exp(rng.uniform(0, 2, n)), rng.uniform(-30, 30, (n, 2))
    share = rng.beta(2, 5, n) * (rng.random(n) < 0.7)
    cells = []
    for layer, part in zip(geometry.layers, (1 - share, share), strict=True):
        r2 = (layer.eta - entry[:, :1]) ** 2 + (layer.phi - entry[:, 1:]) ** 2
        profile = np.exp(-r2 / (2 * 15.0**2)) + 1e-4
        energies = part[:, None] * 60 * e_inc[:, None] * profile / profile.sum(1, keepdims=True)
        cells.append(energies * rng.gamma(2.0, 0.5, r2.shape))
    x = np.concatenate(cells, axis=1).astype(np.float32)
    context = np.column_stack([e_inc, entry]).astype(np.float32)
    key = np.arange(n, dtype=np.uint64)
    return Events(x, context, rng.uniform(0.5, 1.5, n), key, key)
