"""Measuring in files: weights, chunks, domain, lists, hist objects, errors."""

from __future__ import annotations

import json

import awkward as ak
import numpy as np
import pytest
import uproot

from calorefine.errors import BranchError, ConfigError, EmptySelectionError, ValueRangeError, WeightError
from calorefine.intervals import UNSEEN
from calorefine.io.root import RootFiles
from calorefine.observables import Efficiency, Histogram, Mean, Quantile, Regular, Weights, Width, measure

EDGES = [1.0, 3.0, 6.0, 9.5]
OBSERVABLES = {
    "p": Histogram("p", edges=EDGES, selection="x > 0"),
    "shape": Histogram("p", edges=EDGES, normalize="unit"),
    "efficiency": Efficiency("flag && x > 1", "p", edges=EDGES),
    "mean": Mean("x", "p", edges=EDGES),
    "quantile": Quantile("x", "p", levels=[0.25, 0.5], edges=EDGES),
    "width": Width("x", "p", edges=EDGES, range=(-20, 40)),
}
WEIGHTS = [Weights("w"), Weights("w_replica")]
ALL_FIELDS = ("values", "statistics", "outside", "outside_counts")


def test_chunks_change_nothing(events, source, tree_format):
    arrays = events(3000, seed=1)
    files = source(arrays, tree_format=tree_format)
    whole = measure(files, OBSERVABLES, weights=WEIGHTS)
    for rows in (97, 2999):
        parts = measure(files, OBSERVABLES, weights=WEIGHTS, rows=rows)
        for name in ALL_FIELDS:
            np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
        assert [one.n_selected for one in parts.entries.values()] == [one.n_selected for one in whole.entries.values()]


def test_files_are_added_up(events, source, tmp_path):
    arrays = events(3000, seed=2)
    whole = measure(source(arrays), OBSERVABLES, weights=WEIGHTS)
    for k, part in enumerate((slice(0, 1100), slice(1100, 3000))):
        source({name: array[part] for name, array in arrays.items()}, f"part_{k}.root")
    split = measure(RootFiles(str(tmp_path / "part_*.root"), "events"), whole.observables, weights=WEIGHTS)
    np.testing.assert_allclose(split.values, whole.values, rtol=1e-12)
    np.testing.assert_allclose(split.statistics, whole.statistics, rtol=1e-12, atol=1e-15)


def test_parts_and_statistics(events, source):
    found = measure(source(events(3000)), OBSERVABLES, weights=WEIGHTS)
    parts = [found.part(name) for name in OBSERVABLES]
    assert [part.start for part in parts] == [0, 3, 6, 9, 12, 18]
    assert found.values.shape == (5, 21)
    assert found.statistics.shape == (21, 21)
    np.testing.assert_array_equal(found.statistics, found.statistics.T)
    assert np.all(np.linalg.eigvalsh(found.statistics) > -1e-12)
    with pytest.raises(KeyError, match="did you mean 'width'"):
        found.part("widht")


def test_beyond_the_edges_is_counted(events, source):
    arrays = events(3000)
    found = measure(source(arrays), OBSERVABLES, weights=WEIGHTS)
    entries, x, p, w = found.entries["p"], arrays["x"] > 0, arrays["p"], arrays["w"]
    low, high = x & (p < 1), x & (p > 9.5)
    assert (entries.underflow.n, entries.overflow.n) == (low.sum(), high.sum())
    assert entries.n_selected == x.sum()
    assert (entries.underflow.sum_w, entries.overflow.sum_w) == pytest.approx((w[low].sum(), w[high].sum()))
    assert entries.underflow.sum_w2 == pytest.approx((w[low] ** 2).sum())
    assert entries.n_eff == pytest.approx(w[x].sum() ** 2 / (w[x] ** 2).sum())
    json.dumps(entries.to_dict())


def test_outside_of_the_domain(events, source):
    """`outside` is the difference to a sample without those events; the default branch may be missing, others not."""
    arrays = events(4000, seed=3)
    edges = {"p": Histogram("p", edges=[0, 8.5, 10]), "e": Efficiency("flag", "p", edges=[0, 8.5, 10])}
    found = measure(source(arrays), edges, weights=WEIGHTS)
    inside = measure(source(arrays, "b.root"), {k: type(o)(**o.to_dict()["init_args"] | {"selection": "in_domain"})
                     for k, o in edges.items()}, weights=WEIGHTS)  # fmt: skip
    np.testing.assert_allclose(found.outside, inside.values[0] - found.values[0], atol=1e-12)
    outside = (~arrays["in_domain"] & (arrays["p"] > 8.5)).sum()
    assert found.outside_counts.tolist() == [0, outside, 0, outside]
    assert found.outside[1] != 0
    files = source({name: array for name, array in arrays.items() if name != "in_domain"}, "without.root")
    for options in ({}, {"in_domain": None}):
        assert not measure(files, edges, weights=WEIGHTS, **options).outside_counts.any()
    with pytest.raises(BranchError, match="there is no branch 'inside', which was asked for"):
        measure(files, edges, weights=WEIGHTS, in_domain="inside")
    some = RootFiles([str(files.paths[0]), str(source(arrays).paths[0])], "events")
    with pytest.raises(BranchError, match=r"without\.root, .* no branch 'in_domain', which other files have"):
        measure(some, edges, weights=WEIGHTS)
    only = {"e": Efficiency("flag", "p", edges=[9.2, 10])}
    with pytest.raises(
        WeightError, match=r"'e': without the \d+ events outside the training domain, the weights of 9.2"
    ):
        measure(source(arrays), only, weights=WEIGHTS)


def test_hist_objects(events, source):
    found = measure(source(events(3000)), OBSERVABLES, weights=WEIGHTS)
    histograms = found.histograms()
    for name, one in histograms.items():
        part = found.part(name)
        np.testing.assert_allclose(one.values().ravel(), found.values[0, part])
        np.testing.assert_allclose(one.variances().ravel(), np.diag(found.statistics)[part])
        assert one.axes[0].edges.tolist() == EDGES
    flow = found.entries["p"]
    assert histograms["p"].values(flow=True)[[0, -1]].tolist() == [flow.underflow.sum_w, flow.overflow.sum_w]
    assert histograms["shape"].values(flow=True).sum() == pytest.approx(1)
    assert list(histograms["quantile"].axes[1]) == ["0.25", "0.5"]
    assert histograms["mean"].label == "mean of x"


def test_flow_variances_of_a_shape(events, source):
    """The same as of a shape whose edges include everything."""
    files = source(events(3000))
    both = {
        "inner": Histogram("p", edges=[2, 8], normalize="unit"),
        "all": Histogram("p", edges=[0, 2, 8.0, 10], normalize="unit"),
    }
    found = measure(files, both, weights=WEIGHTS)
    np.testing.assert_allclose(found.histograms()["inner"].variances(flow=True), found.histograms()["all"].variances())


def test_without_weights_histograms_count(events, source):
    arrays = events(2000)
    found = measure(source(arrays), {"p": Histogram("p", bins=Regular(4, 0, 10))}, weights=[Weights()])
    counts = np.histogram(arrays["p"], 4, (0, 10))[0]
    assert found.values[0].tolist() == counts.tolist() == (np.diag(found.statistics) - UNSEEN).tolist()
    assert found.rows == ("none",)


@pytest.fixture
def jets(tmp_path, tree_format):
    """Events with 0 to 4 jets and a weight."""
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 5, 1000)
    pt = ak.unflatten(rng.exponential(20, counts.sum()), counts)
    tag = ak.unflatten(rng.random(counts.sum()) < 0.4, counts)
    arrays = {"jet_pt": pt, "jet_tag": tag, "w": rng.normal(1, 0.5, 1000)}
    kinds = {"jet_pt": "var * float64", "jet_tag": "var * bool", "w": np.dtype(float)}
    path = tmp_path / "jets.root"
    with uproot.recreate(path) as file:
        if tree_format == "ttree":
            file.mktree("events", kinds).extend(arrays)
        else:
            types = {k: ak.types.from_datashape(v, highlevel=False) if isinstance(v, str) else v
                     for k, v in kinds.items()}  # fmt: skip
            file.mkrntuple("events", types).extend(arrays)
    return RootFiles(str(path), "events"), arrays


def test_lists_are_reduced(jets):
    """Against plain Python, in chunks."""
    files, arrays = jets
    observables = {
        "ht": Histogram("sum(jet_pt, jet_pt > 15)", edges=[0, 1, 40, 500]),
        "leading": Histogram("max(jet_pt)", edges=[0, 20, 500], selection="count(jet_pt > 10) >= 2"),
        "tagged": Efficiency("any(jet_tag)", "max(jet_pt, True, 0)", edges=[0, 20, 500]),
    }
    found = measure(files, observables, weights=[Weights("w"), Weights("w * count(jet_tag)")], rows=333)
    lists, tags = ak.to_list(arrays["jet_pt"]), ak.to_list(arrays["jet_tag"])
    w = arrays["w"]
    ht = np.array([sum(pt for pt in jets if pt > 15) for jets in lists])
    two = np.array([sum(pt > 10 for pt in jets) >= 2 for jets in lists])
    highest = np.array([max(jets, default=0) for jets in lists])
    tagged = np.array([any(one) for one in tags])
    counts = np.array([sum(one) for one in tags])
    for row, weight in enumerate((w, w * counts)):
        np.testing.assert_allclose(found.values[row, :3], np.histogram(ht, [0, 1, 40, 500], weights=weight)[0])
        expected = np.histogram(highest[two], [0, 20, 500], weights=weight[two])[0]
        np.testing.assert_allclose(found.values[row, 3:5], expected)
        passed, total = (np.histogram(highest, [0, 20, 500], weights=one)[0] for one in (weight * tagged, weight))
        np.testing.assert_allclose(found.values[row, 5:], passed / total)


def test_empty_lists_and_lists_without_reduction(jets):
    files, arrays = jets
    empty = int(ak.sum(ak.num(arrays["jet_pt"]) == 0))
    message = rf"NaN or infinite values in selected events \(leading: max\(jet_pt\): {empty}\).*True, 0\)"
    with pytest.raises(ValueRangeError, match=message):
        measure(files, {"leading": Histogram("max(jet_pt)", edges=[0, 1])}, weights=[Weights()], rows=300)
    with pytest.raises(ValueRangeError, match=rf"max\(jet_pt\): {empty}"):
        measure(files, {"median": Quantile("max(jet_pt)", "w", levels=[0.5], edges=[0, 1])}, weights=[Weights()])
    with pytest.raises(BranchError, match=r"'jet_pt' holds a list .*reduce it, as in sum\(jet_pt\)"):
        measure(files, {"all": Histogram("jet_pt", edges=[0, 1])}, weights=[Weights()])
    with pytest.raises(BranchError, match="no branch 'jet_p'; did you mean 'jet_pt'"):
        measure(files, {"all": Histogram("sum(jet_p)", edges=[0, 1])}, weights=[Weights()])


def test_weights_that_sum_to_nothing_name_observable_bin_and_replica(events, source):
    arrays = events(500, seed=5)
    arrays["w_replica"][(arrays["p"] >= 3) & (arrays["p"] < 6), 2] *= -1
    files = source(arrays)
    message = r"observable 'e': the weights of 3 <= p < 6 sum to -\S+ with w_replica\[2\], .*take wider bins"
    with pytest.raises(WeightError, match=message):
        measure(files, {"e": Efficiency("flag", "p", edges=EDGES)}, weights=WEIGHTS)
    with pytest.raises(WeightError, match="with -w, expected a positive sum"):
        measure(files, {"e": Width("x", "p", edges=EDGES)}, weights=[Weights("-w")])


def test_values_that_are_not_finite(events, source):
    arrays = events(500, seed=6)
    arrays["x"][:7] = np.nan
    arrays["w_replica"][3:9, 1] = np.inf
    files = source(arrays)
    with pytest.raises(ValueRangeError, match=r"\(m: x: 7, m: weights: 6\).*leave these events out by a selection"):
        measure(files, {"m": Mean("x", "p", edges=EDGES)}, weights=WEIGHTS, rows=5)
    fine = {"m": Mean("x", "p", edges=EDGES, selection="x > -1e9 && abs(w) < 0")}
    with pytest.raises(EmptySelectionError, match=r"observable 'm': no event is left after the selection 'x > -1e9"):
        measure(files, fine, weights=WEIGHTS)
    kept = {
        "p": Histogram("p", edges=EDGES, selection=" && ".join(f"p != {value!r}" for value in arrays["p"][:9].tolist()))
    }
    found = measure(files, kept, weights=WEIGHTS)
    assert found.entries["p"].n_selected == 491
    assert np.isfinite(found.values).all()


def test_arrays_of_different_length(events, source, tmp_path):
    source(events(100, k=2), "a.root")
    source(events(100, k=3), "b.root")
    with pytest.raises(BranchError, match=r"'w_replica': arrays of different lengths found .*a\.root: 2, .*b\.root: 3"):
        measure(RootFiles(str(tmp_path / "?.root"), "events"), OBSERVABLES, weights=WEIGHTS)


def test_nothing_to_measure(events, source):
    files = source(events(10))
    with pytest.raises(ConfigError, match="weights: none given"):
        measure(files, OBSERVABLES, weights=[])
    with pytest.raises(ConfigError, match="observables: none given"):
        measure(files, {}, weights=WEIGHTS)


def test_duplicating_an_event_is_doubling_its_weight(events, source):
    """In the values; sums of squares tell the two apart."""
    arrays = events(2000, seed=7)
    doubled = {**arrays, "w": np.where(arrays["flag"], 2, 1) * arrays["w"]}
    index = np.concatenate([np.arange(2000), np.flatnonzero(arrays["flag"])])
    one = measure(source(doubled), OBSERVABLES, weights=[Weights("w")])
    two = measure(source({k: v[index] for k, v in arrays.items()}, "two.root"), one.observables, weights=[Weights("w")])
    np.testing.assert_allclose(two.values, one.values, rtol=1e-10)
    np.testing.assert_array_less(np.diag(two.statistics)[:3], np.diag(one.statistics)[:3])
