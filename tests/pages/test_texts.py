"""Every text of a picture lies within it and on no other one; axes over decades are logarithmic."""

from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from calorefine.datasets import CorrelatedToy
from calorefine.io.sample import SampleRows
from calorefine.pages import bias, reweighting, style
from calorefine.pages.figures import matrices
from calorefine.pages.figures.matrices import Matrix, matrices_figure
from calorefine.pages.figures.panels import Curve, Panel, panel_figure, shares_panel
from calorefine.pages.figures.spectator import fit_figure
from calorefine.pages.page import Picture
from calorefine.pages.validation import efficiency_figure, overlay_figure, widths_figure
from calorefine.shares import Shares, display_edges
from calorefine.twosample.binned import BinWidths, ContextBin, Efficiencies
from calorefine.twosample.comparison import Comparison
from calorefine.twosample.overlay import overlay
from calorefine.weights import Exponential, Gaussian, SPlot

LONG = "probe_calo_isolation_corrected_energy"
MANY = [LONG, "y", *(f"probe_shower_shape_moment_{k:02d}_in_layer" for k in range(10))]
SPECIES = ("signal_electrons_from_conversions_and_decays", "combinatorial_background_of_random_tracks", "c")
MOMENTUM = "probe_true_momentum_at_the_origin_vertex_mev"


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """Pictures that end as SVG are returned as figures."""
    monkeypatch.setattr(style, "svg", lambda figure: figure)
    monkeypatch.setattr(matrices, "svg", lambda figure: figure)


def momenta(n=3000):
    """Three decades in MeV."""
    return 10 ** np.random.default_rng(1).uniform(3, 6, n)


def shown(figure):
    """All texts that are drawn, with their boxes."""
    FigureCanvasAgg(figure).draw()
    found = []
    for legend in figure.legends:
        found += [legend.get_title(), *legend.get_texts()]
    for axes in (one for one in figure.axes if one.get_visible()):
        found += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis, along in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            ticks = axis.get_majorticklabels() + axis.get_minorticklabels()
            found += [one for one in ticks if low <= one.get_position()[along] <= high]
            found.append(axis.get_offset_text())
    return {one: one.get_window_extent() for one in found if one.get_visible() and one.get_text().strip()}


def require_legible(figure):
    """Texts lie within the canvas, and none on another one."""
    boxes, canvas = shown(figure), figure.bbox
    outside = [
        text.get_text()
        for text, box in boxes.items()
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > canvas.x1 + 0.5 or box.y1 > canvas.y1 + 0.5
    ]
    assert outside == []
    on_top = [
        (one.get_text(), other.get_text())
        for (one, a), (other, b) in combinations(boxes.items(), 2)
        if a.padded(-0.5).overlaps(b.padded(-0.5))
    ]
    assert on_top == []


def distributions(names=MANY):
    """Columns of which the first spans decades, and others need many digits."""
    rng, keys = np.random.default_rng(2), np.arange(1500, dtype=np.uint64)
    columns = {name: rng.normal(k * 1e-4, 2e-5, 1500) for k, name in enumerate(names)} | {LONG: momenta(1500)}
    columns |= {"time": 1.7e9 + rng.normal(0, 20, 1500), "large": rng.normal(3e8, 1e8, 1500)} if names != MANY else {}
    rows = SampleRows(columns, np.ones(1500), keys, keys)
    return overlay_figure({name: overlay(name, rows, rows) for name in columns})


def comparisons(bins):
    return [
        Comparison(0.6, 0.02, 0.5, 0.02, 0.7 + 0.3 * k, 0.04, 1.0, (0.55, 0.65), (0.48, 0.52)) for k in range(len(bins))
    ]


def bins_of(values, n=6):
    edges = np.quantile(values, np.linspace(0, 1, n + 1))
    return [ContextBin(a, b, 0.5 * (a + b)) for a, b in pairwise(edges)]


def contexts():
    discrete = [ContextBin(-1.0, 0.0, -1.0), ContextBin(0.0, 1.0, 1.0)]
    return {MOMENTUM: bins_of(momenta()), "eta": bins_of(np.random.default_rng(3).uniform(2, 5, 3000)), "q": discrete}


def efficiencies():
    bins = contexts()
    cuts = {
        level: Efficiencies(12345.6, {k: comparisons(v) for k, v in bins.items()}) for level in ("0.1", "0.5", "0.9")
    }
    return efficiency_figure(LONG, cuts, bins)


def widths():
    bins = contexts()
    widths = {k: [BinWidths(one, one, one) for one in comparisons(v)] for k, v in bins.items()}
    return widths_figure(dict.fromkeys(MANY, widths), bins)


def weighted():
    values = momenta()
    samples = {"all, unweighted": (values, np.ones(3000))} | {name: (values, np.ones(3000)) for name in SPECIES}
    return panel_figure(shares_panel(Shares.of(display_edges(values), samples), MOMENTUM, unit="MeV"))


def pulls(sizes):
    n = sum(sizes.values())
    found = SimpleNamespace(pulls=np.linspace(-2, 3, n), exceeds=np.arange(n) > n - 2)
    return panel_figure(bias._pull_panel(SimpleNamespace(bias=found), sizes))


def sizes(n=5):
    """Wide and narrow groups side by side."""
    return {f"{name}_{k}": 1 + 11 * (k % 2) for k, name in enumerate([LONG, MOMENTUM, "n", *SPECIES, "y"] * n)}


def correlations():
    n = sum(sizes(2).values())
    return matrices_figure([Matrix(np.eye(n), sizes=sizes(2))], size=8.5)


def small_matrices():
    values = np.full((12, 12), -0.1234)
    return matrices_figure([Matrix(values * 1e-6, "relative covariance", 1e-6), Matrix(values, "both", numbers=True)])


def fit():
    table = CorrelatedToy().generate(2000, seed=4)
    shapes = {SPECIES[0]: Gaussian(), SPECIES[1]: Exponential()}
    found = SPlot(spectator="m", range=(0, 1), species=shapes, target=SPECIES[0]).fit(table)
    return fit_figure(found.fits[0], title=f"1000 <= {MOMENTUM} < 30000, 0 <= n_spd_hits < 100")


def mean_factors():
    edges = np.geomspace(1000, 1e6, 11)
    bins = [{"low": a, "high": b, "mean": 1.0, "error": 0.02} for a, b in pairwise(edges)]
    return reweighting._mean_figure(f"{MOMENTUM} [MeV]", bins)


def labelled():
    """Long labels on both axes, and values that need a common power of ten."""
    edges, values = np.linspace(0, 3e7, 11), np.linspace(1e7, 2e7, 10)
    curve = Curve(" ".join([LONG] * 2), values, values / 10)
    ylabel = f"efficiency of ({LONG} > 1.3) & (y < 2)"
    return panel_figure(Panel(edges, [curve], f"{LONG} [MeV]", ylabel, [curve.over(values)], "ratio to nominal"))


PICTURES = {
    "distributions": distributions,
    "large numbers": lambda: distributions(["y"]),
    "efficiencies": efficiencies,
    "widths": widths,
    "weights": weighted,
    "pulls": lambda: pulls(sizes(1)),
    "pulls of many": lambda: pulls(sizes()),
    "pulls of two": lambda: pulls({"x": 6, "high": 4}),
    "pulls of one": lambda: pulls({LONG: 6}),
    "correlations": correlations,
    "matrices": small_matrices,
    "fit": fit,
    "mean factors": mean_factors,
    "labels": labelled,
}


@pytest.mark.parametrize("name", PICTURES)
def test_texts_are_legible(name):
    require_legible(PICTURES[name]())


def scales(figure):
    return [axes.get_xscale() for axes in figure.axes if axes.get_visible()]


def test_axes_over_decades_are_logarithmic():
    assert scales(distributions())[:8] == ["log", *["linear"] * 3] * 2
    assert scales(efficiencies()) == ["log", "linear", "linear"] * 2
    assert scales(weighted()) == ["log"]
    assert scales(mean_factors()) == ["log"]


@pytest.mark.parametrize(
    ("values", "log"),
    [
        (momenta(), True),
        (np.random.default_rng(5).lognormal(0, 1.2, 3000), True),
        (-momenta(), False),
        (momenta() - 1500, False),
        (np.random.default_rng(5).uniform(0, 1, 3000), False),
        (np.random.default_rng(5).exponential(1, 3000), False),
        (np.random.default_rng(5).normal(5, 1, 3000), False),
    ],
)
def test_what_spans_decades(values, log):
    """A uniform or an exponential sample has small values, but is seen on a linear axis."""
    edges = display_edges(values)
    widths = np.diff(np.log(edges) if log else edges)
    np.testing.assert_allclose(widths, widths[0])
    inside = np.mean((values > edges[0]) & (values < edges[-1]))
    assert inside > 0.99


def test_a_common_power_of_ten_is_told_once_and_stays():
    figure = labelled()
    before = [text.get_text() for text in shown(figure)]
    upper, lower = figure.axes
    assert "".join(lower.get_xlabel().split()) == f"{LONG}[1e7MeV]"
    assert upper.get_ylabel().endswith("[1e7]")
    assert upper.yaxis.get_major_formatter().get_offset() == "1e7"
    assert not [text for text in before if text == "1e7"]
    upper.set_ylim(0, 1e9)
    assert shown(figure)
    assert upper.yaxis.get_major_formatter().get_offset() == "1e7"


def test_points_of_a_category_and_beyond_the_range_are_seen():
    figure = efficiencies()
    low, high = figure.axes[2].get_xlim()
    assert low < -1.05 and high > 1.05
    beyond = [one for one in widths().axes[0].collections if len(one.get_facecolor()) and one.get_clip_on() is False]
    assert sum(len(one.get_offsets()) for one in beyond) > 0


def test_legend_tells_long_names_with_their_values():
    texts = [text.get_text().replace("\n", "") for text in fit().legends[0].get_texts()]
    assert all(any(text.startswith(f"{name}: ") and "\u00b1" in text for text in texts) for name in SPECIES[:2])


def test_embedded_pictures_have_two_pixels_for_each_of_the_page(tmp_path):
    path = tmp_path / "picture.png"
    style.save_picture(mean_factors(), path)
    picture = Picture(path.read_bytes(), "alt", "caption")
    assert picture.most * 2 == int(style.WIDTH * style.DPI)
    assert picture.most >= 23 * 16  # a column of the page
    assert Picture(b"<svg/>", "alt", "caption").most is None
