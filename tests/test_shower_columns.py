"""What a description of showers tells of their geometry, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from calorefine import Column, Columns
from calorefine.errors import ConfigError, FileError
from calorefine.events import adapted_columns
from calorefine.geometry import Geometry, Layer
from calorefine.shower_columns import ShowerColumns, geometry_of
from tests.data.shower_toy import COLUMNS, ENTRY, GEOMETRY

XML = """<Bins><Bin pid="22" name="photon"><Layer id="0" r_edges="0,5,10" n_bin_alpha="4"/><Layer id="1" r_edges="0"
 n_bin_alpha="1"/><Layer id="3" r_edges="0,20,60,90" n_bin_alpha="1"/></Bin></Bins>"""
GRIDS = {"grids": [[2, 12], [4, 3]], "size_mm": [120, 120], "threshold_mev": 0.5}


def same(first, second):
    """Whether two geometries are equal, cell by cell."""
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for one, other in zip(first.layers, second.layers, strict=True)
        for field in dataclasses.fields(Layer)
    ) and (first.threshold_mev, first.mirrors) == (second.threshold_mev, second.mirrors)


def test_grids():
    assert same(geometry_of(GRIDS), GEOMETRY)
    told = ShowerColumns(GRIDS, "e_inc_gev", ENTRY)
    assert same(told.calorimeter, GEOMETRY)
    assert told == ShowerColumns(told.geometry, "e_inc_gev", ENTRY)


def test_an_xml_file_is_needed_once(tmp_path):
    """Columns that were made of it come back from plain containers without it."""
    path = tmp_path / "binning.xml"
    path.write_text(XML)
    told = ShowerColumns({"binning": str(path), "particle": "photon", "threshold_mev": 1.0}, "e_inc_mev")
    columns = Columns({"showers": Column(shape=[11])}, {"e_inc_mev": None}, showers=told)
    path.unlink()
    again = Columns.from_dict(columns.to_dict())
    assert again == columns
    assert same(again.showers.calorimeter, told.calorimeter)
    assert [len(layer) for layer in told.calorimeter.layers] == [8, 3]
    with pytest.raises(FileError, match=r"binning.xml: no such file"):
        ShowerColumns({"binning": str(path)}, "e_inc_mev")


@pytest.mark.parametrize(
    "geometry",
    [
        GEOMETRY,
        Geometry((Layer(3, np.array([0.1, 7.0]), np.array([1.0, 2.0]), resolved=(True, False)),), 0.2),
        Geometry((Layer.of_rings(0, (0.0, 1.0, 2.5), 3), Layer.of_grid(4, (1, 2), (3.0, 4.0)))),
    ],
    ids=["grids", "any cells", "rings and a grid"],
)
def test_there_and_back(geometry):
    assert same(Geometry.from_dict(geometry.to_dict()), geometry)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"grid": [[2, 12]], "size_mm": [120, 120]}, r"grid, size_mm found; did you mean 'grids'\?; expected grids, s"),
        ({"grids": [[2, 12]]}, r"geometry: grids found.*; expected grids, size_mm, threshold_mev; or binning"),
        ({"grids": [[2, 12]], "binning": "b.xml", "size_mm": [1, 1]}, r"grids, binning, size_mm found"),
        ({"grids": [2, 12], "size_mm": [120, 120]}, r"grids \[2, 12\] and size_mm \[120, 120\] found, expected as in"),
        ({"grids": [[2, 12]], "size_mm": [1, 1], "threshold_mev": "0.1 MeV"}, r"threshold_mev '0.1 MeV' found"),
        ({"layers": [{"grid": [2, 12]}]}, r"layers that can't be found \(KeyError\('number'\)\), expected each with"),
        ({"layers": [{"number": 0, "grid": [2, 12], "pitch_mm": 1}]}, r"layers that can't be found \(TypeError"),
        ({}, r"geometry: nothing found"),
    ],
)
def test_a_geometry_that_is_refused(told, message):
    with pytest.raises(ConfigError, match=message):
        geometry_of(told)


def refused(message, **changed):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(COLUMNS, **changed)


def test_columns_that_are_refused():
    with pytest.raises(ConfigError, match=r"entry \[\] found, expected the two context columns.*geometry has mirrors"):
        ShowerColumns(GRIDS, "e_inc_gev")
    refused(r"arrays among the features: 'showers' with 35 numbers; expected one, of 36", features={"showers": of(35)})
    refused(r"arrays among the features: none; expected one, of 36 cells", features={"x": None})
    refused(r"'a' with 36 numbers, 'b' with 36 numbers; expected one", features={"a": of(36), "b": of(36)})
    refused(r"'showers': unit GeV found, expected MeV", features={"showers": dataclasses.replace(of(36), unit="GeV")})
    refused(r"no context column 'e_inc_gev'; did you mean 'e_gev'", context=context("e_gev", "x_mm"))
    refused(r"'e_inc_gev': unit m found|its name says GeV", context={**COLUMNS.context, "e_inc_gev": Column(unit="m")})
    refused(r"'x_mm'.*there are e_inc_gev, x_cm, y_mm", context=context("e_inc_gev", "x_cm"))
    told = ShowerColumns(GRIDS, "e_inc", ENTRY)
    refused(r"'e_inc': unit None found, expected one of eV, keV", showers=told, context=context("e_inc", "x_mm"))
    in_cm = ShowerColumns(GRIDS, "e_inc_gev", ["x_cm", "y_mm"])
    refused(r"'x_cm': unit cm found, expected mm", showers=in_cm, context=context("e_inc_gev", "x_cm"))


def of(n_cells):
    return Column(shape=[n_cells])


def context(e_inc, x):
    return {e_inc: None, x: None, "y_mm": None}


def test_columns_of_another_file_keep_the_geometry():
    adapted = adapted_columns(COLUMNS, {"e_inc_gev": Column("E", branch_unit="MeV")}, option="--columns")
    assert adapted.showers == COLUMNS.showers
    assert adapted.cells == "showers"
    assert adapted.mev("e_inc_gev") == 1000
