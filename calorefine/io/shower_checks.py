"""What showers can't be: energies that aren't in MeV, negative ones, cells of another detector."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calorefine.errors import BranchError, ValueRangeError
from calorefine.geometry import Geometry
from calorefine.text import number

SHOWERS, ENERGIES = "showers", "incident_energies"
VOXELS = {
    368: "photons of data set 1 of the CaloChallenge",
    533: "pions of data set 1 of the CaloChallenge",
    6480: "data set 2 of the CaloChallenge",
    40500: "data set 3 of the CaloChallenge",
    504: "CaloGAN",
}
LOWEST_MEV, RESPONSE, FEWEST = 100.0, (0.002, 2.0), 10
"""Units are judged by the energies of at least so many showers: incident ones and the share of them that is deposited.

Both lie within these limits for every calorimeter in MeV, and a factor of 1000 in one or both of them doesn't: sampling
fractions are 0.005 or more, and of the beams of the CaloChallenge and of CaloGAN the lowest energy is 256 MeV.
"""


def check_showers(
    showers: ArrayLike, incident_energies: ArrayLike, geometry: Geometry | None = None, *, where: str
) -> None:
    """Refuse showers that can't be: for a chunk of them, before anything is made of it.

    Args:
        showers: (n, cells) deposited energies in MeV.
        incident_energies: (n,) or (n, 1) energies of the particles in MeV.
        geometry: of the calorimeter, if its number of cells is to be compared.
        where: file and tree, for messages.

    Raises:
        BranchError: another number of cells than the geometry has, or of energies than of showers.
        ValueRangeError: NaN, infinite or negative energies, or energies that aren't in MeV.
    """
    cells = np.asarray(showers)
    energies = np.asarray(incident_energies, np.float64).reshape(-1)
    if cells.ndim != 2 or len(cells) != len(energies):
        msg = f"{where}: '{SHOWERS}' of shape {cells.shape} and {len(energies)} '{ENERGIES}' found, expected (n, cells)"
        raise BranchError(f"{msg} and n")
    if geometry is not None:
        check_cells(cells.shape[1], geometry, f"{where}: '{SHOWERS}'")
    _require_range(cells, SHOWERS, where, positive=False)
    _require_range(energies[:, None], ENERGIES, where, positive=True)
    if len(cells) >= FEWEST:
        _require_mev(float(cells.sum(dtype=np.float64)), energies, where)


def check_cells(n: int, geometry: Geometry, where: str) -> None:
    """Refuse another number n of cells than the geometry has.

    Raises:
        BranchError: it is.
    """
    if n != geometry.n_cells:
        told = [f"{k} voxels{f' (as {VOXELS[k]})' if k in VOXELS else ''}" for k in (n, geometry.n_cells)]
        raise BranchError(f"{where} has {told[0]}, the geometry {told[1]}; expected those of one detector")


def _require_range(values: NDArray[Any], name: str, where: str, *, positive: bool) -> None:
    """Refuse values (n, k) that are not finite, or below 0, or with `positive` 0."""
    wrong = ~np.isfinite(values)
    found, expected = "NaN or infinite", "finite ones"
    if not wrong.any():
        wrong = values <= 0 if positive else values < 0
        found, expected = ("not positive", "positive ones") if positive else ("negative", "0 or more")
    if rows := np.flatnonzero(wrong.any(axis=1)).tolist():
        first = values[rows[0]][wrong[rows[0]]][0]
        msg = f"{where}: '{name}' has energies that are {found} in {len(rows)} of {len(values)} rows of a chunk, first "
        raise ValueRangeError(f"{msg}{number(float(first))} in row {rows[0]}; expected {expected}, in MeV")


def _require_mev(deposited: float, energies: NDArray[np.float64], where: str) -> None:
    """Refuse energies of many showers that look like GeV, or showers that are empty."""
    response, middle = deposited / float(energies.sum()), float(np.median(energies))
    told = f"showers hold {number(response)} of the incident energies, whose median is {number(middle)}"
    low, high = RESPONSE
    if deposited == 0:
        problem = f"all of {len(energies)} showers are empty"
    elif response > high:
        problem = f"{told}: '{ENERGIES}' look like GeV"
    elif response < low:
        problem = f"{told}: '{SHOWERS}' look like GeV"
    elif middle < LOWEST_MEV:
        problem = f"{told}: both look like GeV"
    else:
        return
    raise ValueRangeError(f"{where}: {problem}; expected MeV in both, multiply by 1000 what is in GeV")
