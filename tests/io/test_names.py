"""Branches by any name, and of the types that only ROOT writes: the exact name wins, back-quotes enclose any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import uproot

from calorefine import Column, Columns, EventDataModule
from calorefine.errors import BranchError, ConfigError, ExpressionError
from calorefine.io.chunks import Request
from calorefine.io.root import RootFiles
from calorefine.io.sample import WeightedFiles
from calorefine.observables.reading import Weights, chunks

E, P = np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])
ODD = {
    "E/p": np.array([11.0, 12.0, 13.0]),
    "K-pt": np.array([21.0, 22.0, 23.0]),
    "B.pt": np.array([31.0, 32.0, 33.0]),
    "sw_B0->Kpi": np.array([0.5, -0.1, 0.6]),
    "\N{MICRO SIGN}_pt": np.array([41.0, 42.0, 43.0]),
    "\N{GREEK SMALL LETTER MU}_pt": np.array([51.0, 52.0, 53.0]),
    "2x": np.array([61.0, 62.0, 63.0]),
    "a:b": np.array([71.0, 72.0, 73.0]),
    "lambda": np.array([81.0, 82.0, 83.0]),
    "a!=b && c": np.array([91.0, 92.0, 93.0]),
    "v__entry1": np.array([101.0, 102.0, 103.0]),
}
KINDS = Path(__file__).with_name("kinds.root")
ROW = np.arange(5.0)


@pytest.fixture
def odd(root_file):
    """A TTree: fields of an RNTuple can't have names with dots and slashes."""
    return RootFiles(root_file({"E": E, "p": P, "K": E, "pt": P} | ODD), "events")


def read(source, *texts, **options):
    (chunk,) = source.chunks(Request({text: text for text in texts}, **options))
    return chunk.values


@pytest.mark.parametrize("name", ODD)
def test_back_quotes_name_any_branch(odd, name):
    values = read(odd, f"`{name}`", f"2 * `{name}` + p", f"where(`{name}` > 0, `{name}`, 0)")
    for value, expected in zip(values.values(), (ODD[name], 2 * ODD[name] + P, np.maximum(ODD[name], 0)), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("name", ODD)
def test_exact_name_wins(odd, name):
    """Alone, with a conversion of units, as a weight, and in an observable."""
    np.testing.assert_array_equal(read(odd, name)[name], ODD[name])
    converted = Columns({"x": Column(name, unit="GeV", branch_unit="MeV")}, {}).expressions("features")["x"]
    np.testing.assert_allclose(read(odd, converted)[converted], ODD[name] / 1000, rtol=1e-12)
    sample = WeightedFiles([str(path) for path in odd.paths], "events", name)
    np.testing.assert_array_equal(sample.rows(sample.request(None, {"E": "E"})).weight, ODD[name])
    (chunk,) = chunks(odd, [f"`{name}`"], 10)
    np.testing.assert_array_equal(chunk.number(f"`{name}`"), ODD[name])


def test_exact_name_wins_in_observables(odd):
    (chunk,) = chunks(odd, ["E/p", "K-pt"], 10)
    np.testing.assert_array_equal(chunk.number("E/p"), ODD["E/p"])
    np.testing.assert_array_equal(chunk.weights([Weights("K-pt")])[:, 0], ODD["K-pt"])


def test_expressions_of_plain_branches_stay(odd):
    np.testing.assert_array_equal(read(odd, "1 * E/p")["1 * E/p"], E / P)


def test_messages_show_names_as_written(odd):
    with pytest.raises(BranchError, match=r"there is no branch 'B\.p_t'; did you mean 'B\.pt'"):
        read(odd, "`B.p_t` + 1")
    with pytest.raises(BranchError, match=r"there is no branch 'cov'"):
        read(odd, "cov[1] + 1")
    with pytest.raises(ExpressionError, match="can't be evaluated") as error:
        read(odd, "`B.pt` + abs(`K-pt`, 1)")
    assert "branch_" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(E & 4) != 0", r"branch 'E' is of type float\d+, expected integers"),
        ("E[-1]", r"'E\[-1\]' asks for an entry, but branch 'E' is one number"),
        ("E[1][2]", r"'E\[1\]\[2\]' asks for an entry, but branch 'E' is one number"),
        ("max(E, p > 1)", r"expected one beside a condition, or two numbers"),
    ],
)
def test_habits_that_are_not_understood_get_a_remedy(root_file, text, message):
    source = RootFiles(root_file({"E": E, "p": P}), "events")
    with pytest.raises((ExpressionError, BranchError), match=message):
        read(source, text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("E/p", r"feature 'E/p': .*read as an expression.*E_p: \{expression: \"`E/p`\"\}"),
        ("K-pt", r"K_pt: \{expression: \"`K-pt`\"\}"),
        ("in_domain", r"feature 'in_domain': .*`sample` writes"),
        ("copy", r"feature 'copy': .*`sample` writes"),
    ],
)
def test_feature_that_cannot_be_read_back_is_refused(odd, name, message):
    columns = Columns({name: None}, {"p": None})
    with pytest.raises(ConfigError, match=message):
        EventDataModule(files=[str(path) for path in odd.paths], tree="events", columns=columns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pos.x", ROW),
        ("pos.y", 10 * ROW),
        ("mixed.e", ROW / 2),
        ("mixed.n", -ROW),
        ("f16", ROW),
        ("pair/first", ROW),
        ("pair/second", 2 * ROW),
        ("p4./fE", 10 * ROW),
        ("p4./fP/fY", 2 * ROW),
        ("`pos.x` + `pair/second`", 3 * ROW),
        ("`pos.y` > 15", ROW > 1),
    ],
)
def test_leaf_lists_and_split_objects_by_full_path(text, expected):
    np.testing.assert_array_equal(read(RootFiles(KINDS, "events"), text)[text], expected)


def test_packed_numbers():
    """Double32_t of 16 bits in [0, 10] has steps of 1.5e-4."""
    np.testing.assert_allclose(read(RootFiles(KINDS, "events"), "d32")["d32"], ROW + 0.5, atol=1.6e-4)


def test_ntuple():
    np.testing.assert_array_equal(read(RootFiles(KINDS, "ntuple"), "b - a")["b - a"], ROW)


@pytest.mark.parametrize("name", ["pos", "mixed", "pair", "unsplit", "p4."])
def test_structs_are_refused_by_type(name):
    with pytest.raises(BranchError, match=rf"branch '{name}' is of type .*expected one number per event"):
        read(RootFiles(KINDS, "events"), name)


def test_each_basket_is_read_once(tmp_path, monkeypatch, tree_format):
    """One basket of 1000 rows, and baskets of 300, in steps of 70 rows: as many rows are read as there are."""
    count = []
    for k, sizes in enumerate(([1000], [300, 300, 300, 100])):
        with uproot.recreate(tmp_path / f"{k}.root") as file:
            tree = (file.mktree if tree_format == "ttree" else file.mkrntuple)("events", {"x": "f8"})
            for first in np.cumsum([0, *sizes[:-1]]):
                tree.extend({"x": np.arange(first, min(first + 300 if len(sizes) > 1 else 1000, 1000), dtype="f8")})
    kind = uproot.TBranch if tree_format == "ttree" else uproot.models.RNTuple.RField
    array = kind.array

    def counted(self, *args, **options):
        out = array(self, *args, **options)
        count.append(len(out))
        return out

    monkeypatch.setattr(kind, "array", counted)
    for k in range(2):
        count.clear()
        source = RootFiles(tmp_path / f"{k}.root", "events")
        values = [chunk.values["x"] for chunk in source.chunks(Request({"x": "x"}), rows=70)]
        np.testing.assert_array_equal(np.concatenate(values), np.arange(1000))
        assert sum(count) == 1000
        assert len(count) == (1 if k == 0 else 4)
