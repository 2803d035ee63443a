"""Two weighted samples of showers, as rows for classifiers and distances: cells, cells in a frame, high-level features.

Rows are `Points`: whatever compares two samples of points compares showers.  The threshold of the geometry is applied
to the cells before anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, shower_observables
from calorefine.errors import ConfigError, ValueRangeError
from calorefine.geometry import AXES, Geometry
from calorefine.shower_observables import Cells
from calorefine.stats import FloatArray
from calorefine.twosample.distances import Points

Frame = Callable[[Cells, FloatArray], tuple[Cells, FloatArray]]
"""Map of cells (n, n_cells) and entry points (n, 2) to those of an equivalent shower, such as its mirror image."""

NOTHING_MEV = 1e-8  # added before a logarithm of an energy, as in the CaloChallenge


@dataclass(frozen=True)
class Showers:
    """Weighted showers with their conditions.

    Args:
        cells: (n, n_cells) energies in MeV.
        e_inc: (n,) incident energies in MeV, positive.
        weight: (n,) positive sum.
        key: (n,) uint64 event keys; a shower and the one generated at its conditions have the same.
        entry_mm: (n, 2) where the particle enters, along (eta, phi); no column if it is not known.

    Raises:
        ConfigError: lengths differ.
        ValueRangeError: incident energies that are not positive and finite.
    """

    cells: Cells
    e_inc: FloatArray
    weight: FloatArray
    key: keys.KeyArray
    entry_mm: FloatArray

    def __post_init__(self) -> None:
        """Check the shapes and energies."""
        n = len(self.cells)
        shapes = self.e_inc.shape, self.weight.shape, self.key.shape
        if shapes != ((n,),) * 3 or self.entry_mm.ndim != 2 or len(self.entry_mm) != n:
            msg = f"incident energies, weights and keys of shapes {shapes}, entry points {self.entry_mm.shape} found, "
            raise ConfigError(f"{msg}expected ({n},) and ({n}, 2 or 0) for {n} showers")
        if bad := int(np.sum(~(np.isfinite(self.e_inc) & (self.e_inc > 0)))):
            raise ValueRangeError(f"showers: {bad} of {n} incident energies are not positive and finite")

    def take(self, index: NDArray[Any]) -> Self:
        """Showers at these indices, or where this mask is true."""
        arrays = (self.cells, self.e_inc, self.weight, self.key, self.entry_mm)
        return type(self)(*(array[index] for array in arrays))


@dataclass(frozen=True)
class Inputs(Points):
    """Rows for a network.

    Args:
        as_they_are: how many of the first columns it takes without a shift and a scale.
    """

    as_they_are: int = 0


def linear_inputs(showers: Showers, geometry: Geometry) -> Inputs:
    """Cells over the incident energy, and the logarithm (base 10) of the latter in MeV: the CaloChallenge's."""
    read = shower_observables.read_out(showers.cells, geometry)
    read /= showers.e_inc[:, None].astype(read.dtype)
    table = np.concatenate([read, np.log10(showers.e_inc)[:, None]], axis=1, dtype=np.float32)
    return Inputs(table, showers.weight, showers.key, table.shape[1])


def same_frame(cells: Cells, entry_mm: FloatArray) -> tuple[Cells, FloatArray]:
    """Leave showers where they are."""
    return cells, entry_mm


def frame_inputs(showers: Showers, geometry: Geometry, *, frame: Frame = same_frame) -> Inputs:
    """Logarithms of cells over the threshold, of the layers' energies and of the incident one, and the entry point.

    Cells are log(1 + cell / threshold), layers log(1 + energy / threshold).

    Args:
        showers: with or without entry points.
        geometry: with a threshold.
        frame: takes each shower to a frame in which symmetric ones are equal.

    Raises:
        ConfigError: a threshold of 0.
    """
    if geometry.threshold_mev == 0:
        raise ConfigError("frame inputs: threshold_mev is 0, expected more: cells are seen in its units")
    cells, entry = frame(shower_observables.read_out(showers.cells, geometry), showers.entry_mm)
    layers = np.log1p(shower_observables.layer_energies(cells, geometry) / geometry.threshold_mev)
    logs = np.log1p(np.asarray(cells, np.float32) / np.float32(geometry.threshold_mev))
    rest = [layers, np.log(showers.e_inc)[:, None], entry]
    table = np.concatenate([logs, *rest], axis=1, dtype=np.float32)
    return Inputs(table, showers.weight, showers.key, geometry.n_cells)


def high_level_names(geometry: Geometry) -> list[str]:
    """Columns of `high_level`, `log_` for the logarithm (base 10) of an energy in MeV."""
    first = [f"log_{name}" if name.startswith("e_layer") else name for name in _of_layers(geometry)]
    return ["response", "log_e_inc", "depth", *first]


def high_level(showers: Showers, geometry: Geometry) -> Points:
    """Response, incident energy, depth, and what is known of each layer, for boosted trees: see `high_level_names`."""
    table = shower_observables.table(
        ["response", "depth", *_of_layers(geometry)], showers.cells, geometry, showers.e_inc
    )
    return _with_logs(np.insert(table, 1, showers.e_inc, axis=1), high_level_names(geometry), showers)


def challenge_names(geometry: Geometry) -> list[str]:
    """Columns of `challenge_features`."""
    every = shower_observables.names(geometry)
    energies, *others = ([n for n in every if n.startswith(k)] for k in ("e_layer_", "ec_", "width_", "sparsity_"))
    return [
        "log_e_inc",
        *(f"log_{name}" for name in energies),
        "log_e_tot",
        *(name for part in others for name in part),
    ]


def challenge_features(showers: Showers, geometry: Geometry) -> Points:
    """Features of the CaloChallenge's FPD and KPD: energies, centers and widths along the axes, and sparsities.

    The challenge has center and width along the radius as well; those are not in here.
    """
    columns = [name.removeprefix("log_") for name in challenge_names(geometry)]
    table = shower_observables.table(columns[1:], showers.cells, geometry)
    return _with_logs(np.insert(table, 0, showers.e_inc, axis=1), challenge_names(geometry), showers)


def _of_layers(geometry: Geometry) -> list[str]:
    """Observables of the layers that `high_level` takes."""
    kinds = ("e_layer", *(f"{kind}_{axis}" for axis in AXES for kind in ("ec", "width")), "occupancy")
    every = shower_observables.names(geometry)
    wanted = [f"{kind}_{layer.number}" for layer in geometry.layers for kind in (*kinds, *shower_observables.HOTTEST)]
    return [name for name in wanted if name in every]


def _with_logs(table: FloatArray, names: list[str], showers: Showers) -> Points:
    """Points of a table, with the logarithm of the columns whose names say so."""
    for column, name in enumerate(names):
        if name.startswith("log_"):
            table[:, column] = np.log10(table[:, column] + NOTHING_MEV)
    return Points(table, showers.weight, showers.key)
