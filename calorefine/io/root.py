"""Read TTrees and RNTuples with uproot, streamed in chunks of rows.

One way in: `RootFiles` names the files and the tree, `RootFiles.chunks` yields evaluated expressions with their event
keys, and `read_table` collects them, in memory or in memory-mapped files when they don't fit.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.errors import (
    BranchError,
    CalorefineWarning,
    EmptySelectionError,
    FileError,
    KeyColumnError,
    KeyWarning,
    ValueRangeError,
)
from calorefine.io import expressions, files

NonFinite = Literal["error", "drop"]
CHUNK_ROWS, CHUNK_CELLS = 200_000, 2**24
FLOAT32_MAX = float(np.finfo(np.float32).max)
_ROW = "\0row"


@dataclass(frozen=True)
class Chunk:
    """Consecutive selected rows of one file.

    Args:
        branches: raw arrays (n,), or (n, k, ...) of a fixed-size array, in the file's own types.
        values: evaluated expressions, (n,) float64 (bool for conditions), or (n, *shape) float32 of an array.
        key: (n,) uint64, one for each candidate.
        event_key: (n,) uint64, one for each event.
    """

    branches: dict[str, NDArray[Any]]
    values: dict[str, NDArray[Any]]
    key: keys.KeyArray
    event_key: keys.KeyArray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.key)


@dataclass(frozen=True)
class Request:
    """What to read.

    Args:
        expressions: expression by name of the column it gives.
        key: integer branches that identify an event.
        candidate: integer branch that tells candidates of an event apart.
        cut: condition; rows that fail it are left out.
        branches: further raw branches, to pass through; fixed-size arrays as well.
        nonfinite: what to do about NaN and infinite values of the expressions: raise, or leave the row out.
        shapes: names of the expressions whose value is an array for each row, and its shape.
    """

    expressions: Mapping[str, str]
    key: Sequence[str] = ()
    candidate: str | None = None
    cut: str | None = None
    branches: Sequence[str] = ()
    nonfinite: NonFinite = "error"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def needed(self) -> list[str]:
        """The branches of one number per row to read from the file, besides those to pass through."""
        texts = [text for name, text in self.expressions.items() if name not in self.shapes]
        wanted = [name for text in [*texts, *filter(None, [self.cut])] for name in expressions.branches(text)]
        return list(dict.fromkeys([*wanted, *self.key_branches]))

    def needed_arrays(self) -> list[str]:
        """Further branches, which may be fixed-size arrays: those of array expressions, and those to pass through."""
        return [
            *self.branches,
            *(name for column in self.shapes for name in expressions.branches(self.expressions[column])),
        ]

    def most_rows(self, rows: int) -> int:
        """Rows to read at a time: at most these, fewer of large arrays."""
        return min(rows, max(1, CHUNK_CELLS // max(1, sum(map(math.prod, self.shapes.values())))))

    @property
    def key_branches(self) -> list[str]:
        """The integer branches that identify a row: key, then candidate."""
        return [*self.key, *([self.candidate] if self.candidate else [])]


@dataclass(frozen=True)
class RootFiles:
    """One or more ROOT files with the same tree.

    Args:
        files: a path, a glob, or a list of both.
        tree: name of the TTree or RNTuple, with its directory if it has one.

    Raises:
        FileError: a path or glob matches no file.
    """

    files: str | Path | list[str] | list[Path]
    tree: str
    paths: list[Path] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Expand globs."""
        patterns = self.files if isinstance(self.files, list) else [self.files]
        object.__setattr__(self, "paths", [path for pattern in patterns for path in files.expand(str(pattern))])
        if not self.paths:
            raise FileError("files: none given, expected at least one ROOT file")

    def __str__(self) -> str:
        """Name the files and the tree, for messages."""
        shown = ", ".join(map(str, self.paths[:3])) + (
            f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        )
        return f"{shown}, tree '{self.tree}'"

    def n_entries(self) -> int:
        """Number of rows in all files, before any cut."""
        return sum(files.n_entries(path, self.tree) for path in self.paths)

    def branch_names(self) -> list[str]:
        """Names of the branches in the first file."""
        with files.open_file(self.paths[0]) as file:
            return list(files.find_tree(file, self.paths[0], self.tree).keys(recursive=False))

    def numeric_branch_names(self) -> list[str]:
        """Names of the branches in the first file that hold one number per event."""
        with files.open_file(self.paths[0]) as file:
            tree = files.find_tree(file, self.paths[0], self.tree)
            return [name for name in tree.keys(recursive=False) if files.is_number(tree, name)]

    def fixed_branch_names(self) -> list[str]:
        """Names of the branches in the first file that hold one number, or a fixed-size array of them, per event."""
        with files.open_file(self.paths[0]) as file:
            tree = files.find_tree(file, self.paths[0], self.tree)
            names = tree.keys(recursive=False)
            return [name for name in names if files.is_number(tree, name) or files.is_array(tree, name)]

    def tree_format(self) -> Literal["ttree", "rntuple"]:
        """What the tree is in the first file."""
        with files.open_file(self.paths[0]) as file:
            files.find_tree(file, self.paths[0], self.tree)
            return "ttree" if file.classnames(cycle=False)[self.tree] == "TTree" else "rntuple"

    def other_objects(self) -> list[str]:
        """Names of what the first file holds beside the tree and the folders that it is in."""
        with files.open_file(self.paths[0]) as file:
            kinds = file.classnames(cycle=False)
        return [name for name in kinds if not f"{self.tree}/".startswith(f"{name}/")]

    def dtypes(self, names: Sequence[str]) -> dict[str, np.dtype[Any]]:
        """Types of these branches in the first file.

        Raises:
            BranchError: a branch is missing, jagged, or not numeric.
        """
        with files.open_file(self.paths[0]) as file:
            tree = files.find_tree(file, self.paths[0], self.tree)
            files.check_branches(tree, names, f"{self.paths[0]}, tree '{self.tree}'")
            first = tree.arrays(list(names), library="np", entry_stop=1)
        return {name: first[name].dtype for name in names}

    def chunks(self, request: Request, *, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """Yield the selected rows, in the order of the files.

        Memory use doesn't depend on the size of the files.  If a row has a NaN or infinite value and
        `request.nonfinite` is "error", nothing more is yielded, but all rows are counted before raising.

        Raises:
            FileError: a file is missing, truncated or unclosed, or holds no such tree.
            BranchError: a branch is missing, jagged, or not numeric.
            ValueRangeError: NaN or infinite values, counted by column.
            ExpressionError: an expression can't be evaluated.
        """
        bad: dict[str, int] = {}
        dropped = 0
        types: dict[str, np.dtype[Any]] = {}
        for path in self.paths:
            for branches, at in files.batches(
                path, self.tree, request.needed(), request.most_rows(rows), carried=request.needed_arrays()
            ):
                self._check_types(types, {name: _row_type(branches[name]) for name in request.branches}, path)
                chunk, counts, n_bad = _select(branches, at, path, request)
                for name, count in counts.items():
                    bad[name] = bad.get(name, 0) + count
                dropped += n_bad
                if len(chunk) and not (bad and request.nonfinite == "error"):
                    yield chunk
        self._report_nonfinite(bad, dropped, request.nonfinite)

    def _check_types(self, known: dict[str, np.dtype[Any]], found: dict[str, np.dtype[Any]], path: Path) -> None:
        """Refuse a raw branch whose type changes between files: writing it on would change its values."""
        for name, dtype in found.items():
            if known.setdefault(name, dtype) != dtype:
                msg = f"{path}, tree '{self.tree}': branch '{name}' is of type {dtype}, expected {known[name]} as in "
                raise BranchError(msg + f"{self.paths[0]}; process files of different types one by one")

    def _report_nonfinite(self, bad: dict[str, int], dropped: int, policy: NonFinite) -> None:
        if not bad:
            return
        found = ", ".join(f"{name.strip(chr(0))}: {count}" for name, count in bad.items())
        if policy == "error":
            msg = (
                f"{self}: NaN or infinite values in {dropped} rows ({found}), expected finite ones; "
                "cut them away before or, where the option exists, set nonfinite: drop to leave these rows out"
            )
            raise ValueRangeError(msg)
        msg = f"{self}: left out {dropped} of the selected rows, with NaN or infinite values ({found})"
        warnings.warn(msg, CalorefineWarning, stacklevel=3)


def read_table(
    source: RootFiles, request: Request, *, max_memory_gb: float = 4.0, cache_dir: Path | None = None
) -> tuple[dict[str, NDArray[Any]], keys.KeyArray, keys.KeyArray]:
    """Collect all selected rows.

    Args:
        source: the files.
        request: what to read.
        max_memory_gb: above this size the arrays are memory-mapped files, removed with the last reference to them.
        cache_dir: where those go; the system's folder for temporary files if left out.

    Returns:
        Arrays (n,) float64 by name of expression, (n, *shape) float32 of an array; keys (n,) and event keys (n,).

    Raises:
        EmptySelectionError: no row is left.
        KeyColumnError: two rows have the same key.
    """
    if not request.key:
        warn_of_row_keys(source)
    n = source.n_entries()
    store = _Store(n, request, max_memory_gb, cache_dir)
    for chunk in source.chunks(request):
        store.append({**chunk.values, "\0key": chunk.key, "\0event": chunk.event_key}, len(chunk))
    if store.filled == 0:
        raise EmptySelectionError(f"{source}: {why_empty(n, request)}, expected some events")
    table = store.arrays()
    key, event_key = table.pop("\0key"), table.pop("\0event")
    check_unique(key, str(source), request.key_branches)
    return table, key, event_key


def why_empty(n: int, request: Request) -> str:
    """Say why none of n rows is left."""
    if n == 0:
        return "the tree has no rows"
    reasons = ([f"the cut '{request.cut}'"] if request.cut else []) + (
        ["nonfinite: drop"] if request.nonfinite == "drop" else []
    )
    return f"none of {n} rows is left after {' and '.join(reasons)}"


def warn_of_row_keys(source: RootFiles) -> None:
    """Warn that events are identified by file and row.

    Raises:
        KeyColumnError: two files have the same name, so that not even this is possible.
    """
    names = [path.name for path in source.paths]
    if repeated := {name for name in names if names.count(name) > 1}:
        msg = f"{source}: {len(names)} files but the name '{min(repeated)}' repeats, and no key branches are given; "
        raise KeyColumnError(msg + "expected key branches, such as run and event, or files of different names")
    msg = f"{source}: no key branches given, so events are identified by file name and row; splitting or renaming "
    warnings.warn(msg + "the files changes splits, bootstrap weights and noise", KeyWarning, stacklevel=3)


def check_unique(key: keys.KeyArray, where: str, branches: Sequence[str]) -> None:
    """Raise `KeyColumnError` if a key appears twice.

    Two events with the same key would share their split, bootstrap weight and latent noise.
    """
    ordered = np.sort(key)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated) == 0:
        return
    rows = np.flatnonzero(key == repeated[0])[:2]
    msg = (
        f"{where}: {len(repeated)} of {len(key)} rows repeat the key ({', '.join(branches)}) of an earlier row, "
        f"selected rows {rows[0]} and {rows[1]} for one; expected a key of its own for each. "
        "If an event has several candidates, name the branch that numbers them as 'candidate'"
    )
    raise KeyColumnError(msg)


def _row_type(array: NDArray[Any]) -> np.dtype[Any]:
    """Type of one row of an array (n,) or (n, k)."""
    return np.dtype((array.dtype, array.shape[1:]))


class _Store:
    """Growing columns in memory, or in memory-mapped files."""

    def __init__(self, n: int, request: Request, max_memory_gb: float, cache_dir: Path | None) -> None:
        types: dict[str, Any] = {name: np.dtype(np.float64) for name in request.expressions}
        types |= {name: np.dtype((np.float32, shape)) for name, shape in request.shapes.items()}
        types |= dict.fromkeys(("\0key", "\0event"), np.dtype(np.uint64))
        self.filled, fits = 0, n * sum(dtype.itemsize for dtype in types.values()) <= max_memory_gb * 1e9
        shapes = {name: ((n, *dtype.shape), dtype.base) for name, dtype in types.items()}
        self._arrays: dict[str, NDArray[Any]] = {
            name: np.empty(*shape) if fits else memory_map(*shape, cache_dir) for name, shape in shapes.items()
        }

    def append(self, values: Mapping[str, NDArray[Any]], n: int) -> None:
        for name, array in self._arrays.items():
            array[self.filled : self.filled + n] = values[name]
        self.filled += n

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {name: array[: self.filled] for name, array in self._arrays.items()}


def memory_map(shape: tuple[int, ...], dtype: Any, cache_dir: Path | None) -> NDArray[Any]:
    """Allocate an array in an anonymous temporary file, which vanishes with the array."""
    with tempfile.TemporaryFile(dir=cache_dir, prefix="calorefine-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def _select(
    branches: dict[str, NDArray[Any]], rows: range, path: Path, request: Request
) -> tuple[Chunk, dict[str, int], int]:
    """Apply the cut and the policy for non-finite values to one batch."""
    table = {**branches, _ROW: np.arange(rows.start, rows.stop)}
    if request.cut:
        mask = expressions.evaluate(request.cut, table).astype(bool)
        table = {name: array[mask] for name, array in table.items()}
    values = {
        name: expressions.evaluate_arrays(text, table, request.shapes[name])
        if name in request.shapes
        else expressions.evaluate(text, table)
        for name, text in request.expressions.items()
    }
    finite = {
        name: np.all(np.abs(array) <= FLOAT32_MAX, axis=tuple(range(1, array.ndim))) for name, array in values.items()
    }
    counts = {name: int(np.sum(~mask)) for name, mask in finite.items() if not mask.all()}
    keep = np.logical_and.reduce([*finite.values(), np.ones(len(table[_ROW]), bool)])
    if counts:
        table = {name: array[keep] for name, array in table.items()}
        values = {name: array[keep] for name, array in values.items()}
    event_key, key = _keys(table, path, request)
    del table[_ROW]
    return Chunk(table, values, key, event_key), counts, int(np.sum(~keep))


def _keys(branches: Mapping[str, NDArray[Any]], path: Path, request: Request) -> tuple[keys.KeyArray, keys.KeyArray]:
    """Event keys and candidate keys of one batch."""
    for name in request.key_branches:
        if not np.issubdtype(branches[name].dtype, np.integer):
            msg = f"{path}: key branch '{name}' is of type {branches[name].dtype}, expected integers"
            raise KeyColumnError(msg)
    if not request.key:
        event = keys.combine(keys.stream(np.zeros(1, np.uint64), path.name), branches[_ROW])
        return event, event
    event = keys.make_keys([branches[name] for name in request.key])
    return event, (keys.combine(event, branches[request.candidate]) if request.candidate else event)
