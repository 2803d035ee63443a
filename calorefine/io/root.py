"""ROOT files, read with uproot: TTrees and RNTuples, with messages that say what is wrong and what is near."""

from __future__ import annotations

import re
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak  # type: ignore[import-untyped]  # neither py.typed nor stubs exist
import uproot
import xxhash

from calorefine.errors import CalorefineWarning, FileError, nearest
from calorefine.io.sources import BranchShape, Source, TreeFormat

TREES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple")
_NUMBERS = (
    uproot.AsDtype,
    uproot.interpretation.numerical.TruncatedNumerical,  # Double32_t and Float16_t
)
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
        with open_file(self.paths[0]) as file, undamaged(str(self.paths[0])):
            kinds = file.classnames(cycle=False)
        return [name for name in kinds if not f"{self.tree}/".startswith(f"{name}/")]


class RootTree:
    """A TTree or RNTuple in an open file.

    Args:
        tree: as uproot gives it.
        where: file and tree, for messages.
    """

    def __init__(self, tree: Any, where: str) -> None:
        """Read what describes the branches."""
        self._tree, self._where = tree, where
        self.n_entries = int(tree.num_entries)
        self.is_ttree = isinstance(tree, uproot.TTree)
        with undamaged(where):
            self._names = list(tree.keys(recursive=False))
            self._paths = self._described()

    def names(self) -> list[str]:
        """Names of the branches, those of a record's members left out."""
        return list(self._names)

    def paths(self) -> list[str]:
        """Names of the branches and of their members."""
        return list(self._paths)

    def _described(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Branch, and names of a member in it, by the full path of each.

        Members of a split object are branches in a TTree; those of a leaf list or another object are read with it.
        """
        if not self.is_ttree:
            return {name: (name, ()) for name in self._tree.keys()}  # noqa: SIM118
        paths: dict[str, tuple[str, tuple[str, ...]]] = {}
        for name in self._tree.keys():  # noqa: SIM118 (a tree is no mapping)
            kind = self._tree[name].interpretation
            paths[name] = (name, ())
            for member in kind.to_dtype.names or () if isinstance(kind, _NUMBERS) else ():
                separator = "/" if isinstance(kind, uproot.AsStridedObjects) else "."
                if "@" not in member:  # which are no data
                    paths[f"{name}{separator}{member}"] = (name, tuple(member.split("/")))
        return paths

    def typename(self, name: str) -> str:
        """Type of a branch."""
        with undamaged(self._where):
            kind = self._tree[self._paths[name][0]].typename or "a record"
        inside = "" if self.is_ttree or name in self.names() else f" inside of '{name.rpartition('.')[0]}'"
        return f"{kind}{inside}"

    def shape(self, name: str) -> BranchShape:
        """What a branch holds for each event."""
        branch, member = self._paths[name]
        with undamaged(self._where):
            return self._shape(name, branch, member)

    def _shape(self, name: str, branch: str, member: tuple[str, ...]) -> BranchShape:
        if not self.is_ttree:
            return _field_shape(self._tree[branch].typename) if name in self.names() else None
        kind = self._tree[branch].interpretation
        if isinstance(kind, _NUMBERS):
            dtype = kind.to_dtype["/".join(member)] if member else kind.to_dtype
            return dtype.shape if dtype.base.kind in "biuf" else None
        if isinstance(kind, uproot.AsStrings):
            return "text"
        content = kind.content if isinstance(kind, uproot.AsJagged) else None
        is_list = isinstance(content, uproot.AsDtype) and content.inner_shape == () and content.to_dtype.kind in "biuf"
        return "list" if is_list else None

    def counter(self, name: str) -> str | None:
        """Branch that tells the lengths of a list in a TTree."""
        branch = self._paths[name][0]
        with undamaged(self._where):
            count = getattr(self._tree[branch], "count_branch", None)
        return None if count is None else str(count.name)

    def batches(self, names: Sequence[str], rows: int) -> Iterator[tuple[dict[str, Any], range]]:
        """Yield arrays of consecutive rows by branch."""
        lists = [name for name in names if self.shape(name) == "list"]
        columns = {branch: self._column(branch) for branch, _ in map(self._paths.__getitem__, names)}
        for first in range(0, self.n_entries, rows):
            at = range(first, min(first + rows, self.n_entries))
            try:
                held = {branch: column.rows(at) for branch, column in columns.items()}
            except Exception as error:  # uproot raises many types for a basket that is damaged
                msg = f"{self._where}: rows {at.start} to {at.stop} can't be read, the file is truncated or damaged"
                raise FileError(f"{msg} ({error})") from error
            arrays = {}
            for name, (branch, member) in ((name, self._paths[name]) for name in names):
                array = held[branch][member] if member else held[branch]
                arrays[name] = array if name in lists else ak.to_numpy(array)
            yield arrays, at

    def _column(self, branch: str) -> _Column:
        """Rows of a branch.

        Raises:
            FileError: a branch that has other rows than its tree.
        """
        with undamaged(self._where):
            one = self._tree[branch]
            found = int(one.num_entries) if self.is_ttree else self.n_entries
        if found != self.n_entries:
            msg = f"{self._where}: branch '{branch}' has {found} entries, expected {self.n_entries} as the tree; the "
            raise FileError(f"{msg}file is damaged, or was not written to its end")
        return _Column(one)


class _Column:
    """Consecutive rows of a branch: each of its baskets, or each cluster of an RNTuple, is read once.

    Args:
        branch: as uproot gives it.
    """

    def __init__(self, branch: Any) -> None:
        """Read nothing yet."""
        self._branch = branch
        self._held: Any = None
        self._first = self._stop = 0

    def _ends(self) -> list[int]:
        """Row after the last one of each basket or cluster."""
        if isinstance(self._branch, uproot.TBranch):
            return list(self._branch.entry_offsets)
        return [one.num_first_entry + one.num_entries for one in self._branch.ntuple.cluster_summaries]

    def rows(self, at: range) -> Any:
        """Awkward array of these rows, which follow those that were asked for last."""
        if at.stop > self._stop:
            ends = self._ends()
            stop = ends[bisect_left(ends, at.stop)]
            read = _sound(self._branch.array(entry_start=self._stop, entry_stop=stop, library="ak"), stop - self._stop)
            kept = [] if at.start == self._stop else [self._held[at.start - self._first :]]
            self._held, self._first, self._stop = ak.concatenate([*kept, read]), at.start, stop
        return self._held[at.start - self._first : at.stop - self._first]


def _sound(array: Any, rows: int) -> Any:
    """Return an array of so many rows whose lists lie within what they are cut from.

    awkward doesn't look when it takes them, and a list that ends elsewhere crashes the process.

    Raises:
        ValueError: it has other rows, or lists that can't be.
    """
    if len(array) != rows:
        raise ValueError(f"{len(array)} rows found, expected {rows}")
    if wrong := ak.validity_error(array):
        raise ValueError(f"lists that can't be: {wrong}")
    return array


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

    Warns:
        CalorefineWarning: it is longer than its header says, so that bytes may have come in between.
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
    if size > end:  # ROOT reads such a file, and no checksum covers what is stored uncompressed
        msg = f"{path}: {size} bytes found, {end} expected from its header; if bytes came in between, values are wrong"
        warnings.warn(f"{msg}: compare it with its original", CalorefineWarning, stacklevel=2)
    return file


def find_tree(file: Any, path: Path, name: str) -> Any:
    """Return the TTree or RNTuple of this name.

    Raises:
        FileError: there is none, or it can't be read.
    """
    with undamaged(str(path)):
        kinds = file.classnames(cycle=False)
    trees = [key for key, kind in kinds.items() if kind in TREES]
    if name not in trees:
        found = f"holds no tree '{name}'" if name not in kinds else f"'{name}' is a {kinds[name]}, not a tree"
        raise FileError(f"{path}: {found}{nearest(name, trees)}; trees found: {', '.join(trees) or 'none'}")
    with undamaged(f"{path}: tree '{name}'"):
        tree = file[name]
        tree.num_entries, tree.keys()  # an RNTuple reads its header and footer only now
        if not isinstance(tree, uproot.TTree):
            _check_page_lists(tree)
    return tree


@contextmanager
def undamaged(where: str) -> Iterator[None]:
    """Say that a file is damaged, whatever uproot raises of many types for what makes no sense.

    Raises:
        FileError: anything was raised.
    """
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        raise FileError(f"{where}: can't be read, the file is truncated or damaged ({error})") from error


def _check_page_lists(ntuple: Any) -> None:
    """Compare the checksums of an RNTuple's lists of pages, which uproot leaves out."""
    for group in ntuple.footer.cluster_group_records:
        link = group.page_list_link
        chunk, _ = ntuple.read_locator(link.locator, link.env_uncomp_size)
        content = bytes(chunk.raw_data)
        if xxhash.xxh3_64_intdigest(content[:-8]) != int.from_bytes(content[-8:], "little"):
            raise ValueError("the list of its pages differs from its checksum")
