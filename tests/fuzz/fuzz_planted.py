"""Faults planted on purpose, each of which the cases have to find: kind of case, how many, and how to plant it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from calorefine import geometry
from calorefine.io import c_forms, chunks, provenance, root, saved, showers, sources


def _replace(owner: Any, name: str, change: Callable[[Any], Any]) -> None:
    setattr(owner, name, change(getattr(owner, name)))


def _silent(*arguments: Any) -> None:
    """Say nothing."""
    del arguments


def _believed(array: Any, rows: int) -> Any:
    """Take an array as it is."""
    del rows
    return array


def _shifted_second_file() -> None:
    """Rows of the second file and later ones come one too late."""

    def change(select: Any) -> Any:
        def shifted(table: Any, rows: Any, path: Any, *rest: Any) -> Any:
            late = path.name != "0.root"
            moved = {k: np.roll(v, 1, axis=0) if late and isinstance(v, np.ndarray) else v for k, v in table.items()}
            return select(moved, rows, path, *rest)

        return shifted

    _replace(sources, "select", change)


def _nan_passes() -> None:
    """A NaN counts as finite."""
    chunks.np = _Lenient()


class _Lenient:
    """numpy, by which all is finite."""

    def __getattr__(self, name: str) -> Any:
        return (lambda values: np.zeros_like(values)) if name == "abs" else getattr(np, name)


def _and_is_or() -> None:
    """`&&` is read as `||`."""
    _replace(c_forms, "_translated", lambda old: lambda text: old(text.replace("&&", "||")))


def _loose_not() -> None:
    """C's `!` binds as Python's `not`."""
    c_forms._NOT = " not "
    _replace(c_forms._Negations, "visit_UnaryOp", lambda _: lambda self, node: self.generic_visit(node))


def _shorter_when_truncated() -> None:
    """A file that is cut reads as far as it goes."""

    def change(batches: Any) -> Any:
        def lenient(self: Any, names: Any, rows: int) -> Any:
            try:
                yield from batches(self, names, rows)
            except root.FileError:
                return

        return lenient

    _replace(root.RootTree, "batches", change)


def _lists_unchecked() -> None:
    """Lists are taken wherever they end."""
    root._sound = _believed


def _nan_parameter() -> None:
    """A checkpoint may hold NaN."""
    from calorefine import simulator

    simulator.require_numbers = _silent
    simulator.Simulator._try = _silent


def _no_checksum() -> None:
    """Bytes of a checkpoint are believed."""
    saved.zipfile.ZipFile.testzip = _silent


def _runs_code() -> None:
    """A checkpoint is unpickled without care."""
    load = torch.load
    saved.torch = type("Torch", (), {"load": lambda *a, **k: load(*a, **(k | {"weights_only": False}))})
    saved.torch.Tensor, saved.torch.isnan, saved.torch.as_tensor = torch.Tensor, torch.isnan, torch.as_tensor


def _provenance_unchecked() -> None:
    """Whatever stands in a provenance is taken."""
    provenance._require_known = _silent


def _gev_for_mev() -> None:
    """Incident energies of CaloGAN stay in GeV."""

    def change(made: Any) -> Any:
        return lambda name, held: made(name, held) / (1000 if name == showers.ENERGIES else 1)

    _replace(showers, "_made", change)


def _alpha_is_faster() -> None:
    """Voxels of a layer come in the other order."""

    class Turned:
        """numpy, whose outer product is turned."""

        def __getattr__(self, name: str) -> Any:
            return (lambda a, b: np.outer(b, a)) if name == "outer" else getattr(np, name)

    geometry.np = Turned()


PLANTED: dict[str, tuple[str, int, Callable[[], None]]] = {
    "rows of the second file are shifted by one": ("root", 120, _shifted_second_file),
    "NaN passes": ("root", 200, _nan_passes),
    "&& is evaluated as ||": ("expressions", 300, _and_is_or),
    "! binds loosely": ("expressions", 300, _loose_not),
    "a truncated file reads as shorter": ("root", 200, _shorter_when_truncated),
    "lists that end elsewhere are taken": ("root", 600, _lists_unchecked),
    "a checkpoint with a NaN parameter is loaded": ("checkpoints", 150, _nan_parameter),
    "damaged bytes of a reweighter are believed": ("reweighters", 200, _no_checksum),
    "a checkpoint may run code": ("checkpoints", 200, _runs_code),
    "a provenance of the wrong types is taken": ("provenance", 200, _provenance_unchecked),
    "GeV of CaloGAN is taken for MeV": ("showers", 60, _gev_for_mev),
    "alpha is the faster index of a binning": ("binning", 60, _alpha_is_faster),
}
