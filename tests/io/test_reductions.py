"""Reductions of lists: what they come to, and what is refused."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
import uproot

from calorefine.errors import BranchError, ExpressionError, ValueRangeError
from calorefine.io import expressions
from calorefine.io.chunks import Request
from calorefine.io.reductions import branches, condition, evaluate
from calorefine.io.root import RootFiles

JETS = [[30.0, 10.0], [], [50.0]]
TABLE = {
    "pt": ak.Array(JETS),
    "b": ak.Array([[1, 0], [], [1]]),
    "x": np.array([1.0, 2.0, 3.0]),
    "cells": np.arange(6, dtype=np.float32).reshape(3, 2),
    "mu": ak.Array([[1.0], [], [2.0]]),
    "holes": ak.Array([[1.0, np.nan], [2.0], []]),
}
NAN = np.nan


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sum(pt)", [40, 0, 50]),
        ("sum(pt, pt > 20)", [30, 0, 50]),
        ("sum (pt**2, b) / x", [900, 0, 2500 / 3]),
        ("count(pt > 5 && b)", [1, 0, 1]),
        ("count(b)", [1, 0, 1]),
        ("count(True, pt > 20)", [1, 0, 1]),
        ("max(pt)", [30, NAN, 50]),
        ("min(pt)", [10, NAN, 50]),
        ("mean(pt)", [20, NAN, 50]),
        ("first(pt)", [30, NAN, 50]),
        ("first(pt, pt < 20, -1)", [10, -1, -1]),
        ("max(pt, True, x + 1)", [30, 3, 50]),
        ("max(pt, pt > 40, max(pt, True, 0))", [30, 0, 50]),
        ("mean(cells)", [0.5, 2.5, 4.5]),
        ("sum(pt * x, pt < max(pt)) / x", [10, 0, 0]),
        ("sum(pt - mean(pt))", [0, 0, 0]),
        ("max(holes)", [NAN, 2, NAN]),
        ("min(holes, holes < 5)", [1, 2, NAN]),
        ("sum(holes)", [NAN, 2, 0]),
        ("where(count(pt > 0) > 0, sum(pt), -1)", [40, -1, 50]),
        ("3", [3, 3, 3]),
        ("max(x, 2)", [2, 2, 3]),
        ("min(x, 4 - x, sum(cells))", [1, 2, 1]),
        ("max(sum(pt), -x) + min(x, 2)", [41, 2, 52]),
        ("max(pt) > 20 ? sum(pt) : min(x, 0)", [40, 0, 50]),
        ("max(x / (x - 1), 2 * x - x)", [np.inf, 2, 3]),
    ],
)
def test_numbers(text, expected):
    found = evaluate(text, TABLE, 3)
    assert found.dtype.kind == "f"
    np.testing.assert_allclose(found, np.array(expected, float), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("any(pt > 20)", [True, False, True]),
        ("all(pt > 20)", [False, True, True]),
        ("all(pt > 20, b)", [True, True, True]),
        ("!any(b) || x > 2", [False, True, True]),
        ("max(pt) > 20 && x", [True, False, True]),
        ("count(pt > 0)", [True, False, True]),
    ],
)
def test_conditions(text, expected):
    assert condition(text, TABLE, 3).tolist() == expected


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("pt + 1", BranchError, r"'pt' holds a list .*reduce it, as in sum\(pt\)"),
        ("sum(pt) + cells", BranchError, "'cells' holds a list"),
        ("sum(x)", BranchError, r"'sum\(x\)': no branch in it holds a list"),
        ("sum(pt, mu > 0)", BranchError, "'pt' and 'mu' have 2 and 1 elements in an event .1 of 3 differ"),
        ("sum(pts)", BranchError, "'pts', which isn't there; did you mean 'pt'"),
        ("sum(pt) + xx", BranchError, "'xx', which isn't there"),
        ("max(pt, 0)", ExpressionError, r"selects elements, expected a condition; .* write max\(..., True, 0\)"),
        ("max(pt, -1)", ExpressionError, r"write max\(..., True, -1\)"),
        ("sun(pt) + sum(pt)", ExpressionError, "no function 'sun'; did you mean 'sum'"),
        ("sum()", ExpressionError, r"expected sum\(expression\[, condition on elements\]\)"),
        ("count(pt > 1, True, 0)", ExpressionError, r"expected count\(condition\[, condition on elements\]\)"),
        ("sum(pt).real", ExpressionError, r"'sum\(pt\)\.real' is not understood"),
        ("sum(pt, axis=0)", ExpressionError, "expected sum"),
        ("sum(*pt)", ExpressionError, "can't be parsed"),
        ("sum(__import__('os').system('touch x'))", ExpressionError, "is not understood|no function"),
        ("sum(pt[i])", ExpressionError, "is not understood"),
        ("sum(pt", ExpressionError, "can't be parsed"),
        ("sum(pt) + " + "-" * 100_000 + "x", ExpressionError, "can't be parsed"),
        ("sum(pt) & 1", ExpressionError, r"'sum\(pt\)' is of type float64, expected integers"),
    ],
)
def test_refused(text, error, message):
    with pytest.raises(error, match=message):
        evaluate(text, TABLE, 3)


def test_nan_is_no_condition():
    with pytest.raises(ValueRangeError, match=r"'count\(holes\)'|'holes': the condition is NaN 1 times"):
        evaluate("count(holes)", TABLE, 3)
    with pytest.raises(ValueRangeError, match="the condition is NaN 1 times"):
        condition("max(pt)", TABLE, 3)


def test_branches():
    assert branches("sum(pt, pt > cut) / p_gev + max(e, e > min(f), fall)") == ("p_gev", "pt", "cut", "e", "f", "fall")
    assert branches("x > 1") == expressions.plain_branches("x > 1") == ("x",)


def test_no_rows():
    empty = {name: array[:0] for name, array in TABLE.items()}
    assert evaluate("sum(pt, pt > max(pt)) + x", empty, 0).shape == (0,)


@pytest.mark.parametrize("kind", ["float32", "int32", "bool"])
def test_lists_are_read_in_chunks(tmp_path, tree_format, kind):
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4, 500)
    lists = ak.unflatten(rng.integers(0, 2, counts.sum()).astype(kind), counts)
    path = tmp_path / "lists.root"
    write_lists(path, {"jets": lists, "x": np.arange(500.0)}, tree_format)
    parts = [table for _, table, _ in RootFiles(path, "events").tables({"x": "number", "jets": "list"}, 130)]
    assert len(parts) == 4
    assert ak.to_list(ak.concatenate([part["jets"] for part in parts])) == ak.to_list(lists)
    assert np.array_equal(np.concatenate([part["x"] for part in parts]), np.arange(500.0))
    with pytest.raises(BranchError, match=r"'jets' is of type .*expected one number per event"):
        list(RootFiles(path, "events").tables({"jets": "number"}, 130))


def write_lists(path, arrays, tree_format):
    """Write a tree with lists."""
    types = {
        name: np.dtype((array.dtype, array.shape[1:]))
        if isinstance(array, np.ndarray)
        else f"var * {ak.to_numpy(ak.flatten(array)).dtype}"
        for name, array in arrays.items()
    }
    with uproot.recreate(path) as file:
        if tree_format == "rntuple":
            types = {name: ak.types.from_datashape(kind, highlevel=False) if isinstance(kind, str) else kind
                     for name, kind in types.items()}  # fmt: skip
        make = file.mktree if tree_format == "ttree" else file.mkrntuple
        make("events", types).extend(arrays)


def test_members_of_records_are_told_as_such(tmp_path):
    """An RNTuple tells the type of one element, as if there were one for each event."""
    with uproot.recreate(tmp_path / "members.root") as file:
        tracks = ak.zip({"pt": ak.Array([[1.0, 2.0], [], [3.0]])})
        file.mkrntuple("events", {"trk": tracks, "x": np.arange(3.0)})
    with pytest.raises(
        BranchError, match=r"branch 'trk\.pt' is of type double inside of 'trk', expected one number per event"
    ):
        list(RootFiles(str(tmp_path / "members.root"), "events").chunks(Request({"a": "`trk.pt`", "x": "x"})))
