"""Reading: types, expressions, cuts, keys, chunks, memory."""

from __future__ import annotations

import gc
import glob
import tracemalloc
from dataclasses import replace
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from calorefine import keys
from calorefine.errors import (
    BranchError,
    CalorefineWarning,
    EmptySelectionError,
    KeyColumnError,
    KeyWarning,
    ValueRangeError,
)
from calorefine.io.chunks import Request
from calorefine.io.root import RootFiles
from calorefine.io.table import read_table

TYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "bool"]


def read(path, request, **options):
    return read_table(RootFiles(str(path), "events"), request, **options)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(2)
    n = 5000
    return {
        "run": np.ones(n, np.int32),
        "event": np.arange(n, dtype=np.uint64) + np.uint64(2**63),
        "x": rng.normal(size=n),
        "p": rng.uniform(1, 10, n).astype(np.float32),
        "flag": rng.random(n) < 0.5,
    }


def test_raw_branches_keep_type_and_bits(root_file, tree_format):
    rng = np.random.default_rng(3)
    raw = {kind: np.frombuffer(rng.bytes(1000 * 8), kind if kind != "bool" else "u1")[:1000] for kind in TYPES}
    raw["bool"] = raw["bool"] > 127
    path = root_file({f"b_{kind}": array for kind, array in raw.items()}, tree_format=tree_format)
    (chunk,) = RootFiles(path, "events").chunks(Request({}, branches=[f"b_{kind}" for kind in TYPES]))
    for kind, array in raw.items():
        assert chunk.branches[f"b_{kind}"].dtype == np.dtype(kind)
        assert chunk.branches[f"b_{kind}"].tobytes() == array.tobytes()


def test_chunking_changes_nothing(root_file, arrays, tree_format):
    source = RootFiles(root_file(arrays, tree_format=tree_format, step=700), "events")
    request = Request({"v": "x * p"}, key=["run", "event"], cut="flag && x > -1", branches=["event", "flag"])
    (whole,) = source.chunks(request)
    for rows in (333, 4999):
        parts = list(source.chunks(request, rows=rows))
        assert np.array_equal(np.concatenate([part.key for part in parts]), whole.key)
        assert np.array_equal(np.concatenate([part.values["v"] for part in parts]), whole.values["v"])
        assert np.array_equal(np.concatenate([part.branches["event"] for part in parts]), whole.branches["event"])
    mask = arrays["flag"] & (arrays["x"] > -1)
    assert np.array_equal(whole.values["v"], (arrays["x"] * arrays["p"].astype(float))[mask])
    assert np.array_equal(whole.branches["event"], arrays["event"][mask])


def test_files_globs_and_lists_are_read_in_order(root_file, arrays, tmp_path):
    for number in range(3):
        part = {name: array[number * 1000 : (number + 1) * 1000] for name, array in arrays.items()}
        root_file(part, f"part_{number}.root", tree_format="rntuple" if number == 1 else "ttree")
    request = Request({"x": "x"}, key=["run", "event"])
    table, key, _ = read(tmp_path / "part_*.root", request)
    assert np.array_equal(table["x"], arrays["x"][:3000])
    files = [str(tmp_path / "part_2.root"), str(tmp_path / "part_[01].root")]
    other, other_key, _ = read_table(RootFiles(files, "events"), request)
    assert np.array_equal(other["x"][:1000], arrays["x"][2000:3000])
    assert np.array_equal(np.sort(key), np.sort(other_key))


def test_tree_in_a_folder(root_file, arrays):
    path = root_file(arrays, tree="folder/DecayTree")
    table, *_ = read_table(RootFiles(path, "folder/DecayTree"), Request({"x": "x"}, key=["run", "event"]))
    assert np.array_equal(table["x"], arrays["x"])


def test_keys_beyond_double_precision_are_exact(root_file, arrays, tree_format):
    """Neighbouring 64-bit event numbers give different keys, and the same key in every integer type that holds them."""
    path = root_file(arrays, tree_format=tree_format)
    _, key, event_key = read(path, Request({"x": "x"}, key=["run", "event"]))
    assert len(np.unique(key)) == len(key)
    assert np.array_equal(key, event_key)
    assert np.array_equal(key, keys.make_keys([arrays["run"], arrays["event"]]))
    signed = root_file({**arrays, "event": arrays["event"].astype(np.int64)}, "signed.root", tree_format=tree_format)
    assert np.array_equal(read(signed, Request({"x": "x"}, key=["run", "event"]))[1], key)


def test_candidates_share_the_event_key(root_file, arrays):
    arrays = {**arrays, "event": np.arange(5000) // 2, "candidate": (np.arange(5000) % 2).astype(np.int8)}
    _, key, event_key = read(root_file(arrays), Request({"x": "x"}, key=["run", "event"], candidate="candidate"))
    assert len(np.unique(key)) == 5000
    assert len(np.unique(event_key)) == 2500
    assert np.array_equal(event_key[::2], event_key[1::2])


def test_duplicate_keys_are_counted_and_named(root_file, arrays):
    arrays["event"] = arrays["event"].copy()
    arrays["event"][[10, 4000]] = arrays["event"][20]
    with pytest.raises(
        KeyColumnError, match=r"2 of 5000 rows repeat the key \(run, event\).*rows 10 and 20.*candidate"
    ):
        read(root_file(arrays), Request({"x": "x"}, key=["run", "event"]))


def test_the_same_file_twice_is_a_duplicate(root_file, arrays):
    path = str(root_file(arrays))
    with pytest.raises(KeyColumnError, match="5000 of 10000 rows repeat"):
        read_table(RootFiles([path, path], "events"), Request({"x": "x"}, key=["run", "event"]))


@pytest.mark.parametrize("name", ["x", "p", "flag"])
def test_keys_must_be_integers(root_file, arrays, name):
    with pytest.raises(KeyColumnError, match=rf"events\.root: key branch '{name}' is of type .*expected integers"):
        read(root_file(arrays), Request({"x": "x"}, key=["run", name]))


def test_keys_by_file_and_row_warn_and_survive_cut_and_order(root_file, arrays):
    a, b = (str(root_file(arrays, name)) for name in ("a.root", "b.root"))
    with pytest.warns(KeyWarning, match="no key branches given, so events are identified by file name and row"):
        _, key, _ = read_table(RootFiles([a, b], "events"), Request({"x": "x"}))
    assert len(np.unique(key)) == 10000
    with pytest.warns(KeyWarning):
        _, cut_key, _ = read_table(RootFiles([b, a], "events"), Request({"x": "x"}, cut="flag"))
    mask = np.flatnonzero(arrays["flag"])
    assert np.array_equal(cut_key, np.concatenate([key[5000 + mask], key[mask]]))


def test_keys_by_file_and_row_need_different_names(root_file, arrays, tmp_path):
    paths = []
    for folder in ("job_0", "job_1"):
        (tmp_path / folder).mkdir()
        paths.append(str(root_file(arrays, f"{folder}/out.root")))
    with pytest.raises(
        KeyColumnError, match=r"the name 'out\.root' repeats, and no key branches.*expected key branches"
    ):
        read_table(RootFiles(paths, "events"), Request({"x": "x"}))


def test_cut_that_leaves_nothing(root_file, arrays):
    with pytest.raises(EmptySelectionError, match="none of 5000 rows is left after the cut 'x > 99'"):
        read(root_file(arrays), Request({"x": "x"}, key=["run", "event"], cut="x > 99"))


def test_tree_without_rows(root_file, arrays, tree_format):
    path = root_file({name: array[:0] for name, array in arrays.items()}, tree_format=tree_format)
    with pytest.raises(EmptySelectionError, match=r"events\.root, tree 'events': the tree has no rows"):
        read(path, Request({"x": "x"}, key=["run", "event"]))


def test_numbers_as_cuts(root_file, arrays):
    arrays["is_muon"] = arrays["flag"].astype(np.int32)
    table, *_ = read(root_file(arrays), Request({"x": "x"}, key=["run", "event"], cut="is_muon"))
    assert np.array_equal(table["x"], arrays["x"][arrays["flag"]])


def bad_values(arrays):
    x, p = arrays["x"].copy(), arrays["p"].copy()
    x[[1, 2]], p[[2, 3]] = [np.nan, np.inf], 0
    return {**arrays, "x": x, "p": p}


def test_nonfinite_values_are_counted_by_column(root_file, arrays, tree_format):
    request = Request({"x": "x", "inverse": "1 / p"}, key=["run", "event"], nonfinite="error")
    message = r"events\.root, tree 'events': NaN or infinite values in 3 rows \(x: 2, inverse: 2\).*nonfinite: drop"
    with pytest.raises(ValueRangeError, match=message):
        read(root_file(bad_values(arrays), tree_format=tree_format), request)
    with pytest.raises(ValueRangeError, match=r"\(x: 2, inverse: 2\), expected finite ones; cut them away before$"):
        read(root_file(bad_values(arrays), tree_format=tree_format), replace(request, nonfinite=None))


def test_nonfinite_values_are_dropped_on_request(root_file, arrays):
    request = Request({"x": "x", "inverse": "1 / p"}, key=["run", "event"], nonfinite="drop")
    with pytest.warns(CalorefineWarning, match=r"left out 3 of the selected rows.*\(x: 2, inverse: 2\)"):
        table, key, _ = read(root_file(bad_values(arrays)), request)
    keep = np.delete(np.arange(5000), [1, 2, 3])
    assert np.array_equal(table["x"], arrays["x"][keep])
    assert np.array_equal(key, keys.make_keys([arrays["run"][keep], arrays["event"][keep]]))


def test_nonfinite_values_outside_the_cut_do_not_matter(root_file, arrays):
    request = Request({"x": "x"}, key=["run", "event"], cut="p > 0 && x < 100")
    table, *_ = read(root_file(bad_values(arrays)), request)
    assert len(table["x"]) == 4997


def test_all_rows_dropped(root_file, arrays):
    arrays["x"] = np.full(5000, np.nan)
    request = Request({"x": "x"}, key=["run", "event"], cut="flag", nonfinite="drop")
    with (
        pytest.warns(CalorefineWarning, match="left out"),
        pytest.raises(EmptySelectionError, match="after the cut 'flag' and nonfinite: drop"),
    ):
        read(root_file(arrays), request)


def test_values_beyond_single_precision_are_not_finite(root_file, arrays):
    """Features are float32; 1e300 would become infinite."""
    arrays["x"] = arrays["x"].copy()
    arrays["x"][5] = 1e300
    with pytest.raises(ValueRangeError, match=r"in 1 rows \(x: 1\)"):
        read(root_file(arrays), Request({"x": "x"}, key=["run", "event"]))


def test_types_that_differ_between_files(root_file, arrays, tree_format, tmp_path):
    """Values may come in any type; raw branches are written on, and must not change theirs."""
    root_file(arrays, "a.root", tree_format=tree_format)
    other = {**arrays, "event": arrays["event"] + np.uint64(5000), "x": arrays["x"].astype(np.float32)}
    root_file(other, "b.root", tree_format=tree_format)
    table, *_ = read(tmp_path / "*.root", Request({"x": "x"}, key=["run", "event"]))
    assert np.array_equal(table["x"][5000:], arrays["x"].astype(np.float32).astype(float))
    with pytest.raises(
        BranchError, match=r"b\.root, tree 'events': branch 'x' is of type float32, expected float64 as"
    ):
        list(RootFiles(str(tmp_path / "*.root"), "events").chunks(Request({"p": "p"}, branches=["x"])))


def test_memory_mapped_files_hold_the_same_and_vanish(root_file, arrays, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    request = Request({"x": "x", "flag": "flag"}, key=["run", "event"], cut="x > 0")
    path = root_file(arrays)
    inside = read(path, request)
    mapped = read(path, request, max_memory_gb=0, cache_dir=cache)
    assert isinstance(mapped[0]["x"], np.memmap)
    for name in inside[0]:
        assert np.array_equal(inside[0][name], mapped[0][name])
    assert np.array_equal(inside[1], mapped[1])
    assert np.array_equal(inside[2], mapped[2])
    assert list(cache.iterdir()) == []
    del mapped
    gc.collect()
    assert str(cache) not in open_files()


def open_files():
    """Targets of all open file descriptors of this process, as one text."""
    links = [Path(link) for link in glob.glob("/proc/self/fd/*")]
    return " ".join(str(link.readlink()) for link in links if link.is_symlink())


def test_streaming_keeps_memory_flat(root_file, tree_format):
    """Peak memory of reading 40 chunks is that of a few of them, not of the file."""
    n, rows = 400_000, 10_000
    rng = np.random.default_rng(4)
    columns = {"event": np.arange(n), "x": rng.normal(size=n)}
    path = root_file(columns, tree_format=tree_format, step=20_000)
    source, request = RootFiles(path, "events"), Request({"x": "x"}, key=["event"])
    next(source.chunks(request, rows=rows))
    tracemalloc.start()
    total = sum(len(chunk) for chunk in source.chunks(request, rows=rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == n
    assert peak < 0.5 * 16 * n, f"peak {peak / 1e6:.1f} MB for a file of {16 * n / 1e6:.1f} MB"


def test_request_without_branches(root_file, arrays, tree_format):
    """Rows still count where nothing is read from them."""
    (chunk,) = RootFiles(root_file(arrays, tree_format=tree_format), "events").chunks(Request({"one": "1"}))
    assert len(chunk) == 5000
    assert chunk.values["one"].sum() == 5000


def test_entry_of_an_array_branch(tmp_path):
    weights = np.arange(12.0).reshape(4, 3)
    for kind in ("mktree", "mkrntuple"):
        with uproot.recreate(tmp_path / f"{kind}.root") as file:
            columns = {"w": weights, "x": np.arange(4.0)}
            types = {name: np.dtype((values.dtype, values.shape[1:])) for name, values in columns.items()}
            getattr(file, kind)("events", types).extend(columns)
        source = RootFiles(str(tmp_path / f"{kind}.root"), "events")
        (chunk,) = source.chunks(Request({"a": "w[1]", "b": "x * w[2] > 3 && w[0] < 9"}))
        np.testing.assert_array_equal(chunk.values["a"], weights[:, 1])
        np.testing.assert_array_equal(chunk.values["b"], [False, True, True, False])
        with pytest.raises(BranchError, match="asks for entry 3, branch 'w' has 3"):
            list(source.chunks(Request({"a": "w[3]"})))
        with pytest.raises(BranchError, match="'x' is one number per event"):
            list(source.chunks(Request({"a": "x[0]"})))


@pytest.mark.parametrize("tree_format", ["ttree", "rntuple"])
def test_text_labels(tmp_path, tree_format):
    """Branches of text are compared with values, in columns, cuts and beside reductions."""
    arrays = {"x": np.arange(4.0), "kind": ak.Array(["TT", "TL && x", "LL", "TT"]), "pt": np.ones((4, 2))}
    path = tmp_path / "labels.root"
    with uproot.recreate(path) as file:
        if tree_format == "rntuple":
            file.mkrntuple("events", arrays)
        else:
            file.mktree("events", {"x": np.float64, "kind": "string", "pt": np.dtype((np.float64, 2))})
            file["events"].extend(arrays)
    source = RootFiles(str(path), "events")
    texts = {"tt": 'kind == "TT"', "other": "2 * (kind == 'TL && x')", "sum": 'sum(pt) * (kind == "TL && x")'}
    table, *_ = read_table(source, Request(texts, cut='kind != "LL"'), distinct=False)
    assert {name: values.tolist() for name, values in table.items()} == {
        "tt": [1, 0, 1], "other": [0, 2, 0], "sum": [0, 2, 0]
    }  # fmt: skip
    with pytest.raises(BranchError, match=r"branch 'kind' is of type .*expected one number .*compare it with a value"):
        read_table(source, Request({"kind": "kind"}), distinct=False)
    with pytest.raises(BranchError, match=r"compares with text, but branch 'x' is of type"):
        read_table(source, Request({"x": 'x == "TT"'}), distinct=False)
    with pytest.raises(BranchError, match="no branch 'kimd'; did you mean 'kind'"):
        read_table(source, Request({"x": 'kimd == "TT"'}), distinct=False)
