"""Two samples of showers compared: against formulas, brute force, and what weights mean."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine import keys
from calorefine.errors import ConfigError, EmptySelectionError, ValueRangeError, WeightError
from calorefine.geometry import segmented
from calorefine.twosample import embedding, neighbors, shower_classifier
from calorefine.twosample.distances import Points
from calorefine.twosample.embedding import (
    frechet_distance,
    frechet_physics_distance,
    halves,
    kernel_physics_distance,
)
from calorefine.twosample.neighbors import ball_radii, memorization, nearest_training, precision_recall
from calorefine.twosample.separation_power import separation_power
from calorefine.twosample.shower_classifier import (
    CHALLENGE,
    NetworkOptions,
    boosting_test,
    log_posterior,
    network_test,
)
from calorefine.twosample.showers import (
    Showers,
    challenge_features,
    challenge_names,
    frame_inputs,
    high_level,
    high_level_names,
    linear_inputs,
)


@pytest.fixture(autouse=True)
def fewer_trees_and_draws(monkeypatch):
    """Quick tests; 60 trees at a rate of 0.06 find what there is to find here."""
    monkeypatch.setattr(shower_classifier, "N_TREES", 60)
    monkeypatch.setattr(embedding, "N_PER_SIZE", 8)


QUICK = NetworkOptions(hidden=(16,), dropout=0.0, learning_rate=1e-2, epochs=12)
GEOMETRY = segmented([(1, 4), (2, 3)], (120.0, 120.0), 0.1)


def points(values, weight=None, first=0):
    values = np.asarray(values, np.float64)
    weight = np.ones(len(values)) if weight is None else np.asarray(weight, np.float64)
    return Points(values, weight, keys.make_keys([np.arange(first, first + len(values))]))


def normal(n, seed, shift=0.0, scale=1.0, columns=2):
    return shift + scale * np.random.default_rng(seed).normal(size=(n, columns))


def repeated(sample, counts):
    """Rows repeated as often as their weights say, with keys of their own."""
    return points(np.repeat(sample.values, counts, axis=0))


def counted(n, seed, **options):
    """A sample with integer weights, and the same as repeated rows."""
    counts = np.random.default_rng(seed + 50).integers(0, 4, n)
    sample = points(normal(n, seed, **options), counts)
    return sample, repeated(sample, counts)


# Separation power


def test_separation_power_by_hand():
    edges = np.array([0.0, 1.0, 2.0])
    result = separation_power(points([0.5, 0.5, 1.5, 7.0]), points([0.5, 1.5, 1.5, 1.5], first=4), edges)
    assert result.value == pytest.approx(0.5 * (0.25**2 / 0.75 + 0.5**2 / 1.0 + 0.25**2 / 0.25))
    apart = separation_power(points([0.5, 0.6]), points([1.5, 1.6], first=2), edges)
    assert apart.value == pytest.approx(1.0) and apart.error > 0 and apart.n == (2, 2)


def test_separation_power_weights_are_repetitions_and_their_scale_is_irrelevant():
    (a, many), b, edges = counted(60, 1, columns=1), points(normal(50, 2, columns=1), first=60), np.linspace(-2, 2, 6)
    result = separation_power(a, b, edges)
    assert separation_power(many, b, edges).value == pytest.approx(result.value)
    scaled = separation_power(Points(a.values, 9 * a.weight, a.key), b, edges)
    assert (scaled.value, scaled.error, scaled.floor) == pytest.approx((result.value, result.error, result.floor))


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_separation_power_floor_and_error_are_mean_and_spread(shift):
    """200 samples of weights of any sign: the spread is known to 5 %; 20 % fails less than once in 1000 runs.

    Between the two limits, and at the first for few bins, the error is larger than the spread.
    """
    rng, edges, results = np.random.default_rng(4), np.linspace(-2, 2, 6), []
    for _ in range(200):
        a = points(shift + rng.normal(size=300), rng.normal(1, 0.7, 300))
        results.append(separation_power(a, points(rng.normal(size=400), first=300), edges))
    values = np.array([result.value for result in results])
    ratio = np.mean([result.error for result in results]) / values.std()
    assert 0.8 < ratio < (1.45 if shift == 0 else 1.2)
    if shift == 0:
        floor = np.mean([result.floor for result in results])
        assert floor == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(200))


def test_separation_power_refuses():
    with pytest.raises(WeightError, match="1 bins sum to 0 or less"):
        separation_power(points([0.5, 1.5], [-1, 3]), points([1.5, 1.5]), np.array([0.0, 1.0, 2.0]))
    with pytest.raises(ConfigError, match="edges that rise"):
        separation_power(points([0.5]), points([0.5]), np.array([1.0, 0.0]))


# Frechet and kernel distance


def test_frechet_distance_of_normal_samples_is_known():
    """20 000 events: a shift of 1 and widths 1 and 2 give 1 + 1 to 0.03, 5 standard errors."""
    shift, scale = np.array([1.0, 0.0]), np.array([1.0, 2.0])
    found = frechet_distance(points(normal(20_000, 1, shift, scale)), points(normal(20_000, 2)))
    assert found == pytest.approx(1 + (2 - 1) ** 2, abs=0.1)


def test_frechet_distance_agrees_with_scipy_for_correlated_columns():
    from scipy.linalg import sqrtm

    a, b = normal(50, 1) @ np.array([[1, 0.5], [0, 1]]), normal(60, 2) @ np.array([[1, 0], [-0.7, 2]]) + 0.3
    covariances = [np.cov(x, rowvar=False, ddof=0) for x in (a, b)]
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        covariances[0] + covariances[1] - 2 * np.real(sqrtm(covariances[0] @ covariances[1]))
    )
    assert frechet_distance(points(a), points(b)) == pytest.approx(expected)


def test_frechet_distance_weights_are_repetitions():
    (a, many), b = counted(60, 1), points(normal(50, 2))
    assert frechet_distance(many, b) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(Points(a.values, a.weight / 7, a.key), b) == pytest.approx(frechet_distance(a, b))


@pytest.mark.parametrize("distance", [frechet_physics_distance, kernel_physics_distance])
def test_physics_distances_draw_weights_as_repetitions(distance):
    """The draws take the same uniform numbers: they are the same events, not only the same in distribution."""
    (a, many), b = counted(200, 1), points(normal(300, 2, shift=0.3), first=200)
    options = {"sizes": (500, 2000)} if distance is frechet_physics_distance else {"batch_size": 150}
    result, same = distance(a, b, **options), distance(many, b, **options)
    assert same.value == pytest.approx(result.value) and same.jetnet_error == pytest.approx(result.jetnet_error)
    scaled = distance(Points(a.values, 5 * a.weight, a.key), b, **options)
    assert (scaled.value, scaled.error) == pytest.approx((result.value, result.error))
    assert result.error > 0 and result.n == (200, 300)


def test_fpd_is_that_of_all_events_without_the_bias_of_the_draws():
    """Draws of 200 have a bias of about 0.01 each; the extrapolation agrees with the plug-in distance to 0.002."""
    a, b = points(normal(3000, 1, shift=0.2)), points(normal(3000, 2), first=3000)
    result = frechet_physics_distance(a, b, sizes=(200, 4000))
    largest = np.abs(b.values).max(0)
    plain = frechet_distance(points(a.values / largest), points(b.values / largest))
    assert result.value == pytest.approx(plain, abs=4 * result.jetnet_error)
    assert result.jetnet_error < 0.15 * plain


def test_error_of_the_frechet_distance_is_the_spread_over_samples():
    """50 samples: the spread is known to 10 %, the mean error to 3 %; 0.4 fails less than once in 1000 runs."""
    pairs = [(points(normal(200, seed, shift=0.5)), points(normal(200, 100 + seed), first=200)) for seed in range(50)]
    errors = [embedding._bootstrap_error(pair, seed) for seed, pair in enumerate(pairs)]
    assert np.mean(errors) == pytest.approx(np.std([frechet_distance(*pair) for pair in pairs]), rel=0.4)


def test_unbiased_discrepancy_agrees_with_brute_force_and_signs_cancel():
    x, y = normal(40, 1), normal(40, 2)

    def kernel(a, b):
        return (a @ b.T / 2 + 1) ** 4

    whole = sum((kernel(v, v).sum() - np.trace(kernel(v, v))) / (40 * 39) for v in (x, y)) - 2 * kernel(x, y).mean()

    class InOrder:
        """Random numbers that draw each event once."""

        def random(self, size):
            return (np.arange(size) + 0.5) / size

    assert embedding._drawn_discrepancy((points(x), points(y)), 40, InOrder()) == pytest.approx(whole)
    signed = points(np.concatenate([x, y[:10], y[:10]]), np.repeat([1.0, 1.0, -1.0], [40, 10, 10]))
    rng = np.random.default_rng(5)
    found = [embedding._drawn_discrepancy((signed, points(x)), 60, rng) for _ in range(200)]
    plain = embedding._drawn_discrepancy((points(x), points(x)), 40, InOrder())
    bias = sum(
        np.trace(kernel(v, v)) / 1600 - (kernel(v, v).sum() - np.trace(kernel(v, v))) / (1600 * 39) for v in (x, x)
    )
    assert np.mean(found) == pytest.approx(plain + bias, abs=5 * np.std(found) / np.sqrt(200))


@pytest.mark.filterwarnings("ignore")  # jetnet's use of scipy
def test_distances_agree_with_jetnet():
    """Different random numbers: within 5 of its own errors, and of the error of the median of 10 batches."""
    evaluation = pytest.importorskip("jetnet.evaluation", reason="jetnet is not installed")
    a, b = normal(20_000, 1, shift=0.1, columns=4), normal(20_000, 2, columns=4)
    value, error = evaluation.fpd(b, a, min_samples=2000, max_samples=10_000)
    ours = frechet_physics_distance(points(a), points(b), sizes=(2000, 10_000))
    assert ours.value == pytest.approx(value, abs=5 * np.hypot(error, ours.jetnet_error))
    assert ours.jetnet_error < 0.2 * value
    median, spread = evaluation.kpd(b, a, batch_size=1000)
    ours = kernel_physics_distance(points(a), points(b), batch_size=1000)
    assert ours.value == pytest.approx(median, abs=5 * np.hypot(spread, ours.error) * 1.25 / np.sqrt(10))


def test_halves_are_by_key_and_physics_distances_refuse():
    sample = points(normal(400, 1))
    first, second = halves(sample)
    assert not set(first.key.tolist()) & set(second.key.tolist()) and len(first.weight) + len(second.weight) == 400
    with pytest.raises(ConfigError, match="2 and 3 columns"):
        frechet_distance(sample, points(normal(10, 1, columns=3)))
    with pytest.raises(ValueRangeError, match="generated: 1 of 4 values"):
        kernel_physics_distance(points([[1.0, np.nan], [1.0, 2.0]]), sample)
    with pytest.raises(ConfigError, match="two that rise"):
        frechet_physics_distance(sample, sample, sizes=(100, 100))
    with pytest.raises(WeightError, match="eigenvalue"):
        frechet_distance(points([[0.0], [1.0], [5.0]], [1.0, 1.0, -0.5]), points([[0.0], [1.0]]))


# Neighbors


def test_unit_weights_agree_with_the_definitions():
    x, y, k = normal(70, 1), normal(50, 2, shift=0.5), 3
    between = np.linalg.norm(x[:, None] - y, axis=2)
    radii = {len(v): np.sort(np.linalg.norm(v[:, None] - v, axis=2), axis=1)[:, k] for v in (x, y)}
    inside = between < radii[70][:, None]  # reference x, generated y
    result = precision_recall(points(y, first=70), points(x), k=k)
    assert result.precision.value == pytest.approx(inside.any(axis=0).mean())
    assert result.density.value == pytest.approx(inside.sum() / k / 50)
    assert result.coverage.value == pytest.approx(inside.any(axis=1).mean())
    assert result.recall.value == pytest.approx((between < radii[50]).any(axis=1).mean())
    assert (result.n, result.k) == ((50, 70), 3)


def test_balls_hold_weights_as_repetitions(monkeypatch):
    monkeypatch.setattr(neighbors, "_BLOCK", 500)
    a, many = counted(80, 1)
    used = a.take(a.weight > 0)
    of_many = ball_radii(many, 9.0)
    np.testing.assert_allclose(np.repeat(ball_radii(used, 9.0), used.weight.astype(int)), of_many)
    everything = np.repeat(ball_radii(used, used.weight.sum()), used.weight.astype(int))
    np.testing.assert_allclose(everything, ball_radii(many, len(of_many)))


def test_precision_and_recall_do_not_depend_on_the_scale_of_weights_or_events_of_weight_0():
    rng = np.random.default_rng(3)
    a, b = points(normal(60, 1), rng.random(60)), points(normal(70, 2), rng.random(70), first=60)
    result = precision_recall(a, b)
    scaled = precision_recall(Points(a.values, 3 * a.weight, a.key), Points(b.values, b.weight / 8, b.key))
    assert [getattr(scaled, name).value for name in ("precision", "recall", "density", "coverage")] == pytest.approx(
        [getattr(result, name).value for name in ("precision", "recall", "density", "coverage")]
    )
    absent = np.concatenate([a.weight, np.zeros(9)])
    more = points(np.concatenate([a.values, normal(9, 7, shift=9.0)]), absent)
    assert precision_recall(more, b).recall.value == pytest.approx(result.recall.value)


def test_precision_falls_with_what_is_invented_and_recall_with_what_is_missing():
    reference = points(normal(300, 1))
    invented = points(np.concatenate([normal(150, 2), normal(150, 3, shift=20.0)]), first=300)
    result = precision_recall(invented, reference)
    assert result.precision.value == pytest.approx(0.5, abs=0.05) and result.recall.value > 0.8
    missing = points(normal(300, 2)[np.abs(normal(300, 2)[:, 0]) < 0.3], first=300)
    result = precision_recall(missing, reference)
    assert result.precision.value > 0.95 and result.recall.value < 0.6 and result.coverage.value < 0.7
    apart = precision_recall(points(normal(20, 1, shift=99.0), first=300), reference, k=2)
    assert apart.precision.value == 0 and apart.precision.error > 0 and apart.coverage.error > 0


def test_neighbors_refuse():
    sample = points(normal(5, 1))
    with pytest.raises(ConfigError, match="k 5 found"):
        precision_recall(sample, sample, k=5)
    with pytest.raises(WeightError, match="negative"):
        precision_recall(points(normal(9, 1), -np.ones(9) + 3 * (np.arange(9) > 2)), sample, k=2)
    with pytest.raises(EmptySelectionError, match="no training event"):
        nearest_training(sample.values, np.empty((0, 2)))


def test_memorization():
    training, x = normal(200, 1, columns=6), normal(100, 2, columns=6)
    distance, index = nearest_training(x, training)
    brute = np.linalg.norm(x[:, None] - training, axis=2)
    np.testing.assert_allclose(distance, brute.min(1))
    np.testing.assert_array_equal(index, brute.argmin(1))
    assert np.all(nearest_training(training[:50] + 1e6, training + 1e6)[0] == 0)  # where squared norms cancel
    copied = points(np.concatenate([training[:30], x[:70]]), np.repeat([2.0, 1.0], [30, 70]), first=200)
    result = memorization(copied, points(normal(80, 3, columns=6)), training)
    assert result.copies == pytest.approx(60 / 130) and result.copies_error > 0 and result.n == (100, 80, 200)
    assert result.median.ratio is not None and result.median.ratio < 0.9
    fair = memorization(points(x, first=200), points(normal(80, 3, columns=6)), training)
    assert fair.copies == 0 and fair.copies_error > 0 and abs(fair.median.pull) < 4


# Classifiers


def test_classifiers_find_a_known_difference():
    """A shift of one width in one column: the best AUC is 0.760; 1500 events know it to 0.016 in each split."""
    a, b = points(normal(1500, 1, shift=np.array([1.0, 0.0]))), points(normal(1500, 2), first=1500)
    for test in (lambda: network_test(a, b, QUICK, n_trainings=2), lambda: boosting_test(a, b, n_trainings=1)):
        result = test()
        assert result.separation.auc == pytest.approx(0.76, abs=0.05)
        assert 0 < result.separation.auc_error < 0.03
        assert result.separation.jsd == pytest.approx(0.15, abs=0.06)
        assert (result.n, result.n_eff) == ((1500, 1500), (1500.0, 1500.0))


@pytest.mark.parametrize("kind", ["network", "boosting"])
def test_floor_is_one_half_also_for_pairs(kind):
    """Generated events that are near copies of the reference's: 0.5 within 5 errors."""
    x = normal(1200, 1)
    a, b = halves(points(x)) if kind == "boosting" else (points(x + normal(1200, 2, scale=0.01)), points(x))
    result = boosting_test(a, b, n_trainings=1) if kind == "boosting" else network_test(a, b, QUICK, n_trainings=1)
    assert result.separation.auc == pytest.approx(0.5, abs=5 * result.separation.auc_error)


def test_pairs_are_on_the_same_side():
    a, b = points(normal(300, 1)), points(normal(300, 2))
    parts = shower_classifier._parts([a, b], seed=1, number=2)
    for part in parts:
        np.testing.assert_array_equal(part[0].key, part[1].key)
    assert [len(part[0].weight) for part in parts] == pytest.approx([180, 60, 60], abs=35)
    other = shower_classifier._parts([a, b], seed=1, number=3)
    assert set(other[2][0].key.tolist()) != set(parts[2][0].key.tolist())


def test_weights_make_two_samples_equal():
    """Exponential tilt of a normal distribution: a weight exp(x - 1/2) makes N(0, 1) N(1, 1)."""
    x, y = normal(1500, 1, columns=1), normal(1500, 2, shift=1.0, columns=1)
    tilted = points(x, np.exp(x[:, 0] - 0.5))
    for test in (
        lambda a: network_test(a, points(y, first=1500), QUICK, n_trainings=1).separation,
        lambda a: boosting_test(a, points(y, first=1500), n_trainings=1).separation,
    ):
        assert test(points(x)).auc > 0.7
        weighted = test(tilted)
        assert weighted.auc == pytest.approx(0.5, abs=5 * weighted.auc_error)


@pytest.mark.parametrize(
    "test", [lambda a, b: network_test(a, b, QUICK, n_trainings=1), lambda a, b: boosting_test(a, b, n_trainings=1)]
)
def test_scale_of_weights_and_order_of_events_are_irrelevant(test):
    rng = np.random.default_rng(3)
    a, b = points(normal(200, 1, shift=0.5), rng.random(200)), points(normal(200, 2), first=200)
    result = test(a, b).separation
    order = rng.permutation(200)
    assert test(Points(a.values, 4 * a.weight, a.key).take(order), b).separation.auc == pytest.approx(
        result.auc, abs=1e-6
    )


def test_network_keeps_the_best_epoch_and_scales_what_is_not_taken_as_it_is():
    showers = some_showers(40)
    inputs = frame_inputs(showers, GEOMETRY)
    shift, scale = shower_classifier._scales([inputs, inputs])
    assert np.all(shift.numpy()[:10] == 0) and np.all(scale.numpy()[:10] == 1)
    np.testing.assert_allclose(shift.numpy()[10:], inputs.values[:, 10:].mean(0), rtol=1e-4)
    wild = NetworkOptions(hidden=(16,), dropout=0.0, learning_rate=0.3, epochs=6, patience=6)
    parts = shower_classifier._parts([points(normal(200, 1, 0.5)), points(normal(200, 2), first=200)], seed=0, number=0)
    epochs = [NetworkOptions(**{**vars(wild), "epochs": k}) for k in range(1, 7)]
    losses = [
        shower_classifier._cross_entropy(shower_classifier._trained(parts, o, seed=0, number=0), parts[1])
        for o in epochs
    ]
    assert losses == sorted(losses, reverse=True)


def test_log_posterior_prefers_the_nearer_model():
    reference = points(normal(500, 1))
    models = {
        "near": points(normal(500, 2, shift=0.1), first=500),
        "far": points(normal(700, 3, shift=1.5), first=1000),
    }
    result = log_posterior(models, reference, QUICK, n_trainings=2)
    assert result.reference["near"] > result.reference["far"] + 5 * result.error["far"]
    assert result.n == {"near": 500, "far": 700, "reference": 500}
    assert all(error > 0 for error in result.error.values())
    equal = log_posterior({"a": points(normal(500, 4)), "b": points(normal(500, 5), first=500)}, reference, QUICK)
    assert equal.reference["a"] == pytest.approx(np.log(0.5), abs=0.05)


def test_classifiers_refuse():
    a, b = points(normal(50, 1)), points(normal(50, 2), np.linspace(-0.1, 1, 50), first=50)
    with pytest.raises(WeightError, match="negative"):
        boosting_test(a, b)
    with pytest.raises(EmptySelectionError, match="too few"):
        network_test(a, points(normal(2, 2), first=50))
    with pytest.raises(ConfigError, match="columns"):
        boosting_test(a, points(normal(50, 2, columns=3)))
    with pytest.raises(ConfigError, match="at least 2"):
        log_posterior({"a": a}, b)
    with pytest.raises(ConfigError, match="dropout"):
        NetworkOptions(dropout=1.0)
    assert CHALLENGE.hidden == (2048, 2048)


# Rows


def some_showers(n, seed=0):
    rng = np.random.default_rng(seed)
    cells = (rng.exponential(1.0, (n, 10)) * (rng.random((n, 10)) < 0.7)).astype(np.float32)
    return Showers(cells, rng.uniform(10, 20, n), np.ones(n), keys.make_keys([np.arange(n)]), rng.normal(size=(n, 2)))


def test_inputs_hold_what_they_say():
    showers = some_showers(20)
    read = np.where(showers.cells >= np.float32(0.1), showers.cells, 0)
    linear = linear_inputs(showers, GEOMETRY)
    np.testing.assert_allclose(linear.values[:, :10], read / showers.e_inc[:, None], rtol=1e-6)
    np.testing.assert_allclose(linear.values[:, 10], np.log10(showers.e_inc), rtol=1e-6)
    assert linear.as_they_are == 11 and linear.values.dtype == np.float32
    inputs = frame_inputs(showers, GEOMETRY)
    np.testing.assert_allclose(inputs.values[:, :10], np.log(1 + read / 0.1), rtol=1e-5)
    np.testing.assert_allclose(inputs.values[:, 10], np.log(1 + read[:, :4].sum(1) / 0.1), rtol=1e-5)
    np.testing.assert_allclose(
        inputs.values[:, 12:], np.column_stack([np.log(showers.e_inc), showers.entry_mm]), rtol=1e-6
    )
    assert inputs.as_they_are == 10 and np.all(showers.cells >= 0)


def test_the_frame_is_the_caller_s():
    showers = some_showers(20)

    def mirrored(cells, entry):
        flipped = np.concatenate([cells[:, 3::-1], cells[:, 4:].reshape(-1, 2, 3)[:, :, ::-1].reshape(-1, 6)], axis=1)
        right = entry[:, :1] > 0
        return np.where(right, flipped, cells), np.where(right, entry * [-1, 1], entry)

    cells, entry = mirrored(showers.cells, showers.entry_mm)
    image = Showers(cells, showers.e_inc, showers.weight, showers.key, entry)
    first, second = (frame_inputs(s, GEOMETRY, frame=mirrored).values for s in (showers, image))
    np.testing.assert_array_equal(first, second)
    assert np.all(first[:, -2] <= 0) and not np.array_equal(frame_inputs(showers, GEOMETRY).values, first)


def test_tables_have_the_columns_of_their_names():
    showers = some_showers(20)
    for function, named in ((high_level, high_level_names), (challenge_features, challenge_names)):
        table, columns = function(showers, GEOMETRY).values, named(GEOMETRY)
        assert table.shape == (20, len(columns)) and np.all(np.isfinite(table))
        np.testing.assert_allclose(table[:, columns.index("log_e_inc")], np.log10(showers.e_inc))
        read = np.where(showers.cells >= np.float32(0.1), showers.cells, 0).astype(np.float64)
        np.testing.assert_allclose(table[:, columns.index("log_e_layer_1")], np.log10(read[:, 4:].sum(1) + 1e-8))
    assert {"response", "depth", "ec_phi_1", "width_eta_0", "occupancy_1", "second_0", "five_1"} <= set(
        high_level_names(GEOMETRY)
    )


def test_showers_refuse():
    showers = some_showers(5)
    with pytest.raises(ConfigError, match="for 5 showers"):
        Showers(showers.cells, showers.e_inc[:4], showers.weight, showers.key, showers.entry_mm)
    with pytest.raises(ValueRangeError, match="1 of 5 incident"):
        Showers(showers.cells, np.array([1.0, 1, 0, 1, 1]), showers.weight, showers.key, showers.entry_mm)
    with pytest.raises(ConfigError, match="threshold_mev is 0"):
        frame_inputs(showers, segmented([(1, 4), (2, 3)], (120.0, 120.0)))
