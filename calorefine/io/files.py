"""Open ROOT files, and find trees and branches in them, with messages that say what is wrong and what is near."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import uproot
from numpy.typing import NDArray

from calorefine.errors import BranchError, FileError, nearest
from calorefine.io.expressions import ENTRY

TREES = ("TTree", "ROOT::RNTuple")
_RNTUPLE_NUMBERS = frozenset(
    ["float", "double", "bool"] + [f"std::{u}int{b}_t" for u in ("", "u") for b in (8, 16, 32, 64)]
)
_RNTUPLE_ARRAY = re.compile(r"std::array<(.+),(\d+)>")
_RNTUPLE_LIST = re.compile(r"(?:std::vector|ROOT::(?:VecOps::)?RVec)<([\w:]+)>")


def expand(pattern: str) -> list[Path]:
    """Return the files that a path or glob names, sorted.

    Raises:
        FileError: there is none.
    """
    paths = sorted(Path(found) for found in glob.glob(pattern)) if glob.has_magic(pattern) else [Path(pattern)]
    existing = [path for path in paths if path.is_file()]
    if existing:
        return existing
    if Path(pattern).is_dir():
        raise FileError(f"{pattern}: is a folder, expected a file; did you mean '{Path(pattern) / '*.root'}'?")
    folder = Path(pattern).parent
    siblings = [str(path) for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
    raise FileError(f"{pattern}: no such file{nearest(pattern, siblings)}")


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


def n_entries(path: Path, tree: str) -> int:
    """Number of rows of a tree."""
    with open_file(path) as file:
        return int(find_tree(file, path, tree).num_entries)


def check_branches(tree: Any, names: Sequence[str], where: str, *, arrays: bool = False, lists: bool = False) -> None:
    """Raise `BranchError` for the first branch that is missing, or isn't one number per event.

    With `arrays`, as many for each are fine, too; with `lists` also a list of them.
    """
    available = tree.keys()
    for name in names:
        if name not in available:
            raise BranchError(f"{where}: there is no branch '{name}'{nearest(name, available)}")
        if not (is_number(tree, name) or (arrays and is_array(tree, name)) or (lists and is_list(tree, name))):
            found = tree[name].typename or "a record"
            msg = f"{where}: branch '{name}' is of type {found}, expected one number per event"
            if lists:
                raise BranchError(msg + ", or a list of numbers")
            raise BranchError(msg + " (reduce jagged or text branches before, to one number for each event)")


def shape_of(tree: Any, name: str) -> tuple[int, ...] | Literal["list"] | None:
    """What a branch holds for each event: () one number, (k, ...) a fixed-size array, a list of any length, or None."""
    branch = tree[name]
    if not hasattr(branch, "interpretation"):  # a field of an RNTuple
        return _field_shape(branch.typename) if name in tree.keys(recursive=False) else None
    kind = branch.interpretation
    if isinstance(kind, uproot.AsDtype):
        return kind.inner_shape if kind.to_dtype.base.kind in "biuf" else None
    content = kind.content if isinstance(kind, uproot.AsJagged) else None
    is_list = isinstance(content, uproot.AsDtype) and content.inner_shape == () and content.to_dtype.kind in "biuf"
    return "list" if is_list else None


def _field_shape(typename: str) -> tuple[int, ...] | Literal["list"] | None:
    """Shape of a field of an RNTuple, from the name of its type."""
    if typename in _RNTUPLE_NUMBERS:
        return ()
    if array := _RNTUPLE_ARRAY.fullmatch(typename):
        inner = _field_shape(array[1])
        return (int(array[2]), *inner) if isinstance(inner, tuple) else None
    vector = _RNTUPLE_LIST.fullmatch(typename)
    return "list" if vector and vector[1] in _RNTUPLE_NUMBERS else None


def is_number(tree: Any, name: str) -> bool:
    """Whether a branch of the tree holds one number per event."""
    return shape_of(tree, name) == ()


def is_array(tree: Any, name: str) -> bool:
    """Whether a branch of the tree holds a fixed-size array of numbers per event."""
    return shape_of(tree, name) not in ((), "list", None)


def is_list(tree: Any, name: str) -> bool:
    """Whether a branch of the tree holds a list of numbers per event, of any length."""
    return shape_of(tree, name) == "list"


def batches(
    path: Path,
    name: str,
    wanted: list[str],
    rows: int,
    *,
    carried: Sequence[str] = (),
    jagged: Sequence[str] = (),
) -> Iterator[tuple[dict[str, Any], range]]:
    """Yield the branches of consecutive rows, in native byte order, and the range of those rows.

    Args:
        path: the file.
        name: of the tree.
        wanted: branches of one number per event, or entries of arrays as `branch[3]`; arrays (n,).
        rows: at a time.
        carried: likewise, or fixed-size arrays of k numbers; arrays (n,) or (n, k, ...).
        jagged: likewise, or lists of any number of them, which come as awkward arrays (n, var).

    Raises:
        FileError: the file or the tree can't be read.
        BranchError: a branch is missing, jagged, or not numeric.
    """
    with open_file(path) as file:
        tree = find_tree(file, path, name)
        entries = {one: _entry(tree, one, f"{path}, tree '{name}'") for one in wanted if ENTRY.fullmatch(one)}
        wanted = [one for one in wanted if one not in entries]
        check_branches(tree, wanted, f"{path}, tree '{name}'")
        carried = [*carried, *(branch for branch, _ in entries.values())]
        check_branches(tree, carried, f"{path}, tree '{name}'", arrays=True)
        check_branches(tree, jagged, f"{path}, tree '{name}'", arrays=True, lists=True)
        lists = [branch for branch in dict.fromkeys(jagged) if is_list(tree, branch)]
        wanted = [branch for branch in dict.fromkeys([*wanted, *carried, *jagged]) if branch not in lists]
        n = int(tree.num_entries)
        for first in range(0, n, rows):
            last = min(first + rows, n)
            try:
                arrays = tree.arrays(wanted, library="np", entry_start=first, entry_stop=last) if wanted else {}
                varied = tree.arrays(lists, library="ak", entry_start=first, entry_stop=last) if lists else {}
            except Exception as error:
                msg = f"{path}, tree '{name}': rows {first} to {last} can't be read, the file is truncated or damaged"
                raise FileError(f"{msg} ({error})") from error
            native = {branch: _native(arrays[branch]) for branch in wanted}
            native |= {one: native[branch][:, k] for one, (branch, k) in entries.items()}
            yield native | {branch: varied[branch] for branch in lists}, range(first, last)


def _entry(tree: Any, text: str, where: str) -> tuple[str, int]:
    """Branch and index of `branch[index]`.

    Raises:
        BranchError: the branch is missing, is no fixed-size array, or has fewer entries.
    """
    name, index = ENTRY.fullmatch(text).groups()  # type: ignore[union-attr]
    check_branches(tree, [name], where, arrays=True)
    if not is_array(tree, name):
        raise BranchError(f"{where}: '{text}' asks for an entry, but branch '{name}' is one number per event")
    size, *further = cast("tuple[int, ...]", shape_of(tree, name))
    if further:
        raise BranchError(f"{where}: '{text}' asks for an entry, but branch '{name}' has {1 + len(further)} dimensions")
    if int(index) >= size:
        raise BranchError(f"{where}: '{text}' asks for entry {index}, branch '{name}' has {size}, from 0 to {size - 1}")
    return name, int(index)


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder("="), copy=False)
