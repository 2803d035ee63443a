"""Binning of the CaloChallenge, an XML file, as a `Geometry`.

Voxels are bins in the radius r and the angle alpha around the axis of the shower, r the faster index.  Their centers
are eta = r cos(alpha) and phi = r sin(alpha), with r and alpha, from -pi to pi, the middle of the bin.  A layer with a
single bin in alpha has its centers at 0, and one with less than two edges in r is empty.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from calorefine.errors import ConfigError, FileError, nearest
from calorefine.geometry import Geometry, Layer

MOST_CELLS = 2**24
"""A layer with more is taken for a mistake."""


class _Builder(ET.TreeBuilder):
    """Elements without declarations: entities, which may grow without limit, are declared in a DOCTYPE only."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse it.

        Raises:
            FileError: always.
        """
        del name, pubid, system
        raise FileError("a DOCTYPE found, expected none in a binning")


def read_geometry(path: str | Path, particle: str | None = None, threshold_mev: float = 0.0) -> Geometry:
    """Return the geometry of a `binning_*.xml`, lengths in mm.

    Args:
        path: the file.
        particle: name of the particle, as in the attribute `name` of `<Bin>`; may be left out if there is one.
        threshold_mev: energy below which a voxel is not read out, in MeV, which the file doesn't tell.

    Raises:
        FileError: the file is missing, is no such XML, or has layers that can't be.
        ConfigError: the particle isn't there, or there are several.
    """
    path = Path(path)
    bins = _bins(path)
    names = [element.get("name", "") for element in bins]
    chosen = [element for element in bins if particle in (None, element.get("name"))]
    if len(chosen) != 1:
        found = f"no particle '{particle}'{nearest(str(particle), names)}" if not chosen else f"{len(chosen)} binnings"
        named = f" of '{particle}'" if chosen and particle is not None else ""
        raise ConfigError(f"{path}: {found}{named}; expected one of the particles {', '.join(names)}")
    where = f"{path}, particle '{chosen[0].get('name', '')}'"
    layers = [layer for element in chosen[0] if (layer := _layer(element, where))]
    numbers = [layer.number for layer in layers]
    if not layers or len(set(numbers)) < len(numbers):
        raise FileError(f"{where}: layers {numbers} have voxels, expected at least one layer, and each once")
    return Geometry(tuple(layers), threshold_mev)


def _bins(path: Path) -> list[ET.Element]:
    """Return the binnings of a file.

    Raises:
        FileError: there is no such file, or it is another one.
    """
    if not path.is_file():
        siblings = [str(sibling) for sibling in path.parent.glob("*.xml")]
        raise FileError(f"{path}: no such file{nearest(str(path), siblings)}")
    try:
        root = ET.fromstring(path.read_bytes(), ET.XMLParser(target=_Builder()))
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    except Exception as error:  # of an encoding that isn't known, Python raises others than ParseError
        raise FileError(f"{path}: no readable XML, truncated or damaged ({error}); expected a binning_*.xml") from error
    if root.tag != "Bins" or not len(root) or any(element.tag != "Bin" for element in root):
        found = f"<{root.tag}> with {', '.join(dict.fromkeys(f'<{element.tag}>' for element in root)) or 'nothing'}"
        raise FileError(f"{path}: {found} found, expected <Bins> with <Bin>, as in a binning of the CaloChallenge")
    return list(root)


def _layer(element: ET.Element, where: str) -> Layer | None:
    """Layer of an element; None if it is empty.

    Raises:
        FileError: it is no layer, or one that can't be.
    """
    if element.tag != "Layer":
        raise FileError(f"{where}: <{element.tag}> found, expected <Layer>")
    id_, edges_text, n_text = (_attribute(element, name, where) for name in ("id", "r_edges", "n_bin_alpha"))
    where = f"{where}, layer '{id_}'"
    number, n_alpha = (_integer(text, name, where) for text, name in ((id_, "id"), (n_text, "n_bin_alpha")))
    edges = _edges(edges_text, where)
    if not 1 <= n_alpha <= MOST_CELLS // max(1, len(edges)):
        raise FileError(f"{where}: n_bin_alpha is {n_alpha}, expected 1 or more, and no more than {MOST_CELLS} voxels")
    if len(edges) < 2:
        return None
    return Layer.of_rings(number, edges.tolist(), n_alpha)


def _attribute(element: ET.Element, name: str, where: str) -> str:
    text = element.get(name)
    if text is None:
        raise FileError(f"{where}: a layer without the attribute '{name}' found{nearest(name, element.keys())}")
    return text


def _integer(text: str, name: str, where: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        raise FileError(f"{where}: {name} is '{text:.40}', expected an integer of 0 or more")
    return int(text)


def _edges(text: str, where: str) -> np.ndarray:
    """Edges in r: finite, increasing, from 0 or more."""
    try:
        edges = np.array([float(part) for part in text.split(",")])
    except ValueError:
        edges = np.array([np.nan])
    if not (np.isfinite(edges).all() and edges[0] >= 0 and (np.diff(edges) > 0).all()):
        raise FileError(f"{where}: r_edges are '{text:.60}', expected numbers in mm that increase, from 0 or more")
    return edges
