"""Alternatives that are trainings of their own, beside trainings of the nominal model with other seeds."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine.systematics import ObservableBins, assemble

BINS = {"x": ObservableBins(np.arange(5.0), counts=False)}


def trainings(rng, n, shift=0.0):
    """Values of four bins under n trainings, of standard deviation 1."""
    return 100 + shift + rng.normal(size=(n, 4))


@pytest.mark.parametrize("m", [1, 3, 5])
def test_the_same_model_as_an_alternative_adds_nearly_nothing(m):
    """Seed 3, 400 toys, 8 seeds: the added error is 0.07 of the training's, expected below 0.3.

    One toy in 300 adds something, about the training's variance; it would take 25 of 400, far below one chance in 1000.
    """
    rng, added = np.random.default_rng(3), []
    for _ in range(400):
        (nominal,), rows = trainings(rng, 1), {"spectator": trainings(rng, m)}
        found = assemble(nominal, BINS, calibration=trainings(rng, 20), training=trainings(rng, 8), alternatives=rows)
        added.append(np.diag(found.covariance("spectator")).mean())
    assert np.sqrt(np.mean(added)) < 0.3


def test_a_difference_beyond_the_seeds_counts_less_their_noise():
    """Seed 1: 20 training errors; the deviation is known to 1.1 of them, 5 of those are one chance in 10^6."""
    rng = np.random.default_rng(1)
    (nominal,), seeds, rows = trainings(rng, 1), trainings(rng, 10), trainings(rng, 1, shift=20.0)
    found = assemble(nominal, BINS, training=seeds, calibration=seeds, alternatives={"spectator": rows})
    deviation = rows[0] - np.vstack([nominal, seeds]).mean(axis=0)
    assert np.all(found.errors("spectator") < deviation)
    np.testing.assert_allclose(found.errors("spectator"), 20, atol=5.5)
    assert "alternative 1 of 'spectator': differs by more than other seeds do in x (p " in found.notes[-1]


def test_what_few_seeds_cannot_tell_counts_in_full():
    rng = np.random.default_rng(2)
    (nominal,), seeds, rows = trainings(rng, 1), trainings(rng, 2), trainings(rng, 1)
    found = assemble(nominal, BINS, training=seeds, calibration=seeds, alternatives={"spectator": rows})
    np.testing.assert_allclose(found.errors("spectator"), np.abs(rows[0] - nominal))
    assert "2 trainings with other seeds can't tell them" in found.notes[-1]
    without = assemble(
        nominal, BINS, training=trainings(rng, 9), calibration=seeds, alternatives={"a": rows}, retrained=()
    )
    np.testing.assert_allclose(without.errors("a"), np.abs(rows[0] - nominal))


def test_where_seeds_change_nothing_any_difference_is_one():
    rng = np.random.default_rng(3)
    seeds, nominal = trainings(rng, 8), np.full(4, 100.0)
    seeds[:, 3] = 100.0
    with pytest.warns(UserWarning, match="without any uncertainty"):
        found = assemble(nominal, BINS, calibration=seeds, training=seeds, alternatives={"a": [100, 100, 100, 101.0]})
    np.testing.assert_allclose(found.errors("a"), [0, 0, 0, 1])
