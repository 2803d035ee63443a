"""`calorefine plot`: what is drawn is normalized to the reference, and bad input is one error."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine.errors import BranchError, ConfigError, EmptySelectionError, FileError, ValueRangeError, WeightError
from calorefine.io.sample import SampleRows, WeightedFiles
from calorefine.pages.validation import overlay_figure
from calorefine.twosample.overlay import overlay
from calorefine.verbs.plot import plot_files
from calorefine.verbs.sample import sample_file


@pytest.fixture
def pair(root_file):
    """A generated and a reference file with signed weights."""
    rng = np.random.default_rng(41)
    made = {"x": rng.normal(size=2000), "k": rng.poisson(2, 2000)}
    target = {"x": rng.normal(size=1000), "k": rng.poisson(2, 1000), "w": rng.normal(0.5, 1.0, 1000)}
    paths = {"generated": root_file(made, "made.root"), "reference": root_file(target, "target.root")}
    return {name: WeightedFiles(str(path)) for name, path in paths.items()}


def sample(values, weight, first=0):
    keys = np.arange(first, first + len(values), dtype=np.uint64)
    return SampleRows({"x": values}, weight, keys, keys)


def compare(names, generated, reference, *, bins):
    return overlay_figure({name: overlay(name, generated, reference, bins=bins) for name in names})


def errors(figure):
    """Half the lengths of the error bars in the panel of the ratio."""
    segments = np.array(figure.axes[1].containers[0].lines[2][0].get_segments())
    return (segments[:, 1, 1] - segments[:, 0, 1]) / 2


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_picture(pair, tmp_path, ending):
    output = tmp_path / f"plot.{ending}"
    pair["reference"] = WeightedFiles(pair["reference"].files, weight="w")
    report = plot_files(**pair, output=str(output), features=["x", "k * 2"])
    assert report == f"{output}: 2 features of 2000 generated and 1000 reference events"
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending]
    assert output.read_bytes().startswith(start)


def test_features_come_from_the_provenance(one_checkpoint, root_file, toy, tmp_path):
    source = root_file(toy(200))
    sample_file(checkpoint=str(one_checkpoint), conditions=str(source), output=str(tmp_path / "made.root"))
    report = plot_files(
        generated=WeightedFiles(str(tmp_path / "made.root")),
        reference=WeightedFiles(str(source), weight="w"),
        output=str(tmp_path / "p.png"),
    )
    assert "2 features of 200 generated and 200 reference" in report


def test_both_are_normalized_to_the_reference():
    """Histogram contents are read back from the figure: equal samples of other weights have ratio 1 in every bin."""
    values = np.random.default_rng(42).normal(size=5000)
    figure = compare(["x"], sample(values, np.full(5000, 7.0)), sample(values, np.full(5000, 0.3)), bins=10)
    _, lower = figure.axes
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"reference", "generated"}
    ratio = lower.containers[0].lines[0].get_ydata()
    assert np.isfinite(ratio).sum() >= 8
    np.testing.assert_allclose(ratio[np.isfinite(ratio)], 1.0)


def test_errors_know_copies_and_twins():
    """Five equal copies tell no more than one; a twin that is equal cancels; independent events are the usual ratio."""
    rng = np.random.default_rng(43)
    a, b, ones = rng.normal(size=4000), rng.normal(size=4000), np.ones(4000)
    independent = sample(a, ones, first=4000)
    event_keys = np.repeat(independent.event_key, 5)
    copies = SampleRows({"x": np.repeat(a, 5)}, np.ones(20_000), np.arange(20_000, dtype=np.uint64), event_keys)
    usual, copied = (compare(["x"], one, sample(b, ones), bins=10) for one in (independent, copies))
    np.testing.assert_allclose(errors(copied), errors(usual))
    edges = np.linspace(*usual.axes[1].get_xlim(), 11)
    made, target = (np.histogram(values, edges)[0] for values in (a, b))
    expected = made / target * np.sqrt(1 / made + 1 / target)
    np.testing.assert_allclose(errors(usual), expected[target > 9])
    np.testing.assert_allclose(errors(compare(["x"], sample(b, ones), sample(b, ones), bins=10)), 0, atol=1e-9)


def test_bins_without_reference_have_no_ratio():
    """A bin whose weights sum to zero or less tells nothing, and is left out instead of drawn at infinity."""
    values, weight = np.repeat(np.arange(10.0), 20), np.ones(200)
    weight[80:100] = np.tile([1.0, -1.0], 10)
    figure = compare(["x"], sample(values, np.ones(200)), sample(values, weight), bins=10)
    ratio = figure.axes[1].containers[0].lines[0].get_ydata()
    assert np.isnan(ratio).sum() == 1
    assert np.isnan(ratio[4])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": None}, ConfigError, r"made\.root: has no provenance .*--features"),
        ({"features": ["y"]}, BranchError, r"made\.root, tree 'events': there is no branch 'y'"),
        ({"features": ["w"]}, BranchError, r"made\.root, tree 'events': there is no branch 'w'"),
        ({"features": ["1 / (k - 2)"]}, ValueRangeError, "NaN or infinite values in"),
        ({"weight": "-w"}, WeightError, r"target\.root, tree 'events', weight '-w': .*positive sum"),
        ({"bins": 0}, ConfigError, "bins: 0 found"),
        ({"output": "plot.pngg"}, ConfigError, r"plot\.pngg: no known picture format; did you mean 'png'"),
        ({"generated": WeightedFiles("nothing.root")}, FileError, r"nothing\.root: no such file"),
        ({"output": "/no/such/folder/p.png"}, FileError, "there is no folder"),
    ],
)
def test_bad_input(pair, tmp_path, change, error, message):
    options = {**pair, "output": str(tmp_path / "plot.png"), "features": ["x"], "weight": "w"} | change
    options["reference"] = WeightedFiles(pair["reference"].files, weight=options.pop("weight"))
    with pytest.raises(error, match=message):
        plot_files(**options)
    assert not (tmp_path / "plot.png").exists()


def test_generated_file_that_is_no_root_file(pair, tmp_path):
    (tmp_path / "text.root").write_text("hello world" * 50)
    with pytest.raises(FileError, match=r"text\.root: not a readable ROOT file"):
        generated = WeightedFiles(str(tmp_path / "text.root"))
        plot_files(generated=generated, reference=pair["reference"], output=str(tmp_path / "p.png"))


def test_reference_without_rows(pair, root_file, tmp_path):
    empty = root_file({"x": np.zeros(0)}, "empty.root")
    with pytest.raises(EmptySelectionError, match=r"empty\.root, tree 'events': the tree has no rows"):
        options = {"reference": WeightedFiles(str(empty)), "output": str(tmp_path / "p.png"), "features": ["x"]}
        plot_files(generated=pair["generated"], **options)


def test_existing_picture_stays(pair, tmp_path):
    (tmp_path / "p.png").write_text("precious")
    with pytest.raises(ConfigError, match=r"p\.png: exists already"):
        plot_files(**pair, output=str(tmp_path / "p.png"), features=["x"])
    assert (tmp_path / "p.png").read_text() == "precious"
