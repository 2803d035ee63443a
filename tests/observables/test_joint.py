"""The covariance of observables of the same events, where rows of one event are no independent ones."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import uproot

from calorefine.errors import KeyColumnError, KeyWarning
from calorefine.intervals import UNSEEN
from calorefine.io.root import RootFiles
from calorefine.observables import Efficiency, Histogram, Mean, Quantile, Weights, Width, measure
from calorefine.observables.statistics import SpreadKeys

EDGES = [0.0, 4.0, 10.0]
OBSERVABLES = {
    "counts": Histogram("p", edges=EDGES),
    "shape": Histogram("x", edges=[0, 5, 8], normalize="unit"),
    "above_4": Efficiency("x > 4", "p", edges=EDGES),
    "above_5": Efficiency("x > 5", "p", edges=EDGES),
    "mean": Mean("x", "p", edges=EDGES),
    "width": Width("x", "p", edges=EDGES, range=(-20, 40)),
    "quantile": Quantile("x", "p", levels=[0.2, 0.6], edges=EDGES, range=(-20, 40)),
}
WEIGHTS = [Weights("w")]
FIELDS = ("values", "statistics", "dof", "intervals")


def keyed(arrays):
    return {name: arrays[name] for name in ("p", "x", "w")} | {"event": np.arange(len(arrays["p"]))}


def influences(table, name):
    """Of each row on the values of a kind, without the package."""
    w, x, bins = table["w"], table["x"], np.digitize(table["p"], EDGES) - 1
    of = {"above_4": x > 4, "above_5": x > 5, "mean": x}[name]
    columns = []
    for k in range(2):
        inside = w * (bins == k)
        columns.append(inside * (of - (inside @ of) / inside.sum()) / inside.sum())
    return np.stack(columns, axis=1)


def test_joint_covariance_of_candidates_is_that_of_their_summed_influences(events, source):
    """Three candidates of an event share most of p; their rows are neighbors, shuffled, and cut by chunks."""
    table = keyed(events(3000, seed=21))
    table["event"] = table["event"] // 3
    table["p"] = np.clip(np.repeat(table["p"][::3], 3) + np.linspace(-0.3, 0.3, 3000), 0, 9.99)
    names = ["above_4", "above_5", "mean"]
    rows = np.concatenate([influences(table, name) for name in names], axis=1)
    summed = np.stack([np.bincount(table["event"], column) for column in rows.T], axis=1)
    order = np.random.default_rng(21).permutation(3000)
    kinds = {name: OBSERVABLES[name] for name in names}
    for number, at in enumerate((np.arange(3000), order)):
        files = source({name: values[at] for name, values in table.items()}, f"{number}.root")
        for chunk in (None, 100):
            found = measure(files, kinds, weights=WEIGHTS, key=["event"], rows=chunk).statistics
            off = ~np.eye(6, dtype=bool)
            np.testing.assert_allclose(found[off], (summed.T @ summed)[off], rtol=1e-9, atol=1e-15)
            more = np.diag(found) / np.diag(summed.T @ summed) - 1
            assert np.all((more > 0) & (more < 4 * UNSEEN / 300))


def test_copies_of_equal_key_change_nothing(events, source):
    """Five copies of a fifth of the weight: the same values, errors, intervals and effective numbers of events."""
    table = keyed(events(1500, seed=22))
    once = measure(source(table), OBSERVABLES, weights=WEIGHTS, key=["event"])
    copied = {name: np.repeat(values, 5) for name, values in table.items()}
    copied["w"] = copied["w"] / 5
    spread = {name: np.tile(values, 5) for name, values in table.items()}
    spread["w"] = spread["w"] / 5
    for name, arrays in (("copied.root", copied), ("spread.root", spread)):
        found = measure(source(arrays, name), OBSERVABLES, weights=WEIGHTS, key=["event"], rows=997)
        block = slice(0, once.part("mean").stop)  # slopes of quantiles depend on the rows as well
        for attribute in FIELDS:
            actual, expected = (getattr(one, attribute)[..., block] for one in (found, once))
            np.testing.assert_allclose(actual[: block.stop], expected[: block.stop], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.statistics, once.statistics, rtol=0.1, atol=0.1)
        assert found.entries["counts"].n_eff == pytest.approx(once.entries["counts"].n_eff)
    rows = measure(source(copied, "rows.root"), OBSERVABLES, weights=WEIGHTS, key=[])
    ratio = np.diag(rows.statistics)[:2] / np.diag(once.statistics)[:2]
    np.testing.assert_allclose(ratio, 0.2, rtol=0.02)


def generated(path, arrays, **provenance):
    with uproot.recreate(path) as file:
        file.mktree("events", {name: values.dtype for name, values in arrays.items()}).extend(arrays)
        file["calorefine_provenance"] = json.dumps(provenance)
    return RootFiles(str(path), "events")


def test_generated_files_tell_which_rows_are_copies(events, tmp_path):
    """By key branches where there are some, else by the number of copies; what can't be told is warned of."""
    table = {name: np.repeat(values, 4) for name, values in keyed(events(300, seed=23)).items()}
    columns = {"key": ["event"], "candidate": None}
    told = measure(generated(tmp_path / "a.root", table, columns=columns), OBSERVABLES, weights=WEIGHTS)
    assert told.events.key == ("event",)
    bare = {name: values for name, values in table.items() if name != "event"}
    by_number = generated(tmp_path / "b.root", bare, columns=columns, n_per_event=4)
    for rows in (None, 6):
        found = measure(by_number, OBSERVABLES, weights=WEIGHTS, rows=rows)
        assert found.events.copies == 4
        np.testing.assert_allclose(found.statistics, told.statistics, rtol=1e-9, atol=1e-15)
    kept = generated(tmp_path / "c.root", bare, columns=columns, n_per_event=4, unweight={"number": 1})
    with pytest.warns(KeyWarning, match="count as independent, and errors are too small; pass the key through"):
        measure(kept, OBSERVABLES, weights=WEIGHTS)
    with pytest.raises(KeyColumnError, match="key branch 'x' is of type float64, expected integers"):
        measure(kept, OBSERVABLES, weights=WEIGHTS, key=["x"])


def test_no_key_is_held_that_repeats_within_chunks_only():
    """Memory: sums are held for keys of several chunks alone."""
    spread = SpreadKeys()
    for first in range(0, 1000, 100):
        spread.add(np.arange(first, first + 101, dtype=np.uint64).repeat(3))
    assert spread.keys().tolist() == list(range(100, 1000, 100))
    assert len(SpreadKeys().keys()) == 0


def test_memory_does_not_grow_with_the_number_of_rows(events, tmp_path):
    """The peak of 100 000 events of two rows is less than 2 MB, and 24 bytes an event, above that of 10 000."""
    peaks = []
    for n in (10_000, 100_000):
        table = {name: np.repeat(values, 2) for name, values in keyed(events(n, seed=24)).items()}
        with uproot.recreate(tmp_path / f"{n}.root") as file:
            tree = file.mktree("events", {name: values.dtype for name, values in table.items()})
            for first in range(0, 2 * n, 5000):
                tree.extend({name: values[first : first + 5000] for name, values in table.items()})
        files = RootFiles(str(tmp_path / f"{n}.root"), "events")
        tracemalloc.start()
        measure(files, {"e": OBSERVABLES["above_4"]}, weights=WEIGHTS, key=["event"], rows=5000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2e6 + 24 * 90_000
