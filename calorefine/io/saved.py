"""Files of tensors and plain containers, as `torch.save` writes them: read whole, or refused, without running code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from calorefine.errors import CheckpointError, nearest


def read_saved(path: Path, *keys: str, what: str, expected: str) -> dict[str, Any]:
    """Return the content of a file that holds one of these keys.

    Args:
        path: of the file.
        keys: entries each of which tells that it is what is expected.
        what: kind of file, for messages.
        expected: where such files come from, for messages.

    Raises:
        CheckpointError: the file is missing, damaged (by its own checksums, which torch doesn't compare), or else.
    """
    if not path.is_file():
        siblings = [str(sibling) for sibling in path.parent.glob(f"*{path.suffix}")]
        raise CheckpointError(f"{path}: no such {what}{nearest(str(path), siblings)}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise many types for a file that is none of their own
        unsafe = isinstance(error, pickle.UnpicklingError)  # torch's message tells to load it all the same
        told = "it holds more than numbers" if unsafe else error
        raise CheckpointError(f"{path}: not a readable {what} ({told}); expected {expected}") from error
    if damaged:
        raise CheckpointError(f"{path}: damaged: '{damaged}' in it differs from its checksum; expected {expected}")
    if not isinstance(content, dict) or not set(keys) & set(content):
        raise CheckpointError(f"{path}: not a {what}; expected {expected}")
    return content


@contextmanager
def rebuilding(path: Path, what: str) -> Iterator[None]:
    """Say that a file's content makes no sense, whatever is raised as it is put together.

    Raises:
        CheckpointError: an entry is missing, or is of another kind, size or value than it should be.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        lacking = f"entry {error} is missing" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: can't be rebuilt, the {what} is damaged or was changed ({lacking})") from error


def require_numbers(path: Path, content: Any, where: str) -> None:
    """Refuse NaN anywhere in nested containers.

    Raises:
        CheckpointError: a tensor or number has one.
    """
    if isinstance(content, Mapping):
        for name, item in content.items():
            require_numbers(path, item, f"{where}.{name}")
    elif isinstance(content, list | tuple):
        for number, item in enumerate(content):
            require_numbers(path, item, f"{where}[{number}]")
    elif isinstance(content, torch.Tensor | float):
        bad = int(torch.isnan(torch.as_tensor(content)).sum())
        if bad:
            raise CheckpointError(f"{path}: {where} has {bad} numbers that are NaN, expected none")
