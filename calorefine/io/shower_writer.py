"""Shower files that are written: the layout of the CaloChallenge, `incident_energies` and `showers`, with more beside.

Every byte is covered by a checksum: rows by Fletcher-32, what describes them by those that HDF5 has from version 1.10
on, which is needed to read them.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError, ValueRangeError, nearest
from calorefine.io.provenance import PROVENANCE, stamped
from calorefine.io.shower_checks import ENERGIES, SHOWERS
from calorefine.io.showers import CALOGAN

_CHUNK_BYTES, _CHUNK_ROWS = 2**19, 2**15
_FILTERS = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
_VERSIONS = ("v110", "v110")


class _Sink(io.FileIO):
    """A file whose refusal to be written is remembered: raised inside of HDF5, it would end the process."""

    refused: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all of it, or nothing from the first refusal on."""
        rest = memoryview(content)
        try:
            while rest and self.refused is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.refused = error
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        """Set the length."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.refused = self.refused or error
        return size or 0

    def check(self) -> None:
        """Raise what was refused."""
        if self.refused:
            raise self.refused


class ShowerWriter:
    """The datasets of an HDF5 file, extended chunk by chunk, with its provenance.

    Args:
        file: the open, writable file.
        sink: where it is written.
        output: its final place, for messages.
    """

    format = "hdf5"

    def __init__(self, file: h5py.File, sink: _Sink, output: Path) -> None:
        """Create nothing before the first chunk tells the types."""
        self._file, self._sink, self._output = file, sink, output
        self._rows = 0

    def extend(self, arrays: Mapping[str, Any]) -> None:
        """Append rows (n,) or (n, k, ...), always of the same branches; energies in MeV.

        `incident_energies` are written as (n, 1) and `showers` as (n, cells), in single precision, all else as it is.

        Raises:
            ConfigError: a branch is a list or has a name that no dataset can have, or there are no showers.
            ValueRangeError: energies are NaN or infinite.
        """
        if self._rows == 0:
            self._require_layout(arrays)
        table = {name: self._shaped(name, array) for name, array in arrays.items()}
        stop = self._rows + len(next(iter(table.values())))
        for name, values in table.items():
            if name not in self._file:
                _create(self._file, name, values)
            self._file[name].resize(stop, axis=0)
            self._file[name][self._rows :] = values
            self._sink.check()
        self._rows = stop

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Write the provenance as a JSON string, an attribute of the file, with versions and the verb that runs."""
        self._file.attrs[PROVENANCE] = json.dumps(stamped(provenance))

    def _require_layout(self, arrays: Mapping[str, Any]) -> None:
        """Refuse branches that can't be datasets, or hold no showers."""
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                msg = f"{self._output}: branch '{name}' is a list for each event, which an HDF5 file can't hold"
                raise ConfigError(f"{msg}; expected an output that ends in .root")
            if "/" in name or name == ".":
                msg = f"{self._output}: branch '{name}' can't be a dataset, as '/' divides groups in HDF5; expected "
                raise ConfigError(f"{msg}another name, or an output that ends in .root")
        missing = [name for name in (ENERGIES, SHOWERS) if name not in arrays]
        if missing and not set(CALOGAN) <= set(arrays):
            msg = f"{self._output}: found {', '.join(arrays)} and no '{missing[0]}'{nearest(missing[0], arrays)}; a "
            msg += f"shower file holds '{ENERGIES}', which may be passed through, and '{SHOWERS}', a feature, in MeV; "
            raise ConfigError(f"{msg}all else is written to an output that ends in .root")

    def _shaped(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name not in (ENERGIES, SHOWERS):
            return array
        with np.errstate(over="ignore"):  # is told below
            values = np.asarray(array, np.float32).reshape(len(array), math.prod(array.shape[1:]))
        if bad := int(np.sum(~np.isfinite(values).all(axis=1))):
            msg = f"{self._output}: '{name}' has NaN or infinite energies in {bad} of {len(values)} rows"
            raise ValueRangeError(f"{msg}, expected finite ones in MeV")
        return values


def _create(file: h5py.File, name: str, values: NDArray[Any]) -> None:
    """Make a dataset without rows for values (n, ...)."""
    shape = values.shape[1:]
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // (values.dtype.itemsize * max(1, math.prod(shape)))))
    limits = {"maxshape": (None, *shape), "chunks": (rows, *shape)}
    file.create_dataset(name, (0, *shape), dtype=values.dtype, **limits, **_FILTERS)


@contextmanager
def create_showers(path: Path, output: Path) -> Iterator[ShowerWriter]:
    """Open a file for showers at `path`, which messages call `output`.

    Raises:
        OSError: it can't be written to its end.
    """
    with _Sink(path, "w+b") as sink:
        with h5py.File(sink, "w", libver=_VERSIONS) as file:
            yield ShowerWriter(file, sink, output)
        sink.check()
