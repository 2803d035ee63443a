"""Observables of showers against numbers computed by hand, loops over cells, and mirror images."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from calorefine import shower_observables
from calorefine.errors import ConfigError, EmptySelectionError, ValueRangeError, WeightError
from calorefine.geometry import Geometry, Layer, segmented
from calorefine.shower_observables import evaluate, lateral_profile, layer_energies, longitudinal_profile, names, table

SMALL = segmented([(1, 4), (2, 3)], (120.0, 120.0), 0.1)  # eta: -45 -15 15 45; -40 0 40, phi -30 and 30
BY_HAND = np.array([[0.0, 3.0, 1.0, 0.09, 2.0, 0.0, 0.0, 1.0, 0.0, 1.0]])


def sparse_showers(n, geometry, seed=0, density=0.3):
    rng = np.random.default_rng(seed)
    return rng.exponential(1.0, (n, geometry.n_cells)) * (rng.random((n, geometry.n_cells)) < density)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("e_tot", 8.0),
        ("response", 0.8),
        ("depth", 0.5),
        ("e_layer_0", 4.0),
        ("ec_eta_0", -7.5),
        ("width_eta_0", 30 * np.sqrt(3 / 16)),
        ("occupancy_0", 0.5),
        ("sparsity_0", 0.5),
        ("hottest_0", 0.75),
        ("second_0", 0.25),
        ("ec_eta_1", -20.0),
        ("ec_phi_1", 0.0),
        ("width_eta_1", np.sqrt((3 * 20**2 + 60**2) / 4)),
        ("width_phi_1", 30.0),
        ("sparsity_1", 0.5),
        ("hottest_1", 0.5),
        ("second_1", 0.25),
        ("five_1", 1.0),
    ],
)
def test_a_shower_by_hand(name, expected):
    assert evaluate(name, BY_HAND, SMALL, np.array([10.0])) == pytest.approx([expected], abs=1e-12)


def test_names_are_those_that_mean_something():
    unresolved = {"ec_phi_0", "width_phi_0", "five_0", "twenty_0", "twenty_1"}
    assert not unresolved & set(names(SMALL))
    assert {"ec_eta_0", "five_1", "width_phi_1", "response"} <= set(names(SMALL))
    single = Geometry((Layer.of_grid(12, (1, 1), (10.0, 10.0)),))
    assert names(single)[3:] == ["e_layer_12", "occupancy_12", "sparsity_12"]
    assert evaluate("depth", np.ones((1, 1)), single) == [12.0]


def test_all_agree_with_a_loop_over_cells(monkeypatch):
    monkeypatch.setattr(shower_observables, "_BLOCK", 100)
    geometry, n = segmented([(3, 10), (5, 5)], (200.0, 100.0), 0.5), 37
    cells, e_inc = sparse_showers(n, geometry, density=0.7), np.arange(1.0, n + 1)
    read = np.where(cells >= 0.5, cells, 0)
    for k in range(n):
        for layer, part in zip(geometry.layers, (read[k, :30], read[k, 30:]), strict=True):
            order = np.sort(part)[::-1]
            shares = {"hottest": order[0], "second": order[1], "five": order[:5].sum(), "twenty": order[:20].sum()}
            for name, energy in shares.items():
                found = evaluate(f"{name}_{layer.number}", cells, geometry, e_inc)[k]
                assert found == pytest.approx(energy / part.sum())
            for axis in ("eta", "phi"):
                where = getattr(layer, axis)
                center = np.average(where, weights=part)
                width = np.average((where - center) ** 2, weights=part) ** 0.5
                assert evaluate(f"ec_{axis}_{layer.number}", cells, geometry)[k] == pytest.approx(center)
                assert evaluate(f"width_{axis}_{layer.number}", cells, geometry)[k] == pytest.approx(width)
    np.testing.assert_allclose(evaluate("response", cells, geometry, e_inc), read.sum(1) / e_inc)
    np.testing.assert_allclose(layer_energies(cells, geometry), np.stack([read[:, :30].sum(1), read[:, 30:].sum(1)], 1))


@pytest.mark.parametrize(("axis", "flip"), [("eta", 2), ("phi", 1)])
def test_a_mirror_image_flips_the_center_alone(axis, flip):
    geometry = segmented([(4, 6)], (60.0, 60.0), 0.1)
    cells = sparse_showers(50, geometry, 1)
    mirrored = np.flip(cells.reshape(50, 4, 6), flip).reshape(50, 24)
    np.testing.assert_allclose(
        evaluate(f"ec_{axis}_0", mirrored, geometry), -evaluate(f"ec_{axis}_0", cells, geometry), atol=1e-12
    )
    for name in names(geometry):
        if name not in ("response", f"ec_{axis}_0"):
            np.testing.assert_allclose(
                evaluate(name, mirrored, geometry), evaluate(name, cells, geometry), rtol=1e-12, atol=1e-12
            )


def test_threshold_is_kept_at_equality_and_negative_cells_count_as_none():
    geometry = segmented([(1, 4)], (40.0, 40.0), 0.5)
    assert evaluate("e_tot", np.array([[0.5, 0.4999, -3.0, 1.0]]), geometry) == [1.5]
    assert evaluate("occupancy_0", np.array([[1.0, -1.0, 0.0, 2.0]]), segmented([(1, 4)], (40.0, 40.0))) == [0.5]


def test_an_empty_layer_is_finite():
    cells = np.zeros((2, 10))
    cells[1, 0] = 1.0
    values = dict(zip(names(SMALL), table(names(SMALL), cells, SMALL, np.ones(2)).T, strict=True))
    assert all(np.all(np.isfinite(column)) for column in values.values())
    assert {name for name, column in values.items() if column[0] != 0} == {"sparsity_0", "sparsity_1"}
    assert values["ec_eta_0"][1] == -45 and values["width_eta_0"][1] == 0 and values["hottest_0"][1] == 1
    assert evaluate("width_eta_1", np.zeros((0, 10)), SMALL).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_cells_that_are_no_numbers_are_refused(bad):
    cells = np.zeros((3, 10))
    cells[1, 5] = bad
    with pytest.raises(ValueRangeError, match="1 cells of layer 1"):
        evaluate("e_tot", cells, SMALL)
    with pytest.raises(ValueRangeError, match="layer 1"):
        evaluate("width_eta_1", cells, SMALL)


def test_errors_tell_what_is_right():
    with pytest.raises(ConfigError, match="did you mean 'width_eta_1'"):
        evaluate("widht_eta_1", BY_HAND, SMALL)
    with pytest.raises(ConfigError, match=r"layers \[0, 1\]"):
        evaluate("e_layer_7", BY_HAND, SMALL)
    with pytest.raises(ConfigError, match=r"expected \(n, 10\)"):
        evaluate("e_tot", BY_HAND[:, :9], SMALL)
    with pytest.raises(ConfigError, match="no incident energies"):
        evaluate("response", BY_HAND, SMALL)
    with pytest.raises(ValueRangeError, match="1 of 1 incident energies"):
        evaluate("response", BY_HAND, SMALL, np.array([0.0]))


def test_longitudinal_profile_by_hand_and_doubling_a_weight_is_repeating_the_shower():
    cells, weight = sparse_showers(40, SMALL, 2), np.random.default_rng(3).integers(0, 4, 40).astype(float)
    rows, index = np.repeat(cells, weight.astype(int), axis=0), np.repeat(np.arange(40), weight.astype(int))
    profile = longitudinal_profile(cells, SMALL, weight=weight)
    repeated = longitudinal_profile(
        rows, SMALL, weight=np.ones(len(rows)), event_key=np.arange(40, dtype=np.uint64)[index]
    )
    np.testing.assert_allclose(profile.mean_mev, layer_energies(rows, SMALL).mean(0))
    np.testing.assert_allclose(repeated.mean_mev, profile.mean_mev)
    np.testing.assert_allclose(repeated.error_mev, profile.error_mev, rtol=0.01)  # but for what is not seen
    np.testing.assert_allclose(longitudinal_profile(cells, SMALL, weight=7 * weight).error_mev, profile.error_mev)
    assert (profile.n, repeated.n) == (40, weight.sum())


def test_error_of_a_profile_is_the_spread_over_samples():
    """200 samples with signed weights: the spread is known to 5 %; 20 % fails by accident less than once in 1000."""
    means, errors = [], []
    for seed in range(200):
        weight = np.random.default_rng(1000 + seed).normal(1.0, 1.0, 100)
        profile = longitudinal_profile(sparse_showers(100, SMALL, seed), SMALL, weight=weight)
        means.append(profile.mean_mev)
        errors.append(profile.error_mev)
    np.testing.assert_allclose(np.mean(errors, 0), np.std(means, 0), rtol=0.2)


def test_lateral_profile():
    edges = np.array([-60.0, -30.0, 0.0, 30.0, 60.0])
    of = {"layer": 0, "axis": "eta", "edges_mm": edges, "weight": np.ones(1)}
    profile = lateral_profile(BY_HAND, SMALL, **of)
    np.testing.assert_allclose(profile.mean_mev, [0.0, 3.0, 1.0, 0.0])
    assert np.all(profile.error_mev > 0)
    moved = lateral_profile(BY_HAND, SMALL, **of, center_mm=np.array([30.0]))
    np.testing.assert_allclose(moved.mean_mev, [3.0, 1.0, 0.0, 0.0])
    cut = lateral_profile(BY_HAND, SMALL, **{**of, "edges_mm": edges[:3]})
    np.testing.assert_allclose(cut.mean_mev, [0.0, 3.0])


def test_profiles_refuse_what_they_cannot_use():
    with pytest.raises(EmptySelectionError, match="no cell of 2 showers"):
        longitudinal_profile(np.zeros((2, 10)), SMALL, weight=np.ones(2))
    with pytest.raises(WeightError, match=r"expected \(1,\)"):
        longitudinal_profile(BY_HAND, SMALL, weight=np.ones(2))
    with pytest.raises(ConfigError, match="axis 'r'"):
        lateral_profile(BY_HAND, SMALL, layer=0, axis="r", edges_mm=np.arange(3.0), weight=np.ones(1))


def test_showers_of_many_cells_are_not_copied():
    geometry = segmented([(50, 18)] * 45, (180.0, 500.0), 0.015)
    cells = np.ones((200, 40_500), np.float32)  # 32 MB
    tracemalloc.start()
    table(["e_tot", "width_eta_44", "twenty_3"], cells, geometry)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * cells.nbytes
