"""ROOT files whose parts contradict each other are refused; their lists would end the process in awkward."""

from __future__ import annotations

import json

import awkward as ak
import numpy as np
import pytest
import uproot

from calorefine.errors import ConfigError, FileError
from calorefine.io.chunks import Request
from calorefine.io.formats import open_source
from calorefine.io.provenance import PROVENANCE, read_provenance
from calorefine.io.sample import WeightedFiles

COUNTS = np.array([2, 0, 3, 1])
JETS = ak.unflatten(np.arange(6, dtype=np.float32), COUNTS)


def written(path, *, tree_format="ttree"):
    with uproot.recreate(path, compression=None) as file:
        make = file.mktree if tree_format == "ttree" else file.mkrntuple
        tree = make("events", {"jet": JETS.type.content, "x": np.float64})
        tree.extend({"jet": JETS, "x": np.array([4.25, 5.25, 6.25, 7.25])})
    return path


def replaced(path, old, new, *, last=False):
    whole = path.read_bytes()
    at = whole.rindex(old) if last else whole.index(old)
    path.write_bytes(whole[:at] + new + whole[at + len(old) :])


def summed(path):
    return list(open_source(str(path), "events").chunks(Request({"sum": "sum(jet)"})))


@pytest.mark.parametrize("at", range(4))
def test_lists_that_end_elsewhere(tmp_path, tree_format, at):
    path = written(tmp_path / "lists.root", tree_format=tree_format)
    ends = np.cumsum(COUNTS)
    if tree_format == "ttree":  # offsets in bytes from the key of the basket
        with uproot.open(path) as file:
            basket = file["events"]["jet"].basket(0)
            starts = (basket.byte_offsets + basket.member("fKeylen", none_if_missing=True)).astype(">i4")
        damaged = starts.copy()
        damaged[at + (at == 0)] = 100_000
        replaced(path, starts[:-1].tobytes(), damaged[:-1].tobytes(), last=True)
    else:
        damaged = ends.copy()
        damaged[at] = 100_000
        replaced(path, ends.astype("<u8").tobytes(), damaged.astype("<u8").tobytes())
    with pytest.raises(FileError, match=r"lists\.root.*truncated or damaged"):
        summed(path)


def in_tree(path, old, new):
    """Replace what the tree says of itself."""
    with uproot.open(path) as file:
        start = file.key("events").fSeekKey
    whole = path.read_bytes()
    at = whole.index(old, start)
    path.write_bytes(whole[:at] + new + whole[at + len(old) :])


def test_a_branch_with_other_rows_than_its_tree(tmp_path):
    path = written(tmp_path / "rows.root")
    in_tree(path, (4).to_bytes(8, "big"), (3).to_bytes(8, "big"))
    with pytest.raises(FileError, match="branch 'jet' has 4 entries, expected 3 as the tree"):
        summed(path)


def test_list_of_pages_that_differs_from_its_checksum(tmp_path):
    path = written(tmp_path / "pages.root", tree_format="rntuple")
    with uproot.open(path) as file:
        locator = file["events"].footer.cluster_group_records[0].page_list_link.locator
    whole = bytearray(path.read_bytes())
    whole[locator.offset + locator.num_bytes // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(FileError, match=r"pages\.root: tree 'events'.*truncated or damaged"):
        summed(path)


def test_class_of_a_leaf_that_nobody_knows(tmp_path):
    path = written(tmp_path / "leaf.root")
    in_tree(path, b"TLeafD\0", b"T*eafD\0")
    with pytest.raises(FileError, match=r"leaf\.root.*truncated or damaged"):
        open_source(str(path), "events").branch_names()


def told(path, text):
    with uproot.recreate(path) as file:
        file["events"] = {"x": np.arange(3.0)}
        file[PROVENANCE] = text
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", r"provenance: \[1\] found, where entries by name belong"),
        ("null", "provenance: None found, where entries by name belong"),
        ('{"seed": "a"}', "provenance.seed: 'a' found, where int belongs"),
        ('{"n_per_event": 1.5}', "provenance.n_per_event: 1.5 found, where int belongs"),
        ('{"training": []}', r"provenance.training: \[\] found, where entries by name belong"),
        ('{"training": {"n_eff": "many"}}', "provenance.training.n_eff: 'many' found, where float or int belongs"),
        ('{"columns": {"key": "event"}}', "provenance.columns.key: 'event' found, where a list belongs"),
        ('{"options": null}', "provenance.options: None found, where entries by name belong"),
        ('{"n_per_event": null}', "provenance.n_per_event: None found, where int belongs"),
        ('{"earlier": [3]}', r"provenance.earlier\[0\]: 3 found"),
        ('{"verb": "sample"}', "a verb without its options"),
    ],
)
def test_provenances_of_other_kinds(tmp_path, text, message):
    with pytest.raises(FileError, match=rf"told\.root: .*{message}"):
        read_provenance(told(tmp_path / "told.root", text))


def test_columns_of_a_provenance_that_cannot_be(tmp_path):
    path = told(tmp_path / "told.root", json.dumps({"columns": {"features": {"x": {"unit": 3}}, "context": {}}}))
    with pytest.raises(ConfigError, match=r"told\.root, tree 'events': its provenance names columns that can't be"):
        _ = WeightedFiles(str(path), "events").columns
