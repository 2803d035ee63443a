"""One case of fuzzing and what comes of it.

A case is a function of a random generator and an empty folder.  It gives calorefine something valid, whose values it
knows from elsewhere, or something damaged, and returns what came of it:

    ok            the values are those of the independent reading, or damage did no harm to any of them
    undetectable  wrong values of a damaged part whose bytes no checksum of the format covers

All else is raised.  A `CalorefineError`, or the end of a command with status 1 or 2 and one line `error: ...`, is an
`error`: on purpose.  `Silent` is a wrong value without an error, `Refused` an error for what is valid.  Any other
exception is a `crash`, as is a signal; what takes longer than `LIMIT_S` of processor time, so that other programs
don't count, is a `hang`.  Whoever runs cases in a process of its own counts one that waits forever.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from calorefine.errors import CalorefineError

LIMIT_S = 10.0
RESULTS = ("ok", "error", "undetectable", "refused", "silent", "crash", "hang")
FAULTS = ("refused", "silent", "crash", "hang")
Case = Callable[[random.Random, Path], str]


class Silent(Exception):  # noqa: N818 (a result)
    """A value is wrong, and nothing was said."""


class Refused(Exception):  # noqa: N818 (a result)
    """Something valid was refused."""


class TooLong(BaseException):
    """The time is over; no handler of `Exception` catches it."""


@dataclass(frozen=True)
class Outcome:
    """Result of a case, and what is to be known of a fault."""

    result: str
    what: str = ""


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[None]:
    """Raise `TooLong` in the block after so many seconds of processor time, and each second, if that is swallowed."""

    def ring(number: int, frame: object) -> None:
        del number, frame
        raise TooLong

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judged(case: Case, rng: random.Random, limit: float = LIMIT_S) -> Outcome:
    """Run a case in a folder of its own."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with watched(limit), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                return Outcome(case(rng, Path(name)))
        except Silent as found:
            return Outcome("silent", str(found))
        except Refused as found:
            return Outcome("refused", str(found))
        except TooLong:
            return Outcome("hang", traceback.format_exc(limit=-8))
        except CalorefineError as error:
            return Outcome("error" if str(error).strip() else "crash", str(error))
        except SystemExit as end:
            return _ended(end, said.getvalue())
        except BaseException:  # whatever it is, it is a crash
            return Outcome("crash", traceback.format_exc(limit=-8))


def _ended(end: SystemExit, said: str) -> Outcome:
    """A command that ended as it says what is wrong, or otherwise."""
    errors = re.findall(r"^error: ", said, re.MULTILINE)
    on_purpose = end.code in (1, 2) and len(errors) == 1 and "Traceback" not in said
    return Outcome("error" if on_purpose else "crash", f"status {end.code}: {said[-600:]}")


def generator(seed: int, kind: str, number: int) -> random.Random:
    """The random generator of one case."""
    return random.Random(f"{seed}/{kind}/{number}")
