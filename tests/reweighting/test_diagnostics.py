"""Diagnostics of a reweighting.  Samples and trainings are seeded: outcomes change with the libraries alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from calorefine import stats
from calorefine.datasets import RatioToy
from calorefine.errors import ConfigError, WeightError
from calorefine.events import Columns, Events
from calorefine.keys import make_keys
from calorefine.pages.reweighting import write_diagnostics
from calorefine.reweighting import BoostingRatio, Reweighter
from calorefine.reweighting.coverage import coverage, excess
from calorefine.reweighting.diagnostics import Diagnostics, diagnose
from calorefine.reweighting.residuals import residuals
from calorefine.reweighting.summary import factor_numbers, mean_weights
from calorefine.twosample.cells import compare_cells

N = 5000
COLUMNS = Columns({"x": None, "y": None}, {"c": None})
TREES = BoostingRatio(n_trees=60, max_leaf_nodes=4, min_samples_leaf=200)


def events(x, context, weight=None, *, run):
    key = make_keys([np.full(len(x), run), np.arange(len(x))])
    weight = np.ones(len(x)) if weight is None else weight
    return Events(x.astype(np.float32), context.astype(np.float32), weight, key, key)


def conditional_sample(n, rng, *, shift=0.0, power=1.0):
    """Features normal around c + shift and 0, context in [0, 1]."""
    c = rng.random((n, 1)) ** power
    return np.concatenate([rng.normal(c + shift), rng.normal(size=(n, 1))], axis=1), c


def normal_pair(n, rng, *, d=3):
    empty = np.zeros((n, 0))
    return [events(rng.normal(size=(n, d)), empty, run=run) for run in (1, 2)]


def no_ratio(*samples):
    return tuple(np.zeros(len(one)) for one in samples)


@pytest.fixture(scope="module")
def smooth():
    """A shift by 0.4 at a context of another spectrum, corrected by trees."""
    rng = np.random.default_rng(1)
    generated = events(*conditional_sample(N, rng), run=1)
    reference = events(*conditional_sample(N, rng, shift=0.4, power=0.7), run=2)
    reweighter = Reweighter.fit(generated, reference, COLUMNS, estimator=TREES, seed=1)
    return reweighter, diagnose(reweighter, generated, reference, repetitions=1), generated, reference


def test_smooth_distortion_is_found_corrected(smooth):
    """With the last digits of all values changed, four times: AUC after -1.2 to -1.5 errors, uncovered below 0.0007,
    a KS distance of 0.072 to 0.073 of that before; with six other seeds of the folds too nothing fails.
    """
    _, found, generated, _ = smooth
    before, after = found.classifier.before, found.classifier.after
    assert before.auc - 0.5 > 5 * before.auc_error
    assert abs(after.auc - 0.5) < 4 * after.auc_error
    assert found.coverage.uncovered.value < 0.005
    assert found.weights.n == len(generated)
    ks_before, ks_after = (one.ks for one in found.distances["x"])
    assert ks_before.p_value < 0.01
    assert ks_after.value < 0.3 * ks_before.value
    assert min(one.p_corrected for one in found.residuals) > 1e-3
    assert found.warnings == []
    assert str(found).startswith("no warnings\n")


def test_context_alone_is_no_residual_of_the_conditional_case(smooth):
    _, found, _, _ = smooth
    assert {one.columns for one in found.residuals} == {("x",), ("y",), ("x", "y"), ("x", "c"), ("y", "c")}
    assert len(found.mean_weights["c"]) == 10
    assert found.worst_mean[0] == "c"


def test_to_dict_is_json_without_nan(smooth):
    _, found, _, _ = smooth
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["warnings"] == []
    assert len(content["weights"]["largest"]) == 10
    assert set(content["weights"]["largest"][0]["values"]) == {"x", "y", "c"}


def test_page_shows_it(smooth, tmp_path, self_contained):
    reweighter, found, _, _ = smooth
    path = tmp_path / "diagnostics.html"
    write_diagnostics(path, found, reweighter)
    outline = self_contained(path.read_text(encoding="utf-8"))
    assert outline.tags.count("img") == 3 + 1 + 1  # columns, log ratio, mean weight
    assert "Nothing conspicuous was found." in outline.texts
    assert any("those that the normalization was learned from" in text for text in outline.texts)
    worst = found.residuals[0]
    assert f"{worst.chi2_before:.0f}/{worst.ndf_before}" in outline.texts
    with pytest.raises(ConfigError, match="exists"):
        write_diagnostics(path, found, reweighter)


@pytest.mark.parametrize("hole", ["side", "corner"])
def test_hole_is_reported_with_its_fraction(hole):
    """Statistical error 4 % of the fraction, loss at the edge up to 6 %: a new seed fails with a chance below 1 %."""
    rng = np.random.default_rng(2)
    generated, reference = normal_pair(12_000, rng)
    score = {"side": lambda x: x[:, 0], "corner": lambda x: x[:, :2].min(axis=1)}[hole]
    cut = np.quantile(score(rng.normal(size=(1_000_000, 3))), 0.95)
    generated = generated.take(score(generated.x) < cut)
    truth = np.mean(score(reference.x) >= cut)
    found = coverage(generated, reference, no_ratio(generated, reference), seed=0)
    assert found.uncovered.value == pytest.approx(truth, rel=0.2)
    assert found.invented.value < 0.005


def test_invented_region_is_told_from_a_hole():
    rng = np.random.default_rng(3)
    generated, reference = normal_pair(8000, rng)
    reference = reference.take(reference.x[:, 0] < 1.28)
    found = coverage(generated, reference, no_ratio(generated, reference), seed=0)
    assert found.uncovered.value < 0.005
    assert found.invented.value == pytest.approx(0.1, rel=0.2)


def test_hole_under_sweights():
    """The background has no hole: its share of the events must not count."""
    rng, toy = np.random.default_rng(4), RatioToy()
    generated, signal = normal_pair(7500, rng)
    n = 5000
    x = np.concatenate([signal.x, 0.8 * rng.normal(size=(n, 3))])
    m = np.concatenate([rng.normal(toy.peak, toy.resolution, 7500), -np.log(1 - rng.random(n) * (1 - np.exp(-1)))])
    reference = events(x, np.zeros((len(x), 0)), toy.sweights(m), run=2)
    assert reference.weight.min() < 0
    whole = coverage(generated, reference, no_ratio(generated, reference), seed=0)
    assert whole.uncovered.value < 0.005
    cut = generated.take(generated.x[:, 0] < 1.28)
    found = coverage(cut, reference, no_ratio(cut, reference), seed=0)
    assert found.uncovered.value == pytest.approx(0.1, rel=0.2)
    assert found.uncovered.error < 0.015


def test_hole_and_bad_weights_are_warned_of(smooth):
    """Nine times the log ratio, and a hole in y."""
    reweighter, _, generated, reference = smooth
    bad = Reweighter(
        COLUMNS, [*reweighter.rounds] * 9, estimator="BoostingRatio", conditional=True, domain=reweighter.domain
    )
    found = diagnose(bad, generated.take(generated.x[:, 1] < 1), reference, repetitions=1)
    text = "\n".join(found.warnings)
    assert "of the reference is where almost nothing was generated" in text
    assert "effective number of events falls" in text
    assert "a classifier still tells the samples apart" in text
    assert "columns and pairs differ after the reweighting" in text
    assert str(found).startswith("WARNING: ")


def warnings_of(found, **changes):
    return Diagnostics(**{**{k: v for k, v in vars(found).items() if k != "warnings"}, **changes}).warnings


def test_numbers_of_weights_are_warned_of(smooth):
    _, found, _, _ = smooth
    one = found.mean_weights["c"][0]
    shifted = {"c": [replace(one, mean=1.5, pull=5.0)]}
    assert "spectrum changes" in warnings_of(found, mean_weights=shifted)[0]
    assert warnings_of(found, mean_weights=shifted, conditional=False) == []
    assert "at the bound" in warnings_of(found, weights=replace(found.weights, at_bound=0.02))[0]
    assert "one event has 5.0%" in warnings_of(found, weights=replace(found.weights, largest_share=0.05))[0]
    refused = replace(found.classifier, after=None, refused="too few")
    assert "too few" in warnings_of(found, classifier=refused)[0]


def test_largest_factors_are_those_of_events_with_weight():
    x = np.arange(12.0)[:, None]
    generated = events(x, np.zeros((12, 0)), np.r_[np.ones(11), 0.0], run=1)
    numbers = factor_numbers(generated, np.log(1 + x[:, 0]), ["x"], known=np.ones(12, bool), bound=np.log(12))
    assert [one.factor for one in numbers.largest] == pytest.approx(np.arange(11.0, 1.0, -1.0))
    assert numbers.largest[0].values == {"x": 10.0}
    assert numbers.largest_share == pytest.approx(11 / 66)
    assert numbers.n_eff == pytest.approx(stats.n_eff(np.arange(1, 12)))


def test_weights_count_as_copies():
    rng = np.random.default_rng(5)
    own, other = rng.normal(3, 1, size=100), rng.normal(size=200)
    weight = rng.integers(1, 4, 100)
    rows = np.repeat(np.arange(100), weight)
    event_keys = np.arange(300, dtype=np.uint64)
    own_keys, other_keys = event_keys[:100], event_keys[100:]
    weighted = excess((own, weight.astype(float)), (other, np.ones(200)), event_keys=(own_keys, other_keys))
    unit = (own[rows], np.ones(len(rows))), (other, np.ones(200))
    copied = excess(*unit, event_keys=(own_keys[rows], other_keys))
    assert (weighted.value, weighted.error) == pytest.approx((copied.value, copied.error))
    independent = excess(*unit, event_keys=(1000 + np.arange(len(rows), dtype=np.uint64), other_keys))
    assert copied.value > 0.5
    assert independent.error < 0.95 * copied.error


def test_errors_of_mean_weights_go_by_event():
    """Each event twice with the same factor: the error is that of the events, not smaller by the root of 2."""
    rng = np.random.default_rng(8)
    once = events(rng.normal(size=(400, 1)), rng.random((400, 1)), run=1)
    factor = rng.gamma(4.0, 0.25, 400)
    twice = np.repeat(np.arange(400), 2)
    alone, copied = (
        mean_weights(made, own, ["c"])["c"] for made, own in ((once, factor), (once.take(twice), factor[twice]))
    )
    assert [one.error for one in copied] == pytest.approx([one.error for one in alone])
    assert [one.mean for one in copied] == pytest.approx([one.mean for one in alone])


def test_residuals_of_heavy_weights_are_not_improbable():
    """Log-normal weights, n_eff / n about 0.11: 2 of 100 below 0.01, 20 with as many cells as for unit weights.

    7 or more have a chance of 0.5 % if 2 % are expected.
    """
    rng = np.random.default_rng(9)
    found = []
    for _ in range(100):
        generated, reference = normal_pair(2000, rng, d=1)
        factors = rng.lognormal(0, 1.5, 2000)
        found += residuals(generated, reference, factors, ["x"], conditional=False)
    assert len(found) == 100
    assert sum(one.p_value < 0.01 for one in found) < 7
    assert max(one.ndf for one in found) < 10


def test_degrees_of_freedom_before_are_its_own():
    """Below 0 the samples hold the same events, whose weights are equal after: their cells can't differ any more."""
    rng = np.random.default_rng(10)
    x = np.sort(rng.normal(size=(4000, 1)), axis=0)
    reference, low = events(x, np.zeros((4000, 0)), run=1), x[:, 0] < 0
    other = np.where(low[:, None], x, np.sort(np.abs(rng.normal(size=(4000, 1))), axis=0)).astype(np.float32)
    own = make_keys([np.where(low, 1, 2), np.arange(4000)])
    generated = replace(reference, x=other, key=own, event_key=own, weight=rng.uniform(0.5, 1.5, 4000))
    (found,) = residuals(generated, reference, 1 / generated.weight, ["x"], conditional=False)
    assert found.ndf_before == 19
    assert 8 <= found.ndf <= 11


@pytest.mark.parametrize("signed", [False, True])
def test_residuals_of_equal_samples_have_uniform_p_values(signed):
    """Mean of 60 p-values has error 0.04: chance of accidental failure below 1e-4, by more than 4 of them."""
    rng = np.random.default_rng(6)
    found = []
    for _ in range(20):
        generated, reference = normal_pair(2000, rng, d=2)
        if signed:
            reference = replace(reference, weight=rng.choice([-0.5, 1.0], 2000, p=[0.3, 0.7]))
        found += residuals(generated, reference, np.ones(2000), ["x", "y"], conditional=False)
    assert abs(np.mean([one.p_value for one in found]) - 0.5) < 0.16
    assert min(one.p_value for one in found) > 1e-5


def test_residuals_of_twins_have_no_difference():
    cells, weight = np.arange(100) % 4, np.ones(100)
    other = np.where(np.arange(100) < 3, (cells + 1) % 4, cells)
    apart = compare_cells((cells, other), (weight, weight), np.arange(200))
    twins = compare_cells((cells, other), (weight, weight), np.tile(np.arange(100), 2))
    assert twins.chi2 > 5 * apart.chi2
    same = compare_cells((cells, cells), (weight, weight), np.tile(np.arange(100), 2))
    assert (same.chi2, same.p_value) == (0, 1)


def test_correction_for_many_tests():
    assert stats.sidak(1e-9, 100) == pytest.approx(1e-7)
    assert stats.sidak(1.0, 3) == 1.0


def test_negative_generated_weights_are_refused(smooth):
    reweighter, _, generated, reference = smooth
    with pytest.raises(WeightError, match="negative"):
        diagnose(reweighter, replace(generated, weight=generated.weight - 1.5), reference)
