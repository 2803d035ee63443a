r"""Preprocessing of showers: energies first, and then cells that are Gaussianized given these and the conditions.

Cells below the threshold of the readout count as 0, on both sides.  A shower in the canonical frame (`frame`) is

* L *energies* of the layers, as response and logarithms of ratios (`layer_energies`);
* N *cells*, each mapped to a standard normal number by its density given conditions and energies (`cells`): the network
  is fitted here, with the events' weights, by maximum likelihood.

On the way back what the cells of each layer have over the threshold is scaled to its energy, so that hits stay hits.  A
shower comes back from its network values as it was, but for hits that the fitted density holds for
all but impossible, or that are at the threshold to single precision: one in some thousand.  The other way round holds
only for network values of showers: cells say a little about the energies too, and where they differ, the energies win.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from calorefine import stats
from calorefine.data import cells
from calorefine.data.frame import Frame
from calorefine.data.layer_energies import LayerEnergies
from calorefine.data.preprocessing import ALONE, Preprocessing
from calorefine.data.shower_conditions import ShowerConditions, part_of, showers_of
from calorefine.ddp import Ranks
from calorefine.errors import ConfigError, ValueRangeError
from calorefine.events import Columns, Events
from calorefine.geometry import Geometry

VALUES, LEAST_ROWS = 4_000_000, 16  # numbers of the cells' network at a time, and rows at least
WEIGHT_DECAY = 0.3
WIDTH_OF_LOG = 3.0
NO_SLOPE = (
    "the cells of showers are scaled to the energies of their layers: their likelihood is an integral over as many "
    "dimensions as there are layers, unless each layer is made given those before, as by AutoregressiveCells "
    "(configs/showers/shower_autoregressive.yaml)"
)


class Showers(Preprocessing):
    """Map of the cells of a shower to energies and independent normal numbers, and back.

    Where the cells are, and which columns are the incident energy and the point of entry, `Columns.showers` tells.

    Args:
        hidden: widths of the hidden layers of the cells' network.
        n_components: normal distributions in the mixture of each cell.
        epochs: passes over the training events that fit that network.
        batch_size: events in a batch of it.
        learning_rate: first rate of AdamW, which falls to 0 like a cosine.
    """

    calorimeter: Geometry
    frame: Frame
    e_inc: str

    def __init__(
        self,
        *,
        hidden: list[int] = [64, 64],  # noqa: B006 (never changed; shown by --print_config)
        n_components: int = 3,
        epochs: int = 20,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
    ) -> None:
        """Keep the options."""
        super().__init__()
        self.hidden, self.n_components = hidden, n_components
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.context_map = ShowerConditions()

    def bind(self, columns: Columns) -> Self:
        """Take geometry, incident energy and point of entry.

        Raises:
            ConfigError: the columns don't tell.
        """
        self.frame = self.context_map.bind(columns).frame
        self.calorimeter, self.e_inc = self.frame.geometry, showers_of(columns).e_inc
        self.energies = LayerEnergies(self.e_inc, [layer.number for layer in self.calorimeter.layers], self.threshold)
        return self

    @property
    def threshold(self) -> float:
        """Threshold of the readout, in MeV; a tiny one where there is none."""
        return self.calorimeter.threshold_mev or 1e-6

    @property
    def conditions(self) -> Preprocessing:
        """Map of the context: its entry mirrored."""
        return ShowerConditions()

    def fit(self, events: Events, columns: Columns) -> Self:
        """Fit energies and cells; arguments as in the base.

        Raises:
            ConfigError: columns that say nothing of showers, or have further features, or an offset on a point of
                entry.
            ValueRangeError: negative energies.
            WeightError: negative weights.
        """
        self.bind(columns)._check(events, columns)
        stats.require_nonnegative(events.weight, "Showers, whose cells are fitted by likelihood")
        self.context_map.fit(events, columns)
        x, context = torch.from_numpy(events.x), torch.from_numpy(events.context)
        layers = torch.cat([self.layers_of(self._read(x[rows])) for rows in self._rows(len(x))])
        self.energies.fit(dataclasses.replace(events, x=layers.numpy()), columns)
        self._fit_cells(x, context, layers, torch.from_numpy(events.weight).float())
        return self

    def _check(self, events: Events, columns: Columns) -> None:
        if list(columns.features) != [columns.cells]:
            msg = f"showers: features {', '.join(columns.features)} found, expected the cells '{columns.cells}' alone"
            raise ConfigError(msg)
        for name in self.context_map.entry:
            if offset := columns.context_columns[name].offset:
                msg = f"context '{name}': offset {offset:g} found, expected none: it says where a shower enters"
                raise ConfigError(msg)
        if (negative := int((events.x < 0).sum())) > 0:
            msg = f"feature '{columns.cells}': {negative} negative energies found, the lowest {events.x.min():g}"
            raise ValueRangeError(f"{msg}; expected 0 or more")

    def _read(self, x: torch.Tensor) -> torch.Tensor:
        """Cells (n, N) with what is below the threshold at 0."""
        return torch.where(x >= self.threshold, x, 0.0)

    def layers_of(self, x: torch.Tensor) -> torch.Tensor:
        """Energies (n, L) of the layers of cells (n, N), float64."""
        return torch.stack([x[:, at].sum(1, dtype=torch.float64) for at in self.calorimeter.slices], dim=1)

    def layers_made(self, values: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Energies (n, L) of the layers of network values (n, L), float64: none below the threshold."""
        return self.energies.inverse(values, context)

    def given(self, context: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """Conditions (n, m) of the cells: those of the shower (n, k) in network units, and layers (n, L) in MeV."""
        logs = torch.log1p(layers / self.threshold).float() / WIDTH_OF_LOG - 1
        return torch.cat([context, logs, (layers > 0).float()], dim=1)

    def _fit_cells(self, x: torch.Tensor, context: torch.Tensor, layers: torch.Tensor, weight: torch.Tensor) -> None:
        """Fit the cells' network by its weighted likelihood."""
        blocks = self._rows(len(x))
        given = torch.cat([self.given(self.context_map(context[rows]), layers[rows]) for rows in blocks])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = self._network(given.shape[1])
            network.start((*self._energies(x[rows], context[rows]), weight[rows]) for rows in blocks)
            weight = weight / weight.mean()
            optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=WEIGHT_DECAY)
            size = min(self.batch_size, len(x))
            steps = self.epochs * (len(x) // size)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
            for _ in range(self.epochs):
                for rows in torch.split(torch.randperm(len(x))[: len(x) // size * size], size):
                    terms = -network(given[rows]).log_prob(*self._energies(x[rows], context[rows])).mean(1)
                    loss = (weight[rows] * terms).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
        self.network = network.requires_grad_(requires_grad=False)

    def _rows(self, n: int) -> list[slice]:
        """Rows of n showers, so many at a time that what the cells' network gives of them stays small."""
        size = max(LEAST_ROWS, VALUES // (self.calorimeter.n_cells * (1 + 3 * self.n_components)))
        ends = np.linspace(0, n, max(1, -(-n // size)) + 1).astype(int).tolist()
        return [slice(*pair) for pair in pairwise(ends)]

    def _network(self, n_conditions: int) -> cells.CellNetwork:
        return cells.CellNetwork(
            n_conditions, self.calorimeter.n_cells, hidden=self.hidden, n_components=self.n_components
        )

    def _energies(self, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logs y of energies over the threshold, and hits (n, N), in the canonical frame."""
        return self.energies_over_threshold(self._canonical(x, context))

    def _canonical(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Cells (n, N) in MeV that are read out, in the canonical frame."""
        return self.frame.canonical(self._read(x), self.context_map.entry_of(context))

    def energies_over_threshold(self, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logs y of energies over the threshold, and hits, of cells (n, N) in MeV."""
        hit = own >= self.threshold
        over = (own.double() / self.threshold - 1).clamp_min(np.exp(cells.LOWEST))
        return torch.where(hit, over.log(), 0.0).float(), hit

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map showers (n, N) in MeV to network values (n, L + N): energies, and cells in the canonical frame."""
        if not len(x):
            return x.new_zeros(0, self.n_columns)
        layers = torch.cat([self.layers_of(self._read(x[rows])) for rows in self._rows(len(x))])
        values, given = self.energies(layers, context), self.given(self.context_map(context), layers)
        z = [self.normal(self._canonical(x[rows], context[rows]), given[rows]) for rows in self._rows(len(x))]
        return torch.cat([values, torch.cat(z).clamp(-cells.CLIP, cells.CLIP)], dim=1)

    def normal(self, own: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Normal numbers (n, N) of cells (n, N) in MeV, in the canonical frame, given their conditions (n, m)."""
        parts = [
            cells.to_normal(self.network(given[rows]), *self.energies_over_threshold(own[rows]))
            for rows in self._rows(len(own))
        ]
        return torch.cat(parts)

    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, L + N) to showers (n, N) in MeV."""
        layers = self.layers_made(u[:, : self.n_first], context)
        own = self.cells_of(u[:, self.n_first :], self.given(self.context_map(context), layers), layers)
        return self.frame.restored(own, self.context_map.entry_of(context))

    def in_steps(self, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies (n, L) of layers, float64, and cells (n, N) in the canonical frame, of showers (n, N), in MeV."""
        read = self._read(x)
        return self.layers_of(read), self.frame.canonical(read, self.context_map.entry_of(context))

    @property
    def first_map(self) -> Preprocessing:
        """Map of the energies of the layers, with a slope."""
        return self.energies

    @property
    def no_slope(self) -> str:
        """Of cells that depend on each other across layers the density isn't known once these are scaled."""
        return NO_SLOPE

    def cells_of(self, z: torch.Tensor, given: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """Cells (n, N) in MeV, in the canonical frame, of normal numbers (n, N), with the energies of layers (n, L)."""
        return torch.cat([self._some_cells_of(z[rows], given[rows], layers[rows]) for rows in self._rows(len(z))])

    def _some_cells_of(self, z: torch.Tensor, given: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        y, hit = cells.from_normal(self.network(given), z)
        energies = torch.where(hit, 1 + y.double().exp(), 0.0)
        parts = enumerate(self.calorimeter.slices)
        return torch.cat([self.scaled(energies[:, at], layers[:, k], z[:, at]) for k, at in parts], dim=1).float()

    def spread(self, z: torch.Tensor, given: torch.Tensor, noise: torch.Generator, ranks: Ranks) -> torch.Tensor:
        """Normal numbers (n, N), those of no hit drawn anew, for all processes that share a batch by one of them."""
        uniform = ranks.own(torch.rand(ranks.whole(z.shape), generator=noise, device=noise.device)).to(z.device)
        parts = [cells.spread(self.network(given[rows]), z[rows], uniform[rows]) for rows in self._rows(len(z))]
        return torch.cat(parts).clamp(-cells.CLIP, cells.CLIP)

    def scaled(self, energies: torch.Tensor, total: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Energies (n, k) in MeV of the cells of a layer, scaled to its total (n,) in what is over the threshold.

        Hits stay hits.  A layer has no more of them than its energy has room for above the threshold, those with the
        most energy, and one at least if its energy isn't 0.

        Args:
            energies: (n, k) in thresholds; 0 of no hit.
            total: (n,) energies of the layer in MeV; 0 or at least the threshold.
            z: (n, k) normal numbers, the highest of which is the hit if there would be none.
        """
        none = ~(energies > 0).any(1) & (total > 0)
        first = torch.nn.functional.one_hot(z.argmax(1), z.shape[1]).bool() & none[:, None]
        energies = torch.where(first, 2.0, energies).double()
        room = self.room(total)
        rank = energies.argsort(dim=1, descending=True).argsort(dim=1)
        hit = (energies > 0) & (rank < room[:, None])
        over = torch.where(hit, (energies - 1).clamp_min(np.exp(cells.LOWEST)), 0.0)
        left = (total - self.threshold * hit.sum(1)).clamp_min(0.0)
        scale = left / over.sum(1).clamp_min(1e-30)
        return torch.where(hit, self.threshold + over * scale[:, None], 0.0)

    def room(self, total: torch.Tensor) -> torch.Tensor:
        """How many hits (n,) of at least the threshold have room in layers with these energies (n,) in MeV."""
        return torch.floor(total * (1 + 1e-9) / self.threshold)

    def part(self, place: int) -> Preprocessing:
        """Map of the energies as they are, or of the cells given these."""
        return GivenCells(self) if place else super().part(place)

    @property
    def n_columns(self) -> int:
        """Number of network values: energies, and cells."""
        return self.n_first + self.calorimeter.n_cells

    @property
    def n_first(self) -> int:
        """Number of energies."""
        return len(self.calorimeter.layers)

    @property
    def is_discrete(self) -> bool:
        """Cells without a hit, and empty layers, have a probability of their own."""
        return True

    def dequantize(
        self, u: torch.Tensor, noise: torch.Generator, context: torch.Tensor, ranks: Ranks = ALONE
    ) -> torch.Tensor:
        """Spread network values (n, L + N) of empty layers and of cells without a hit over their intervals."""
        n_layers = self.n_first
        values = self.energies.dequantize(u[:, :n_layers], noise, ranks=ranks)
        layers = self.layers_made(values, context)
        given = self.given(self.context_map(context), layers)
        return torch.cat([values, self.spread(u[:, n_layers:], given, noise, ranks)], dim=1)

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Take over what was fitted."""
        self.context_map.restore(part_of(state, "context_map"))
        self.energies.restore(part_of(state, "energies"))
        fitted = part_of(state, "network")
        self.network = self._network(fitted["mlp.0.weight"].shape[1]).requires_grad_(requires_grad=False)
        self.network.load_state_dict(fitted)
        return self


class GivenCells(Preprocessing):
    """Map of cells (n, N) in MeV, in the canonical frame, to independent normal numbers (n, N), and back.

    Its context is that of the second part of a generator: conditions and energies, both in network units.

    Args:
        showers: the map of whole showers, fitted.
    """

    whole: Showers

    def __init__(self, showers: Showers) -> None:
        """Keep the map, which isn't part of this one: a checkpoint holds it once."""
        super().__init__()
        object.__setattr__(self, "whole", showers)

    def fit(self, events: Events, columns: Columns) -> GivenCells:  # noqa: ARG002
        """Find nothing."""
        return self

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map cells (n, N) to network values (n, N); arguments as in the base."""
        return self.whole.normal(x, self.conditions_of(context))

    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, N) to cells (n, N) with the energies of the layers; arguments as in the base."""
        return self.whole.cells_of(u, self.conditions_of(context), self.layers(context))

    @property
    def is_discrete(self) -> bool:
        """Cells without a hit have a probability of their own."""
        return True

    @property
    def no_slope(self) -> str:
        """As of whole showers."""
        return NO_SLOPE

    def dequantize(
        self, u: torch.Tensor, noise: torch.Generator, context: torch.Tensor, ranks: Ranks = ALONE
    ) -> torch.Tensor:
        """Spread network values (n, N) of cells without a hit over their intervals; arguments as in the base."""
        return self.whole.spread(u, self.conditions_of(context), noise, ranks)

    @property
    def n_columns(self) -> int:
        """Number of cells N."""
        return self.geometry.n_cells

    @property
    def geometry(self) -> Geometry:
        """Where the cells are."""
        return self.whole.calorimeter

    def layers(self, context: torch.Tensor) -> torch.Tensor:
        """Energies (n, L) in MeV of the layers, float64."""
        n = context.shape[1] - self.whole.n_first
        return self.whole.layers_made(context[:, n:], self.whole.context_map.inverse(context[:, :n]))

    def conditions_of(self, context: torch.Tensor, layers: torch.Tensor | None = None) -> torch.Tensor:
        """What the densities of the cells depend on (n, m); with energies (n, L) of layers in the place of its own."""
        if layers is None:
            layers = self.layers(context)
        return self.whole.given(context[:, : context.shape[1] - self.whole.n_first], layers)

    @property
    def n_conditions(self) -> int:
        """Number of these conditions m."""
        return self.whole.context_map.n_columns + 2 * self.whole.n_first

    def marginals(self, context: torch.Tensor) -> cells.Marginals:
        """Densities (n, N) of the cells given their conditions alone."""
        marginals: cells.Marginals = self.whole.network(self.conditions_of(context))
        return marginals
