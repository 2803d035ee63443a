r"""Cells of a shower, block after block: each has a density of its own given those before it.

.. math:: p(x | c) = \prod_i p_i(x_i \,|\, x_{<i}, c) ,

where p_i is a hurdle and a mixture of normal densities beyond it (`calorefine.data.cells`), as the cells have without
each other, corrected by one small network that all cells share.  It sees sums over the neighbors so far, along the own
row and column, in rings and in the layers before: how much energy and how many hits they have for what was expected,
and how far they are from it in normal numbers.  A training step has all of the sums at once.

A layer has as many hits as its count says: the odds of a hit are those of the network times the ratio in which k hits
left are more probable with this one than without, for cells to come that are independent, with the mean :math:`\mu` and
the variance of a binomial number of m trials of probability q (`_log_odds`),

.. math:: \frac{k}{m - k + 1} \, \frac{1 - q}{q} , \quad m = \frac{(\sum_j p_j)^2}{\sum_j p_j^2} , \quad q = \mu / m .

How much of a layer's energy is left it isn't told: its last hits would have just that, and there would be nothing to
learn from where cells have more than the layer, before they are scaled to its energy.

The cells of a block are made at the same time, each given the blocks before.  In each layer the cells in which the
most energy is expected are blocks of their own, and of the others a block has no two that are next to each other.

The likelihood is exact, zeros included, up to the scaling of the layers to their energies.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from calorefine.data import cells
from calorefine.data.cells import Marginals
from calorefine.data.showers import GivenCells
from calorefine.errors import ConfigError
from calorefine.geometry import AXES, Geometry, pitches
from calorefine.models.density import standard_normal_log_prob
from calorefine.models.invertible import LikelihoodModel
from calorefine.models.updates import averaged, check_decay
from calorefine.nets import MLP, Activation, activation

LINES = ((0.0, 1.0), (1.0, 3.0))
"""Distances, in cells, of neighbors in the own row or column: above the first, up to the second."""
RINGS = ((0.0, 1.0), (1.0, 2.0), (2.0, 5.0))
"""Distances of others in the own layer."""
N_SEEN = 3 * (2 * len(LINES) + len(RINGS) + 4) + 6
LARGEST_OFFSET, CERTAIN = 12.0, 1e4  # of log odds
NEXT = (1, 1 + len(LINES), 1 + 2 * len(LINES))  # of the windows, those of cells that are next to each other
SLACK = 1e-3  # cells, in distances


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
        hidden: list[int] = [48, 48],  # noqa: B006 (never changed; shown by --print_config)
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
            ConfigError: it isn't the second part of a `TwoStep` of showers.
        """
        if not isinstance(self.features, GivenCells):
            msg = f"AutoregressiveCells: {type(self.features).__name__} found"
            raise ConfigError(f"{msg}, expected the cells of preprocessing Showers: as `then` of a TwoStep")
        self.latent_size, self.n_counts = n_features, self._of.n_counts
        geometry = self.features.geometry
        self.block = nn.Buffer(torch.from_numpy(_blocks(geometry, self._typical(n_context), self.n_alone)))
        self.corrections = _Corrections(
            _fixed(geometry),
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
        return _expected(self._of.marginals(context, counts))[0].double().numpy()

    @property
    def windows(self) -> torch.Tensor:
        """Which cells before (W, N, N) are in the windows of each cell: 1 or 0."""
        key = self.block.cpu()
        if self._windows is None or not torch.equal(self._windows[0], key):
            masks = np.stack(_windows(self._of.geometry)) & (key.numpy()[None, None, :] < key.numpy()[None, :, None])
            self._windows = key, torch.from_numpy(masks.astype(np.float32))
        return self._windows[1].to(self.block.device)

    @property
    def trained(self) -> nn.Module:
        """The network."""
        return self.corrections

    def _corrected(
        self, network: nn.Module, given: _Given, before: _Before, left: torch.Tensor, at: torch.Tensor
    ) -> Marginals:
        """Densities (n, k) of the cells at these places (k,), given those of the blocks before.

        They don't hold the odds of `_log_odds`.

        Args:
            network: of the corrections.
            given: what is known before all cells.
            before: the cells before.
            left: (n, k) hits that are left for the block of each cell and those after, in the layer.
            at: (k,) places.
        """
        windows = given.windows[:, at]  # (W, k, N)
        flat = windows.flatten(0, 1).mT
        p = torch.sigmoid(given.marginals.logit)
        arrays = (before.energy, given.expected, before.z, (before.energy > 0).to(p.dtype) - p, p)
        energy, expected, z, hits, variance = ((one @ flat).view(len(one), -1, len(at)) for one in arrays)
        base = given.marginals.at(at)
        hope = given.to_come.of_block[:, at]
        seen = [
            torch.log1p(energy) - torch.log1p(expected),
            z / (windows.sum(-1) + 1).sqrt(),
            hits / (variance + 1).sqrt(),
            base.logit[:, None] / 5,
            base.mean.mean(-1)[:, None],
            base.width.mean(-1).log()[:, None],
            (torch.log1p(left) - torch.log1p(hope))[:, None],
            ((left - hope) / (hope + 1).sqrt())[:, None],
            torch.log1p(left)[:, None] / 3,
        ]
        return base.corrected(network(torch.cat(seen, dim=1).mT, given.context, at))

    def _known(self, context: torch.Tensor, counts: torch.Tensor) -> _Given:
        """What is known of showers before their cells, at context (n, c) and counts (n, L)."""
        marginals = self._of.marginals(context, counts)
        to_come = _to_come(torch.sigmoid(marginals.logit), self.block, self._of.geometry.slices)
        return _Given(context, marginals, _expected(marginals), self.windows, to_come)

    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Make one block after the other from normal numbers (n, L + N), each by its density given those before.

        What the next layers see of a layer is scaled to its energy, as in the events of the training.
        """
        of, (number, latent) = self._of, latent.tensor_split([self.n_counts], dim=1)
        layers, counts = of.layers(context), of.counts(number, context)
        given = self._known(context, counts)
        u, before = torch.zeros_like(latent), _Before(torch.zeros_like(latent), torch.zeros_like(latent))
        for index, part in enumerate(of.geometry.slices):
            left = counts[:, index]
            logs, hits = torch.zeros_like(latent[:, part]), torch.zeros_like(latent[:, part], dtype=torch.bool)
            for block in torch.unique(self.block[part]):
                at = torch.nonzero(self.block == block)[:, 0]
                told = left[:, None].expand(-1, len(at)).to(latent.dtype)
                corrected, base = self._corrected(self.average, given, before, told, at), given.marginals.at(at)
                hit, left, corrected = _drawn(corrected, given.to_come, left, latent[:, at], at)
                y, _ = cells.from_normal(corrected, latent[:, at], hit)
                before.energy[:, at] = torch.where(hit, 1 + y.exp(), 0.0)
                before.z[:, at] = cells.to_normal(base, y, hit)
                u[:, at] = torch.where(hit, before.z[:, at], cells.moved_below(corrected, base, latent[:, at]))
                logs[:, at - part.start], hits[:, at - part.start] = y, hit
            made = of.whole.scaled(logs, hits, layers[:, index])
            y, _ = of.whole.energies_over_threshold(made)
            whole = torch.arange(part.start, part.stop, device=u.device)
            before.energy[:, part] = (made / of.whole.threshold).float()
            before.z[:, part] = cells.to_normal(given.marginals.at(whole), y, hits)
            u[:, part] = torch.where(hits, before.z[:, part], u[:, part])
        return torch.cat([number, u], dim=1)

    def network_log_prob(self, u: torch.Tensor, context: torch.Tensor, *, trained: bool = False) -> torch.Tensor:
        """Log density (n,) of cells, those without a hit spread over their intervals; arguments as in the base."""
        return standard_normal_log_prob(u) + self.gain(u, context, trained=trained)

    def gain(self, u: torch.Tensor, context: torch.Tensor, *, trained: bool = False) -> torch.Tensor:
        """By how many nats (n,) cells are more probable than independent ones with the same conditions."""
        number, z = u.tensor_split([self.n_counts], dim=1)
        counts = self._of.counts(number, context)
        given = self._known(context, counts)
        y, hit = self._of.whole.decoded(z, given.marginals, counts)
        before = _Before(torch.where(hit, 1 + y.exp(), 0.0), cells.to_normal(given.marginals, y, hit))
        network = self.corrections if trained else self.average
        left, of_block = given.to_come.left(hit, counts)
        corrected = self._corrected(network, given, before, of_block, torch.arange(z.shape[1], device=u.device))
        odds = _log_odds(left, *given.to_come.after)
        corrected = corrected._replace(logit=corrected.logit + odds)
        return (corrected.log_prob(y, hit) - given.marginals.log_prob(y, hit)).sum(1)


class _ToCome(NamedTuple):
    """Hits that are expected of independent cells that come later in a layer.

    Args:
        order: (N,) the cells in the order in which they come.
        layers: (N,) index of the layer of each cell in that order.
        stops: (N,) likewise, where its layer ends.
        blocks: (N,) likewise, where its block begins.
        after: sums (n, N) of p and of p squared of the cells after each one, and their number (N,).
        of_block: (n, N) sum of p of its block and those after.
    """

    order: torch.Tensor
    layers: torch.Tensor
    stops: torch.Tensor
    blocks: torch.Tensor
    after: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    of_block: torch.Tensor

    def left(self, hit: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hits left (n, N) from each cell on, and from its block on, for hits before (n, N) of so many (n, L)."""
        ordered = hit[:, self.order].to(self.of_block.dtype)
        rest = _rest(ordered, self.stops)
        of_layer = rest[:, torch.searchsorted(self.layers, self.layers)]
        left = counts[:, self.layers] - (of_layer - rest)
        return _placed(left, self.order), _placed(left[:, self.blocks], self.order)


def _to_come(p: torch.Tensor, block: torch.Tensor, slices: tuple[slice, ...]) -> _ToCome:
    """Sums of probabilities p (n, N) for the order of the blocks (N,), layer by layer."""
    order = torch.argsort(block, stable=True)
    blocks = torch.searchsorted(block[order], block[order])
    sizes = torch.tensor([at.stop - at.start for at in slices])
    layers = torch.arange(len(slices)).repeat_interleave(sizes).to(p.device)
    stops = sizes.cumsum(0).to(p.device)[layers]
    own = p[:, order]
    rest = _rest(own, stops)
    number = stops - 1 - torch.arange(len(order), device=p.device)
    after = (rest - own, _rest(own.square(), stops) - own.square(), number[None])
    sums = [_placed(part, order) for part in after]
    return _ToCome(order, layers, stops, blocks, (sums[0], sums[1], sums[2][0]), _placed(rest[:, blocks], order))


def _rest(ordered: torch.Tensor, stops: torch.Tensor) -> torch.Tensor:
    """Sums (n, N) of numbers (n, N) in order from each place on until its layer stops (N,)."""
    sums = torch.nn.functional.pad(ordered.double().cumsum(1), (1, 0))
    return (sums[:, stops] - sums[:, :-1]).to(ordered.dtype)


def _placed(ordered: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Numbers (n, N) in order, brought to their cells."""
    out = torch.empty_like(ordered)
    out[:, order] = ordered
    return out


def _log_odds(left: torch.Tensor, mean: torch.Tensor, squares: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Logarithms (...,) of the factor of the odds of a hit where some (...,) are left.

    Args:
        left: (...,) hits left for a cell and those after it.
        mean: (...,) sum of the probabilities of those after it.
        squares: (...,) sum of the squares of these.
        number: (...,) of cells after it.
    """
    mean, squares = mean.clamp_min(1e-6), squares.clamp_min(1e-12)
    q = (squares / mean).clamp(1e-6, 1 - 1e-6)
    trials = (mean / q - left + 1).clamp_min(0.1)
    odds = (left.clamp_min(0.1).log() - trials.log() + torch.log1p(-q) - q.log()).clamp(-LARGEST_OFFSET, LARGEST_OFFSET)
    odds = torch.where(left > number, CERTAIN, odds)
    return torch.where(left <= 0, -CERTAIN, odds)


def _drawn(
    corrected: Marginals, to_come: _ToCome, left: torch.Tensor, z: torch.Tensor, at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Marginals]:
    """Hits (n, k) of the cells of a block by normal numbers z (n, k), hits left (n,) after it, and their densities."""
    beyond = torch.special.ndtr(-z.double())
    mean, squares, number = to_come.after
    hits, logits = [], []
    for place, cell in enumerate(at.tolist()):
        odds = _log_odds(left, mean[:, cell], squares[:, cell], number[cell])
        logits.append(corrected.logit[:, place] + odds)
        hits.append((beyond[:, place] < torch.sigmoid(logits[-1].double())) | (odds >= CERTAIN))
        left = left - hits[-1].to(left.dtype)
    return torch.stack(hits, dim=1), left, corrected._replace(logit=torch.stack(logits, dim=1))


class _Given(NamedTuple):
    """What is known of showers before their cells.

    Args:
        context: (n, c) conditions and energies in network units.
        marginals: (n, N) densities of the cells without each other.
        expected: (n, N) mean energies by these, in thresholds.
        windows: (W, N, N) which cells before are in the windows of each cell.
        to_come: hits that are expected later.
    """

    context: torch.Tensor
    marginals: Marginals
    expected: torch.Tensor
    windows: torch.Tensor
    to_come: _ToCome


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


def _expected(marginals: Marginals) -> torch.Tensor:
    """Energies (n, N) in thresholds that are expected, roughly: a hit has that of its mean logarithm."""
    mean = (marginals.log_share.exp() * marginals.mean).sum(-1)
    return torch.sigmoid(marginals.logit) * (1 + mean.exp())


def _fixed(geometry: Geometry) -> torch.Tensor:
    """Numbers (N, f) that tell where cells are: their layer, and their distance from the middle in cells, as logs."""
    rows = []
    for index, layer in enumerate(geometry.layers):
        number = np.eye(len(geometry.layers))[index]
        places = [np.asarray(getattr(layer, axis)) / pitch for axis, pitch in zip(AXES, pitches(layer), strict=True)]
        logs = [np.sign(place) * np.log1p(np.abs(place)) / 3 for place in places]
        rows.append(np.column_stack([np.tile(number, (len(layer), 1)), *logs]))
    return torch.from_numpy(np.concatenate(rows)).float()


def _windows(geometry: Geometry) -> list[NDArray[np.bool_]]:
    """Which cells (N, N) are in each of the windows of each cell, the cell itself in none."""
    layer = np.repeat(np.arange(len(geometry.layers)), [len(one) for one in geometry.layers])
    same = layer[:, None] == layer
    before = layer[:, None] == layer + 1
    pitch = np.concatenate([np.tile(pitches(one), (len(one), 1)) for one in geometry.layers])
    place = np.concatenate([np.column_stack([one.eta, one.phi]) for one in geometry.layers])
    apart = np.abs(place[:, None] - place)
    cells_apart = apart / pitch[:, None]
    own = cells_apart.max(-1)
    over = (apart / ((pitch[:, None] + pitch) / 2)).max(-1)
    in_line = [same & (cells_apart[..., axis] < SLACK) for axis in (1, 0)]
    windows = [line & _within(own, span) for line in in_line for span in LINES]
    windows += [same & ~in_line[0] & ~in_line[1] & _within(own, span) for span in RINGS]
    windows += [before & (over < 1 - SLACK), before & (over < 2.5), layer[:, None] > layer]
    return [same & ~np.eye(len(layer), dtype=bool), *windows]


def _within(distance: NDArray[np.float64], span: tuple[float, float]) -> NDArray[np.bool_]:
    return np.asarray((distance > span[0] + SLACK) & (distance <= span[1] + SLACK))


def _blocks(geometry: Geometry, expected: NDArray[np.float64], n_alone: int) -> NDArray[np.int64]:
    """Block (N,) of each cell: layer after layer, the `n_alone` with most energy alone, of the others no neighbors."""
    windows = _windows(geometry)
    near = np.logical_or.reduce([windows[k] for k in NEXT])
    block, first = np.zeros(geometry.n_cells, np.int64), 0
    for part in geometry.slices:
        order = part.start + np.argsort(-expected[part], kind="stable")
        block[order[:n_alone]] = first + np.arange(len(order[:n_alone]))
        color = np.full(geometry.n_cells, -1)
        for cell in order[n_alone:]:
            taken = set(color[near[cell]].tolist())
            color[cell] = next(k for k in range(geometry.n_cells) if k not in taken)
        others = order[n_alone:]
        block[others] = first + len(order[:n_alone]) + color[others]
        first = int(block[part].max()) + 1
    return block
