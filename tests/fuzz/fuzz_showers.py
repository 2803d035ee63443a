"""Shower files: random valid HDF5 against the arrays that were written, and damaged ones.

*Damage that counts as `silent`*: values other than those that were written, or fewer rows, from a file

* that calorefine wrote, in which a checksum covers all rows and all that describes them;
* of another program, whose length has changed (a warning that it is longer than it says is an `error`), or whose damage
  lies in chunks of rows with a checksum of their own (gzip has Adler-32).

*Undetectable*: other values from a file of another program whose damage lies elsewhere.  HDF5's first format, which is
still the default of h5py, has no checksums in what describes the data, nor for rows that are stored as they are.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
from fuzz_damage import damaged
from fuzz_harness import Refused, Silent

from calorefine.errors import CalorefineError
from calorefine.io.chunks import Request
from calorefine.io.formats import open_source
from calorefine.io.provenance import read_provenance
from calorefine.io.showers import CALOGAN_LAYERS
from calorefine.io.writer import write_tree

TYPES = ("<f4", ">f4", "<f8", ">f8", "<f2", "|b1", "|i1", "<i4", ">i8", "|u1", "<u8")
OTHERS: list[dict[str, Any]] = [
    {},
    {"chunks": True},
    {"chunks": True, "compression": "gzip"},
    {"chunks": True, "compression": "gzip", "shuffle": True},
]
OWN = len(OTHERS)
"""Number of the whole file that calorefine wrote; those before have the options of `OTHERS`, in HDF5's first format."""
Table = dict[str, np.ndarray]


def _values(rng: random.Random, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    flat = [rng.randint(0, 1 if kind == "|b1" else 100) for _ in range(int(np.prod(shape)))]
    return np.array(flat).astype(kind).reshape(shape)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _challenge(rng: random.Random, n: int) -> Table:
    cells = rng.randint(1, 12)
    table = {"incident_energies": _values(rng, "<f4", (n, 1)), "showers": _values(rng, "<f4", (n, cells))}
    shapes: list[tuple[int, ...]] = [(n,), (n, 1), (n, 3), (n, 2, 2)]
    return table | {name: _values(rng, rng.choice(TYPES), rng.choice(shapes)) for name in ("entry_mm", "run")}


def _calogan(rng: random.Random, n: int) -> Table:
    layers = {name: _values(rng, ">f8", (n, rng.randint(1, 3), rng.randint(1, 4))) for name in CALOGAN_LAYERS}
    return {"energy": _values(rng, "<f8", (n, 1)), **layers}


def _write(path: Path, table: Table, options: dict[str, Any], group: str = "/") -> None:
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            file.require_group(group).create_dataset(name, data=values, **(options if len(values) else {}))


def _read(path: Path, names: list[str], rows: int, tree: str = "/") -> Table:
    """Values of branches as `chunks` gives them."""
    source = open_source(str(path), tree)
    source.branch_names("number"), source.n_entries(), source.other_objects()
    chunks = list(source.chunks(Request({}, branches=names), rows=rows))
    return {name: np.concatenate([chunk.branches[name] for chunk in chunks]) for name in names} if chunks else {}


def _compare(found: Table, expected: Table) -> None:
    for name, true in expected.items():
        flat = true.reshape(true.shape[:1] if true.shape[1:] == (1,) else true.shape)
        values = found.get(name, flat[:0])
        if values.shape != flat.shape or not np.array_equal(values, flat):
            raise Silent(f"'{name}': {values}, expected {flat}")


def _require_told(told: dict[str, Any], number: int) -> None:
    if number == OWN and told.get("model") != "flow":
        raise Silent(f"provenance {told}")


def generated(rng: random.Random, folder: Path) -> str:
    """What is read of valid files is what was written."""
    n, group = rng.choice([0, 1, 7, 40]), rng.choice(["/", "run", "a/b"])
    table = rng.choice([_challenge, _calogan])(rng, n)
    path = folder / rng.choice(["x.h5", "x.hdf5", "x.dat"])
    _write(path, table, rng.choice(OTHERS), group)
    expected = dict(table)
    if "energy" in table:
        expected["incident_energies"] = table["energy"] * 1000
        expected["showers"] = np.concatenate([_flat(table[name]) for name in CALOGAN_LAYERS], axis=1)
    try:
        found = _read(path, list(expected), rng.choice([1, 3, 1000]), group)
    except CalorefineError as error:
        raise Refused(f"{ {name: (v.shape, v.dtype) for name, v in table.items()} }: {error}") from error
    _compare(found, expected)
    return "ok"


@cache
def _valid(number: int) -> tuple[bytes, Table, list[range]]:
    """A small valid file, what is in it, and which bytes a checksum covers."""
    rng = random.Random(number)
    table = {"incident_energies": _values(rng, "<f4", (30, 1)), "showers": _values(rng, "<f4", (30, 8))}
    table |= {"run": _values(rng, "<i8", (30,)), "entry_mm": _values(rng, "<f8", (30, 2))}
    with TemporaryDirectory() as name:
        path = Path(name) / "whole.h5"
        if number == OWN:
            with write_tree(path, "/") as writer:
                for first in (0, 20):
                    writer.extend({name: values[first : first + 20] for name, values in table.items()})
                writer.finish({"model": "flow"})
            return path.read_bytes(), table, [range(path.stat().st_size)]
        _write(path, table, OTHERS[number])
        return path.read_bytes(), table, list(_covered(path))


def _covered(path: Path) -> Iterator[range]:
    """Compressed chunks."""
    with h5py.File(path) as file:
        for dataset in file.values():
            for k in range(dataset.id.get_num_chunks() if dataset.compression else 0):
                chunk = dataset.id.get_chunk_info(k)
                yield range(chunk.byte_offset, chunk.byte_offset + chunk.size)


def mutated(rng: random.Random, folder: Path) -> str:
    """A damaged file is refused, or its values are right."""
    number = rng.choice([*range(OWN), OWN, OWN])
    whole, table, covered = _valid(number)
    data = damaged(rng, whole, in_place=rng.random() < 0.6, among=rng.choice([None, range(100), *covered[:4]]))
    path = folder / "damaged.h5"
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = _read(path, list(table), rng.choice([7, 1000]))
        told = read_provenance(path)
    try:
        _compare(found, table)
        _require_told(told, number)
    except Silent as wrong:
        if any("expected from its header" in str(warning.message) for warning in said):
            return "error"
        places = [k for k, (a, b) in enumerate(zip(whole, data, strict=False)) if a != b]
        if len(data) != len(whole) or all(any(k in part for part in covered) for k in places):
            raise Silent(f"damage at {places[:20]} of {len(data)} bytes of file {number}: {wrong}") from wrong
        return "undetectable"
    return "ok"


def prepare_case() -> None:
    """Make the whole files."""
    for number in range(OWN + 1):
        _valid(number)


def case(rng: random.Random, folder: Path) -> str:
    """A valid file or a damaged one."""
    return generated(rng, folder) if rng.random() < 0.3 else mutated(rng, folder)
