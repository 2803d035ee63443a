r"""Preprocessing of showers: energies first, and then cells that are Gaussianized given these and the conditions.

Cells below the threshold of the readout count as 0, on both sides.  A shower in the canonical frame (`frame`) is

* L *energies*: the response :math:`R = E_{tot} / E_{inc}` less its mean at that energy, times :math:`\sqrt{E_{inc}}`,
  and for each layer l but the first the logarithm of :math:`E_l` over the sum of the layers before.  They are mapped by
  quantiles and whitened as other columns are; an empty layer is an atom;
* N *cells*, each mapped to a standard normal number by its density given conditions and energies (`cells`): the network
  is fitted here, with the events' weights, by maximum likelihood.

On the way back what the cells of each layer have over the threshold is scaled to its energy, so that hits stay hits.  A
shower comes back from its network values as it was, but for hits that the fitted density holds for
all but impossible, or that are at the threshold to single precision: one in some thousand.  The other way round holds
only for network values of showers: cells say a little about the energies too, and where they differ, the energies win.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import clip_grad_norm_

from calorefine import stats
from calorefine.data import cells
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.preprocessing import ALONE, Preprocessing
from calorefine.data.shower_conditions import part_of
from calorefine.data.shower_map import ShowerMap, row_blocks
from calorefine.ddp import Ranks
from calorefine.events import Columns, Events
from calorefine.geometry import Geometry

ALL = 16.0  # logarithm of a ratio of energies of which one is 0
WEIGHT_DECAY = 0.3
WIDTH_OF_LOG = 3.0
_GEV = 1000.0


class Showers(ShowerMap):
    """Map of the cells of a shower to energies and independent normal numbers, and back.

    Where the cells are, and which columns are the incident energy and the point of entry, `Columns.showers` tells.

    Args:
        hidden: widths of the hidden layers of the cells' network.
        n_components: normal distributions in the mixture of each cell.
        epochs: passes over the training events that fit that network.
        batch_size: events in a batch of it.
        learning_rate: first rate of AdamW, which falls to 0 like a cosine.
    """

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
        self.energies = ColumnTransforms()

    def fit(self, events: Events, columns: Columns) -> Self:
        """Fit energies and cells; arguments as in the base.

        Raises:
            ConfigError: columns that say nothing of showers, or have further features, or an offset on a point of
                entry.
            ValueRangeError: negative energies.
            WeightError: negative weights.
        """
        self._fit_context(events, columns)
        stats.require_nonnegative(events.weight, "Showers, whose cells are fitted by likelihood")
        x, context = torch.from_numpy(events.x), torch.from_numpy(events.context)
        layers = torch.cat([self._layers(self._read(x[rows])) for rows in row_blocks(len(x))]).double()
        e_inc = self._e_inc(context)
        self.register_buffer("response", _quadratic(e_inc, layers.sum(1) / e_inc, events.weight))
        values = self._columns_of(layers, e_inc).numpy()
        names = [
            "response",
            *(f"energy of layer {layer.number} over those before" for layer in self.calorimeter.layers[1:]),
        ]
        bounds = [None, *[(-ALL, ALL)] * (values.shape[1] - 1)]
        kinds: list[Any] = ["quantile"] * values.shape[1]
        self.energies.fit_columns(values, events.weight, kinds, names, whiten=True, bounds=bounds)
        self._fit_cells(x, context, layers.float(), torch.from_numpy(events.weight).float())
        return self

    def _mean_response(self, e_inc: torch.Tensor) -> torch.Tensor:
        log = torch.log(e_inc / _GEV)
        response: Any = self.response
        mean: torch.Tensor = response[0] + response[1] * log + response[2] * log**2
        return mean

    def _columns_of(self, layers: torch.Tensor, e_inc: torch.Tensor) -> torch.Tensor:
        """Response, and logarithms of each layer over those before (n, L), of energies of layers (n, L), float64."""
        sums = layers.cumsum(1)
        response = (sums[:, -1] / e_inc - self._mean_response(e_inc)) * (e_inc / _GEV).sqrt()
        own, before = layers[:, 1:], sums[:, :-1]
        logs = torch.log(own.clamp_min(1e-30)) - torch.log(before.clamp_min(1e-30))
        logs = torch.where(own > 0, torch.where(before > 0, logs, ALL), -ALL)
        return torch.cat([response[:, None], logs.clamp(-ALL, ALL)], dim=1)

    def _layers_of(self, values: torch.Tensor, e_inc: torch.Tensor) -> torch.Tensor:
        """Inverse of `_columns_of`."""
        response = values[:, 0] / (e_inc / _GEV).sqrt() + self._mean_response(e_inc)
        total = response.clamp_min(0.0) * e_inc
        layers = []
        for log in values[:, 1:].flip(1).T:
            own = torch.where(log > -ALL, torch.sigmoid(log), 0.0)
            layers.append(total * own)
            total = total * torch.where(log < ALL, torch.sigmoid(-log), 0.0)
        return torch.stack([total, *layers[::-1]], dim=1)

    def layers_made(self, values: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Energies (n, L) of the layers of network values (n, L), float64: none below the threshold."""
        layers = self._layers_of(self.energies.inverse(values).double(), self._e_inc(context))
        return torch.where(layers >= self.threshold, layers, 0.0)

    def given(self, context: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """Conditions (n, m) of the cells: those of the shower (n, k) in network units, and layers (n, L) in MeV."""
        logs = torch.log1p(layers / self.threshold).float() / WIDTH_OF_LOG - 1
        return torch.cat([context, logs, (layers > 0).float()], dim=1)

    def _fit_cells(self, x: torch.Tensor, context: torch.Tensor, layers: torch.Tensor, weight: torch.Tensor) -> None:
        """Fit the cells' network by its weighted likelihood."""
        given = torch.cat([self.given(self.context_map(context[rows]), layers[rows]) for rows in row_blocks(len(x))])
        y, hit = (torch.cat(part) for part in zip(*self._energies(x, context), strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = self._network(given.shape[1])
            network.start(y, hit, weight)
            weight = weight / weight.mean()
            optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=WEIGHT_DECAY)
            size = min(self.batch_size, len(x))
            steps = self.epochs * (len(x) // size)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
            for _ in range(self.epochs):
                for rows in torch.split(torch.randperm(len(x))[: len(x) // size * size], size):
                    terms = -network(given[rows]).log_prob(y[rows], hit[rows]).mean(1)
                    loss = (weight[rows] * terms).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
        self.network = network.requires_grad_(requires_grad=False)

    def _network(self, n_conditions: int) -> cells.CellNetwork:
        return cells.CellNetwork(
            n_conditions, self.calorimeter.n_cells, hidden=self.hidden, n_components=self.n_components
        )

    def _energies(self, x: torch.Tensor, context: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logs y of energies over the threshold, and hits (n, N), in the canonical frame."""
        for rows in row_blocks(len(x)):
            yield self.energies_over_threshold(self._in_frame(x[rows], context[rows]))

    def energies_over_threshold(self, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logs y of energies over the threshold, and hits, of cells (n, N) in MeV."""
        hit = own >= self.threshold
        over = (own.double() / self.threshold - 1).clamp_min(np.exp(cells.LOWEST))
        return torch.where(hit, over.log(), 0.0).float(), hit

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map showers (n, N) in MeV to network values (n, L + N): energies, and cells in the canonical frame."""
        if not len(x):
            return x.new_zeros(0, self.n_columns)
        layers = self._layers(self._read(x)).double()
        values = self.energies(self._columns_of(layers, self._e_inc(context)))
        y, hit = (torch.cat(part) for part in zip(*self._energies(x, context), strict=True))
        z = cells.to_normal(self.network(self.given(self.context_map(context), layers)), y, hit)
        return torch.cat([values, z.clamp(-cells.CLIP, cells.CLIP)], dim=1)

    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, L + N) to showers (n, N) in MeV."""
        layers = self.layers_made(u[:, : self.n_first], context)
        own = self.cells_of(u[:, self.n_first :], self.given(self.context_map(context), layers), layers)
        return self.frame.restored(own, self.context_map.entry_of(context))

    def cells_of(self, z: torch.Tensor, given: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """Cells (n, N) in MeV, in the canonical frame, of normal numbers (n, N), with the energies of layers (n, L)."""
        y, hit = cells.from_normal(self.network(given), z)
        energies = torch.where(hit, 1 + y.double().exp(), 0.0)
        parts = enumerate(self.calorimeter.slices)
        return torch.cat([self.scaled(energies[:, at], layers[:, k], z[:, at]) for k, at in parts], dim=1).float()

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
        room = torch.floor(total * (1 + 1e-9) / self.threshold)
        rank = energies.argsort(dim=1, descending=True).argsort(dim=1)
        hit = (energies > 0) & (rank < room[:, None])
        over = torch.where(hit, (energies - 1).clamp_min(np.exp(cells.LOWEST)), 0.0)
        left = (total - self.threshold * hit.sum(1)).clamp_min(0.0)
        scale = left / over.sum(1).clamp_min(1e-30)
        return torch.where(hit, self.threshold + over * scale[:, None], 0.0)

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
        marginals = self.network(self.given(self.context_map(context), layers))
        return torch.cat([values, cells.dequantized(marginals, u[:, n_layers:], noise, ranks)], dim=1)

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Take over what was fitted."""
        self._restore_context(state)
        self.register_buffer("response", state["response"])
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
        y, hit = self.whole.energies_over_threshold(x)
        return cells.to_normal(self.marginals(context), y, hit)

    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, N) to cells (n, N) with the energies of the layers; arguments as in the base."""
        return self.whole.cells_of(u, self.conditions_of(context), self.layers(context))

    @property
    def is_discrete(self) -> bool:
        """Cells without a hit have a probability of their own."""
        return True

    def dequantize(
        self, u: torch.Tensor, noise: torch.Generator, context: torch.Tensor, ranks: Ranks = ALONE
    ) -> torch.Tensor:
        """Spread network values (n, N) of cells without a hit over their intervals; arguments as in the base."""
        return cells.dequantized(self.marginals(context), u, noise, ranks)

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

    def conditions_of(self, context: torch.Tensor) -> torch.Tensor:
        """What the densities of the cells depend on (n, m)."""
        return self.whole.given(context[:, : context.shape[1] - self.whole.n_first], self.layers(context))

    def marginals(self, context: torch.Tensor) -> cells.Marginals:
        """Densities (n, N) of the cells given their conditions alone."""
        marginals: cells.Marginals = self.whole.network(self.conditions_of(context))
        return marginals


def _quadratic(e_inc: torch.Tensor, response: torch.Tensor, weight: NDArray[np.float64]) -> torch.Tensor:
    """Coefficients (3,) of the weighted mean response as a polynomial of log(E_inc / GeV); fewer if E_inc is fixed."""
    log = torch.log(e_inc / _GEV).numpy()
    design = np.stack([np.ones_like(log), log, log**2], axis=1) * np.sqrt(weight)[:, None]
    target = response.numpy() * np.sqrt(weight)
    return torch.from_numpy(np.linalg.lstsq(design, target, rcond=1e-10)[0])
