"""The context of showers, in the canonical frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch

from calorefine.data.column_transforms import Conditions
from calorefine.data.frame import Frame
from calorefine.data.preprocessing import Preprocessing
from calorefine.errors import ConfigError
from calorefine.events import Columns, Events
from calorefine.shower_columns import ShowerColumns


class ShowerConditions(Preprocessing):
    """Map of the context of showers: the entry mirrored, and where in its fine cell it is told beside."""

    frame: Frame
    entry: list[str]

    def __init__(self) -> None:
        """Take no options: what it needs is told by the description of the showers."""
        super().__init__()
        self.columns = Conditions()

    def bind(self, columns: Columns) -> Self:
        """Take geometry and point of entry.

        Raises:
            ConfigError: the columns don't tell.
        """
        told = showers_of(columns)
        self.frame, self.entry = Frame(told.calorimeter), told.entry
        return self

    def fit(self, events: Events, columns: Columns) -> Self:
        """Fit the map of the mirrored context; arguments as in the base."""
        self.bind(columns)
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

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Take over what was fitted."""
        self.register_buffer("places", state["places"])
        self.columns.restore(part_of(state, "columns"))
        return self


def showers_of(columns: Columns) -> ShowerColumns:
    """What the columns tell of showers.

    Raises:
        ConfigError: nothing.
    """
    if columns.showers is None:
        msg = "columns: `showers` isn't given, expected the geometry of the calorimeter and the column of the incident "
        raise ConfigError(
            f"{msg}energy, as in configs/showers/photon_columns.yaml: showers: {{geometry: ..., e_inc: ...}}"
        )
    return columns.showers


def part_of(state: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """What belongs to a part of a module, by its name there."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
