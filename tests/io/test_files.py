"""Files that are not what they should be: each gives one clear error, and never wrong numbers."""

from __future__ import annotations

import shutil

import awkward as ak
import numpy as np
import pytest
import uproot

from calorefine.errors import BranchError, CalorefineError, CalorefineWarning, FileError, ValueRangeError
from calorefine.io.chunks import Request
from calorefine.io.root import RootFiles
from calorefine.io.table import read_table

REQUEST = Request({"x": "x"}, key=["event"])


def read(path, request=REQUEST, tree="events"):
    return read_table(RootFiles(str(path), tree), request)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(1)
    return {"event": np.arange(3000), "x": rng.normal(size=3000), "flag": rng.random(3000) < 0.5}


def cuts(size):
    """Lengths in steps over the file, and every length near its end."""
    return [*range(0, size - 64, max(1, size // 60)), *range(size - 64, size)]


def test_every_truncation_is_an_error(root_file, arrays, tree_format, tmp_path):
    raw = root_file(arrays, tree_format=tree_format, step=1000).read_bytes()
    for length in cuts(len(raw)):
        path = tmp_path / "cut.root"
        path.write_bytes(raw[:length])
        with pytest.raises(FileError, match=r"cut\.root.*(truncated|not a readable ROOT file)"):
            read(path)


def test_truncation_message_counts_bytes(root_file, arrays, tmp_path):
    raw = root_file(arrays).read_bytes()
    path = tmp_path / "cut.root"
    path.write_bytes(raw[:-1])
    with pytest.raises(FileError, match=rf"truncated: {len(raw) - 1} bytes found, {len(raw)} expected"):
        read(path)


def test_truncated_second_file_is_named(root_file, arrays, tree_format, tmp_path):
    good = root_file(arrays, "a.root", tree_format=tree_format)
    (tmp_path / "b.root").write_bytes(good.read_bytes()[:-500])
    with pytest.raises(FileError, match=r"b\.root: truncated"):
        read(tmp_path / "*.root")


def test_zeros_in_place_of_the_end_are_never_read_as_numbers(root_file, arrays, tree_format, tmp_path):
    """A copy that was cut off on a disk that had reserved its whole length."""
    raw = root_file(arrays, tree_format=tree_format, step=1000).read_bytes()
    wrong = []
    for length in cuts(len(raw))[:-60]:
        path = tmp_path / "zeros.root"
        path.write_bytes(raw[:length] + bytes(len(raw) - length))
        try:
            table, *_ = read(path)
        except CalorefineError:
            continue
        if not np.array_equal(table["x"], arrays["x"]):
            wrong.append(length)
    assert wrong == []


def test_bytes_beyond_the_end_that_a_file_knows(root_file, arrays, tree_format, tmp_path):
    raw = root_file(arrays, tree_format=tree_format).read_bytes()
    (tmp_path / "longer.root").write_bytes(raw + bytes(4))
    with pytest.warns(CalorefineWarning, match=rf"longer\.root: {len(raw) + 4} bytes found, {len(raw)} expected"):
        table, *_ = read(tmp_path / "longer.root")
    assert np.array_equal(table["x"], arrays["x"])


def test_unclosed_file(root_file, arrays, tree_format, tmp_path):
    """ROOT writes the list of free segments when it closes a file; until then the header points nowhere."""
    path = root_file(arrays, tree_format=tree_format)
    raw = bytearray(path.read_bytes())
    assert int.from_bytes(raw[4:8], "big") < 1_000_000  # 32-bit header: fEND, fSeekFree, fNbytesFree from byte 12
    raw[16:20] = bytes(4)
    (tmp_path / "open.root").write_bytes(raw)
    with pytest.raises(FileError, match=r"open\.root: never closed"):
        read(tmp_path / "open.root")


@pytest.mark.parametrize("make", ["mktree", "mkrntuple"])
def test_copy_of_a_file_that_is_being_written_holds_complete_rows_or_is_an_error(arrays, make, tmp_path):
    """Uproot leaves a valid file after each extension, so that a copy has a whole number of them."""
    lengths = []
    with uproot.recreate(tmp_path / "growing.root") as file:
        tree = getattr(file, make)("events", {name: array.dtype for name, array in arrays.items()})
        for first in range(0, 3000, 1000):
            shutil.copy(tmp_path / "growing.root", tmp_path / "copy.root")
            try:
                table, *_ = read(tmp_path / "copy.root")
            except CalorefineError:
                lengths.append(0)
            else:
                assert np.array_equal(table["x"], arrays["x"][:first])
                lengths.append(len(table["x"]))
            tree.extend({name: array[first : first + 1000] for name, array in arrays.items()})
    assert lengths == [0, 1000, 2000]


@pytest.mark.parametrize("content", [b"", b"root", b"hello world" * 100, b"root" + bytes(500)])
def test_not_a_root_file(content, tmp_path):
    path = tmp_path / "text.root"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"text\.root: .*(not a readable ROOT file|truncated|never closed)"):
        read(path)


def test_missing_file_names_the_nearest(root_file, arrays, tmp_path):
    root_file(arrays, "electrons.root")
    with pytest.raises(FileError, match=r"electron\.root: no such file; did you mean '.*electrons\.root'"):
        read(tmp_path / "electron.root")


def test_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(FileError, match=r"is a folder, expected a file; did you mean '.*/\*\.root'"):
        read(tmp_path)


def test_glob_without_match_and_empty_list(tmp_path):
    with pytest.raises(FileError, match=r"\*\.root: no such file"):
        read(tmp_path / "*.root")
    with pytest.raises(FileError, match="none given"):
        RootFiles([], "events")


def test_wrong_tree_name(root_file, arrays, tree_format):
    path = root_file(arrays, tree="DecayTree", tree_format=tree_format)
    with pytest.raises(FileError, match=r"holds no tree 'decaytree'; did you mean 'DecayTree'.*found: DecayTree"):
        read(path, tree="decaytree")


def test_other_objects_under_the_trees_name(tmp_path):
    path = tmp_path / "objects.root"
    with uproot.recreate(path) as file:
        file["events"] = np.histogram(np.arange(10.0))
        file.mktree("folder/tree", {"x": "f8"})
    with pytest.raises(FileError, match=r"'events' is a TH1D, not a tree; .*found: folder/tree"):
        read(path)
    with pytest.raises(FileError, match="'folder' is a TDirectory, not a tree; did you mean 'folder/tree'"):
        read(path, tree="folder")


def odd_branches(path, tree_format):
    """Jagged, text, fixed-size and, in the RNTuple, record branches beside a number."""
    jagged, fixed = ak.Array([[1.0, 2.0]] * 5 + [[]] * 5), np.zeros((10, 3))
    text, number = ak.Array(["ab"] * 10), np.arange(10)
    with uproot.recreate(path) as file:
        if tree_format == "ttree":
            tree = file.mktree("events", {"jet": "var * float64", "fixed": ("f8", (3,)), "ok": "i8", "text": "string"})
            tree.extend({"jet": jagged, "fixed": fixed, "ok": number, "text": text})
        else:
            record = ak.Array([{"a": 1.0, "b": 2}] * 10)
            content = {"jet": jagged, "fixed": ak.Array(fixed), "ok": number, "text": text, "record": record}
            file.mkrntuple("events", ak.Array(content))
    return path


KINDS = {"jet": r"(double\[\]|vector<double>)", "text": r"(char\*|string)", "fixed": "double"}
USES = [(name, use) for name in KINDS for use in ("expression", "pass-through", "key", "cut")]
USES.remove(("fixed", "pass-through"))


@pytest.mark.parametrize(("name", "use"), USES)
def test_jagged_and_text_branches(tree_format, tmp_path, name, use):
    path = odd_branches(tmp_path / "odd.root", tree_format)
    request = {
        "expression": Request({"v": f"{name} * 2"}, key=["ok"]),
        "pass-through": Request({"ok": "ok"}, branches=[name], key=["ok"]),
        "key": Request({"ok": "ok"}, key=[name]),
        "cut": Request({"ok": "ok"}, key=["ok"], cut=f"{name} > 1"),
    }[use]
    with pytest.raises(
        BranchError, match=rf"odd\.root, tree 'events': branch '{name}' is of type .*{KINDS[name]}.*one number"
    ):
        read(path, request)


def test_fixed_size_arrays_are_passed_through(tree_format, tmp_path):
    source = RootFiles(str(odd_branches(tmp_path / "odd.root", tree_format)), "events")
    assert set(source.branch_names("number", "array")) - set(source.branch_names("number")) == {"fixed"}
    chunks = list(source.chunks(Request({"v": "ok"}, key=["ok"], cut="ok > 1", branches=["fixed"]), rows=4))
    assert [chunk.branches["fixed"].shape for chunk in chunks] == [(2, 3), (4, 3), (2, 3)]


@pytest.mark.parametrize("name", ["record", "record.a"])
def test_record_branches(tmp_path, name):
    path = odd_branches(tmp_path / "odd.root", "rntuple")
    with pytest.raises(BranchError, match=rf"branch '{name}' is of type .*expected one number per event"):
        read(path, Request({"ok": "ok"}, key=["ok"], branches=[name]))


def test_missing_branch_names_file_tree_and_nearest(root_file, arrays, tree_format):
    path = root_file(arrays, tree_format=tree_format)
    there = r"events\.root, tree 'events': there is no branch"
    with pytest.raises(BranchError, match=rf"{there} 'X'; did you mean 'x'\? \(asked for by column 'a', the cut\)"):
        read(path, Request({"a": "X + 1"}, key=["event"], cut="X > 0"))
    with pytest.raises(BranchError, match=rf"{there} 'Event'; did you mean 'event'\? \(asked for by the key\)"):
        read(path, Request({"x": "x"}, key=["Event"]))
    with pytest.raises(BranchError, match=rf"{there} 'X'; did you mean 'x'\? \(asked for by column 'a'\)"):
        read(path, Request({"a": "max(X[0], 1)"}, key=["event"]))


def test_branch_missing_in_second_file(root_file, arrays, tree_format, tmp_path):
    root_file(arrays, "a.root", tree_format=tree_format)
    root_file({"event": arrays["event"], "x_": arrays["x"]}, "b.root", tree_format=tree_format)
    with pytest.raises(BranchError, match=r"b\.root, tree 'events': there is no branch 'x'; did you mean 'x_'"):
        read(tmp_path / "*.root")


def test_nonfinite_values_of_all_files_are_counted(root_file, arrays, tmp_path):
    for name, bad in (("a.root", [np.nan]), ("b.root", [np.inf, -np.inf])):
        values = arrays["x"].copy()
        values[: len(bad)] = bad
        root_file({**arrays, "event": arrays["event"] + 5000 * (name == "b.root"), "x": values}, name)
    with pytest.raises(ValueRangeError, match=r"in 3 rows \(x: 3\)"):
        read(tmp_path / "*.root")
