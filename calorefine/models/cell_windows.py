"""What the cells of a shower see of those before them, from the geometry alone: windows, and the order of the cells."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from calorefine.geometry import AXES, Geometry, pitches

LINES = ((0.0, 1.0), (1.0, 3.0))
"""Distances, in cells, of neighbors in the own row or column: above the first, up to the second."""
RINGS = ((0.0, 1.0), (1.0, 2.0), (2.0, 5.0))
"""Distances of others in the own layer."""
N_OWN = 1 + 2 * len(LINES) + len(RINGS)  # windows in the own layer, the first ones
N_WINDOWS = N_OWN + 3
NEXT = (1, 1 + len(LINES), 1 + 2 * len(LINES))  # of the windows, those of cells that are next to each other
SLACK = 1e-3  # cells, in distances


def places_of(geometry: Geometry) -> torch.Tensor:
    """Numbers (N, f) that tell where cells are: their layer, and their distance from the middle in cells, as logs."""
    rows = []
    for index, layer in enumerate(geometry.layers):
        number = np.eye(len(geometry.layers))[index]
        places = [np.asarray(getattr(layer, axis)) / pitch for axis, pitch in zip(AXES, pitches(layer), strict=True)]
        logs = [np.sign(place) * np.log1p(np.abs(place)) / 3 for place in places]
        rows.append(np.column_stack([np.tile(number, (len(layer), 1)), *logs]))
    return torch.from_numpy(np.concatenate(rows)).float()


def windows_of(geometry: Geometry) -> list[NDArray[np.bool_]]:
    """Which cells (N, N) are in each of the windows of each cell, the cell itself in none."""
    layer = np.repeat(np.arange(len(geometry.layers)), [len(one) for one in geometry.layers])
    same = layer[:, None] == layer
    before = layer[:, None] == layer + 1
    pitch = np.concatenate([np.tile(pitches(one), (len(one), 1)) for one in geometry.layers])
    place = np.concatenate([np.column_stack([one.eta, one.phi]) for one in geometry.layers])
    apart = np.abs(place[:, None] - place)
    cells_apart = apart / pitch[:, None]
    own = cells_apart.max(-1)
    over = (apart / ((pitch[:, None] + pitch) / 2)).max(-1)
    in_line = [same & (cells_apart[..., axis] < SLACK) for axis in (1, 0)]
    windows = [line & _within(own, span) for line in in_line for span in LINES]
    windows += [same & ~in_line[0] & ~in_line[1] & _within(own, span) for span in RINGS]
    windows += [before & (over < 1 - SLACK), before & (over < 2.5), layer[:, None] > layer]
    return [same & ~np.eye(len(layer), dtype=bool), *windows]


def _within(distance: NDArray[np.float64], span: tuple[float, float]) -> NDArray[np.bool_]:
    return np.asarray((distance > span[0] + SLACK) & (distance <= span[1] + SLACK))


def blocks_of(geometry: Geometry, expected: NDArray[np.float64], n_alone: int) -> NDArray[np.int64]:
    """Block (N,) of each cell: layer after layer, the `n_alone` with most energy alone, of the others no neighbors."""
    windows = windows_of(geometry)
    near = np.logical_or.reduce([windows[k] for k in NEXT])
    block, first = np.zeros(geometry.n_cells, np.int64), 0
    for part in geometry.slices:
        order = part.start + np.argsort(-expected[part], kind="stable")
        block[order[:n_alone]] = first + np.arange(len(order[:n_alone]))
        color = np.full(geometry.n_cells, -1)
        for cell in order[n_alone:]:
            taken = set(color[near[cell]].tolist())
            color[cell] = next(k for k in range(geometry.n_cells) if k not in taken)
        others = order[n_alone:]
        block[others] = first + len(order[:n_alone]) + color[others]
        first = int(block[part].max()) + 1
    return block
