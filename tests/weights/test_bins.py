"""ContextBins of context: each event in the bin that its edges say, and errors that name the column."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calorefine.errors import BranchError, ConfigError, ValueRangeError
from calorefine.weights.bins import ContextBins

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
numbers = st.integers(-6, 6).map(float)
edge_lists = st.lists(numbers, min_size=2, max_size=5, unique=True).map(sorted)
"""Small integers, so that values often lie on an edge."""


def naive(edges, values):
    """Bin of one event, by its definition; -1 outside."""
    number = 0
    for column, value in zip(edges, values, strict=True):
        found = -1
        for index, (low, high) in enumerate(pairwise(column)):
            if low <= value < high or (value == high == column[-1]):
                found = index
        if found < 0:
            return -1
        number = number * (len(column) - 1) + found
    return number


@PROPERTY
@given(st.data())
def test_index_is_that_of_a_loop(data):
    edges = data.draw(st.lists(edge_lists, min_size=0, max_size=3))
    values = data.draw(st.lists(st.tuples(*[numbers for _ in edges]), max_size=20))
    bins = ContextBins({f"c{i}": column for i, column in enumerate(edges)})
    table = {f"c{i}": np.array([value[i] for value in values]) for i in range(len(edges))}
    found = bins.index(table, len(values))
    assert found.dtype == np.int64
    assert found.tolist() == [naive(edges, value) for value in values]
    assert len(bins) == len(bins.labels) == np.prod([len(column) - 1 for column in edges], dtype=int)


def test_bins_are_closed_on_the_left_and_the_last_on_both_sides():
    values = np.array([-np.inf, -0.1, 0, 0.9, 1, 2.9, 3, 3.1, np.inf])
    assert ContextBins({"p": [0, 1, 3]}).index({"p": values}, 9).tolist() == [-1, -1, 0, 0, 1, 1, 1, -1, -1]
    assert ContextBins({"p": [-np.inf, 1, np.inf]}).index({"p": values}, 9).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_last_column_runs_fastest_in_index_and_labels():
    bins = ContextBins({"p": [0, 1, 2], "eta": [-1, 0, 1, 2.5]})
    table = {"p": np.array([0.5, 0.5, 1.5, 1.5]), "eta": np.array([-0.5, 0.5, -0.5, 2.5])}
    assert bins.index(table, 4).tolist() == [0, 1, 3, 5]
    assert bins.labels[1] == "0 <= p < 1, 0 <= eta < 1"
    assert bins.labels[5] == "1 <= p <= 2, 1 <= eta <= 2.5"
    assert bins.branches == {"p": "p", "eta": "eta"}


def test_without_columns_there_is_one_bin_of_everything():
    bins = ContextBins()
    assert (len(bins), bins.labels, bins.branches) == (1, ["all events"], {})
    assert bins.index({}, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("edges", [[], [1.0], [1.0, 1.0], [2.0, 1.0], [0.0, np.nan]])
def test_edges_must_increase(edges):
    with pytest.raises(ConfigError, match=r"in_bins_of p: edges \[.*\] found, expected two or more, increasing"):
        ContextBins({"p": edges})


def test_missing_columns_and_values_are_named():
    with pytest.raises(BranchError, match=r"in_bins_of: 'p_gev' is not among P_GeV, x; did you mean 'P_GeV'"):
        ContextBins({"p_gev": [0, 1]}).index({"P_GeV": np.ones(2), "x": np.ones(2)}, 2)
    with pytest.raises(ValueRangeError, match="in_bins_of p: 1 of 2 values are NaN"):
        ContextBins({"p": [0, 1]}).index({"p": np.array([0.5, np.nan])}, 2)
