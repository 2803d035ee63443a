r"""Cells of a shower, block after block: each has a density of its own given those before it.

.. math:: p(x | c) = \prod_i p_i(x_i \,|\, x_{<i}, c) ,

where p_i is a hurdle and a mixture of normal densities beyond it (`calorefine.data.cells`), as the cells have without
each other, corrected by one small network that all cells share.  It sees sums over the neighbors so far, along the own
row and column, in rings and in the layers before: how much energy and how many hits they have for what was expected,
and how far they are from it in normal numbers; and what is left of the layer's hits and energy, so that each layer has
as many as it should (`calorefine.models.layer_budget`).  A training step has all of the sums at once.

The cells of a block are made at the same time, each given the blocks before.  In each layer the cells in which the
most energy is expected are blocks of their own, and of the others a block has no two that are next to each other.

The likelihood is exact, zeros included.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from calorefine.data import cells
from calorefine.data.cells import Marginals
from calorefine.data.showers import GivenCells
from calorefine.errors import ConfigError
from calorefine.models.cell_windows import N_WINDOWS, blocks_of, places_of, windows_of
from calorefine.models.density import standard_normal_log_prob
from calorefine.models.invertible import LikelihoodModel
from calorefine.models.layer_budget import ToCome, draw_energies, draw_hits, expected_over, log_odds, to_come
from calorefine.models.updates import averaged, check_decay
from calorefine.nets import MLP, Activation, activation

MOST_CELLS = 2500  # 275 MB of windows
VALUES = 2_000_000  # numbers of a block of showers whose likelihood is computed at once
N_SEEN = 3 * N_WINDOWS + 8
_LEAST = 1e-12


class AutoregressiveCells(LikelihoodModel):
    """Autoregressive density of the cells of showers, as `then` of a `TwoStep`; needs positive weights.

    Args:
        hidden: widths of the hidden layers of the network that the cells share.
        n_embedded: numbers that are learned for each cell, as inputs.
        n_alone: cells of each layer that are blocks of their own.
        act: activation of the network.
        learning_rate: initial rate of Adam, which falls to 1 % over the run like a cosine.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to this norm.
        average_decay: decay of the moving average.
    """

    def __init__(
        self,
        *,
        hidden: list[int] = [96, 96],  # noqa: B006 (never changed; shown by --print_config)
        n_embedded: int = 8,
        n_alone: int = 12,
        act: Activation = "silu",
        learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        clip_norm: float = 20.0,
        average_decay: float = 0.998,
    ) -> None:
        """Check the options; the network is built when the data are known."""
        super().__init__(latent_size=0)
        if n_alone < 0 or n_embedded < 0:
            raise ConfigError(f"n_alone {n_alone} and n_embedded {n_embedded} found, expected 0 or more")
        check_decay(average_decay)
        self.hidden, self.n_embedded, self.n_alone, self.act = hidden, n_embedded, n_alone, act
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.clip_norm, self.average_decay = clip_norm, average_decay

    def build(self, n_features: int, n_context: int) -> None:
        """Divide the cells into blocks, and create the network and its moving average.

        Raises:
            ConfigError: it isn't the second part of a `TwoStep` of showers, or these have too many cells.
        """
        if not isinstance(self.features, GivenCells):
            msg = f"AutoregressiveCells: {type(self.features).__name__} found"
            raise ConfigError(f"{msg}, expected the cells of preprocessing Showers: as `then` of a TwoStep")
        geometry = self._of.geometry
        if geometry.n_cells > MOST_CELLS:
            msg = f"AutoregressiveCells: {geometry.n_cells} cells found, expected at most {MOST_CELLS}: what each may"
            raise ConfigError(f"{msg} see of the others are matrices of all pairs; take AffineFlow (shower_flow.yaml)")
        self.latent_size, self.n_counts = n_features, self._of.n_counts
        geometry = self.features.geometry
        self.block = nn.Buffer(torch.from_numpy(blocks_of(geometry, self._typical(n_context), self.n_alone)))
        self.corrections = _Corrections(
            places_of(geometry),
            n_context,
            1 + 3 * self._of.whole.n_components,
            hidden=self.hidden,
            n_embedded=self.n_embedded,
            act=self.act,
        )
        self.average = averaged(self.corrections)
        self._windows: tuple[torch.Tensor, torch.Tensor] | None = None  # of these blocks

    @property
    def _of(self) -> GivenCells:
        return cast("GivenCells", self.features)  # checked in `build`

    def _typical(self, n_context: int) -> NDArray[np.float64]:
        """Energies (N,) that are expected at the middle of all conditions."""
        context = torch.zeros(1, n_context)
        counts = self._of.counts(torch.zeros(1, self.n_counts), context)
        marginals = self._of.marginals(context, counts)
        return (torch.sigmoid(marginals.logit) * (1 + expected_over(marginals)))[0].double().numpy()

    @property
    def windows(self) -> torch.Tensor:
        """Which cells before (W, N, N) are in the windows of each cell: 1 or 0."""
        key = self.block.cpu()
        if self._windows is None or not torch.equal(self._windows[0], key):
            masks = np.stack(windows_of(self._of.geometry)) & (key.numpy()[None, None, :] < key.numpy()[None, :, None])
            self._windows = key, torch.from_numpy(masks.astype(np.float32))
        return self._windows[1].to(self.block.device)

    @property
    def trained(self) -> nn.Module:
        """The network."""
        return self.corrections

    def _corrected(
        self, network: nn.Module, given: _Given, before: _Before, left: _Left, at: torch.Tensor
    ) -> Marginals:
        """Densities (n, k) of the cells at these places (k,), given those of the blocks before.

        They are of the energy, and don't hold the odds of what is left.
        """
        windows = given.windows[:, at]  # (W, k, N)
        flat = windows.flatten(0, 1).mT
        p = torch.sigmoid(given.marginals.logit)
        arrays = (before.energy, given.expected, before.z, (before.energy > 0).to(p.dtype) - p, p)
        energy, expected, z, hits, variance = ((one @ flat).view(len(one), -1, len(at)) for one in arrays)
        base = given.marginals.at(at)
        seen = [
            torch.log1p(energy) - torch.log1p(expected),
            z / (windows.sum(-1) + 1).sqrt(),
            hits / (variance + 1).sqrt(),
            base.logit[:, None] / 5,
            base.mean.mean(-1)[:, None],
            base.width.mean(-1).log()[:, None],
            *(part.to(p.dtype)[:, None] for part in left.seen(given.ahead, at)),
        ]
        return base.corrected(network(torch.cat(seen, dim=1).mT, given.context, at))

    def _known(self, context: torch.Tensor, counts: torch.Tensor, layers: torch.Tensor | None = None) -> _Given:
        """What is known of showers before their cells, at context (n, c) and counts (n, L); see `marginals`."""
        marginals = self._of.marginals(context, counts, layers)
        expected = torch.sigmoid(marginals.logit) * (1 + expected_over(marginals))
        ahead = to_come(marginals, self.block, self._of.geometry.slices)
        return _Given(context, marginals, expected, self.windows, ahead)

    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Make one block after the other from normal numbers (n, L + N), each by its density given those before."""
        of, (number, latent) = self._of, latent.tensor_split([self.n_counts], dim=1)
        context = of.settled(context)
        counts = of.counts(number, context)
        over = (of.layers(context) / of.whole.threshold - counts).clamp_min(0.0)
        given = self._known(context, counts)
        u, before = torch.zeros_like(latent), _Before(torch.zeros_like(latent), torch.zeros_like(latent))
        for index, part in enumerate(of.geometry.slices):
            left = _Left(counts[:, index, None], over[:, index, None])
            for block in torch.unique(self.block[part]):
                at = torch.nonzero(self.block == block)[:, 0]
                left = self._block(latent[:, at], given, before, left, at, u)
        return torch.cat([number, u], dim=1)

    def _block(
        self, latent: torch.Tensor, given: _Given, before: _Before, left: _Left, at: torch.Tensor, u: torch.Tensor
    ) -> _Left:
        """Make the block of cells at these places (k,) of noise (n, k), in `before` and `u`; return what is left."""
        corrected = self._corrected(self.average, given, before, left.of(at), at)
        hit, hits, corrected = draw_hits(corrected, given.ahead, left.hits[:, 0], latent, at)
        v, _ = cells.from_normal(given.ahead.share_of(corrected, hits, at), latent, hit)
        made = draw_energies(v, hit, hits, left.over[:, 0])
        base = given.marginals.at(at)
        y = torch.where(hit, made.clamp_min(np.exp(cells.LOWEST)).log(), 0.0).to(latent.dtype)
        before.energy[:, at] = torch.where(hit, 1 + made, 0.0).to(latent.dtype)
        before.z[:, at] = cells.to_normal(base, y, hit)
        u[:, at] = torch.where(hit, before.z[:, at], cells.moved_below(corrected, base, latent))
        return _Left(left.hits - hit.sum(1, keepdim=True), (left.over - made.sum(1, keepdim=True)).clamp_min(0.0))

    @property
    def unlikely(self) -> None:
        """Nothing: its cells have the energies of their layers without being scaled."""
        return

    def log_prob(self, x: torch.Tensor, context: torch.Tensor, *, independent: bool = False) -> torch.Tensor:
        """Log density (n,) of cells given the energies of their layers.

        Args:
            x: (n, N) cells in MeV, in the canonical frame; those without a hit are 0.
            context: (n, c) conditions and energies in network units; the energies are those of the cells.
            independent: that of cells that depend on each other through conditions, energies and counts alone.

        Returns:
            (n,) float64: nats, of a density per product of the energies of the hits and over that of the energies of
            the layers that aren't empty.
        """
        size = max(1, VALUES // (N_WINDOWS * x.shape[1]))
        blocks = [slice(first, first + size) for first in range(0, max(len(x), 1), size)]
        return torch.cat([self._log_prob(x[rows], context[rows], independent=independent) for rows in blocks])

    def _log_prob(self, x: torch.Tensor, context: torch.Tensor, *, independent: bool) -> torch.Tensor:
        """Log density (n,) of some showers; arguments as of `log_prob`."""
        whole = self._of.whole
        (y, hit), layers = whole.energies_over_threshold(x), whole.layers_of(x)
        counts = whole.hits(hit)
        given = self._known(context, counts, layers)
        terms, last = self._terms(given, y, hit, counts, None if independent else self.average)
        per_mev = torch.where(hit & ~last, y.double() + np.log(whole.threshold), 0.0)
        return self._of.log_prob_of_counts(counts, context, layers) + (terms.double() - per_mev).sum(1)

    def network_log_prob(self, u: torch.Tensor, context: torch.Tensor, *, trained: bool = False) -> torch.Tensor:
        """Log density (n,) of cells, those without a hit spread over their intervals; arguments as in the base.

        The energy of the last hit of each layer counts as an independent cell has it: the layer's energy tells it.
        """
        return standard_normal_log_prob(u) + self.gain(u, context, trained=trained)

    def gain(self, u: torch.Tensor, context: torch.Tensor, *, trained: bool = False) -> torch.Tensor:
        """By how many nats (n,) hits, and energies but each layer's last, are more probable than independent ones."""
        number, z = u.tensor_split([self.n_counts], dim=1)
        counts = self._of.counts(number, context)
        given = self._known(context, counts)
        y, hit = self._of.whole.decoded(z, given.marginals, counts)
        own, last = self._terms(given, y, hit, counts, self.corrections if trained else self.average)
        independent = given.marginals.log_prob(y, hit)
        independent = torch.where(last, functional.logsigmoid(given.marginals.logit), independent)
        return (own - independent).sum(1)

    def _terms(
        self, given: _Given, y: torch.Tensor, hit: torch.Tensor, counts: torch.Tensor, network: nn.Module | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities (n, N) of no hit, or log densities of a hit and its y, and which are last in a layer.

        Args:
            given: what is known before the cells.
            y: (n, N) logs of energies over the threshold.
            hit: (n, N) which cells are hit.
            counts: (n, L) how many in each layer.
            network: of the corrections; None for cells that don't see each other.
        """
        densities = self._densities(given, y, hit, counts, network)
        every = torch.arange(y.shape[1], device=y.device)
        hits, _ = given.ahead.left(hit, counts)
        whole, after, _ = given.ahead.energy_left(torch.where(hit, y.double().exp(), 0.0))
        last = hit & (hits <= 1)
        shared = hit & ~last
        after = after.clamp_min(_LEAST)
        v = torch.where(shared, y - after.log(), 0.0)
        density = given.ahead.share_of(densities, hits, every).log_density(v) + (whole / after).clamp_min(1.0).log()
        there = functional.logsigmoid(densities.logit) + torch.where(shared, density, 0.0)
        return torch.where(hit, there, functional.logsigmoid(-densities.logit)), last

    def _densities(
        self, given: _Given, y: torch.Tensor, hit: torch.Tensor, counts: torch.Tensor, network: nn.Module | None
    ) -> Marginals:
        """Densities (n, N) of the cells of showers, each given those before it; arguments as of `_terms`."""
        over = torch.where(hit, y.double().exp(), 0.0)
        before = _Before(torch.where(hit, 1 + y.exp(), 0.0), cells.to_normal(given.marginals, y, hit))
        hits, of_block = given.ahead.left(hit, counts)
        left = _Left(of_block, given.ahead.energy_left(over)[2])
        corrected = given.marginals
        if network is not None:
            corrected = self._corrected(network, given, before, left, torch.arange(y.shape[1], device=y.device))
        return corrected._replace(logit=(corrected.logit + log_odds(hits, *given.ahead.hits)).to(y.dtype))


class _Left(NamedTuple):
    """Hits and energy over the threshold (n, k), in thresholds, left for the block of each cell and those after."""

    hits: torch.Tensor
    over: torch.Tensor

    def of(self, at: torch.Tensor) -> _Left:
        """What is left (n, 1), for all cells (k,) of a block."""
        return _Left(*(part.expand(-1, len(at)) for part in self))

    def seen(self, ahead: ToCome, at: torch.Tensor) -> list[torch.Tensor]:
        """Numbers (n, k) that tell it, for the cells at these places (k,)."""
        hits, over = (part[:, at] for part in (ahead.hits_of_block, ahead.energy_of_block))
        return [
            torch.log1p(self.hits) - torch.log1p(hits),
            (self.hits - hits) / (hits + 1).sqrt(),
            torch.log1p(self.hits) / 3,
            torch.log1p(self.over) - torch.log1p(over),
            torch.log1p(self.over) / 3,
        ]


class _Given(NamedTuple):
    """What is known of showers before their cells.

    Args:
        context: (n, c) conditions and energies in network units.
        marginals: (n, N) densities of the cells without each other.
        expected: (n, N) mean energies by these, in thresholds.
        windows: (W, N, N) which cells before are in the windows of each cell.
        ahead: what is expected of the cells after each one.
    """

    context: torch.Tensor
    marginals: Marginals
    expected: torch.Tensor
    windows: torch.Tensor
    ahead: ToCome


class _Before(NamedTuple):
    """Cells (n, N) so far: energies in thresholds, and normal numbers by the densities without each other."""

    energy: torch.Tensor
    z: torch.Tensor


class _Corrections(nn.Module):
    """Network that cells share: corrections of their densities from what they see, conditions and who they are."""

    fixed: torch.Tensor

    def __init__(
        self, fixed: torch.Tensor, n_context: int, n_out: int, *, hidden: list[int], n_embedded: int, act: Activation
    ) -> None:
        """Build the layers; the last one is 0 at first.

        Args:
            fixed: (N, f) numbers that tell where a cell is.
            n_context: number of conditions.
            n_out: number of corrections.
            hidden: widths of the hidden layers.
            n_embedded: numbers that are learned for each cell.
            act: activation between the layers.
        """
        super().__init__()
        self.fixed = nn.Buffer(fixed)
        self.embedded = nn.Parameter(0.1 * torch.randn(len(fixed), n_embedded))
        self.of_seen = nn.Linear(N_SEEN, hidden[0])
        self.of_context = nn.Linear(n_context, hidden[0], bias=False)
        self.of_cell = nn.Linear(fixed.shape[1] + n_embedded, hidden[0], bias=False)
        rest = MLP(hidden[0], n_out, hidden=hidden[1:], act=act)
        self.rest = nn.Sequential(activation(act), rest)
        last: Any = rest[-1]  # a Linear; Sequential does not tell
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, seen: torch.Tensor, context: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Corrections (n, k, n_out) from what cells see (n, k, s), conditions (n, c) and their places (k,)."""
        cell = self.of_cell(torch.cat([self.fixed, self.embedded], dim=1)[at])
        out: torch.Tensor = self.rest(self.of_seen(seen) + self.of_context(context)[:, None] + cell)
        return out
