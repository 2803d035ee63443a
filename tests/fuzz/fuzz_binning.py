"""Binning files: random valid ones against a slow reading, and damaged ones.

A text has no checksum: another number that makes sense is `undetectable`, if a slow reading of the damaged text finds
the same.  A voxel that stands in no text, or is left out, is `silent`.
"""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import numpy as np
from fuzz_damage import damaged
from fuzz_harness import Refused, Silent

from calorefine.binning import read_geometry
from calorefine.errors import CalorefineError
from calorefine.geometry import Geometry

_LAYER = re.compile(r"<Layer\s([^>]*?)/?>")
_ATTRIBUTE = re.compile(r"""(\w+)\s*=\s*["']([^"']*)["']""")
Voxel = tuple[int, float, float]


def _text(rng: random.Random) -> str:
    layers = []
    for k in range(rng.randint(1, 6)):
        n = rng.choice([0, 1, 1, 4, 9])
        edges = sorted(rng.sample(range(1, 200), n)) if n else []
        shown = ",".join(rng.choice(["{}", "{}.0", "{}.25", " {}"]).format(edge) for edge in [0, *edges])
        layers.append(f'<Layer id="{k}" r_edges="{shown}" n_bin_alpha="{rng.choice([1, 1, 2, 3, 10])}"/>')
    layers.append('<Layer id="6" r_edges="0,1" n_bin_alpha="1"/>')
    return f'<Bins>\n  <Bin pid="22" etaMin="0" etaMax="130" name="photon">{" ".join(layers)}</Bin>\n</Bins>\n'


def _slow(text: str) -> list[Voxel]:
    """Layer, eta and phi of each voxel, one at a time."""
    voxels = []
    for match in _LAYER.finditer(text):
        given = dict(_ATTRIBUTE.findall(match[1]))
        edges, n = [float(part) for part in given["r_edges"].split(",")], int(given["n_bin_alpha"])
        for a in range(n):
            alpha = -math.pi + (a + 0.5) * 2 * math.pi / n
            for k in range(len(edges) - 1):
                r = (edges[k] + edges[k + 1]) / 2 if n > 1 else 0.0
                voxels.append((int(given["id"]), r * math.cos(alpha), r * math.sin(alpha)))
    return voxels


def _voxels(geometry: Geometry) -> list[Voxel]:
    return [
        (layer.number, float(eta), float(phi))
        for layer in geometry.layers
        for eta, phi in zip(layer.eta, layer.phi, strict=True)
    ]


def _same(found: list[Voxel], expected: list[Voxel]) -> bool:
    return len(found) == len(expected) and np.allclose(found, expected, rtol=1e-9, atol=1e-6)


def _other_digit(rng: random.Random, text: str) -> str:
    """Text in which a digit of a layer is another one, or a comma."""
    at = rng.choice([match.start() for match in re.finditer(r"\d", text) if match.start() > text.index("<Layer")])
    return text[:at] + rng.choice("0123456789,.-") + text[at + 1 :]


def case(rng: random.Random, folder: Path) -> str:
    """A valid file or a damaged one."""
    path, text = folder / "binning.xml", _text(rng)
    path.write_text(text)
    if rng.random() < 0.3:
        try:
            found = _voxels(read_geometry(path))
        except CalorefineError as error:
            raise Refused(f"{text}: {error}") from error
        if not _same(found, _slow(text)):
            raise Silent(f"{found} found in {text}")
        return "ok"
    data = damaged(rng, text.encode()) if rng.random() < 0.6 else _other_digit(rng, text).encode()
    path.write_bytes(data)
    found = _voxels(read_geometry(path))
    if _same(found, _slow(text)):
        return "ok"
    if not _same(found, _slow(data.decode())):
        raise Silent(f"{found} found in {data.decode()}")
    return "undetectable"
