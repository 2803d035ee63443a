"""Binning files of the CaloChallenge: layers, centers and order of the voxels, and files that are none."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from calorefine.binning import read_geometry
from calorefine.errors import ConfigError, FileError
from calorefine.geometry import Geometry

FRONT, BACK = "0,5,10,30,50,100,200,400,600", "0,50,100,200,400,600"
PHOTONS = {
    0: (FRONT, 1),
    1: ("0,2,4,6,8,10,12,15,20,30,40,50,70,90,120,150,200", 10),
    2: ("0,2,5,10,15,20,25,30,40,50,60,80,100,130,160,200,250,300,350,400", 10),
    3: (BACK, 1),
    12: ("0,100,200,400,1000,2000", 1),
}
PIONS = {
    0: (FRONT, 1),
    1: ("0,1,4,7,10,15,30,50,90,150,200", 10),
    2: ("0,5,10,20,30,50,80,130,200,300,400", 10),
    3: (BACK, 1),
    12: ("0,10,20,30,50,80,100,130,160,200,250,300,350,400,1000,2000", 10),
    13: ("0,10,20,30,50,80,100,130,160,200,250,300,350,400,600,1000,2000", 10),
    14: ("0,50,100,150,200,250,300,400,600,1000,2000", 1),
}
RINGS = {n: ",".join(f"{4.65 * k * 9 / n:g}" for k in range(n + 1)) for n in (9, 18)}
LAYOUTS = {
    368: ("photon", 24, PHOTONS),
    533: ("pion", 24, PIONS),
    6480: ("electron", 45, dict.fromkeys(range(45), (RINGS[9], 16))),
    40500: ("electron", 45, dict.fromkeys(range(45), (RINGS[18], 50))),
}


def particle_xml(name, n_layers, layers):
    """One `<Bin>`; layers that are not in `layers` are empty."""
    each = (layers.get(k, ("0", 1)) for k in range(n_layers))
    lines = (f'<Layer id="{k}" r_edges="{edges}" n_bin_alpha="{n}"/>' for k, (edges, n) in enumerate(each))
    return f'<Bin pid="0" name="{name}" etaMin="0" etaMax="130">{"".join(lines)}</Bin>'


def binning_xml(*voxels):
    """Text of a file with the particles of these layouts."""
    return f"<Bins>{''.join(particle_xml(*LAYOUTS[n]) for n in voxels)}</Bins>"


@pytest.fixture
def binning(tmp_path):
    def write(text):
        path = tmp_path / "binning.xml"
        path.write_text(text)
        return path

    return write


def slow_reading(text):
    """Layer, eta and phi of each voxel, one at a time."""
    for number, edges, n in re.findall(r'id="(\d+)" r_edges="([^"]+)" n_bin_alpha="(\d+)"', text):
        r, n = [float(edge) for edge in edges.split(",")], int(n)
        for a in range(n):
            alpha = -math.pi + (a + 0.5) * 2 * math.pi / n
            for low, high in itertools.pairwise(r):
                middle = (low + high) / 2 if n > 1 else 0.0
                yield int(number), middle * math.cos(alpha), middle * math.sin(alpha)


@pytest.mark.parametrize("voxels", LAYOUTS)
def test_layers_of_the_challenge(binning, voxels):
    text = binning_xml(voxels)
    geometry = read_geometry(binning(text), threshold_mev=0.01515)
    assert geometry.n_cells == voxels
    assert geometry.threshold_mev == 0.01515
    assert [layer.number for layer in geometry.layers] == list(LAYOUTS[voxels][2])
    for layer in geometry.layers:
        n = LAYOUTS[voxels][2][layer.number][1]
        assert layer.resolved == (n > 1, n > 1)
        assert layer.grid is None
    expected = np.array(list(slow_reading(text)))
    numbers = np.repeat([layer.number for layer in geometry.layers], [len(layer) for layer in geometry.layers])
    centers = [np.concatenate([getattr(layer, axis) for layer in geometry.layers]) for axis in ("eta", "phi")]
    assert np.array_equal(numbers, expected[:, 0])
    np.testing.assert_allclose(centers, expected[:, 1:].T, atol=1e-9)
    again = Geometry.from_dict(geometry.to_dict())
    assert np.array_equal(again.layers[-1].eta, geometry.layers[-1].eta)


def test_radius_is_the_faster_index(binning):
    (layer,) = read_geometry(
        binning('<Bins><Bin name="e"><Layer id="3" r_edges="0,2,6" n_bin_alpha="4"/></Bin></Bins>')
    ).layers
    half = math.sqrt(0.5)
    np.testing.assert_allclose(layer.eta, np.array([-1, -4, 1, 4, 1, 4, -1, -4]) * half)
    np.testing.assert_allclose(layer.phi, np.array([-1, -4, -1, -4, 1, 4, 1, 4]) * half)


def test_particle_by_name(binning):
    path = binning(binning_xml(368, 533))
    assert read_geometry(path, "pion").n_cells == 533
    assert read_geometry(path, "photon").n_cells == 368
    with pytest.raises(ConfigError, match="2 binnings; expected one of the particles photon, pion"):
        read_geometry(path)
    with pytest.raises(ConfigError, match="no particle 'pions'; did you mean 'pion'"):
        read_geometry(path, "pions")
    with pytest.raises(ConfigError, match="2 binnings of 'pion'"):
        read_geometry(binning(binning_xml(533, 533)), "pion")


def layer_with(**changed):
    attributes = {"id": "1", "r_edges": "0,1,2", "n_bin_alpha": "2"} | changed
    return " ".join(f'{name}="{value}"' for name, value in attributes.items() if value is not None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"r_edges": "0,2,1"}, r"layer '1': r_edges are '0,2,1', expected numbers in mm that increase"),
        ({"r_edges": "-1,1"}, "r_edges are '-1,1', expected .* from 0 or more"),
        ({"r_edges": "0,nan"}, "r_edges are '0,nan'"),
        ({"r_edges": "0;1"}, "r_edges are '0;1'"),
        ({"n_bin_alpha": "0"}, "n_bin_alpha is 0, expected 1 or more"),
        ({"n_bin_alpha": "999999999"}, "n_bin_alpha is 999999999, expected .* no more than 16777216 voxels"),
        ({"n_bin_alpha": "1e3"}, "n_bin_alpha is '1e3', expected an integer"),
        ({"id": "-1"}, "id is '-1', expected an integer of 0 or more"),
        (
            {"n_bin_alpha": None, "n_bins_alpha": "2"},
            "without the attribute 'n_bin_alpha' found; did you mean 'n_bins_alpha'",
        ),
        ({"r_edges": "0"}, "expected at least one layer"),
    ],
)
def test_layers_that_cannot_be(binning, changed, message):
    with pytest.raises(FileError, match=rf"binning\.xml, particle 'e'.*{message}"):
        read_geometry(binning(f'<Bins><Bin name="e"><Layer {layer_with(**changed)}/></Bin></Bins>'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no readable XML, truncated or damaged"),
        (binning_xml(368)[:-3], "no readable XML, truncated or damaged"),
        ('<?xml version="1.0" encoding="klingon"?><Bins/>', "no readable XML"),
        ("<html><body/></html>", "<html> with <body> found, expected <Bins> with <Bin>"),
        ("<Bins/>", "<Bins> with nothing found"),
        ('<Bins><Bin name="e"><Leyer/></Bin></Bins>', "<Leyer> found, expected <Layer>"),
        (f'<!DOCTYPE Bins SYSTEM "elsewhere.dtd">{binning_xml(368)}', "a DOCTYPE found, expected none"),
        ('<!DOCTYPE b [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><Bins>&b;</Bins>', "a DOCTYPE found, expected none"),
    ],
)
def test_files_that_are_no_binning(binning, text, message):
    with pytest.raises(FileError, match=rf"binning\.xml.*{message}"):
        read_geometry(binning(text))


def test_layer_twice(binning):
    layer = f"<Layer {layer_with()}/>"
    with pytest.raises(FileError, match=r"layers \[1, 1\] have voxels, expected at least one layer, and each once"):
        read_geometry(binning(f'<Bins><Bin name="e">{layer}{layer}</Bin></Bins>'))


def test_missing_file_names_the_nearest(binning):
    path = binning(binning_xml(368))
    with pytest.raises(FileError, match=r"bining\.xml: no such file; did you mean '.*binning\.xml'"):
        read_geometry(path.with_name("bining.xml"))
