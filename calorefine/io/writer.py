"""Write files beside their final place and move them there when complete.

At any moment the final path holds what it held before, or the complete new file.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import uproot

from calorefine.errors import ConfigError, FileError
from calorefine.io.hdf5 import SUFFIXES
from calorefine.io.provenance import PROVENANCE, stamped
from calorefine.io.sources import TreeFormat, row_type

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TORCH_REFUSED = ("PytorchStreamWriter", "inline_container", "iostream error")  # torch tells no number


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a path beside `path`; move it over `path` at the end, or remove it if anything was raised.

    A killed process leaves a hidden file `.<name>.<process>.part`, which nothing reads and may be removed.  A file that
    replaces another one gets its permissions.

    Args:
        path: where the file belongs.
        overwrite: whether an existing file may be replaced.

    Raises:
        ConfigError: the file exists and may not be replaced.
        FileError: its folder doesn't exist, or it is a folder itself, or it can't be written there: no permission, a
            full disk.
    """
    beside = _beside(path)
    try:
        with naming(path):
            _claim(path, overwrite=overwrite)
            yield beside
            if path.exists():
                shutil.copymode(path, beside)
            beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def check_outputs(*paths: Path, overwrite: bool) -> None:
    """Refuse, before the work begins, files that couldn't be written at its end.

    Raises:
        ConfigError, FileError: as by `replacing`.
    """
    for path in paths:
        with naming(path):
            _claim(path, overwrite=overwrite)
            _beside(path).unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _claim(path: Path, *, overwrite: bool) -> None:
    """Create the file beside `path`, if it may be written there."""
    if path.is_dir():
        raise FileError(f"{path}: is a folder, expected the name of a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists already; choose another output, or replace it with --overwrite true")
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder '{path.parent}'; create it first")
    _beside(path).touch()


@contextmanager
def naming(output: Path) -> Iterator[None]:
    """Name the output where the system refuses to write it.

    Args:
        output: file or folder that is written in the block.

    Raises:
        FileError: no permission, a folder that can't be written to, a full disk.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number, file = getattr(error, "errno", None), getattr(error, "filename", None)
        elsewhere = file is not None and Path(file) not in (output, _beside(output), output.parent)
        if elsewhere or not (number in REFUSED or any(text in str(error) for text in TORCH_REFUSED)):
            raise
        reason = os.strerror(number) if number else "is the disk full?"
        raise FileError(f"{output}: can't be written: {reason}; expected a place with room and permission") from error


def not_an_input(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is one of the inputs, also under another name.

    Raises:
        ConfigError: it is.
    """
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise ConfigError(f"{output}: is both input ('{path}') and output; choose another output")


class Writer(Protocol):
    """What a table is written with, whatever the format of its file."""

    @property
    def format(self) -> str:
        """What it writes: `ttree`, `rntuple` or `hdf5`."""

    def extend(self, arrays: Mapping[str, Any]) -> None:
        """Append rows (n,), (n, k, ...) for k numbers per row, or awkward lists (n, var); always the same branches."""

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Write the provenance, with versions and the verb that runs."""


class TreeWriter:
    """One tree in a ROOT file, extended chunk by chunk, with its provenance.

    Args:
        file: the open, writable file.
        tree: name of the tree.
        tree_format: TTree, or RNTuple, which ROOT reads from version 6.34 on.
    """

    def __init__(self, file: Any, tree: str, tree_format: TreeFormat) -> None:
        """Create nothing before the first chunk tells the types."""
        self._file, self._name, self.format = file, tree, tree_format
        self._tree: Any = None

    def extend(self, arrays: Mapping[str, Any]) -> None:
        """Append rows (n,), (n, k, ...) for k numbers per row, or awkward lists (n, var); always the same branches."""
        if self._tree is None:
            make = self._file.mktree if self.format == "ttree" else self._file.mkrntuple
            self._tree = make(self._name, {name: row_type(array) for name, array in arrays.items()})
        self._tree.extend(dict(arrays))

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Write the provenance as a JSON string object, with versions and the verb that runs."""
        self._file[PROVENANCE] = json.dumps(stamped(provenance))


@contextmanager
def write_tree(
    path: Path, tree: str, *, tree_format: TreeFormat = "ttree", overwrite: bool = False
) -> Iterator[Writer]:
    """Open a file for one table; it appears under `path` when the block ends without an error.

    It is HDF5 if the path ends in .h5 or .hdf5: showers, at the root of the file.  All else is ROOT, with a tree.

    Args:
        path: where it belongs.
        tree: name of the tree; `events` for the root of an HDF5 file, which is none.
        tree_format: that of a tree.
        overwrite: whether an existing file may be replaced.

    Raises:
        ConfigError: the file exists and may not be replaced.
        FileError: its folder doesn't exist.
    """
    with replacing(path, overwrite=overwrite) as beside:
        if path.suffix.lower() in SUFFIXES:
            from calorefine.io.shower_writer import create_showers  # and h5py with it

            with create_showers(beside, path) as writer:
                yield writer
        else:
            with uproot.recreate(beside, compression=uproot.ZSTD(1)) as file:
                yield TreeWriter(file, "events" if tree == "/" else tree, tree_format)
