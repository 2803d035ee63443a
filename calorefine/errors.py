"""Every error and warning that calorefine raises on purpose.

Each message names the file, branch or option, what was found, what was expected and, where there is one, the nearest
right answer.  All errors derive from `CalorefineError`, which the command line prints without a traceback.
"""

from __future__ import annotations

import difflib
import logging
import signal
import warnings
from collections.abc import Iterable


class CalorefineError(Exception):
    """Base of all errors raised on purpose."""


class FileError(CalorefineError):
    """A file is missing, truncated, unclosed, or holds no such tree."""


class BranchError(CalorefineError):
    """A branch is missing, jagged, or not numeric."""


class ExpressionError(CalorefineError):
    """An expression or cut can't be parsed or evaluated."""


class ValueRangeError(CalorefineError):
    """Values are NaN, infinite, or outside what was declared (an unknown category, say)."""


class KeyColumnError(CalorefineError):
    """Event keys are duplicated, or are not integers."""


class WeightError(CalorefineError):
    """Weights can't be used: sum not positive, or signed weights where an objective needs positive ones."""


class EmptySelectionError(CalorefineError):
    """No event is left after the cut."""


class FitError(CalorefineError):
    """A fit did not converge, or its result fails its own checks."""


class FactorizationError(CalorefineError):
    """The spectator's shape depends on a column beyond doubt: sWeights would be biased."""


class ConfigError(CalorefineError):
    """An option's value can't be used."""


class TrainingError(CalorefineError):
    """Training can't go on: a loss is NaN or infinite."""


class CheckpointError(CalorefineError):
    """A file is not a simulator that this version can load."""


class Stopped(SystemExit):
    """Ctrl-C or SIGTERM ended a command; the status is 128 and the number of the signal, as shells have it.

    Args:
        number: of the signal.
        hint: how to go on.
    """

    def __init__(self, number: int, hint: str = "") -> None:
        """Say which signal it was."""
        super().__init__(128 + number)
        self.text = f"stopped by {signal.Signals(number).name}{hint}"

    @classmethod
    def of(cls, end: BaseException, hint: str = "") -> Stopped | None:
        """Return it for what was raised, if a signal was the cause.

        Lightning ends by SIGTERM without a status, and by Ctrl-C with status 1.
        """
        if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
            return cls(signal.SIGINT, hint)
        if isinstance(end, Stopped) and not hint:
            return end
        terminated = isinstance(end, SystemExit) and end.code in (None, 128 + signal.SIGTERM)
        return cls(signal.SIGTERM, hint) if terminated else None


class CalorefineWarning(UserWarning):
    """Base of all warnings."""


class CalorefineNote(CalorefineWarning):
    """What is worth knowing, and as it should be."""


class KeyWarning(CalorefineWarning):
    """Events are identified by file and row only."""


class SumRuleWarning(CalorefineWarning):
    """The sWeights do not sum to the yields as exactly as they should."""


class FactorizationWarning(CalorefineWarning):
    """The spectator's shape depends on a column: sWeights are biased."""


class ColumnWarning(CalorefineWarning):
    """Events have in a column what its options don't say, and a generator would not have it."""


class UncertaintyWarning(CalorefineWarning):
    """An uncertainty leaves something out, or a difference lies where there is no uncertainty."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate nearest to `name`, or an empty string.

    >>> nearest("p_gev", ["p_GeV", "eta"])
    "; did you mean 'p_GeV'?"
    """
    names = list(candidates)
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    candidate = folded.get(name.lower()) or (close[0] if close else None)
    return f"; did you mean '{candidate}'?" if candidate else ""


def without_hints() -> None:
    """Leave out what Lightning says about hardware that isn't used, workers not needed, and torch's internals."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    hints = ("does not have many workers", "smaller than the logging interval", "LeafSpec", "callbacks used to create")
    for hint in hints:
        warnings.filterwarnings("ignore", message=f".*{hint}.*")
