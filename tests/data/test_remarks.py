"""What is said of columns at set-up, and what is kept of large numbers.

False alarms: each legitimate column below has been drawn 400 times (seeds 1000 to 1399), and none of 4800 samples was
remarked on: the chance of one is below 1e-3 (95 %).  The seeds here are fixed, and nothing in them is trained.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import uproot

from calorefine import Column, Columns, EventDataModule, keys
from calorefine.data.remarks import coarse, remarks, remarks_on_pair
from calorefine.datasets import ImpureToy, RatioToy
from calorefine.errors import ColumnWarning, ValueRangeError
from calorefine.events import Events
from calorefine.fit.command import lightning
from calorefine.verbs.sample import sample_file

N = 10_000
CONTEXT = {"pt": None, "eta": None, "n_pv": None}
KIND = {"kind": Column(categories=[0, 1])}


def conditions(rng, n=N):
    return {"pt": 1 + rng.exponential(3, n), "eta": rng.uniform(1.5, 5, n), "n_pv": rng.poisson(30, n)}


def said(x, context, columns=None, weight=None, *, more=None):
    """Remarks on a single feature `x`."""
    described = Columns({"x": columns}, CONTEXT | (more or {}))
    key = keys.make_keys([np.arange(len(x))])
    weight = np.ones(len(x)) if weight is None else weight
    return remarks(
        Events(described.encode_features({"x": x}), described.encode_context(context), weight, key, key), described
    )


FUNCTIONS = {
    "multiple": lambda c: 4 * c["pt"],
    "combination": lambda c: 2 * c["pt"] - c["eta"] + 0.1 * c["n_pv"],
    "monotone": lambda c: np.log(c["pt"]),
    "product": lambda c: c["pt"] * c["n_pv"],
    "momentum": lambda c: c["pt"] * np.cosh(c["eta"]),
    "angle": lambda c: 2 * np.arctan(np.exp(-c["eta"])),
    "rounded": lambda c: np.round(4 * c["pt"], 4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_context_are_found(name):
    """Seeds 0 to 4, weights of any sign."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        context = conditions(rng)
        (text,) = said(FUNCTIONS[name](context), context, weight=rng.choice([1.3, -0.3], N))
        assert "feature 'x': is a function of the context (" in text
        assert "leave it out of the features, and set it from the context" in text
        assert ("(pt)" in text) == (name in ("multiple", "monotone", "rounded"))


def test_a_function_that_depends_on_a_category():
    rng = np.random.default_rng(5)
    context = conditions(rng) | {"kind": rng.integers(0, 2, N)}
    (text,) = said(np.where(context["kind"] == 1, 4.0, 1.5) * context["pt"], context, more=KIND)
    assert "(pt, eta, n_pv, kind)" in text


LEGITIMATE = {
    "resolution": lambda rng, c: c["pt"] * (1 + 2e-3 * rng.normal(size=N)) + 0.05 * rng.normal(size=N),
    "noise": lambda rng, _: rng.normal(size=N),
    "tails": lambda rng, _: rng.standard_cauchy(N),
    "shower": lambda rng, c: rng.gamma(3, c["eta"]),
    "asymmetry": lambda rng, _: 2 * rng.beta(3, 4, N) - 1,
    "zeros": lambda rng, _: np.where(rng.random(N) < 0.6, 0.0, rng.exponential(size=N)),
    "saturated": lambda rng, _: np.minimum(rng.normal(size=N), 1.5),
    "adc": lambda rng, _: np.round(rng.normal(2000, 300, N)),
    "mixture": lambda rng, c: np.where(rng.random(N) < 0.1, rng.normal(5, 0.3, N), rng.normal(c["eta"], 1.0)),
}
DESCRIBED = {
    "counts": (Column(transform="integer"), lambda rng, c: rng.poisson(c["eta"])),
    "cut": (Column(bounds=(75.0, None)), lambda rng, _: 75 + rng.exponential(20, N)),
    "unit": (Column(bounds=(0.0, 1.0)), lambda rng, _: rng.random(N)),
}


@pytest.mark.parametrize("name", [*LEGITIMATE, *DESCRIBED])
def test_nothing_is_said_of_what_is_right(name):
    column, draw = DESCRIBED.get(name, (None, LEGITIMATE.get(name)))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        context = conditions(rng)
        assert said(draw(rng, context), context, column) == []


def test_integers_and_hard_edges_are_told_with_the_option():
    rng = np.random.default_rng(6)
    context = conditions(rng)
    (text,) = said(rng.poisson(2, N), context)
    assert "all values are integers, from 0 to " in text
    assert text.endswith("expected transform: integer")
    (text,) = said(75 + rng.exponential(20, N), context, weight=rng.choice([1.2, 0.8], N))
    assert "the density ends at 75, " in text
    assert "expected bounds: [75, null]" in text
    low, high = said(-3 + 5 * rng.random(N), context)
    assert "expected bounds: [-3, null]" in low
    assert "expected bounds: [null, 2]" in high
    (high,) = said(-3 + 5 * rng.random(N), context, Column(bounds=(-3.0, None)))
    assert "expected bounds: [null, 2]" in high


COLUMNS = {"features": {"time_s": None}, "context": {"start_s": None}, "key": ["event"]}


@pytest.fixture
def times(root_file):
    """A file with time stamps of a run of ten minutes: single precision has steps of 128 s there."""
    rng = np.random.default_rng(7)
    start = 1.7e9 + rng.uniform(0, 600, 2000)
    return root_file({"start_s": start, "time_s": start + rng.normal(30, 5, 2000), "event": np.arange(2000)})


def fit(path, tmp_path):
    features = ["--data.columns.features", "{time_s: }", "--data.columns.context", "{start_s: }"]
    data = ["--data.files", str(path), "--data.tree", "events", "--data.columns.key", "[event]", *features]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    more = ["--model", "Library", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", *quiet]
    return lightning(["fit", *data, *more, "--trainer.log_every_n_steps", "1", "--runs", str(tmp_path)])


def test_large_numbers_keep_their_digits(times, tmp_path):
    """Through training, checkpoint and file; a library gives training events back to a millisecond."""
    run = fit(times, tmp_path)
    assert "time_s - 1700000" in (run.run_dir / "summary.txt").read_text()
    best = run.run_dir / "checkpoints" / "best.ckpt"
    summary = sample_file(checkpoint=str(best), conditions=str(times), output=str(tmp_path / "out.root"))
    assert summary.n_outside["start_s"] <= 20
    with uproot.open(times) as file, uproot.open(tmp_path / "out.root") as out:
        known, generated = (f["events/time_s"].array(library="np") for f in (file, out))
    assert len(np.unique(generated)) > 1000
    nearest = np.sort(known)[np.clip(np.searchsorted(np.sort(known), generated - 1e-3), 0, 1999)]
    np.testing.assert_allclose(generated, nearest, rtol=0, atol=2e-3)


def test_offsets_are_exact_and_stored(times):
    data = EventDataModule(files=str(times), tree="events", columns=Columns(**COLUMNS))
    data.setup()
    columns = Columns.from_dict(data.prepared.to_dict()["columns"])
    assert set(columns.offsets) == {"time_s", "start_s"}
    values = 1.7e9 + np.arange(0, 600, 0.5)
    np.testing.assert_array_equal(
        columns.decode_features(columns.encode_features({"time_s": values}))["time_s"], values
    )
    assert np.ptp(data.train.x) > 500
    assert len(np.unique(data.train.x)) > 1500
    low, high = data.prepared.domain[0] + columns.offsets["start_s"]
    assert 1.7e9 <= low < high <= 1.7e9 + 600


def test_bounds_are_in_the_units_of_the_column(times):
    bounded = {"features": {"time_s": Column(bounds=(1.7e9, None))}}
    data = EventDataModule(files=str(times), tree="events", columns=Columns(**COLUMNS | bounded))
    data.setup()
    x = data.prepared.features.inverse(torch.tensor([[-8.0], [0.0]])).numpy()
    low, center = data.prepared.columns.decode_features(x)["time_s"]
    assert 1.7e9 <= low < center < 1.7e9 + 600
    bounded = {"features": {"time_s": Column(bounds=(1.7e9 + 100, None))}}
    with pytest.raises(ValueRangeError, match=r"column 'time_s - 1700000\d+': \d+ of \d+ values are outside"):
        EventDataModule(files=str(times), tree="events", columns=Columns(**COLUMNS | bounded)).setup()


def test_what_needs_no_offset_gets_none(toy_data):
    assert toy_data.prepared.columns.offsets == {}
    assert Column().centered(np.random.default_rng(0).normal(1e5, 10, 1000)).offset is None


def test_remarks_are_warnings_of_the_nominal_set_up(root_file):
    rng = np.random.default_rng(8)
    path = root_file({"x": rng.poisson(3, 1000), "c": rng.random(1000), "event": np.arange(1000)})
    columns = Columns({"x": None}, {"c": None}, key=["event"])
    nominal = EventDataModule(files=str(path), tree="events", columns=columns)
    with pytest.warns(ColumnWarning, match=r"events\.root.*feature 'x': all values are integers"):
        nominal.setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replica = nominal.for_replica(type(nominal.replica)(1))
        replica.setup()


def pair(draw, *, n=4000, seed=0):
    """Remarks on a generated and a reference sample; `draw` makes the features of each."""
    events = []
    for which in ("generated", "reference"):
        rng = np.random.default_rng([seed, len(events)])
        table = {k: np.asarray(v, np.float64) for k, v in draw(rng, n, which).items()}
        described = Columns({k: None for k in table if k != "c"}, {"c": None} if "c" in table else {})
        key = keys.make_keys([np.arange(len(table["x"]))])
        weight = rng.choice([1.3, -0.3], len(key))
        events.append(Events(described.encode_features(table), described.encode_context(table), weight, key, key))
    return remarks_on_pair(*events, described)


def related(rng, n, _):
    x, y, c = rng.normal(1, 1, n), rng.gamma(3, 1, n), rng.uniform(0, 1, n)
    return {"x": x, "y": y, "total": x + y, "product": x * y, "angle": np.arctan(2 * c), "c": c}


def test_functions_of_other_columns_are_told_once():
    """The sum of two is one of three that the others determine: only the last is left out."""
    texts = pair(related)
    assert [text.split("'")[1] for text in texts] == ["total", "product", "angle"]
    assert all("tells nothing that these don't; leave it out" in text for text in texts)
    assert "(x, y, c)" in texts[0]


def test_functions_and_integers_in_one_sample_tell_it_apart():
    def smeared(rng, n, which):
        table = related(rng, n, which)
        noise = rng.normal(0, 0.02 * (which == "generated"), n)
        return {"x": table["x"], "y": table["y"], "total": table["total"] + noise, "c": table["c"]}

    (text,) = pair(smeared)
    assert "feature 'total': is a function of (x, y, c) in the reference events alone, which tells" in text

    def counted(rng, n, which):
        return {"x": rng.normal(size=n), "k": rng.poisson(4, n) + 0.1 * rng.normal(size=n) * (which == "generated")}

    (text,) = pair(counted)
    assert "feature 'k': all values are integers in the reference events alone" in text
    assert pair(lambda rng, n, _: {"x": rng.normal(size=n), "k": rng.poisson(4, n)}) == []


def library(rng, n, which):
    """Generated events that are copies of few others, at other contexts."""
    table = ImpureToy().generate(n, seed=int(rng.integers(1000)))
    rows = rng.integers(0, 800, n) if which == "generated" else np.arange(n)
    return {"x": table["x"][rows], "y": table["y"][rows], "z": table["m"][rows], "c": table["c"]}


def eight(rng, n, _):
    x = RatioToy().generate(n, seed=int(rng.integers(1000)))["x"]
    return {"x": x[:, 0]} | {f"x{k}": x[:, k] for k in range(1, 8)}


def layers(rng, n, _):
    """Layers without energy where there are no hits, edges, atoms, and a resolution of 0.2 %."""
    hits, x = rng.poisson(1.0, n), 75 + rng.exponential(20, n)
    energy = np.where(hits == 0, 0.0, rng.gamma(np.maximum(hits, 1), 1.0))
    return {"x": x, "hits": hits, "energy": energy, "near": x * (1 + 2e-3 * rng.normal(size=n)), "c": rng.random(n)}


@pytest.mark.parametrize("draw", [library, eight, layers])
def test_nothing_is_said_of_legitimate_pairs(draw):
    for seed in range(5):
        assert pair(draw, seed=seed) == []


def test_coarse_columns_are_told_with_their_offset():
    stamps = {
        "t": 1.7e9 + np.random.default_rng(8).normal(0, 300, 1000),
        "x": np.random.default_rng(8).normal(size=1000),
    }
    (text,) = coarse(stamps, Columns({"x": None}, {"t": None}))
    assert text.startswith("context 't': single precision has steps of 128 there, 0.4")
    offset = float(text.rpartition(" ")[2])
    assert coarse(stamps, Columns({"x": None}, {"t": Column(offset=offset)})) == []
    assert abs(offset - 1.7e9) < 1000
