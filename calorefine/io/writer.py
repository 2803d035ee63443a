"""Write files beside their final place and move them there when complete.

At any moment the final path holds what it held before, or the complete new file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uproot

from calorefine.errors import ConfigError, FileError
from calorefine.io.provenance import PROVENANCE, stamped
from calorefine.io.sources import TreeFormat, row_type


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
        FileError: its folder doesn't exist, or it is a folder itself.
    """
    if path.is_dir():
        raise FileError(f"{path}: is a folder, expected the name of a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists already; choose another output, or replace it with --overwrite true")
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder '{path.parent}'; create it first")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        if path.exists():
            shutil.copymode(path, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def not_an_input(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is one of the inputs, also under another name.

    Raises:
        ConfigError: it is.
    """
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise ConfigError(f"{output}: is both input ('{path}') and output; choose another output")


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
) -> Iterator[TreeWriter]:
    """Open a ROOT file for one tree; it appears under `path` when the block ends without an error.

    Raises:
        ConfigError: the file exists and may not be replaced.
        FileError: its folder doesn't exist.
    """
    with replacing(path, overwrite=overwrite) as beside, uproot.recreate(beside, compression=uproot.ZSTD(1)) as file:
        yield TreeWriter(file, tree, tree_format)
