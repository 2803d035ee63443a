"""The streamed copy of files with added branches: the same rows in the same order, once for all verbs.

With a collection, a row is an event, also one without entries, and added branches are lists: one number for each entry,
named as the collection's (`Electron_...`).  In a TTree the lists of a collection share a counter (`nElectron`), and so
do others that had one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import awkward as ak  # type: ignore[import-untyped]  # neither py.typed nor stubs exist
import numpy as np
from numpy.typing import NDArray

from calorefine.errors import BranchError, CalorefineNote, ConfigError, EmptySelectionError
from calorefine.events import in_collection
from calorefine.io.chunks import CHUNK_ROWS, Chunk, Content, Request
from calorefine.io.provenance import PROVENANCE
from calorefine.io.sources import CONTENTS, Source, TreeFormat
from calorefine.io.writer import Writer, not_an_input, write_tree

NOUNS: dict[Content, str] = {"number": "one number", "array": "a fixed-size array", "list": "a list of numbers"}


@dataclass
class Rewriter:
    """A copy that is being written.

    Args:
        writer: of the tree.
        sources: one after the other.
        request: what is read of them; its branches are copied.
        expects: what the files should hold, for messages.
        added_first: whether the added branches come before those.
        empty: whether nothing was written so far.
    """

    writer: Writer
    sources: Sequence[Source]
    request: Request
    expects: str
    added_first: bool
    empty: bool = True

    @cached_property
    def _counters(self) -> dict[str, str | None]:
        """What tells the lengths of the lists to copy, as `nElectron` does."""
        return self.sources[0].counters(self.request.branches)

    def chunks(self, source: Source | None = None, *, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """Rows of all files, or of one source, with the branches to copy."""
        for one in [source] if source else self.sources:
            yield from one.chunks(self.request, rows=rows)

    def extend(self, chunk: Chunk, added: Mapping[str, NDArray[Any]], *, copies: int = 1) -> None:
        """Write a chunk's rows with further branches (n * copies,) or (n * copies, k)."""
        if chunk.n_events == 0:
            return
        self.empty = False
        carried = dict(chunk.branches)
        if copies > 1:
            carried = {name: np.repeat(array, copies, axis=0) for name, array in carried.items()}
        own = dict(added) if chunk.counts is None else self._lists(carried, added, chunk.counts)
        self.writer.extend(own | carried if self.added_first else carried | own)

    def _lists(
        self, carried: dict[str, Any], added: Mapping[str, NDArray[Any]], counts: NDArray[np.int64]
    ) -> dict[str, Any]:
        """All lists of a chunk, those of a collection together; they are taken out of `carried`."""
        collection = self.request.collection
        if deep := [name for name, array in added.items() if array.ndim > 1]:
            msg = f"{deep[0]}: has several numbers for each entry of '{collection}', which can't be written; leave out "
            raise ConfigError(f"{msg}replicas, or make the entries rows of a file before")
        lists = {name: carried.pop(name) for name in list(carried) if isinstance(carried[name], ak.Array)}
        lists |= {in_collection(name, collection): ak.unflatten(array, counts) for name, array in added.items()}
        if self.writer.format == "rntuple":
            return lists | {f"n{collection}": counts.astype(np.int32)}
        counters = self._counters | {in_collection(name, collection): f"n{collection}" for name in added}
        groups = dict.fromkeys(counter[1:] for name in lists if (counter := counters[name]))
        for prefix in groups:
            start = f"{prefix}_"
            members = [name for name in lists if counters.get(name) == f"n{prefix}" and name.startswith(start)]
            if members:
                lists[prefix] = ak.zip({name.removeprefix(start): lists.pop(name) for name in members})
                carried.pop(f"n{prefix}", None)
        return lists

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Write the provenance.

        Raises:
            EmptySelectionError: nothing was written.
        """
        if self.empty:
            raise EmptySelectionError(f"{self.sources[0]}: the tree has no rows, expected {self.expects}")
        self.writer.finish(provenance)


@contextmanager
def rewriting(
    sources: Source | Sequence[Source],
    request: Request,
    output: str | Path,
    *,
    adds: Iterable[str] = (),
    hint: str = "expected other files",
    replaces: bool = False,
    copies_all: bool = True,
    kinds: Sequence[Content] = ("number", "array"),
    complete: bool = False,
    inputs: Iterable[Path] = (),
    expects: str = "events",
    tree_format: TreeFormat | None = None,
    overwrite: bool = False,
) -> Iterator[Rewriter]:
    """Open a copy of files; it appears under `output` when the block ends without an error.

    Args:
        sources: the files; several sources are copied one after the other.
        request: what is read of them.
        output: the file to write.
        adds: names of the branches to add.
        hint: what to do if the files have one of them.
        replaces: whether the added branches may take the place of others.
        copies_all: whether to copy, before the added branches, all that hold one of `kinds` for each event in all
            sources, instead of the branches of the request, after the added ones.
        kinds: "number", "array", "list".
        complete: write over the input: whatever would be lost is an error, not a warning.
        inputs: further files that the output must not be.
        expects: what the files should hold, for messages.
        tree_format: that of the input, if left out.
        overwrite: replace an existing output.

    Raises:
        ConfigError: the output exists, or is an input; a branch is there already; objects would be lost.
        BranchError: branches would be lost.
        EmptySelectionError: there are no rows.
    """
    sources = [sources] if isinstance(sources, Source) else sources
    added = [in_collection(name, request.collection) for name in adds]
    for source in () if replaces else sources:
        if clash := sorted(set(added) & set(source.branch_names())):
            raise ConfigError(f"{source}: has a branch '{clash[0]}' already; {hint}")
    if copies_all:
        kept = _kept(sources, CONTENTS if request.collection else kinds, complete=complete)
        request = replace(request, branches=[name for name in kept if name not in added])
    not_an_input(Path(output), [*inputs, *(() if complete else (path for one in sources for path in one.paths))])
    with write_tree(
        Path(output),
        sources[0].tree,
        tree_format=tree_format or sources[0].tree_format(),
        overwrite=overwrite or complete,
    ) as writer:
        yield Rewriter(writer, sources, request, expects, not copies_all)


def _kept(sources: Sequence[Source], kinds: Sequence[Content], *, complete: bool) -> list[str]:
    """Branches that can be copied from all sources.

    Raises:
        BranchError, ConfigError: something can't, and would be lost.

    Warns:
        CalorefineWarning: branches are left out.
    """
    others = [name for name in sources[0].other_objects() if name != PROVENANCE]
    if complete and others:
        msg = f"{sources[0]}: the file also holds {', '.join(others)}, which would be lost in place"
        raise ConfigError(f"{msg}; give an output instead of --in_place true")
    every = dict.fromkeys(name for source in sources for name in source.branch_names())
    usable = [set(source.branch_names(*kinds)) for source in sources]
    kept = [name for name in every if all(name in names for names in usable)]
    if lost := [name for name in every if name not in kept]:
        holds = f"not {' or '.join(NOUNS[one] for one in kinds)} for each event"
        msg = f"{sources[0]}: branches {', '.join(lost)} are"
        if complete:
            raise BranchError(f"{msg} {holds} and would be lost in place; give an output instead of --in_place true")
        text = f"{msg} left out: {holds}" if len(kinds) == 1 else f"{msg} {holds}; they are left out"
        warnings.warn(text, CalorefineNote, stacklevel=4)
    return kept
