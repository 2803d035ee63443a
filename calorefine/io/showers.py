"""Shower files: HDF5 in the layouts of the CaloChallenge and of CaloGAN.

A branch is a dataset with a row for each shower: (N,) and (N, 1) are numbers, (N, k, ...) arrays of fixed size.  `tree`
is the group that holds the datasets, `/` for the root of the file.

The CaloChallenge has `incident_energies` (N, 1) and `showers` (N, cells) in MeV.  CaloGAN has `energy` (N, 1) in GeV
and `layer_0`, `layer_1`, `layer_2` (N, rows, columns) in MeV: `incident_energies` and `showers` are made of these, in
MeV, as the rows are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from calorefine.errors import FileError, nearest
from calorefine.io.hdf5 import open_hdf5
from calorefine.io.root import undamaged
from calorefine.io.shower_checks import ENERGIES, SHOWERS
from calorefine.io.sources import BranchShape, Source

CALOGAN_ENERGY, CALOGAN_LAYERS = "energy", ("layer_0", "layer_1", "layer_2")
CALOGAN = (CALOGAN_ENERGY, *CALOGAN_LAYERS)
MADE_OF = {SHOWERS: CALOGAN_LAYERS, ENERGIES: (CALOGAN_ENERGY,)}
_OTHERS = {h5py.h5t.STRING: "text", h5py.h5t.COMPOUND: "a record", h5py.h5t.VLEN: "lists of any length"}


@dataclass(frozen=True)
class ShowerFiles(Source):
    """One or more HDF5 files with the same datasets, one row for each shower."""

    @contextmanager
    def open(self, path: Path) -> Iterator[ShowerTree]:
        """Open the datasets of one file."""
        with open_hdf5(path) as file:
            yield ShowerTree(_group(file, path, self.tree), self._where(path))

    def other_objects(self) -> list[str]:
        """Names of the attributes of the first file, and of its objects other than the datasets that are read."""
        with open_hdf5(self.paths[0]) as file, undamaged(str(self.paths[0])):
            group = file[self.tree].name.rstrip("/")
            held: list[str] = []
            file.visit(held.append)
            datasets = [f"{group}/{name}" for name, item in file[self.tree].items() if isinstance(item, h5py.Dataset)]
            others = [name for name in held if f"/{name}" not in datasets and not f"{group}/".startswith(f"/{name}/")]
            return [*others, *file.attrs]


class ShowerTree:
    """The datasets of a group in an open file.

    Args:
        group: as h5py gives it.
        where: file and group, for messages.

    Raises:
        FileError: there is no dataset, or they don't have as many rows.
    """

    def __init__(self, group: h5py.Group, where: str) -> None:
        """Read what describes the datasets."""
        self._where = where
        with undamaged(where):
            self._datasets = {name: item for name in group if isinstance(item := _item(group, name), h5py.Dataset)}
            self._lengths: dict[str, Any] = {name: (item.shape or (None,))[0] for name, item in self._datasets.items()}
        self.n_entries = self._rows()
        with undamaged(where):
            self._shapes = {name: self._shape(name) for name in self._datasets}
        if set(CALOGAN) <= set(self._datasets):
            self._shapes |= {name: self._made_shape(name) for name in MADE_OF if name not in self._datasets}

    def _rows(self) -> int:
        """Number of showers: the length of the datasets that tell the layout, or of all."""
        layouts: list[Sequence[str]] = [(SHOWERS, ENERGIES), CALOGAN, list(self._datasets)]
        known = [[name for name in layout if self._lengths.get(name) is not None] for layout in layouts]
        lengths = {name: self._lengths[name] for name in next(filter(None, known), [])}
        if not lengths:
            raise FileError(f"{self._where}: holds no dataset with rows, expected '{ENERGIES}' and '{SHOWERS}'")
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise FileError(f"{self._where}: different numbers of rows found ({found}), expected as many in all")
        return int(next(iter(lengths.values())))

    def _shape(self, name: str) -> BranchShape:
        dtype, shape = _dtype(self._datasets[name]), self._datasets[name].shape
        if dtype is None or self._lengths[name] != self.n_entries or math.prod(shape[1:]) == 0:
            return None
        return () if shape[1:] == (1,) else shape[1:]

    def _made_shape(self, name: str) -> BranchShape:
        """Shape of what is made of CaloGAN's datasets; None if those aren't what they should be."""
        shapes = [self._shapes[part] for part in MADE_OF[name]]
        if name == ENERGIES:
            return () if shapes == [()] else None
        cells = [math.prod(shape) if isinstance(shape, tuple) and shape else 0 for shape in shapes]
        return (sum(cells),) if all(cells) else None

    def names(self) -> list[str]:
        """Names of the datasets."""
        return list(self._datasets)

    def paths(self) -> list[str]:
        """Names of the datasets and of what is made of them."""
        return list(self._shapes)

    def shape(self, name: str) -> BranchShape:
        """What a dataset holds for each shower."""
        return self._shapes[name]

    def typename(self, name: str) -> str:
        """Type and shape of a dataset."""
        if name not in self._datasets:
            return f"'made of {', '.join(MADE_OF[name])}'"
        dataset = self._datasets[name]
        with undamaged(self._where):
            kind = _dtype(dataset) or _OTHERS.get(dataset.id.get_type().get_class(), "no number")
        rows = "" if self._lengths[name] == self.n_entries else f", not a row for each of {self.n_entries} showers"
        return f"{kind} and shape {dataset.shape}{rows}"

    def counter(self, name: str) -> str | None:
        """None: there are no lists."""
        del name
        return None

    def batches(self, names: Sequence[str], rows: int) -> Iterator[tuple[dict[str, Any], range]]:
        """Yield arrays of consecutive rows by branch."""
        parts = dict.fromkeys(part for name in names for part in self._parts(name))
        for name in parts:
            with undamaged(f"{self._where}: '{name}'"):
                _require_written(self._datasets[name])
        for first in range(0, self.n_entries, rows):
            at = range(first, min(first + rows, self.n_entries))
            with undamaged(f"{self._where}: rows {at.start} to {at.stop}"):
                held = {name: self._read(name, at) for name in parts}
                table = {name: held[name] if name in held else _made(name, held) for name in names}
            yield table, at

    def _parts(self, name: str) -> tuple[str, ...]:
        return (name,) if name in self._datasets else MADE_OF[name]

    def _read(self, name: str, at: range) -> NDArray[Any]:
        """Rows of a dataset, in native byte order."""
        dataset, shape = self._datasets[name], self._shapes[name]
        values = np.asarray(dataset[at.start : at.stop], _dtype(dataset))
        return values.reshape(len(at), *shape)  # type: ignore[misc]  # a branch that is asked for has a shape


def _group(file: h5py.File, path: Path, name: str) -> h5py.Group:
    """Return the group of this name.

    Raises:
        FileError: there is none.
    """
    with undamaged(str(path)):
        found = file.get(name or "/")
        groups = ["/", *(key for key in file if isinstance(file.get(key), h5py.Group))]
    if isinstance(found, h5py.Group):
        return found
    what = f"holds no group '{name}'" if found is None else f"'{name}' is a dataset, not a group"
    msg = f"{path}: {what}{nearest(name, groups)}; the tree of an HDF5 file is the group that holds the datasets, "
    raise FileError(f"{msg}expected one of: {', '.join(groups)}")


def _item(group: h5py.Group, name: str) -> Any:
    """Object of this name; None if it is elsewhere, and not there."""
    return group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else group.get(name)


def _dtype(dataset: h5py.Dataset) -> np.dtype[Any] | None:
    """Type of the numbers of a dataset as they are read; None if they are none that numpy and ROOT both know."""
    try:
        dtype = dataset.dtype
    except TypeError:  # of a type that numpy doesn't have
        return None
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return None
    return np.dtype(np.float32) if dtype.kind == "f" and dtype.itemsize == 2 else np.dtype(dtype.str).newbyteorder("=")


def _require_written(dataset: h5py.Dataset) -> None:
    """Refuse a dataset with rows that were never written, which HDF5 reads as zeros.

    Raises:
        ValueError: there are some.
    """
    layout, size = dataset.id.get_create_plist().get_layout(), math.prod(dataset.shape)
    if dataset.is_virtual or dataset.external or not size:
        return
    if layout == h5py.h5d.CHUNKED:
        expected = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        found, unit = dataset.id.get_num_chunks(), "chunks"
    else:
        found, expected, unit = dataset.id.get_storage_size(), size * dataset.id.get_type().get_size(), "bytes"
    if found < expected:
        raise ValueError(f"{expected - found} of {expected} {unit} were never written")


def _made(name: str, held: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Incident energies (n,) or showers (n, cells) in MeV, of CaloGAN's datasets."""
    if name == ENERGIES:
        return held[CALOGAN_ENERGY].astype(np.float64) * 1000
    return np.concatenate([held[part].reshape(len(held[part]), -1) for part in CALOGAN_LAYERS], axis=1)
