"""HDF5 files, opened with h5py: whole ones, or an error that says what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from calorefine.errors import CalorefineWarning, FileError
from calorefine.io.root import undamaged

if TYPE_CHECKING:
    import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"
SUFFIXES = (".h5", ".hdf5")
_CACHE = {"rdcc_nbytes": 2**26, "rdcc_nslots": 40_009}
"""Of each dataset so many bytes are held decompressed: rows that are read in small steps are decompressed once."""
_END = {0: 40, 1: 44, 2: 28, 3: 28}
"""Where the first block of a file keeps the address of its end, by the version of that block."""


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does, or is named so: whatever is wrong with it is then told by `open_hdf5`."""
    return path.suffix.lower() in SUFFIXES or (path.is_file() and _head(path).startswith(MAGIC))


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file to read.

    Raises:
        FileError: it is not HDF5, or was truncated, or never closed.

    Warns:
        CalorefineWarning: it is longer than it says, so that bytes may have come in between.
    """
    import h5py  # some 20 ms, which commands that open no such file are spared

    if not path.is_file():
        raise FileError(f"{path}: no such file")
    head = _head(path)
    if not head.startswith(MAGIC):
        kind = "a ROOT file" if head.startswith(b"root") else f"a file that begins with {head[:8]!r}"
        raise FileError(f"{path}: {kind} found, expected an HDF5 file, which begins with {MAGIC!r}")
    _check_length(path, head)
    try:
        file = h5py.File(path, "r", **_CACHE)
    except Exception as error:  # h5py raises several types for a file that is damaged
        raise FileError(f"{path}: not a readable HDF5 file, truncated or never closed ({error})") from error
    try:
        yield file
    finally:
        with undamaged(str(path)):
            file.close()


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _check_length(path: Path, head: bytes) -> None:
    """Compare the length of a file with what it says of it."""
    at = _END.get(head[8]) if len(head) == 64 else None
    if at is None or head[13 if head[8] < 2 else 9] != 8:
        return  # for the library to tell
    end, size = int.from_bytes(head[at : at + 8], "little"), path.stat().st_size
    if size < end:
        raise FileError(f"{path}: truncated or damaged: {size} bytes found, {end} expected from its header")
    if size > end:
        msg = f"{path}: {size} bytes found, {end} expected from its header; if bytes came in between, values are wrong"
        warnings.warn(f"{msg}: compare it with its original", CalorefineWarning, stacklevel=4)
