"""The CaloChallenge's four layouts: are files read and written as they are, and how much memory does that take?

Files and binnings are made here: 368, 533, 6480 and 40 500 voxels with the layers of the challenge's data sets 1
(photons, pions), 2 and 3, and synthetic showers, four in five of whose voxels are empty.  Prints, and writes as JSON:

- `round_trip_<voxels>`: 1 if showers that are written are read as they were, layers have the numbers and sizes of the
  XML, and energies of layers and centers of energy are those of a computation of its own, by `xml.etree`; 0 otherwise;
- `rss_gb_flow_6480`, `rss_gb_gan_6480`: largest memory of a training, all of its process: an epoch of the
  configuration with `--showers` showers, the preprocessing by an epoch of its own network;
- `rss_gb_io_40500`: largest memory of a process that writes `--showers-io` showers, reads them, and writes them with an
  observable beside, in chunks; `io_file_gb` is what these showers take in memory;
- `seconds_<...>` of each.

Every measurement is a process of its own.

    python benchmarks/shower_layouts.py --json layouts.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from numpy.typing import NDArray

from calorefine import shower_observables
from calorefine.binning import read_geometry
from calorefine.fit.command import lightning
from calorefine.geometry import Geometry
from calorefine.io.chunks import Request
from calorefine.io.formats import open_source
from calorefine.io.rewrite import rewriting
from calorefine.io.writer import write_tree

CONFIGS = Path(__file__).parent.parent / "configs" / "showers"
ROWS = 400  # showers that are made, and read, at a time
THRESHOLD_MEV = 0.01515
RECIPES = {"flow": "shower_flow", "gan": "two_step_gan"}
N_ROUND_TRIP = 1000
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
LAYOUTS: dict[int, tuple[str, int, dict[int, tuple[str, int]]]] = {
    368: ("photon", 24, PHOTONS),
    533: ("pion", 24, PIONS),
    6480: ("electron", 45, dict.fromkeys(range(45), (RINGS[9], 16))),
    40500: ("electron", 45, dict.fromkeys(range(45), (RINGS[18], 50))),
}
"""Voxels: particle, layers of which some are empty, and edges in r and bins in alpha of the others."""


@dataclass(frozen=True)
class Voxels:
    """Voxels of a file as an independent reading of its XML has them, in the order of a shower.

    Attributes:
        layer: (n,) numbers.
        r_mm: (n,) middle in r; 0 in a layer that isn't divided in alpha.
        alpha: (n,) middle in alpha.
        area: (n,) in mm^2.
    """

    layer: NDArray[np.int64]
    r_mm: NDArray[np.float64]
    alpha: NDArray[np.float64]
    area: NDArray[np.float64]

    @classmethod
    def of(cls, path: Path) -> Voxels:
        """Read them one after the other."""
        rows = []
        for layer in ET.parse(path).getroot().iter("Layer"):
            edges, n = [float(edge) for edge in layer.attrib["r_edges"].split(",")], int(layer.attrib["n_bin_alpha"])
            for k in range(n):
                for low, high in itertools.pairwise(edges):
                    alpha, area = -math.pi + (k + 0.5) * 2 * math.pi / n, math.pi * (high**2 - low**2) / n
                    rows.append((int(layer.attrib["id"]), (low + high) / 2 if n > 1 else 0.0, alpha, area))
        number, *others = np.array(rows).T
        return cls(number.astype(np.int64), *others)


def write_binning(path: Path, voxels: int) -> Path:
    """Write the XML of a layout."""
    particle, n_layers, layers = LAYOUTS[voxels]
    root = ET.Element("Bins")
    binning = ET.SubElement(root, "Bin", name=particle, pid="0", etaMin="0", etaMax="130")
    for number in range(n_layers):
        edges, n = layers.get(number, ("0", 1))
        ET.SubElement(binning, "Layer", id=str(number), r_edges=edges, n_bin_alpha=str(n))
    path.write_bytes(ET.tostring(root))
    return path


def drawn(voxels: Voxels, n: int, seed: int) -> dict[str, NDArray[Any]]:
    """Synthetic showers (n, voxels) and their incident energies (n, 1), MeV: a profile in depth and radius."""
    rng = np.random.default_rng(seed)
    e_inc = np.exp(rng.uniform(*np.log([1e3, 1e6]), (n, 1)))
    order, place = np.unique(voxels.layer, return_inverse=True)
    depth = (np.arange(len(order)) + 0.5) / len(order)
    peak = 0.25 + 0.03 * np.log(e_inc / 1e3) + rng.normal(0, 0.03, (n, 1))
    along = depth ** (8 * peak) * np.exp(-8 * depth) * rng.gamma(8.0, 1 / 8, (n, len(order)))
    across = voxels.area * np.exp(-np.maximum(voxels.r_mm, np.sqrt(voxels.area) / 4) / 8.0)
    across /= np.bincount(place, across)[place]
    share = (along / along.sum(1, keepdims=True))[:, place] * across
    cells = share.astype(np.float32) * rng.standard_gamma(0.5, share.shape, np.float32) / 0.5
    cells *= (0.8 * e_inc * rng.normal(1, 0.03, (n, 1))).astype(np.float32)
    cells[cells < np.maximum(THRESHOLD_MEV, 2e-5 * e_inc)] = 0.0
    return {"incident_energies": e_inc, "showers": cells}


def write_showers(path: Path, voxels: Voxels, n: int) -> Path:
    """Write n showers, some at a time."""
    with write_tree(path, "/") as writer:
        for first in range(0, n, ROWS):
            rows = np.arange(first, min(first + ROWS, n))
            writer.extend({**drawn(voxels, len(rows), first), "row": rows})
        writer.finish({})
    return path


def read_back(path: Path) -> Iterator[dict[str, NDArray[Any]]]:
    """Chunks of a file by the source."""
    request = Request({"e": "incident_energies"}, branches=["showers", "row"])
    for chunk in open_source(str(path), "/").chunks(request, rows=ROWS):
        yield {**chunk.branches, "e": chunk.values["e"]}


def round_trip(voxels: int, folder: Path, n: int = N_ROUND_TRIP) -> int:
    """Whether what is read is what was written, and the geometry that of the XML."""
    xml = write_binning(folder / f"binning_{voxels}.xml", voxels)
    reference, geometry = Voxels.of(xml), read_geometry(xml)
    path, equal = write_showers(folder / f"showers_{voxels}.h5", reference, n), same_layers(geometry, reference)
    found = list(read_back(path))
    rows = np.concatenate([chunk["row"] for chunk in found])
    equal &= np.array_equal(rows, np.arange(n))
    for chunk in found:
        first = int(chunk["row"][0])
        made = drawn(reference, len(chunk["row"]), first)
        equal &= np.array_equal(chunk["showers"], made["showers"])
        equal &= np.array_equal(chunk["e"], made["incident_energies"][:, 0].astype(np.float32))
        equal &= same_observables(chunk["showers"], geometry, reference)
    return int(equal)


def same_layers(geometry: Geometry, reference: Voxels) -> bool:
    """Whether layers have the numbers, sizes and centers of the XML."""
    numbers, sizes = np.unique(reference.layer, return_counts=True)
    same = [layer.number for layer in geometry.layers] == numbers.tolist()
    same &= [len(layer) for layer in geometry.layers] == sizes.tolist()
    for axis, turned in (("eta", np.cos), ("phi", np.sin)):
        own = np.concatenate([getattr(layer, axis) for layer in geometry.layers])
        same &= np.allclose(own, reference.r_mm * turned(reference.alpha), rtol=0, atol=1e-9)
    return same


def same_observables(cells: NDArray[np.float32], geometry: Geometry, reference: Voxels) -> bool:
    """Whether energies of layers, and centers of energy, are those of sums over the voxels of the XML."""
    same, x = True, cells.astype(np.float64)
    for number in np.unique(reference.layer):
        at = reference.layer == number
        energy = x[:, at].sum(1)
        same &= np.allclose(shower_observables.evaluate(f"e_layer_{number}", cells, geometry), energy, rtol=1e-6)
        if not reference.r_mm[at].any():
            continue
        center = x[:, at] @ (reference.r_mm * np.cos(reference.alpha))[at] / np.where(energy > 0, energy, 1.0)
        own = shower_observables.evaluate(f"ec_eta_{number}", cells, geometry)
        same &= np.allclose(own, center, rtol=0, atol=1e-4)
    return same


def configuration(name: str, folder: Path, voxels: int, n: int) -> Path:
    """The shipped configuration, for a file of this layout that is written beside it."""
    xml = write_binning(folder / "binning.xml", voxels)
    path = write_showers(folder / "showers.h5", Voxels.of(xml), n)
    told = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    told["data"] |= {
        "files": str(path),
        "columns": {
            "features": {"showers": {"shape": [voxels]}},
            "context": {"e_inc_gev": {"expression": "incident_energies", "branch_unit": "MeV"}},
            "key": ["row"],
            "showers": {"geometry": {"binning": str(xml), "threshold_mev": THRESHOLD_MEV}, "e_inc": "e_inc_gev"},
        },
    }
    told["data"]["preprocessing"]["init_args"] = {"epochs": 1}
    if name == "two_step_gan":
        told["model"]["init_args"]["then"]["init_args"]["latent_size"] = voxels
    told["trainer"] |= {"max_epochs": 1, "enable_progress_bar": False}
    output = folder / f"{name}.yaml"
    output.write_text(yaml.safe_dump(told))
    return output


def streamed(folder: Path, voxels: int, n: int) -> None:
    """Write showers, read them, and write them again with their energy beside."""
    reference = Voxels.of(write_binning(folder / "binning.xml", voxels))
    first, second = write_showers(folder / "first.h5", reference, n), folder / "second.h5"
    source = open_source(str(first), "/")
    with rewriting(source, Request({"t": "sum(showers)"}), second, adds=["e_tot"]) as copy:
        for chunk in copy.chunks():
            copy.extend(chunk, {"e_tot": chunk.values["t"]})
        copy.finish({})
    with h5py.File(second) as file:
        if file["showers"].shape != (n, voxels):
            raise SystemExit(f"showers of shape {file['showers'].shape} found, expected ({n}, {voxels})")
        last = file["showers"][-10:]
        np.testing.assert_allclose(file["e_tot"][-10:], last.sum(1, dtype=np.float64), rtol=1e-6)


def measured(name: str, *arguments: str) -> dict[str, float]:
    """Largest memory and time of a part, in a process of its own."""
    command = [sys.executable, __file__, "--part", name, *arguments]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    gb, seconds = json.loads(told)
    return {f"rss_gb_{name}": gb, f"seconds_{name}": seconds}


def part(name: str, n: int) -> None:
    """Do a part, and print its memory and time; the files of a training are written by another process."""
    kind, voxels = name.split("_")
    with tempfile.TemporaryDirectory() as folder:
        if kind in RECIPES:
            written = [sys.executable, __file__, "--write", RECIPES[kind], folder, voxels, str(n)]
            subprocess.run(written, check=True)
        start = time.perf_counter()
        if kind in RECIPES:
            config = f"{folder}/{RECIPES[kind]}.yaml"
            lightning(["fit", "-c", config, "--runs", f"{folder}/runs", "--threads", "1"])
        else:
            streamed(Path(folder), int(voxels), n)
        seconds = time.perf_counter() - start
    print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, seconds]))


def main() -> None:
    """Measure, print, write; or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--showers", type=int, default=20_000, help="of 6480 voxels, in a training")
    parser.add_argument("--showers-io", type=int, default=16_000, help="of 40 500 voxels, written and read")
    parser.add_argument("--only", nargs="*", help="flow_6480, gan_6480, io_40500, or layouts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        configuration(options.write[0], Path(options.write[1]), *map(int, options.write[2:]))
        return
    if options.part:
        part(options.part, options.showers)
        return
    counts = {
        "flow_6480": options.showers,
        "gan_6480": options.showers,
        "io_40500": options.showers_io,
    }
    figures: dict[str, float] = {}
    wanted = options.only or [*map(str, LAYOUTS), *counts]
    with tempfile.TemporaryDirectory() as folder:
        for voxels in (voxels for voxels in LAYOUTS if str(voxels) in wanted):
            start = time.perf_counter()
            figures[f"round_trip_{voxels}"] = round_trip(voxels, Path(folder))
            figures[f"seconds_round_trip_{voxels}"] = time.perf_counter() - start
    for name in (name for name in counts if name in wanted):
        figures |= measured(name, "--showers", str(counts[name])) | {f"n_{name}": counts[name]}
        print(name, figures[f"rss_gb_{name}"], flush=True)
    figures["io_file_gb"] = options.showers_io * 40_500 * 4 / 1e9
    for key, value in figures.items():
        print(f"{key:>30} {value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
