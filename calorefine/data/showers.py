r"""Preprocessing of showers: energies first, and then counts of hits and cells that are Gaussianized given these.

Cells below the threshold of the readout count as 0, on both sides.  A shower in the canonical frame (`frame`) is

* L *energies* of the layers, as response and logarithms of ratios (`layer_energies`);
* L *counts* of the hits of each layer, mapped to standard normal numbers by their density given conditions, energies
  and the layers before (`hit_counts`);
* N *cells*, each mapped to a standard normal number by its density given conditions, energies and counts (`cells`).

The networks of both densities are fitted here, with the events' weights, by maximum likelihood.

On the way back the odds of hits in a layer are multiplied by one number so that it has its count of hits, and what
these have over the threshold is scaled to its energy, so that hits stay hits.  A shower comes back from its network
values as it was, but for hits that the fitted density holds for all but impossible, or that are at the threshold to
single precision: one in some thousand.  The other way round holds only for network values of showers: cells say a
little about counts and energies too, and where they differ, these win.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from calorefine import stats
from calorefine.data import cells
from calorefine.data.hit_counts import HitCounts, scaled_logs
from calorefine.data.preprocessing import ALONE, Preprocessing
from calorefine.data.shower_conditions import part_of
from calorefine.data.shower_map import ShowerMap
from calorefine.ddp import Ranks
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


class Showers(ShowerMap):
    """Map of the cells of a shower to energies, counts and independent normal numbers, and back.

    Where the cells are, and which columns are the incident energy and the point of entry, `Columns.showers` tells.

    Args:
        hidden: widths of the hidden layers of the networks of counts and cells.
        n_components: normal distributions in the mixture of each count and cell.
        epochs: passes over the training events that fit these networks.
        batch_size: events in a batch of them.
        learning_rate: first rate of AdamW, which falls to 0 like a cosine.
    """

    def __init__(
        self,
        *,
        hidden: list[int] = [64, 64],  # noqa: B006 (never changed; shown by --print_config)
        n_components: int = 5,
        epochs: int = 20,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
    ) -> None:
        """Keep the options."""
        super().__init__()
        self.hidden, self.n_components = hidden, n_components
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate

    def fit(self, events: Events, columns: Columns) -> Self:
        """Fit energies and cells; arguments as in the base.

        Raises:
            ConfigError: columns that say nothing of showers, or have further features, or an offset on a point of
                entry.
            ValueRangeError: negative energies.
            WeightError: negative weights.
        """
        self._check_showers(events, columns)
        stats.require_nonnegative(events.weight, "Showers, whose cells are fitted by likelihood")
        x, context = torch.from_numpy(events.x), torch.from_numpy(events.context)
        layers = self._fit_energies(events, columns)
        self._fit_networks(x, context, layers, torch.from_numpy(events.weight).float())
        return self

    def layers_made(self, values: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Energies (n, L) of the layers of network values (n, L), float64: none below the threshold."""
        return self.energies.inverse(values, context)

    def most(self, layers: torch.Tensor) -> torch.Tensor:
        """Hits (n, L) that energies of layers (n, L) in MeV have room for above the threshold."""
        room = torch.floor(layers.double() * (1 + 1e-9) / self.threshold).long()
        return torch.minimum(room, torch.tensor(self.sizes, device=layers.device))

    @property
    def sizes(self) -> list[int]:
        """Numbers (L,) of cells of the layers."""
        return [at.stop - at.start for at in self.calorimeter.slices]

    def given_energies(self, context: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """Conditions (n, m) of the counts: those of the shower (n, k) in network units, and layers (n, L) in MeV."""
        logs = torch.log1p(layers / self.threshold).float() / WIDTH_OF_LOG - 1
        return torch.cat([context, logs, (layers > 0).float()], dim=1)

    def given(self, context: torch.Tensor, layers: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Conditions (n, m) of the cells: those of the counts, and counts (n, L)."""
        return torch.cat([self.given_energies(context, layers), scaled_logs(counts).float()], dim=1)

    def _fit_networks(self, x: torch.Tensor, context: torch.Tensor, layers: torch.Tensor, weight: torch.Tensor) -> None:
        """Fit the networks of counts and cells by their weighted likelihood."""
        blocks = self._rows(len(x))
        before = self.given_energies(self.context_map(context), layers)
        counts = torch.cat([self.hits(self._energies(x[rows], context[rows])[1]) for rows in blocks])
        most = self.most(layers)
        given = torch.cat([before, scaled_logs(counts).float()], dim=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.counts, self.network = self._networks(before.shape[1])
            self.counts.start(counts, weight)
            self.network.start((*self._energies(x[rows], context[rows]), weight[rows]) for rows in blocks)
            weight = weight / weight.mean()
            self._minimize(
                self.counts,
                lambda rows: -(weight[rows] * self.counts.log_prob(before[rows], counts[rows], most[rows])).mean(),
                len(x),
            )
            self._minimize(
                self.network,
                lambda rows: (
                    -(
                        weight[rows]
                        * self.network(given[rows]).log_prob(*self._energies(x[rows], context[rows])).mean(1)
                    ).mean()
                ),
                len(x),
            )

    def _minimize(self, network: nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor], n: int) -> None:
        """Fit a network by AdamW in minibatches of rows of n events."""
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=WEIGHT_DECAY)
        size = min(self.batch_size, n)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(self.epochs * (n // size), 1))
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(n)[: n // size * size], size):
                optimizer.zero_grad()
                loss_of(rows).backward()  # type: ignore[no-untyped-call]
                clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        network.requires_grad_(requires_grad=False)

    def _networks(self, n_conditions: int) -> tuple[HitCounts, cells.CellNetwork]:
        """Networks of counts, given so many conditions, and of cells."""
        options: Any = {"hidden": self.hidden, "n_components": self.n_components}
        n_layers = len(self.sizes)
        return (
            HitCounts(n_conditions, n_layers, **options),
            cells.CellNetwork(n_conditions + n_layers, self.calorimeter.n_cells, **options),
        )

    def hits(self, hit: torch.Tensor) -> torch.Tensor:
        """Counts (n, L) of hits (n, N) in the layers."""
        return torch.stack([hit[:, at].sum(1) for at in self.calorimeter.slices], dim=1)

    def _rows(self, n: int) -> list[slice]:
        """Rows of n showers, so many at a time that what the cells' network gives of them stays small."""
        size = max(LEAST_ROWS, VALUES // (self.calorimeter.n_cells * (1 + 3 * self.n_components)))
        ends = np.linspace(0, n, max(1, -(-n // size)) + 1).astype(int).tolist()
        return [slice(*pair) for pair in pairwise(ends)]

    def _energies(self, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logs y of energies over the threshold, and hits (n, N), in the canonical frame."""
        return self.energies_over_threshold(self._in_frame(x, context))

    def energies_over_threshold(self, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logs y of energies over the threshold, and hits, of cells (n, N) in MeV."""
        hit = own >= self.threshold
        over = (own.double() / self.threshold - 1).clamp_min(np.exp(cells.LOWEST))
        return torch.where(hit, over.log(), 0.0).float(), hit

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map showers (n, N) in MeV to network values (n, 2 L + N): energies, counts, cells in the canonical frame."""
        if not len(x):
            return x.new_zeros(0, self.n_columns)
        layers = torch.cat([self.layers_of(self._read(x[rows])) for rows in self._rows(len(x))])
        others = [
            self.normal_of(self._in_frame(x[rows], context[rows]), self.context_map(context[rows]), layers[rows])
            for rows in self._rows(len(x))
        ]
        return torch.cat([self.energies(layers, context), torch.cat(others)], dim=1)

    def normal_of(self, own: torch.Tensor, context: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """Normal numbers (n, L + N) of counts and of cells (n, N) in MeV, in the canonical frame."""
        y, hit = self.energies_over_threshold(own)
        counts = self.hits(hit)
        number = self.counts.to_normal(self.given_energies(context, layers), counts, self.most(layers))
        z = cells.to_normal(self.network(self.given(context, layers, counts)), y, hit)
        return torch.cat([number, z.clamp(-cells.CLIP, cells.CLIP)], dim=1)

    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, 2 L + N) to showers (n, N) in MeV."""
        layers = self.layers_made(u[:, : self.n_first], context)
        own = self.cells_of(u[:, self.n_first :], self.context_map(context), layers)
        return self.frame.restored(own, self.context_map.entry_of(context))

    def counts_made(self, z: torch.Tensor, context: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """Counts (n, L) of normal numbers z (n, L), with conditions in network units and layers (n, L) in MeV."""
        return self.counts.from_normal(self.given_energies(context, layers), z, self.most(layers))

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

    def cells_of(self, z: torch.Tensor, context: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """Cells (n, N) in MeV, in the canonical frame, of normal numbers (n, L + N) and energies of layers (n, L)."""
        parts = [self._some_cells_of(z[rows], context[rows], layers[rows]) for rows in self._rows(len(z))]
        return torch.cat(parts) if parts else z[:, 2 * self.n_first :]

    def _some_cells_of(self, z: torch.Tensor, context: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        number, z = z[:, : self.n_first], z[:, self.n_first :]
        counts = self.counts_made(number, context, layers)
        y, hit = self.decoded(z, self.network(self.given(context, layers, counts)), counts)
        parts = enumerate(self.calorimeter.slices)
        return torch.cat([self.scaled(y[:, at], hit[:, at], layers[:, k]) for k, at in parts], dim=1).float()

    def decoded(
        self, z: torch.Tensor, marginals: cells.Marginals, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logs y over the threshold, and hits (n, N), of normal numbers z (n, N), as many in a layer as its count."""
        found = []
        for index, at in enumerate(self.calorimeter.slices):
            own = marginals.at(at)
            own, hit = cells.with_counts(own, z[:, at], counts[:, index])
            found.append(cells.from_normal(own, z[:, at], hit))
        y, hits = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
        return y, hits

    def scaled(self, y: torch.Tensor, hit: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Energies (n, k) in MeV of the cells of a layer, what hits have over the threshold scaled to its total (n,).

        Args:
            y: (n, k) logs of energies over the threshold.
            hit: (n, k) which cells are hit: no more than the total has room for.
            total: (n,) energies of the layer in MeV.
        """
        over = torch.where(hit, y.double().exp().clamp_min(np.exp(cells.LOWEST)), 0.0)
        left = (total - self.threshold * hit.sum(1)).clamp_min(0.0)
        scale = left / over.sum(1).clamp_min(1e-30)
        return torch.where(hit, self.threshold + over * scale[:, None], 0.0)

    def part(self, place: int) -> Preprocessing:
        """Map of the energies as they are, or of the cells given these."""
        return GivenCells(self) if place else super().part(place)

    @property
    def n_columns(self) -> int:
        """Number of network values: energies, counts, and cells."""
        return 2 * self.n_first + self.calorimeter.n_cells

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
        """Spread network values (n, 2 L + N) of empty layers, counts and cells without a hit over their intervals."""
        values = self.energies.dequantize(u[:, : self.n_first], noise, ranks=ranks)
        layers = self.layers_made(values, context)
        others = self.dequantized(u[:, self.n_first :], noise, self.context_map(context), layers, ranks)
        return torch.cat([values, others], dim=1)

    def dequantized(
        self, z: torch.Tensor, noise: torch.Generator, context: torch.Tensor, layers: torch.Tensor, ranks: Ranks
    ) -> torch.Tensor:
        """Spread normal numbers (n, L + N) of counts and of cells without a hit over their intervals."""
        uniform = ranks.own(torch.rand(ranks.whole(z.shape), generator=noise, device=noise.device)).to(z.device)
        parts = [self._spread(z[rows], uniform[rows], context[rows], layers[rows]) for rows in self._rows(len(z))]
        return torch.cat(parts).clamp(-cells.CLIP, cells.CLIP)

    def _spread(
        self, z: torch.Tensor, uniform: torch.Tensor, context: torch.Tensor, layers: torch.Tensor
    ) -> torch.Tensor:
        """Normal numbers (n, L + N) over their intervals, by uniform numbers (n, L + N)."""
        given, most, n = self.given_energies(context, layers), self.most(layers), self.n_first
        counts = self.counts.from_normal(given, z[:, :n], most)
        number = self.counts.spread_over(given, counts, most, uniform[:, :n])
        marginals = self.network(self.given(context, layers, counts))
        return torch.cat([number, cells.spread(marginals, z[:, n:], uniform[:, n:])], dim=1)

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Take over what was fitted."""
        self._restore_energies(state)
        fitted = part_of(state, "network")
        self.counts, self.network = self._networks(fitted["mlp.0.weight"].shape[1] - len(self.sizes))
        self.counts.load_state_dict(part_of(state, "counts"))
        self.network.load_state_dict(fitted)
        self.counts.requires_grad_(requires_grad=False)
        self.network.requires_grad_(requires_grad=False)
        return self


class GivenCells(Preprocessing):
    """Map of cells (n, N) in MeV, in the canonical frame, to independent normal numbers (n, L + N), and back.

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
        """Map cells (n, N) to network values (n, L + N); arguments as in the base."""
        return self.whole.normal_of(x, self._conditions(context), self.layers(context))

    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, L + N) to cells (n, N) with the energies of the layers; arguments as in the base."""
        return self.whole.cells_of(u, self._conditions(context), self.layers(context))

    @property
    def is_discrete(self) -> bool:
        """Counts and cells without a hit have probabilities of their own."""
        return True

    @property
    def no_slope(self) -> str:
        """As of whole showers."""
        return NO_SLOPE

    def dequantize(
        self, u: torch.Tensor, noise: torch.Generator, context: torch.Tensor, ranks: Ranks = ALONE
    ) -> torch.Tensor:
        """Spread network values (n, L + N) over their intervals; arguments as in the base."""
        return self.whole.dequantized(u, noise, self._conditions(context), self.layers(context), ranks)

    @property
    def n_columns(self) -> int:
        """Number of counts and cells, L + N."""
        return self.n_counts + self.geometry.n_cells

    @property
    def n_counts(self) -> int:
        """Number of counts L."""
        return self.whole.n_first

    @property
    def geometry(self) -> Geometry:
        """Where the cells are."""
        return self.whole.calorimeter

    def _conditions(self, context: torch.Tensor) -> torch.Tensor:
        """Conditions (n, k) of the shower, in network units."""
        return context[:, : context.shape[1] - self.whole.n_first]

    def layers(self, context: torch.Tensor) -> torch.Tensor:
        """Energies (n, L) in MeV of the layers, float64."""
        conditions = self._conditions(context)
        return self.whole.layers_made(context[:, conditions.shape[1] :], self.whole.context_map.inverse(conditions))

    def settled(self, context: torch.Tensor) -> torch.Tensor:
        """Context (n, c) with the network values of its energies alone.

        An empty layer has many network values.  What is made of them must not depend on which one was drawn: a
        likelihood would need one more integral.
        """
        conditions = self._conditions(context)
        energies = self.whole.energies(self.layers(context), self.whole.context_map.inverse(conditions))
        return torch.cat([conditions, energies], dim=1)

    def counts(self, z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Counts (n, L) of normal numbers z (n, L)."""
        return self.whole.counts_made(z, self._conditions(context), self.layers(context))

    def log_prob_of_counts(self, counts: torch.Tensor, context: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
        """Log probability (n,) of counts (n, L), float64, with energies (n, L) of layers in place of the context's."""
        given = self.whole.given_energies(self._conditions(context), layers)
        return self.whole.counts.log_prob(given, counts, self.whole.most(layers))

    def marginals(
        self, context: torch.Tensor, counts: torch.Tensor, layers: torch.Tensor | None = None
    ) -> cells.Marginals:
        """Densities (n, N) of the cells given conditions, energies and counts (n, L) alone.

        Energies (n, L) of the layers in MeV, if given, replace those of the context.
        """
        layers = self.layers(context) if layers is None else layers
        given = self.whole.given(self._conditions(context), layers, counts)
        marginals: cells.Marginals = self.whole.network(given)
        return marginals
