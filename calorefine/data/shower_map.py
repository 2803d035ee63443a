"""What all preprocessings of showers share: where the cells are, the canonical frame, the threshold, the context."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import torch

from calorefine.data.frame import Frame
from calorefine.data.layer_energies import LayerEnergies
from calorefine.data.preprocessing import Preprocessing
from calorefine.data.shower_conditions import ShowerConditions, part_of, showers_of
from calorefine.errors import ConfigError, ValueRangeError
from calorefine.events import Columns, Events
from calorefine.geometry import Geometry

ROWS = 1024


class ShowerMap(Preprocessing):
    """Map of the cells of showers; where they are, and who entered where, `Columns.showers` tells."""

    calorimeter: Geometry
    frame: Frame
    energies: LayerEnergies

    def __init__(self) -> None:
        """Make the map of the context."""
        super().__init__()
        self.context_map = ShowerConditions()

    def bind(self, columns: Columns) -> Self:
        """Take geometry, incident energy and point of entry.

        Raises:
            ConfigError: the columns don't tell.
        """
        self.frame = self.context_map.bind(columns).frame
        self.calorimeter = self.frame.geometry
        numbers = [layer.number for layer in self.calorimeter.layers]
        self.energies = LayerEnergies(showers_of(columns).e_inc, numbers, self.threshold)
        return self

    @property
    def threshold(self) -> float:
        """Threshold of the readout, in MeV; a tiny one where there is none."""
        return self.calorimeter.threshold_mev or 1e-6

    @property
    def conditions(self) -> Preprocessing:
        """Map of the context: its entry mirrored."""
        return ShowerConditions()

    def _check_showers(self, events: Events, columns: Columns) -> None:
        """Take what the columns tell, and check the showers; arguments as of `fit`.

        Raises:
            ConfigError: columns that say nothing of showers, or have further features, or an offset on a point of
                entry.
            ValueRangeError: negative energies.
        """
        self.bind(columns)
        if others := [name for name in columns.features if name != columns.cells]:
            msg = f"showers: features {', '.join(others)} beside '{columns.cells}' found, expected the cells alone"
            raise ConfigError(msg)
        for name in self.context_map.entry:
            if offset := columns.context_columns[name].offset:
                msg = f"context '{name}': offset {offset:g} found, expected none: it says where a shower enters"
                raise ConfigError(msg)
        if (negative := int((events.x < 0).sum())) > 0:
            msg = f"feature '{columns.cells}': {negative} negative energies found, the lowest {events.x.min():g}"
            raise ValueRangeError(f"{msg}; expected 0 or more")

    def _fit_energies(self, events: Events, columns: Columns) -> torch.Tensor:
        """Fit the maps of the context and of the energies (n, L) of the layers, which are returned, in MeV, float64."""
        self.context_map.fit(events, columns)
        x = torch.from_numpy(events.x)
        layers = torch.cat([self.layers_of(self._read(x[rows])) for rows in row_blocks(len(x))])
        self.energies.fit(dataclasses.replace(events, x=layers.numpy()), columns)
        return layers

    def _restore_energies(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what was fitted of context and energies."""
        self.context_map.restore(part_of(state, "context_map"))
        self.energies.restore(part_of(state, "energies"))

    def _read(self, x: torch.Tensor) -> torch.Tensor:
        """Cells (n, N) with what is below the threshold at 0."""
        return torch.where(x >= self.threshold, x, 0.0)

    def _in_frame(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Cells (n, N) that are read out, in the canonical frame."""
        return self.frame.canonical(self._read(x), self.context_map.entry_of(context))

    def layers_of(self, x: torch.Tensor) -> torch.Tensor:
        """Energies (n, L) of the layers of cells (n, N), float64."""
        return torch.stack([x[:, at].sum(1, dtype=torch.float64) for at in self.calorimeter.slices], dim=1)


def row_blocks(n: int) -> list[slice]:
    """Rows of n showers in blocks."""
    return [slice(first, first + ROWS) for first in range(0, n, ROWS)]
