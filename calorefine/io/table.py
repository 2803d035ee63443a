"""Collect the rows of files in memory, or in memory-mapped files when they don't fit."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.errors import EmptySelectionError, KeyColumnError, KeyWarning
from calorefine.io.chunks import Request
from calorefine.io.sources import Source

_KEY, _EVENT = "\0key", "\0event"


def read_table(
    source: Source,
    request: Request,
    *,
    max_memory_gb: float = 4.0,
    cache_dir: Path | None = None,
    distinct: bool = True,
) -> tuple[dict[str, NDArray[Any]], keys.KeyArray, keys.KeyArray]:
    """Collect all selected rows.

    Args:
        source: the files.
        request: what to read.
        max_memory_gb: above this size the arrays are memory-mapped files, removed with the last reference to them.
        cache_dir: where those go; the system's folder for temporary files if left out.
        distinct: whether each row needs a key of its own.

    Returns:
        Arrays (n,) float64 by name of expression, (n, *shape) float32 of an array; keys (n,) and event keys (n,).

    Raises:
        EmptySelectionError: no row is left.
        KeyColumnError: two rows have the same key.
    """
    if distinct and not request.key:
        warn_of_row_keys(source)
    n = source.n_rows(request)
    arrays, filled = _allocated(n, request, max_memory_gb, cache_dir), 0
    for chunk in source.chunks(request):
        rows, filled = slice(filled, filled + len(chunk)), filled + len(chunk)
        for name, values in {**chunk.values, _KEY: chunk.key, _EVENT: chunk.event_key}.items():
            arrays[name][rows] = values
    if filled == 0:
        raise EmptySelectionError(f"{source}: {why_empty(n, request)}, expected some events")
    table = {name: array[:filled] for name, array in arrays.items()}
    key, event_key = table.pop(_KEY), table.pop(_EVENT)
    if distinct:
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


def warn_of_row_keys(source: Source) -> None:
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


def _allocated(n: int, request: Request, max_memory_gb: float, cache_dir: Path | None) -> dict[str, NDArray[Any]]:
    """Columns of n rows, in memory or in memory-mapped files."""
    types: dict[str, Any] = {name: np.dtype(np.float64) for name in request.expressions}
    types |= {name: np.dtype((np.float32, shape)) for name, shape in request.shapes.items()}
    types |= dict.fromkeys((_KEY, _EVENT), np.dtype(np.uint64))
    fits = n * sum(dtype.itemsize for dtype in types.values()) <= max_memory_gb * 1e9
    shapes = {name: ((n, *dtype.shape), dtype.base) for name, dtype in types.items()}
    return {name: np.empty(*shape) if fits else memory_map(*shape, cache_dir) for name, shape in shapes.items()}


def memory_map(shape: tuple[int, ...], dtype: Any, cache_dir: Path | None) -> NDArray[Any]:
    """Allocate an array in an anonymous temporary file, which vanishes with the array."""
    with tempfile.TemporaryFile(dir=cache_dir, prefix="calorefine-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)
