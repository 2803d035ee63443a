"""What an output says of its making: versions, digests, and the provenance stored in the file."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calorefine.io.root import open_file

PROVENANCE = "calorefine_provenance"


def versions() -> dict[str, str]:
    """Versions that a provenance names."""
    return {"calorefine": version("calorefine"), "python": platform.python_version(), "torch": version("torch")}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the provenance of a file written by calorefine, empty if it has none.

    Raises:
        FileError: the file can't be read.
    """
    with open_file(path) as file:
        return json.loads(str(file[PROVENANCE])) if PROVENANCE in file else {}
