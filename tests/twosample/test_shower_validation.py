"""What `validate --showers` computes: a wrong sample is seen and a right one is not, and weights are what they mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calorefine import shower_observables
from calorefine.errors import CalorefineWarning, EmptySelectionError
from calorefine.geometry import Geometry, Layer
from calorefine.twosample import embedding, shower_classifier, shower_means
from calorefine.twosample.results import SampleNumbers
from calorefine.twosample.shower_classifier import NetworkOptions
from calorefine.twosample.shower_distances import observables, overlap, training_distances
from calorefine.twosample.shower_judges import Judgment, smeared
from calorefine.twosample.shower_pictures import shower_pictures
from calorefine.twosample.shower_results import Times
from calorefine.twosample.shower_validation import ShowerSamples, shower_validation
from calorefine.twosample.showers import Showers
from tests.data.shower_toy import GEOMETRY, draw

QUICK = NetworkOptions(hidden=(8,), dropout=0.0, learning_rate=1e-2, epochs=2)


@pytest.fixture(autouse=True)
def fewer_trees_and_draws(monkeypatch):
    """Quick tests: 20 trees find what there is to find here."""
    monkeypatch.setattr(shower_classifier, "N_TREES", 20)
    monkeypatch.setattr(embedding, "N_PER_SIZE", 2)
    monkeypatch.setattr(embedding, "N_REPLICAS", 4)


def toy(n=400, seed=0, weight=None):
    """Showers of the toy, with weights that are given or 1, and keys of their own."""
    events = draw(n, seed)
    weight = np.ones(n) if weight is None else weight
    e_inc, entry = events.context[:, 0] * 1000.0, events.context[:, 1:].astype(np.float64)
    return Showers(events.x, e_inc.astype(np.float64), weight, events.key + np.uint64(10_000 * seed), entry)


def scaled(showers, factor, layer=0):
    """Showers with another energy of one layer."""
    cells = showers.cells.copy()
    cells[:, GEOMETRY.slices[layer]] *= factor
    return replace(showers, cells=cells)


def repeated(showers, counts):
    """Each shower as often as it counts, with the same key."""
    index = np.repeat(np.arange(len(showers.key)), counts)
    return replace(showers.take(index), weight=np.ones(len(index)))


def validated(generated, reference, *, training=None, others=None, told=None):
    numbers = [SampleNumbers(["f.h5"], "/", "none", len(s.key), s.weight.sum(), 1.0) for s in (generated, reference)]
    samples = ShowerSamples(generated, reference, GEOMETRY, "none", training, others or {})
    return shower_validation(
        samples,
        (numbers[0], numbers[1]),
        outputs=(Path("v.json"), Path("v.html")),
        training_n_eff=None,
        times=Times({1: 3.0}, 1),
        options=QUICK,
        n_trainings=1,
        seed=0,
        tell=(told if told is not None else []).append,
    )


def test_a_wrong_sample_is_seen_and_a_right_one_is_not():
    """Chances below 1 in 1000: ten standard deviations away on one side, p above 0.001 of all bins on the other."""
    reference, told = toy(600, seed=1), []
    right = validated(toy(600, seed=2), reference, told=told)
    wrong = validated(scaled(toy(600, seed=2), 1.2), reference, others={"right": toy(600, seed=3)})
    assert [text.partition(":")[0] for text in told[:3]] == ["observables and profiles", "distances", "classifier"]
    for found, is_wrong in ((right, False), (wrong, True)):
        powers = {one.name: (one.separation.value - one.separation.floor) for one in found.observables}
        assert (powers["response"] > 10 * found.observables[0].separation.floor_error) == is_wrong
        assert (found.means["longitudinal"].worst[2] < 1e-3) == is_wrong
        worst = max(abs(one.mean.pull) for one in found.responses)
        assert (worst > 4.5) == is_wrong
    high = [found.classifiers["high"] for found in (right, wrong)]
    assert abs(high[0].auc - 0.5) < 4 * high[0].auc_error
    assert high[1].auc - 0.5 > 3 * high[1].auc_error
    assert [high[1].n_generated, high[1].n_reference, sum(high[1].n_floor)] == [600, 600, 600]
    assert wrong.distances["fpd"].value.n == (600, 600) and sum(wrong.distances["fpd"].floor.n) == 600
    assert wrong.posterior.n == {"generated": 600, "right": 600, "reference": 600}
    assert wrong.observables[0].separation.value == max(one.separation.value for one in wrong.observables)
    text = str(wrong)
    for part in ("600 + 600", "grows with the number", "sees smearing", "FPD", "coverage", "log posterior", "3.00 in"):
        assert part in text
    content = json.loads(json.dumps(wrong.to_dict(), allow_nan=False))
    assert content["classifiers"]["high"]["auc"] == high[1].auc
    assert content["means"]["longitudinal"]["ratio"][0] == pytest.approx(1.2, rel=0.1)


def test_weights_are_what_repeated_showers_are():
    counts = np.random.default_rng(5).integers(0, 4, 300)
    made, target = toy(300, seed=1, weight=counts.astype(np.float64)), toy(300, seed=2)
    target = replace(target, weight=counts[::-1].astype(np.float64))
    pairs = [(made, target), (repeated(made, counts), repeated(target, counts[::-1]))]
    found = [{one.name: one for one in observables(pair, GEOMETRY)} for pair in pairs]
    for name, one in found[0].items():
        assert one.separation.value == pytest.approx(found[1][name].separation.value, abs=1e-12)
        np.testing.assert_allclose(one.overlay.generated[0], found[1][name].overlay.generated[0], rtol=1e-9)
    for compute in (shower_means.longitudinal, shower_means.occupancies, shower_means.spectrum):
        first, second = (compute(pair, GEOMETRY) for pair in pairs)
        np.testing.assert_allclose(first.generated[0], second.generated[0], rtol=1e-9)
        np.testing.assert_allclose(first.reference[0], second.reference[0], rtol=1e-9)
    profiles = [shower_means.laterals(pair, GEOMETRY) for pair in pairs]
    assert list(profiles[0]) == ["0_eta", "0_phi", "1_eta", "1_phi"]
    for name, one in profiles[0].items():
        np.testing.assert_allclose(one.generated[0], profiles[1][name].generated[0], rtol=1e-9)
    averages = [shower_pictures(pair, GEOMETRY).averages[0].generated[0] for pair in pairs]
    np.testing.assert_allclose(averages[0], averages[1], rtol=1e-9)


def test_balls_hold_the_weight_of_repeated_showers():
    made, target = toy(100, seed=1), toy(100, seed=2)
    doubled = [replace(s, weight=np.full(100, 2.0)) for s in (made, target)]
    first, second = (overlap(pair, GEOMETRY, seed=0).found for pair in ((made, target), (doubled[0], doubled[1])))
    assert first.precision == second.precision and first.density.value == pytest.approx(second.density.value)


def test_signed_weights_are_used_where_they_can_be_and_refused_elsewhere():
    signed = np.where(np.arange(400) % 5 == 0, -0.5, 1.0)
    found = validated(toy(400, seed=1, weight=signed), toy(400, seed=2), training=toy(100, seed=3))
    assert {"classifiers", "overlap", "training"} <= set(found.refused)
    assert found.classifiers == {} and found.training is None and found.overlap is None
    assert "classifiers refused" in str(found) and "negative" in found.refused["classifiers"]
    assert len(found.responses) == 8 and np.isfinite(found.means["longitudinal"].ratio).all()
    json.dumps(found.to_dict(), allow_nan=False)


def test_single_energies_are_looked_at_one_by_one():
    samples = [toy(300, seed=seed) for seed in (1, 2)]
    samples = [replace(s, e_inc=np.tile([1000.0, 2000.0, 4000.0], 100)) for s in samples]
    found = validated(*samples)
    assert [at.center for at in found.energy_bins] == [1000.0, 2000.0, 4000.0]
    response = shower_observables.evaluate("response", samples[0].cells, GEOMETRY, samples[0].e_inc)
    assert found.responses[1].std.generated == pytest.approx(response[1::3].std())
    rows = found.to_dict()["responses"]
    assert rows[2]["e_inc_mev"]["center"] == 4000.0 and rows[2]["mean"]["ratio_error"] > 0


def judgment(smeared, floor=0.5):
    errors = dict.fromkeys(smeared, 0.01)
    return Judgment("", 0.5, 0.01, 0.0, 10, 10, floor, 0.01, 0.0, (5, 5), smeared, errors)


def test_the_smallest_smearing_that_is_seen():
    assert judgment({"0.05": 0.51, "0.1": 0.53, "0.2": 0.6}).sees == 0.1
    assert judgment({"0.05": 0.51, "0.1": 0.53, "0.2": 0.6}, floor=0.52).sees == 0.2  # by accident so far
    assert judgment({"0.05": 0.6, "0.1": 0.51, "0.2": 0.6}).sees == 0.2  # what isn't seen at more, is none at less
    assert judgment({"0.05": 0.51, "0.1": 0.519}).sees is None


def test_cells_are_smeared_by_their_key():
    showers = toy(200)
    factor = smeared(showers, 0.1, seed=3).cells[showers.cells > 0] / showers.cells[showers.cells > 0]
    assert abs(factor.mean() - 1) < 4 * 0.1 / len(factor) ** 0.5
    assert factor.std() == pytest.approx(0.1, rel=4 / (2 * len(factor)) ** 0.5)
    some = np.array([7, 3])
    np.testing.assert_array_equal(
        smeared(showers.take(some), 0.1, seed=3).cells, smeared(showers, 0.1, seed=3).cells[some]
    )


def test_profiles_hold_the_energies_of_layers():
    pair = toy(200, seed=1), toy(200, seed=2)
    energies = shower_observables.layer_energies(pair[0].cells, GEOMETRY).mean(axis=0)
    found = shower_means.longitudinal(pair, GEOMETRY)
    np.testing.assert_allclose(found.generated[0], energies)
    for name, one in shower_means.laterals(pair, GEOMETRY).items():
        assert len(one.edges) % 2 == 0 and one.edges[0] == -one.edges[-1]
        share = one.generated[0].sum() / energies[int(name[0])]
        assert 0.9 < share < 1 + 1e-9
    counted = shower_means.spectrum(pair, GEOMETRY)
    hits = (shower_observables.read_out(pair[0].cells, GEOMETRY) > 0).sum(axis=1).mean()
    assert counted.generated[0].sum() == pytest.approx(hits)


def test_errors_know_showers_at_the_same_conditions():
    """A sample against itself has ratios of 1 without an error but for what is unseen."""
    one = toy(200)
    same = shower_means.longitudinal((one, one), GEOMETRY)
    apart = shower_means.longitudinal((one, replace(one, key=one.key + np.uint64(9999))), GEOMETRY)
    np.testing.assert_allclose(same.ratio[0], 1)
    assert (same.ratio[1] > 0).all() and (same.ratio[1] < 0.1 * apart.ratio[1]).all()


def test_copies_of_training_showers_are_found():
    training, reference = toy(150, seed=1), toy(150, seed=2)
    found = training_distances((training, reference), training, GEOMETRY, seed=0)
    assert found.copies == 1.0 and found.median.ratio == 0.0
    with pytest.warns(CalorefineWarning, match="50 % of the reference's showers are in the training sample"):
        training_distances((training, reference), reference.take(np.arange(75)), GEOMETRY, seed=0)


def test_a_reference_without_energy_is_refused():
    empty = replace(toy(50), cells=np.zeros((50, GEOMETRY.n_cells), np.float32))
    without = Geometry(GEOMETRY.layers)
    with pytest.raises(EmptySelectionError, match="no cell of 50 showers has energy"):
        shower_means.longitudinal((toy(50), empty), without)


def test_a_layer_that_is_no_grid_and_has_no_threshold():
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    ring = Geometry((Layer(3, 20 * np.cos(turn), 20 * np.sin(turn)),))
    pair = tuple(replace(toy(100, seed=seed), entry_mm=np.zeros((100, 0))) for seed in (1, 2))
    found = shower_means.laterals(pair, ring)
    assert list(found) == ["3_eta", "3_phi"] and np.isfinite(found["3_eta"].generated).all()
    drawn = shower_pictures(pair, ring)
    assert drawn.shown == [0] and len(drawn.singles) == 4
    assert abs(np.log(np.divide(*drawn.singles[0].e_inc_mev))) < 0.2
