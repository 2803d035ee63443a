"""How much of a calibration sample's statistics the weights of replicas hold, and what `propagate` makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import uproot

from calorefine import Columns
from calorefine.errors import FitError
from calorefine.io.provenance import PROVENANCE
from calorefine.io.sample import WeightedFiles
from calorefine.observables import Efficiency, Histogram
from calorefine.reweighting.resolved import TERMS, resolved, terms_record
from calorefine.reweighting.tilt import COPIES, Terms, Weighted, shift_coefficients
from calorefine.systematics.variations import Variations
from calorefine.verbs.propagate import propagate_files

COLUMNS = Columns({"x": None, "y": None}, {"c": None}, key=["event"])
N, N_REFERENCE, K = 20_000, 4000, 200
TAILS = [-9, -2.5, -1.5, 0, 1.5, 2.5, 9]
OBSERVABLES = {
    "share": Histogram(expression="x", edges=TAILS, normalize="unit"),
    "context": Histogram(expression="c", edges=[0, 0.3, 0.6, 1], normalize="unit"),
    "passing": Efficiency(passed="x > 0.4", expression="c", edges=[0, 0.5, 1]),
}


def sample(n, *, seed):
    rng = np.random.default_rng(seed)
    c, x, y = rng.random(n), *rng.normal(size=(2, n))
    return {"x": x, "y": y, "c": c, "event": np.arange(n), "weight": rng.uniform(0.5, 1.5, n)}


def table(arrays):
    return np.stack([arrays[name] for name in "xyc"], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Sample with K weights that are tilts to bootstrap copies of another one, and the copies' own values."""
    arrays, reference = sample(N, seed=1), sample(N_REFERENCE, seed=2)
    rows, ones = (table(arrays), arrays["weight"]), np.ones(N_REFERENCE)
    terms = Terms.chosen(rows, (table(reference), ones), 2, COPIES)
    counts = np.random.default_rng(3).poisson(1.0, (N_REFERENCE, K)).astype(float)
    drawn, copied = Weighted(terms, *rows), Weighted(terms, table(reference), counts)
    shifts = copied.means() - Weighted(terms, table(reference), ones).means()[:, None]
    factors = 1 + drawn.combined(shift_coefficients(drawn.squares(), shifts, terms.given))
    path = tmp_path_factory.mktemp("resolved") / "sample.root"
    arrays["weight_replica"] = arrays["weight"][:, None] * factors
    arrays["x_only"] = arrays["weight_replica"]
    with uproot.recreate(path) as out:
        out.mktree("events", {name: (a.dtype, a.shape[1:]) for name, a in arrays.items()}).extend(arrays)
        out[PROVENANCE] = json.dumps({TERMS: {"weight_replica": terms_record(COLUMNS, terms)}})
    return path


def rewritten(file, path, *, keep=lambda arrays: np.ones(len(arrays["x"]), bool), record=lambda record: record):
    """The same file with some of its rows, or with another provenance."""
    with uproot.open(file) as opened, uproot.recreate(path) as out:
        arrays, told = opened["events"].arrays(library="np"), json.loads(opened[PROVENANCE])
        rows = {name: array[keep(arrays)] for name, array in arrays.items()}
        out.mktree("events", {name: (a.dtype, a.shape[1:]) for name, a in rows.items()}).extend(rows)
        out[PROVENANCE] = json.dumps(record(told))
    return path


def propagated(file, calibration=None, **observables):
    return propagate_files(
        nominal=str(file),
        weight="weight",
        observables=observables,
        calibration=calibration or Variations(weights="weight_replica"),
        output=str(file.with_name("systematics")),
        overwrite=True,
    )


def test_spread_and_the_rest_are_the_statistics_of_the_sample_copied(file):
    """Errors of shares and of an efficiency, tails included, are those of 4000 events.

    K replicas know an error to 5 %, and the scale of what they miss to less: the bounds are five of these.
    """
    found = propagated(file, share=OBSERVABLES["share"], passing=OBSERVABLES["passing"])
    sources = found.systematics.sources
    spread, missing = (np.diag(sources[name].covariance) for name in ("calibration", "unresolved"))
    p = found.systematics.nominal
    expected = np.sqrt(p * (1 - p) / np.where(np.arange(len(p)) < len(TAILS) - 1, N_REFERENCE, N_REFERENCE / 2))
    np.testing.assert_allclose(np.sqrt(spread + missing) / expected, 1, atol=0.25)
    assert missing[0] > 0.1 * spread[0]  # the spread alone is too small there
    assert "'weight_replica' recovers 0." in str(found)


def test_slopes_are_those_of_a_regression(file):
    held = resolved(WeightedFiles(str(file), weight="weight"), OBSERVABLES, "weight_replica")
    with uproot.open(file) as opened:
        arrays = opened["events"].arrays(["x", "y", "c", "weight"], library="np")
        record = json.loads(opened[PROVENANCE])[TERMS]["weight_replica"]
    terms, w = Terms.from_dict(record["terms"]), arrays["weight"]
    b, root = terms(table(arrays)), np.sqrt(w)[:, None]
    inside = (arrays["x"] > -2.5) & (arrays["x"] < -1.5)
    u = ((inside - np.average(inside, weights=w)) / w.sum())[:, None]
    rests = [float(np.linalg.lstsq(root * a, root * u, rcond=None)[1][0]) for a in (b, b[:, terms.given])]
    rest = rests[0] / (1 - b.shape[1] / (w.sum() ** 2 / np.sum(w**2)))
    assert held.rest[1, 1] == pytest.approx(rest, rel=1e-4)
    assert held.slope[1] == pytest.approx(1 - rest / rests[1], rel=1e-4)


def test_what_the_context_decides_has_nothing_to_recover(file):
    held = resolved(WeightedFiles(str(file), weight="weight"), OBSERVABLES, "weight_replica")
    part = slice(len(TAILS) - 1, len(TAILS) + 2)
    np.testing.assert_array_equal(held.slope[part], 1)
    np.testing.assert_array_equal(held.rest[part], 0)
    assert (held.slope[: len(TAILS) - 1] < 1).all()


def test_an_observable_that_the_terms_miss_is_refused(file):
    """Whether two features are close to each other; and one that the weights don't know at all."""
    close = Efficiency(passed="abs(x - y) < 0.05", expression="c", edges=[0, 1])
    with pytest.raises(FitError, match=r"'weight_replica': of a shift of 'close' 0\.\d\d is recovered.*of the members"):
        propagated(file, close=close)
    entries = Variations(weights=[f"weight_replica[{k}]" for k in range(3)])
    with pytest.raises(FitError, match=r"'weight_replica': of a shift of 'close'"):
        propagated(file, calibration=entries, close=close)
    unknown = Efficiency(passed="event > 15000", expression="c", edges=[0, 1])
    with pytest.raises(FitError, match=r"'unknown' -?0\.0\d is recovered"):
        propagated(file, unknown=unknown)


def test_weights_of_unknown_making_are_taken_as_they_are(file):
    assert resolved(WeightedFiles(str(file), weight="weight"), OBSERVABLES, "x_only") is None


def test_too_few_events_to_tell(file, tmp_path):
    few = rewritten(file, tmp_path / "few.root", keep=lambda arrays: arrays["event"] < 500)
    with pytest.raises(FitError, match=r"few\.root.*effective number of \d+ events found, expected at least \d+"):
        resolved(WeightedFiles(str(few), weight="weight"), OBSERVABLES, "weight_replica")
    told = propagated(few, share=Histogram(expression="x", edges=[-9, 0, 9], normalize="unit"))
    assert "WARNING: " in str(told)
    assert "errors may be too small" in str(told)
    assert "unresolved" not in told.systematics.sources


def test_events_outside_of_the_cut_do_not_count(file, tmp_path):
    """Replicas don't move them: the slope is that of a file without them."""
    observables = {"passing": Efficiency(passed="x > 1", expression="c", edges=[0, 1], selection="x > 0")}

    def cut(record):
        columns = Columns({"x": None, "y": None}, {"c": None}, key=["event"], cut="x > 0")
        record[TERMS]["weight_replica"]["columns"] = columns.to_dict()
        return record

    every = rewritten(file, tmp_path / "every.root", record=cut)
    inside = rewritten(file, tmp_path / "inside.root", keep=lambda arrays: arrays["x"] > 0)
    slopes = [
        resolved(WeightedFiles(str(path), weight="weight"), observables, "weight_replica").slope
        for path in (every, inside)
    ]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-6)
