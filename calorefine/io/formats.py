"""The formats that are known, and the choice of one by what the files hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from calorefine.errors import ConfigError
from calorefine.io.friends import WithFriends
from calorefine.io.hdf5 import is_hdf5
from calorefine.io.root import RootFiles
from calorefine.io.sources import Source, expanded


def _kind(path: Path) -> type[Source]:
    """Source that can read a file; ROOT's errors tell what isn't its own.  h5py is imported for HDF5 alone."""
    if not is_hdf5(path):
        return RootFiles
    from calorefine.io.showers import ShowerFiles

    return ShowerFiles


def open_source(
    files: str | Path | Sequence[str] | Sequence[Path],
    tree: str,
    friends: Sequence[str] | None = None,
    friends_by: Sequence[str] | None = None,
) -> Source:
    """Return the source for files, by what the first of them holds.

    Args:
        files: paths and globs.
        tree: name of the table.
        friends: files with further branches of the same rows, one for each of `files`, in their order; of a tree with
            another name, `weights.root:tree` or `showers.h5:/`.
        friends_by: integer branches of both by which the rows of `friends` are found, in any order.

    Raises:
        FileError: a path or glob matches no file; friends that don't fit.
    """
    source = _kind(expanded(files)[0])(files, tree)
    if not friends:
        return source
    named = [re.fullmatch(r"(.+\.(?:root|h5|hdf5)):(\S+)", name) for name in friends]
    trees = {match[2] if match else tree for match in named}
    if len(trees) > 1:
        raise ConfigError(f"friends: trees {', '.join(sorted(trees))} found, expected one name for all of them")
    paths = [match[1] if match else name for match, name in zip(named, friends, strict=True)]
    return WithFriends.of(source, open_source(paths, trees.pop()), friends_by or ())
