"""What to read of a table, and the rows that come back: expressions evaluated, cut, and identified by keys.

Rows are the events of the file or, with a collection, the entries of its lists: `collection: Electron` makes each entry
of the branches `Electron_...` a candidate of its event, numbered from 0.  What an event has once counts for each of its
entries then, reductions (`max(Electron_pt)`) included.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import awkward as ak  # type: ignore[import-untyped]  # neither py.typed nor stubs exist
import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.errors import KeyColumnError
from calorefine.events import Columns
from calorefine.io import expressions, names, reductions
from calorefine.io.shower_branches import ShowerBranches

NonFinite = Literal["error", "drop"]
Content = Literal["number", "array", "list"]
"""What a branch holds for each event: one number, an array of fixed size, or a list of any length."""
CHUNK_ROWS, CHUNK_CELLS = 200_000, 2**24
FLOAT32_MAX = float(np.finfo(np.float32).max)
_ROW = "\0row"


def rows_of(cells: int) -> int:
    """Rows to hold at a time where each has so many numbers: fewer of large arrays."""
    return min(CHUNK_ROWS, max(1, CHUNK_CELLS // max(1, cells)))


@dataclass(frozen=True)
class Chunk:
    """Consecutive selected rows of one file.

    Args:
        branches: raw arrays of the branches to pass through, in the file's own types: (n,), or (n, k, ...) of a
            fixed-size array.  With a collection (m, ...), by event, and awkward arrays (m, var).
        values: evaluated expressions, (n,) float64 (bool for conditions), or (n, *shape) float32 of an array.
        key: (n,) uint64, one for each candidate.
        event_key: (n,) uint64, one for each event.
        counts: (m,) with a collection: the rows of each of its m events, none of which is left out.
        collection: its name.
    """

    branches: dict[str, Any]
    values: dict[str, NDArray[Any]]
    key: keys.KeyArray
    event_key: keys.KeyArray
    counts: NDArray[np.int64] | None = None
    collection: str | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.key)

    @property
    def n_events(self) -> int:
        """Number of rows to write: of events, where the rows are entries of a collection."""
        return len(self) if self.counts is None else len(self.counts)

    def take(self, keep: NDArray[np.bool_]) -> Chunk:
        """Rows where this mask (n,) is true; an event stays in a collection, with fewer entries."""
        if keep.all():
            return self
        values = {name: array[keep] for name, array in self.values.items()}
        rows = self.key[keep], self.event_key[keep]
        if self.counts is None:
            return Chunk({name: array[keep] for name, array in self.branches.items()}, values, *rows)
        event = np.repeat(np.arange(len(self.counts)), self.counts)
        counts = np.bincount(event[keep], minlength=len(self.counts))
        own = {
            name: ak.unflatten(ak.flatten(array)[keep], counts)
            for name, array in self.branches.items()
            if name.startswith(f"{self.collection}_") and isinstance(array, ak.Array)
            if np.array_equal(ak.num(array, axis=1), self.counts)
        }
        branches = self.branches | own
        return Chunk(branches, values, *rows, counts, self.collection)


@dataclass(frozen=True)
class Request:
    """What to read.

    Args:
        expressions: expression by name of the column it gives.
        key: integer branches that identify an event.
        candidate: integer branch that tells candidates of an event apart.
        cut: condition; rows that fail it are left out.
        branches: further raw branches, to pass through; fixed-size arrays as well and, with a collection, lists.
        nonfinite: what to do about NaN and infinite values of the expressions: leave the row out, or raise, also with
            None, for those who have no option for it.
        shapes: names of the expressions whose value is an array for each row, and its shape.
        collection: what the names of the lists begin with whose entries are the rows.
        showers: where the files hold showers, for their observables (`shower.e_tot`).
    """

    expressions: Mapping[str, str]
    key: Sequence[str] = ()
    candidate: str | None = None
    cut: str | None = None
    branches: Sequence[str] = ()
    nonfinite: NonFinite | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    collection: str | None = None
    showers: ShowerBranches | None = None

    @classmethod
    def of(cls, columns: Columns, texts: Mapping[str, str], **options: Any) -> Request:
        """Request of these expressions; keys, cut, collection, shapes and showers as the columns say, or options do."""
        told: dict[str, Any] = {name: getattr(columns, name) for name in ("key", "candidate", "cut", "collection")}
        told["showers"] = ShowerBranches.of(columns) if columns.showers else None
        told["shapes"] = {name: shape for name, shape in columns.shapes.items() if name in texts}
        return cls(texts, **{**told, **options})

    def exact(self, branches: Collection[str]) -> Request:
        """The same of files with these branches, whose names win over what an expression says (`K-pt`)."""
        texts = {name: names.exact(text, branches) for name, text in self.expressions.items()}
        return replace(self, expressions=texts, cut=self.cut and names.exact(self.cut, branches))

    def needed(self) -> dict[str, Content]:
        """Branches to read, and the most that each may hold for an event."""
        texts = [text for name, text in self.expressions.items() if name not in self.shapes]
        texts += [self.cut] if self.cut else []
        cells = [name for column in self.shapes for name in expressions.plain_branches(self.expressions[column])]
        needed: dict[str, Content] = dict.fromkeys(
            (name for text in texts for name in reductions.branches(text)), "list"
        )
        needed |= dict.fromkeys([*cells, *(() if self.collection else self.branches)], "array")
        needed |= dict.fromkeys(self.branches if self.collection else [], "list")
        if not self.collection:
            needed |= dict.fromkeys((name for text in texts for name in reductions.outside(text)), "number")
        return needed | dict.fromkeys(self.key_branches, "number")

    def askers(self) -> dict[str, str]:
        """Who asks for a branch, by branch, for messages: columns, cut and key."""
        askers: dict[str, list[str]] = {}
        for column, text in self.expressions.items():
            who = f"the {column[1:]}" if column.startswith("\0") else f"column '{column}'"
            for name in reductions.branches(text) if column not in self.shapes else expressions.plain_branches(text):
                askers.setdefault(name, []).append(who)
        for name in reductions.branches(self.cut) if self.cut else ():
            askers.setdefault(name, []).append("the cut")
        for name in self.key_branches:
            askers.setdefault(name, []).append("the key")
        return {name: ", ".join(dict.fromkeys(who)) for name, who in askers.items()}

    @property
    def key_branches(self) -> list[str]:
        """The integer branches that identify a row: key, then candidate."""
        return [*self.key, *([self.candidate] if self.candidate else [])]


def select(
    table: Mapping[str, Any], rows: range, path: Path, request: Request, counting: str | None
) -> tuple[Chunk, dict[str, int], int]:
    """Evaluate the expressions in one batch, and apply the cut and the policy for non-finite values.

    Args:
        table: arrays by branch.
        rows: which rows of the file they are.
        path: the file.
        request: what is wanted.
        counting: a list of the collection, if there is one.

    Returns:
        The selected rows, the numbers of non-finite values by column, and of rows with any.
    """
    table = {**table, _ROW: np.arange(rows.start, rows.stop)}
    counts = None if counting is None else np.asarray(ak.num(table[counting], axis=1), np.int64)
    index: Any = slice(None) if counts is None else np.repeat(np.arange(len(rows)), counts)

    def evaluated(text: str) -> NDArray[Any]:
        if counts is None:
            return reductions.evaluate(text, table, len(rows))
        return reductions.evaluate_entries(text, table, counts, str(request.collection))

    values = {
        name: expressions.evaluate_arrays(text, table, request.shapes[name])[index]
        if name in request.shapes
        else evaluated(text)
        for name, text in request.expressions.items()
    }
    event_key, key = _keys(table, path, request, counts)
    passed = evaluated(request.cut).astype(bool) if request.cut else np.ones(len(key), bool)
    finite = {
        name: np.all(np.abs(array) <= FLOAT32_MAX, axis=tuple(range(1, array.ndim))) for name, array in values.items()
    }
    bad = {name: count for name, mask in finite.items() if (count := int(np.sum(passed & ~mask)))}
    keep = np.logical_and.reduce([passed, *finite.values()])
    branches = {name: table[name] for name in request.branches}
    chunk = Chunk(branches, values, key, event_key, counts, request.collection)
    return chunk.take(keep), bad, int(np.sum(passed & ~keep))


def require_integers(table: Mapping[str, Any], names: Sequence[str], path: Path) -> None:
    """Raise `KeyColumnError` for a key branch that holds anything else."""
    for name in names:
        if not np.issubdtype(table[name].dtype, np.integer):
            msg = f"{path}: key branch '{name}' is of type {table[name].dtype}, expected integers"
            raise KeyColumnError(msg)


def _keys(
    table: Mapping[str, Any], path: Path, request: Request, counts: NDArray[np.int64] | None
) -> tuple[keys.KeyArray, keys.KeyArray]:
    """Event keys and candidate keys (n,) of one batch."""
    require_integers(table, request.key_branches, path)
    if request.key:
        event = keys.make_keys([table[name] for name in request.key])
    else:
        event = keys.combine(keys.stream(np.zeros(1, np.uint64), path.name), table[_ROW])
    if counts is not None:
        event = np.repeat(event, counts)
        return event, keys.combine(event, np.arange(len(event)) - np.repeat(np.cumsum(counts) - counts, counts))
    return event, keys.combine(event, table[request.candidate]) if request.candidate else event
