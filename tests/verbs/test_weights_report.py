"""The report's numbers are those of a naive calculation, on the page and in the JSON file, for any weighted file."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calorefine import Column, Columns
from calorefine.cli import calorefine
from calorefine.errors import BranchError, CalorefineWarning, ConfigError, ValueRangeError
from calorefine.pages import weights as report_page
from calorefine.pages.figures.panels import panel_figure, shares_panel
from calorefine.shares import display_edges
from calorefine.text import number, with_error
from calorefine.verbs.weights_report import weights_report
from calorefine.weights import Exponential, Gaussian, SPlot
from calorefine.weights.factorization import column_edges
from calorefine.weights.summary import (
    UNWEIGHTED,
    column_shares,
    in_bins,
    largest,
    weight_counts,
    weight_numbers,
    weighted_moments,
)

ROOT = Path(__file__).parents[2]
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="2" height="2"><rect width="1" height="1"/></svg>'
COLUMNS = Columns(
    features={"x": Column(), "k": Column()},
    context={"p_gev": Column("P", branch_unit="MeV"), "charge": Column(categories=[-1, 1])},
    key=["run", "event"],
)
TEST = {
    "column": "x<y>",
    "chi2": 40.0,
    "ndf": 8,
    "p_value": 3.2e-6,
    "p_corrected": 6.4e-6,
    "edges": [0.0, 1.0, 2.5],
    "deviations": {"signal.mean": [0.5, -6.5], "background.slope": [None, 1.0]},
}


@pytest.fixture
def report_on(root_file, tmp_path, toy, monkeypatch):
    """Function that writes a file, reports on it, and returns report, page and JSON; draws only where asked to."""

    def run(weights, *, n=200, arrays=None, provenance=None, columns=COLUMNS, draw=False, **options):
        if not draw:
            monkeypatch.setattr(report_page, "panel_figure", lambda _: SVG)
        path = root_file({**toy(n), **(arrays or {})})
        if provenance is not None:
            with uproot.update(path) as file:
                file["calorefine_provenance"] = provenance if isinstance(provenance, str) else json.dumps(provenance)
        output = tmp_path / "report.html"
        report = weights_report(
            files=str(path), tree="events", columns=columns, weights=weights, output=str(output), **options
        )
        page = output.read_text(encoding="utf-8")
        content = json.loads((tmp_path / "report.json").read_text(), parse_constant=_no_constant)
        assert content.pop("provenance")["verb"] == "weights-report"
        assert content == json.loads(json.dumps(report.to_dict()))
        return report, page, content

    return run


def _no_constant(name):
    raise AssertionError(name)


def test_numbers_of_a_species(report_on, toy):
    report, page, content = report_on({"signal": "w"})
    w, x = toy(200)["w"], toy(200)["x"].astype(float)
    found = report.species["signal"].weights
    order = sorted(w, key=abs, reverse=True)
    naive = {
        "n_events": 200,
        "n_zero": 0,
        "sum_w": sum(w),
        "sum_w_error": math.sqrt(sum(w * w)),
        "sum_w2": sum(w * w),
        "n_eff": sum(w) ** 2 / sum(w * w),
        "n_eff_fraction": sum(w) ** 2 / sum(w * w) / 200,
        "mean": sum(w) / 200,
        "minimum": min(w),
        "maximum": max(w),
        "negative_fraction": sum(v < 0 for v in w) / 200,
        "negative_share": sum(v for v in w if v < 0) / sum(w),
        "extreme_share_abs": sum(abs(v) for v in order[:2]) / sum(abs(w)),
        "extreme_share_w2": sum(v * v for v in order[:2]) / sum(w * w),
        "largest_share_w2": order[0] ** 2 / sum(w * w),
    }
    assert {key: value for key, value in asdict(found).items() if key != "quantiles"} == pytest.approx(naive, rel=1e-12)
    assert found.quantiles["0.5"] == np.sort(w)[99]
    stored = content["species"]["signal"]["weights"]
    assert stored.pop("quantiles") == found.quantiles
    assert stored == pytest.approx(naive)
    for shown in (with_error(sum(w), naive["sum_w_error"]), number(naive["n_eff"]), number(min(w)), number(max(w))):
        assert f"<td>{shown}</td>" in page
    moments = report.species["signal"].moments["x"]
    mean = sum(w * x) / sum(w)
    variance = sum(w * (x - mean) ** 2) / sum(w)
    errors = [math.sqrt(sum((w * d) ** 2)) / sum(w) for d in (x - mean, ((x - mean) ** 2 - variance))]
    expected = mean, errors[0], math.sqrt(variance), errors[1] / 2 / math.sqrt(variance)
    assert tuple(asdict(moments).values()) == pytest.approx(expected, rel=1e-9)
    assert f"<td>{with_error(mean, errors[0])}</td>" in page


def test_largest_weights_with_exact_keys(report_on, toy):
    report, page, _ = report_on({"signal": "w"})
    arrays = toy(200)
    rows = np.argsort(-np.abs(arrays["w"]))[:10]
    events = report.species["signal"].largest
    assert [event["row"] for event in events] == rows.tolist()
    assert [event["event"] for event in events] == (rows + 2**60).tolist()  # not rounded to float64
    assert [event["p_gev"] for event in events] == pytest.approx(arrays["P"][rows] / 1000)
    assert f"<td>{rows[0] + 2**60}</td>" in page
    assert "p_gev [GeV]" in page


def test_ties_among_the_largest_weights_go_to_the_earlier():
    assert largest(np.array([1.0, -3.0, 1.0, 1.0, 2.0]), 3).tolist() == [1, 4, 0]
    assert largest(np.ones(4)).tolist() == [0, 1, 2, 3]


def test_effective_number_of_events_in_bins_of_context(report_on, toy):
    report, page, _ = report_on({"signal": "w"})
    arrays = toy(200)
    momentum, w = arrays["P"] * 0.001, arrays["w"]
    bins = report.species["signal"].bins["p_gev"]
    assert len(bins) == 5
    for index, one in enumerate(bins):
        inside = (momentum >= one.low) & ((momentum < one.high) | (index == 4))
        assert one.n_events == np.sum(inside)
        assert abs(one.n_events - 40) <= 2
        assert one.n_eff == pytest.approx(np.sum(w[inside]) ** 2 / np.sum(w[inside] ** 2))
    assert sum(one.sum_w for one in bins) == pytest.approx(np.sum(w))
    charges = report.species["signal"].bins["charge"]
    assert [(one.low, one.high, one.n_events) for one in charges] == [
        (charge, charge, np.sum(arrays["charge"] == charge)) for charge in (-1, 1)
    ]
    assert "Smallest n_eff: signal" in page


@pytest.mark.parametrize(("second", "deviation"), [("1 - w", 0.0), ("1.25 - w", 0.25)])
def test_sum_over_the_species(report_on, second, deviation):
    report, page, _ = report_on({"signal": "w", "background": second})
    assert report.sum_rules.n_events == 200
    assert report.sum_rules.largest_deviation == pytest.approx(deviation, abs=1e-12)
    assert ("do not sum to 1" in page) == (deviation > 0)
    assert "Other weights need not" in page
    assert not any("sum to" in text for text in report.warnings)


def test_sum_over_the_species_leaves_out_events_of_weight_zero(report_on):
    cut = "(P > 5000)"
    report, _, _ = report_on({"signal": f"w * {cut}", "background": f"(1 - w) * {cut}"})
    assert 0 < report.sum_rules.n_events < 200
    assert report.sum_rules.largest_deviation < 1e-12
    assert report.species["signal"].weights.n_zero == 200 - report.sum_rules.n_events


def test_one_species_has_no_sum_rule(report_on):
    report, page, _ = report_on({"signal": "w"})
    assert report.sum_rules.largest_deviation is None
    assert "there is only one species" in page


@pytest.mark.parametrize(("kind", "branch"), [("splot", "sw_"), ("fractions", "w_")])
@pytest.mark.parametrize("wrong", [False, True])
def test_sums_against_the_yields_of_the_provenance(report_on, toy, kind, branch, wrong):
    w = toy(200)["w"]
    yields = {"electron": float(np.sum(w)) + 5.0 * wrong}
    arrays = {f"{branch}electron": w}
    report, page, _ = report_on(
        {"signal": f"{branch}electron", "other": "w"}, arrays=arrays, provenance={kind: {"yields": yields}}
    )
    assert set(report.sum_rules.yields) == {"signal"}
    assert any("not the fitted yield" in text for text in report.warnings) == wrong
    assert number(yields["electron"], 6) in page


def test_yields_of_a_cut_file_are_no_complaint(report_on, toy):
    w = toy(200)["w"]
    columns = Columns(features={"x": Column()}, context={}, cut="P > 5000", key=["run", "event"])
    provenance = {"splot": {"yields": {"signal": float(np.sum(w))}}}
    report, page, _ = report_on(
        {"signal": "sw_signal"}, arrays={"sw_signal": w}, provenance=provenance, columns=columns
    )
    assert report.n_events < report.n_rows == 200
    assert report.sum_rules.yields["signal"]["relative"] < -0.1
    assert not any("yield" in text for text in report.warnings)
    assert "sums should be smaller" in page
    assert "cut: P &gt; 5000" in page
    assert "There is no context." in page


def test_factorization_tests_from_the_file(report_on):
    report, page, _ = report_on({"signal": "w"}, provenance={"splot": {"factorization": [TEST, {"else": 1}]}})
    (test,) = report.factorization
    assert report.factorization_from == "file"
    assert (test.column, test.ndf, test.parameter, test.deviation) == ("x<y>", 8, "signal.mean", -6.5)
    assert (test.low, test.high) == (1.0, 2.5)
    assert "As stored in the file" in page
    assert "<b>" not in page
    assert "x&lt;y&gt;" in page
    assert "x<y>" not in page
    assert '<tr class="marked">' in page
    assert any("depends on x<y>: p = 6.4e-06" in text for text in report.warnings)
    assert "WARNING: the spectator's shape depends on x<y>" in str(report)


@pytest.mark.parametrize(
    "provenance",
    [
        None,
        {},
        "not JSON",
        "[1, 2]",
        {"splot": None},
        {"splot": {"yields": [1], "factorization": {"x": 1}}},
        {"splot": {"yields": {"signal": "many"}, "factorization": ["x", {**TEST, "edges": [0.0]}]}},
        {"weights": {"factorization": [{**TEST, "p_value": float("nan")}]}},
        {"splot": {"factorization": [{**TEST, "deviations": [1, 2]}]}},
    ],
)
def test_provenance_of_any_layout(report_on, provenance, toy):
    arrays = {"sw_signal": toy(200)["w"]}
    report, page, _ = report_on({"signal": "sw_signal"}, arrays=arrays, provenance=provenance)
    assert report.factorization_from == "none"
    assert report.sum_rules.yields == {}
    assert "Not tested: give `splot`, the spectator and the shapes." in page
    assert "not tested: give `splot`" in str(report)


def test_factorization_tests_done_now(report_on):
    rng = np.random.default_rng(5)
    n = 4000
    signal = np.arange(n) < n // 2
    x = rng.normal(0, 1, n)
    m = np.where(signal, rng.normal(3.1 + 0.05 * x, 0.05), 2.6 + rng.random(n))
    inside = (m > 2.6) & (m < 3.6)
    arrays = {"x": x.astype(np.float32), "m": np.where(inside, m, 3.0), "one": np.ones(n)}
    columns = Columns(features={"x": Column()}, context={}, key=["run", "event"])
    splot = SPlot(spectator="m", range=(2.6, 3.6), species={"signal": Gaussian(), "background": Exponential()})
    report, page, _ = report_on({"all": "one"}, n=n, arrays=arrays, columns=columns, splot=splot)
    (test,) = report.factorization
    assert report.factorization_from == "test"
    assert test.column == "x"
    assert test.p_corrected < 1e-6
    assert "Tested now" in page
    assert '<tr class="marked">' in page


def test_page_is_self_contained_and_escaped(report_on, self_contained):
    species = {"a<b>&\"c'": "w", "$x$_": "w * (x < 1) + 0.5", "_hidden": "w"}
    _, page, _ = report_on(species, draw=True)
    outline = self_contained(page)
    assert outline.tags.count("img") == 5  # weights, 2 features, 2 context columns
    assert "b" not in outline.tags
    assert any("w * (x < 1) + 0.5" in text for text in outline.texts)


def test_page_does_not_depend_on_when_it_is_made(report_on, tmp_path):
    columns = Columns(features={"x": Column()}, context={}, key=["run", "event"])
    _, first, _ = report_on({"signal": "w"}, columns=columns, draw=True)
    _, second, _ = report_on({"signal": "w"}, columns=columns, draw=True, overwrite=True)
    assert first == second
    assert {path.name for path in tmp_path.iterdir()} == {"events.root", "report.html", "report.json"}


def test_existing_output_is_refused(report_on, tmp_path):
    report_on({"signal": "w"})
    with pytest.raises(ConfigError, match=r"report\.html: exists already"):
        report_on({"signal": "w"})
    (tmp_path / "report.html").unlink()
    with pytest.raises(ConfigError, match=r"report\.json: exists already"):
        report_on({"signal": "w"})
    assert not (tmp_path / "report.html").exists()


def test_errors_name_what_is_wrong(report_on):
    with pytest.raises(BranchError, match="there is no branch 'sw_sgnal'"):
        report_on({"signal": "sw_sgnal"})
    with pytest.raises(ConfigError, match="weights: none given"):
        report_on({})
    with pytest.raises(ConfigError, match=r"report\.pdf: expected the name of an \.html file"):
        weights_report(files="x.root", tree="events", columns=COLUMNS, weights={"signal": "w"}, output="report.pdf")
    with pytest.raises(ValueRangeError, match="weight of signal: 1"):
        report_on({"signal": "w"}, arrays={"w": np.append(np.ones(199), np.nan)})


def test_rows_that_are_not_finite_are_left_out_on_request(report_on):
    with pytest.warns(CalorefineWarning, match="left out 1 of the selected rows"):
        report, page, _ = report_on({"signal": "w"}, arrays={"w": np.append(np.ones(199), np.nan)}, nonfinite="drop")
    assert (report.n_events, report.n_rows) == (199, 200)
    assert "199 of 200 rows" in page


def test_unit_weights_without_key(report_on, toy):
    columns = Columns(features={"x": Column()}, context={"p_gev": Column("P", branch_unit="MeV")})
    report, _, _ = report_on({"all": "0 * P + 1"}, columns=columns)
    found, x = report.species["all"].weights, toy(200)["x"].astype(float)
    assert (found.sum_w, found.n_eff, found.n_eff_fraction, found.negative_share) == (200.0, 200.0, 1.0, 0.0)
    assert found.extreme_share_abs == found.extreme_share_w2 == 0.01
    assert set(found.quantiles.values()) == {1.0}
    assert report.species["all"].moments["x"].mean == pytest.approx(np.mean(x))
    assert report.species["all"].moments["x"].mean_error == pytest.approx(np.std(x) / math.sqrt(200))
    assert report.warnings == []
    assert set(report.species["all"].largest[0]) == {"row", "weight", "x", "p_gev"}


@pytest.mark.parametrize(
    ("weight", "complaint"),
    [
        ("0 * P - 1", "signal: the weights sum to -200.0, expected a positive sum"),
        ("0 * P", "signal: the weights sum to 0, expected a positive sum"),
        ("(P > 5000) - 0.97 * (P <= 5000)", "signal: n_eff is only"),
        ("1 + 1000 * (k > 6)", "signal: a single event carries"),
    ],
)
def test_what_is_off_is_said(report_on, weight, complaint):
    arrays = {"P": np.where(np.arange(200) < 100, 2000.0, 8000.0), "k": np.repeat([2, 7], [198, 2]).astype(np.int32)}
    columns = Columns(features={"x": Column()}, context={"k": Column()}, key=["run", "event"])
    report, page, content = report_on({"signal": weight, "all": "0 * P + 1"}, arrays=arrays, columns=columns, draw=True)
    assert any(text.startswith(complaint) for text in report.warnings)
    assert content["warnings"] == report.warnings
    assert f'<p class="warning">{report.warnings[0]}</p>' in page
    assert f"WARNING: {complaint}" in str(report)
    undefined = report.species["signal"].weights.sum_w <= 0
    assert (report.species["signal"].moments["x"].mean is None) == undefined
    assert ("signal is not drawn" in page) == undefined


def test_command_line_with_the_shipped_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with uproot.open("examples/data/electron_calibration.root") as file:
        arrays = {name: values[:2000] for name, values in file["events"].arrays(library="np").items()}
    arrays["sw_signal"] = np.where(np.abs(arrays["m_ee_gev"] - 3.1) < 0.1, 1.2, -0.2)
    arrays["sw_background"] = 1 - arrays["sw_signal"]
    with uproot.recreate(tmp_path / "weighted.root") as file:
        file.mktree("events", {name: values.dtype for name, values in arrays.items()}).extend(arrays)
    options = ["--files", str(tmp_path / "weighted.root"), "--output", str(tmp_path / "page.html")]
    report = calorefine(["weights-report", "-c", "configs/weights_report.yaml", *options])
    assert report.species["signal"].weights.sum_w == pytest.approx(np.sum(arrays["sw_signal"]))
    assert (tmp_path / "page.html").stat().st_size < 2e6
    assert re.search(r"signal +\d+ \+- \d+", str(report))


def test_integers_have_bins_of_whole_numbers():
    assert display_edges(np.array([-1.0, 1.0])).tolist() == [-1.5, -0.5, 0.5, 1.5]
    many = display_edges(np.arange(1000.0))
    np.testing.assert_allclose(np.diff(many), 25)
    np.testing.assert_allclose(many % 1, 0.5)
    assert len(display_edges(np.full(5, 2.5))) > 1


def test_pictures_of_awkward_samples():
    zero, one = np.zeros(3), np.ones(3)
    shares = column_shares(np.full(3, 1.5), {"none": zero, "all": one})
    assert panel_figure(shares_panel(shares, "x", unit="mm")).lstrip().startswith(b"<?xml")
    assert shares.outside(UNWEIGHTED) == pytest.approx(0)
    counts = weight_counts({"none": zero, "huge": np.array([-1e30, 1.0, 1e30])})
    assert b"<svg" in panel_figure(shares_panel(counts, "weight", log=True))


WEIGHTS = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6, allow_subnormal=False))


def close(first, second):
    """Compare records of numbers, up to rounding of sums."""
    for name, value in first.items():
        if isinstance(value, dict):
            close(value, second[name])
        else:
            expected = second[name]
            assert value == (expected if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-300)), name


@settings(deadline=None, max_examples=60)
@given(weight=WEIGHTS, seed=st.integers(0, 2**32 - 1))
def test_order_changes_nothing(weight, seed):
    weight = np.rint(weight)  # sums of integers don't round
    order = np.random.default_rng(seed).permutation(len(weight))
    close(asdict(weight_numbers(weight)), asdict(weight_numbers(weight[order])))
    np.testing.assert_array_equal(np.abs(weight[largest(weight)]), np.sort(np.abs(weight))[::-1][:10])


@settings(deadline=None, max_examples=60)
@given(weight=WEIGHTS, power=st.integers(-20, 20))
def test_scaled_weights_scale_the_sums_only(weight, power):
    scale = 2.0**power  # exact
    first, second = asdict(weight_numbers(np.rint(weight))), asdict(weight_numbers(np.rint(weight) * scale))
    for name in ("sum_w", "sum_w_error", "mean", "minimum", "maximum"):
        first[name] *= scale
    first["sum_w2"] *= scale**2
    first["quantiles"] = {level: value * scale for level, value in first["quantiles"].items()}
    close(first, second)


@settings(deadline=None, max_examples=60)
@given(
    weight=hnp.arrays(np.float64, 30, elements=st.integers(-3, 5).map(float)),
    values=hnp.arrays(np.float64, 30, elements=st.integers(-40, 40).map(float)),
)
def test_bins_share_out_all_events_and_doubling_a_weight_doubles_the_event(weight, values):
    bins = in_bins(values, weight, edges=column_edges(values, 5))
    assert sum(one.n_events for one in bins) == np.count_nonzero(weight)
    assert sum(one.sum_w for one in bins) == pytest.approx(np.sum(weight))
    once, twice = weighted_moments(values, 2 * weight), weighted_moments(np.tile(values, 2), np.tile(weight, 2))
    for name in ("mean", "width"):
        one, two = getattr(once, name), getattr(twice, name)
        assert (one is None) == (two is None)
        assert one is None or one == pytest.approx(two, rel=1e-6, abs=1e-6)


def test_candidates_of_an_event_count_together():
    """Each event twice: errors are those of single events, and so is n_eff."""
    rng = np.random.default_rng(44)
    weight, x, group = rng.normal(0.5, 1, 300), rng.normal(size=300), np.repeat(np.arange(300), 2)
    single, double = weight_numbers(weight), weight_numbers(np.repeat(weight, 2), group)
    assert double.n_eff == pytest.approx(single.n_eff)
    assert double.sum_w_error == pytest.approx(2 * single.sum_w_error)
    one, two = weighted_moments(x, weight), weighted_moments(np.repeat(x, 2), np.repeat(weight, 2), group)
    assert asdict(two) == pytest.approx(asdict(one))
    bins = in_bins(np.repeat(x, 2), np.repeat(weight, 2), edges=np.array([-9.0, 0.0, 9.0]), group=group)
    alone = in_bins(x, weight, edges=np.array([-9.0, 0.0, 9.0]))
    assert [part.n_eff for part in bins] == pytest.approx([part.n_eff for part in alone])


def test_pairs_of_columns_are_shown(report_on):
    """A test of a pair as the file stores it: its bin is told in words."""
    pair = TEST | {"column": "x and k", "edges": [], "cells": ["x in [0, 1] and k in [0, 1]", "x in [1, 2]"]}
    report, page, _ = report_on({"signal": "w"}, provenance={"splot": {"factorization": [TEST, pair]}})
    assert [test.column for test in report.factorization] == ["x<y>", "x and k"]
    assert report.factorization[1].where == "x in [1, 2]"
    assert "x in [1, 2]" in page
