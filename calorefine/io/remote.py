"""Files elsewhere (`root://`, `https://`, ...): copied once to the local disk, from where they are read."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from calorefine.errors import FileError

CACHE = "CALOREFINE_CACHE"
"""Environment variable that names the folder of the copies; if unset, it is in the system's one for temporary files."""
PACKAGES = {"root": "fsspec-xrootd", "xroot": "fsspec-xrootd", "http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}


def scheme(given: str) -> str | None:
    """`https` of `https://...`; None of a path."""
    match = re.match(r"(\w+)://", given)
    return match[1] if match else None


def local_copy(url: str) -> Path:
    """Copy a remote file, unless an earlier copy is of what the server has: its size, checksum and date are the same.

    Raises:
        FileError: it can't be read, or a package is missing that reads it.
    """
    import fsspec  # type: ignore[import-untyped]  # neither py.typed nor stubs exist

    kind = str(scheme(url))
    root = os.environ.get(CACHE) or Path(tempfile.gettempdir()) / f"calorefine-{os.getuid()}"
    try:
        files, path = fsspec.core.url_to_fs(url)
        state = hashlib.sha256(repr([url, sorted(files.info(path).items())]).encode()).hexdigest()[:12]
        copied = Path(root) / state / Path(path).name
        if not copied.is_file():
            copied.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=copied.parent) as folder:
                beside = Path(folder) / copied.name
                files.get_file(path, str(beside))
                beside.replace(copied)
    except (ImportError, ValueError) as error:  # of a protocol that isn't known, fsspec says ValueError
        package = PACKAGES.get(kind)
        remedy = f"install {package} (pip install {package})" if package else "copy the file to a local disk"
        raise FileError(f"{url}: can't be read by {kind} ({error}); {remedy}") from error
    except Exception as error:  # of the many that servers and protocols raise
        why = str(error) or type(error).__name__
        raise FileError(f"{url}: can't be read ({why}); expected a file that the server has, no pattern") from error
    return copied
