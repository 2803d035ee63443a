r"""Cells of a shower, block after block: each has a density of its own given those before it.

.. math:: p(x | c) = \prod_i p_i(x_i \,|\, x_{<i}, c) ,

where p_i is a hurdle and a mixture of normal densities beyond it (`calorefine.data.cells`), as the cells have without
each other, corrected by one small network that all cells share.  It sees sums over the neighbors so far, along the own
row and column, in rings and in the layers before: how much energy and how many hits they have for what was expected,
and how far they are from it in normal numbers.  A training step has all of the sums at once.

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
from calorefine.models.cell_windows import N_OWN, N_WINDOWS, blocks_of, places_of, windows_of
from calorefine.models.density import standard_normal_log_prob
from calorefine.models.invertible import LikelihoodModel
from calorefine.models.layer_integral import log_integral, log_jacobian
from calorefine.models.updates import averaged, check_decay
from calorefine.nets import MLP, Activation, activation

MOST_CELLS = 2500  # 275 MB of windows
VALUES = 2_000_000  # numbers of a block of showers whose likelihood is computed at once


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
            ConfigError: it isn't the second part of a `TwoStep` of showers, or these have too many cells.
        """
        if not isinstance(self.features, GivenCells):
            msg = f"AutoregressiveCells: {type(self.features).__name__} found"
            raise ConfigError(f"{msg}, expected the cells of preprocessing Showers: as `then` of a TwoStep")
        if n_features > MOST_CELLS:
            msg = f"AutoregressiveCells: {n_features} cells found, expected at most {MOST_CELLS}: what each may see of "
            msg += "the others are matrices of all pairs; take AffineFlow (configs/showers/shower_flow.yaml)"
            raise ConfigError(msg)
        self.latent_size = n_features
        geometry = self.features.geometry
        self.block = nn.Buffer(torch.from_numpy(blocks_of(geometry, self._typical(n_context), self.n_alone)))
        self.corrections = _Corrections(
            places_of(geometry),
            self._of.n_conditions,
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
        return _expected(self._of.marginals(torch.zeros(1, n_context)))[0].double().numpy()

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

    def _corrected(self, network: nn.Module, given: _Given, before: _Before, at: torch.Tensor) -> Marginals:
        """Densities (n, k) of the cells at these places (k,), given those of the blocks before."""
        return self._by(network, given, _sums(given, before, at), at)

    def _by(self, network: nn.Module, given: _Given, sums: _Sums, at: torch.Tensor) -> Marginals:
        """Densities (n, k) of the cells at these places (k,), given sums over their windows."""
        base = given.marginals.at(at)
        seen = [
            torch.log1p(sums.energy) - torch.log1p(sums.expected),
            sums.z / (sums.n + 1).sqrt(),
            sums.hits / (sums.variance + 1).sqrt(),
            base.logit[:, None] / 5,
            base.mean.mean(-1)[:, None],
            base.width.mean(-1).log()[:, None],
        ]
        return base.corrected(network(torch.cat(seen, dim=1).mT, given.conditions, at))

    def _known(self, context: torch.Tensor, layers: torch.Tensor | None = None) -> _Given:
        """What is known of showers before their cells, at context (n, c); energies (n, L) of layers replace its own."""
        conditions = self._of.conditions_of(context, layers)
        marginals: Marginals = self._of.whole.network(conditions)
        return _Given(conditions, marginals, _expected(marginals), self.windows)

    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Make one block after the other from normal numbers (n, N), each by its density given those before.

        What the next layers see of a layer is scaled to its energy, as in the events of the training.
        """
        of = self._of
        layers = of.layers(context)
        given = self._known(context, layers)
        u, before = torch.zeros_like(latent), _Before(torch.zeros_like(latent), torch.zeros_like(latent))
        for index, part in enumerate(of.geometry.slices):
            room = of.whole.room(layers[:, index])
            logit, made = torch.zeros_like(latent[:, part]), torch.zeros_like(room)
            for number in torch.unique(self.block[part]):
                at = torch.nonzero(self.block == number)[:, 0]
                corrected, base = self._corrected(self.average, given, before, at), given.marginals.at(at)
                y, hit = cells.from_normal(corrected, latent[:, at])
                hit = hit & (made[:, None] + hit.cumsum(1) <= room[:, None])
                made = made + hit.sum(1)
                before.energy[:, at] = torch.where(hit, 1 + y.exp(), 0.0)
                before.z[:, at] = cells.to_normal(base, y, hit)
                u[:, at] = torch.where(hit, before.z[:, at], cells.moved_below(corrected, base, latent[:, at]))
                logit[:, at - part.start] = corrected.logit
            only = (made == 0) & (room > 0)
            energies = torch.where(only[:, None], 2 * _nearest_hit(logit, latent[:, part]), before.energy[:, part])
            scaled = of.whole.scaled(energies, layers[:, index], u[:, part])
            y, hit = of.whole.energies_over_threshold(scaled)
            whole = torch.arange(part.start, part.stop, device=u.device)
            before.energy[:, part] = (scaled / of.whole.threshold).float()
            before.z[:, part] = cells.to_normal(given.marginals.at(whole), y, hit)
            u[:, part] = torch.where(hit, before.z[:, part], u[:, part])
        return u

    @property
    def unlikely(self) -> None:
        """Nothing: layers are made one by one."""
        return

    def log_prob(self, x: torch.Tensor, context: torch.Tensor, *, independent: bool = False) -> torch.Tensor:
        """Log density (n,) of cells given the energies of their layers, which are scaled to these.

        Args:
            x: (n, N) cells in MeV, in the canonical frame; those without a hit are 0.
            context: (n, c) conditions and energies in network units; the energies are those of the cells.
            independent: that of cells that depend on each other through conditions and energies alone.

        Returns:
            (n,) float64: nats, of a density per product of the energies of the hits and over that of the energies of
            the layers that aren't empty.  See `layer_integral` for the scaling, and the module for its limits.
        """
        size = max(1, VALUES // (N_WINDOWS * x.shape[1]))
        blocks = [slice(first, first + size) for first in range(0, max(len(x), 1), size)]
        return torch.cat([self._log_prob(x[rows], context[rows], independent=independent) for rows in blocks])

    def _log_prob(self, x: torch.Tensor, context: torch.Tensor, *, independent: bool) -> torch.Tensor:
        """Log density (n,) of some cells; arguments as for `log_prob`."""
        whole = self._of.whole
        y, hit = whole.energies_over_threshold(x)
        layers = whole.layers_of(x)
        given = self._known(context, layers)
        before = _before(given, y, hit)
        log_prob = layers.new_zeros(len(x))
        for index, part in enumerate(self._of.geometry.slices):
            rows = torch.nonzero(hit[:, part].any(1))[:, 0]
            if len(rows):
                cells_of = _Layer(self, given.of(rows), before.of(rows), y[rows], hit[rows], part, independent)
                log_prob[rows] += cells_of.log_prob(layers[rows, index])
        return log_prob

    def network_log_prob(self, u: torch.Tensor, context: torch.Tensor, *, trained: bool = False) -> torch.Tensor:
        """Log density (n,) of cells, those without a hit spread over their intervals; arguments as in the base."""
        return standard_normal_log_prob(u) + self.gain(u, context, trained=trained)

    def gain(self, u: torch.Tensor, context: torch.Tensor, *, trained: bool = False) -> torch.Tensor:
        """By how many nats (n,) cells are more probable than independent ones, before layers are scaled."""
        given = self._known(context)
        y, hit = cells.from_normal(given.marginals, u)
        network = self.corrections if trained else self.average
        every = torch.arange(u.shape[1], device=u.device)
        corrected = self._corrected(network, given, _before(given, y, hit), every)
        return (corrected.log_prob(y, hit) - given.marginals.log_prob(y, hit)).sum(1)


class _Given(NamedTuple):
    """What is known of showers before their cells.

    Args:
        conditions: (n, m) conditions and energies of layers.
        marginals: (n, N) densities of the cells without each other.
        expected: (n, N) mean energies by these, in thresholds.
        windows: (W, N, N) which cells before are in the windows of each cell.
    """

    conditions: torch.Tensor
    marginals: Marginals
    expected: torch.Tensor
    windows: torch.Tensor

    def of(self, rows: torch.Tensor) -> _Given:
        """That of some showers."""
        return _Given(self.conditions[rows], self.marginals.of(rows), self.expected[rows], self.windows)


class _Before(NamedTuple):
    """Cells (n, N) so far: energies in thresholds, and normal numbers by the densities without each other."""

    energy: torch.Tensor
    z: torch.Tensor

    def of(self, rows: torch.Tensor) -> _Before:
        """That of some showers."""
        return _Before(self.energy[rows], self.z[rows])

    def with_layer(self, part: slice, energy: torch.Tensor, z: torch.Tensor) -> _Before:
        """All cells, with these (n, k) in one layer."""
        pairs = zip(self, (energy, z), strict=True)
        return _Before(*(torch.cat([all_[:, : part.start], own, all_[:, part.stop :]], dim=1) for all_, own in pairs))


class _Sums(NamedTuple):
    """Sums (n, W, k) over the windows of cells.

    Args:
        energy: energies of cells, in thresholds.
        expected: those that are expected.
        z: normal numbers.
        hits: hits, less their probabilities.
        variance: these probabilities.
        n: (W, k) numbers of cells.
    """

    energy: torch.Tensor
    expected: torch.Tensor
    z: torch.Tensor
    hits: torch.Tensor
    variance: torch.Tensor
    n: torch.Tensor

    def of(self, rows: torch.Tensor) -> _Sums:
        """Those of some showers."""
        return self._replace(**{name: part[rows] for name, part in self._asdict().items() if name != "n"})


class _Layer:
    """The cells of a layer of some showers, for their likelihood.

    Args:
        model: the recipe.
        given: what is known of the showers (n,).
        before: all of their cells (n, N), as they are in the end.
        y: (n, N) logs of energies over the threshold.
        hit: (n, N) likewise, one at least in this layer.
        part: which cells are the layer's.
        independent: whether they don't see each other.
    """

    def __init__(
        self,
        model: AutoregressiveCells,
        given: _Given,
        before: _Before,
        y: torch.Tensor,
        hit: torch.Tensor,
        part: slice,
        independent: bool,  # noqa: FBT001
    ) -> None:
        """Sum what doesn't change when the layer is scaled."""
        self.model, self.given, self.part = model, given, part
        self.at = torch.arange(part.start, part.stop, device=y.device)
        self.y, self.hit, self.block = y[:, part].double(), hit[:, part], model.block[part]
        self.base = given.marginals.at(self.at)
        self.independent = independent
        self.before = before
        if not independent:
            own = torch.where(self.hit, self.y.exp(), 0.0).float()
            self.windows = given.windows[:N_OWN, self.at][:, :, part]
            self.over = _windowed(own, self.windows)
            still = before.with_layer(part, self.hit.float(), before.z[:, part].masked_fill(self.hit, 0.0))
            self.fixed = _sums(given, still, self.at)

    def log_prob(self, energy: torch.Tensor) -> torch.Tensor:
        """Log density (n,) with these energies (n,) of the layer, in MeV."""
        whole = self.model._of.whole
        open_ = self._open(whole.room(energy))

        def raw(t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            y = (self.y[rows] - t[:, None]).float()
            terms = self._densities(y, t, rows).log_prob(y, self.hit[rows])
            return torch.where(open_[rows], terms, 0.0).sum(1, dtype=torch.float64)

        found = log_integral(raw, self._width())
        alone = torch.nonzero(self.hit.sum(1) == 1)[:, 0]
        if len(alone):
            found[alone] = torch.logaddexp(found[alone], self._log_only(alone))
        return found + log_jacobian(self.y, self.hit, whole.threshold)

    def _open(self, room: torch.Tensor) -> torch.Tensor:
        """Which cells (n, k) could have a hit when their turn came: room (n,) was left."""
        order = torch.argsort(self.block, stable=True)
        hit = self.hit[:, order].long()
        return (hit.cumsum(1) - hit < room[:, None])[:, torch.argsort(order)]

    def _width(self) -> torch.Tensor:
        """Width (n,) of the integrand in t, roughly, of independent cells."""
        each = (self.base.log_share.exp() / self.base.width.square()).sum(-1)
        return torch.where(self.hit, each, 0.0).sum(1, dtype=torch.float64).rsqrt()

    def _densities(self, y: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> Marginals:
        """Densities (m, k) of the cells of some showers before they were scaled by e^t (m,), which made y of them."""
        base = self.base.of(rows)
        if self.independent:
            return base
        hit, sums = self.hit[rows], self.fixed.of(rows)
        z = torch.zeros_like(y)
        z[hit] = cells.to_normal(base.of(hit), y[hit], hit[hit])
        sums.z[:, :N_OWN] += _windowed(z, self.windows)
        sums.energy[:, :N_OWN] += torch.exp(-t).float()[:, None, None] * self.over[rows]
        return self.model._by(self.model.average, self.given.of(rows), sums, self.at)

    def _log_only(self, rows: torch.Tensor) -> torch.Tensor:
        """Log probability (m,) that there was no hit in a layer, and that the one that it has was made of it."""
        base = self.base.of(rows)
        if self.independent:
            logit = base.logit
        else:
            none = torch.zeros_like(base.logit)
            before = self.before.of(rows).with_layer(self.part, none, cells.to_normal(base, none, none > 0))
            logit = self.model._corrected(self.model.average, self.given.of(rows), before, self.at).logit
        logit = logit.double()
        own = torch.where(self.hit[rows], logit, 0.0).sum(1)
        return -torch.nn.functional.softplus(logit).sum(1) + own - logit.logsumexp(1)


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
        self.of_seen = nn.Linear(3 * N_WINDOWS + 3, hidden[0])
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


def _before(given: _Given, y: torch.Tensor, hit: torch.Tensor) -> _Before:
    """Cells of energies over the threshold y and hits (n, N)."""
    return _Before(torch.where(hit, 1 + y.exp(), 0.0), cells.to_normal(given.marginals, y, hit))


def _windowed(array: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Sums (n, W, k) of numbers (n, N) over windows (W, k, N)."""
    return (array @ windows.flatten(0, 1).mT).view(len(array), *windows.shape[:2])


def _sums(given: _Given, before: _Before, at: torch.Tensor) -> _Sums:
    """Sums over the windows of the cells at these places (k,)."""
    windows = given.windows[:, at]
    p = torch.sigmoid(given.marginals.logit)
    energy, expected, z, hits, variance = (
        _windowed(one, windows)
        for one in (before.energy, given.expected, before.z, (before.energy > 0).to(p.dtype) - p, p)
    )
    return _Sums(energy, expected, z, hits, variance, windows.sum(-1))


def _nearest_hit(logit: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """One of the cells (n, k) without a hit, each with a probability that goes like p / (1 - p): 1 there, 0 elsewhere.

    Given that z is below its hit, where it is in what is left tells how long it took.
    """
    p = torch.sigmoid(logit)
    share = ((torch.special.ndtr(-z.double()) - p) / (1 - p)).clamp(0.0, 1.0)
    times = -torch.log1p(-share) * torch.exp(-logit.double())
    return torch.nn.functional.one_hot(times.argmin(1), z.shape[1]).to(z.dtype)


def _expected(marginals: Marginals) -> torch.Tensor:
    """Energies (n, N) in thresholds that are expected, roughly: a hit has that of its mean logarithm."""
    mean = (marginals.log_share.exp() * marginals.mean).sum(-1)
    return torch.sigmoid(marginals.logit) * (1 + mean.exp())
