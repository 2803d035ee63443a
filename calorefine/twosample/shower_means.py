r"""Mean numbers of a shower in two weighted samples, bin by bin: profiles, occupancies, the spectrum of cells, images.

Each is a weighted mean over showers of numbers that a shower has in bins.  The influence of a shower on the mean is
:math:`w (x - \bar x) / \sum w`; those of equal key, a shower's and that of the one generated at its conditions, are
summed before they are squared, in the errors of the ratios as well.  Errors hold `UNSEEN` more showers that have one
unit in a bin, so that none is 0 where no shower has anything.  Weights may have any sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.special import erfc

from calorefine import keys, shower_observables, stats
from calorefine.errors import EmptySelectionError
from calorefine.geometry import AXES, Geometry, Layer, pitches
from calorefine.intervals import UNSEEN
from calorefine.shower_observables import Axis, Cells
from calorefine.stats import FloatArray
from calorefine.twosample.overlay import SIGNIFICANT
from calorefine.twosample.showers import Showers

MOST_BINS, SPECTRUM_BINS = 41, 40
CORE = 0.99  # share of a layer's energy that a lateral profile spans
_BLOCK = 2**22  # cells that are sorted into the bins of the spectrum in one go


@dataclass(frozen=True)
class Means:
    """Mean numbers of a shower in bins, with standard errors.

    Attributes:
        edges: (b + 1,) of the bins.
        generated: (2, b) values and errors.
        reference: (2, b).
        ratio: (2, b) generated over reference; NaN where the reference isn't significantly above 0.
    """

    edges: FloatArray
    generated: FloatArray
    reference: FloatArray
    ratio: FloatArray

    @property
    def pulls(self) -> FloatArray:
        """Difference of the ratios from 1, in their errors (b,); NaN where there is no ratio."""
        pulls: FloatArray = (self.ratio[0] - 1) / self.ratio[1]
        return pulls

    @property
    def worst(self) -> tuple[int, float, float] | None:
        """Bin of the largest pull, the pull, and the probability of one as large in any bin; None without a ratio."""
        pulls = self.pulls
        if not np.isfinite(pulls).any():
            return None
        place = int(np.nanargmax(np.abs(pulls)))
        p_value = stats.sidak(float(erfc(abs(pulls[place]) / np.sqrt(2))), int(np.isfinite(pulls).sum()))
        return place, float(pulls[place]), p_value

    def to_dict(self) -> dict[str, Any]:
        """As lists, with None for NaN, and the worst bin."""
        rows = {
            f"{name}{end}": [None if np.isnan(x) else x for x in getattr(self, name)[k].tolist()]
            for name in ("generated", "reference", "ratio")
            for k, end in enumerate(("", "_error"))
        }
        worst = self.worst and dict(zip(("bin", "pull", "p_value"), self.worst, strict=True))
        return {"edges": self.edges.tolist(), **rows, "worst": worst}


def means(values: tuple[Cells, Cells], samples: tuple[Showers, Showers], *, edges: FloatArray, unit: float) -> Means:
    """Compare mean numbers of a shower.

    Args:
        values: (n, b) and (m, b) of the generated and the reference showers.
        samples: these showers; weights of any sign.
        edges: (b + 1,) of the bins.
        unit: the least that a shower can have in a bin, other than nothing.
    """
    group = keys.group(samples[0].key, samples[1].key)
    size, groups = int(group.max()) + 1, np.split(group, [len(samples[0].key)])
    rows, influences, unseen = [], [], []
    for numbers, showers, own in zip(values, samples, groups, strict=True):
        mean = stats.mean(numbers, showers.weight)
        influence = (showers.weight / stats.sum_w(showers.weight))[:, None] * (numbers - mean)
        influences.append(stats.row_sums(influence, own, size))
        unseen.append(UNSEEN * (unit / max(stats.n_eff(showers.weight), 1.0)) ** 2)
        rows.append(np.stack([mean, np.sqrt(np.square(influences[-1]).sum(axis=0) + unseen[-1])]))
    (made, _), (target, error) = rows
    known = target > SIGNIFICANT * error
    ratio = np.divide(made, target, out=np.full(len(made), np.nan), where=known)
    squares = np.square(influences[0] - np.nan_to_num(ratio) * influences[1]).sum(axis=0)
    squares += unseen[0] + np.nan_to_num(ratio) ** 2 * unseen[1]
    errors = np.divide(np.sqrt(squares), target, out=np.full(len(made), np.nan), where=known)
    return Means(edges, rows[0], rows[1], np.stack([ratio, errors]))


def _means_of(
    numbers: Callable[[Showers], Any], samples: tuple[Showers, Showers], *, edges: FloatArray, unit: float
) -> Means:
    return means((numbers(samples[0]), numbers(samples[1])), samples, edges=edges, unit=unit)


def images(samples: tuple[Showers, Showers], geometry: Geometry, index: int) -> Means:
    """Mean energy in MeV of each cell of a layer, by its index, below the threshold as it is; bins are the cells."""
    at, layer = geometry.slices[index], geometry.layers[index]
    edges, unit = _numbers(len(layer)), least_mev(samples, geometry)
    return _means_of(lambda showers: showers.cells[:, at], samples, edges=edges, unit=unit)


def _numbers(n: int) -> FloatArray:
    """Edges (n + 1,) of bins around numbers from 0."""
    return np.arange(n + 1, dtype=np.float64) - 0.5


def least_mev(samples: tuple[Showers, Showers], geometry: Geometry) -> float:
    """Energy that a cell is read out with at least: the threshold, or the least of the reference.

    Raises:
        EmptySelectionError: no cell of the reference has energy.
    """
    if geometry.threshold_mev > 0:
        return geometry.threshold_mev
    energies = _used(samples[1])
    energies = energies[energies > 0]
    if not energies.size:
        raise EmptySelectionError(f"reference: no cell of {len(samples[1].key)} showers has energy")
    return float(energies.min())


def _used(showers: Showers) -> Cells:
    """Cells of the showers whose weight is not 0."""
    used: Cells = showers.cells[showers.weight != 0]
    return used


def longitudinal(samples: tuple[Showers, Showers], geometry: Geometry) -> Means:
    """Mean energy in MeV of each layer; bins are numbered from 0 in the order of the layers."""
    edges = _numbers(len(geometry.layers))
    return _means_of(
        lambda showers: shower_observables.layer_energies(showers.cells, geometry),
        samples,
        edges=edges,
        unit=least_mev(samples, geometry),
    )


def occupancies(samples: tuple[Showers, Showers], geometry: Geometry) -> Means:
    """Mean share of the cells of each layer that are read out; bins as of `longitudinal`."""
    names = [f"occupancy_{layer.number}" for layer in geometry.layers]
    edges, unit = _numbers(len(names)), 1 / max(map(len, geometry.layers))
    return _means_of(
        lambda showers: shower_observables.table(names, showers.cells, geometry), samples, edges=edges, unit=unit
    )


def laterals(samples: tuple[Showers, Showers], geometry: Geometry) -> dict[str, Means]:
    """Mean energy in MeV along each divided axis of each layer, less the point of entry where it is known.

    Returns:
        By layer and axis, as in `0_eta`; layers without energy in the reference are left out.
    """
    found, unit = {}, least_mev(samples, geometry)
    for layer, at in zip(geometry.layers, geometry.slices, strict=True):
        energy = stats.mean(samples[1].cells[:, at], samples[1].weight)
        for place, axis in enumerate(AXES):
            if layer.resolved[place] and energy.sum() > 0:
                edges = lateral_edges(layer, place, energy)
                found[f"{layer.number}_{axis}"] = _means_of(
                    lambda showers, layer=layer, place=place, edges=edges: _lateral(  # type: ignore[misc]
                        showers, geometry, layer, place, edges
                    ),
                    samples,
                    edges=edges,
                    unit=unit,
                )
    return found


def _lateral(showers: Showers, geometry: Geometry, layer: Layer, place: int, edges: FloatArray) -> FloatArray:
    center = showers.entry_mm[:, place] if showers.entry_mm.shape[1] else None
    axis = cast("Axis", AXES[place])
    return shower_observables.lateral_energies(
        showers.cells, geometry, layer=layer.number, axis=axis, edges_mm=edges, center_mm=center
    )


def lateral_edges(layer: Layer, place: int, energy: FloatArray) -> FloatArray:
    """Bins (b + 1,) in mm around 0 that hold most of the energy: a whole number of cells each, an odd number of bins.

    Args:
        layer: whose cells are looked at.
        place: of the axis.
        energy: (cells,) mean energies.
    """
    away = np.abs((layer.eta, layer.phi)[place])
    order, pitch = np.argsort(away, kind="stable"), pitches(layer)[place]
    within = np.cumsum(np.maximum(energy[order], 0))
    reach = float(away[order][np.searchsorted(within, CORE * within[-1])]) + pitch
    step = pitch * max(1, -(-int(2 * reach / pitch) // MOST_BINS))
    half = max(1, round(reach / step))
    return np.asarray((np.arange(2 * half + 2) - half - 0.5) * step)


def spectrum(samples: tuple[Showers, Showers], geometry: Geometry) -> Means:
    """Mean number of cells of a shower in bins of their energy in MeV, equally wide in the logarithm."""
    low, high = least_mev(samples, geometry), max(float(_used(showers).max(initial=0.0)) for showers in samples)
    edges = np.geomspace(low * (1 - 1e-6), max(high, 2 * low) * (1 + 1e-6), SPECTRUM_BINS + 1)
    return _means_of(lambda showers: _counted(showers.cells, edges), samples, edges=edges, unit=1.0)


def _counted(cells: Cells, edges: FloatArray) -> FloatArray:
    """Numbers (n, b) of the cells of each shower in bins of their energy."""
    size, step = len(edges) + 1, max(1, _BLOCK // cells.shape[1])
    counts = [np.empty((0, size), np.int64)]
    for first in range(0, len(cells), step):
        part = cells[first : first + step]
        place = np.searchsorted(edges, part, side="right") + np.arange(len(part))[:, None] * size
        counts.append(np.bincount(place.ravel(), minlength=len(part) * size).reshape(len(part), size))
    return np.concatenate(counts)[:, 1:-1].astype(np.float64)
