"""Atoms set apart from the other values of their columns, and put back."""

import numpy as np
import pytest
import torch

from calorefine import Column
from calorefine.data.column_transforms import ColumnTransforms

N = 20_000
COLUMNS = {
    "zero": Column(bounds=(0, None)),
    "plain": Column(),
    "two": Column(),
    "count": Column(transform="integer"),
    "inner": Column(),
    "cells": Column(shape=[2], bounds=(0, None)),
}
ATOMS = [0.0, None, -1.0, None, 0.5, 0.0, 3.0]


def events():
    """Seed 60: an exact zero, no atom, two atoms, a count, an atom in the middle, and cells, one of them dead."""
    rng = np.random.default_rng(60)
    g = rng.normal(size=N)
    zero = np.where(g + rng.normal(size=N) < -0.6, 0, rng.gamma(2, 1, N))
    inner = np.where(rng.random(N) < 0.3, 0.5, rng.normal(size=N))
    hits = np.where(rng.random(N) < 0.95, 0, rng.exponential(1, N))
    two = np.clip(g + rng.normal(size=N), -1, 2)
    return np.stack([zero, g, two, rng.poisson(2, N), inner, hits, np.full(N, 3.0)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def x():
    return events()


@pytest.fixture(scope="module")
def fitted(x):
    return ColumnTransforms().fit_described(x, np.ones(N), COLUMNS)


@pytest.fixture(scope="module")
def parts(fitted, x):
    u = fitted(torch.from_numpy(x))
    return fitted.parts(fitted.dequantize(u, torch.Generator().manual_seed(0)))


def test_the_largest_atom_of_each_column_is_masked(fitted, parts, x):
    assert fitted.maskable.tolist() == [atom is not None for atom in ATOMS]
    for column, atom in enumerate(ATOMS):
        expected = x[:, column] == atom if atom is not None else np.zeros(N, bool)
        np.testing.assert_array_equal(parts.masked[:, column].numpy(), expected)


def test_other_values_are_normal_and_leave_no_gap(parts):
    """Distances from the standard normal law, KS: atoms end at a knot, which tells their share to 0.02 or, of the hits
    of a cell, to a tenth of these.
    """
    for column, limit in enumerate([0.04, 0.01, 0.04, 0.01, 0.04, 0.15]):
        y = np.sort(parts.y[:, column][~parts.masked[:, column]].numpy())
        level = torch.special.ndtr(torch.from_numpy(y)).numpy()
        assert np.abs(level - (np.arange(len(y)) + 0.5) / len(y)).max() < limit


def test_parts_make_the_event(fitted, parts, x):
    """Exactly so at atoms and integers, and elsewhere to the 1e-4 of z that keep values off an atom."""
    again = fitted.inverse(fitted.joined(parts.y, parts.masked)).numpy()
    np.testing.assert_allclose(again, x, atol=1e-3)
    masked = parts.masked.numpy()
    np.testing.assert_array_equal(again[masked], x[masked])
    np.testing.assert_array_equal(again[:, 3], x[:, 3])


def test_values_are_at_the_atom_where_they_are_masked_and_nowhere_else(fitted):
    """Seed 61, values out to 5 widths."""
    y = 1.2 * torch.randn(N, 7, generator=torch.Generator().manual_seed(61))
    masked = torch.rand(N, 7, generator=torch.Generator().manual_seed(62)) < 0.5
    made = fitted.inverse(fitted.joined(y, masked)).numpy()
    assert np.isfinite(made).all()
    for column, atom in enumerate(ATOMS[:6]):
        if atom is not None:
            np.testing.assert_array_equal(made[:, column] == atom, masked[:, column].numpy())
    assert (made[:, 6] == 3).all()
    assert ((made[:, [0, 5]] >= 0) & (made[:, [0, 5]] < np.inf)).all()
