"""Sources of rows: files that hold the same table, whatever their format.

`Source.chunks` is the one way to read them.  A format is a subclass that opens a file as a `Tree`; `open_source` in
`formats` chooses it by what the files hold.
"""

from __future__ import annotations

import copy
import glob
import math
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import awkward as ak  # type: ignore[import-untyped]  # neither py.typed nor stubs exist
import numpy as np

from calorefine.errors import BranchError, CalorefineWarning, FileError, KeyColumnError, ValueRangeError, nearest
from calorefine.io import remote
from calorefine.io.chunks import CHUNK_ROWS, Chunk, Content, NonFinite, Request, rows_of, select
from calorefine.io.names import ENTRY, TEXT, owner
from calorefine.io.shower_branches import PREFIX, UNKNOWN, ShowerBranches
from calorefine.text import first_three

TreeFormat = Literal["ttree", "rntuple"]
BranchShape = tuple[int, ...] | Literal["list", "text"] | None
"""What a branch holds for an event: () one number, (k, ...) a fixed-size array, a list of any length, text, or else."""
CONTENTS: tuple[Content, ...] = ("number", "array", "list")


class Tree(Protocol):
    """The table in one open file."""

    n_entries: int

    def names(self) -> list[str]:
        """Names of the branches."""

    def paths(self) -> list[str]:
        """Names of the branches and, by their full paths, of their members (`pos.x`, `pair/first`)."""

    def shape(self, name: str) -> BranchShape:
        """What a branch holds for each event; KeyError if there is none of this name."""

    def typename(self, name: str) -> str:
        """Type of a branch, for messages."""

    def counter(self, name: str) -> str | None:
        """Branch that tells the lengths of a list, if it shares one with others."""

    def batches(self, names: Sequence[str], rows: int) -> Iterator[tuple[dict[str, Any], range]]:
        """Yield arrays (n,) or (n, k, ...) in native byte order, awkward ones (n, var) of lists, and which rows."""


@dataclass(frozen=True)
class Source(ABC):
    """One or more files with the same table.

    Args:
        files: a path, a glob (`**` for folders of any depth), or a list of both; `~` and `$VARIABLE` expand, and remote
            files (`root://`, `https://`) are copied first.
        tree: name of the table, with its folder in the file if it has one.

    Raises:
        FileError: a path or glob matches no file.
    """

    files: str | Path | Sequence[str] | Sequence[Path]
    tree: str
    paths: list[Path] = field(init=False, repr=False)
    showers: Callable[[], ShowerBranches | None] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Expand globs."""
        object.__setattr__(self, "paths", expanded(self.files))

    def __str__(self) -> str:
        """Name the files and the tree, for messages."""
        return f"{first_three(list(map(str, self.paths)))}, tree '{self.tree}'"

    @abstractmethod
    def open(self, path: Path) -> AbstractContextManager[Tree]:
        """Open the table of one file.

        Raises:
            FileError: the file is missing, truncated or unclosed, or holds no such table.
        """

    def with_showers(self, showers: Callable[[], ShowerBranches | None]) -> Self:
        """The same files, of which a function tells where they hold showers once their observables are asked for."""
        described = copy.copy(self)
        object.__setattr__(described, "showers", showers)
        return described

    def told(self) -> dict[str, Any]:
        """Names of files and tree, for the provenance."""
        return {"files": [path.name for path in self.paths], "tree": self.tree}

    def n_entries(self) -> int:
        """Number of rows in all files, before any cut."""
        return sum(self.lengths())

    def lengths(self) -> list[int]:
        """Number of rows of each file."""
        lengths = []
        for path in self.paths:
            with self.open(path) as tree:
                lengths.append(tree.n_entries)
        return lengths

    def n_rows(self, request: Request) -> int:
        """Number of rows in all files, before any cut: those of the lists, with a collection."""
        if not request.collection:
            return self.n_entries()
        counting = self._counting(request)
        return sum(int(ak.count(table[counting])) for _, table, _ in self.tables({counting: "list"}, CHUNK_ROWS))

    def tree_format(self) -> TreeFormat:
        """What a copy of the first file should be."""
        return "ttree"

    def other_objects(self) -> list[str]:
        """Names of what the first file holds beside the table and the folders that it is in."""
        return []

    def branch_names(self, *kinds: Content) -> list[str]:
        """Names of the branches in the first file: all, or those that are one of these for each event."""
        with self.open(self.paths[0]) as tree:
            return [name for name in tree.names() if not kinds or content(tree.shape(name)) in kinds]

    def branch_paths(self) -> list[str]:
        """Names of all that can be read from the first file: of the branches and their members."""
        with self.open(self.paths[0]) as tree:
            return tree.paths()

    def counters(self, names: Sequence[str]) -> dict[str, str | None]:
        """Branches of the first file that tell the lengths of lists, by list."""
        with self.open(self.paths[0]) as tree:
            return {name: tree.counter(name) for name in names}

    def tables(
        self,
        needed: Mapping[str, Content],
        rows: int,
        askers: Mapping[str, str] | None = None,
        showers: ShowerBranches | None = None,
    ) -> Iterator[tuple[Path, dict[str, Any], range]]:
        """Yield the branches of consecutive rows, with their file, and the range of those rows.

        Args:
            needed: branches, entries of arrays as `branch[3]`, comparisons as `branch == "TT"`, or observables of
                showers as `shower.e_tot`, to the most that they may hold for an event: arrays (n,) of a number,
                (n, k, ...) of a fixed-size array, awkward arrays (n, var) of a list.
            rows: at a time; fewer of large arrays.
            askers: who asks for a branch, by branch, for the message that it is missing.
            showers: where the files hold showers; as the source was told, if left out.

        Raises:
            FileError: a file or tree can't be read.
            BranchError: a branch is missing, or holds something else; nothing tells where showers are.
            ValueRangeError: showers that can't be.
        """
        observed = self.observed(needed)
        if not observed:
            yield from self._tables(needed, rows, askers or {})
            return
        showers = showers or (self.showers() if self.showers else None)
        if showers is None:
            asked = (askers or {}).get(observed[0])
            raise BranchError(f"{self}: '{observed[0]}'{f' (asked for by {asked})' if asked else ''}: {UNKNOWN}")
        showers.require(observed, str(self))
        of_showers = showers.needed(observed)
        inner = {name: most for name, most in needed.items() if name not in observed}
        asking = {name: asker for name, asker in (askers or {}).items() if name not in observed}
        for path, table, at in self._tables(inner | dict.fromkeys(of_showers, "array"), rows, of_showers | asking):
            yield path, table | showers.evaluate(observed, table, self._where(path)), at

    def observed(self, needed: Iterable[str]) -> list[str]:
        """Which of these names are observables of showers, and no branches."""
        named = [name for name in needed if name.startswith(PREFIX)]
        known = set(self.branch_paths()) if named else set()
        return [name for name in named if name not in known]

    def _tables(
        self, needed: Mapping[str, Content], rows: int, askers: Mapping[str, str]
    ) -> Iterator[tuple[Path, dict[str, Any], range]]:
        """The same, without observables of showers."""
        for path in self.paths:
            with self.open(path) as tree:
                where, paths = self._where(path), set(tree.paths())
                for text, asker in askers.items():
                    if (name := text if text in paths else owner(text)) not in paths:
                        raise BranchError(f"{_missing(tree, name, where)} (asked for by {asker})")
                derived = [text for text in needed if text not in paths]
                entries = {text: _entry(tree, text, where) for text in derived if ENTRY.fullmatch(text)}
                labels = {text: _label(tree, text, where) for text in derived if TEXT.fullmatch(text)}
                wanted = {name: most for name, most in needed.items() if name not in entries and name not in labels}
                for name, most in wanted.items():
                    check_branch(tree, name, where, most)
                names = dict.fromkeys([*wanted, *(name for name, _ in [*entries.values(), *labels.values()])])
                for table, at in tree.batches(list(names), min(rows, rows_of(_cells(tree, names)))):
                    single = {text: table[name][(slice(None), *index)] for text, (name, index) in entries.items()}
                    yield path, table | single | {text: table[name] == v for text, (name, v) in labels.items()}, at

    def chunks(self, request: Request, *, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """Yield the selected rows, in the order of the files.

        Memory use doesn't depend on the size of the files.  If a row has a NaN or infinite value and
        `request.nonfinite` isn't "drop", nothing more is yielded, but all rows are counted before raising.

        Raises:
            FileError: a file is missing, truncated or unclosed, or holds no such tree.
            BranchError: a branch or the collection is missing, or a branch holds something else than it should.
            KeyColumnError: a key branch is no integer.
            ValueRangeError: NaN or infinite values, counted by column; showers that can't be.
            ExpressionError: an expression can't be evaluated.
        """
        request = request.exact(self.branch_paths())
        bad: Counter[str] = Counter()
        dropped = 0
        types: dict[str, Any] = {}
        counting = self._counting(request) if request.collection else None
        needed: dict[str, Content] = request.needed() | ({counting: "list"} if counting else {})
        for path, table, at in self.tables(needed, rows, request.askers(), request.showers):
            self._check_types(types, {name: table[name] for name in request.branches}, path)
            if request.showers:
                request.showers.check_cells(table, self._where(path))
            chunk, counts, n_bad = select(table, at, path, request, counting)
            if request.showers:
                request.showers.check(chunk.values, self._where(path))
            bad.update(counts)
            dropped += n_bad
            if chunk.n_events and (request.nonfinite == "drop" or not bad):
                yield chunk
        self._report_nonfinite(bad, dropped, request.nonfinite)

    def _where(self, path: Path) -> str:
        return f"{path}, tree '{self.tree}'"

    def _counting(self, request: Request) -> str:
        """A list of the collection, whose lengths are those of all.

        Raises:
            BranchError: there is none.
            KeyColumnError: a key branch has a value for each entry.
        """
        with self.open(self.paths[0]) as tree:
            names = tree.names()
            lists = [name for name in names if name.startswith(f"{request.collection}_") and tree.shape(name) == "list"]
            where = self._where(self.paths[0])
            if not lists:
                every = {name.partition("_")[0] for name in names if "_" in name and tree.shape(name) == "list"}
                msg = f"{where}: there is no collection '{request.collection}': no list of numbers has a name that "
                msg += f"begins with '{request.collection}_'{nearest(str(request.collection), every)}"
                raise BranchError(f"{msg}; collections: {', '.join(sorted(every)) or 'none'}")
            for name in request.key_branches:
                if name in names and tree.shape(name) == "list":
                    msg = f"{where}: key branch '{name}' has a value for each entry of a list, expected one number per "
                    raise KeyColumnError(f"{msg}event; the entries of an event are told apart by their place")
        return next((name for name in request.needed() if name in lists), lists[0])

    def _check_types(self, known: dict[str, Any], branches: dict[str, Any], path: Path) -> None:
        """Refuse a raw branch whose type changes between files: writing it on would change its values."""
        for name, array in branches.items():
            dtype = row_type(array)
            if known.setdefault(name, dtype) != dtype:
                msg = f"{self._where(path)}: branch '{name}' is of type {dtype}, expected {known[name]} as in "
                raise BranchError(msg + f"{self.paths[0]}; process files of different types one by one")

    def _report_nonfinite(self, bad: Counter[str], dropped: int, policy: NonFinite | None) -> None:
        if not bad:
            return
        counts = ", ".join(f"{name.strip(chr(0))}: {count}" for name, count in bad.items())
        if policy != "drop":
            msg = f"{self}: NaN or infinite values in {dropped} rows ({counts}), expected finite ones; cut them away"
            raise ValueRangeError(msg + (", or leave these rows out with nonfinite: drop" if policy else " before"))
        msg = f"{self}: left out {dropped} of the selected rows, with NaN or infinite values ({counts})"
        warnings.warn(msg, CalorefineWarning, stacklevel=3)


def expanded(files: str | Path | Sequence[str] | Sequence[Path]) -> list[Path]:
    """Return the files that paths and globs name.

    Raises:
        FileError: there is none.
    """
    patterns = [files] if isinstance(files, str | Path) else files
    paths = [path for pattern in patterns for path in _expand(str(pattern))]
    if not paths:
        raise FileError("files: none given, expected at least one ROOT file")
    return paths


def _expand(given: str) -> list[Path]:
    """Return the files that a path or glob names, sorted; `**` stands for folders of any depth.

    Raises:
        FileError: there is none, or it can't be copied from where it is.
    """
    if remote.scheme(given):
        return [remote.local_copy(given)]
    pattern = os.path.expandvars(Path(given).expanduser())
    if unset := re.search(r"\$\{?(\w+)", pattern):
        raise FileError(f"{given}: the environment variable '{unset[1]}' isn't set")
    if "{" in pattern and not Path(pattern).exists():
        raise FileError(f"{given}: braces don't expand here; list the files, or use * and ? in a pattern")
    magic = glob.has_magic(pattern) and not Path(pattern).is_file()
    paths = sorted(map(Path, glob.glob(pattern, recursive=True))) if magic else [Path(pattern)]
    existing = [path for path in paths if path.is_file()]
    if existing:
        return existing
    if Path(pattern).is_dir():
        raise FileError(f"{pattern}: is a folder, expected a file; did you mean '{Path(pattern) / '*.root'}'?")
    folder = Path(pattern).parent
    siblings = [str(path) for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
    raise FileError(f"{pattern}: no such file{nearest(pattern, siblings)}")


def row_type(array: Any) -> Any:
    """Type of one row of an array (n,) or (n, k), or of an awkward one."""
    return np.dtype((array.dtype, array.shape[1:])) if isinstance(array, np.ndarray) else array.type.content


def content(shape: BranchShape) -> Any:
    """Name of what a branch holds for each event: a number, an array of fixed size, a list, or None."""
    return "array" if isinstance(shape, tuple) and shape else "number" if shape == () else shape


def _missing(tree: Tree, name: str, where: str) -> str:
    return f"{where}: there is no branch '{name}'{nearest(name, tree.paths())}"


def _cells(tree: Tree, names: Iterable[str]) -> int:
    """Numbers in a row of these branches, lists left out."""
    shapes = [tree.shape(name) for name in names]
    return sum(math.prod(shape) for shape in shapes if isinstance(shape, tuple))


def check_branch(tree: Tree, name: str, where: str, most: Content) -> None:
    """Raise `BranchError` for a branch that is missing, or holds more than `most` for an event."""
    try:
        shape = tree.shape(name)
    except KeyError:
        raise BranchError(_missing(tree, name, where)) from None
    if content(shape) not in CONTENTS[: 1 + CONTENTS.index(most)]:
        msg = f"{where}: branch '{name}' is of type {tree.typename(name)}, expected one number per event"
        if most == "list":
            raise BranchError(f"{msg}, or a list of numbers")
        hint = f'compare it with a value, as in {name} == "TT"' if shape == "text" else "reduce it before"
        raise BranchError(f"{msg} ({hint})")


def _label(tree: Tree, text: str, where: str) -> tuple[str, str]:
    """Branch and value of a comparison with text.

    Raises:
        BranchError: the branch is missing, or holds no text.
    """
    name, value = TEXT.fullmatch(text).groups()  # type: ignore[union-attr]
    if name not in tree.paths():
        raise BranchError(_missing(tree, name, where))
    if tree.shape(name) != "text":
        raise BranchError(f"{where}: '{text}' compares with text, but branch '{name}' is of type {tree.typename(name)}")
    return name, value


def _entry(tree: Tree, text: str, where: str) -> tuple[str, tuple[int, ...]]:
    """Branch and indices of `branch[index]` or `branch[row][column]`; negative ones count from the end.

    Raises:
        BranchError: the branch is missing, is no fixed-size array, or has fewer entries.
    """
    name, brackets = ENTRY.fullmatch(text).groups()  # type: ignore[union-attr]
    check_branch(tree, name, where, "array")
    index = tuple(map(int, re.findall(r"-?\d+", brackets)))
    shape: Any = tree.shape(name)
    if not shape:
        raise BranchError(f"{where}: '{text}' asks for an entry, but branch '{name}' is one number per event")
    if len(shape) != len(index):
        msg = f"{where}: '{text}' asks for an entry, but branch '{name}' has entries of shape {shape}, expected as in "
        raise BranchError(f"{msg}{name}{'[0]' * len(shape)}")
    for k, size in zip(index, shape, strict=True):
        if not -size <= k < size:
            msg = f"{where}: '{text}' asks for entry {k}, branch '{name}' has {size}, from 0 to {size - 1}"
            raise BranchError(msg)
    return name, index
