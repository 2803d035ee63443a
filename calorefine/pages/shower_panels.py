"""Pictures of numbers of showers with ratios below: mean numbers per shower, the response, observables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.scale import LogScale

from calorefine.geometry import Geometry
from calorefine.pages import style
from calorefine.pages.figures.panels import Curve, Panel, panel_figure
from calorefine.pages.figures.showers import ImageRow, images_figure
from calorefine.pages.page import Picture
from calorefine.pages.style import SAMPLES
from calorefine.pages.validation import RATIO, overlay_figure, overlay_panel
from calorefine.stats import FloatArray
from calorefine.text import labelled, number
from calorefine.twosample.binned import ContextBin
from calorefine.twosample.comparison import Comparison
from calorefine.twosample.shower_distances import Observable
from calorefine.twosample.shower_means import Means
from calorefine.twosample.shower_pictures import ShowerPictures, Single, Traversal
from calorefine.twosample.shower_results import ShowerValidation, is_discrete

LABELS = {
    "longitudinal": ("layer", "mean energy [MeV]"),
    "occupancy": ("layer", "mean share of cells that are read out"),
    "spectrum": ("energy of a cell [MeV]", "mean number of cells / bin"),
}
UNITS = {"e_": "MeV", "ec_": "mm", "width_": "mm"}  # by how the names of observables begin
TICKS = np.outer(10.0 ** np.arange(-3, 5), [1, 2, 5]).ravel()  # of energies in GeV
LOGARITHMIC = ("lateral", "spectrum")
MOST_OF_LAYERS = 12  # layers whose observables are drawn: those of the largest separation power


def means_picture(name: str, found: Means, geometry: Geometry) -> Picture:
    """Draw mean numbers of a shower: reference as points, generated as a line with a band, and their ratio."""
    color, line = SAMPLES["generated"]
    made, error = found.generated
    around = {"low": made - error, "high": made + error}
    curves = [
        Curve("generated", made, line=line, color=color, bands=[around]),
        Curve("reference", found.reference[0], found.reference[1], options={"markersize": 3}),
    ]
    ratio = Curve("", found.ratio[0], found.ratio[1], color=color, options={"markersize": 3})
    labels = LABELS.get(name) or _lateral_labels(name)
    numbers = [layer.number for layer in geometry.layers]
    blocks = None
    if labels[0] == "layer" and numbers != list(range(len(numbers))):
        blocks = {str(number): 1 for number in numbers}
    log = name.startswith(LOGARITHMIC)
    look: dict[str, Any] = {"options": {"xscale": "log"} if name == "spectrum" else {}, "blocks": blocks, "log": log}
    edges = found.edges + 1 if blocks else found.edges  # groups are counted from 1
    panel = Panel(edges, curves, *labels, [ratio], RATIO, None if log else 0.0, **look)
    title = about(name)
    return Picture(panel_figure(panel), f"{title} of both samples, with their ratio", title)


def _lateral_labels(name: str) -> tuple[str, str]:
    axis = name.rpartition("_")[2]
    return f"{axis} [mm]", "mean energy / bin [MeV]"


def about(name: str) -> str:
    """What a mean number is of, in words.

    >>> about("lateral_0_eta")
    'Lateral profile of layer 0 along eta'
    """
    if name.startswith("lateral"):
        _, layer, axis = name.split("_")
        return f"Lateral profile of layer {layer} along {axis}"
    titles = {"longitudinal": "Longitudinal profile", "occupancy": "Occupancy", "spectrum": "Spectrum of the cells"}
    return titles[name]


def response_pictures(found: ShowerValidation) -> list[Picture]:
    """Mean and standard deviation of the response against the incident energy."""
    edges = energy_edges(found.energy_bins)
    pictures = []
    for what, title in (("mean", "Mean"), ("std", "Standard deviation")):
        pairs: list[Comparison] = [getattr(one, what) for one in found.responses]
        color = SAMPLES["generated"][0]
        middle = np.sqrt(edges[1:] * edges[:-1])
        curves = [
            Curve("reference", *_values(pairs, "reference"), x=middle),
            Curve("generated", *_values(pairs, "generated"), color=color, index=1, x=_beside(edges)),
        ]
        ratio = Curve("", *_values(pairs, "ratio"), color=color, index=1, x=middle)
        label = f"{title.lower()} of the response"
        panel = Panel(edges, curves, "E_inc [GeV]", label, [ratio], RATIO, None, options=_log_axis(edges))
        text = f"{title} of the response e_tot / E_inc"
        pictures.append(Picture(panel_figure(panel), f"{text} of both samples, with their ratio", text))
    return pictures


def _log_axis(edges: FloatArray) -> dict[str, Any]:
    """Options of an axis of energies, with ticks at 1, 2, 5, 10 and so on."""
    ticks = TICKS[(edges[0] <= TICKS) & (edges[-1] >= TICKS)]
    scale = LogScale(None, subs=range(2, 10))  # whose other marks have no labels
    return {"xscale": scale, "xticks": ticks, "xticklabels": [f"{tick:g}" for tick in ticks]}


def energy_edges(bins: Sequence[ContextBin]) -> FloatArray:
    """Edges (b + 1,) in GeV, between single energies at their geometric means."""
    if not is_discrete(list(bins)):
        return np.array([bins[0].low, *(one.high for one in bins)]) / 1000
    centers = np.array([one.center for one in bins]) / 1000
    if len(centers) == 1:
        return np.array([centers[0] / 2, centers[0] * 2])
    inner = np.sqrt(centers[1:] * centers[:-1])
    return np.array([centers[0] ** 2 / inner[0], *inner, centers[-1] ** 2 / inner[-1]])


def _beside(edges: FloatArray) -> FloatArray:
    """Places in bins, a little beside their middles."""
    return np.asarray(edges[:-1] ** 0.42 * edges[1:] ** 0.58)


def _values(pairs: Sequence[Comparison], name: str) -> tuple[FloatArray, FloatArray]:
    """Values and errors, NaN where not defined."""
    rows = np.array([[getattr(one, key) for key in (name, f"{name}_error")] for one in pairs], np.float64)
    return rows[:, 0], rows[:, 1]


def observable_pictures(observables: Sequence[Observable], geometry: Geometry) -> list[Picture]:
    """Distributions with ratios: those of whole showers, and those of each layer."""
    by_layer: dict[str, dict[str, Observable]] = {}
    for found in observables:
        end = found.name.rpartition("_")[2]
        by_layer.setdefault(end if end.isdecimal() else "", {})[found.name] = found
    whole = by_layer.pop("", {})
    worst = list(by_layer)[:MOST_OF_LAYERS]
    pictures = [_distribution(one) for _, one in sorted(whole.items())]
    for layer in geometry.layers:
        if str(layer.number) in worst:
            pictures.append(_overlays(by_layer[str(layer.number)], f"Observables of layer {layer.number}"))
    return pictures


def _distribution(observable: Observable) -> Picture:
    name = observable.name
    figure = panel_figure(overlay_panel(_labelled(name), observable.overlay))
    return Picture(figure, f"Distribution of {name} in both samples, with their ratio", name)


def _overlays(observables: dict[str, Observable], title: str) -> Picture:
    drawn = {_labelled(name): observables[name].overlay for name in sorted(observables)}
    figure = overlay_figure(drawn)
    return Picture(style.svg(figure), f"{title}: distributions of both samples, with ratios", title, wide=True)


def _labelled(name: str) -> str:
    """Name of an observable with its unit."""
    return labelled(name, next((unit for start, unit in UNITS.items() if name.startswith(start)), None))


def average_picture(pictures: ShowerPictures) -> Picture:
    """Mean energies of cells of both samples, and their ratio."""
    layers = [pictures.geometry.layers[k] for k in pictures.shown]
    averages = [pictures.averages[k] for k in pictures.shown]
    rows = [
        ImageRow("reference", [one.reference[0] for one in averages]),
        ImageRow("generated", [one.generated[0] for one in averages]),
        ImageRow("gen. / ref.", [one.ratio[0] for one in averages], ratios=True),
    ]
    titles = [f"layer {layer.number}" for layer in layers]
    figure = images_figure(layers, rows, titles, label="mean energy [MeV]")
    text = "Average shower by layer, and ratio of both where the reference is three errors above 0"
    return Picture(style.png(figure), text, text, wide=True)


def singles_picture(pictures: ShowerPictures) -> Picture:
    """Single showers of both samples side by side, at rising energies."""
    layers = [pictures.geometry.layers[k] for k in pictures.shown]
    rows = [ImageRow(_energies(one), _side_by_side(one, pictures)) for one in pictures.singles]
    titles = [f"layer {layer.number}, {short}" for layer in layers for short in ("ref.", "gen.")]
    figure = images_figure([layer for layer in layers for _ in range(2)], rows, titles, label="energy [MeV]")
    text = "Single showers: reference, and the generated shower of the nearest incident energy"
    return Picture(style.png(figure), text, text, wide=True)


def _energies(single: Single) -> str:
    return f"{number(single.e_inc_mev[1] / 1000, 3)} GeV"


def _side_by_side(single: Single, pictures: ShowerPictures) -> list[FloatArray]:
    slices = [pictures.geometry.slices[k] for k in pictures.shown]
    return [np.asarray(cells[at], np.float64) for at in slices for cells in (single.reference, single.generated)]


def traversal_picture(traversal: Traversal, pictures: ShowerPictures) -> Picture:
    """One shower at rising values of a condition."""
    layers = [pictures.geometry.layers[k] for k in pictures.shown]
    slices = [pictures.geometry.slices[k] for k in pictures.shown]
    rows = [
        ImageRow(number(float(value), 3), [np.asarray(cells[at], np.float64) for at in slices])
        for value, cells in zip(traversal.values, traversal.cells, strict=True)
    ]
    titles = [f"layer {layer.number}" for layer in layers]
    text = f"{traversal.column} varied, everything else and the noise the same"
    return Picture(style.png(images_figure(layers, rows, titles, label="energy [MeV]")), text, text, wide=True)
