"""The verb: files in, JSON and pictures out, and which events share their conditions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import uproot

from calorefine import Column, Columns, Events
from calorefine.cli import LIGHTNING_VERBS, calorefine
from calorefine.errors import BranchError, CalorefineWarning, ColumnWarning, ConfigError, KeyColumnError, WeightError
from calorefine.io.sample import WeightedFiles
from calorefine.twosample.context_check import context_tests
from calorefine.twosample.pair import Samples, read_samples
from calorefine.verbs.plot import plot_files
from calorefine.verbs.validate import validate_files

COLUMNS = Columns(
    {"x": None, "y": None},
    {"p_gev": Column(expression="P", branch_unit="MeV"), "charge": Column(categories=[-1, 1])},
    key=["run", "event"],
)
KEYS = ("run", "event")


def table(n=600, *, seed=0, shift=0.0):
    """Two features, a context in MeV and a category, keys and a signed weight."""
    rng = np.random.default_rng(seed)
    conditions = np.random.default_rng(99)
    momentum, charge = conditions.uniform(1000, 9000, n), conditions.choice([-1, 1], n).astype(np.int32)
    return {
        "run": np.ones(n, np.uint32),
        "event": np.arange(n, dtype=np.int64),
        "P": momentum,
        "charge": charge,
        "x": rng.normal(momentum / 4000 + shift, 1.0).astype(np.float32),
        "y": rng.gamma(4.0, 1.0, n).astype(np.float32),
        "w": np.where(rng.random(n) < 0.2, -0.4, 1.1),
    }


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.fixture
def files(root_file):
    reference = root_file(table(seed=1), "reference.root")
    generated = root_file(without(table(seed=2, shift=0.8), "P", "charge", *KEYS), "generated.root")
    return {"generated": WeightedFiles(str(generated)), "reference": WeightedFiles(str(reference))}


def test_verb_writes_numbers_and_pictures(files, tmp_path, root_file):
    arrays = table(seed=3)
    arrays["event"] += 10**6
    training = str(root_file(arrays, "training.root"))
    output = tmp_path / "validation.json"
    found = validate_files(**files, output=str(output), columns=COLUMNS, repetitions=2, training=training)
    content = json.loads(output.read_text())
    made = content.pop("provenance")
    assert made["verb"] == "validate"
    left_out = dict.fromkeys(["tree", "friends", "friends_by"])
    assert made["options"]["generated"] == {"files": files["generated"].files, "weight": "none", **left_out}
    assert content == json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert all(path.stat().st_size > 10_000 for path in found.pictures)
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in found.pictures}
    assert not list(tmp_path.glob(".*"))
    assert content["twins"] == "rows"
    assert content["distances"]["x"]["wasserstein"]["p_value"] < 0.01 < content["distances"]["y"]["ks"]["p_value"]
    assert content["worst"]["mean"]["feature"] == "x"
    assert content["memorization"]["n_training"] == 600
    assert content["moment_bins"]["charge"][0]["center"] == -1
    text = str(found)
    for part in ("AUC", "floor", "sliced", "half-width", "by accident", "nearest training event", "nan"):
        assert (part in text) == (part != "nan")


def test_command_line_and_signed_weights(files, tmp_path):
    config = tmp_path / "validate.yaml"
    config.write_text(
        "columns: {features: {x: , y: }, context: {p_gev: {expression: P, branch_unit: MeV}}}\nrepetitions: 1\n"
    )
    options = [f"--{name}={sample.files}" for name, sample in files.items()]
    output = tmp_path / "signed.json"
    options += ["--generated.weight=w", "--reference.weight", "w", "--output", str(output)]
    found = calorefine(["validate", "-c", str(config), *options])
    assert found.classifier.separation.jsd is None
    assert found.reference.n_eff < found.reference.sum_w
    assert "jsd refused: weights are signed" in str(found)
    with pytest.raises(ConfigError, match="exists already"):
        calorefine(["validate", "-c", str(config), *options])
    assert "validate" not in LIGHTNING_VERBS


@pytest.fixture
def purer_at_low_momentum(root_file):
    """Reference with signed weights whose sum varies with momentum, and what was generated at its conditions."""
    reference = table(4000, seed=1)
    reference["w"] = np.where(reference["P"] < 5000, 1.0, np.where(np.arange(4000) % 4 == 0, -0.6, 0.6))
    made = {name: np.tile(values, 2) for name, values in without(table(4000, seed=2), "P", "charge").items()}
    made["w"] = np.tile(reference["w"], 2)
    note = {"columns": COLUMNS.to_dict(), "n_per_event": 2}
    paths = root_file(made, "made.root"), root_file(reference, "purer.root")
    with uproot.update(paths[0]) as file:
        file["calorefine_provenance"] = json.dumps(note)
    return [str(path) for path in paths]


@pytest.mark.parametrize("verb", [validate_files, plot_files])
def test_contexts_that_differ_by_their_weights_are_warned_of(purer_at_low_momentum, tmp_path, verb):
    """Weights on the reference alone make other spectra; on both sides, or on neither, the same."""
    given = {"output": str(tmp_path / ("v.json" if verb is validate_files else "p.png")), "overwrite": True}
    given |= {"repetitions": 1} if verb is validate_files else {}
    plain, weighted = (
        dict(zip(("generated", "reference"), samples, strict=True))
        for samples in (
            [WeightedFiles(path, weight=weight) for path in purer_at_low_momentum] for weight in ("none", "w")
        )
    )
    with pytest.warns(
        CalorefineWarning, match=r"context 'p_gev' \([0-9.]+% of the events, p .*distributed differently"
    ) as caught:
        verb(**given, generated=plain["generated"], reference=weighted["reference"])
    text = str(caught[0].message)
    assert "charge" not in text
    assert "--pass_through w, then --generated.weight 'w'" in text
    verb(**given, **weighted)  # warnings are errors
    verb(**given, **plain)


def test_context_tests_are_uniform_for_independent_samples():
    """Mean of 100 p-values has error 0.03, 4 of them allowed; the chance of accidental failure is 2e-4."""
    rng, columns, found = np.random.default_rng(12), Columns({"x": None}, {"c": None}), []
    for _ in range(100):
        events = []
        for first, choices in ((0, [0.5, 1.5]), (10**6, [-0.5, 1.0])):
            key = np.arange(first, first + 1000, dtype=np.uint64)
            values = rng.normal(size=(2, 1000, 1)).astype(np.float32)
            events.append(Events(*values, rng.choice(choices, 1000, p=[0.3, 0.7]), key, key))
        found.append(context_tests(Samples(columns, *events, "none"))["c"].p_value)
    assert abs(np.mean(found) - 0.5) < 0.12
    assert min(found) > 1e-6


def test_copies_at_other_conditions_and_training_statistics_are_found(files, tmp_path, root_file):
    """A library gives back training events, unchanged but for rounding, at conditions that are not theirs."""
    training = table(seed=3)
    training["event"] += 10**6
    copied = {name: np.roll(training[name], 7) * np.float32(1 + 1e-7) for name in "xy"}
    given = {"reference": files["reference"], "columns": COLUMNS, "repetitions": 1}
    given |= {"training": str(root_file(training, "training.root")), "output": str(tmp_path / "v.json")}
    found = validate_files(generated=WeightedFiles(str(root_file(copied, "copied.root"))), **given)
    assert (found.memorization.zero_generated, found.memorization.zero_reference) == (1.0, pytest.approx(0, abs=0.01))
    assert found.training_n_eff is None
    assert "training sample: unknown" in str(found)
    with pytest.warns(CalorefineWarning, match="100 % of the reference's events are in the training sample"):
        validate_files(generated=files["generated"], **given | {"training": files["reference"].files}, overwrite=True)


def read(generated, reference, **options):
    given = {"columns": COLUMNS} | options
    return read_samples(WeightedFiles(str(generated), "events"), WeightedFiles(str(reference), "events"), **given)


def test_context_by_key_is_found_in_any_order(root_file):
    reference, arrays = table(seed=1), without(table(seed=2), "P", "charge")
    order = np.random.default_rng(0).permutation(600)[:500]
    shuffled = {name: array[order] for name, array in arrays.items()}
    found = read(root_file(shuffled, "g.root"), root_file(reference, "r.root"))
    assert found.twins == "keys"
    np.testing.assert_array_equal(found.generated.context, found.reference.context[order])
    np.testing.assert_allclose(found.generated.context[:, 0], reference["P"][order] / 1000, rtol=1e-6)
    shuffled["event"] = shuffled["event"] + 10**6
    with pytest.raises(KeyColumnError, match="500 of 500 events have keys"):
        read(root_file(shuffled, "h.root"), root_file(reference, "r.root"))


def test_rows_are_twins_only_at_equal_conditions(root_file):
    reference = root_file(table(seed=1), "r.root")
    assert read(root_file(without(table(seed=2), *KEYS), "same.root"), reference).twins == "rows"
    moved = without(table(seed=2), *KEYS)
    moved["P"] = moved["P"][::-1]
    found = read(root_file(moved, "moved.root"), reference)
    assert found.twins == "none"
    assert not set(found.generated.event_key) & set(found.reference.event_key)


def test_cut_is_applied_to_both(root_file):
    columns = Columns({"x": None}, {"P": None}, cut="charge > 0")
    found = read(root_file(table(seed=2), "g.root"), root_file(table(seed=1), "r.root"), columns=columns)
    assert len(found.generated) == len(found.reference) == np.sum(table()["charge"] > 0)


def test_errors(files, tmp_path, root_file):
    output = str(tmp_path / "out.json")
    with pytest.raises(ConfigError, match=r"ends in \.json"):
        validate_files(**files, output=str(tmp_path / "out.html"), columns=COLUMNS)
    with pytest.raises(ConfigError, match="no provenance that names its columns"):
        validate_files(**files, output=output)
    short = root_file({name: array[:500] for name, array in table(seed=2).items() if name in "xy"}, "short.root")
    with pytest.raises(BranchError, match="has 500 rows, expected 600"):
        sample = WeightedFiles(str(short))
        validate_files(generated=sample, reference=files["reference"], output=output, columns=COLUMNS)
    with pytest.raises(WeightError, match=r"generated\.root.*sum to"):
        files["generated"] = WeightedFiles(files["generated"].files, weight="0 * w")
        validate_files(**files, output=output, columns=COLUMNS)
    assert not list(tmp_path.glob("out*"))


def test_columns_that_spoil_the_comparison_are_warned_of(root_file, tmp_path):
    """A time stamp in single precision, and a sum of two features; with the offset, numbers are the original ones."""
    made, known = (table(seed=seed) for seed in (1, 2))
    for arrays in (made, known):
        arrays["sum"] = arrays["x"].astype(np.float64) + arrays["y"]
        arrays["t"] = 1.7e9 + np.random.default_rng(5).normal(0, 300, 600)
    paths = root_file(made, "made.root"), root_file(known, "known.root")
    given = dict(zip(("generated", "reference"), [WeightedFiles(str(path)) for path in paths], strict=True))
    given |= {"output": str(tmp_path / "v.json"), "repetitions": 1, "overwrite": True}
    described = {"x": None, "y": None, "sum": None}
    with pytest.warns(ColumnWarning) as caught:
        validate_files(**given, columns=Columns(described, {"t": None}, key=["run", "event"]))
    texts = [str(one.message) for one in caught]
    assert len(texts) == 2
    assert "known.root" in texts[0] and "context 't': single precision has steps of 128 there" in texts[0]
    assert "feature 'sum': is a function of (x, y, t), and tells nothing that these don't" in texts[1]
    offset = float(texts[0].rpartition(" ")[2])
    columns = Columns({"x": None, "y": None}, {"t": Column(offset=offset)}, key=["run", "event"])
    found = validate_files(**given, columns=columns)  # warnings are errors
    assert found.moment_bins["t"][0].low > 1.69e9
