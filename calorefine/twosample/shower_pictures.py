"""Showers to look at: averages of both samples in the entry's frame, and single ones side by side at like energies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from calorefine import shower_observables, stats
from calorefine.geometry import Geometry
from calorefine.shower_observables import Cells
from calorefine.stats import FloatArray
from calorefine.twosample import shower_means
from calorefine.twosample.shower_judges import canonical
from calorefine.twosample.shower_means import Means
from calorefine.twosample.showers import Showers

MOST_LAYERS = 4
LEVELS = (0.1, 0.4, 0.7, 0.95)  # quantiles of the incident energy of single showers


@dataclass(frozen=True)
class Single:
    """A reference shower and the generated one of the nearest incident energy.

    Attributes:
        e_inc_mev: of the generated and the reference shower.
        generated: (n_cells,) in MeV.
        reference: likewise.
    """

    e_inc_mev: tuple[float, float]
    generated: Cells
    reference: Cells


@dataclass(frozen=True)
class Traversal:
    """Showers of the same noise, one condition varied at a time.

    Attributes:
        column: name of the condition.
        values: (k,) of it.
        cells: (k, n_cells) in MeV.
    """

    column: str
    values: FloatArray
    cells: Cells


@dataclass(frozen=True)
class ShowerPictures:
    """What is drawn beside the numbers.

    Attributes:
        geometry: of the cells.
        shown: indices of the layers of most energy in the reference, in their order.
        averages: index of such a layer to mean energies of its cells, in the canonical frame.
        singles: at rising energies.
        traversals: of the generator; empty without its checkpoint.
    """

    geometry: Geometry
    shown: list[int]
    averages: dict[int, Means]
    singles: list[Single]
    traversals: list[Traversal]


def shower_pictures(
    samples: tuple[Showers, Showers], geometry: Geometry, traversals: Iterable[Traversal] = ()
) -> ShowerPictures:
    """Prepare what is drawn.

    Args:
        samples: generated and reference showers; weights of any sign, which averages take into account.
        geometry: of the cells.
        traversals: of the generator, if there is one.
    """
    energies = stats.mean(shower_observables.layer_energies(samples[1].cells, geometry), samples[1].weight)
    shown = sorted(np.argsort(-energies, kind="stable")[:MOST_LAYERS].tolist())
    frame = canonical(geometry)
    made, target = (
        replace(s, cells=frame(shower_observables.read_out(s.cells, geometry), s.entry_mm)[0]) for s in samples
    )
    averages = {index: shower_means.images((made, target), geometry, index) for index in shown}
    return ShowerPictures(geometry, shown, averages, _singles(samples, geometry), list(traversals))


def _singles(samples: tuple[Showers, Showers], geometry: Geometry) -> list[Single]:
    """Reference showers at quantiles of the incident energy, each with the nearest generated one."""
    made, target = samples
    singles = []
    for energy in np.unique(np.quantile(target.e_inc, LEVELS, method="nearest")):
        first = int(np.argmin(np.abs(np.log(target.e_inc / energy))))
        second = int(np.argmin(np.abs(np.log(made.e_inc / energy))))
        cells = [
            shower_observables.read_out(showers.cells[k : k + 1], geometry)[0]
            for showers, k in ((made, second), (target, first))
        ]
        singles.append(Single((float(made.e_inc[second]), float(target.e_inc[first])), cells[0], cells[1]))
    return singles
