"""Geometry of a calorimeter as data: where its cells are, which symmetries hold, and from which energy a cell is read.

Nothing else in calorefine is written for one detector: sources, preprocessing and observables of showers take a
`Geometry`.  The axes are eta and phi, as the CaloChallenge names them; in a detector with flat cells these are x and y.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError

FloatArray = NDArray[np.float64]
AXES = ("eta", "phi")


@dataclass(frozen=True)
class Layer:
    """Cells of one layer, in the order in which showers hold them.

    Args:
        number: of the layer in its detector, as in `e_layer_12`; layers without cells are left out.
        eta: (n,) centers of the cells in mm.
        phi: (n,) likewise.
        grid: (rows, columns) if the cells are a regular grid, eta along a row and phi along a column; None otherwise.
        pitch_mm: size of a cell of the grid along (eta, phi).
        resolved: whether the layer is divided along (eta, phi), so that a center and a width there mean something.
        edges_mm: of the bins in the radius, if the cells are bins in radius and angle, the radius the faster index.
    """

    number: int
    eta: FloatArray
    phi: FloatArray
    grid: tuple[int, int] | None = None
    pitch_mm: tuple[float, float] | None = None
    resolved: tuple[bool, bool] = (True, True)
    edges_mm: tuple[float, ...] | None = None

    @classmethod
    def of_grid(cls, number: int, grid: tuple[int, int], pitch_mm: tuple[float, float]) -> Layer:
        """Layer of (rows, columns) cells of this size along (eta, phi), centered at 0; columns are the faster index.

        >>> Layer.of_grid(0, (1, 4), (5.0, 160.0)).eta
        array([-7.5, -2.5,  2.5,  7.5])
        """
        rows, columns = grid
        eta, phi = ((np.arange(n) - (n - 1) / 2) * size for n, size in zip((columns, rows), pitch_mm, strict=True))
        return cls(number, np.tile(eta, rows), np.repeat(phi, columns), grid, pitch_mm, (columns > 1, rows > 1))

    @classmethod
    def of_rings(cls, number: int, edges_mm: Sequence[float], n_alpha: int) -> Layer:
        """Layer of bins in the radius, with these edges, times bins in the angle, from -pi to pi.

        Centers are at the middle of a bin; those of rings that aren't divided are at 0.

        >>> Layer.of_rings(0, (0.0, 2.0, 6.0), 4).eta.round(3)
        array([-0.707, -2.828,  0.707,  2.828,  0.707,  2.828, -0.707, -2.828])
        """
        edges = np.asarray(edges_mm, np.float64)
        r = (edges[:-1] + edges[1:]) / 2 if n_alpha > 1 else np.zeros(len(edges) - 1)
        alpha = math.pi * ((2 * np.arange(n_alpha) + 1) / n_alpha - 1)
        eta, phi = (np.outer(turn, r).reshape(-1) for turn in (np.cos(alpha), np.sin(alpha)))
        return cls(number, eta, phi, resolved=(n_alpha > 2, n_alpha > 1), edges_mm=tuple(edges.tolist()))

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.eta)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers; a grid or rings in short, all other layers cell by cell."""
        if self.edges_mm is not None:
            short: dict[str, Any] = {"edges_mm": list(self.edges_mm), "n_alpha": len(self) // (len(self.edges_mm) - 1)}
        elif self.grid is not None and self.pitch_mm is not None:
            short = {"grid": list(self.grid), "pitch_mm": list(self.pitch_mm)}
        else:
            cells = {"eta": self.eta.tolist(), "phi": self.phi.tolist()}
            return {"number": self.number, **cells, "resolved": list(self.resolved)}
        return {"number": self.number, **short}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layer:
        """Inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        number = int(values["number"])
        if "edges_mm" in values:
            return cls.of_rings(number, [float(edge) for edge in values["edges_mm"]], int(values["n_alpha"]))
        if "grid" in values:
            (rows, columns), (width, height) = values["grid"], values["pitch_mm"]
            return cls.of_grid(number, (int(rows), int(columns)), (float(width), float(height)))
        eta, phi = (np.asarray(values[axis], np.float64) for axis in AXES)
        along_eta, along_phi = values.get("resolved", (True, True))
        return cls(number, eta, phi, resolved=(bool(along_eta), bool(along_phi)))


@dataclass(frozen=True)
class Geometry:
    """Layers of a calorimeter, in the order in which showers hold them.

    Args:
        layers: those that have cells.
        threshold_mev: energy below which a cell is not read out, in MeV.
        mirrors: whether the detector looks the same when eta, phi change their sign.

    Raises:
        ConfigError: no cell, a layer twice, a threshold that is negative, or mirrors of layers that are no grids.
    """

    layers: tuple[Layer, ...]
    threshold_mev: float = 0.0
    mirrors: tuple[bool, bool] = (False, False)

    def __post_init__(self) -> None:
        """Check that it makes sense."""
        numbers = [layer.number for layer in self.layers]
        if not numbers or not all(map(len, self.layers)):
            raise ConfigError("geometry: a layer without cells found, expected at least one in each layer")
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"geometry: layers {numbers} found, expected each once")
        if not self.threshold_mev >= 0:
            raise ConfigError(f"geometry: threshold_mev is {self.threshold_mev}, expected 0 or more")
        if any(self.mirrors) and not all(layer.grid for layer in self.layers):
            raise ConfigError("geometry: mirrors given, and a layer that is no grid; expected grids")

    @property
    def n_cells(self) -> int:
        """Number of cells of all layers."""
        return sum(map(len, self.layers))

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Places of the layers among the cells of a shower."""
        ends = np.cumsum([len(layer) for layer in self.layers]).tolist()
        return tuple(slice(end - len(layer), end) for layer, end in zip(self.layers, ends, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for checkpoints and provenance."""
        layers = [layer.to_dict() for layer in self.layers]
        return {"layers": layers, "threshold_mev": self.threshold_mev, "mirrors": list(self.mirrors)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Geometry:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: it is something else.
        """
        try:
            layers = tuple(map(Layer.from_dict, values["layers"]))
            along_eta, along_phi = values.get("mirrors", (False, False))
            threshold = float(values.get("threshold_mev", 0.0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"geometry: layers that can't be found ({error!r}), expected each with number, and with grid and "
            raise ConfigError(f"{msg}pitch_mm, edges_mm and n_alpha, or eta and phi") from error
        return cls(layers, threshold, (bool(along_eta), bool(along_phi)))


def segmented(grids: list[tuple[int, int]], size_mm: tuple[float, float], threshold_mev: float = 0.0) -> Geometry:
    """Geometry of layers that are grids of (rows, columns) over the same area, size along (eta, phi), with mirrors.

    >>> segmented([(3, 96), (12, 12), (12, 6)], (480.0, 480.0), 0.1).n_cells
    504
    """
    layers = tuple(
        Layer.of_grid(number, (rows, columns), (size_mm[0] / columns, size_mm[1] / rows))
        for number, (rows, columns) in enumerate(grids)
    )
    return Geometry(layers, threshold_mev, (True, True))


def pitches(layer: Layer) -> tuple[float, float]:
    """Size of a cell along (eta, phi) in mm; of cells that are no grid the mean distance to the nearest one, for both.

    Without a grid, a layer of a single cell has 1 for both.
    """
    if layer.pitch_mm is not None:
        return layer.pitch_mm
    places = np.column_stack([layer.eta, layer.phi])
    if len(places) < 2:
        return 1.0, 1.0
    from scipy.spatial import cKDTree

    nearest = float(cKDTree(places).query(places, k=2)[0][:, 1].mean())
    return (nearest or 1.0,) * 2
