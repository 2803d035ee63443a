"""The canonical frame: showers of a symmetric detector as if all had entered it at the same place.

A shower is mirrored so that it enters at eta, phi >= 0, and the cells of each layer are moved by whole cells so that
the cell of entry is always the one next to the middle.  Both are undone after sampling.  Where a symmetry holds, a
network need not learn it, and sees four times the events.  Cells that are moved out on one side come in on the other
one, so that the map is exact; they are as far from the shower as a cell can be.
"""

from __future__ import annotations

import torch

from calorefine.geometry import AXES, Geometry, Layer


class Frame:
    """Permutations of the cells that take showers to the canonical frame.

    Args:
        geometry: of the calorimeter; without mirrors the frame is the detector's own.
    """

    def __init__(self, geometry: Geometry) -> None:
        """Keep the geometry."""
        self.geometry = geometry
        self.mirrors = torch.tensor(geometry.mirrors)
        self.is_trivial = not any(geometry.mirrors)
        self.fine = self._fine()

    def entry(self, entry: torch.Tensor) -> torch.Tensor:
        """Points of entry (n, 2) in mm, mirrored; those of the canonical frame stay as they are."""
        return torch.where(self.mirrors.to(entry.device), entry.abs(), entry)

    def canonical(self, cells: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """Cells (n, N) of showers that entered at (n, 2), in the canonical frame."""
        return cells if self.is_trivial else cells.gather(1, self.sources(entry))

    def restored(self, cells: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """Inverse of `canonical`."""
        return cells if self.is_trivial else torch.empty_like(cells).scatter_(1, self.sources(entry), cells)

    def sources(self, entry: torch.Tensor) -> torch.Tensor:
        """Numbers (n, N) of the cells that come to each place of the canonical frame."""
        flipped = self.mirrors.to(entry.device) & (entry < 0)
        mirrored = self.entry(entry)
        layers = zip(self.geometry.layers, self.geometry.slices, strict=True)
        return torch.cat(
            [at.start + _sources(layer, flipped, mirrored, self.geometry.mirrors) for layer, at in layers], dim=1
        )

    def within(self, entry: torch.Tensor) -> torch.Tensor:
        """Where (n, k) in the cell of entry a mirrored entry lies, from -1 to 1, for each size of cells.

        Sizes are those along each mirrored axis that are not the largest there, the coarse cells' being told by the
        entry itself.
        """
        places = [
            2 * torch.frac((self.entry(entry)[:, axis] + pitch * (odd / 2)) / pitch) - 1
            for axis, pitch, odd in self.fine
        ]
        return torch.stack(places, dim=1) if places else entry[:, :0]

    def _fine(self) -> list[tuple[int, float, int]]:
        """Axis, size of a cell, and whether the number of cells is odd, of each grid that is finer than another one."""
        found = set()
        for axis in range(len(AXES)):
            if self.geometry.mirrors[axis]:
                grids = {(_pitch(layer, axis), _number(layer, axis) % 2) for layer in self.geometry.layers}
                largest = max(pitch for pitch, _ in grids)
                found |= {(axis, pitch, odd) for pitch, odd in grids if pitch < largest}
        return sorted(found)


def _pitch(layer: Layer, axis: int) -> float:
    return (layer.pitch_mm or (0.0, 0.0))[axis]


def _number(layer: Layer, axis: int) -> int:
    rows, columns = layer.grid or (0, 0)
    return (columns, rows)[axis]


def _sources(layer: Layer, flipped: torch.Tensor, entry: torch.Tensor, mirrors: tuple[bool, bool]) -> torch.Tensor:
    """Numbers (n, cells) of the cells of a grid that come to each place, for flips and mirrored entries (n, 2).

    They are moved along the axes that have mirrors.
    """
    eta, phi = (
        _line(_number(layer, a), _pitch(layer, a), flipped[:, a], entry[:, a] * mirrors[a]) for a in range(len(AXES))
    )
    return (phi[:, :, None] * _number(layer, 0) + eta[:, None, :]).flatten(1)


def _line(number: int, pitch: float, flipped: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
    """Numbers (n, number) of the cells along one axis that come to each place."""
    middle = 0.5 * (number % 2)
    shift = torch.floor(entry / pitch + middle).long()[:, None]
    place = (torch.arange(number, device=entry.device) + shift) % number
    return torch.where(flipped[:, None], number - 1 - place, place)
