"""ROOT files: random valid ones against the arrays that were written, and damaged ones.

*Damage that counts as `silent`*: values other than those that were written, or fewer rows, from a file whose damage

* is a truncation, or changes its length in any other way (a warning that it is longer than it says is an `error`);
* lies in bytes that a checksum of the format covers: baskets that are compressed by zlib (Adler-32), LZ4 (xxHash) or
  LZMA (CRC-32), and of an RNTuple the anchor, header, footer and lists of pages (xxHash);
* lies in what describes a tree (numbers of entries, places and sizes of baskets, types of branches), which is there
  more than once in a TTree, but for what is said in `UNPROTECTED`.

*Undetectable*: other values of the right number from bytes that nothing covers: baskets and pages that are stored as
they are, or compressed by Zstandard, which ROOT writes without its checksum; descriptions that stand in one place
alone and make sense as they are (`UNPROTECTED`).
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

import awkward as ak
import numpy as np
import uproot
from fuzz_damage import damaged
from fuzz_harness import Refused, Silent

from calorefine.errors import CalorefineError, ExpressionError, ValueRangeError
from calorefine.io.chunks import FLOAT32_MAX, Request
from calorefine.io.formats import open_source
from calorefine.io.names import quoted

TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
PLAIN = ("x", "P", "e_over_p", "N", "_", "class", "if", "True", "1abc", "sum", "sin", "where", "real", "nan")
NAMES = (*PLAIN, "K-pt", "a b", "µ", "E/p", "B.pt", "x:y", "sw_B0->Kpi", "p%", "ω_1", "a+b")
COMPRESSIONS = (None, uproot.ZLIB(1), uproot.LZ4(1), uproot.ZSTD(1), uproot.LZMA(1))
Table = dict[str, Any]


def _numbers(rng: random.Random, kind: str, size: int) -> np.ndarray:
    dtype = np.dtype(kind)
    if dtype.kind == "b":
        return np.array([rng.random() < 0.5 for _ in range(size)], bool)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        low, high = (info.min, info.max) if rng.random() < 0.15 else (max(info.min, -100), 100)
        return np.array([rng.randint(int(low), int(high)) for _ in range(size)], dtype)
    odd = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 3e38, 1e300, 5e-324) if rng.random() < 0.15 else (0.5,)
    with np.errstate(over="ignore"):
        return np.array([rng.choice(odd) if rng.random() < 0.3 else rng.gauss(0, 10) for _ in range(size)]).astype(
            dtype
        )


def _column(rng: random.Random, kind: str, shape: tuple[int, ...] | None, n: int) -> Any:
    """Rows (n,) of numbers, of arrays of a shape, or of lists."""
    if shape is None:
        counts = np.array([rng.randint(0, 3) for _ in range(n)], np.int64)
        return ak.unflatten(_numbers(rng, kind, sum(counts)), counts)
    return _numbers(rng, kind, n * math.prod(shape)).reshape(n, *shape)


def write(path: Path, parts: list[Table], *, rntuple: bool, compression: Any, tree: str = "events") -> None:
    """Write a tree part by part."""
    with uproot.recreate(path, compression=compression) as file:
        kinds = {
            name: np.dtype((array.dtype, array.shape[1:])) if isinstance(array, np.ndarray) else array.type.content
            for name, array in parts[0].items()
        }
        target = (file.mkrntuple if rntuple else file.mktree)(tree, kinds)
        for part in parts:
            target.extend(part)


def _layout(rng: random.Random, *, rntuple: bool) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    names = rng.sample(NAMES, rng.randint(1, 5))
    shapes: list[Any] = [(), (), (), (1,), (3,), (2, 2), None]
    names = [name for name in names if not rntuple or not set(name) & set("./")] or ["x"]
    return {name: (rng.choice(TYPES), rng.choice(shapes)) for name in names}


def _joined(arrays: list[Any]) -> Any:
    return (np if isinstance(arrays[0], np.ndarray) else ak).concatenate(arrays)


def generated(rng: random.Random, folder: Path) -> str:
    """What `chunks` gives of valid files is what was written."""
    rntuple = rng.random() < 0.4
    layout, compression = _layout(rng, rntuple=rntuple), rng.choice(COMPRESSIONS)
    files = []
    for k in range(rng.randint(1, 3)):
        sizes = [rng.randint(0, 5) for _ in range(rng.randint(1, 3))]
        parts = [{name: _column(rng, *kind, n) for name, kind in layout.items()} for n in sizes]
        write(folder / f"{k}.root", parts, rntuple=rntuple, compression=compression)
        files += parts
    written = {name: _joined([part[name] for part in files]) for name in layout}
    request = _request(rng, layout)
    source = open_source([str(folder / "*.root")], "events")
    try:
        chunks = list(source.chunks(request, rows=rng.choice([1, 2, 5, 1000])))
    except CalorefineError as error:
        return _refused(error, written, request)
    expected, keep = _expected(written, request)
    if request.nonfinite == "error" and not keep.all():
        raise Silent(f"{int(np.sum(~keep))} rows with NaN or infinite values pass in {request}")
    if unholdable := _unholdable(written, request):
        raise Silent(f"integers above 2**53 pass in {unholdable}")
    _compare(chunks, written, expected, keep, request)
    return "ok"


def _request(rng: random.Random, layout: dict[str, tuple[str, tuple[int, ...] | None]]) -> Request:
    """Ask for some of the branches as they are, some as expressions, and lists reduced."""
    expressions, shapes, branches = {}, {}, []
    for name, (_, shape) in layout.items():
        if shape is None:
            expressions[f"sum of {name}"] = f"sum({quoted(name)})"
        elif rng.random() < 0.5:
            branches.append(name)
        elif shape:
            expressions[name], shapes[name] = name, shape
        else:
            expressions[name] = rng.choice([name, f"{quoted(name)} * 1"])
    key = [name for name, (kind, shape) in layout.items() if np.dtype(kind).kind in "iu" and shape == ()][:1]
    return Request(
        expressions,
        key=key if rng.random() < 0.3 else (),
        branches=branches,
        nonfinite=rng.choice(["error", "drop"]),
        shapes=shapes,
    )


def _value(written: Table, name: str) -> Any:
    """Value of an expression of `_request`, by numpy."""
    if name.startswith("sum of "):
        return np.array([float(np.sum(np.asarray(row, np.float64))) for row in written[name.removeprefix("sum of ")]])
    values = np.asarray(written[name])
    return values if values.dtype == bool else values.astype(np.float64)


def _expected(written: Table, request: Request) -> tuple[Table, np.ndarray]:
    """Values of the expressions for all rows, and which rows are finite."""
    with np.errstate(all="ignore"):
        values = {name: _value(written, name) for name in request.expressions}
    n = len(next(iter(written.values())))
    keep = np.ones(n, bool)
    for array in values.values():
        keep &= np.all(np.abs(array.reshape(n, math.prod(array.shape[1:]))) <= FLOAT32_MAX, axis=1)
    return values, keep


def _unholdable(written: Table, request: Request) -> list[str]:
    names = [name.removeprefix("sum of ") for name in request.expressions if name not in request.shapes]
    arrays = {name: np.asarray(ak.flatten(written[name], axis=None)) for name in names}
    large = {name: array for name, array in arrays.items() if array.dtype.kind in "iu" and len(array)}
    return [name for name, array in large.items() if max(int(array.max()), -int(array.min())) > 2**53]


def _refused(error: CalorefineError, written: Table, request: Request) -> str:
    """An error has to have its reason in what was written."""
    if isinstance(error, ExpressionError) and _unholdable(written, request):
        return "error"
    _, keep = _expected(written, request)
    if isinstance(error, ValueRangeError) and request.nonfinite == "error" and not keep.all():
        return "error"
    raise Refused(f"{ {name: str(ak.type(a)) for name, a in written.items()} }, {request}: {error}")


def _compare(chunks: list[Any], written: Table, expected: Table, keep: np.ndarray, request: Request) -> None:
    n = int(keep.sum())
    if sum(map(len, chunks)) != n:
        raise Silent(f"{sum(map(len, chunks))} rows, expected {n}")
    for name in request.branches if chunks else ():
        found, true = np.concatenate([chunk.branches[name] for chunk in chunks]), written[name][keep]
        if found.dtype != true.dtype or not np.array_equal(found, true, equal_nan=found.dtype.kind == "f"):
            raise Silent(f"branch '{name}': {found}, expected {true}")
    for name in request.expressions if chunks else ():
        found = np.concatenate([chunk.values[name] for chunk in chunks])
        true = expected[name][keep].astype(np.float32 if name in request.shapes else expected[name].dtype)
        if not np.allclose(found, true, rtol=1e-12, atol=0):
            raise Silent(f"expression '{name}': {found}, expected {true}")


@cache
def _valid(number: int) -> tuple[bytes, Table, list[range], list[range]]:
    """A small valid file, what is in it, which bytes a checksum covers, and where it describes itself."""
    rng, rntuple = random.Random(number), number >= len(COMPRESSIONS)
    shapes: dict[str, Any] = {"i": ("int64", ()), "x": ("float32", ()), "w": ("float64", ())}
    shapes |= {"v": ("float64", (3,)), "jet": ("float32", None), "flag": ("bool", ()), "u": ("uint32", ())}
    sizes = (40, 25)
    parts = [{name: _plain(rng, kind, shape, n) for name, (kind, shape) in shapes.items()} for n in sizes]
    with TemporaryDirectory() as name:
        path = Path(name) / "whole.root"
        write(path, parts, rntuple=rntuple, compression=COMPRESSIONS[number % len(COMPRESSIONS)])
        covered = list(_rntuple_covered(path) if rntuple else _ttree_covered(path))
        with uproot.open(path) as file:
            key = file.key("events")
            size = path.stat().st_size
            described = [range(100), range(key.fSeekKey, key.fSeekKey + key.fNbytes), range(size - 400, size)]
        return path.read_bytes(), {name: _joined([part[name] for part in parts]) for name in shapes}, covered, described


def _plain(rng: random.Random, kind: str, shape: tuple[int, ...] | None, n: int) -> Any:
    """Numbers that compress."""
    counts = [rng.randint(0, 3) for _ in range(n)]
    size = sum(counts) if shape is None else n * math.prod(shape)
    flat = np.array([rng.randint(0, 9) for _ in range(size)]).astype(kind)
    return ak.unflatten(flat, counts) if shape is None else flat.reshape(n, *shape)


def _ttree_covered(path: Path) -> Iterator[range]:
    """Compressed baskets, but for those of Zstandard."""
    data = path.read_bytes()
    with uproot.open(path) as file:
        for branch in file["events"].branches:
            for seek, size in zip(branch.member("fBasketSeek"), branch.member("fBasketBytes"), strict=True):
                start = int(seek) + int.from_bytes(data[int(seek) + 14 : int(seek) + 16], "big")
                if size and data[start : start + 2] in (b"ZL", b"L4", b"XZ"):
                    yield range(start + 9, int(seek) + int(size))


def _rntuple_covered(path: Path) -> Iterator[range]:
    """Header and footer, and the lists of pages."""
    with uproot.open(path) as file:
        ntuple = file["events"]
        anchor = ntuple.members
        for part in ("Header", "Footer"):
            yield range(anchor[f"fSeek{part}"], anchor[f"fSeek{part}"] + anchor[f"fNBytes{part}"])
        for record in ntuple.footer.cluster_group_records:
            locator = record.page_list_link.locator
            yield range(locator.offset, locator.offset + locator.num_bytes)


def mutated(rng: random.Random, folder: Path) -> str:
    """A damaged file is refused, or its values are right."""
    whole, written, covered, described = _valid(rng.randrange(2 * len(COMPRESSIONS)))
    data = damaged(rng, whole, in_place=rng.random() < 0.5, among=rng.choice([None, *covered[:4], *described]))
    path = folder / "damaged.root"
    path.write_bytes(data)
    lists = {"jet": "sum(jet)"}
    request = Request(lists, branches=[name for name in written if name not in lists])
    source = open_source(str(path), "events")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        source.branch_names("number"), source.n_entries()
        chunks = list(source.chunks(request, rows=rng.choice([7, 1000])))
    try:
        n = len(written["i"])
        _compare(chunks, written, {"jet": _value(written, "sum of jet")}, np.ones(n, bool), request)
    except Silent as wrong:
        if any("expected from its header" in str(warning.message) for warning in said):
            return "error"
        places = [k for k, (a, b) in enumerate(zip(whole, data, strict=False)) if a != b]
        noticed = len(data) != len(whole) or any(k in part for part in covered for k in places)
        if noticed or str(wrong).endswith(f"rows, expected {n}"):
            raise Silent(f"damage at {places[:20]} of {len(data)} bytes ({len(whole)} before): {wrong}") from wrong
        return "undetectable"
    return "ok"


def prepare_case() -> None:
    """Make the whole files."""
    for number in range(2 * len(COMPRESSIONS)):
        _valid(number)


def case(rng: random.Random, folder: Path) -> str:
    """A valid file or a damaged one."""
    return generated(rng, folder) if rng.random() < 0.5 else mutated(rng, folder)
