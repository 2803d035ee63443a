"""One process at a time in a folder; the operating system gives a lock back as soon as its process ends, however."""

from __future__ import annotations

import fcntl
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calorefine.errors import CalorefineWarning, FileError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder, which is made if there is none.

    Raises:
        FileError: another process is at work in it.

    Warns:
        CalorefineWarning: its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            msg = (
                f"{folder}: process {file.read() or '(unknown)'} is at work in this folder; wait for its end, or choose"
            )
            raise FileError(f"{msg} another output") from None
        except OSError as error:
            msg = f"{folder}: can't be locked ({error.strerror}); see to it that no second process works in it"
            warnings.warn(msg, CalorefineWarning, stacklevel=3)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield
