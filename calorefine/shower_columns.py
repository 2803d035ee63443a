"""What a description of showers tells beside their columns: where the cells are, and who entered where.

A geometry is told in one of three ways:

* `grids`, numbers of rows (along phi) and columns (along eta) of the layers, `size_mm`, the size of all of them along
  eta and phi, and `threshold_mev`; the detector is taken to look the same when eta or phi change their sign;
* `binning`, a `binning_*.xml` of the CaloChallenge, `particle`, if the file holds several, and `threshold_mev`;
* `layers`, each with its `number` and `grid` and `pitch_mm`, or `edges_mm` in the radius and `n_alpha`, or `eta`, `phi`
  and `resolved`; `threshold_mev`, and `mirrors` along eta and phi.

The last one is what is kept: an XML file is needed no more after its first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from calorefine.binning import read_geometry
from calorefine.errors import ConfigError, nearest
from calorefine.geometry import Geometry, segmented

OPTIONS = {
    "grids": ("grids", "size_mm", "threshold_mev"),
    "binning": ("binning", "particle", "threshold_mev"),
    "layers": ("layers", "threshold_mev", "mirrors"),
}


@dataclass(frozen=True)
class ShowerColumns:
    """What tells showers in a calorimeter from other arrays.

    Args:
        geometry: of the calorimeter: `grids`, `size_mm` and `threshold_mev`; or `binning`, an XML file of the
            CaloChallenge, its path as those of data files, `particle` and `threshold_mev`; or what `Geometry.to_dict`
            gives, which all are turned into.
        e_inc: context column of the incident energy.
        entry: context columns of the point of entry along eta and phi, in mm; needed for a geometry with mirrors, as
            `grids` have.

    Raises:
        ConfigError: a geometry that says something else, a number of entry columns that isn't 0 or 2, or no point of
            entry for mirrors.
        FileError: an XML file that isn't there, or is damaged.
    """

    geometry: dict[str, Any]
    e_inc: str
    entry: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Turn the geometry into plain containers that need no file."""
        geometry = geometry_of(self.geometry)
        object.__setattr__(self, "geometry", geometry.to_dict())
        if len(self.entry) not in (0, 2) or (any(geometry.mirrors) and not self.entry):
            why = ": the geometry has mirrors" if any(geometry.mirrors) else ", or none"
            msg = f"showers: entry {self.entry} found, expected the two context columns of the point of entry"
            raise ConfigError(f"{msg}{why}")

    @cached_property
    def calorimeter(self) -> Geometry:
        """The geometry as a record."""
        return Geometry.from_dict(self.geometry)


def geometry_of(told: Geometry | Mapping[str, Any]) -> Geometry:
    """Geometry of what a configuration or a checkpoint says.

    Raises:
        ConfigError: it says something else than expected.
        FileError: an XML file that isn't there, or is damaged.

    >>> geometry_of({"grids": [[3, 96], [12, 12], [12, 6]], "size_mm": [480, 480]}).n_cells
    504
    """
    if isinstance(told, Geometry):
        return told
    kind = next((name for name in OPTIONS if name in told), "grids")
    _require_options(told, kind)
    if kind == "layers":
        return Geometry.from_dict(told)
    threshold = told.get("threshold_mev", 0.0)
    if not isinstance(threshold, int | float):
        raise ConfigError(f"geometry: threshold_mev {threshold!r} found, expected a number")
    if kind == "binning":
        return read_geometry(Path(told["binning"]).expanduser(), told.get("particle"), threshold)
    try:
        grids = [(int(rows), int(columns)) for rows, columns in told["grids"]]
        width, height = map(float, told["size_mm"])
    except (TypeError, ValueError) as error:
        msg = f"geometry: grids {told['grids']} and size_mm {told['size_mm']} found, expected as in [[3, 96], [12, 12]]"
        raise ConfigError(f"{msg} and [480, 480]") from error
    return segmented(grids, (width, height), threshold)


def _require_options(told: Mapping[str, Any], kind: str) -> None:
    """Refuse options that don't belong together.

    Raises:
        ConfigError: one is unknown, or is missing.
    """
    known = OPTIONS[kind]
    needed = {"grids", "size_mm"} if kind == "grids" else {kind}
    if wrong := sorted(set(told) - set(known)) or sorted(needed - set(told)):
        found = f"{', '.join(told) or 'nothing'} found{nearest(wrong[0], known)}"
        others = "; or ".join(", ".join(options) for name, options in OPTIONS.items() if name != kind)
        raise ConfigError(f"geometry: {found}; expected {', '.join(known)}; or {others}")
