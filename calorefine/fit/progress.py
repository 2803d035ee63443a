"""How far a training is: a bar in a terminal, a line now and then in the log of a batch job."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar

MOST_LINES = 60


class TerminalBar(TQDMProgressBar):
    """Losses, without the version of a logger."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what the bar shows."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class ProgressLines(ProgressBar):
    """A line to the standard error after the first epoch and at most `MOST_LINES` others, the last one included."""

    def disable(self) -> None:
        """Nothing: in one of several processes `trainer` is asked."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time, and where the training goes on."""
        del pl_module
        self.start, self.first = time.perf_counter(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line, if it is due."""
        del pl_module
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        due = done in (self.first + 1, total) or done % -(-total // MOST_LINES) == 0
        if not due or not trainer.is_global_zero:
            return
        rate = (done - self.first) / (time.perf_counter() - self.start)
        losses = ", ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        left = f"{rate:.3g} epochs/s, about {(total - done) / rate:.0f} s left"
        sys.stderr.write(f"epoch {done} of {total}: {losses}{'; ' if losses else ''}{left}\n")


def progress() -> Any:
    """Return the bar, if the standard output is a terminal, or else the lines."""
    return TerminalBar(refresh_rate=20) if sys.stdout.isatty() else ProgressLines()
