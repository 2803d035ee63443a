"""The context of showers, in the canonical frame, and what a configuration says of their geometry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch

from calorefine.data.column_transforms import Conditions
from calorefine.data.frame import Frame
from calorefine.data.preprocessing import Preprocessing
from calorefine.errors import ConfigError, nearest
from calorefine.events import Columns, Events
from calorefine.geometry import Geometry, segmented

GRID_OPTIONS = ("grids", "size_mm", "threshold_mev")


class ShowerConditions(Preprocessing):
    """Map of the context of showers: the entry mirrored, and where in its fine cell it is told beside.

    Args:
        geometry: of the calorimeter, or what `Geometry.to_dict` gives.
        entry: context columns of the point of entry along eta and phi, in mm; none of them without mirrors.
    """

    def __init__(self, geometry: Geometry | dict[str, Any], entry: list[str]) -> None:
        """Keep the options."""
        super().__init__()
        self.geometry, self.entry = geometry, entry
        self.frame = Frame(geometry_of(geometry))
        self.columns = Conditions()

    def fit(self, events: Events, columns: Columns) -> Self:
        """Fit the map of the mirrored context; arguments as in the base."""
        self.register_buffer("places", torch.tensor([columns.context_names.index(name) for name in self.entry]))
        mirrored = self._mirrored(torch.from_numpy(events.context)).numpy()
        self.columns.fit(Events(events.x, mirrored, events.weight, events.key, events.event_key), columns)
        return self

    def entry_of(self, context: torch.Tensor) -> torch.Tensor:
        """Points of entry (n, 2) of context (n, c), both in physical units."""
        places: Any = self.places
        return context[:, places] if len(places) else context.new_zeros(len(context), 2)

    def _mirrored(self, context: torch.Tensor) -> torch.Tensor:
        places: Any = self.places
        if not len(places):
            return context
        return context.index_copy(1, places, self.frame.entry(self.entry_of(context)))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Map context (n, c) to network values (n, k)."""
        mirrored = self._mirrored(x)
        within = self.frame.within(self.entry_of(x)).float()
        return torch.cat([self.columns(mirrored), within], dim=1)

    def inverse(self, u: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Map network values (n, k) to the context (n, c), with the entry in the canonical frame."""
        return self.columns.inverse(u[..., : self.columns.n_columns])

    @property
    def n_columns(self) -> int:
        """Number of network values k."""
        return self.columns.n_columns + len(self.frame.fine)

    def to_dict(self) -> dict[str, Any]:
        """Name and configuration."""
        told = {"geometry": self.frame.geometry.to_dict(), "entry": self.entry}
        return {"name": type(self).__name__, "init_args": told}

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Take over what was fitted."""
        self.register_buffer("places", state["places"])
        self.columns.restore(part_of(state, "columns"))
        return self


def geometry_of(given: Geometry | dict[str, Any]) -> Geometry:
    """Geometry of what a configuration or a checkpoint says.

    Raises:
        ConfigError: it says something else than expected.
    """
    if isinstance(given, Geometry):
        return given
    if "layers" in given:
        return Geometry.from_dict(given)
    if unknown := sorted(set(given) - set(GRID_OPTIONS)) or sorted({"grids", "size_mm"} - set(given)):
        found = f"{', '.join(given) or 'nothing'} found{nearest(unknown[0], GRID_OPTIONS)}"
        raise ConfigError(f"geometry: {found}; expected {', '.join(GRID_OPTIONS)}")
    grids = [(rows, columns) for rows, columns in given["grids"]]
    width, height = given["size_mm"]
    return segmented(grids, (width, height), given.get("threshold_mev", 0.0))


def part_of(state: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """What belongs to a part of a module, by its name there."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
