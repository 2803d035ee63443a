"""ROOT files, read with uproot: TTrees and RNTuples, with messages that say what is wrong and what is near."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak  # type: ignore[import-untyped]  # neither py.typed nor stubs exist
import uproot

from calorefine.errors import FileError, nearest
from calorefine.io.sources import BranchShape, Source, TreeFormat

TREES = ("TTree", "ROOT::RNTuple")
_RNTUPLE_NUMBERS = frozenset(
    ["float", "double", "bool"] + [f"std::{u}int{b}_t" for u in ("", "u") for b in (8, 16, 32, 64)]
)
_RNTUPLE_ARRAY = re.compile(r"std::array<(.+),(\d+)>")
_RNTUPLE_LIST = re.compile(r"(?:std::vector|ROOT::(?:VecOps::)?RVec)<([\w:]+)>")


@dataclass(frozen=True)
class RootFiles(Source):
    """One or more ROOT files with the same TTree or RNTuple."""

    @contextmanager
    def open(self, path: Path) -> Iterator[RootTree]:
        """Open the tree of one file."""
        with open_file(path) as file:
            yield RootTree(find_tree(file, path, self.tree), f"{path}, tree '{self.tree}'")

    def tree_format(self) -> TreeFormat:
        """What the tree is in the first file."""
        with self.open(self.paths[0]) as tree:
            return "ttree" if tree.is_ttree else "rntuple"

    def other_objects(self) -> list[str]:
        """Names of what the first file holds beside the tree and the folders that it is in."""
        with open_file(self.paths[0]) as file:
            kinds = file.classnames(cycle=False)
        return [name for name in kinds if not f"{self.tree}/".startswith(f"{name}/")]


class RootTree:
    """A TTree or RNTuple in an open file.

    Args:
        tree: as uproot gives it.
        where: file and tree, for messages.
    """

    def __init__(self, tree: Any, where: str) -> None:
        """Read nothing yet."""
        self._tree, self._where = tree, where
        self.n_entries = int(tree.num_entries)
        self.is_ttree = isinstance(tree, uproot.TTree)

    def names(self) -> list[str]:
        """Names of the branches, those of a record's members left out."""
        return list(self._tree.keys(recursive=False))

    def typename(self, name: str) -> str:
        """Type of a branch."""
        return self._tree[name].typename or "a record"

    def shape(self, name: str) -> BranchShape:
        """What a branch holds for each event."""
        if name not in self._tree.keys():  # noqa: SIM118 (a tree is no mapping)
            raise KeyError(name)
        branch = self._tree[name]
        if not self.is_ttree:
            return _field_shape(branch.typename) if name in self.names() else None
        kind = branch.interpretation
        if isinstance(kind, uproot.AsDtype):
            return kind.inner_shape if kind.to_dtype.base.kind in "biuf" else None
        if isinstance(kind, uproot.AsStrings):
            return "text"
        content = kind.content if isinstance(kind, uproot.AsJagged) else None
        is_list = isinstance(content, uproot.AsDtype) and content.inner_shape == () and content.to_dtype.kind in "biuf"
        return "list" if is_list else None

    def counter(self, name: str) -> str | None:
        """Branch that tells the lengths of a list in a TTree."""
        count = getattr(self._tree[name], "count_branch", None)
        return None if count is None else str(count.name)

    def batches(self, names: Sequence[str], rows: int) -> Iterator[tuple[dict[str, Any], range]]:
        """Yield arrays of consecutive rows by branch."""
        if not names:
            starts = range(0, self.n_entries, rows)
            yield from (({}, range(first, min(first + rows, self.n_entries))) for first in starts)
            return
        lists = [name for name in names if self.shape(name) == "list"]
        first, steps = 0, self._tree.iterate(list(names), step_size=rows, library="ak", how=dict)
        while first < self.n_entries:
            at = range(first, min(first + rows, self.n_entries))
            try:
                arrays = next(steps)
            except Exception as error:  # uproot raises many types for a basket that is damaged
                msg = f"{self._where}: rows {at.start} to {at.stop} can't be read, the file is truncated or damaged"
                raise FileError(f"{msg} ({error})") from error
            yield {name: array if name in lists else ak.to_numpy(array) for name, array in arrays.items()}, at
            first = at.stop


def _field_shape(typename: str) -> BranchShape:
    """BranchShape of a field of an RNTuple, from the name of its type."""
    if typename in _RNTUPLE_NUMBERS:
        return ()
    if typename == "std::string":
        return "text"
    if array := _RNTUPLE_ARRAY.fullmatch(typename):
        inner = _field_shape(array[1])
        return (int(array[2]), *inner) if isinstance(inner, tuple) else None
    vector = _RNTUPLE_LIST.fullmatch(typename)
    return "list" if vector and vector[1] in _RNTUPLE_NUMBERS else None


def open_file(path: Path) -> Any:
    """Open a ROOT file that is whole: a context manager.

    Raises:
        FileError: it is not a ROOT file, or was truncated, or never closed.
    """
    try:
        file = uproot.open(path, array_cache=None)  # rows are read once
    except Exception as error:  # uproot raises many types for a file that is not ROOT or was cut off
        raise FileError(f"{path}: not a readable ROOT file, truncated or never closed ({error})") from error
    end, size = file.file.fEND, path.stat().st_size
    if size < end:
        file.close()
        raise FileError(f"{path}: truncated: {size} bytes found, {end} expected from its header")
    if file.file.fSeekFree <= file.file.fBEGIN:  # ROOT writes the list of free segments when it closes the file
        file.close()
        raise FileError(f"{path}: never closed by the program that wrote it; write it again, or recover it with ROOT")
    return file


def find_tree(file: Any, path: Path, name: str) -> Any:
    """Return the TTree or RNTuple of this name.

    Raises:
        FileError: there is none, or it can't be read.
    """
    kinds = file.classnames(cycle=False)
    trees = [key for key, kind in kinds.items() if kind in TREES]
    if name not in trees:
        found = f"holds no tree '{name}'" if name not in kinds else f"'{name}' is a {kinds[name]}, not a tree"
        raise FileError(f"{path}: {found}{nearest(name, trees)}; trees found: {', '.join(trees) or 'none'}")
    try:
        tree = file[name]
        tree.num_entries, tree.keys()  # an RNTuple reads its header and footer only now
    except Exception as error:
        raise FileError(f"{path}: tree '{name}' can't be read, the file is truncated or damaged ({error})") from error
    return tree
