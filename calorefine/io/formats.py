"""The formats that are known, and the choice of one by what the files hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calorefine.io.root import RootFiles
from calorefine.io.sources import Source, expanded

FORMATS: list[tuple[Callable[[Path], bool], type[Source]]] = [(lambda _: True, RootFiles)]
"""Whether a format can read a file, and its source: the first that can does.  ROOT's errors tell what isn't its own."""


def open_source(files: str | Path | Sequence[str] | Sequence[Path], tree: str) -> Source:
    """Return the source for files, by what the first of them holds.

    Raises:
        FileError: a path or glob matches no file.
    """
    first = expanded(files)[0]
    return next(source for reads, source in FORMATS if reads(first))(files, tree)
