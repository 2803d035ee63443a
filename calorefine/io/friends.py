"""Friends: trees in other files that hold further branches of the same events, as weights that were written apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import awkward as ak  # type: ignore[import-untyped]  # neither py.typed nor stubs exist
import numpy as np

from calorefine import keys
from calorefine.errors import BranchError, FileError, KeyColumnError, nearest
from calorefine.io.chunks import require_integers
from calorefine.io.sources import BranchShape, Source, Tree, TreeFormat, content


@dataclass(frozen=True)
class WithFriends(Source):
    """A source and its friend, whose branches stand beside its own.

    Args:
        main: the source.
        friend: as many files as `main` has, with the same rows in the same order; any with the same events, with `by`.
        by: integer branches of both that identify a row, in any order; by the number of the entry, if there are none.

    Raises:
        FileError: other numbers of files.
    """

    main: Source
    friend: Source
    by: tuple[str, ...] = ()

    @classmethod
    def of(cls, main: Source, friend: Source, by: Sequence[str] = ()) -> WithFriends:
        """Join two sources."""
        if not by and len(friend.paths) != len(main.paths):
            msg = (
                f"{main} has {len(main.paths)} files, its friend {friend} {len(friend.paths)}, expected one for each; "
            )
            raise FileError(f"{msg}or join them by key, with friends_by")
        return cls(main.files, main.tree, main, friend, tuple(by))

    @contextmanager
    def open(self, path: Path) -> Iterator[Tree]:
        """Open the tree of one file and its friend."""
        with ExitStack() as stack:
            where = f"{path}, tree '{self.tree}'"
            main = stack.enter_context(self.main.open(path))
            if self.by:
                yield _Joined(main, self._whole, where)
                return
            other = self.friend.paths[self.paths.index(path)]
            friend = stack.enter_context(self.friend.open(other))
            if friend.n_entries != main.n_entries:
                msg = f"{where} has {main.n_entries} entries, its friend {other} {friend.n_entries}, expected as many"
                raise FileError(f"{msg}; or join them by key, with friends_by")
            yield _SideBySide(main, friend, f"{where} and its friend {other}")

    @cached_property
    def _whole(self) -> _Whole:
        return _Whole(self.friend, self.by)

    def told(self) -> dict[str, Any]:
        """Names of files and tree, for the provenance."""
        return self.main.told() | {"friends": [path.name for path in self.friend.paths]}

    def tree_format(self) -> TreeFormat:
        """What the tree is in the first file."""
        return self.main.tree_format()

    def other_objects(self) -> list[str]:
        """Names of what the first file holds beside the tree and the folders that it is in."""
        return self.main.other_objects()


class _Two:
    """Two trees of the same events; a branch that both have is the first one's, and has to be the same in the other.

    Args:
        main: the first one.
        friend: the other.
        where: both, for messages.
    """

    def __init__(self, main: Tree, friend: Any, where: str) -> None:
        self._main, self._friend, self._where = main, friend, where
        self._ours, self._theirs = set(main.paths()), set(friend.paths())
        self.n_entries = main.n_entries

    def names(self) -> list[str]:
        return list(dict.fromkeys([*self._main.names(), *self._friend.names()]))

    def paths(self) -> list[str]:
        return list(dict.fromkeys([*self._main.paths(), *self._friend.paths()]))

    def _owner(self, name: str) -> Any:
        return self._main if name in self._ours else self._friend

    def shape(self, name: str) -> BranchShape:
        return self._owner(name).shape(name)  # type: ignore[no-any-return]

    def typename(self, name: str) -> str:
        return str(self._owner(name).typename(name))

    def counter(self, name: str) -> str | None:
        return self._owner(name).counter(name)  # type: ignore[no-any-return]

    def _divided(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """Which of these branches each has."""
        return [n for n in names if n in self._ours], [n for n in names if n in self._theirs]

    def _together(self, table: Mapping[str, Any], friend: Mapping[str, Any], at: range) -> dict[str, Any]:
        """Arrays of both, after a look at those that both have."""
        for name in table.keys() & friend.keys():
            if not ak.array_equal(table[name], friend[name], dtype_exact=False, equal_nan=True):
                msg = (
                    f"{self._where}: branch '{name}' differs in rows {at.start} to {at.stop}, expected the same events"
                )
                raise FileError(f"{msg} in the same order; join them by key, with friends_by, or rename it in one")
        return {**friend, **table}


class _SideBySide(_Two):
    """Two trees with the same rows in the same order."""

    def batches(self, names: Sequence[str], rows: int) -> Iterator[tuple[dict[str, Any], range]]:
        ours, theirs = self._divided(names)
        both = zip(self._main.batches(ours, rows), self._friend.batches(theirs, rows), strict=True)
        for (table, at), (friend, _) in both:
            yield self._together(table, friend, at), at


class _Joined(_Two):
    """A tree, and one with the same events in any order."""

    def batches(self, names: Sequence[str], rows: int) -> Iterator[tuple[dict[str, Any], range]]:
        ours, theirs = self._divided(names)
        for name in self._friend.by:
            if name not in self._ours:
                raise BranchError(f"{self._where}: there is no branch '{name}'{nearest(name, self._main.paths())}")
        for table, at in self._main.batches(list(dict.fromkeys([*ours, *self._friend.by])), rows):
            identity = {name: table[name] for name in self._friend.by}
            friend = self._friend.rows(theirs, identity, self._where)
            yield self._together({name: table[name] for name in ours}, friend, at), at


class _Whole:
    """All rows of a source, in memory as they are asked for, found by key.

    Args:
        source: the files.
        by: integer branches that identify a row.

    Raises:
        KeyColumnError: two rows have the same key, or these are no integers.
    """

    def __init__(self, source: Source, by: Sequence[str]) -> None:
        self._source, self.by = source, by
        self._held: dict[str, Any] = {}
        with source.open(source.paths[0]) as tree:
            self._paths = tree.paths()
            self._shapes = {name: tree.shape(name) for name in self._paths}
            self._types = {name: tree.typename(name) for name in self._paths}
        identity = self._columns(by)
        require_integers(identity, by, source.paths[0])
        key = keys.make_keys([identity[name] for name in by])
        self._order = np.argsort(key, kind="stable")
        self._key = key[self._order]
        if same := int(np.sum(self._key[1:] == self._key[:-1])):
            msg = f"{source}: {same} rows have the same {', '.join(by)} as another, expected one row for each"
            raise KeyColumnError(msg)

    def names(self) -> list[str]:
        return [name for name in self._paths if content(self._shapes[name]) is not None]

    def paths(self) -> list[str]:
        return self._paths

    def shape(self, name: str) -> BranchShape:
        return self._shapes[name]

    def typename(self, name: str) -> str:
        return self._types[name]

    def counter(self, name: str) -> str | None:
        del name
        return None

    def _columns(self, names: Sequence[str]) -> dict[str, Any]:
        """Arrays of all rows."""
        if missing := [name for name in names if name not in self._held]:
            parts: list[dict[str, Any]] = []
            for path in self._source.paths:
                with self._source.open(path) as tree:
                    parts += [table for table, _ in tree.batches(missing, 200_000)]
            for name in missing:
                arrays = [part[name] for part in parts]
                self._held[name] = (np if isinstance(arrays[0], np.ndarray) else ak).concatenate(arrays)
        return {name: self._held[name] for name in names}

    def rows(self, names: Sequence[str], identity: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Arrays of the rows with these keys, each (n,).

        Raises:
            KeyColumnError: one has no row.
        """
        require_integers(identity, self.by, Path(where))
        key = keys.make_keys([identity[name] for name in self.by])
        at = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
        if len(absent := np.flatnonzero(self._key[at] != key)):
            shown = ", ".join(f"{name} {identity[name][absent[0]]}" for name in self.by)
            msg = f"{where}: {len(absent)} of {len(key)} rows aren't in the friend {self._source}, first {shown}"
            raise KeyColumnError(f"{msg}; expected each of them")
        return {name: array[self._order[at]] for name, array in self._columns(names).items()}
