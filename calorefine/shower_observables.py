r"""Observables of showers, by name: energies, centers, widths, occupancies and shares of the hottest cells.

A cell below the threshold of the geometry counts as 0, and so does a negative one.  With the energies
:math:`E_i` that are left in a layer, at :math:`\eta_i, \phi_i` in mm,

.. math:: \mathrm{ec}_\eta = \frac{\sum_i E_i \eta_i}{\sum_i E_i} , \qquad
          \mathrm{width}_\eta = \sqrt{\frac{\sum_i E_i (\eta_i - \mathrm{ec}_\eta)^2}{\sum_i E_i}} ,

and likewise in phi.  The names are those of the CaloChallenge (Krause et al., arXiv:2410.21611), with the number of the
layer at their end:

=====================  ========  ======================================================================================
name                   unit
=====================  ========  ======================================================================================
``e_tot``              MeV       energy of all cells
``response``                     `e_tot` over the incident energy
``depth``                        mean number of the layer, by energy
``e_layer_<l>``        MeV       energy of the layer
``ec_eta_<l>``         mm        center of energy; of layers that are divided along the axis, as the following two
``width_eta_<l>``      mm        width by energy
``occupancy_<l>``                share of the cells that are read out
``sparsity_<l>``                 1 - occupancy
``hottest_<l>``                  share of the layer's energy in its hottest cell; of layers of 2 cells and more
``second_<l>``                   in the second hottest cell; likewise
``five_<l>``                     in the five hottest cells; of layers of more than 5
``twenty_<l>``                   in the twenty hottest cells; of layers of more than 20
=====================  ========  ======================================================================================

**A layer without energy** has the center 0, the width 0 and shares of 0, as in the CaloChallenge's own code, and a
shower without energy the depth 0: every number is finite, and whether a layer is empty is told by `e_layer_<l>`.  Cells
that are NaN or infinite are refused.

Showers are read in blocks, so that next to the cells themselves little memory is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.errors import ConfigError, EmptySelectionError, ValueRangeError, WeightError, nearest
from calorefine.geometry import AXES, Geometry, Layer
from calorefine.intervals import UNSEEN
from calorefine.stats import FloatArray

Cells = NDArray[np.floating]
Axis = Literal["eta", "phi"]
HOTTEST = {"hottest": (0, 1), "second": (1, 2), "five": (0, 5), "twenty": (0, 20)}  # ranks, the hottest cell is 0
OF_SHOWER = ("e_tot", "response", "depth")
_BLOCK = 1_000_000  # cells that are looked at in one go


def names(geometry: Geometry) -> list[str]:
    """Names of all observables of this geometry; `response` needs the incident energy."""
    return [*OF_SHOWER, *(f"{quantity}_{layer.number}" for layer in geometry.layers for quantity in _of_layer(layer))]


def evaluate(name: str, cells: Cells, geometry: Geometry, e_inc: FloatArray | None = None) -> FloatArray:
    """Compute one observable (n,) of each shower; no weight takes part.

    Args:
        name: one of `names`.
        cells: (n, n_cells) energies in MeV, layers as in the geometry.
        geometry: tells the threshold, and where the cells are.
        e_inc: (n,) incident energies in MeV, for `response`.

    Raises:
        ConfigError: an unknown name, cells of another shape, or no incident energy where it is needed.
        ValueRangeError: a cell is NaN or infinite, or an incident energy is not positive.

    >>> from calorefine.geometry import segmented
    >>> detector = segmented([(1, 2), (1, 4)], (40.0, 40.0), 0.1)
    >>> cells = np.array([[0.0, 0.0, 1.0, 3.0, 0.0, 0.05]])
    >>> evaluate("ec_eta_1", cells, detector), evaluate("occupancy_1", cells, detector)
    (array([-7.5]), array([0.5]))
    """
    _check(name, cells, geometry, e_inc)
    if name == "response":
        return evaluate("e_tot", cells, geometry) / np.asarray(e_inc, np.float64)
    if name in OF_SHOWER:
        energies = layer_energies(cells, geometry)
        total = energies.sum(axis=1)
        return total if name == "e_tot" else _ratio(energies @ [layer.number for layer in geometry.layers], total)
    quantity, _, number = name.rpartition("_")
    index = [layer.number for layer in geometry.layers].index(int(number))
    function = _of_layer(geometry.layers[index])[quantity]
    return np.concatenate([np.empty(0), *map(function, _blocks(cells, geometry, index))])


def table(names: Sequence[str], cells: Cells, geometry: Geometry, e_inc: FloatArray | None = None) -> FloatArray:
    """Several observables (n, k) of each shower, in the order of their names; arguments and errors as of `evaluate`."""
    return np.stack([evaluate(name, cells, geometry, e_inc) for name in names], axis=1)


def layer_energies(cells: Cells, geometry: Geometry) -> FloatArray:
    """Energies (n, layers) in MeV of cells (n, n_cells) that are read out.

    Raises:
        ConfigError: cells of another shape.
        ValueRangeError: a cell is NaN or infinite.
    """
    _check_shape(cells, geometry)
    out = np.zeros((len(cells), len(geometry.layers)))
    for index in range(len(geometry.layers)):
        out[:, index] = np.concatenate([np.empty(0), *map(_energy, _blocks(cells, geometry, index))])
    return out


def read_out(cells: Cells, geometry: Geometry) -> Cells:
    """Return a copy of the cells (n, n_cells) in MeV in which those that are not read out are 0.

    Raises:
        ConfigError: cells of another shape.
        ValueRangeError: a cell is NaN or infinite.
    """
    _check_shape(cells, geometry)
    if bad := int(cells.size - sum(np.count_nonzero(np.isfinite(row)) for row in cells)):
        raise ValueRangeError(f"showers: {bad} of {cells.size} cells are NaN or infinite, expected none")
    return _above(cells.copy(), geometry)


@dataclass(frozen=True)
class Profile:
    """Mean energy of a shower in steps of depth or of distance.

    Attributes:
        mean_mev: (b,) weighted mean per shower, in MeV.
        error_mev: (b,) its standard error, of events of equal key as one; above 0 also where no shower has energy.
        n: number of showers.
    """

    mean_mev: FloatArray
    error_mev: FloatArray
    n: int


def longitudinal_profile(
    cells: Cells, geometry: Geometry, *, weight: FloatArray, event_key: keys.KeyArray | None = None
) -> Profile:
    """Mean energy (layers,) in each layer.

    Args:
        cells: (n, n_cells) in MeV.
        geometry: of the cells.
        weight: (n,) any sign, positive sum.
        event_key: (n,) equal for showers that are correlated; none are without.

    Raises:
        ConfigError: cells of another shape.
        EmptySelectionError: no shower has energy.
        ValueRangeError: a cell is NaN or infinite.
        WeightError: weights of another length, or without a positive sum.
    """
    energies = layer_energies(cells, geometry)
    return _profile(energies, _least(cells, geometry, range(len(geometry.layers))), weight, event_key)


def lateral_profile(
    cells: Cells,
    geometry: Geometry,
    *,
    layer: int,
    axis: Axis,
    edges_mm: FloatArray,
    weight: FloatArray,
    center_mm: FloatArray | None = None,
    event_key: keys.KeyArray | None = None,
) -> Profile:
    """Weighted mean (b,) of `lateral_energies`, and its error; it raises their errors as well.

    Args:
        cells: (n, n_cells) in MeV.
        geometry: of the cells.
        layer: its number.
        axis: along which.
        edges_mm: (b + 1,) of the bins.
        weight: (n,) any sign, positive sum.
        center_mm: (n,) position that is subtracted; 0 without.
        event_key: (n,) equal for showers that are correlated; none are without.

    Raises:
        EmptySelectionError: no shower has energy in the layer.
        WeightError: weights of another length, or without a positive sum.
    """
    energies = lateral_energies(cells, geometry, layer=layer, axis=axis, edges_mm=edges_mm, center_mm=center_mm)
    index = [part.number for part in geometry.layers].index(layer)
    return _profile(energies, _least(cells, geometry, [index]), weight, event_key)


def lateral_energies(
    cells: Cells,
    geometry: Geometry,
    *,
    layer: int,
    axis: Axis,
    edges_mm: FloatArray,
    center_mm: FloatArray | None = None,
) -> FloatArray:
    """Energy (n, b) of a layer's cells whose centers lie in bins of the coordinate along one axis.

    Args:
        cells: (n, n_cells) in MeV.
        geometry: of the cells.
        layer: its number.
        axis: along which; the other one is summed over.
        edges_mm: (b + 1,) of the bins, each without its upper edge; cells outside don't count.
        center_mm: (n,) position that is subtracted, such as the entry point or the center of energy; 0 without.

    Raises:
        ConfigError: cells of another shape, no such layer or axis.
        ValueRangeError: a cell is NaN or infinite.
    """
    _check_shape(cells, geometry)
    numbers = [part.number for part in geometry.layers]
    if layer not in numbers or axis not in AXES:
        raise ConfigError(f"layer {layer} and axis '{axis}' found, expected one of {numbers} and one of {AXES}")
    index, center = numbers.index(layer), np.zeros(len(cells)) if center_mm is None else np.asarray(center_mm)
    where, energies, first = getattr(geometry.layers[index], axis), [np.empty((0, len(edges_mm) - 1))], 0
    for part in _blocks(cells, geometry, index):
        energies.append(_in_bins(part, where - center[first : first + len(part), None], edges_mm))
        first += len(part)
    return np.concatenate(energies)


def _in_bins(part: FloatArray, where: FloatArray, edges: FloatArray) -> FloatArray:
    """Energies (b, bins) of cells (b, cells) at these places (b, cells)."""
    size = len(edges) + 1  # with one below and one above
    bins = np.searchsorted(edges, where, side="right") + np.arange(len(part))[:, None] * size
    sums = np.bincount(bins.ravel(), part.ravel(), len(part) * size)
    return np.asarray(sums.reshape(len(part), size)[:, 1:-1])


def _profile(energies: FloatArray, least: float, weight: FloatArray, event_key: keys.KeyArray | None) -> Profile:
    """Weighted means of energies (n, b) and their errors, which hold `UNSEEN` showers of the least energy."""
    if np.shape(weight) != (len(energies),):
        raise WeightError(f"profile: weights of shape {np.shape(weight)} found, expected ({len(energies)},)")
    mean = stats.mean(energies, weight)
    influence = (weight / stats.sum_w(weight))[:, None] * (energies - mean)
    group = np.arange(len(energies)) if event_key is None else keys.group(event_key)
    variance = np.square(stats.row_sums(influence, group, int(group.max()) + 1)).sum(axis=0)
    unseen = UNSEEN * (least / max(stats.n_eff(weight), 1.0)) ** 2
    return Profile(mean, np.sqrt(variance + unseen), len(energies))


def _least(cells: Cells, geometry: Geometry, layers: Sequence[int]) -> float:
    """Least energy in MeV that a cell of these layers (indices) is read out with in this sample."""
    parts = (part[part > 0] for index in layers for part in _blocks(cells, geometry, index))
    energy = min((float(part.min()) for part in parts if part.size), default=0.0)
    if energy == 0:
        raise EmptySelectionError(f"profile: no cell of {len(cells)} showers has energy above the threshold")
    return energy


def _check(name: str, cells: Cells, geometry: Geometry, e_inc: FloatArray | None) -> None:
    """Raise for what `evaluate` can't use."""
    known = names(geometry)
    if name not in known:
        numbers = [layer.number for layer in geometry.layers]
        msg = f"observable '{name}' found, expected one of {len(known)} names for layers {numbers}"
        raise ConfigError(msg + nearest(name, known))
    _check_shape(cells, geometry)
    if name != "response":
        return
    if e_inc is None or np.shape(e_inc) != (len(cells),):
        found = "no incident energies" if e_inc is None else f"incident energies of shape {np.shape(e_inc)}"
        raise ConfigError(f"response: {found} found, expected ({len(cells)},)")
    if bad := int(np.sum(~(np.isfinite(e_inc) & (np.asarray(e_inc) > 0)))):
        raise ValueRangeError(f"response: {bad} of {len(cells)} incident energies are not positive and finite")


def _check_shape(cells: Cells, geometry: Geometry) -> None:
    if cells.ndim != 2 or cells.shape[1] != geometry.n_cells:
        raise ConfigError(f"cells of shape {cells.shape} found, expected (n, {geometry.n_cells}) as in the geometry")


def _blocks(cells: Cells, geometry: Geometry, index: int) -> Iterator[FloatArray]:
    """Cells (b, cells) of one layer of some showers after the other, without those that are not read out."""
    layer = cells[:, geometry.slices[index]]
    step = max(1, _BLOCK // layer.shape[1])
    for first in range(0, len(layer), step):
        part = np.array(layer[first : first + step])
        if not np.isfinite(part.sum()) and (bad := int(np.sum(~np.isfinite(part)))):
            number = geometry.layers[index].number
            raise ValueRangeError(f"showers: {bad} cells of layer {number} are NaN or infinite, expected none")
        yield _above(part, geometry).astype(np.float64, copy=False)


def _above(cells: Cells, geometry: Geometry) -> Cells:
    """Set the cells to 0 that are not read out; the threshold has the precision of the cells."""
    cells[(cells < cells.dtype.type(geometry.threshold_mev)) | (cells < 0)] = 0.0
    return cells


def _of_layer(layer: Layer) -> dict[str, Callable[[FloatArray], FloatArray]]:
    """Observables of a layer that make sense for it: name without number to function of its cells (b, cells)."""
    functions: dict[str, Callable[[FloatArray], FloatArray]] = {"e_layer": _energy}
    for axis, resolved in zip(AXES, layer.resolved, strict=True):
        if resolved:
            functions[f"ec_{axis}"] = partial(_center, where=getattr(layer, axis))
            functions[f"width_{axis}"] = partial(_width, where=getattr(layer, axis))
    functions |= {"occupancy": _occupancy, "sparsity": _sparsity}
    for name, (low, high) in HOTTEST.items():
        if len(layer) > max(high - low, 1):
            functions[name] = partial(_hottest, low=low, high=high)
    return functions


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Ratio (n,), 0 where the denominator is."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _energy(part: FloatArray) -> FloatArray:
    return np.asarray(part.sum(axis=1))


def _occupancy(part: FloatArray) -> FloatArray:
    return np.asarray((part > 0).mean(axis=1))


def _sparsity(part: FloatArray) -> FloatArray:
    return 1 - _occupancy(part)


def _center(part: FloatArray, where: FloatArray) -> FloatArray:
    return _ratio(part @ where, part.sum(axis=1))


def _width(part: FloatArray, where: FloatArray) -> FloatArray:
    away = np.square(where - _center(part, where)[:, None])
    return np.sqrt(_ratio(np.einsum("ij,ij->i", part, away), part.sum(axis=1)))


def _hottest(part: FloatArray, low: int, high: int) -> FloatArray:
    """Share (b,) of the energy in the cells of these ranks."""
    top = np.sort(np.partition(part, -high, axis=1)[:, -high:], axis=1)[:, : high - low]
    return _ratio(top.sum(axis=1), part.sum(axis=1))
