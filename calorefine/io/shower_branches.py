"""Observables of showers as branches: `shower.width_eta_1` stands where a branch may stand.

They are computed from the cells as rows are read, once the columns of a data set, or the provenance of a generated
file, tell the geometry.  Names are those of `shower_observables`, after `shower.`; energies are in MeV, lengths in mm.
A branch that has such a name wins.  Showers with cells that are NaN or infinite have NaN for all of them, which is
treated as any other NaN in an expression.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import shower_observables
from calorefine.errors import BranchError, nearest
from calorefine.events import Columns
from calorefine.geometry import Geometry
from calorefine.io import expressions
from calorefine.io.shower_checks import check_cells, check_showers

PREFIX = "shower."
RESPONSE = f"{PREFIX}response"
UNKNOWN = (
    "nothing tells where the cells of the showers are; expected columns with `showers: {geometry: ..., e_inc: ...}`, "
    "as in configs/showers/photon_columns.yaml (--columns), or a file that was generated with such ones"
)


@dataclass(frozen=True)
class ShowerBranches:
    """Where files hold showers.

    Args:
        geometry: of the calorimeter.
        cells: expression of the cells, in MeV.
        e_inc: expression of the incident energy.
        mev: factor from its unit to MeV.
        columns: names of the columns of cells and of the incident energy, where these are read too.
        generated: whether the showers are generated: then it isn't tested whether they can be real ones in MeV.
    """

    geometry: Geometry
    cells: str
    e_inc: str
    mev: float
    columns: tuple[str, str]
    generated: bool = False

    @classmethod
    def of(cls, columns: Columns, texts: Mapping[str, str] | None = None, *, generated: bool = False) -> ShowerBranches:
        """As columns with `showers` describe them; texts are expressions by column, their own if left out."""
        told: Any = columns.showers
        texts = texts or columns.expressions("features", "context")
        cells = texts.get(columns.cells, columns.cells)
        names = (columns.cells, told.e_inc)
        return cls(told.calorimeter, cells, texts[told.e_inc], columns.mev(told.e_inc), names, generated)

    def require(self, observed: Sequence[str], where: str) -> None:
        """Refuse names that no observable of this geometry has.

        Raises:
            BranchError: it names the nearest one.
        """
        known = [f"{PREFIX}{name}" for name in shower_observables.names(self.geometry)]
        for name in observed:
            if name not in known:
                numbers = ", ".join(str(layer.number) for layer in self.geometry.layers)
                msg = f"{where}: there is no observable '{name}' of showers with layers {numbers}{nearest(name, known)}"
                raise BranchError(f"{msg}; expected one of {len(known)} such as {known[0]} or {known[-1]}")

    def needed(self, observed: Collection[str]) -> dict[str, str]:
        """Branches that these observables need, to who asks for them."""
        texts = {self.cells: "the cells of the showers"}
        texts |= {self.e_inc: "the incident energies of the showers"} if self._needs_energies(observed) else {}
        return {name: asker for text, asker in texts.items() for name in expressions.plain_branches(text)}

    def _needs_energies(self, observed: Collection[str]) -> bool:
        return RESPONSE in observed or not self.generated

    def evaluate(self, observed: Sequence[str], table: Mapping[str, Any], where: str) -> dict[str, NDArray[np.float64]]:
        """Observables (n,) of showers whose branches are in a table.

        Raises:
            BranchError: another number of cells than the geometry has.
            ValueRangeError: cells or incident energies that can't be.
        """
        self.check_cells(table, where)
        cells = expressions.evaluate_arrays(self.cells, table, (self.geometry.n_cells,))
        e_inc = np.ones(len(cells))
        if self._needs_energies(observed):
            e_inc = np.asarray(expressions.evaluate_plain(self.e_inc, table), np.float64) * self.mev
        finite = np.asarray(np.isfinite(cells).all(axis=1) & np.isfinite(e_inc))
        if not finite.all():
            cells, e_inc = cells[finite], e_inc[finite]
        if not self.generated:
            check_showers(cells, e_inc, self.geometry, where=where)
        out = {name: np.full(len(finite), np.nan) for name in observed}
        for name, values in out.items():
            values[finite] = shower_observables.evaluate(name.removeprefix(PREFIX), cells, self.geometry, e_inc)
        return out

    def check_cells(self, table: Mapping[str, Any], where: str) -> None:
        """Refuse a branch of the cells with another number of them than the geometry has.

        Raises:
            BranchError: it does.
        """
        names = expressions.plain_branches(self.cells)
        if len(names) == 1 and isinstance(array := table.get(names[0]), np.ndarray):
            check_cells(array.reshape(len(array), -1).shape[1], self.geometry, f"{where}: '{names[0]}'")

    def check(self, values: Mapping[str, NDArray[Any]], where: str) -> None:
        """Refuse rows (n,) that are read of cells and incident energies that can't be; nothing of one alone.

        Args:
            values: by column, as evaluated.
            where: file and tree.

        Raises:
            ValueRangeError: negative energies, or energies that aren't in MeV.
        """
        if self.generated or not set(self.columns) <= set(values):
            return
        cells, e_inc = (np.asarray(values[name]) for name in self.columns)
        check_showers(cells.reshape(len(cells), -1), e_inc * self.mev, self.geometry, where=where)
